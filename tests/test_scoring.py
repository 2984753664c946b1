"""Files in, a ranking out: every file has its row, whatever is in it."""

import os
import shutil

import numpy as np
import pytest
import torch
from astropy.table import Table
from matplotlib.image import imread

from spectral_core.analysis.outliers import rank_outliers
from spectral_core.archives.sdss import read_sdss, write_sdss
from spectral_core.core import ConfigError, DataError, Flag, assets_dir
from spectral_core.models.autoencoder import RedshiftAutoencoder
from spectral_core.models.flows import MaskedAutoregressiveFlow
from spectral_core.ranking.lookup import recorded_inputs
from spectral_core.ranking.parts import passed_over
from spectral_core.scoring import score, score_survey
from spectral_core.simulate.mock import mock_survey
from spectral_core.spectra.preprocessing import preprocess
from spectral_core.spectra.store import write_store
from spectral_core.tables import read_table


@pytest.fixture(scope="module")
def own():
    "An untrained model: it ranks like a fool, but it ranks, and always alike."
    torch.manual_seed(0)
    return RedshiftAutoencoder("sdss", n_latent=2).eval(), MaskedAutoregressiveFlow(2).eval()


@pytest.fixture(scope="module")
def mock():
    return mock_survey("sdss", n=12, seed=0)


@pytest.fixture
def folder(mock, tmp_path):
    "Twelve good files, and what befalls files: cut short, an error page, a copy, no redshift, no pixels."
    (tmp_path / "in" / "more").mkdir(parents=True)
    paths = write_sdss(mock, tmp_path / "in")
    shutil.copy(paths[0], tmp_path / "in" / "more" / "copy.fits")
    (tmp_path / "in" / "more" / "cut.fits").write_bytes(paths[1].read_bytes()[:6000])
    (tmp_path / "in" / "more" / "page.fits").write_text("<html>Not found</html>")
    doubtful = mock_survey("sdss", n=2, seed=1)
    z, ivar = doubtful.z.copy(), doubtful.ivar.copy()
    z[0], ivar[1] = np.nan, 0
    write_sdss(doubtful.replace(z=z, ivar=ivar), tmp_path / "in")
    return tmp_path / "in"


def test_every_file_has_one_row_and_every_odd_row_a_reason(folder, own, mock):
    table = score(folder, own, progress=False)
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.fits"))
    assert sorted(table["file"]) == files and len(files) == 17
    row = {name: table[table["file"] == name][0] for name in files}
    assert [row[f"more/{n}.fits"]["list"] for n in ("cut", "page")] == ["not read"] * 2
    assert "truncated" in row["more/cut.fits"]["reason"] and "HTML" in row["more/page.fits"]["reason"]
    copied = (folder / "more" / "copy.fits").read_bytes()
    original = next(p.name for p in folder.glob("*.fits") if p.read_bytes() == copied)  # sorts behind the copy
    assert (row[original]["list"], row[original]["reason"]) == ("not read", "the same observation as more/copy.fits")
    unranked = table[table["list"] != "ranked"]
    assert (unranked["rank"] == -1).all() and all(unranked["reason"])
    assert not any(str(folder) in text or "; wanted" in text for text in table["reason"])  # the file has its column
    flagged = table[table["list"] == "flagged"]
    for words in ("no redshift", "no data with a usable error"): assert any(words in text for text in flagged["reason"])
    assert not any(bit.name in text for bit in Flag for text in table["reason"])
    assert sorted(np.asarray(flagged["flag"]) & int(Flag.NODATA | Flag.BAD_Z)) == [Flag.NODATA, Flag.BAD_Z]
    assert np.isnan(flagged["neg_log_prob"]).all()
    assert list(table["rank"][table["rank"] > 0]) == list(range(1, sum(table["list"] == "ranked") + 1))
    assert set(mock.id) <= set(table["id"])


def test_other_files_of_a_folder_are_counted(folder, mock):
    (folder / "objects.CSV").write_text("id\n")
    (folder / ".hidden.csv").write_text("id\n")
    (folder / "more" / "README").write_text("mine\n")
    write_store(folder / "store", mock[:2])
    (folder / "out.fits.parts").mkdir()
    (folder / "out.fits.parts" / "part-00000.npz").write_bytes(b"")
    assert passed_over(folder) == passed_over([folder, folder / "objects.CSV"]) == {".csv": 1, "no suffix": 1}


