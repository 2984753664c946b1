"""DESI coadds: arms, resolution, merge, redshifts by TARGETID, and everything that can be missing or wrong in a file."""

import gzip
import shutil
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import dia_matrix

import spectral_core as sc
from spectral_core.archives.coadd import Arm, apply_resolution, gaussian_resolution, merge_arms, place, read_arms
from spectral_core.archives.desi import arms_missing, read_desi, stream_desi, write_desi
from spectral_core.archives.redrock import join_redshifts, read_redrock
from spectral_core.archives.remote import desi_url, from_sparcl, query_desi, read_desi_stars
from spectral_core.archives.sdss import write_sdss
from spectral_core.core import ConfigError, DataError, Flag, SpectrumError
from spectral_core.models.autoencoder import RedshiftAutoencoder
from spectral_core.predict import encode
from spectral_core.spectra.container import Spectra
from spectral_core.spectra.regrid import to_survey
from spectral_core.spectra.surveys import BOSS, DESI, SDSS

M, WAVE = DESI.grid.n, DESI.grid.wave
ARMS = {name.upper(): WAVE[(low - 0.1 < WAVE) & (high + 0.1 > WAVE)] for name, low, high in DESI.arms}
rng = np.random.default_rng(0)


def sample(n=4, **changes):
    "n sound spectra on DESI's grid, with what a catalogue says of them."
    table = Table({"targetid": 39633301257840000 + np.arange(n), "zwarn": np.zeros(n, int), "spectype": np.full(n, "GALAXY")})
    table["deltachi2"], table["zerr"], table["chi2"] = np.full(n, 90.0), np.full(n, 1e-5), np.full(n, 7900.0)
    table["sv3_desi_target"], table["sv3_bgs_target"] = np.full(n, 2**60), np.full(n, 514)
    table["coadd_fiberstatus"], table["ra"], table["dec"] = np.zeros(n, int), 10 + np.arange(n) / 10, np.zeros(n)
    values = {"flux": rng.normal(5, 1, (n, M)), "ivar": rng.uniform(0.5, 2, (n, M)), "z": rng.uniform(0.01, 0.4, n)}
    return Spectra(**values | changes, survey=DESI, id=table["targetid"], table=table)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_desi(sample(), tmp_path_factory.mktemp("original"))


@pytest.fixture
def pair(original, tmp_path):
    "A coadd of four targets and its redrock file."
    return [Path(shutil.copy(path, tmp_path)) for path in original]


def change(path, **units):
    "Rewrite a file with some of its units exchanged (None: removed), as astropy writes them."
    with fits.open(path) as file:
        kept = []
        for hdu in file:
            new = units.get(hdu.name, hdu)
            if new is None: continue
            if isinstance(new, Table): new = fits.BinTableHDU(new, name=hdu.name)
            if isinstance(new, np.ndarray): new = fits.ImageHDU(new, name=hdu.name)
            kept.append(new.copy())
    fits.HDUList(kept).writeto(path, overwrite=True)
    return path


def independent_merge(path):
    "Flux and ivar by inverse variance, straight from the file with astropy, in float64."
    with fits.open(path) as file:
        n = len(file["FIBERMAP"].data)
        total, weight = np.zeros((n, M)), np.zeros((n, M))
        for arm in "BRZ":
            if f"{arm}_FLUX" not in file: continue
            at = np.round((file[f"{arm}_WAVELENGTH"].data - 3600) / 0.8).astype(int)
            ivar = file[f"{arm}_IVAR"].data.astype("f8")
            total[:, at] += ivar * file[f"{arm}_FLUX"].data.astype("f8")
            weight[:, at] += ivar
    return np.divide(total, weight, out=np.zeros_like(total), where=weight > 0), weight


