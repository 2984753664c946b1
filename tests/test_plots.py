"""Every picture: labelled axes, no empty panel, a legend where colours differ, and nothing left behind in pyplot."""

import numpy as np
import pytest
from astropy.table import Table
from matplotlib import rcParams

from spectral_core.analysis.detection import recall_at_budget, roc_curve
from spectral_core.analysis.outliers import rank_outliers
from spectral_core.core import DataError, SpectrumError
from spectral_core.figures.detection import plot_label_counts, plot_recall, plot_roc
from spectral_core.figures.latents import plot_embedding, plot_estimates, plot_invariance, plot_latent_distances, plot_latents
from spectral_core.figures.spectra import mean_residual, plot_augments, plot_chi2, plot_outliers, plot_spectrum
from spectral_core.figures.training import plot_training
from spectral_core.spectra.container import Spectra

rng = np.random.default_rng(0)


def spectra(n: int = 4, z: float = 0.1) -> Spectra:
    flux = 1 + 0.1 * rng.standard_normal((n, 3921))
    return Spectra(flux, np.full((n, 3921), 100.0), np.full(n, z), "sdss", table=Table({"norm": np.ones(n)}))


def pictures():
    s = spectra()
    ranked = rank_outliers(s, log_prob=np.array([-1.0, -9.0, np.nan, -4.0]))
    latents = rng.standard_normal((300, 3))
    xy = latents[:, :2]
    group = np.repeat(["", "a", "b"], [300, 20, 20])
    score = rng.standard_normal(340) + 2 * (group != "")
    recall = recall_at_budget(score, group != "", group)
    rest_wave = np.geomspace(2600, 9200, 2000)
    history = {"train_loss": [2.0, 1.0], "valid_loss": [2.1, 1.2], "train_similarity": [0.2, 0.1]}
    yield "spectrum", plot_spectrum(s, np.ones_like(s.flux))
    yield "outliers", plot_outliers(s[ranked["row"]], ranked, np.ones_like(s.flux))
    yield "augments", plot_augments(s[0], rest_wave, np.ones((3, 2000)), [0.1, 0.2, 0.4], embedding=xy, places=xy[:3])
    yield "chi2", plot_chi2(s, np.ones_like(s.flux), np.ones(4))
    yield "distances", plot_latent_distances({"fid": (np.abs(xy[:, 0]), np.abs(xy[:, 1]) + 1), "all": (xy[:, 0] ** 2, [1.0, 3])})
    yield "invariance", plot_invariance({"fid": (np.abs(xy[:, 0]), np.abs(xy[:, 1]))}, {"fid": 2.0})
    values = {"z": latents[:, 2], "mass": latents[:, 1], "A_V": latents[:, 0]}
    yield "embedding", plot_embedding(xy, values, box=((-1, -1), (1, 1)))
    yield "latents", plot_latents(latents, latents[::-1])
    yield "labels", plot_label_counts(["Blends", "Blends", "Star"])
    yield "recall", plot_recall(recall)
    yield "roc", plot_roc({"a": roc_curve(score[group == "a"], score[group == ""])})
    yield "training", plot_training(history)
    yield "estimates", plot_estimates({"mass": latents[:, 0], "A_V": latents[:, 1]}, latents[:, :2] + 0.1, np.ones((300, 2)))


PICTURES = dict(pictures())


@pytest.mark.parametrize("name", PICTURES)
def test_picture_is_complete(name):
    figure = PICTURES[name]
    figure.draw_without_rendering()
    shared = bool(figure.get_supxlabel() and figure.get_supylabel())
    drawn = [ax for ax in figure.axes if ax.axison and ax.get_frame_on() and ax.get_label() != "<colorbar>"]
    assert drawn and all(ax.has_data() for ax in drawn), "an empty panel"
    for ax in drawn:
        place, x, y = ax.get_subplotspec(), ax.get_shared_x_axes(), ax.get_shared_y_axes()
        if name == "latents" and not (place.is_last_row() and place.is_first_col()): continue  # corner labels the outer ones
        assert shared or ax.get_title("left") or any(a.get_xlabel() for a in x.get_siblings(ax)), "no x label"
        words = any(t.get_text()[:1].isalpha() for t in ax.get_yticklabels())  # bars with names need no other label
        if place.is_first_col(): assert shared or words or any(a.get_ylabel() for a in y.get_siblings(ax)), "no y label"
    assert figure._repr_png_()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("name", ["spectrum", "distances", "roc", "recall"])
