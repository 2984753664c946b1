"""Line catalogues: codes become missing values, joins count what they lose (fault matrix, rows 1, 3, 14-16)."""

import gzip

import numpy as np
import pytest
from astropy.table import Table

from spectral_core.archives.catalogs import (
    join_lines,
    read_desi_line_ews,
    read_mpa_jhu,
    read_pipeline_lines,
    read_portsmouth,
    read_resolve_eco_nsa,
    truth_lines,
)
from spectral_core.archives.sdss import plate_mjd_fiber, read_sdss, sdss_id, write_sdss
from spectral_core.core import DataError
from spectral_core.simulate.mock import mock_survey
from spectral_core.spectra.labels import BPT_LINES, label_galaxies

LINES = ("Hb_4861", "OIII_5006", "Ha_6562", "NII_6583")
PORTSMOUTH = ["plate", "mjd", "fiberID", "z", "bpt", "EW_Ha_6562", "EW_Ha_6562_Err"]
PORTSMOUTH += [f"Flux_{line}{end}" for line in LINES for end in ("", "_Err")]
GOOD = dict(zip(PORTSMOUTH, [266, 51602, 1, 0.1, "Star Forming", 20, 1, 10, 1, 5, 1, 30, 1, 9, 1]))
COMMON = {"id", "z", "measured", "ew_halpha", "ew_err_halpha", "ew_nii_6584"}
COMMON |= {f"{what}_{line}" for line in BPT_LINES for what in ("flux", "err")}


def write(path, *rows, columns=PORTSMOUTH):
    "A CSV file of rows, each GOOD but for the given values."
    text = [",".join(columns)] + [",".join(str({**GOOD, **row}[c]) for c in columns) for row in rows]
    path.write_text("\n".join(text) + "\n")
    return path


# ---- codes and units


@pytest.mark.parametrize("code", [-9999, -999, 1e35, -1e38, "nan", "inf", ""])
def test_codes_of_nothing_are_nan(tmp_path, code):
    lines = read_portsmouth(write(tmp_path / "p.csv", {"Flux_Ha_6562": code, "EW_Ha_6562": code}, {}))
    assert COMMON <= set(lines.colnames)
    assert np.isnan([lines[name][0] for name in ("flux_halpha", "err_halpha", "ew_halpha", "ew_err_halpha", "ew_nii_6584")]).all()
    assert [lines[f"flux_{k}"][1] for k in BPT_LINES] == [10, 5, 30, 9] and lines["ew_nii_6584"][1] == pytest.approx(6)
    assert label_galaxies(lines)[0].tolist() == ["passive", "star-forming"]


@pytest.mark.parametrize("error", [0, -1, -9999, "nan", 1e20])
def test_a_flux_without_an_error_is_no_measurement_and_a_negative_flux_is_one(tmp_path, error):
    lines = read_portsmouth(write(tmp_path / "p.csv", {"Flux_Hb_4861_Err": error}, {"Flux_Hb_4861": -3.5}))
    assert np.isnan(lines["flux_hbeta"][0]) and lines["flux_hbeta"][1] == -3.5


def test_a_missing_ew_error_is_the_relative_error_of_the_flux(tmp_path):
    rows = {"EW_Ha_6562_Err": -9999}, {"EW_Ha_6562_Err": -9999, "Flux_Ha_6562_Err": 0}
    lines = read_portsmouth(write(tmp_path / "p.csv", *rows))
    assert lines["ew_err_halpha"][0] == pytest.approx(20 / 30) and np.isnan(lines["ew_err_halpha"][1])


def test_classes_in_common_words(tmp_path):
    names = ["Star Forming", "Star Fo", "Composite", "Composi", "LINER", "Seyfert", "Seyfert/LINER", "BLANK"]
    lines = read_portsmouth(write(tmp_path / "p.csv", *({"bpt": name} for name in names)))
    assert lines["catalog_label"].tolist() == ["star-forming"] * 2 + ["composite"] * 2 + ["narrow-line AGN"] * 3 + ["unknown"]
    assert lines["catalog_class"].tolist() == names


