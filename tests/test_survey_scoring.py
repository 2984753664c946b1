"""A survey scored in parts: the same table however it was cut among machines, and whatever stopped them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.table import Table, vstack

from spectral_core.analysis.outliers import rank_outliers
from spectral_core.archives.desi import write_desi
from spectral_core.archives.sdss import read_sdss, write_sdss
from spectral_core.core import ConfigError, DataError, Flag, ModelFileError, RunError, generator, run_lock
from spectral_core.models.autoencoder import RedshiftAutoencoder
from spectral_core.models.flows import MaskedAutoregressiveFlow
from spectral_core.predict import encode
from spectral_core.pretrained import save_model
from spectral_core.ranking import merging
from spectral_core.ranking.lookup import find_spectra, read_ranked, recorded_inputs
from spectral_core.ranking.parts import cut, find_sources, fingerprint, my_share, read_part
from spectral_core.scoring import count_reasons, score, score_survey
from spectral_core.simulate.mock import mock_blocks, mock_survey
from spectral_core.spectra.preprocessing import preprocess
from spectral_core.spectra.store import open_store, write_store
from spectral_core.spectra.surveys import SDSS

TARGET = Path(__file__).with_name("score_target.py")


def untrained(survey):
    "A model that ranks like a fool, but always alike."
    torch.manual_seed(0)
    return RedshiftAutoencoder(survey, n_latent=2).eval(), MaskedAutoregressiveFlow(2).eval()


@pytest.fixture(scope="module")
def own():
    return untrained("sdss")


@pytest.fixture(scope="module")
def mock():
    return mock_survey("sdss", n=23, seed=0)


@pytest.fixture(scope="module")
def files(mock, tmp_path_factory):
    "Twenty-three good files; a page, one cut short, one without redshift, and a copy that other parts come before."
    folder = tmp_path_factory.mktemp("survey")
    paths = write_sdss(mock, folder)
    (folder / "zcopy.fits").write_bytes(paths[3].read_bytes())
    (folder / "spec-0000-page.fits").write_text("<html>Not found</html>")
    (folder / "zcut.fits").write_bytes(paths[1].read_bytes()[:6000])
    odd = mock_survey("sdss", n=1, seed=1)
    write_sdss(odd.replace(z=np.array([np.nan])), folder)
    return folder


def content(path):
    return Table.read(path)


def same(one, other):
    assert one.colnames == other.colnames and len(one) == len(other)
    for name in one.colnames: np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.parametrize("suffix", ["parquet", "fits", "ecsv", "csv"])
def test_one_shard_or_four_or_many_parts_give_the_same_file_to_the_byte(files, own, tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(merging, "SLICE", 7)  # also the writing goes in slices
    one, four = tmp_path / f"one.{suffix}", tmp_path / f"four.{suffix}"
    record, _ = score_survey(files, one, own, part_size=4, progress=False)
    for k in (3, 1, 4, 2):
        done, top = score_survey(files, four, own, part_size=4, shard=f"{k}/4", progress=False)
        assert done["scored_now"] == done["spectra"] > 0 and not len(top) and not four.exists()
    merged, _ = score_survey(files, four, own, part_size=4, progress=False)
    assert merged["scored_now"] == 0 and merged["lists"] == record["lists"]
    assert one.read_bytes() == four.read_bytes()
    records = sorted(p.name for p in (tmp_path / f"four.{suffix}.parts").glob("*.json"))
    assert records == [f"shard-{k}-of-4.json" for k in (1, 2, 3, 4)]
    assert not list(tmp_path.glob("*.parts/merged.bin"))


def test_a_survey_is_ranked_as_at_the_notebook(files, own, tmp_path):
    "The interactive table, read in one go, and the survey's, whose parts know nothing of each other."
    whole = score(files, own, progress=False)
    score_survey(files, tmp_path / "parts.parquet", own, part_size=6, latents=tmp_path / "latents.parquet", progress=False)
    parts = content(tmp_path / "parts.parquet")
    read = whole["list"] != "not read"
    for name in ("id", "z", "list", "reason", "rank", "row", "flag", "file", "file_row", "strong_line"):
        np.testing.assert_array_equal(whole[name][read], parts[name][read], err_msg=name)
    for name in ("neg_log_prob", "chi2_valid", "sn", "misfit"):
        np.testing.assert_allclose(whole[name][read], parts[name][read], rtol=1e-3, err_msg=name)
    for name in ("file", "reason", "id", "flag"): assert sorted(whole[name][~read]) == sorted(parts[name][~read])
    copy = parts[parts["file"] == "zcopy.fits"][0]
    assert copy["reason"].startswith("the same observation as spec-") and (copy["list"], copy["rank"]) == ("not read", -1)
    assert {c: parts[c].info.description for c in ("chi2_all", "file_row")}["file_row"].startswith("row in the file")
    latents = content(tmp_path / "latents.parquet")
    assert list(latents["id"]) == list(parts["id"]) and list(latents["rank"]) == list(parts["rank"])
    good = np.flatnonzero(np.isfinite(latents["latent_1"]))
    expected = encode(own[0], preprocess(read_ranked(parts[good], files)))
    found = np.column_stack([latents["latent_1"][good], latents["latent_2"][good]])
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def saved(own, tmp_path_factory):
    "The model as two folders, as `save_model` leaves them."
    folder = tmp_path_factory.mktemp("model")
    save_model(own[0], folder / "m")
    save_model(own[1], folder / "m_flow")
    return folder / "m"


def test_kill_in_the_middle_loses_only_the_part_in_work(files, own, saved, tmp_path):
    "SIGKILL when some parts are there; the second process takes them as they are, and its table is that of an undisturbed one."
    score_survey(files, tmp_path / "calm.fits", saved, part_size=3, progress=False)
    command = [sys.executable, str(TARGET), str(files), str(tmp_path / "killed.fits"), str(saved), "3"]
    process, parts = subprocess.Popen(command), tmp_path / "killed.fits.parts"
    while len(list(parts.glob("part-*.npz"))) < 3:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed.fits").exists()
    before = {p.name: p.stat().st_mtime_ns for p in parts.glob("part-*.npz")}
    torn = parts / ".part-00007.npz.99.part.npz"
    torn.write_bytes(b"half")
    record, _ = score_survey(files, tmp_path / "killed.fits", saved, part_size=3, progress=False)
    after = {p.name: p.stat().st_mtime_ns for p in parts.glob("part-*.npz")}
    assert len(before) < len(after) and before.items() <= after.items() and not torn.exists()
    assert record["scored_now"] == record["spectra"] - 3 * len(before)
    assert (tmp_path / "killed.fits").read_bytes() == (tmp_path / "calm.fits").read_bytes()


def test_another_model_or_input_is_refused_and_damage_is_named(mock, own, tmp_path):
    files, out = tmp_path / "files", tmp_path / "t.ecsv"
    paths = write_sdss(mock[:6], files)
    score_survey(files, out, own, part_size=2, progress=False)
    kept = out.read_bytes()
    other = own[0], MaskedAutoregressiveFlow(2).standardise(torch.arange(8.0).reshape(4, 2)).eval()
    with pytest.raises(RunError, match="another model"): score_survey(files, out, other, part_size=2, progress=False)
    with pytest.raises(RunError, match="cut otherwise"): score_survey(files, out, own, part_size=3, progress=False)
    what_to_do = r"--force to score all anew, another --out, or remove .*t\.ecsv\.parts"
    with pytest.raises(RunError, match=rf"has changed since \(6 files then, 4 now\): {what_to_do}"):
        score_survey(sorted(paths)[:4], out, own, part_size=2, progress=False)
    os.utime(paths[0], (1, 1))
    with pytest.raises(RunError, match="changed since .written anew"): score_survey(files, out, own, part_size=2, progress=False)
    assert out.read_bytes() == kept
    with pytest.raises(ConfigError, match="without --shard"): score_survey(files, out, own, force=True, shard="1/2")
    with run_lock(tmp_path / "t.ecsv.parts" / "shard-1-of-2"), pytest.raises(RunError, match="in use"):
        score_survey(files, out, own, part_size=2, force=True, progress=False)
    assert len(list(tmp_path.glob("t.ecsv.parts/part-*"))) == 3
    assert score_survey(files, out, own, part_size=2, force=True, progress=False)[0]["scored_now"] == 6
    part = tmp_path / "t.ecsv.parts" / "part-00001.npz"
    part.write_bytes(part.read_bytes()[:-500])
    with pytest.raises(RunError, match=r"part-00001\.npz is damaged.*remove it"):
        score_survey(files, out, own, part_size=2, progress=False)


def test_a_file_that_was_mended_is_scored_by_the_same_command(mock, own, tmp_path):
    "Nothing could be read, so no part stays in the way; a survey that grew is refused in words."
    files, out = tmp_path / "files", tmp_path / "t.fits"
    (path,) = write_sdss(mock[:1], files)
    whole = path.read_bytes()
    path.write_bytes(whole[:6000])
    for shard in ("1/1", None):
        if shard: score_survey(files, out, own, shard=shard, progress=False); continue
        with pytest.raises(DataError, match=rf"to score: {path.name}: truncated"): score_survey(files, out, own, progress=False)
    assert not (tmp_path / "t.fits.parts").exists(), "neither parts nor the lock of the share"
    path.write_bytes(whole)
    assert score_survey(files, out, own, progress=False)[0]["rows"] == 1
    write_sdss(mock[1:2], files)
    with pytest.raises(RunError, match=r"\(1 file then, 2 now\)"): score_survey(files, out, own, progress=False)


def test_a_failure_before_the_first_part_leaves_nothing(files, own, tmp_path, monkeypatch):
    "Neither a folder nor a lock; but another share's folder stays."
    def fail(*_): raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("spectral_core.scoring._score_part", fail)
        for shard in (None, "1/2"):
            with pytest.raises(KeyboardInterrupt): score_survey(files, tmp_path / "t.fits", own, shard=shard, progress=False)
            assert not (tmp_path / "t.fits.parts").exists()
        with run_lock(tmp_path / "t.fits.parts" / "shard-2-of-2"), pytest.raises(KeyboardInterrupt):
            score_survey(files, tmp_path / "t.fits", own, shard="1/2", progress=False)
        assert [p.name for p in (tmp_path / "t.fits.parts").iterdir()] == ["shard-2-of-2"]


def test_reasons_are_counted_alike_at_the_notebook_and_in_slices(files, own, tmp_path, monkeypatch):
    monkeypatch.setattr(merging, "SLICE", 7)
    record, _ = score_survey(files, tmp_path / "t.fits", own, part_size=4, progress=False)
    whole = score(files, own, progress=False)
    assert record["reasons"] == count_reasons([whole])
    counts = Counter(name for name, n, *_ in record["reasons"] for _ in range(n))
    assert counts == {name: record["lists"][name] for name in ("not read", "flagged")}
    said = [reason for _, _, reason, _ in record["reasons"]]
    assert sum("same observation" in reason for reason in said) == 1 and any("redshift" in reason for reason in said)


def test_reasons_are_counted_for_spectra_in_memory_too(mock, own):
    z = np.where(np.arange(len(mock)) < 2, np.nan, 3.0)
    table = score(mock.replace(z=z), own, progress=False)
    (_, n, far, file), (_, m, none, _) = count_reasons([table])
    assert (n, m, file) == (len(mock) - 2, 2, "memory") and "redshift outside the model's range" in far and "no redshift" in none


def test_the_table_knows_its_pages_and_what_was_passed_over(files, own, tmp_path):
    for k in range(12): (tmp_path / f"notes.kind{k}").write_text("x")
    write_sdss(mock_survey("sdss", n=1, seed=9), tmp_path)
    table = score([files, tmp_path], own, out=tmp_path / "t.ecsv", progress=False)
    assert json.loads(table.meta["passed_over"]) == {f".kind{k}": 1 for k in range(12)} and table.meta["n_rows"] == len(table)
    table = score([files, tmp_path], own, out=tmp_path / "t.fits", progress=False)
    assert json.loads(Table.read(tmp_path / "t.fits").meta["passed_over"])[".ecsv"] == 1


def test_bad_requests(files, own, tmp_path):
    for shard in ("0/4", "5/4", "2", "a/b", "1/0"):
        with pytest.raises(ConfigError, match="K/N"): score_survey(files, tmp_path / "a.fits", own, shard=shard, progress=False)
    with pytest.raises(ConfigError, match="K/N"):  # before a look
        score_survey(tmp_path / "nowhere", tmp_path / "a.fits", own, shard="3/2")
    with pytest.raises(ConfigError, match="written as"): score_survey(files, tmp_path / "a.doc", own)
    with pytest.raises(ModelFileError, match="no model 'pae' that ranks spectra; there are desi"): score(files, "pae")
    with pytest.raises(DataError, match="no such file"):
        score_survey([files, tmp_path / "nowhere"], tmp_path / "a.fits", own, progress=False)
    with pytest.raises(DataError, match="no spectrum to score: .*HTML"):
        score_survey(files / "spec-0000-page.fits", tmp_path / "b.fits", own, progress=False)
    with run_lock(tmp_path / "a.fits.parts" / "shard-1-of-2"), pytest.raises(RunError, match="in use"):
        score_survey(files, tmp_path / "a.fits", own, shard="1/2", progress=False)


def test_shares_are_a_partition_whatever_the_number():
    for n in (0, 1, 7, 100):
        for of in (1, 3, 8):
            assert sorted(i for k in range(1, of + 1) for i in my_share(n, f"{k}/{of}")[2]) == list(range(n))


def test_order_is_that_of_the_ranking_and_the_first_of_equals_stays():
    "Against a plain sort of Python, on draws full of ties, NaN and repeats."
    rng = generator("order", 0)
    id, place = rng.integers(-2, 30, 60), rng.integers(0, 6, 60)
    score = rng.integers(0, 5, 60).astype(float)
    score[place > 2] = np.nan
    position, first = merging.order_rows(id, score, place)
    seen, rows = {}, []
    for i in range(60):
        again = place[i] < 5 and id[i] >= 0 and id[i] in seen
        if place[i] < 5 and id[i] >= 0: seen.setdefault(id[i], i)
        assert first[i] == (seen[id[i]] if again else -1)
        gone = again or place[i] == 5
        rows.append((5 if gone else place[i], np.inf if gone or np.isnan(score[i]) else -score[i], 0 if gone else id[i], i))
    assert [row[3] for row in sorted(rows)] == list(np.argsort(position))


def test_rules_are_those_of_the_models_survey(mock, tmp_path):
    "A model for stars takes no galaxy's redshift, whatever the survey that the spectra say they are of."
    near = replace(SDSS, z_max=float(np.median(mock.z)))
    torch.manual_seed(0)
    stars = RedshiftAutoencoder(near, n_latent=2).eval(), MaskedAutoregressiveFlow(2).eval()
    write_store(tmp_path / "store", mock)
    score_survey(tmp_path / "store", tmp_path / "t.ecsv", stars, progress=False)
    for table in (score(mock, stars), content(tmp_path / "t.ecsv")):
        flagged = np.asarray(table["flag"] & Flag.BAD_Z) > 0
        np.testing.assert_array_equal(flagged, table["z"] > near.z_max)
        assert 0 < flagged.sum() < len(mock)


def test_pictures_of_a_survey_show_its_top(mock, own, tmp_path, monkeypatch):
    "Drawn from the files again; an untrained model's reconstructions are let pass as good."
    lenient = partial(rank_outliers, good_reconstruction=np.inf, strong_line_limit=np.inf)
    monkeypatch.setattr("spectral_core.scoring.rank_outliers", lenient)
    write_sdss(mock[:12], tmp_path / "files")
    record, top = score_survey(tmp_path / "files", tmp_path / "t.fits", own, part_size=5, pictures=11, progress=False)
    assert list(top["rank"][:11]) == list(range(1, 12))
    assert sorted(p.name for p in tmp_path.glob("*.png")) == ["t_1.png", "t_2.png"] == [p.name for p in record["pictures"]]
    table = score(tmp_path / "files", own, out=tmp_path / "u.fits", pictures=1, progress=False)
    assert json.loads(table.meta["pictures"]) == [str(tmp_path / "u_1.png")]


def test_files_and_a_store_of_the_same_spectra_are_ranked_alike(mock, own, tmp_path):
    write_sdss(mock, tmp_path / "files")
    written = read_sdss(tmp_path / "files")
    write_store(tmp_path / "store", (written[i : i + 5] for i in range(0, 23, 5)))
    tables = []
    for name in ("files", "store"):
        score_survey(tmp_path / name, tmp_path / f"{name}.parquet", own, part_size=4, progress=False)
        tables.append(content(tmp_path / f"{name}.parquet"))
    common = [name for name in tables[0].colnames if name not in ("file", "file_row")]
    same(*(table[common] for table in tables))
    assert set(tables[1]["file"]) == {"store"} and sorted(tables[1]["file_row"]) == list(range(23))


def test_store_rows_read_once_are_those_of_the_store(mock, tmp_path):
    store = write_store(tmp_path / "store", (preprocess(mock)[i : i + 6] for i in range(0, 23, 6)))
    rows = np.array([20, 1, 5, 6, 22, 7])
    here, there = store[rows], open_store(tmp_path / "store").read(rows)
    for name in ("flux", "ivar", "mask", "z", "id", "flag"):
        np.testing.assert_array_equal(getattr(here, name), getattr(there, name), err_msg=name)
    np.testing.assert_array_equal(here.table["norm"], there.table["norm"])


@pytest.fixture(scope="module")
def coadds(tmp_path_factory):
    "Two DESI coadds with redshifts beside them, a third whose redshifts are elsewhere, and one target in two of them."
    folder, far = tmp_path_factory.mktemp("desi"), mock_survey("desi", n=9, seed=3)
    for name, rows in (("a", slice(0, 4)), ("b", slice(3, 7)), ("c", slice(7, 9))): write_desi(far[rows], folder / name)
    return folder, far


def test_desi_coadds_find_their_redshifts_and_repeated_targets_their_first(coadds, tmp_path):
    folder, far = coadds
    model = untrained("desi")
    (folder / "z").mkdir()
    next((folder / "c").glob("redrock*")).rename(folder / "z" / "catalogue.fits")
    next((folder / "c").glob("coadd*")).rename(folder / "c" / "coadd-far.fits")
    score_survey(folder, tmp_path / "t.parquet", model, part_size=5, progress=False)
    table = content(tmp_path / "t.parquet")
    assert len(table) == 10 and set(far.id) == set(table["id"][table["id"] >= 0])
    again = table[table["list"] == "not read"]
    assert len(again) == 1 and again["file"][0].startswith("b/") and "the same observation as a/" in again["reason"][0]
    known = {i: z for i, z in zip(far.id, far.z)}
    for row in table[table["id"] >= 0]: assert row["z"] == pytest.approx(known[row["id"]], abs=1e-6)
    back = read_ranked(table[:9], folder)
    assert list(back.id) == list(table["id"][:9]) and back.survey.name == "desi"
    np.testing.assert_array_equal(back.table["file_row"], table["file_row"][:9])
    assert len(score(folder, model, progress=False)) == 10


def test_spectra_of_another_survey_come_onto_the_grid_of_the_model(coadds, mock, tmp_path):
    folder, far = coadds
    write_store(tmp_path / "desi", far)
    parts = cut(find_sources([tmp_path / "desi", folder]))
    read = [s for part in parts for s, _ in read_part(part, "sdss")]
    assert sum(map(len, read)) == 19 and all(s.survey.name == "sdss" and s.flux.shape[1] == 3921 for s in read)
    assert all((s.flag & 128).all() for s in read)  # Flag.REBINNED
    write_sdss(mock[:2], tmp_path / "sdss")
    (near,) = [s for part in cut(find_sources(tmp_path / "sdss")) for s, _ in read_part(part, "desi")]
    assert near.flux.shape == (2, 7781) and near.good.any()


def test_ranked_rows_are_read_back_in_order_from_wherever_they_are(files, mock, own, tmp_path):
    score_survey(files, tmp_path / "t.fits", own, part_size=5, progress=False)
    table = content(tmp_path / "t.fits")
    rows = table[np.isin(table["id"], mock.id)][::-2]
    for chosen, data in ((rows, None), (rows["id", "z"], files), (rows, [files])):
        spectra = read_ranked(chosen, data)
        np.testing.assert_array_equal(spectra.id, rows["id"])
        np.testing.assert_array_equal(spectra.z, rows["z"])
    write_store(tmp_path / "store", mock)
    inside = rows[np.isin(rows["id"], mock.id)]
    expected = mock[[mock.id.tolist().index(i) for i in inside["id"].tolist()]]
    np.testing.assert_array_equal(read_ranked(inside, tmp_path / "store").flux, expected.flux)
    with pytest.raises(DataError, match="none of the 1 spectra is in these"): read_ranked(Table({"id": [5]}), files)
    with pytest.raises(ConfigError, match="data="): read_ranked(Table({"id": [5]}))
    table.meta.clear()
    table["id"][-2:] = [-1, 5]  # the one that was not read, and one that nobody has
    with pytest.raises(DataError, match="1 of 13 rows were not read"): read_ranked(vstack([rows, table[-2:-1]]), files)
    with pytest.raises(DataError, match="1 of 13 spectra are not in the data"): read_ranked(vstack([rows, table[-1:]]), files)


def test_inputs_that_are_not_here_are_named_with_what_to_say(tmp_path, monkeypatch):
    table = Table({"id": [1]}, meta={"inputs": json.dumps(["mix"])})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"names mix, relative to where it was scored, .* --data"): find_spectra(table)
    (tmp_path / "mix").mkdir()
    assert recorded_inputs(table) == ["mix"]
    table.meta["inputs"] = [str(tmp_path / "gone")]
    with pytest.raises(DataError, match="gone, and it is not here: say --data"): recorded_inputs(table)


def test_the_same_file_under_two_names_and_a_changed_file_have_other_fingerprints(files):
    sources = find_sources(files)
    prints = {fingerprint(part) for part in cut(sources, 3)}
    assert len(prints) == len(cut(sources, 3))


def measure(*arguments):
    "(exit code, peak resident memory in MB, seconds) of `spectral-core` in a process of its own."
    started = time.monotonic()
    command = [sys.executable, "-m", "spectral_core", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)  # wait4 took it away from Popen
    return process.returncode, usage.ru_maxrss / 1024, time.monotonic() - started


def test_memory_does_not_grow_with_a_store(saved, mock, tmp_path):
    "A store of 3000 spectra is no larger in memory than one of 500: what was read is given back."
    small = write_store(tmp_path / "small", mock_survey("sdss", n=500, seed=5))
    large = write_store(tmp_path / "large", mock_blocks("sdss", n=3000, seed=5))
    peaks = []
    for store in (small, large):
        code, peak, _ = measure("score", store.folder, "--model", saved, "--out", f"{store.folder}.fits")
        assert code == 0
        peaks.append(peak)
    assert peaks[1] < peaks[0] + 60, peaks  # the pixels of the other 2500 are 78 MB


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["store", "files"])
def test_twenty_thousand_spectra_in_constant_memory_in_one_shard_or_four(tmp_path, kind):
    "Below 1.5 GB, the same table to the byte in one process or four shards, and after a SIGKILL in the middle."
    blocks, source = mock_blocks("sdss", n=20_000, seed=140), tmp_path / kind
    if kind == "store": write_store(source, blocks)
    else:
        for block in blocks: write_sdss(block, source)
    out = {name: tmp_path / f"{name}.parquet" for name in ("one", "four")}
    command = [sys.executable, "-m", "spectral_core", "score", str(source), "--out", str(out["one"])]
    killed = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while len(list(tmp_path.glob("one.parquet.parts/part-*.npz"))) < 15:
        assert killed.poll() is None
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    peaks = {}
    for name, extra in (("one", []), *((f"{k}/4", ["--shard", f"{k}/4"]) for k in (1, 2, 3, 4)), ("four", [])):
        code, peaks[name], seconds = measure("score", source, "--out", out.get(name, out["four"]), *extra)
        assert code == 0
        print(f"{kind} {name}: {peaks[name]:.0f} MB, {seconds:.0f} s")
    assert max(peaks.values()) < 1500
    assert out["one"].read_bytes() == out["four"].read_bytes()
    assert len(Table.read(out["one"])) == 20_000