def assert_same(a, b):
    for name in ("flux", "ivar", "mask", "z", "id", "object_id", "flag"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


# resolution


@settings(max_examples=20, derandomize=True, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([3, 5, 11]), st.integers(12, 40))
def test_resolution_equals_the_sparse_matrix(seed, k, m):
    rng = np.random.default_rng(seed)
    diagonals, model = rng.normal(size=(2, k, m)), rng.normal(size=(2, m))
    offsets = np.arange(k // 2, k // 2 - k, -1)
    wanted = [dia_matrix((d, offsets), shape=(m, m)) @ x for d, x in zip(diagonals, model)]
    np.testing.assert_allclose(apply_resolution(diagonals, model), wanted, atol=1e-12)


@pytest.mark.parametrize("sigma", [0.6, 0.7, 0.85])
def test_gaussian_resolution_keeps_the_light_and_has_the_width(sigma):
    R = gaussian_resolution(np.full(101, sigma))
    seen = apply_resolution(R, np.eye(101)[50])
    x = 0.8 * (np.arange(101) - 50)
    assert seen.sum() == pytest.approx(1, abs=1e-12)
    assert np.sqrt((seen * x**2).sum()) == pytest.approx(np.hypot(sigma, 0.8 / np.sqrt(12)), rel=1e-3)


def test_rows_of_the_resolution_that_lost_light_have_no_weight():
    R = gaussian_resolution(np.full(60, 0.7))[None].copy()
    R[0, :, 30] = 0  # what column 30 gave is gone: rows around it are incomplete
    arm = Arm("b", WAVE[:60], np.ones((1, 60)), np.full((1, 60), 2.0), np.zeros((1, 60), bool), R)
    complete = apply_resolution(R, np.ones(60))[0] >= 0.99
    np.testing.assert_array_equal(arm.weight[0], np.where(complete, 2.0, 0))
    assert 0 < (~complete[10:50]).sum() < 10 and not complete[30]
    assert (arm._replace(resolution=None).weight == 2).all()


def test_a_model_is_seen_through_the_resolution_of_each_fibre(pair):
    arm = read_arms(pair[0]).arms["r"]
    model = rng.normal(size=len(arm.wave))
    wanted = [dia_matrix((d.astype("f8"), np.arange(5, -6, -1)), shape=(len(model),) * 2) @ model for d in arm.resolution]
    np.testing.assert_allclose(arm.observe(model), wanted, atol=1e-9)
    with pytest.raises(SpectrumError, match="arm r came without"): arm._replace(resolution=None).observe(model)


# merge


def test_merge_equals_an_independent_one(pair):
    flux, ivar, mask = merge_arms(read_arms(pair[0]).arms.values())
    wanted = independent_merge(pair[0])
    np.testing.assert_allclose(flux, wanted[0], atol=1e-6)
    np.testing.assert_allclose(ivar, wanted[1], rtol=1e-6)
    assert not mask.any()


def test_merged_noise_is_what_ivar_says():
    n = 400
    arms = []
    for name, level in (("b", 1.0), ("r", 4.0)):
        ivar = np.full((n, 20), level)
        arms.append(Arm(name, WAVE[:20], rng.normal(0, 1 / np.sqrt(level), (n, 20)), ivar, np.zeros((n, 20), bool)))
    flux, ivar, _ = merge_arms(arms)
    assert ivar[0, 0] == 5
    assert (flux[:, :20] * np.sqrt(ivar[:, :20])).std() == pytest.approx(1, abs=0.03)


def test_a_masked_pixel_of_one_arm_leaves_the_other():
    one = Arm("b", WAVE[:5], np.full((1, 5), 1.0), np.ones((1, 5)), np.array([[False, True, False, False, False]]))
    two = one._replace(name="r", flux=np.full((1, 5), 3.0), mask=np.zeros((1, 5), bool))
    flux, ivar, mask = merge_arms([one, two])
    np.testing.assert_array_equal(flux[0, :5], [2, 3, 2, 2, 2])
    np.testing.assert_array_equal(ivar[0, :5], [2, 1, 2, 2, 2])
    assert not mask[0, :5].any() and mask[0, 5:].all() and not flux[0, 5:].any()


def test_arms_of_another_lattice_are_refused_and_pixels_beyond_the_grid_counted(pair):
    with pytest.raises(SpectrumError, match="not on the linear grid"): place(WAVE[:50] + 0.2, DESI.grid, "x")
    change(pair[0], B_WAVELENGTH=ARMS["B"] - 8)
    spectra = read_desi(pair[0])
    assert (spectra.table["cropped"] == 10).all() and (spectra.flag & Flag.CROPPED).all()


# round trip


@pytest.mark.parametrize("resolution", [True, False])
def test_what_is_written_comes_back(tmp_path, resolution):
    spectra = sample()
    back = read_desi(write_desi(spectra, tmp_path, resolution=resolution))
    for name in ("flux", "ivar", "mask", "z", "id"): np.testing.assert_array_equal(getattr(back, name), getattr(spectra, name))
    for name in spectra.table.colnames: np.testing.assert_array_equal(back.table[name], spectra.table[name], err_msg=name)
    again = read_desi(write_desi(back, tmp_path / "again", resolution=resolution))
    assert_same(again, back)
    for name in set(back.table.colnames) - {"file", "redrock"}: np.testing.assert_array_equal(again.table[name], back.table[name])


def test_mock_rows_stay_mock_and_real_rows_real(tmp_path):
    spectra = sample()
    one = np.arange(len(spectra)) == 1
    for name, simulated in (("none", 0 & one), ("one", one), ("all", one | True)):
        spectra.table["simulated"] = simulated.astype(bool)
        paths = write_desi(spectra, tmp_path / name, resolution=False)
        np.testing.assert_array_equal(read_desi(paths).table["simulated"], simulated)
        assert ("SIMULATE" in fits.getheader(paths[0])) == (name == "all")
        with fits.open(paths[0]) as units: assert ("SIMULATED" in units["FIBERMAP"].columns.names) == (name != "none")


def test_pairs_by_survey_and_program(tmp_path):
    spectra = sample(6)
    spectra.table["survey"] = ["sv3", "sv3", "sv1", "sv1", "sv3", "main"]
    spectra.table["program"] = ["bright", "dark", "bright", "bright", "bright", "bright"]
    paths = write_desi(spectra, tmp_path)
    assert [p.name for p in paths[::2]] == [f"coadd-{s}-0.fits" for s in ("sv3-bright", "sv3-dark", "sv1-bright", "main-bright")]
    back = read_desi(tmp_path)
    order = np.argsort(back.id)
    np.testing.assert_array_equal(back.table["survey"][order], spectra.table["survey"])
    np.testing.assert_array_equal(back.z[order], spectra.z)


def test_a_mock_survey_can_be_written_and_read(tmp_path):
    mock = sc.mock_survey("desi", 3, 0)
    back = read_desi(write_desi(mock, tmp_path, resolution=False))
    np.testing.assert_array_equal(back.flux, mock.flux)
    np.testing.assert_array_equal(back.object_id, mock.object_id)
    np.testing.assert_array_equal(back.z, mock.z)
    normalised = sc.preprocess(mock)
    np.testing.assert_allclose(read_desi(write_desi(normalised, tmp_path / "n", resolution=False)).flux[~normalised.mask],
                               mock.flux[~normalised.mask], rtol=1e-5)


def test_another_survey_and_nothing_are_not_written(tmp_path):
    sdss = Spectra(np.ones((1, SDSS.grid.n)), np.ones((1, SDSS.grid.n)), [0.1], SDSS)
    with pytest.raises(ConfigError, match="to_survey"): write_desi(sdss, tmp_path)
    with pytest.raises(DataError, match="no spectra"): write_desi(sample()[[]], tmp_path)


# redshifts


def test_redshifts_are_joined_by_target_never_by_row(pair):
    before = read_desi(pair[0])
    with fits.open(pair[1]) as file: table = Table(file["REDSHIFTS"].data)
    change(pair[1], REDSHIFTS=table[[2, 0, 3, 1]])
    assert_same(read_desi(pair[0]), before)
    change(pair[1], REDSHIFTS=table[[3, 1]])
    after = read_desi(pair[0])
    np.testing.assert_array_equal(after.z[[1, 3]], before.z[[1, 3]])
    assert np.isnan(after.z[[0, 2]]).all() and (after.table["zwarn"][[0, 2]] == -1).all()
    assert [Flag.reasons(f) for f in after.flag] == ["BAD_Z", "", "BAD_Z", ""]
    assert after.table["missing"].tolist() == ["redshift", "", "redshift", ""]
    assert "2 spectra come without redshift" in after.table.meta["notes"]


def test_rows_without_data_are_no_galaxies(pair):
    with fits.open(pair[1]) as file: table = Table(file["REDSHIFTS"].data)
    table["CHI2"][1:3], table["ZERR"][1:3], table["Z"][1:3] = 9999999.0, 3.6, 0.002044
    table["ZWARN"][1] = 518  # row 2 has lost even its warning
    change(pair[1], REDSHIFTS=table)
    spectra = read_desi(pair[0])
    assert spectra.table["spectype"].tolist() == ["GALAXY", "", "", "GALAXY"]
    assert np.isnan(spectra.z[1:3]).all() and (spectra.flag[1:3] & Flag.BAD_Z).all()
    assert spectra.table["zwarn"][1] == 518


def test_templates_that_ran_are_noted(pair, tmp_path):
    assert set(read_desi(pair[0]).table["templates"]) == {"GALAXY,QSO,STAR"}
    with fits.open(pair[1], mode="update") as file:
        for key in [k for k in file[0].header if k.startswith("TEMNAM")]:
            if "STAR" in file[0].header[key]: del file[0].header[key]
        for hdu in file: hdu.header.pop("CHECKSUM", None), hdu.header.pop("DATASUM", None)
    spectra = read_desi(pair[0])
    assert set(spectra.table["templates"]) == {"GALAXY,QSO"}
    assert any("STAR templates did not run" in note for note in spectra.table.meta["notes"])


def test_a_target_with_two_redshifts_is_refused_unless_survey_and_program_tell(pair, tmp_path):
    table = read_redrock(pair[1])
    other = table.copy()
    other["z"], other["program"] = other["z"] + 0.1, "dark"
    names = ("targetid", "z", "zwarn", "spectype", "survey", "program")
    columns = {k.upper(): np.concatenate([table[k], other[k]]) for k in names}
    path = tmp_path / "zall.fits"
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU(Table(columns), name="ZCATALOG")]).writeto(path)
    spectra = read_desi(pair[0], redrock=path)
    np.testing.assert_array_equal(spectra.z, table["z"])  # the coadd is of the bright program
    with pytest.raises(DataError, match="pass the redrock file"): join_redshifts(spectra.id, read_redrock(path))