# ---- damaged files


@pytest.mark.parametrize("reader", [read_portsmouth, read_mpa_jhu, read_resolve_eco_nsa])
def test_fault_3_missing_columns_are_named_with_the_file(tmp_path, reader):
    path = tmp_path / "some.csv"
    path.write_text("plate,mjd\n266,51602\n")
    with pytest.raises(DataError, match=r"some\.csv: lacks the columns .*; it has plate, mjd"): reader(path)


@pytest.mark.parametrize("column", PORTSMOUTH)
def test_fault_3_each_column_is_needed(tmp_path, column):
    path = write(tmp_path / "p.csv", {}, columns=[c for c in PORTSMOUTH if c != column])
    with pytest.raises(DataError, match=f"lacks the columns {column};"): read_portsmouth(path)


def test_fault_1_truncated_and_foreign_files(tmp_path):
    whole = write(tmp_path / "p.csv", *({"fiberID": k} for k in range(200))).read_bytes()
    packed = gzip.compress(whole)
    (tmp_path / "q.csv.gz").write_bytes(packed)
    assert len(read_portsmouth(tmp_path / "q.csv.gz")) == 200
    for part in (0.3, 0.9, 0.99):
        (tmp_path / "q.csv.gz").write_bytes(packed[: int(part * len(packed))])
        with pytest.raises(DataError, match=r"q\.csv\.gz: truncated or damaged gzip"): read_portsmouth(tmp_path / "q.csv.gz")
    (tmp_path / "p.csv").write_bytes(whole[: whole.rindex(b",30,")])
    with pytest.raises(DataError, match=r"p\.csv: no table of comma"): read_portsmouth(tmp_path / "p.csv")
    for content in (b"", b"\xff\xfe\x00\x81", b"<html><body>404</body></html>\n"):
        (tmp_path / "p.csv").write_bytes(content)
        with pytest.raises(DataError, match=r"p\.csv"): read_portsmouth(tmp_path / "p.csv")
    with pytest.raises(DataError, match="none.csv: cannot be read"): read_portsmouth(tmp_path / "none.csv")


def test_desi_files_that_are_none(tmp_path):
    (tmp_path / "d.npz").write_text("targetid,z\n")
    with pytest.raises(DataError, match=r"d\.npz: no npz file"): read_desi_line_ews(tmp_path / "d.npz")
    columns = {"targetid": [1], "z": [0.1], "line_names": np.array(["HBETA"]), "ew": [[1.0]], "ew_ivar": [[1.0]]}
    np.savez(tmp_path / "e.npz", **columns)
    with pytest.raises(DataError, match="lacks cont_lum; it has"): read_desi_line_ews(tmp_path / "e.npz")
    np.savez(tmp_path / "g.npz", **columns, cont_lum=[[1.0]])
    with pytest.raises(DataError, match="lacks line OIII_5007, line HALPHA"): read_desi_line_ews(tmp_path / "g.npz")
    np.savez(tmp_path / "f.npz", targetid=np.array([{}], dtype=object))
    with pytest.raises(DataError, match="no npz file"): read_desi_line_ews(tmp_path / "f.npz")


def test_fault_15_an_empty_catalogue_is_an_empty_table(tmp_path):
    lines = read_portsmouth(write(tmp_path / "p.csv"))
    assert len(lines) == 0 and COMMON <= set(lines.colnames)
    assert label_galaxies(lines)[1]["n"].sum() == 0
    joined, counts = join_lines(lines, np.array([5, 6]))
    assert len(joined) == 2 and not joined["measured"].any() and label_galaxies(joined)[0].tolist() == ["N/A", "N/A"]


# ---- joins


