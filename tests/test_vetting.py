"""The vetting desk: labels that are never lost, spectra found by id, a desk that opens where it was left, an offline page."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from astropy.table import Table
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import cdist

import spectral_core as sc
from spectral_core.analysis.blends import Templates
from spectral_core.cli import main
from spectral_core.core import ConfigError, DataError, RunError
from spectral_core.figures.spectra import plot_outliers
from spectral_core.figures.vetting import plot_case, smooth
from spectral_core.ranking.lookup import find_spectra, read_ranking
from spectral_core.spectra.container import Spectra
from spectral_core.spectra.surveys import get_survey
from spectral_core.tables import read_table, write_table
from spectral_core.vetting.desk import Desk, DeskView, open_lab, vet, write_desk
from spectral_core.vetting.evidence import _nearest, _second, describe, gather, sky_links
from spectral_core.vetting.gallery import write_gallery
from spectral_core.vetting.labels import (
    CLASSES,
    add_label,
    current_labels,
    desk,
    hold_desk,
    labels_path,
    published_overlap,
    read_labels,
    read_published,
)

rng = np.random.default_rng(0)
PYTHON = [sys.executable, "-c"]


# ------------------------------------------------------------------ labels


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["", "star", "blend"]), st.sampled_from(["Ann", "Bo, the second"]),
                          st.text(max_size=20)), max_size=12))
def test_the_file_only_grows_and_the_last_label_counts(tmp_path_factory, given_labels):
    path, before, model = tmp_path_factory.mktemp("labels") / "r.labels.csv", b"", {}
    for id, word, who, comment in given_labels:
        add_label(path, id, word, who, comment=comment)
        after = path.read_bytes()
        assert after.startswith(before) and after.endswith(b"\n")
        before, model[id, who] = after, word
    labels = read_labels(path)
    assert [(r["id"], r["class"], r["comment"]) for r in labels] == [(i, w, " ".join(c.split())) for i, w, _, c in given_labels]
    now = {(int(r["id"]), str(r["inspector"])): str(r["class"]) for r in current_labels(labels)}
    assert now == {key: word for key, word in model.items() if word}


def test_what_was_confirmed_survives_kill_9(tmp_path):
    "A writer is killed without warning; every label whose call had returned is there, and the file takes new ones."
    path = tmp_path / "r.labels.csv"
    code = """
import sys
from spectral_core.vetting.labels import add_label
for i in range(10**6):
    add_label(sys.argv[1], i, "star", "Ann")
    print(i, flush=True)
"""
    with subprocess.Popen([*PYTHON, code, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        confirmed = [int(writer.stdout.readline()) for _ in range(40)][-1]
        writer.send_signal(signal.SIGKILL)
        confirmed = max([confirmed, *(int(line) for line in writer.stdout.read().splitlines() if line)])
    ids = read_labels(path)["id"].tolist()
    assert ids == list(range(len(ids))) and len(ids) in (confirmed + 1, confirmed + 2)
    add_label(path, -5, "blend", "Bo")
    assert read_labels(path)["id"].tolist() == [*ids, -5]


def test_two_inspectors_at_once_lose_nothing(tmp_path):
    path = tmp_path / "r.labels.csv"
    code = """
import sys
from spectral_core.vetting.labels import add_label
for i in range(60): add_label(sys.argv[1], i, "star", sys.argv[2], comment="x" * 300)
"""
    writers = [subprocess.Popen([*PYTHON, code, str(path), who]) for who in ("Ann", "Bo")]
    assert [writer.wait() for writer in writers] == [0, 0]
    labels = read_labels(path)
    for who in ("Ann", "Bo"): assert labels["id"][labels["inspector"] == who].tolist() == list(range(60))
    assert len(labels) == 120


def test_one_inspector_has_one_desk(tmp_path):
    path = tmp_path / "r.labels.csv"
    code = """