def test_which_redshifts_are_used(pair, tmp_path):
    assert np.isnan(read_desi(pair[0], redrock=None).z).all()
    other = pair[1].rename(tmp_path / "elsewhere.fits")
    assert np.isnan(read_desi(pair[0]).z).all()
    assert np.isfinite(read_desi(pair[0], redrock=other).z).all()
    assert np.isfinite(read_desi(pair[0], redrock=[other]).z).all()
    with pytest.raises(DataError, match="no redrock file"): read_desi(pair[0], redrock=pair[0])


# what real files lack


def test_a_missing_arm_is_a_gap(pair):
    change(pair[0], **{f"R_{what}": None for what in ("WAVELENGTH", "FLUX", "IVAR", "MASK", "RESOLUTION")})
    assert list(read_arms(pair[0]).arms) == ["b", "z"]
    spectra = read_desi(pair[0])
    gap = (WAVE > 5800.1) & (WAVE < 7519.9)
    assert spectra.mask[:, gap].all() and not spectra.mask[:, ~gap].any()
    assert set(spectra.table["arms_missing"]) == {"r"} and spectra.good.all()


def test_an_arm_without_information_is_a_gap_in_its_row_only(pair):
    with fits.open(pair[0]) as file: ivar = file["Z_IVAR"].data.copy()
    ivar[2] = 0
    change(pair[0], Z_IVAR=ivar)
    spectra = read_desi(pair[0])
    assert spectra.table["arms_missing"].tolist() == ["", "", "z", ""]
    assert spectra.mask[2, WAVE > 7620.1].all() and not spectra.mask[[0, 1, 3]].any()
    np.testing.assert_allclose(spectra.flux, independent_merge(pair[0])[0], atol=1e-6)


def test_a_dead_fibre_is_known_by_its_ivar_not_by_its_mask(pair):
    units = {}
    with fits.open(pair[0]) as file:
        for arm in "BRZ":
            units[f"{arm}_IVAR"] = file[f"{arm}_IVAR"].data.copy()
            units[f"{arm}_IVAR"][1] = 0
            assert not file[f"{arm}_MASK"].data[1].any()
    spectra = read_desi(change(pair[0], **units))
    assert [Flag.reasons(f) for f in spectra.flag] == ["", "NODATA,LITTLE_COVERAGE", "", ""]
    assert spectra.table["arms_missing"][1] == "brz" and not spectra.flux[1].any()


@pytest.mark.parametrize("columns", [("TARGETID",), ("TARGETID", "TARGET_RA", "TARGET_DEC", "TILEID", "PETAL_LOC")])
def test_stripped_fibre_maps_are_accepted_and_say_what_they_lack(pair, columns):
    full = {"TARGETID": sample().id, "TARGET_RA": np.arange(4.0), "TARGET_DEC": np.zeros(4), "TILEID": np.full(4, 80693)}
    full["PETAL_LOC"] = np.ones(4, int)
    change(pair[0], FIBERMAP=Table({name: full[name] for name in columns}), SCORES=None)
    spectra = read_desi(pair[0])
    lacking = ["target bits", "fibre status", *([] if "TARGET_RA" in columns else ["coordinates"])]
    assert set(spectra.table["missing"]) == {", ".join(lacking)}
    assert (spectra.table["coadd_fiberstatus"] == -1).all() and set(spectra.table["targeting"]) == {""}
    assert spectra.good.all() and not any(name.endswith("_target") for name in spectra.table.colnames)