def test_fault_16_a_join_counts_what_it_loses_and_keeps_every_spectrum(tmp_path):
    lines = read_portsmouth(write(tmp_path / "p.csv", *({"fiberID": k} for k in range(1, 11))))
    id = sdss_id([266] * 6, [51602] * 6, [12, 3, 5, 11, 3, 10])
    joined, counts = join_lines(lines, id)
    assert joined["id"].tolist() == id.tolist() and joined["measured"].tolist() == [False, True, True, False, True, True]
    assert dict(zip(counts["step"], counts["n"])) == {
        "spectra": 6, "catalogue rows": 10, "rows without an observation": 0, "repeated rows left out": 0, "matched spectra": 4,
        "unmatched spectra": 2,
    }
    labels, rules = label_galaxies(joined)
    words = {True: "star-forming", False: "N/A"}
    assert labels.tolist() == [words[m] for m in joined["measured"].tolist()] and rules.meta["no_row"] == 2
    assert joined["catalog_label"].tolist()[:2] == ["", "star-forming"] and np.isnan(joined["flux_halpha"][0])


def test_fault_14_an_observation_that_stands_twice(tmp_path):
    rows = [{"fiberID": k % 7, "Flux_Ha_6562": 30 + k} for k in range(14)]
    lines = read_portsmouth(write(tmp_path / "p.csv", *rows))
    id = sdss_id(266, 51602, np.arange(7))
    shown = ", ".join(f"266-51602-{k}" for k in range(5))
    with pytest.raises(DataError, match=f"7 observations .* more than once: {shown}; dedupe='first'"): join_lines(lines, id)
    joined, counts = join_lines(lines, id, dedupe="first")
    assert joined["flux_halpha"].tolist() == [30 + k for k in range(7)] and counts["n"][3] == 7


def test_rows_without_an_observation_match_nothing():
    lines = Table({"id": [-1, -1, 4], "measured": [True, True, False], "flux_halpha": [1.0, 2.0, 3.0]})
    joined, counts = join_lines(lines, np.array([-1, 4]))
    assert joined["measured"].tolist() == [False, False] and np.isnan(joined["flux_halpha"][0]) and counts["n"][2] == 2


# ---- spec files and truth


def test_pipeline_lines_come_back_from_written_files(tmp_path):
    "Truth written into HDU 3, read back row for row; files of ours hold no widths, so nothing there is broad."
    mock = mock_survey("sdss", 4, seed=2)
    mock = mock.replace(id=sdss_id(301, 52000, np.arange(1, 5)))
    for name in BPT_LINES: mock.table[f"flux_err_{name}"] = 0.1 * np.abs(mock.table[f"flux_{name}"]) + 0.1
    lines = read_pipeline_lines(write_sdss(mock, tmp_path))
    assert lines["id"].tolist() == mock.id.tolist() and lines["measured"].all() and not lines["broad"].any()
    for name in BPT_LINES: np.testing.assert_allclose(lines[f"flux_{name}"], mock.table[f"flux_{name}"], rtol=1e-5)
    assert read_pipeline_lines(tmp_path)["file"].tolist() == lines["file"].tolist() and np.isnan(lines["sigma_halpha"]).all()
    with pytest.raises(DataError, match="no spec files"): read_pipeline_lines([])


def test_truth_with_its_own_errors_and_with_those_of_a_measurement():
    mock = mock_survey("sdss", 64, seed=2)
    uniform = truth_lines(mock.table, ew_error=0.2)
    assert COMMON <= set(uniform.colnames) and (uniform["ew_err_halpha"] == 0.2).all()
    some = np.asarray(uniform["ew_halpha"]) > 0
    ratio = np.asarray(uniform["flux_halpha"] / uniform["err_halpha"])[some]
    np.testing.assert_allclose(ratio, np.asarray(uniform["ew_halpha"])[some] / 0.2, rtol=1e-6)
    errors = Table({f"{w}_{k}": np.full(64, 1e-9) for k in BPT_LINES for w in ("err", "ew_err")})
    errors["id"], errors["measured"] = mock.id, np.arange(64) > 3
    labels = label_galaxies(truth_lines(mock.table, errors))[0]
    assert (labels[:4] == "N/A").all() and np.isin(labels[4:], ["star-forming", "composite", "narrow-line AGN"]).all()
    with pytest.raises(DataError, match="no truth of a mock: it lacks flux_hbeta"): truth_lines(Table({"z": [0.1]}))
    with pytest.raises(DataError, match="3 rows of errors for 64"): truth_lines(mock.table, errors[:3])