def test_links_are_followed_once_and_what_leads_nowhere_has_its_row(folder, own, mock, tmp_path):
    kept = write_sdss(mock_survey("sdss", n=2, seed=5), tmp_path / "elsewhere")
    before = score(folder, own, progress=False)
    (tmp_path / "elsewhere" / "back").symlink_to(folder)
    (tmp_path / "elsewhere" / "notes.txt").write_text("mine")
    links = {"first": tmp_path / "elsewhere", "second": tmp_path / "elsewhere", "inner": folder / "more", "loop": folder,
             "up": tmp_path, "gone.fits": tmp_path / "gone.fits", "self.fits": folder / "self.fits"}
    for name, target in links.items(): (folder / name).symlink_to(target)
    table = score(folder, own, progress=False)
    new = sorted(set(table["file"]) - set(before["file"]))
    assert new == sorted([*(f"first/{p.name}" for p in kept), "gone.fits", "self.fits"]) and len(table) == len(before) + 4
    reasons = {name: reason for name, reason, place in table["file", "reason", "list"].iterrows() if place == "not read"}
    assert (reasons["gone.fits"], reasons["self.fits"]) == ("the link points to nothing", "the link points to itself")
    assert passed_over(folder) == {".txt": 1}
    with pytest.raises(DataError, match="gone.fits: the link points to nothing"): score(folder / "gone.fits", own, progress=False)


def test_a_folder_without_permission_has_its_row(folder, own, monkeypatch):
    before, listing = score(folder, own, progress=False), os.scandir

    def refuse(path):
        if os.fspath(path) == closed: raise PermissionError(13, "Permission denied", path)
        return listing(path)

    monkeypatch.setattr(os, "scandir", refuse)
    closed = str(folder / "more")
    table = score(folder, own, progress=False)
    row = table[table["file"] == "more"][0]
    assert (row["list"], row["reason"]) == ("not read", "no permission to look into this folder")
    assert len(table) == len(before) - 3 + 1
    closed = str(folder)
    with pytest.raises(DataError, match=f"{folder}: no permission to look into this folder"): score(folder, own, progress=False)


@pytest.mark.parametrize("suffix", ["fits", "ecsv", "csv", "parquet"])
@pytest.mark.parametrize("whole", [True, False])
def test_names_with_accents_come_back_from_every_format(folder, own, tmp_path, suffix, whole):
    names = ["ä.fits", "ö.fits", r"\xe4.fits", "nuit d’été/星.fits"]
    place = tmp_path / "dir é"
    for name, path in zip(names, sorted(folder.glob("*.fits")), strict=False):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place / name)
    shutil.copy(place / names[0], place / "zweites ß.fits")  # sorts before it
    out = tmp_path / f"r.{suffix}"
    if whole: score(place, own, out=out, progress=False)
    else: score_survey(place, out, own, progress=False)
    back = read_table(out)
    assert sorted(back["file"]) == sorted([*names, "zweites ß.fits"])
    assert back["reason"][back["file"] == "ä.fits"].tolist() == ["the same observation as zweites ß.fits"]
    if suffix != "csv": assert recorded_inputs(back) == [str(place)]
    if suffix == "fits": assert r"\xe4" in Table.read(out).meta["ESCAPED"]


def test_a_table_without_a_spectrum_says_what_is_wanted_and_its_row_is_short(folder, own):
    Table({"x": [1.0]}).write(folder / "more" / "none.fits")
    table = score(folder, own, progress=False)
    reason = "no spectrum found: no wave, flux, ivar or error in a table of x"
    assert table["reason"][table["file"] == "more/none.fits"].tolist() == [reason]
    with pytest.raises(DataError, match="none.fits: no spectrum found: .* a table of x; wanted a table with wave"):
        score(folder / "more" / "none.fits", own, progress=False)


def test_the_order_of_the_files_does_not_matter_and_spectra_do_as_well(folder, own):
    paths = sorted(p for p in folder.glob("*.fits"))
    one, other = score(paths, own, progress=False), score(paths[::-1], own, progress=False)
    assert list(one["id"]) == list(other["id"])
    np.testing.assert_allclose(one["neg_log_prob"], other["neg_log_prob"], rtol=1e-3)
    spectra = score(read_sdss(paths), own)
    assert list(spectra["id"]) == list(one["id"])