def test_masks_and_resolution_may_be_absent(pair):
    before = read_desi(pair[0])
    change(pair[0], **{f"{arm}_{what}": None for arm in "BRZ" for what in ("MASK", "RESOLUTION")})
    assert_same(read_desi(pair[0]), before)
    assert read_arms(pair[0]).arms["b"].resolution is None


def test_masks_may_be_compressed(pair):
    with fits.open(pair[0]) as file: mask = file["B_MASK"].data.copy()
    mask[1, 300:320] = 1
    before = read_desi(change(pair[0], B_MASK=mask))
    with fits.open(pair[0]) as file:
        units = [fits.CompImageHDU(h.data, name=h.name) if h.name == "B_MASK" else h.copy() for h in file]
    fits.HDUList(units).writeto(pair[0], overwrite=True)
    assert_same(read_desi(pair[0]), before)
    assert before.mask[1].sum() == 20


def test_files_of_commissioning(pair):
    with fits.open(pair[0]) as file:  # before COADD_FIBERSTATUS, zbest before redrock
        columns = {"TARGETID": file["FIBERMAP"].data["TARGETID"], "FIBERSTATUS": np.zeros(4, int), "CMX_TARGET": np.full(4, 2**8)}
    with fits.open(pair[0], mode="update") as file:
        for key in ("SURVEY", "PROGRAM", "CHECKSUM", "DATASUM"): file[0].header.pop(key, None)
    change(pair[0], FIBERMAP=Table(columns))
    pair[1].rename(pair[1].with_name(pair[1].name.replace("redrock", "zbest")))
    spectra = read_desi(pair[0])
    assert spectra.good.all() and set(spectra.table["survey"]) == {"cmx"}
    assert (spectra.table["coadd_fiberstatus"] == 0).all() and set(spectra.table["missing"]) == {"coordinates"}


def test_special_programs_have_the_bits_of_the_main_survey(pair):
    with fits.open(pair[0], mode="update") as file: file[0].header["SURVEY"] = "special"
    bits = {"SV1_DESI_TARGET": np.zeros(4, int), "DESI_TARGET": np.full(4, 2**60)}
    change(pair[0], FIBERMAP=Table({"TARGETID": np.arange(1, 5)} | bits))
    table = read_desi(pair[0]).table
    assert set(table["survey"]) == {"special"} and set(table["targeting"]) == {"main"}


def test_a_survey_is_found_without_a_header(pair):
    with fits.open(pair[0], mode="update") as file:
        for key in ("SURVEY", "PROGRAM", "HPXPIXEL", "CHECKSUM", "DATASUM"): file[0].header.pop(key, None)
    table = read_desi(pair[0]).table
    assert set(table["survey"]) == {"sv3"} and set(table["program"]) == {""}


def test_unknown_target_bits_are_an_error_that_names_them(pair):
    bits = {"SV9_DESI_TARGET": np.full(4, 2**60), "DESI_TARGET": np.zeros(4, int)}
    change(pair[0], FIBERMAP=Table({"TARGETID": sample().id} | bits))
    words = r"coadd-sv3-bright-0.*unknown survey: sv9_desi_target; known are sv1_desi_target"
    with pytest.raises(DataError, match=words): read_desi(pair[0])


@pytest.mark.parametrize("rows", [3, 5])
def test_a_fibre_map_of_another_length_is_an_error_with_both_numbers(pair, rows):
    change(pair[0], FIBERMAP=Table({"TARGETID": np.arange(1, rows + 1)}))
    with pytest.raises(DataError, match=rf"coadd-sv3-bright-0.fits: FIBERMAP has {rows} rows and B_FLUX 4"): read_desi(pair[0])


def test_bits_are_integers_all_the_way(pair):
    table = read_desi(pair[0]).table
    assert table["sv3_desi_target"].dtype == np.int64 and (table["sv3_desi_target"] == 2**60).all()


def test_targets_of_several_surveys_share_a_table(tmp_path):
    one, two = sample(2), sample(2)
    two = two.replace(id=two.id + 100)
    two.table["sv1_desi_target"] = np.full(2, 2**61)
    two.table.remove_columns(["sv3_desi_target", "sv3_bgs_target"])
    write_desi(one, tmp_path), write_desi(two, tmp_path, survey="sv1")
    table = read_desi(tmp_path).table
    assert table["targeting"].tolist() == ["sv1", "sv1", "sv3", "sv3"]
    assert table["sv3_desi_target"].tolist() == [0, 0, 2**60, 2**60]
    assert table["sv1_desi_target"].tolist() == [2**61, 2**61, 0, 0]


# folders