# ---- the real files


@pytest.mark.real
def test_real_portsmouth_table(mirror):
    lines = read_portsmouth(mirror / "catalog_portsmouth_lines" / "dr14_emissionLinesPort_subset.csv")
    assert len(lines) == 7724 and (lines["catalog_label"] == "star-forming").sum() == 2592
    flux = np.stack([lines[f"flux_{k}"] for k in BPT_LINES])
    assert np.nanmax(np.abs(flux)) < 1e6 and 3500 < (flux > 0).all(0).sum() < 3760
    assert not (np.isfinite(lines["ew_halpha"]) & ~np.isfinite(lines["ew_err_halpha"])).any()
    with pytest.raises(DataError, match="35 observations stand in the catalogue more than once"): join_lines(lines, lines["id"])
    joined, counts = join_lines(lines, np.unique(lines["id"]), dedupe="first")
    assert joined["measured"].all() and counts["n"].tolist() == [7689, 7724, 0, 35, 7689, 0]


@pytest.mark.real
def test_real_tables_of_mpa_jhu_desi_resolve_eco_nsa(mirror):
    mpa = read_mpa_jhu(mirror / "catalog_sdss_emission_lines" / "emission_lines_candidates.csv.gz")
    assert len(mpa) == 2419 == len(np.unique(mpa["id"])) and (mpa["catalog_label"] == "unknown").sum() == 43
    desi = read_desi_line_ews(mirror / "desi_sv3_bgs_line_ews" / "line_ews.npz")
    assert len(desi) == 108459 and desi["measured"].sum() == 53647
    folder = mirror / "catalog_resolve_eco_nsa"
    sizes = {"RESOLVE_full_raw": (2286, 1908), "NSA_RESOLVE_crossmatched": (1953, 1685), "NSA_ECO": (12916, 11539)}
    for name, (n, measured) in sizes.items():
        lines = read_resolve_eco_nsa(folder / f"{name}.csv")
        assert (len(lines), lines["measured"].sum()) == (n, measured)
        labels, counts = label_galaxies(lines)
        assert counts.meta["no_row"] == n - measured and (labels == "star-forming").mean() > 0.5
    nsa = read_resolve_eco_nsa(folder / "NSA_RESOLVE_crossmatched.csv")
    known = np.asarray(nsa["id"]) > 0
    assert known.sum() > 1500 and (plate_mjd_fiber(nsa["id"][known])[1] > 51000).all()
    assert np.isfinite(nsa["ew_halpha"]).sum() > 1500


@pytest.mark.real
def test_real_pipeline_lines(mirror):
    "The four lines that read_sdss brings are the same numbers, EWs at rest in both."
    folder = mirror / "sdss_galaxy_bright"
    paths = sorted(folder.glob("spec-*"))[:40] + sorted(folder.glob("spSpec-*"))[:2]
    lines, spectra = read_pipeline_lines(paths), read_sdss(paths)
    assert lines["measured"].tolist() == [True] * 40 + [False] * 2 and lines["id"].tolist() == spectra.id.tolist()
    seen = np.isfinite(lines["flux_halpha"])
    np.testing.assert_array_equal(lines["flux_halpha"][seen], spectra.table["flux_halpha"][seen])
    np.testing.assert_allclose(lines["ew_halpha"][seen], spectra.table["ew_halpha"][seen], rtol=1e-5)