def test_texts_stay_inside_the_figure_and_apart(name):
    "Titles and axis labels don't run out of the picture, and titles of neighbouring panels don't run into each other."
    figure = PICTURES[name]
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer() if hasattr(figure.canvas, "get_renderer") else None
    boxes = [t.get_window_extent(renderer) for ax in figure.axes for t in (ax.xaxis.label, ax.yaxis.label) if t.get_text()]
    for b in boxes: assert b.x0 >= -1 and b.y0 >= -1 and b.x1 <= figure.bbox.x1 + 1 and b.y1 <= figure.bbox.y1 + 1
    titles = [ax._left_title.get_window_extent(renderer) for ax in figure.axes if ax.get_title("left") and ax.axison]
    for i, a in enumerate(titles): assert not any(a.overlaps(b) for b in titles[i + 1 :])


@pytest.mark.parametrize("n_epoch, marker", [(1, "o"), (60, "")])
def test_a_single_epoch_is_seen(n_epoch, marker):
    figure = plot_training({"train_loss": np.ones(n_epoch), "valid_loss": 2 * np.ones(n_epoch)})
    [ax] = [ax for ax in figure.axes if ax.get_visible()]
    assert {line.get_marker().replace("None", "") for line in ax.lines} == {marker}
    figure.draw_without_rendering()
    assert all(float(tick).is_integer() for tick in ax.get_xticks())


def test_nothing_stays_behind():
    "No figure in pyplot's list, no setting changed."
    import matplotlib.pyplot as plt

    before = dict(rcParams)
    plot_label_counts(["a", "b"])
    plot_spectrum(spectra(1))
    assert plt.get_fignums() == [] and dict(rcParams) == before


def test_gallery_refuses_rows_of_others():
    s = spectra()
    ranked = rank_outliers(s, log_prob=np.array([-1.0, -9.0, -2.0, -4.0]))
    with pytest.raises(SpectrumError, match="ids"): plot_outliers(s, ranked)
    with pytest.raises(SpectrumError, match="shape"): plot_spectrum(s, np.ones((2, 3921)))
    texts = [ax.get_title("left") for ax in plot_outliers(s[ranked["row"]], ranked).axes]
    assert any("#1" in t and "−log p 9" in t for t in texts)


def test_flagged_spectra_are_shown_too():
    "No good pixel, no redshift, no model: a picture all the same."
    s = spectra(3)
    ivar, z = s.ivar.copy(), s.z.copy()
    ivar[0], z[1] = 0, np.nan
    model = np.ones_like(s.flux)
    model[2] = np.nan
    figure = plot_spectrum(s.replace(ivar=ivar, z=z), model)
    assert any("no good pixel" in t.get_text() for ax in figure.axes for t in ax.texts)
    assert any("no redshift" in ax.get_title("left") for ax in figure.axes)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plot_spectrum(spectra(2)[:0]),
        lambda: plot_label_counts([]),
        lambda: plot_latent_distances({"a": ([np.nan], [1.0])}),
        lambda: plot_latents(np.ones((3, 2))),
        lambda: plot_embedding(np.full((5, 2), np.nan), {"z": np.ones(5)}),
        lambda: plot_training({}),
        lambda: plot_recall(Table({"group": []})),
        lambda: plot_chi2(spectra(2), np.ones((2, 3921)), [np.nan, np.nan]),
    ],
)
def test_fault_15_nothing_to_draw(draw):
    with pytest.raises(DataError): draw()


def test_mean_residual_stands_still_in_its_own_frame():
    "A feature planted at rest 5000 Å is seen there in the rest frame, and in the observed frame only diluted."
    n = 60
    z = np.linspace(0.02, 0.3, n)
    s = spectra(n)
    bump = 0.2 * np.exp(-0.5 * ((s.wave / (1 + z[:, None]) - 5000) / 15) ** 2)
    s = s.replace(flux=s.flux + bump, z=z)
    wave, rest, error = mean_residual(s, np.ones_like(s.flux))
    assert wave[np.nanargmax(rest)] == pytest.approx(5000, abs=15) and np.nanmax(rest) == pytest.approx(0.2, abs=0.04)
    assert np.nanmax(mean_residual(s, np.ones_like(s.flux), "observed")[1]) < 0.1
    far = np.abs(wave - 5000) > 100
    assert np.nanstd((rest / error)[far]) == pytest.approx(1, abs=0.1)  # the error is the scatter