def test_a_folder_may_hold_other_things(tmp_path, pair):
    (tmp_path / "objects.csv").write_text("file,row\n")
    (tmp_path / "details.h5").write_bytes(b"\x89HDF")
    tractor = [fits.PrimaryHDU(), fits.BinTableHDU(Table({"OBJID": [1], "FLUX_R": [9.0]}))]
    fits.HDUList(tractor).writeto(tmp_path / "tractor-1054p567.fits")
    with fits.open(pair[0]) as file:  # single exposures, as in a spectra-….fits
        once = lambda hdu: hdu.data is None or hdu.name.endswith("WAVELENGTH")
        doubled = [hdu if once(hdu) else type(hdu)(np.concatenate([hdu.data] * 2), name=hdu.name) for hdu in file]
        fits.HDUList([h.copy() for h in doubled]).writeto(tmp_path / "spectra-sv3-bright-0.fits")
    spectra = read_desi(tmp_path)
    assert len(spectra) == 4 and np.isfinite(spectra.z).all()
    reasons = dict(spectra.table.meta["skipped"])
    assert set(reasons) == {"objects.csv", "details.h5", "tractor-1054p567.fits", "spectra-sv3-bright-0.fits"}
    assert "neither a DESI coadd nor redshifts" in reasons["tractor-1054p567.fits"]
    assert "single exposures" in reasons["spectra-sv3-bright-0.fits"]
    with pytest.raises(DataError, match="single exposures"): read_desi(tmp_path / "spectra-sv3-bright-0.fits")
    with pytest.raises(DataError, match="neither a DESI coadd nor"): read_desi(tmp_path / "tractor-1054p567.fits")


def test_gzipped_pairs(pair):
    before = read_desi(pair[0])
    for path in pair:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes(), 1))
        path.unlink()
    assert_same(read_desi(pair[0].with_name(pair[0].name + ".gz")), before)


def test_a_broken_file_can_be_skipped(tmp_path, pair):
    (tmp_path / "coadd-sv3-bright-9.fits").write_bytes(pair[0].read_bytes()[:50000])
    with pytest.raises(DataError, match="coadd-sv3-bright-9.fits: truncated"): read_desi(tmp_path)
    with pytest.warns(UserWarning, match="skipped.*coadd-sv3-bright-9"): spectra = read_desi(tmp_path, on_error="skip")
    assert len(spectra) == 4 and spectra.table.meta["skipped"][0][0] == "coadd-sv3-bright-9.fits"
    with pytest.raises(ConfigError, match="on_error"): read_desi(tmp_path, on_error="ignore")
    with pytest.raises(DataError, match="no DESI coadd among"): read_desi(pair[1], redrock=None)


def test_unassigned_fibres_may_share_a_number(tmp_path):
    spectra = sample(3)
    for i in range(2): write_desi(spectra[1:].replace(id=[-1, 5 + i], object_id=[-1, 5 + i]), tmp_path, healpix=i)
    back = read_desi(tmp_path)
    assert len(np.unique(back.id)) == 4 and (back.id < 0).sum() == 2
    assert (back.table["targetid"] == -1).sum() == 2


# faults that every reader must meet


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.25, 0.4, 0.55, 0.7, 0.8, 0.9, 0.95, 0.99])
def test_fault_01_truncated_coadd(tmp_path, fraction, packed):
    path = write_desi(sample(1), tmp_path, resolution=False)[0]
    raw = gzip.compress(path.read_bytes(), 1) if packed else path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * fraction)])
    with pytest.raises(DataError, match="coadd-sv3-bright-0.fits: truncated"): read_desi(path, redrock=None)


def test_fault_01_truncated_redrock(pair):
    pair[1].write_bytes(pair[1].read_bytes()[:-3000])
    with pytest.raises(DataError, match="redrock-sv3-bright-0.fits: truncated"): read_desi(pair[0])


NOT_FITS = [(b"", "is empty"), (b"<!DOCTYPE html><html>404</html>", "looks like HTML"), (b"PK\3\4zip", "not a FITS")]


@pytest.mark.parametrize(("content", "words"), NOT_FITS)
def test_fault_02_not_fits(tmp_path, content, words):
    path = tmp_path / "coadd-sv3-bright-1.fits"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words): read_desi(path)


NEEDED = [f"{arm}_{what}" for arm in "BRZ" for what in ("WAVELENGTH", "FLUX", "IVAR")]


@pytest.mark.parametrize("gone", ["FIBERMAP", *NEEDED])
def test_fault_03_missing_unit(pair, gone):
    change(pair[0], **{gone: None})
    with pytest.raises(DataError, match=rf"coadd-sv3-bright-0.fits: .*{gone}.*found"): read_desi(pair[0])


def test_fault_03_missing_column(pair):
    change(pair[0], FIBERMAP=Table({"FIBER": np.arange(4)}))
    words = "no FIBERMAP with a column TARGETID; found FIBERMAP .table of 4 rows: fiber"
    with pytest.raises(DataError, match=words): read_desi(pair[0])
    with fits.open(pair[1]) as file: table = Table(file["REDSHIFTS"].data)
    for name in ("TARGETID", "Z", "ZWARN", "SPECTYPE"):
        change(pair[1], REDSHIFTS=table[[c for c in table.colnames if c != name]])
        words = "no redrock file; wanted a table with TARGETID, Z, ZWARN, SPECTYPE; found"
        with pytest.raises(DataError, match=words): read_redrock(pair[1])


def test_fault_03_images_that_do_not_fit(pair):
    with fits.open(pair[0]) as file: flux = file["R_FLUX"].data.copy()
    change(pair[0], R_FLUX=flux[:, :-1].copy())
    with pytest.raises(DataError, match=r"R_FLUX has shape \(4, 2325\), expected \(4, 2326\)"): read_desi(pair[0])
    ones = np.ones((1, SDSS.grid.n))
    sdss = write_sdss(Spectra(ones, ones, [0.1], SDSS, id=[266516020001]), pair[0].parent)
    with pytest.raises(DataError, match="neither a DESI coadd nor redshifts"): read_desi(sdss)


@pytest.mark.parametrize("where", np.linspace(0.02, 0.98, 20).round(3))
def test_fault_04_bit_rot(tmp_path, where):
    path = write_desi(sample(1), tmp_path, resolution=False)[0]
    raw = bytearray(path.read_bytes())
    raw[int(len(raw) * where)] ^= 16
    path.write_bytes(bytes(raw))
    with pytest.raises(DataError): read_desi(path, redrock=None)


