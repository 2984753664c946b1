"""The SDSS reader and writer: laws on files made here, then every real file of the mirror."""

import csv
import gzip
import re
import warnings

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_core.archives.fits import write_fits
from spectral_core.archives.sdss import (
    download_sdss,
    plate_mjd_fiber,
    query_sdss,
    read_sdss,
    sdss_id,
    sdss_url,
    write_sdss,
)
from spectral_core.core import ConfigError, DataError, Flag, SpectrumError
from spectral_core.spectra.container import Spectra
from spectral_core.spectra.surveys import BOSS, DESI, SDSS
from spectral_core.spectra.wavelength import Grid

ARRAYS = ("flux", "ivar", "mask", "z", "id", "object_id", "flag")


def sample(n=3, survey=SDSS, seed=0, **changes):
    "n made-up spectra with masked pixels, a hole and empty edges."
    rng, m = np.random.default_rng(seed), survey.grid.n
    flux, ivar, mask = rng.normal(20, 3, (n, m)), rng.uniform(0.5, 2, (n, m)), rng.random((n, m)) < 0.05
    ivar[:, :25] = ivar[:, -7:] = ivar[:, 900:950] = 0
    values = {"mask": mask, "id": sdss_id(np.arange(n) + 266, 51602, 7), "object_id": np.arange(n) + 10**6} | changes
    return Spectra(flux, ivar, values.pop("z", rng.uniform(0, 0.4, n)), survey, **values)


def coadd(loglam, flux=None):
    "Columns of a COADD table on the given pixels."
    n = len(loglam)
    flux = np.arange(n, dtype="f4") + 1 if flux is None else flux
    return {"flux": flux, "loglam": loglam.astype("f4"), "ivar": np.full(n, 4.0, "f4"), "and_mask": np.zeros(n, "i4")}


def info(**changes):
    "One row of SPECOBJ."
    values = {"PLATE": 1, "MJD": 51602, "FIBERID": 1, "PLUG_RA": 10.0, "PLUG_DEC": 1.0, "Z": 0.1, "Z_ERR": 1e-5}
    values |= {"ZWARNING": 0, "CLASS": "GALAXY", "SUBCLASS": "", "SOURCETYPE": "GALAXY"} | changes
    return {key: np.array([value]) for key, value in values.items()}


LINES = {"LINENAME": np.array(["H_alpha", "H_beta"]), "LINEAREA": np.array([30.0, 10.0])}
LINES |= {"LINEAREA_ERR": np.ones(2), "LINEEW": np.array([5.0, 2.0])}


def spec(path, loglam=None, **changes):
    "A spec-lite file of 100 pixels."
    loglam = 3.6 + 1e-4 * np.arange(100) if loglam is None else loglam
    return write_fits(path, {"PLATEID": 1}, {"COADD": coadd(loglam), "SPECOBJ": info(**changes), "SPZLINE": LINES})


def assert_same(a, b):
    for name in ARRAYS: np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("survey", [SDSS, BOSS])
def test_what_is_written_is_read_back_unchanged(tmp_path, survey, compress):
    spectra = sample(survey=survey, z=[0.1, np.nan, 0.3])
    paths = write_sdss(spectra, tmp_path, compress=compress)
    assert [p.name for p in paths] == [f"spec-{k}-51602-0007.fits{'.gz' * compress}" for k in ("0266", "0267", "0268")]
    assert_same(read_sdss(paths, survey=survey), spectra)


