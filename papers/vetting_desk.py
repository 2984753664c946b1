# %% [markdown]
# # Vetting desk
#
# The method of the papers ends with people who look at the top of a ranking and say what each spectrum is. Choose **Run ▸ Run All Cells**, then click.
#
# <details><summary>How the desk works</summary>
#
# - **A click on a class is the label.** It is on the disk, in `<ranked>.labels.csv`, before the next spectrum shows. The file only grows: a second label of yours counts
#   instead of the first, *take back* withdraws it, and every line keeps who, when and under which model.
# - **The picture.** Black: the spectrum, smoothed over a few pixels (the pixels themselves in grey). Red: what the model makes of it. Below: the residual in units of
#   the noise, the windows of the diagnostic lines, and at the right the spectra that the model finds most alike. Blue names mark the lines of a second object, where the
#   residual suggests one; it is a hint and can be wrong.
# - **Come back any time.** The desk opens at your first spectrum without a label. You don't see what others said; the counts at the bottom show all inspectors, where
#   they differ, and what the published lists of outliers say of these objects.
#
# </details>

# %% tags=["parameters"]
ranked = "ranked.fits"  # a ranked table: FITS, ECSV, CSV or Parquet, with id and rank
data = None  # files, folders or stores that hold the spectra, such as ["spectra"]; None: where the table says
inspector = ""  # your name; empty: the name of your account
n = 200  # look at so many
model = None  # a shipped model; None: the one that the table names
labels = None  # another file for the labels
mock = None  # are the spectra simulated? None: as the table and the spectra say

# %%
from spectral_core.vetting.desk import vet

vet(ranked, data, inspector=inspector, n=n, model=model, labels=labels, mock=mock)