@pytest.mark.parametrize("kind", ["f8", "little", "int32", "uint32", "uint8", "int64"])
def test_fault_05_foreign_types_give_the_same_spectra(pair, kind):
    with fits.open(pair[0]) as file:
        data = {name: file[name].data.copy() for arm in "BRZ" for name in (f"{arm}_FLUX", f"{arm}_IVAR", f"{arm}_MASK")}
    for name in data:
        if name.endswith("MASK"): data[name][1, 200:210] = 1
    change(pair[0], **data)
    before = read_desi(pair[0])
    assert before.mask[1].sum() == 30
    mask = {"f8": "i4", "little": "<i4"}.get(kind, kind)
    change(pair[0], **{k: v.astype(mask if k.endswith("MASK") else "f8" if kind == "f8" else "<f4") for k, v in data.items()})
    after = read_desi(pair[0])
    assert_same(after, before)
    assert after.flux.dtype == np.float32 and after.flux.dtype.isnative and read_arms(pair[0]).arms["b"].resolution.dtype.isnative


WRONG = st.sampled_from([np.nan, np.inf, -np.inf])
PIXEL = st.tuples(st.integers(0, 3), st.integers(0, 2325), st.sampled_from(["flux", "ivar"]), WRONG)


@settings(max_examples=10, derandomize=True, deadline=None)
@given(st.lists(PIXEL, max_size=20))
def test_fault_06_07_numbers_that_are_none_are_masked(tmp_path_factory, bad):
    path = write_desi(sample(), tmp_path_factory.mktemp("bad"), resolution=False)[0]
    with fits.open(path) as file: data = {name: file[name].data.copy() for name in ("R_FLUX", "R_IVAR")}
    for row, column, which, value in bad: data[f"R_{which.upper()}"][row, column] = value
    change(path, **data)
    spectra = read_desi(path)
    alone = slice(51, 2326 - 126)  # pixels that only this arm sees
    wrong = ~(np.isfinite(data["R_FLUX"]) & np.isfinite(data["R_IVAR"]))[:, alone]
    np.testing.assert_array_equal(spectra.mask[:, np.searchsorted(WAVE, ARMS["R"][alone] - 0.1)], wrong)
    assert np.isfinite(spectra.flux).all() and np.isfinite(spectra.ivar).all()


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_fault_07_no_usable_ivar_at_all(pair, value):
    change(pair[0], **{f"{arm}_IVAR": np.full((4, len(wave)), value, "f4") for arm, wave in ARMS.items()})
    assert (read_desi(pair[0]).flag & Flag.NODATA).all()


@pytest.mark.parametrize("z", [np.nan, np.inf, -0.5])
def test_fault_11_redshift_missing_or_out_of_range(tmp_path, z):
    spectra = read_desi(write_desi(sample(2, z=[z, 0.1]), tmp_path))
    assert [bool(f & Flag.BAD_Z) for f in spectra.flag] == [True, False]


def test_fault_11_redshift_beyond_the_model(tmp_path):
    spectra = sc.preprocess(read_desi(write_desi(sample(2, z=[2.2, 0.1]), tmp_path)))
    assert spectra.flag[0] & Flag.BAD_Z and spectra.good[1]


@pytest.mark.parametrize(("wave", "words"), [
    (ARMS["R"][::-1], "wave must increase"), (np.full(2326, 6000.0), "wave must increase"),
    (ARMS["R"] / 10, "not on the linear grid|got nm"), (np.log10(ARMS["R"]), "got nm"),
    (ARMS["R"] + 0.4, "not on the linear grid"), (np.geomspace(5760, 7620, 2326), "not on the linear grid"),
    (np.where(np.arange(2326) == 7, np.nan, ARMS["R"]), "not finite"),
])
def test_fault_12_wavelengths_that_make_no_sense(pair, wave, words):
    change(pair[0], R_WAVELENGTH=np.ascontiguousarray(wave))
    with pytest.raises(SpectrumError, match=rf"coadd-sv3-bright-0.fits: .*({words})"): read_desi(pair[0])


def test_fault_12_wrong_length(pair):
    change(pair[0], R_WAVELENGTH=ARMS["R"][:-1])
    with pytest.raises(DataError, match=r"R_FLUX has shape \(4, 2326\), expected \(4, 2325\)"): read_desi(pair[0])


def test_fault_13_model_and_data_on_different_grids(pair):
    model, spectra = RedshiftAutoencoder("sdss", n_latent=2).eval(), sc.preprocess(read_desi(pair[0]))
    with pytest.raises(SpectrumError, match="7781"): encode(model, spectra)


def test_fault_14_targets_that_stand_twice(tmp_path, pair):
    write_desi(sample(), tmp_path, program="dark")
    words = r"4 targets stand twice: 39633301257840000 \(coadd-sv3-bright-0.fits, coadd-sv3-dark-0.fits\)"
    with pytest.raises(DataError, match=words): read_desi(tmp_path)
    spectra = read_desi(tmp_path, dedupe="first")
    assert len(spectra) == 4 and len(spectra.table.meta["repeated"]) == 4


def test_fault_15_empty_and_few(tmp_path):
    assert len(read_desi(write_desi(sample(1), tmp_path))) == 1
    with pytest.raises(DataError, match="no files"): read_desi([])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no files"): read_desi(tmp_path / "empty")
    with pytest.raises(DataError, match="cannot be read"): read_desi(tmp_path / "coadd-none.fits")


# addresses, records, stars, other surveys


@pytest.mark.parametrize(("pixel", "group"), [(7, 0), (99, 0), (100, 1), (10145, 101)])
@pytest.mark.parametrize(("release", "production"), [("edr", "fuji"), ("dr1", "iron")])
def test_addresses(pixel, group, release, production):
    url = desi_url("sv3", "bright", pixel, release=release, kind="redrock")
    assert url == (f"https://data.desi.lbl.gov/public/{release}/spectro/redux/{production}/healpix/sv3/bright/{group}/{pixel}/"
                   f"redrock-sv3-bright-{pixel}.fits")
    url = desi_url(tile=169, night=20210419, petal=5, release=release)
    assert url.endswith("tiles/cumulative/169/20210419/coadd-5-169-thru20210419.fits")