@settings(derandomize=True, max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 2**62), min_size=1, max_size=4, unique=True), st.integers(0, 2**32))
def test_any_id_survives_the_round_trip(tmp_path_factory, ids, seed):
    ids = np.array(ids, dtype="i8")
    np.testing.assert_array_equal(sdss_id(*plate_mjd_fiber(ids)), ids)
    spectra = sample(len(ids), seed=seed, id=ids, object_id=ids // 3)
    assert_same(read_sdss(write_sdss(spectra, tmp_path_factory.mktemp("ids"))), spectra)


def test_astropy_reads_what_is_written_and_agrees(tmp_path):
    spectra = sample(1)
    with fits.open(write_sdss(spectra, tmp_path)[0], checksum=True) as hdus:  # a wrong checksum would warn
        hdus.verify("exception")
        assert [h.name for h in hdus] == ["PRIMARY", "COADD", "SPECOBJ", "SPZLINE"]
        wave = 10.0 ** hdus["COADD"].data["loglam"]
        flux = np.interp(wave, spectra.wave, spectra.flux[0])
        assert np.median(np.abs(hdus["COADD"].data["flux"] - flux)) < 1e-2
        assert hdus["SPECOBJ"].data["Z"][0] == spectra.z[0]


def test_normalised_spectra_are_written_in_physical_units(tmp_path):
    from astropy.table import Table

    spectra, norm = sample(2), np.array([4.0, np.nan])
    scale = np.array([[4.0], [1.0]], "f4")
    relative = spectra.replace(flux=spectra.flux / scale, ivar=spectra.ivar * scale**2, table=Table({"norm": norm}))
    assert_same(read_sdss(write_sdss(relative, tmp_path)), spectra)


def test_a_linear_grid_cannot_be_written_as_spec(tmp_path):
    with pytest.raises(ConfigError, match="log10"): write_sdss(sample(1, survey=DESI), tmp_path)
    with pytest.raises(DataError, match="negative"): write_sdss(sample(1, id=[-4]), tmp_path)


@settings(derandomize=True, max_examples=40, deadline=None)
@given(st.integers(-300, 4200), st.integers(2, 500))
def test_placement_is_integer_and_counts_what_it_leaves_out(tmp_path_factory, first, n):
    loglam = SDSS.grid.first + 1e-4 * (first + np.arange(n))
    spectra = read_sdss(spec(tmp_path_factory.mktemp("place") / "s.fits", loglam))
    pixel = first + np.arange(n)
    inside = (pixel >= 0) & (pixel < SDSS.grid.n)
    np.testing.assert_array_equal(spectra.flux[0, pixel[inside]], (np.arange(n) + 1)[inside])
    assert (~spectra.mask[0]).sum() == inside.sum() and spectra.table["cropped"][0] == (~inside).sum()
    assert bool(spectra.flag[0] & Flag.CROPPED) == (not inside.all()) and not spectra.flag[0] & Flag.REBINNED


def test_boss_and_sdss_grids_share_one_lattice(tmp_path):
    paths = write_sdss(sample(2, survey=BOSS), tmp_path)
    wide, narrow = read_sdss(paths, survey="boss"), read_sdss(paths)
    shift = round((SDSS.grid.first - BOSS.grid.first) / 1e-4)
    for name in ("flux", "ivar", "mask"):
        np.testing.assert_array_equal(getattr(wide, name)[:, shift : shift + SDSS.grid.n], getattr(narrow, name))
    assert (narrow.table["cropped"] == BOSS.grid.n - 25 - 7 - SDSS.grid.n).all()


def test_another_lattice_is_rebinned_with_conserved_flux(tmp_path):
    loglam = 3.62 + 2.3e-4 * np.arange(800)
    flux = (5 + np.sin(np.arange(800) / 40)).astype("f4")
    write_fits(tmp_path / "a.fits", {"PLATEID": 1}, {"COADD": coadd(loglam, flux), "SPECOBJ": info(), "SPZLINE": LINES})
    spectra = read_sdss(tmp_path / "a.fits")
    assert spectra.flag[0] & Flag.REBINNED
    good, edges = ~spectra.mask[0], SDSS.grid.edges
    ours = (spectra.flux[0] * np.diff(edges))[good].sum()
    old = 10 ** np.concatenate([[loglam[0] - 1.15e-4], loglam + 1.15e-4])
    total = np.concatenate([[0], np.cumsum(flux * np.diff(old))])
    first, last = edges[np.flatnonzero(good)[0]], edges[np.flatnonzero(good)[-1] + 1]
    assert good.sum() > 1800 and ours == pytest.approx(np.diff(np.interp([first, last], old, total))[0], rel=1e-4)


def test_equivalent_widths_are_at_rest_in_memory_and_observed_in_a_file(tmp_path):
    from spectral_core.archives.catalogs import read_pipeline_lines

    spectra = sample(survey=SDSS, z=[0.1, 0.0, 0.3])
    table = spectra.table.copy()
    for name in ("flux_halpha", "flux_err_halpha", "ew_halpha"): table[name] = [30.0, 20.0, 10.0]
    write_sdss(spectra.replace(table=table), tmp_path)
    assert np.allclose(read_sdss(tmp_path).table["ew_halpha"], [30, 20, 10])
    assert np.allclose(read_pipeline_lines(tmp_path)["ew_halpha"], [30, 20, 10])


def test_line_fits_of_the_pipeline(tmp_path):
    row = read_sdss(spec(tmp_path / "a.fits")).table[0]
    assert [row[k] for k in ("flux_halpha", "flux_err_halpha", "flux_hbeta")] == [30, 1, 10]
    assert row["ew_halpha"] == pytest.approx(5 / 1.1)  # the file has observed widths
    assert np.isnan(row["flux_nii_6584"])


@pytest.mark.parametrize(
    ("rule", "masked"), [("any", [False, True, True, True]), ("pixel", [False, False, True, True]), ("none", [False] * 4)]
)
def test_and_mask_rules(tmp_path, rule, masked):
    table = coadd(3.6 + 1e-4 * np.arange(4))
    table["and_mask"][:] = [0, 1 << 9, 1 << 9 | 1 << 23, 1 << 24]
    write_fits(tmp_path / "a.fits", {"PLATEID": 1}, {"COADD": table, "SPECOBJ": info(), "SPZLINE": LINES})
    assert read_sdss(tmp_path / "a.fits", and_mask=rule).mask[0, 220:224].tolist() == masked
    with pytest.raises(ConfigError, match="and_mask"): read_sdss(tmp_path / "a.fits", and_mask="some")


@pytest.mark.parametrize(
    ("source", "fitted", "kind"),
    [("SKY", "QSO", "SKY"), ("GALAXY", "GALAXY", "GALAXY"), ("QSO", "STAR", "STAR"), ("NA", "QSO", "QSO")],
)
def test_class_by_source_type_first_never_by_name(tmp_path, source, fitted, kind):
    path = spec(tmp_path / "sky_fibre_star_qso.fits", SOURCETYPE=source, CLASS=fitted)
    assert read_sdss(path).table["class"][0] == kind
    boss = info(CLASS=fitted) | {"OBJTYPE": np.array([source])}
    del boss["SOURCETYPE"]
    write_fits(path, {}, {"": coadd(3.6 + 1e-4 * np.arange(9)), "x": boss, "y": LINES})  # nameless units, by number
    assert read_sdss(path).table["class"][0] == kind


def test_two_nights_of_one_galaxy_are_one_object(tmp_path):
    third = 0.5 / 3600
    for k, ra in enumerate([10.0, 10.0 + third, 10.1]): spec(tmp_path / f"{k}.fits", PLATE=k + 1, PLUG_RA=ra)
    spectra = read_sdss(tmp_path)
    assert spectra.object_id[0] == spectra.object_id[1] != spectra.object_id[2]
    assert len(set(spectra.id)) == 3
    for part in spectra.split(seed=3): assert not {0, 1} & set(part.id) or set(part.id) >= set(spectra.id[:2])


def test_redshifts_can_be_given(tmp_path):
    for k in range(3): spec(tmp_path / f"{k}.fits", PLATE=k + 1, Z=0.1 if k else np.nan)
    assert read_sdss(tmp_path).flag[0] & Flag.BAD_Z
    np.testing.assert_array_equal(read_sdss(tmp_path, z=0.2).z, 0.2)
    np.testing.assert_array_equal(read_sdss(tmp_path, z=[0.2, 0.3, 0.4]).z, [0.2, 0.3, 0.4])
    np.testing.assert_array_equal(read_sdss(tmp_path, z={"0.fits": 0.5}).z, [0.5, 0.1, 0.1])
    with pytest.raises(DataError, match="2 redshifts for 3 files"): read_sdss(tmp_path, z=[0.1, 0.2])


def test_a_folder_is_searched_through_and_skips_are_listed(tmp_path):
    spec(tmp_path / "a" / "b" / "one.fits")
    spec(tmp_path / "two.FIT.gz", PLATE=2)
    (tmp_path / "a" / "notes.txt").write_text("no spectrum")
    assert sorted(read_sdss(tmp_path).table["file"]) == ["a/b/one.fits", "two.FIT.gz"]
    fits.PrimaryHDU(np.zeros((3, 3))).writeto(tmp_path / "a" / "picture.fits")
    with pytest.raises(DataError, match="picture.fits: no spectrum found"): read_sdss(tmp_path)
    with pytest.warns(UserWarning, match="1 files were skipped"): spectra = read_sdss(tmp_path, on_error="skip")
    assert len(spectra) == 2 and [name for name, _ in spectra.table.meta["skipped"]] == ["a/picture.fits"]
    with pytest.raises(ConfigError, match="on_error"): read_sdss(tmp_path, on_error="ignore")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no \\*.fits"): read_sdss(tmp_path / "empty")
    with pytest.raises(DataError, match="no files"): read_sdss([])
    with pytest.raises(DataError, match="cannot be read"): read_sdss(tmp_path / "nowhere.fits")
    with pytest.warns(UserWarning), pytest.raises(DataError, match="none of the 1 files"):
        read_sdss(tmp_path / "a" / "picture.fits", on_error="skip")


def test_a_full_file_is_read_by_its_coadd_not_by_an_exposure(tmp_path):
    exposure = coadd(3.6 + 1e-4 * np.arange(50), np.full(50, 99.0, "f4"))
    tables = {"COADD": coadd(3.6 + 1e-4 * np.arange(100)), "SPECOBJ": info(), "SPZLINE": LINES}
    write_fits(tmp_path / "full.fits", {"PLATEID": 1}, tables | {f"B1-{k}": exposure for k in range(4)})
    spectra = read_sdss(tmp_path / "full.fits")
    assert spectra.table["layout"][0] == "spec-full" and spectra.flux.max() == 100


def spspec(path, error, sums=False):
    "A DR7 file of as many pixels as `error` has."
    image = np.array([np.arange(len(error)) + 1.0, 0 * error, error, 0 * error], dtype="f4")
    header = fits.Header({"COEFF0": 3.58, "COEFF1": 1e-4, "PLATEID": 455, "MJD": 51909, "FIBERID": 597, "Z": 0.1765})
    header.update({"SPEC_CLN": 2, "OBJTYPE": "GALAXY", "RAOBJ": 40.1, "DECOBJ": -8.1, "RA": 39.0, "DEC": -8.0})
    if sums: header.update({"DATASUM": "1234", "CHECKSUM": "abcdefghijklmnop"})
    fits.HDUList([fits.PrimaryHDU(image, header)]).writeto(path)
    return path


def test_spspec_errors_become_ivar_and_coordinates_are_the_objects(tmp_path):
    spectra = read_sdss(spspec(tmp_path / "a.fit", np.array([0.5, 0.0, 2.0])))
    np.testing.assert_array_equal(spectra.ivar[0, 20:23], [4, 0, 0.25])
    row = spectra.table[0]
    assert (row["layout"], row["class"], row["ra"], spectra.id[0]) == ("spSpec", "GALAXY", 40.1, 455519090597)


def test_stale_sums_and_a_stray_newline_of_dr7_are_forgiven(tmp_path):
    path = spspec(tmp_path / "a.fit", np.ones(5), sums=True)
    path.write_bytes(path.read_bytes() + b"\n")
    assert (~read_sdss(path).mask).sum() == 5


@pytest.mark.parametrize("vectors", [False, True])
def test_anybodys_table(tmp_path, vectors):
    wave, flux = np.linspace(5000, 5600, 601), np.linspace(1, 3, 601)
    values = {"WAVE": wave, "FLUX": flux, "ERR": 0.1 * np.ones(601), "QUAL": (np.arange(601) == 300).astype("i2")}
    columns = [
        fits.Column(k, f"{601 if vectors else 1}{'I' if k == 'QUAL' else 'D'}", array=v[None] if vectors else v)
        for k, v in values.items()
    ]
    header = fits.Header({"RA": 150.0, "DEC": 2.0, "REDSHIFT": 0.3, "MJD": 57000})
    fits.HDUList([fits.PrimaryHDU(header=header), fits.BinTableHDU.from_columns(columns)]).writeto(tmp_path / "t.fits")
    spectra = read_sdss(tmp_path / "t.fits")
    assert spectra.z[0] == 0.3 and spectra.flag[0] & Flag.REBINNED and spectra.table["ra"][0] == 150.0
    good = ~spectra.mask[0]
    np.testing.assert_allclose(spectra.flux[0, good], np.interp(spectra.wave[good], wave, flux), rtol=5e-4)
    assert spectra.wave[good].min() > 4999 and spectra.wave[good].max() < 5601
    assert not good[np.abs(spectra.wave - 5300) < 0.5].any()  # the pixel with QUAL = 1
    assert spectra.id[0] == read_sdss(tmp_path / "t.fits").id[0] > 0


def test_tables_named_like_sdss_but_made_by_hand(tmp_path):
    "No mask, no line table, and of SPECOBJ the redshift alone; two such files are two spectra, named by their files."
    loglam = 3.6 + 1e-4 * np.arange(100)
    made = {k: v for k, v in coadd(loglam).items() if k != "and_mask"}
    for name, z in (("a", 0.1), ("b", 0.2)):
        write_fits(tmp_path / f"{name}.fits", {}, {"COADD": made, "SPECOBJ": {"Z": np.array([z])}})
    both = read_sdss(tmp_path)
    assert both.z.tolist() == [0.1, 0.2] and (both.table["layout"] == "table").all()
    assert len(set(both.id)) == 2 and (both.id > 0).all()
    assert (~both.mask).sum(1).tolist() == [100, 100] and not (both.flag & (Flag.REBINNED | Flag.BAD_Z)).any()
    masked = made | {"and_mask": (np.arange(100) == 50).astype("i4")}
    facts = {"Z": [0.3], "CLASS": ["QSO"], "ZWARNING": [4], "PLUG_RA": [10.0], "PLUG_DEC": [-1.0]}
    facts = {key: np.array(value) for key, value in facts.items()}
    write_fits(tmp_path / "c.fits", {}, {"COADD": masked, "SPECOBJ": facts})
    row = read_sdss(tmp_path / "c.fits")
    assert [row.table[k][0] for k in ("z", "class", "zwarning", "ra", "dec")] == [0.3, "QSO", 4, 10.0, -1.0]
    assert (~row.mask).sum() == 99
    write_fits(tmp_path / "d.fits", {}, {"COADD": {k: v for k, v in made.items() if k != "ivar"}, "SPECOBJ": facts})
    with pytest.raises(DataError, match="no spectrum found.*ivar or error"): read_sdss(tmp_path / "d.fits")


def test_a_mock_says_so_in_its_files_and_a_real_file_never_does(tmp_path):
    mock = sample(2, table=Table({"log_mass_formed": [10.0, 11.0]}))
    paths, real = write_sdss(mock, tmp_path / "in"), spec(tmp_path / "in/real.fits")
    assert [fits.getheader(p)["SIMULATE"] for p in paths] == [True, True] and "SDSS" not in fits.getheader(paths[0])["TELESCOP"]
    both = read_sdss(tmp_path / "in")
    assert {str(r["file"]): bool(r["simulated"]) for r in both.table} == {real.name: False} | {p.name: True for p in paths}
    again = read_sdss(write_sdss(both, tmp_path / "out"))
    assert dict(zip(again.id, again.table["simulated"])) == dict(zip(both.id, both.table["simulated"]))
    tables = {"COADD": coadd(3.6 + 1e-4 * np.arange(100)), "SPECOBJ": info(), "SPZLINE": LINES}
    for value in (True, False, "T", "yes", 1):
        path = write_fits(tmp_path / "x.fits", {"PLATEID": 1, "SIMULATE": value}, tables)
        assert read_sdss(path).table["simulated"][0] == (value is True)


def own(folder, columns, units=None, header=None, vectors=False):
    "A table as a person writes it: one row a pixel, or one row of vectors."
    form = lambda v: (str(len(v)) if vectors else "") + ("L" if v.dtype == bool else "D")
    made = [fits.Column(k, form(v), unit=(units or {}).get(k), array=v[None] if vectors else v) for k, v in columns.items()]
    table = fits.BinTableHDU.from_columns(made)
    table.header.update({"Z": 0.1} | (header or {}))
    table.writeto(folder / "own.fits", overwrite=True)
    return folder / "own.fits"


WAVE, FLUX = np.linspace(5000.0, 5600, 601), np.linspace(1.0, 3, 601)
PLAIN = {"wave": WAVE, "flux": FLUX, "error": 0.1 * FLUX}


@pytest.mark.parametrize("unit", [
    "1E-17 erg/cm^2/s/Ang", "1e-17 erg/cm2/s/A",
    "1e-17 ergs s-1 cm-2 Angstroms-1", "1E-17 erg/s/cm^2/angstrom", "10**(-17) erg cm-2 sec-1 A-1",
])
def test_an_angstrom_is_spelled_in_many_ways(tmp_path, unit):
    plain = read_sdss(own(tmp_path, PLAIN))
    for wave in ("A", "Angstroms", "ang", "AA"): assert_same(read_sdss(own(tmp_path, PLAIN, {"wave": wave, "flux": unit})), plain)


@pytest.mark.parametrize("unit", ["erg/s/cm2/Hz", "Jy", "mJy"])
def test_a_flux_per_hertz_is_converted_pixel_by_pixel(tmp_path, unit):
    plain = read_sdss(own(tmp_path, PLAIN))
    to_unit = 1e-17 * WAVE**2 / 2.99792458e18 / {"erg/s/cm2/Hz": 1, "Jy": 1e-23, "mJy": 1e-26}[unit]
    same = read_sdss(own(tmp_path, PLAIN | {"flux": FLUX * to_unit, "error": 0.1 * FLUX * to_unit}, {"flux": unit}))
    np.testing.assert_allclose(same.flux, plain.flux, rtol=1e-6)
    np.testing.assert_allclose(same.ivar, plain.ivar, rtol=1e-6)


def test_an_error_may_have_a_unit_of_its_own(tmp_path):
    plain = read_sdss(own(tmp_path, PLAIN))
    units = {"flux": "1e-17 erg/s/cm2/Angstrom", "error": "1e-18 erg/s/cm2/Angstrom"}
    same = read_sdss(own(tmp_path, PLAIN | {"error": FLUX}, units))
    np.testing.assert_array_equal(same.flux, plain.flux)
    np.testing.assert_allclose(same.ivar, plain.ivar, rtol=1e-6)


@pytest.mark.parametrize("name", ["noise", "dflux", "variance", "var"])
def test_uncertainties_have_many_names_and_may_be_variances(tmp_path, name):
    plain, power = read_sdss(own(tmp_path, PLAIN)), 2 if name.startswith("var") else 1
    spread = np.where(np.arange(601) == 300, 0, (0.1 * FLUX) ** power)  # no error, no weight
    columns = {"wave": WAVE, "flux": FLUX, name: spread}
    same = read_sdss(own(tmp_path, columns))
    kept = np.abs(plain.wave - WAVE[300]) > 3
    np.testing.assert_allclose(same.ivar[:, kept], plain.ivar[:, kept], rtol=1e-6)
    assert same.ivar[:, ~kept].min() == 0
    units = {"flux": "1e-17 erg/s/cm2/Angstrom", name: {1: "1e-18 erg/s/cm2/Angstrom", 2: "1e-36 erg2/s2/cm4/Angstrom2"}[power]}
    other = read_sdss(own(tmp_path, columns | {name: spread * 10**power}, units))
    np.testing.assert_allclose(other.ivar, same.ivar, rtol=1e-6)


def test_a_flux_in_cgs_without_a_unit_is_asked_about(tmp_path):
    small = PLAIN | {"flux": FLUX * 1e-17, "error": FLUX * 1e-18}
    with pytest.raises(DataError, match="own.fits: flux has no unit and a median of 2e-17: give the column its unit"):
        read_sdss(own(tmp_path, small))
    said, plain = read_sdss(own(tmp_path, small, {"flux": "erg/s/cm2/Angstrom"})), read_sdss(own(tmp_path, PLAIN))
    np.testing.assert_allclose(said.flux, plain.flux, rtol=1e-6)
    assert (read_sdss(own(tmp_path, PLAIN | {"flux": 0 * FLUX})).flux == 0).all(), "nothing is not small"


@pytest.mark.parametrize(("flux", "error"), [(1, 1e-17), (1e17, 1)])
def test_an_absurd_signal_to_noise_is_a_matter_of_units(tmp_path, flux, error):
    path = own(tmp_path, PLAIN | {"flux": FLUX * flux, "error": 0.1 * FLUX * error})
    with pytest.raises(DataError, match="signal to noise is 1e\\+18 with flux and error as they stand: give both"):
        read_sdss(path)
    units = {"flux": "1e-17 erg/s/cm2/Angstrom", "error": "erg/s/cm2/Angstrom"}
    said = read_sdss(own(tmp_path, PLAIN | {"error": 0.1 * FLUX * 1e-17}, units))
    np.testing.assert_allclose(said.ivar, read_sdss(own(tmp_path, PLAIN)).ivar, rtol=1e-6)


@pytest.mark.parametrize("unit", ["(erg/s/cm2/Angstrom)2", "(1e-17 erg / (s cm2 Angstrom))**2", "erg2 / (s2 cm4 Angstrom2)"])
def test_the_unit_of_a_variance_is_a_square_however_it_is_written(tmp_path, unit):
    size = 1 if "1e-17" in unit else 1e-34
    columns = {"wave": WAVE, "flux": FLUX, "variance": (0.1 * FLUX) ** 2 * size}
    same = read_sdss(own(tmp_path, columns, {"flux": "1e-17 erg/s/cm2/Angstrom", "variance": unit}))
    np.testing.assert_allclose(same.ivar, read_sdss(own(tmp_path, PLAIN)).ivar, rtol=1e-6)


@pytest.mark.parametrize("null", [999999, -32768, 0])
def test_what_an_integer_column_says_is_nothing_has_no_weight(tmp_path, null):
    kept = np.arange(601) % 7 > 0
    counts = np.where(kept, np.round(100 * FLUX), null).astype("i4")
    flux = fits.Column("flux", "J", null=null, array=counts)
    made = [fits.Column("wave", "D", array=WAVE), flux, fits.Column("error", "D", array=10 * FLUX)]
    fits.BinTableHDU.from_columns(made).writeto(tmp_path / "null.fits")
    spectra = read_sdss(tmp_path / "null.fits")
    flux, seen = spectra.flux[0], ~spectra.mask[0]
    assert 0.3 < seen.sum() / (~read_sdss(own(tmp_path, PLAIN)).mask[0]).sum() < 0.95
    assert (np.abs(flux[seen] - 100 * np.interp(spectra.wave[seen], WAVE, FLUX)) < 2).all()


def test_a_masked_bit_mask_is_bad(tmp_path):
    hidden = np.arange(601) // 100 == 2
    made = [fits.Column(k, "D", array=v) for k, v in PLAIN.items()]
    made += [fits.Column("and_mask", "J", null=999999, array=np.where(hidden, 999999, 0))]
    fits.BinTableHDU.from_columns(made).writeto(tmp_path / "bits.fits")
    assert (read_sdss(tmp_path / "bits.fits").mask == read_sdss(own(tmp_path, PLAIN | {"mask": hidden})).mask).all()


def test_two_spectra_in_one_file_are_refused_and_an_sdss_coadd_is_its_sum(tmp_path):
    table = lambda name: fits.BinTableHDU.from_columns([fits.Column(k, "D", array=v) for k, v in PLAIN.items()], name=name)
    for names, words in (("AB", r"2 tables are spectra \(A, B\)"), ("ABC", "3 tables are spectra")):
        fits.HDUList([fits.PrimaryHDU(), *map(table, names)]).writeto(tmp_path / "more.fits", overwrite=True)
        with pytest.raises(DataError, match=words): read_sdss(tmp_path / "more.fits")
    fits.HDUList([fits.PrimaryHDU(), table("COADD"), table("B1-00012345")]).writeto(tmp_path / "more.fits", overwrite=True)
    np.testing.assert_array_equal(read_sdss(tmp_path / "more.fits").flux, read_sdss(own(tmp_path, PLAIN)).flux)


def test_the_header_of_the_spectrum_itself_comes_first(tmp_path):
    first, other = fits.PrimaryHDU(), fits.BinTableHDU.from_columns([fits.Column("name", "5A", array=["M 87"])])
    table = fits.BinTableHDU.from_columns([fits.Column(k, "D", array=v) for k, v in PLAIN.items()])
    for own_z, first_z, z in ((0.063, None, 0.063), (0.063, 0.5, 0.063), (None, 0.5, 0.5), (True, None, np.nan)):
        for hdu, value in ((table, own_z), (first, first_z)):
            hdu.header.pop("Z", None)
            if value is not None: hdu.header["Z"] = value
        fits.HDUList([first, other, table]).writeto(tmp_path / "z.fits", overwrite=True)
        np.testing.assert_equal(read_sdss(tmp_path / "z.fits").z[0], z)


def test_an_image_of_lamost_is_no_spspec(tmp_path):
    wave = 10 ** (3.57 + 1e-4 * np.arange(3909))
    image = np.stack([np.ones(3909), np.full(3909, 4.0), wave, np.zeros(3909), np.zeros(3909)]).astype("f4")
    fits.writeto(tmp_path / "lamost.fits", image, fits.Header({"COEFF0": 3.57, "COEFF1": 1e-4, "Z": 0.1}))
    with pytest.raises(DataError, match="third row is a wavelength, as LAMOST's: write a table"):
        read_sdss(tmp_path / "lamost.fits")


def test_bits_of_data_quality_are_a_mask(tmp_path):
    bad = np.arange(601) // 100 == 2
    expected = read_sdss(own(tmp_path, PLAIN | {"mask": bad})).mask
    np.testing.assert_array_equal(read_sdss(own(tmp_path, PLAIN | {"DQ": 513.0 * bad})).mask, expected)


@pytest.mark.parametrize("vectors", [False, True])
def test_a_logical_mask_is_bad_where_it_is_true(tmp_path, vectors):
    bad = np.arange(601) // 100 == 2
    spectra = read_sdss(own(tmp_path, PLAIN | {"mask": bad}, vectors=vectors))
    good, plain = ~spectra.mask[0], ~read_sdss(own(tmp_path, PLAIN)).mask[0]
    hidden = (spectra.wave > 5198) & (spectra.wave < 5301)
    np.testing.assert_array_equal(good[~hidden], plain[~hidden])
    assert not good[(spectra.wave > 5201) & (spectra.wave < 5298)].any()
    path = own(tmp_path, PLAIN | {"mask": bad})
    raw, pixel = path.read_bytes(), WAVE[5:6].astype(">f8").tobytes()
    assert raw.count(b"F" + pixel) == 1
    path.write_bytes(raw.replace(b"F" + pixel, b"\0" + pixel))
    np.testing.assert_array_equal(read_sdss(path).mask[0], ~good)  # undefined is not True


@pytest.mark.parametrize("name", ["flux", "error", "mask"])
def test_columns_of_unequal_length_are_named_with_both_lengths(tmp_path, name):
    columns = PLAIN | {"mask": np.zeros(601, bool)}
    path = own(tmp_path, columns | {name: columns[name][:-10]}, vectors=True)
    with pytest.raises(DataError, match=f"own.fits: column {name} has 591 pixels and wave 601"): read_sdss(path)


def test_no_file_takes_the_others_along(tmp_path, monkeypatch):
    from spectral_core.archives import sdss

    paths, read = [spec(tmp_path / f"{name}.fits", PLATE=i + 1) for i, name in enumerate("abc")], sdss.read_spectrum
    for error in (IndexError("out of bounds"), MemoryError("full"), KeyboardInterrupt()):
        def broken(path, error=error):
            if path.name == "b.fits": raise error
            return read(path)

        monkeypatch.setattr(sdss, "read_spectrum", broken)
        with pytest.raises(type(error)): read_sdss(paths)
        if not isinstance(error, IndexError):
            with pytest.raises(type(error)): read_sdss(paths, on_error="skip")
            continue
        with pytest.warns(UserWarning, match="1 files were skipped"): spectra = read_sdss(paths, on_error="skip")
        assert len(spectra) == 2 and spectra.table.meta["skipped"] == [("b.fits", "IndexError: out of bounds")]


def test_wavelengths_may_run_down_and_the_first_odd_pixel_is_named(tmp_path):
    columns = PLAIN | {"mask": np.arange(601) < 50}
    down = own(tmp_path, {k: v[::-1] for k, v in columns.items()})
    assert_same(read_sdss(down), read_sdss(own(tmp_path, columns)))
    for at, value, words in ((5, np.nan, "wave is NaN at pixel 5,"), (100, WAVE[99], "wave repeats at pixel 100 .*must increase"),
                             (100, 5000.5, "wave turns back at pixel 100 .*must increase")):
        wave = np.where(np.arange(601) == at, value, WAVE)
        with pytest.raises(SpectrumError, match=f"own.fits: {words}"): read_sdss(own(tmp_path, PLAIN | {"wave": wave}))


def test_wavelengths_in_nm_without_a_unit_are_asked_about(tmp_path):
    "On the common lattice, where a factor of ten is a whole number of pixels."
    wave = 10 ** (3.6 + 1e-4 * np.arange(601))
    for factor, unit in ((10, "nm"), (1e4, "µm")):
        path = own(tmp_path, PLAIN | {"wave": wave / factor})
        with pytest.raises(SpectrumError, match=f"wave runs from .* to .*is it in {unit}"): read_sdss(path)
    assert read_sdss(own(tmp_path, PLAIN | {"wave": wave / 10}, {"wave": "nm"})).table["cropped"][0] == 0
    with pytest.raises(SpectrumError, match="loglam goes up to .*, which is no logarithm .*: name the column wave"):
        read_sdss(own(tmp_path, {"loglam": wave, "flux": FLUX, "error": FLUX}))
    assert read_sdss(own(tmp_path, PLAIN | {"wave": wave * 3})).mask.all()  # infrared: another range, not another unit


@pytest.mark.parametrize("header", [
    {"AIRORVAC": "AIR"}, {"AIRORVAC": "air wavelengths"}, {"CTYPE1": "AWAV"}, {"CTYPE1": "AWAV-LOG"},
    {"VACUUM": False}, {"VACUUM": 0}, {"VACUUM": "no"}])
def test_headers_say_air_in_several_ways(tmp_path, header):
    from spectral_core.spectra.wavelength import vacuum_to_air

    vacuum = read_sdss(own(tmp_path, PLAIN, header={"CTYPE1": "WAVE", "VACUUM": True}))
    for key, value in (("wave", vacuum_to_air(WAVE)), ("loglam", np.log10(vacuum_to_air(WAVE)))):
        air = read_sdss(own(tmp_path, {key: value} | {k: v for k, v in PLAIN.items() if k != "wave"}, header=header))
        np.testing.assert_allclose(air.flux, vacuum.flux, rtol=1e-6)


@pytest.mark.parametrize("key", ["Z", "REDSHIFT", "Z_SPEC", "ZSPEC", "ZBEST", "Z_HELIO"])
def test_keywords_of_a_redshift(tmp_path, key):
    assert read_sdss(own(tmp_path, PLAIN, header={"Z": None, key: 0.2})).z[0] == 0.2


def test_unusable_units_and_many_spectra_in_one_table(tmp_path):
    wave = np.linspace(5000.0, 5600, 61)
    for unit in ("1E-17 Foo/Ang", "count", "mag(AB)"):  # as written, not as respelled
        path = own(tmp_path, {"wave": wave, "flux": wave, "err": wave}, {"flux": unit})
        with pytest.raises(DataError, match=f"{re.escape(repr(unit))}, which is not convertible"): read_sdss(path)
    columns = [fits.Column(k, "61D", array=np.stack([wave, wave])) for k in ("wave", "flux", "err")]
    fits.BinTableHDU.from_columns(columns).writeto(tmp_path / "two.fits")
    with pytest.raises(DataError, match="2 spectra in one table"): read_sdss(tmp_path / "two.fits")


def test_addresses_and_queries(monkeypatch):
    assert sdss_url(266, 51602, 1).endswith("/dr17/sdss/spectro/redux/26/spectra/lite/0266/spec-0266-51602-0001.fits")
    assert "/eboss/spectro/redux/v5_13_2/" in sdss_url(10742, 58198, 490, "v5_13_2")
    with pytest.raises(ConfigError, match="13 to 17"): sdss_url(1, 2, 3, dr=8)
    for wrong in ({}, {"ra": 1.0}, {"ra": 1.0, "dec": 2.0, "plate": 3}):
        with pytest.raises(ConfigError, match="ask for"): query_sdss(**wrong)
    sdss = pytest.importorskip("astroquery.sdss")
    from astropy.table import Table

    row = {"plate": [266], "mjd": [51602], "fiberID": [1], "run2d": ["26"], "ra": [1.0], "dec": [2.0], "z": [0.1]}
    asked = {}
    answer = lambda *a, **k: asked.update(k) or Table(row)
    monkeypatch.setattr(sdss.SDSS, "query_region", answer)
    monkeypatch.setattr(sdss.SDSS, "query_specobj", lambda **k: None)
    found = query_sdss(1.0, 2.0, dr=16)
    assert found["url"][0] == sdss_url(266, 51602, 1, dr=16) and asked["spectro"] and asked["data_release"] == 16
    assert len(query_sdss(plate=1, mjd=2, fiber=3)) == 0


def test_downloads_are_kept_and_checked(tmp_path, monkeypatch):
    whole = spec(tmp_path / "whole.fits").read_bytes()
    served = {sdss_url(1, 51602, 1): whole, sdss_url(1, 51602, 2): whole[:-500]}
    asked = []

    def download(url, target, *, bar):
        asked.append(url)
        target.write_bytes(served[url])

    monkeypatch.setattr("spectral_core.archives.sdss.download", download)
    for _ in range(2): [path] = download_sdss(sdss_url(1, 51602, 1), tmp_path / "new", progress=False)
    assert len(asked) == 1 and len(read_sdss(path)) == 1
    with pytest.raises(DataError, match="truncated"): download_sdss([sdss_url(1, 51602, 2)], tmp_path / "new")


def test_a_custom_survey_grid(tmp_path):
    from dataclasses import replace

    blue = replace(SDSS, name="blue", grid=Grid("log", 3.6, 1e-4, 500))
    spectra = read_sdss(spec(tmp_path / "a.fits"), survey=blue)
    assert spectra.flux.shape == (1, 500) and (~spectra.mask).sum() == 100


def test_wavelengths_that_make_no_sense(tmp_path):
    loglam = 3.6 + 1e-4 * np.arange(100)
    for wrong in (loglam[::-1].copy(), np.repeat(loglam[:50], 2), 10**loglam):
        with pytest.raises(SpectrumError): read_sdss(spec(tmp_path / "a.fits", wrong))


# real files


def folders_of(mirror):
    names = ["galaxy_spectra", "galaxy_bright", "qso_spectra", "sky_fibers", "star_spectra"]
    return [mirror / f"sdss_{name}" for name in names]


@pytest.fixture(scope="module")
def everything(mirror):
    "All SDSS files of the mirror in one read, with the tables that came with them."
    objects = {}
    for folder in folders_of(mirror):
        with open(folder / "objects.csv", encoding="utf-8") as file:
            objects |= {row["file"]: row for row in csv.DictReader(file)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_sdss(folders_of(mirror)), objects


@pytest.mark.real
def test_real_every_file_is_read_and_agrees_with_its_table(everything, mirror):
    spectra, objects = everything
    files = [p for folder in folders_of(mirror) for p in folder.iterdir() if ".fit" in p.name]
    assert len(spectra) == len(files) and set(objects) <= set(spectra.table["file"])
    for row, z in zip(spectra.table, spectra.z, strict=True):
        known = objects.get(str(row["file"]))
        if known is None: continue
        assert z == pytest.approx(float(known["z"]), abs=3e-6 * (1 + abs(z)))
        assert (row["plate"], row["mjd"], row["fiber"]) == tuple(int(known[k]) for k in ("plate", "mjd", "fiber"))
        assert row["class"] in (known["class"], "SKY")
    assert (spectra.table["class"] == "SKY").sum() == sum("sky" in p.parent.name for p in files)


@pytest.mark.real
def test_real_layouts_flags_and_lattice(everything):
    assert not everything[0].table["simulated"].any()
    spectra, _ = everything
    assert {"spec-lite", "spSpec", "table"} <= set(spectra.table["layout"])
    assert not (spectra.flag & (Flag.REBINNED | Flag.BAD_Z | Flag.BAD_IVAR)).any()  # one lattice, nothing interpolated
    boss = np.array([str(r).startswith("v5_1") or str(r) == "v5_7_0" for r in spectra.table["run2d"]])
    assert np.median(spectra.table["cropped"][boss]) > 600 and (spectra.table["cropped"][~boss] < 50).all()
    assert (spectra.table["cropped"][boss] > 0).all()
    galaxies = (spectra.table["class"] == "GALAXY") & (np.char.startswith(spectra.table["file"].astype(str), "spec-"))
    pipeline = spectra.table["sn_pipeline"][galaxies]
    assert np.median(np.abs(spectra.sn[galaxies] / pipeline - 1)) < 0.1
    assert (spectra.table["flux_halpha"][galaxies] != 0).mean() > 0.9


@pytest.mark.real
def test_real_repeats_are_one_object_and_never_split(everything):
    spectra, _ = everything
    place = {str(name): i for i, name in enumerate(spectra.table["file"])}
    pairs = [("51602-0166", "51630-0174"), ("51602-0526", "51630-0525")]
    pairs = [[place.get(f"spec-0266-{night}.fits") for night in pair] for pair in pairs]
    pairs = [pair for pair in pairs if None not in pair]  # a part of the collection may hold one night only
    assert pairs and all(spectra.object_id[a] == spectra.object_id[b] for a, b in pairs)
    ids, counts = np.unique(spectra.object_id, return_counts=True)
    assert (counts > 1).sum() > 40
    parts = spectra.split(seed=1)
    assert sum(map(len, parts)) == len(spectra)
    for a, b in ((0, 1), (0, 2), (1, 2)): assert not set(parts[a].object_id) & set(parts[b].object_id)


@pytest.mark.real
def test_real_files_survive_being_written_again(everything, tmp_path):
    spectra, _ = everything
    some = spectra[np.flatnonzero((spectra.table["layout"] == "spec-lite") & (spectra.table["cropped"] == 0))[::60]]
    again = read_sdss(write_sdss(some, tmp_path))
    order = np.argsort(again.id)[np.argsort(np.argsort(some.id))]
    assert_same(again[order], some)
    for name in ("class", "subclass", "zwarning", "run2d"): assert (again[order].table[name] == some.table[name]).all()


@pytest.mark.real
def test_real_cuts_anywhere_are_noticed(mirror, tmp_path):
    raw = (mirror / "sdss_galaxy_spectra" / "spec-0266-51602-0001.fits").read_bytes()
    packed = gzip.compress(raw, 1)
    for fraction in (0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.99, 0.999):
        for content in (raw[: int(fraction * len(raw))], packed[: int(fraction * len(packed))]):
            (tmp_path / "cut.fits").write_bytes(content)
            with pytest.raises(DataError, match="truncated|lacks"): read_sdss(tmp_path / "cut.fits")