@pytest.mark.parametrize("suffix", ["fits", "ecsv", "csv", "parquet"])
def test_the_table_on_disk_is_the_table(folder, own, tmp_path, suffix):
    table = score(folder, own, out=tmp_path / f"ranked.{suffix}", progress=False)
    back = Table.read(tmp_path / f"ranked.{suffix}")
    assert back.colnames == table.colnames and list(back["id"]) == list(table["id"])
    assert [str(r)[:20] for r in back["list"]] == list(table["list"])


def test_bad_requests(folder, own, tmp_path):
    with pytest.raises(ConfigError, match="written as .fits"): score(folder, own, out=tmp_path / "ranked.txt")
    with pytest.raises(ConfigError, match="autoencoder, flow"): score(folder, own[:1])
    with pytest.raises(DataError): score(tmp_path / "nowhere", own)
    with pytest.raises(DataError, match="no spectrum to score: page.fits: "):
        score(folder / "more" / "page.fits", own, progress=False)


def test_pictures_show_the_top_ten_to_a_page(mock, own, tmp_path, monkeypatch):
    "All twelve rows rank when the criterion of a good reconstruction, which an untrained model fails, is put aside."
    ranked = rank_outliers(preprocess(mock), log_prob=np.arange(12.0))
    monkeypatch.setattr("spectral_core.scoring.rank_outliers", lambda *_, **__: ranked)
    score(mock, own, out=tmp_path / "ranked.fits", pictures=11)
    assert [p.name for p in sorted(tmp_path.glob("*.png"))] == ["ranked_1.png", "ranked_2.png"]
    heights = [imread(tmp_path / f"ranked_{i}.png").shape[0] for i in (1, 2)]
    assert heights[0] > 5 * heights[1] > 500  # ten spectra, and one


def test_pictures_call_a_mock_mock_and_nothing_else(mock, own, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    said, save = [], Figure.savefig

    def listen(figure, *args, **settings):
        said.append([t.get_text() for t in figure.texts if "mock" in t.get_text()])
        return save(figure, *args, **settings)

    monkeypatch.setattr(Figure, "savefig", listen)
    some = mock.replace(table=Table({"simulated": np.arange(12) == 1}))
    real = mock.replace(table=Table({"simulated": np.zeros(12, bool)}))
    for spectra in (mock, some, real):
        ranked = rank_outliers(preprocess(spectra), log_prob=np.arange(12.0))
        monkeypatch.setattr("spectral_core.scoring.rank_outliers", lambda *_, ranked=ranked, **__: ranked)
        score(spectra, own, out=tmp_path / "ranked.fits", pictures=3)
    assert said == [["mock"], ["mock: #2"], []]


def test_files_of_one_name_in_two_places_are_two_spectra(mock, own, tmp_path):
    for name, row in (("a", 0), ("b", 1)):
        (made,) = write_sdss(mock[row : row + 1], tmp_path / name)
        made.rename(tmp_path / name / "galaxy.fits")
    paths = [tmp_path / name / "galaxy.fits" for name in "ab"]
    assert sorted(score(paths, own, progress=False)["file"]) == [p.as_posix() for p in paths]
    twice = score([paths[0], paths[0]], own, progress=False)
    assert sorted(twice["reason"])[-1] == "the same observation as galaxy.fits"


@pytest.mark.real
def test_every_sdss_file_of_the_mirror_gets_its_row(mirror, own):
    "Galaxies, quasars, sky, a star in every layout; and the pipeline's templates, of which most are no spectra."
    folders = sorted(mirror.glob("sdss_*"))
    files = [p for f in folders for p in f.rglob("*") if p.name.lower().removesuffix(".gz").endswith((".fits", ".fit"))]
    table = score(folders, own, progress=False)
    assert sorted(table["file"]) == sorted(p.name for p in files)
    assert all(table["reason"][table["rank"] < 0]) and len(np.unique(table["id"][table["row"] >= 0])) == max(table["row"]) + 1
    unread = table[table["list"] == "not read"]
    assert sorted(unread["file"]) == sorted(p.name for p in files if p.name.startswith("spEigen"))
    assert all("not spSpec's" in reason for reason in unread["reason"])


@pytest.mark.skipif(not list(assets_dir().glob("sdss*/")), reason="no shipped model")
def test_a_shipped_model_needs_no_training(mock, tmp_path):
    table = score(write_sdss(mock, tmp_path), progress=False)
    assert (table["list"] == "ranked").mean() > 0.5 and np.isfinite(table["neg_log_prob"]).all()