@pytest.mark.parametrize("wrong", [{"release": "dr9"}, {"kind": "zbest"}, {"healpix": None}, {"tile": 3}])
def test_addresses_that_are_none(wrong):
    with pytest.raises(ConfigError): desi_url(**{"survey": "sv3", "program": "dark", "healpix": 3} | wrong)


def test_the_query_without_its_client_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sparcl.client", None)
    with pytest.raises(ConfigError, match="pip install sparclclient"): query_desi()


def test_what_a_query_asks_for_and_makes_of_the_answer(monkeypatch):
    asked = {}

    class Client:
        def find(self, **what):
            asked["find"] = what
            return SimpleNamespace(ids=["a"])

        def retrieve(self, **what):
            asked["retrieve"] = what
            record = {"specid": 7, "flux": np.ones(M), "ivar": np.ones(M), "mask": None, "wavelength": WAVE}
            return SimpleNamespace(records=[record | {"redshift": 0.3, "survey": "sv3"}])

    monkeypatch.setitem(sys.modules, "sparcl", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "sparcl.client", SimpleNamespace(SparclClient=Client))
    spectra = query_desi(z=(0.1, 0.4), constraints={"survey": ["sv3"]}, include=["survey"], limit=9)
    wanted = {"data_release": ["DESI-EDR"], "spectype": ["GALAXY"], "redshift": [0.1, 0.4], "survey": ["sv3"]}
    assert asked["find"]["constraints"] == wanted and asked["retrieve"]["uuid_list"] == ["a"]
    assert {"flux", "ivar", "mask", "wavelength", "survey"} <= set(asked["retrieve"]["include"])
    assert [spectra.id[0], spectra.z[0], spectra.table["survey"][0]] == [7, 0.3, "sv3"] and spectra.good.all()


def test_records_become_the_spectra_that_they_came_from(pair):
    spectra = read_desi(pair[0])
    records = [{"targetid": int(i), "flux": f, "ivar": w, "mask": m.astype(int), "wavelength": WAVE, "redshift": z,
                "redshift_warning": 0, "spectype": "GALAXY", "ra": ra, "dec": 0.0, "sv3_desi_target": 2**60}
               for i, f, w, m, z, ra in zip(spectra.id, spectra.flux, spectra.ivar, spectra.mask, spectra.z, spectra.table["ra"])]
    back = from_sparcl(records)
    assert_same(back, spectra.replace(object_id=back.object_id))  # records have positions, no groups
    assert back.table["sv3_desi_target"].tolist() == [2**60] * 4
    with pytest.raises(DataError, match="record 0 lacks targetid"): from_sparcl([{**records[0], "targetid": None}])


@pytest.mark.parametrize("other", [SDSS, BOSS])
def test_other_spectra_on_this_grid_keep_flux_and_error(other):
    n = 300
    signal = 5 + np.sin(other.grid.wave / 50)
    there = Spectra(signal + rng.normal(0, 0.5, (n, other.grid.n)), np.full((n, other.grid.n), 4.0), np.full(n, 0.1), other)
    here = to_survey(there)
    low, high = max(other.grid.edges[0], DESI.grid.edges[0]), min(other.grid.edges[-1], DESI.grid.edges[-1])
    whole = (WAVE > low + 2) & (WAVE < high - 2)
    assert not here.mask[:, whole].any() and here.mask[:, (low - 2 > WAVE) | (high + 2 < WAVE)].all()
    known = ~here.mask[0]
    assert (here.flux[:, known].std(0) * np.sqrt(here.ivar[0, known])).mean() == pytest.approx(1, abs=0.02)
    inside = (other.grid.wave > 4000) & (other.grid.wave < 9000)
    flux = (there.flux.mean(0) * np.diff(other.grid.edges))[inside].sum()
    edge = other.grid.edges[np.flatnonzero(inside)[[0, -1]] + [0, 1]]
    part = (np.clip(DESI.grid.edges[1:], *edge) - np.clip(DESI.grid.edges[:-1], *edge)) * here.flux.mean(0)
    assert part.sum() == pytest.approx(flux, rel=1e-4)
    np.testing.assert_array_equal(here.z, there.z)
    assert (here.flag & Flag.REBINNED).all()


def test_spectra_of_this_grid_stay_as_they_are():
    spectra = sample()
    assert_same(to_survey(spectra, "desi"), spectra)


def test_arms_missing_counts_only_what_one_arm_alone_sees():
    mask = np.zeros((1, M), bool)
    mask[0, (WAVE > 5800) & (WAVE < 7520)] = True
    assert arms_missing(mask).tolist() == ["r"]
    mask[0, 3500] = False
    assert arms_missing(mask).tolist() == [""]


def test_files_of_stars_that_are_broken(tmp_path):
    path = tmp_path / "stars.npz"
    path.write_bytes(b"PK\3\4 nothing")
    with pytest.raises(DataError, match="no readable array file"): read_desi_stars(path)
    np.savez(path, wave=WAVE[:9], flux=np.ones((2, 9)), ivar=np.ones((2, 9)), targetid=np.arange(2))
    with pytest.raises(DataError, match="lacks teff"): read_desi_stars(path)
    np.savez(path, wave=WAVE[:9] + 0.3, flux=np.ones((2, 9)), ivar=np.ones((2, 9)), targetid=np.arange(2), teff=np.ones(2))
    with pytest.raises(SpectrumError, match="stars.npz.*not on the linear grid"): read_desi_stars(path)


# real files


def coadds(mirror):
    return sorted((mirror / "desi_spectra").glob("coadd-*.fits"))