import sys
from spectral_core.vetting.labels import hold_desk
for who in sys.argv[2:]: hold_desk(sys.argv[1], who)
"""
    with desk(path, "Ann"):
        hold_desk(path, "Ann")  # the cell was run again: no second desk
        other = subprocess.run([*PYTHON, code, str(path), "Bo", "Ann"], capture_output=True, text=True)
        assert other.returncode and "RunError: Ann has a desk" in other.stderr  # Bo had none
    subprocess.run([*PYTHON, code, str(path), "Ann"], check=True)


def test_a_torn_line_costs_itself_only(tmp_path):
    path = tmp_path / "r.labels.csv"
    add_label(path, 1, "star", "Ann")
    with open(path, "a") as file: file.write("2,2,sta")
    add_label(path, 3, "blend", "Ann")
    with pytest.warns(UserWarning, match="1 damaged lines.*line 3"): labels = read_labels(path)
    assert labels["id"].tolist() == [1, 3]


def test_what_cannot_be_saved_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="NOT saved"): add_label(tmp_path / "file" / "r.labels.csv", 1, "star", "Ann")
    with pytest.raises(ConfigError, match="inspector"): add_label(tmp_path / "r.csv", 1, "star", "")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="no file of labels"): read_labels(tmp_path / "other.csv")


def test_published_outliers_are_found_by_id_whatever_stands_around_them(tmp_path):
    published = read_published()
    chosen = published[rng.choice(len(published), 20, replace=False)]
    ids = np.concatenate([chosen["id"], np.arange(30), [-1, -1]])
    rank = rng.permutation(len(ids)) + 1
    mixed = rng.permutation(len(ids))
    found = published_overlap(read_labels(()), Table({"id": ids[mixed], "rank": rank[mixed]}))
    assert sorted(found["id"]) == sorted(chosen["id"]) and (np.diff(found["rank"]) > 0).all()
    assert dict(zip(found["id"], found["rank"])) == dict(zip(ids[:20], rank[:20]))


# ------------------------------------------------------------------ evidence


@pytest.fixture(scope="module")
def mock():
    return sc.mock_survey("sdss", n=12, seed=4)


@pytest.fixture(scope="module")
def ranked(mock, tmp_path_factory):
    "Twelve mock files, ranked by the shipped model."
    folder = tmp_path_factory.mktemp("mock")
    sc.write_sdss(mock, folder / "spectra")
    sc.score(folder / "spectra", out=folder / "ranked.fits", progress=False)
    return folder / "ranked.fits"


@pytest.mark.parametrize("suffix", [".fits", ".ecsv", ".csv", ".parquet"])
def test_any_ranked_table_will_do(tmp_path, suffix):
    rank, place = [2, 1, -1, -1, -1], ["ranked", "ranked", "flagged", "flagged", "not read"]
    table = Table({"targetid": [2**60 + 1, 2**60, 7, -622, -1], "rank": rank, "list": place})  # -622: a fibre on no target
    write_table(table, tmp_path / f"r{suffix}")
    found = read_ranking(tmp_path / f"r{suffix}")
    with pytest.raises(DataError, match="the ranking is empty"): find_spectra(found[:0], tmp_path)
    assert found["id"].tolist() == [2**60, 2**60 + 1, 7, -622] and found.meta["unread"] == 1


def test_spectra_are_found_by_id_in_files_stores_and_memory(mock, ranked, tmp_path):
    table, folder = read_ranking(ranked), ranked.parent / "spectra"
    sc.write_store(tmp_path / "store", mock[::-1])
    for data in (folder, tmp_path / "store", mock, [*folder.iterdir()]):
        rows, spectra = find_spectra(table, data)
        assert (rows["id"] == table["id"]).all() and (spectra.id == table["id"]).all()
    some = sorted(folder.iterdir())[:5]
    rows, spectra = find_spectra(table, some)
    assert len(rows) == 5 and spectra.id.tolist() == [i for i in table["id"] if i in rows["id"]]
    with pytest.raises(DataError): find_spectra(Table({"id": [1, 2]}), folder)
    with pytest.raises(ConfigError, match="data="): find_spectra(Table({"id": [1, 2]}))


def test_a_table_moved_with_its_data_finds_it(mock, ranked, tmp_path, monkeypatch):
    "Inputs relative to where it was scored are sought beside the table too; what is where it was comes first."
    table = read_table(ranked)
    for name in (ranked, ranked.with_suffix(".ecsv")):
        table.meta["inputs"] = json.dumps(["spectra"])
        write_table(table, name.with_stem("moved"))
        monkeypatch.chdir(tmp_path)
        cases = gather(name.with_stem("moved"), n=2)
        assert cases.spectra.id.tolist() == read_ranking(ranked)["id"][:2].tolist()
        assert sc.read_ranked(name.with_stem("moved")).id.tolist() == read_ranking(ranked)["id"].tolist()
        monkeypatch.chdir(ranked.parent)
        assert read_ranking(name.with_stem("moved").name).meta["inputs"] == ["spectra"]
    table.meta["inputs"] = json.dumps(["gone"])
    with pytest.raises(DataError, match="names gone, relative to where it was scored, and it is not here"): gather(table, n=2)


def test_a_path_that_is_in_both_places_is_the_one_that_holds_the_files(mock, tmp_path, monkeypatch):
    "Scored as '.', read from outside, where '.' holds other spectra; the error says where it looked."
    sc.write_sdss(mock[:3], tmp_path / "dir é")
    sc.write_sdss(mock[3:5], tmp_path / "other")
    monkeypatch.chdir(tmp_path / "dir é")
    table = sc.score(".", out="ré.fits", progress=False)
    monkeypatch.chdir(tmp_path / "other")
    found = sc.read_ranked("../dir é/ré.fits")
    assert found.id.tolist() == table["id"].tolist() and len(gather("../dir é/ré.fits")) == 3
    with pytest.raises(DataError, match=rf"looked in {tmp_path}/other, as the table says: --data \(data="): gather(table)
    with pytest.raises(DataError, match=rf"looked in {tmp_path}/other; ids"): gather(table, tmp_path / "other")
    monkeypatch.chdir(tmp_path)
    assert read_ranking("dir é/ré.fits").meta["inputs"] == ["dir é"]


def test_rows_that_were_not_read_are_refused_with_what_to_do(mock, tmp_path):
    paths = sc.write_sdss(mock[:3], tmp_path / "in")
    paths[0].write_text("<html>")
    table = sc.score(tmp_path / "in", out=tmp_path / "own.ecsv", progress=False)
    for ranked, how in ((table, ""), (tmp_path / "own.ecsv", f" with table = read_table('{tmp_path}/own.ecsv')")):
        with pytest.raises(DataError) as error: sc.read_ranked(ranked)
        said = f"1 of 3 rows were not read and have no spectrum ({paths[0].name}): give table[table['list'] != 'not read']{how}"
        assert str(error.value) == said
    assert len(sc.read_ranked(table[table["list"] != "not read"])) == 2


def test_what_is_not_there_is_counted_by_what_was_asked_for(ranked, tmp_path):
    "Rows in which neighbours would be sought don't count, whether they are there or not."
    folder, table = ranked.parent / "spectra", read_table(ranked)
    sc.write_store(tmp_path / "store", sc.mock_survey("sdss", n=2, seed=99))
    with pytest.raises(DataError, match="none of the 2 spectra is in these 1 files"): gather(table, tmp_path / "store", n=2)
    late = [folder / name for name in read_ranking(table)["file"][4:]]
    with pytest.raises(DataError, match="none of the 3 spectra is in these 8 files"): gather(table, late, n=3)


@pytest.mark.parametrize("survey", ["sdss", "desi"])
def test_a_second_object_is_found_at_its_redshift(survey):
    "Features of a template added at z2, on a logarithmic and on a linear grid, with noise."
    survey = get_survey(survey)
    wave, z, z2 = survey.grid.wave, np.array([0.08, 0.05]), np.array([0.21, 0.33])
    rest = np.arange(2000.0, 10000.0, 0.5)
    lines = [1 - 0.5 * np.exp(-0.5 * ((rest[:, None] - rng.uniform(3000, 7000, 40)) / 5) ** 2).sum(1) for _ in range(2)]
    templates = Templates(("a", "b"), rest, np.array(lines))
    hidden = np.stack([0.3 * (np.interp(wave, rest * (1 + b), t) - 1) for b, t in zip(z2, templates.flux)])
    flux = 1 + hidden + 0.05 * rng.standard_normal(hidden.shape)
    spectra = Spectra(flux, np.full(flux.shape, 400.0), z, survey, table=Table({"norm": np.ones(2)}))
    found = _second(spectra, np.ones_like(flux), templates)
    assert np.abs(np.array([s.z for s in found]) - z2).max() < 5e-4
    assert [s.template for s in found] == ["a", "b"] and all(s.clear for s in found)
    nothing = _second(spectra.replace(flux=flux - hidden), np.ones_like(flux), templates)
    assert not any(s.clear for s in nothing)
    assert _second(spectra, np.full(flux.shape, np.nan), templates) == [None, None]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(arrays(float, (12, 2), elements=st.integers(-3, 3).map(float)), st.integers(1, 4))
def test_nearest_are_the_nearest_others(latents, k):
    "Also among twins; brute force agrees on the distances."
    latents[5, 0] = np.nan
    index = _nearest(latents, 8, k)
    assert (index[5] == -1).all()
    scaled = latents / np.maximum(np.nanstd(np.delete(latents, 5, 0), axis=0), 1e-9)
    distance = cdist(scaled, scaled)
    for i in {*range(8)} - {5}:
        assert i not in index[i] and len(set(index[i])) == k and 5 not in index[i]
        others = np.sort([distance[i, j] for j in range(12) if j not in (i, 5)])
        np.testing.assert_allclose(distance[i, index[i]], others[:k])


def test_smoothing_keeps_what_is_constant_and_weighs_what_is_sure():
    flux, weight = np.full((2, 50), 3.0), rng.uniform(0, 1, (2, 50)) * (rng.uniform(size=(2, 50)) > 0.3)
    soft = smooth(flux, weight)
    assert np.allclose(soft[np.isfinite(soft)], 3.0)
    flux[0, 20], weight[0, 20] = 1e6, 0.0  # a masked cosmic ray
    assert np.nanmax(smooth(flux, weight)) < 3.1


def test_cases_say_mock_and_where_on_the_sky(mock, ranked):
    cases = gather(ranked, mock, n=3)
    assert cases.mock and "mock data" in describe(cases, 0)
    assert [t.get_text() for t in cases.figure(0).texts] == ["mock"]
    told = gather(ranked, ranked.parent / "spectra", n=3)  # the files of a mock say so too
    assert told.mock and gather(ranked, mock, n=3, mock=False).mock is False
    assert (told.spectra.id == read_ranking(ranked)["id"][:3]).all() and told.reconstruction.shape == told.spectra.flux.shape
    assert sky_links(0.0, -90.0) and not sky_links(np.nan, 1.0) and not sky_links(10.0, 91.0)
    assert "12.500000%20%2B3.250000" in sky_links(12.5, 3.25)["SIMBAD"]


def test_a_real_spectrum_among_mocks_is_never_called_one(mock, ranked):
    real = mock.replace(table=Table({"ra": np.arange(12.0), "dec": np.arange(12.0)}))
    ids = read_ranking(ranked)["id"][:4]
    rows = {int(i): k for k, i in enumerate(mock.id)}
    marked = real.replace(table=Table({"simulated": np.isin(np.arange(12), [rows[int(ids[1])]])}))
    cases = gather(ranked, marked, n=4)
    assert cases.simulated.tolist() == [False, True, False, False]
    assert ["mock data" in describe(cases, i) for i in range(4)] == cases.simulated.tolist()
    assert [t.get_text() for t in cases.figure(0).texts] == [] and [t.get_text() for t in cases.figure(1).texts] == ["mock"]
    assert not gather(ranked, real, n=4).mock and gather(ranked, real, n=4, mock=True).simulated.all()


def test_every_case_says_which_file_it_is(mock, ranked):
    "From the ranking, else from the spectra; with its row where it isn't the first."
    table, folder = read_ranking(ranked), ranked.parent / "spectra"
    cases = gather(ranked, n=3)
    assert [cases.facts(i)[0] for i in range(3)] == table["file"][:3].tolist() and table["file"][0] in describe(cases, 0)
    other = gather(table["id", "rank"], folder, n=1)  # a list of somebody else's, without files
    assert other.facts(0)[0] == table["file"][0]
    table["file"][:2], table["file_row"][:2] = "store", [7, 0]
    assert [gather(table, mock, n=2).facts(i)[0] for i in range(2)] == ["store, row 7", "store"]
    assert gather(table["id", "rank"], mock.replace(table=Table({"norm": np.ones(12)})), n=1).file(0) == ""


def test_pictures_name_files_below_the_titles_without_overlaps(mock, ranked):
    table = read_ranking(ranked)[:3]
    table["file"] = ["a" * 90 + ".fits", table["file"][1], ""]
    table["file_row"] = [12, 0, 0]
    spectra = find_spectra(table, mock)[1]
    table["neg_log_prob"][2], table["rank"][2] = np.nan, -1
    figure = plot_outliers(spectra, table)
    figure.draw_without_rendering()
    assert [("log p" in ax.get_title("left")) for ax in figure.axes[::4]] == [True, True, False]
    titles = [ax.get_title("left") for ax in figure.axes[::4]]
    assert [t.count("\n") for t in titles] == [1, 1, 0]
    assert titles[0].endswith("a.fits, row 12") and titles[1].endswith("\n" + table["file"][1])
    boxes = [text.get_window_extent() for ax in figure.axes for text in (ax.title, ax._left_title) if text.get_text()]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_without_redshift_no_line_is_marked(mock, ranked):
    lost, table = mock[:2].replace(z=np.array([np.nan, 0.1])), Table(read_ranking(ranked)[:2])
    for narrow in (True, False):
        figure = plot_case(lost[0], np.ones_like(lost.flux[0]), narrow=narrow)
        texts = {t.get_text() for ax in figure.axes for t in ax.texts}
        labels = {ax.get_xlabel() for ax in figure.axes}
        assert texts == {"no redshift: no lines marked"} and labels == {"", "observed wavelength (Å, vacuum)"}
    table["id"], table["z"] = lost.id, lost.z
    both = "rest wavelength (Å, vacuum); observed where there is no redshift"
    for rows, label in (([0], "observed wavelength (Å, vacuum)"), ([0, 1], both)):
        figure = plot_outliers(lost[rows], table[rows])
        assert figure.get_supxlabel() == label and "no redshift: observed frame" in figure.axes[0].get_title("left")
        assert not figure.axes[0].texts and "no lines marked" in figure.axes[1].texts[0].get_text()


# ------------------------------------------------------------------ the desk


def test_a_desk_opens_where_it_was_left(ranked, tmp_path):
    file = tmp_path / "mine.labels.csv"
    view = vet(ranked, ranked.parent / "spectra", inspector="Ann", n=4, labels=file)
    ids = view.desk.cases.spectra.id
    for word in ("star", "blend"): view.buttons[word].click()
    view.buttons["quasar"].click()
    view.step(-1)
    view.buttons["unsure"].click()  # a second thought on the third
    again = DeskView(Desk(view.desk.cases, file, "Ann"))
    assert again.desk.i == 3
    assert [again.desk.said(i)[0] for i in range(4)] == ["star", "blend", "unsure", ""]
    assert read_labels(file)["id"].tolist() == [*ids[:3], ids[2]]
    again.only.value = "unlabelled"
    again.step(-1)
    assert again.desk.i == 3 and "no other" in again.status.value
    assert set(read_labels(file)["model"]) == {"sdss"}


def test_the_notebook_knows_its_list(ranked, tmp_path):
    written = write_desk(ranked, [ranked.parent / "spectra"], out=tmp_path / "desk.ipynb", inspector="Ann", n=5)
    book, values = json.loads(written.read_text()), {}
    [cell] = [c for c in book["cells"] if "injected-parameters" in c["metadata"].get("tags", [])]
    exec("".join(cell["source"]), values)  # plain assignments
    assert values["ranked"] == str(ranked) and values["n"] == 5 and values["inspector"] == "Ann"
    assert values["data"] == [str(ranked.parent / "spectra")]


def test_the_command(ranked, tmp_path, capsys):
    table = tmp_path / "list.csv"
    write_table(read_table(ranked)["id", "rank"], table)
    data = ["--data", str(ranked.parent / "spectra")]
    with pytest.raises(SystemExit) as end: main(["vet", str(table), *data, "--no-open"])
    assert not end.value.code and (tmp_path / "list.desk.ipynb").is_file()
    assert "writing list.desk.ipynb" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end: main(["vet", str(table), "--counts"])
    assert end.value.code == 2 and "nobody has labelled" in capsys.readouterr().err
    add_label(labels_path(table), read_ranking(table)["id"][0], "dusty", "Ann")
    (tmp_path / "list.desk.ipynb").unlink()
    with pytest.raises(SystemExit) as end: main(["vet", str(table), "--data", "nowhere", "--gallery", "g.txt"])
    assert end.value.code == 2 and "g.txt: the gallery is a page" in capsys.readouterr().err, "before anything is read"
    more = ["--counts", "--gallery", str(tmp_path / "g.html"), "--top", "2", "--mock", "--no-open"]
    with pytest.raises(SystemExit) as end: main(["vet", str(table), *data, *more])
    assert not end.value.code and "dusty" in capsys.readouterr().out
    assert read_table(tmp_path / "list.classes.csv")["class"].tolist() == ["dusty"]
    assert (tmp_path / "list.desk.ipynb").is_file(), "--no-open writes the desk, whatever else is written"
    page = (tmp_path / "g.html").read_text()
    assert page.count("<article") == 2 and "Mock data" in page and "dusty" in page


def test_the_desk_checks_before_it_promises(tmp_path, capsys):
    (tmp_path / "x.txt").touch()
    for name, message in (("no.fits", "there is no table"), ("x.txt", "can be read as .fits")):
        with pytest.raises((DataError, ConfigError), match=message): write_desk(tmp_path / name)
    assert capsys.readouterr().err == ""


def test_a_lab_that_does_not_start_is_an_error(tmp_path, monkeypatch):
    "As for root in a container."
    (tmp_path / "jupyterlab.py").write_text("import sys; sys.exit(3)")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    with pytest.raises(RunError, match=r"exit code 3.* the desk is ranked.desk.ipynb: open it with jupyter lab"):
        open_lab("ranked.desk.ipynb")
    (tmp_path / "jupyterlab.py").write_text("")
    open_lab("ranked.desk.ipynb")


# ------------------------------------------------------------------ in a browser


@pytest.fixture(scope="module")
def gallery(mock, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gallery")
    cases = gather(Table({"id": mock.id[:4]}, meta={"model": "sdss"}), mock, n=4)
    add_label(folder / "l.csv", mock.id[1], "odd lines", "Ann", comment="<script>window.stolen = 1</script>")
    title = "Mock spectra & more"
    return write_gallery(cases, folder / "gallery.html", labels=folder / "l.csv", title=title, progress=False), cases


def test_a_gallery_fetches_nothing(gallery):
    text = gallery[0].read_text()
    pages = r"https://(?:simbad|ned|www\.legacysurvey|skyserver)"
    assert not re.findall(rf'(?:src|href)="(?!data:|#|{pages})[^"]*"', text)
    assert not re.findall(r'src="http|@import|<link', text) and text.count('src="data:image/webp') == 4
    assert 'decoding="async"' not in text  # headless screenshots would lack pictures


def test_a_gallery_explains_its_words(gallery):
    "Every kind of fact on a card stands in the legend; neighbours without a rank say so."
    path, cases = gallery
    head, _, cards = path.read_text().partition("<main>")
    facts = re.findall(r"<span>(−log p|tail|χ²|second z\?)", cards)
    assert "<dt>most alike in latent space</dt>" in head and all(f"<dt>{fact}" in head for fact in facts)
    alike = np.tile([2, 3], (len(cases), 1))  # one without a rank, one at rank 4
    other = replace(cases, nearest=alike, reference_rank=np.array([1, 2, -1, 4]))
    page = write_gallery(other, path.with_name("other.html"), progress=False).read_text()
    assert f">{cases.reference.id[2]} (no rank)</a> <a" in page and ">#4</a></p>" in page


def test_a_gallery_says_which_rows_it_lacks(mock, tmp_path):
    table = Table({"id": [*mock.id[:5].tolist(), -1, -1], "rank": [1, 2, 3, 4, 5, -1, -1]})
    text = write_gallery(gather(table, mock, n=2), tmp_path / "g.htm", progress=False).read_text()
    assert "<p>2 of 7 rows of the ranking, 0 labelled" in text and "2 of the ranking's 7 rows could not be read" in text
    with pytest.raises(ConfigError, match="ends in .html"):
        write_gallery(gather(table, mock, n=2), tmp_path / "g.txt", progress=False)


@pytest.mark.parametrize("width", [390, 1440])
def test_a_gallery_fits_phone_and_desktop(page, gallery, width):
    path, cases = gallery
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(path.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    widths = page.evaluate("Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth)))")
    assert widths == [798] * 4
    assert {url.split(":")[0] for url in asked} <= {"file", "data"} and page.evaluate("window.stolen") is None
    page.get_by_role("button", name="odd lines 1").click()
    assert page.locator("article:visible h3").all_inner_texts() == [" ".join(cases.title(1).split())]
    page.get_by_role("button", name="all 4").click()
    assert page.locator("article:visible").count() == 4


@pytest.mark.real
def test_a_label_of_a_real_spectrum_survives_a_restart(lab, page, mirror):
    "The desk in JupyterLab on ranked real SDSS spectra: a click is on the disk, and on its button after the kernel died."
    data = [mirror / "sdss_galaxy_spectra", mirror / "sdss_qso_spectra"]
    ranked = lab.root / "ranked.fits"
    table = sc.score(data, out=ranked, progress=False)
    name, file = write_desk(ranked, data, inspector="Ann", n=10).name, labels_path(ranked)
    show = """id => document.querySelector(".vet-head h3")?.innerText.includes(id)
        && document.querySelector(".vet-picture")?.naturalWidth > 1000"""
    first, second = (str(i) for i in table["id"][:2])
    lab.open(page, name)
    assert lab.run_all(page)
    page.wait_for_function(show, arg=first)
    page.get_by_role("button", name="active nucleus").click()
    page.wait_for_function(show, arg=second)
    [label] = read_labels(file)
    assert (str(label["id"]), label["class"], label["inspector"], label["model"]) == (first, "active nucleus", "Ann", "sdss")

    [kernel] = lab.api("kernels")
    lab.api(f"kernels/{kernel['id']}/restart", method="POST")
    page.reload()
    lab.open(page, name)
    assert lab.run_all(page)
    page.wait_for_function(show, arg=second)  # the first without a label
    page.get_by_role("button", name="previous").click()
    page.wait_for_function(show, arg=first)
    page.wait_for_function("() => document.querySelector('button.mod-success')?.innerText === 'active nucleus'")
    assert len(read_labels(file)) == 1 and "active nucleus" in CLASSES