@pytest.mark.real
def test_every_real_coadd_is_read_and_merged_as_an_independent_merge(mirror):
    assert coadds(mirror)
    for path in coadds(mirror):
        coadd, (flux, ivar) = read_arms(path), independent_merge(path)
        merged = merge_arms(coadd.arms.values())
        assert np.abs(merged[0] - flux).max() < 1e-6 and np.abs(merged[1] / np.where(ivar > 0, ivar, 1) - (ivar > 0)).max() < 1e-6
        spectra = read_desi(path)
        assert np.abs(spectra.flux - flux).max() <= 1e-6 * max(1, np.abs(flux).max())
        for arm in coadd.arms.values():
            R = [dia_matrix((d.astype("f8"), np.arange(5, -6, -1)), shape=(len(arm.wave),) * 2) for d in arm.resolution]
            np.testing.assert_allclose(arm.observe(arm.wave), [r @ arm.wave for r in R], rtol=1e-9, atol=1e-6)
            live = (arm.ivar > 0).mean(1) > 0.9
            assert ((arm.weight > 0).mean(1)[live] > 0.97).all()


@pytest.mark.real
def test_the_real_folder_as_a_whole(mirror):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spectra = read_desi(mirror / "desi_spectra")
    skipped = dict(spectra.table.meta["skipped"])
    assert {"objects.csv", "tractor-1054p567.fits"} <= set(skipped)
    objects = Table.read(mirror / "desi_spectra/objects.csv")
    dead = {int(r["targetid"]) for r in objects if r["frac_ivar_gt0"] == 0}
    assert dead <= set(spectra.id[(spectra.flag & Flag.NODATA) != 0].tolist())
    row = spectra.id == 39633345008634465
    assert spectra.z[row] == pytest.approx(0.368744, abs=1e-5) and spectra.good[row]
    assert (spectra.table["survey"][row] == "sv1") and (spectra.table["sv1_desi_target"][row] == 2**60)
    fate = [Flag.reasons(f & Flag.FATAL) or "scored" for f in spectra.flag]
    assert set(fate) == {"scored", "BAD_Z", "NODATA,BAD_Z"}  # the others have no redshift yet


@pytest.mark.real
def test_real_coadds_come_back_from_our_own_files(mirror, tmp_path):
    spectra = read_desi(mirror / "desi_spectra")
    back = read_desi(write_desi(spectra, tmp_path))
    order, wanted = np.argsort(back.id), np.argsort(spectra.id)
    assert_same(back[order], spectra[wanted])
    for name in set(spectra.table.colnames) - {"file", "redrock"}:
        np.testing.assert_array_equal(back.table[name][order], spectra.table[name][wanted], err_msg=name)


@pytest.mark.real
def test_real_redrock_files(mirror):
    table = read_redrock(mirror / "redrock_output_example/redrock-test.fits")
    assert set(table["templates"]) == {"GALAXY,QSO"} and table["z"][2] == pytest.approx(-0.0001, abs=5e-5)  # probably a star
    table = read_redrock(mirror / "redrock_output_example/redrock-sv3-bright-10016.fits")
    assert len(table) == 43 and set(table["templates"]) == {"GALAXY,QSO,STAR"}
    assert (table["spectype"][(table["zwarn"] & 512) != 0] == "").all()


@pytest.mark.real
def test_real_stars(mirror):
    stars = read_desi_stars(mirror / "desi_dr1_stars/stars_4000_5000.npz")
    assert len(stars) == 280 and stars.good.all()
    assert stars.ivar[:, (WAVE < 3999.9) | (WAVE > 4999.3)].max() == 0
    assert (stars.mask[:, (WAVE > 3999.9) & (WAVE < 4999.3)].mean(1) < 0.05).mean() > 0.95
    np.testing.assert_allclose(stars.sn, stars.table["median_snr"], rtol=0.35)


@pytest.mark.parametrize("packed", [False, True])
def test_a_coadd_in_pieces_is_the_coadd(tmp_path, packed):
    "Number for number, fibres on no target and repeated positions too; resolution matrices are never touched."
    spectra = sample(9)
    spectra.table["ra"][3] = spectra.table["ra"][8]  # one object in two pieces
    coadd, redrock = write_desi(spectra, tmp_path)
    with fits.open(coadd, mode="update") as file:
        file["FIBERMAP"].data["TARGETID"][[2, 7]] = -5  # two fibres on no target
        file["FIBERMAP"].columns.del_col("OBJGROUP")
    if packed:
        for path in (coadd, redrock): path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        coadd, redrock = (path.with_name(path.name + ".gz") for path in (coadd, redrock))
    whole, pieces = read_desi(coadd, redrock), list(stream_desi(coadd, redrock, size=4))
    assert [len(piece) for piece in pieces] == [4, 4, 1]
    for name in ("flux", "ivar", "mask", "z", "id", "object_id", "flag"):
        np.testing.assert_array_equal(np.concatenate([getattr(piece, name) for piece in pieces]), getattr(whole, name))
    for name in whole.table.colnames:
        np.testing.assert_array_equal(np.concatenate([np.asarray(piece.table[name]) for piece in pieces]), whole.table[name])


def test_a_coadd_that_is_refused_gives_no_piece(tmp_path):
    coadd, redrock = write_desi(sample(4), tmp_path)
    raw = bytearray(coadd.read_bytes())
    raw[raw.index(b"Z_IVAR") + 40_000] ^= 1  # in an image whose sum stands in its header
    (tmp_path / "bit.fits").write_bytes(raw)
    with pytest.raises(DataError, match="wrong checksum in HDU Z_IVAR"): next(stream_desi(tmp_path / "bit.fits"))
    with pytest.raises(DataError, match="no redrock file"): next(stream_desi(coadd, [coadd]))
    with pytest.raises(DataError, match="no DESI coadd"): next(stream_desi(redrock))
