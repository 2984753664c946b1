"""Bad input, one kind after the other: a clear error or a flag, and nothing lost silently (the fault matrix, rows 1 to 16)."""

import gzip
import importlib
import warnings

import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.table import Table
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_core.archives.fits import read_fits, write_fits
from spectral_core.archives.sdss import read_sdss, write_sdss
from spectral_core.core import DataError, Flag, SpectralError, SpectrumError
from spectral_core.models.autoencoder import RedshiftAutoencoder
from spectral_core.models.similarity import fidelity_loss
from spectral_core.predict import chi2, encode, reconstruct
from spectral_core.spectra.container import Spectra, concatenate, group_positions
from spectral_core.spectra.lines import bpt_class, whan_class
from spectral_core.spectra.preprocessing import preprocess, select
from spectral_core.spectra.surveys import DESI, SDSS
from spectral_core.spectra.wavelength import Grid, check_wave, redshift_wave

M = SDSS.grid.n
ARRAYS = ("flux", "ivar", "mask", "z", "id", "object_id", "flag")
FRACTIONS = (0.01, 0.1, 0.25, 0.4, 0.55, 0.7, 0.8, 0.9, 0.95, 0.99)


def sample(n=4, seed=0, survey=SDSS, **changes):
    "n sound spectra."
    rng, m = np.random.default_rng(seed), survey.grid.n
    values = {"flux": rng.normal(20, 2, (n, m)), "ivar": rng.uniform(0.5, 2, (n, m)), "z": rng.uniform(0.01, 0.4, n)}
    return Spectra(**values | changes, survey=survey)


@pytest.fixture
def file(tmp_path):
    "One sound spec-lite file."
    return write_sdss(sample(1, id=np.array([266516020001])), tmp_path)[0]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return RedshiftAutoencoder("sdss", n_latent=3).eval()


def assert_same(a, b, rows=slice(None)):
    for name in ARRAYS: np.testing.assert_array_equal(getattr(a, name), getattr(b, name)[rows], err_msg=name)


# files


@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize("packed", [False, True])
def test_fault_01_truncated_file(file, fraction, packed):
    raw = gzip.compress(file.read_bytes()) if packed else file.read_bytes()
    file.write_bytes(raw[: int(fraction * len(raw))])
    with pytest.raises(DataError, match=r"spec-0266.*(truncated|not a FITS|empty)") as caught: read_sdss(file)
    assert str(file.stat().st_size) in str(caught.value) or "begins with" in str(caught.value)


def test_fault_01_truncated_exactly_between_two_units(file):
    raw, at = file.read_bytes(), []
    with fits.open(file) as hdus: at = [h.fileinfo()["hdrLoc"] for h in hdus][1:]
    for size in at:
        file.write_bytes(raw[:size])
        with pytest.raises(DataError, match="lacks"): read_sdss(file)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.floats(0, 1, exclude_max=True))
def test_fault_01_truncated_anywhere_at_all(tmp_path_factory, fraction):
    folder = tmp_path_factory.mktemp("cut")
    path = write_sdss(sample(1), folder)[0]
    raw = path.read_bytes()
    path.write_bytes(raw[: int(fraction * len(raw))])
    with pytest.raises(DataError): read_sdss(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "looks like HTML"),
        (b"\n <HTML><head>Not found</head>", "looks like HTML"),
        (b'<?xml version="1.0"?><Error>NoSuchKey</Error>', "looks like HTML"),
        (b"PK\x03\x04" + bytes(3000), "not a FITS file"),
        (gzip.compress(b"<html>503</html>", mtime=0), "looks like HTML"),
        (gzip.compress(b"", mtime=0), "is empty"),
    ],
)
def test_fault_02_not_fits(tmp_path, content, words):
    (tmp_path / "spec-0266-51602-0001.fits").write_bytes(content)
    with pytest.raises(DataError, match=words): read_sdss(tmp_path / "spec-0266-51602-0001.fits")


def parts_of(file):
    "Header cards and tables of a spec file, to be written again with something left out."
    units = read_fits(file)
    return {"PLATEID": 266}, {h.name: {name.upper(): h.column(name) for name in h.names} for h in units[1:]}


@pytest.mark.parametrize("gone", ["COADD", "SPECOBJ", "SPZLINE"])
def test_fault_03_missing_unit(file, gone):
    header, tables = parts_of(file)
    del tables[gone]
    write_fits(file, header, tables)
    with pytest.raises(DataError, match=r"HDU \d \(.*\) lacks .*; found .*; wanted"): read_sdss(file)


def test_fault_03_missing_column(file):
    header, tables = parts_of(file)
    wanted = {"COADD": ["FLUX", "LOGLAM", "IVAR", "AND_MASK"], "SPZLINE": ["LINENAME", "LINEAREA"]}
    wanted |= {"SPECOBJ": ["PLATE", "MJD", "FIBERID", "PLUG_RA", "PLUG_DEC", "CLASS", "Z", "Z_ERR", "ZWARNING"]}
    for unit, names in wanted.items():
        for gone in names:
            less = {name: value for name, value in tables[unit].items() if name != gone}
            write_fits(file, header, tables | {unit: less})
            with pytest.raises(DataError, match=f"lacks .*{gone.lower()}"): read_sdss(file)
    write_fits(file, header, tables)
    assert len(read_sdss(file)) == 1


def test_fault_03_a_fits_file_of_something_else(tmp_path):
    fits.PrimaryHDU(np.zeros((4, 4))).writeto(tmp_path / "image.fits")
    fits.BinTableHDU.from_columns([fits.Column("mass", "D", array=[1.0])]).writeto(tmp_path / "catalogue.fits")
    columns = [fits.Column(name, "D", array=[1.0]) for name in ("Wave", "flux", "snr")]
    fits.BinTableHDU.from_columns(columns).writeto(tmp_path / "no_error.fits")
    fits.PrimaryHDU().writeto(tmp_path / "nothing.fits")
    found = {"image": "an image of 4 × 4 pixels", "catalogue": "no wave, flux, ivar or error in a table of mass",
             "no_error": "no ivar or error in a table of wave, flux, snr", "nothing": "no table"}
    for name, words in found.items():
        with pytest.raises(DataError, match=f"no spectrum found: {words}; wanted a table"): read_sdss(tmp_path / f"{name}.fits")


@pytest.mark.parametrize("step", ["CDELT1", "CD1_1"])
def test_fault_03_a_spectrum_written_as_an_image(tmp_path, step):
    header, path = fits.Header({"CRVAL1": 4000.0, step: 2.0}), tmp_path / "iraf.fits"
    for shape in ((9,), (4, 1, 9)):
        fits.PrimaryHDU(np.zeros(shape), header).writeto(path, overwrite=True)
        words = f"iraf.fits: an image with CRVAL1 and {step}: write a table .*own_spectra.md"
        with pytest.raises(DataError, match=words): read_sdss(path)
    header["CTYPE1"] = "RA---TAN"
    fits.PrimaryHDU(np.zeros((9, 9)), header).writeto(tmp_path / "sky.fits")
    with pytest.raises(DataError, match="an image of 9 × 9 pixels"): read_sdss(tmp_path / "sky.fits")


@pytest.mark.parametrize("packed", [False, True])
def test_fault_04_bit_rot(file, packed):
    raw = gzip.compress(file.read_bytes()) if packed else file.read_bytes()
    for at in np.random.default_rng(4).integers(10 if packed else 0, len(raw), 20):
        flipped = bytearray(raw)
        flipped[at] ^= 1 << int(at) % 8
        file.write_bytes(flipped)
        with pytest.raises(DataError): read_sdss(file)
    file.write_bytes(raw)
    assert len(read_sdss(file)) == 1


# arrays


def foreign(kind, spectra):
    "The same spectra in another dress."
    arrays = {"flux": spectra.flux, "ivar": spectra.ivar, "mask": spectra.mask, "z": spectra.z}
    if kind == "big-endian": return {k: v.astype(v.dtype.newbyteorder(">")) for k, v in arrays.items()}
    if kind == "float64": return arrays | {k: arrays[k].astype("f8") for k in ("flux", "ivar")}
    if kind == "mask bits": return arrays | {"mask": np.where(spectra.mask, 1 << 23, 0).astype(">i4")}
    if kind == "lists": return {k: v.tolist() for k, v in arrays.items()}
    if kind == "fortran": return {k: np.asfortranarray(v) for k, v in arrays.items()}
    masked = np.ma.MaskedArray(np.where(spectra.mask, 99, spectra.flux), spectra.mask)
    return {"flux": masked, "ivar": spectra.ivar, "z": np.ma.MaskedArray(spectra.z)}


@settings(derandomize=True, max_examples=20, deadline=None)
@given(st.sampled_from(["big-endian", "float64", "mask bits", "lists", "fortran", "masked array"]), st.integers(0, 999))
def test_fault_05_foreign_types_give_the_same_spectra(kind, seed):
    native = sample(3, seed, mask=np.random.default_rng(seed).random((3, M)) < 0.2)
    other = Spectra(**foreign(kind, native), survey="sdss")
    assert_same(other, native)
    for name in ARRAYS:
        assert getattr(other, name).dtype == getattr(native, name).dtype
        torch.from_numpy(getattr(other, name))  # refuses what is not native


BAD = st.sampled_from([np.nan, np.inf, -np.inf])


@settings(derandomize=True, max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, M - 1), BAD), min_size=1, max_size=60))
def test_fault_06_flux_not_finite(pixels):
    good = sample(2)
    flux, deleted = good.flux.copy(), np.zeros((2, M), bool)
    for row, pixel, value in pixels: flux[row, pixel], deleted[row, pixel] = value, True
    spectra = sample(2, flux=flux)
    assert np.isfinite(spectra.flux).all() and (spectra.flux[deleted] == 0).all()
    np.testing.assert_array_equal(spectra.mask, deleted)
    assert_same(spectra, good.replace(mask=deleted))  # the same as these pixels deleted
    batch = spectra.to("cpu")
    guess = torch.full_like(batch.flux, 15.0, requires_grad=True)
    loss = fidelity_loss(batch.flux, guess, batch.weight)
    loss.backward()
    expected = (good.ivar.astype(float) * (good.flux - 15.0) ** 2)[~deleted].sum() / (2 * deleted.size)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert torch.isfinite(guess.grad).all() and (guess.grad.numpy()[deleted] == 0).all()


@settings(derandomize=True, max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, M - 1), st.sampled_from([-1.0, -np.inf, np.inf, np.nan, 0.0])), min_size=1, max_size=60))
def test_fault_07_ivar_negative_or_not_finite(pixels):
    ivar, bad = sample(2).ivar.copy(), np.zeros((2, M), bool)
    for pixel, value in pixels: ivar[0, pixel], bad[0, pixel] = value, True
    spectra = sample(2, ivar=ivar)
    np.testing.assert_array_equal(spectra.mask, bad)
    assert np.isfinite(spectra.ivar).all() and (spectra.ivar >= 0).all() and (spectra.ivar[bad] == 0).all()
    assert not (spectra.flag & Flag.BAD_IVAR).any()


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_fault_07_no_usable_ivar_at_all(value):
    ivar = sample(2).ivar.copy()
    ivar[1] = value
    spectra = sample(2, ivar=ivar)
    assert spectra.flag.tolist() == [0, Flag.BAD_IVAR | Flag.NODATA | Flag.LITTLE_COVERAGE]
    counts = dict(zip(spectra.summary()["flag"], spectra.summary()["n"], strict=True))
    assert counts["total"] == 2 and counts["BAD_IVAR"] == counts["NODATA"] == 1


def test_fault_08_an_empty_spectrum_changes_no_other(model):
    spectra = preprocess(sample(5))
    ivar = sample(5).ivar.copy()
    ivar[2] = 0
    holed = preprocess(sample(5, ivar=ivar))
    others = [0, 1, 3, 4]
    assert holed.flag[2] & Flag.NODATA and not holed.good[2] and holed.good[others].all()
    whole, latents = encode(model, spectra), encode(model, holed)
    assert np.isnan(latents[2]).all()
    for rows in (encode(model, holed[others]), whole[others]): np.testing.assert_allclose(latents[others], rows, atol=1e-5)
    batch = holed.to("cpu")
    loss = fidelity_loss(batch.flux, torch.zeros_like(batch.flux), batch.weight)
    assert torch.isfinite(loss) and (batch.weight[2] == 0).all()


@pytest.mark.parametrize("case", ["beyond the red end", "all masked", "too few pixels"])
def test_fault_09_no_pixel_in_the_normalisation_window(case):
    z = np.array([0.1, 0.9 if case == "beyond the red end" else 0.1])
    mask, wave = np.zeros((2, M), bool), SDSS.grid.wave
    window = np.flatnonzero((wave > 5300 * 1.1) & (wave < 5850 * 1.1))
    if case != "beyond the red end": mask[1, window[5:] if case == "too few pixels" else window] = True
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no "mean of empty slice"
        spectra = preprocess(sample(2, z=z, mask=mask))
    assert spectra.flag[1] & Flag.NO_NORM and not spectra.good[1] and spectra.good[0]
    assert np.isfinite(spectra.flux).all() and np.isfinite(spectra.ivar).all() and np.isnan(spectra.table["norm"][1])


@pytest.mark.parametrize("level", [0.0, -20.0])
def test_fault_10_norm_not_positive(level):
    flux = sample(2).flux.copy()
    flux[1] += level - 20
    if level == 0: flux[1] = 0
    spectra = preprocess(sample(2, flux=flux))
    assert spectra.flag[1] & Flag.BAD_NORM and spectra.flag[0] == 0 and np.isfinite(spectra.flux).all()
    keep = ~spectra.mask[1]
    np.testing.assert_array_equal(spectra.flux[1, keep], flux[1, keep])  # neither divided nor flipped in sign


@pytest.mark.parametrize("z", [np.nan, np.inf, -np.inf, -0.02, -1.0, 0.51, 3.0])
def test_fault_11_redshift_missing_or_out_of_range(z, model):
    spectra = preprocess(sample(2, z=np.array([0.2, z])))
    assert spectra.flag[1] & Flag.BAD_Z and spectra.good.tolist() == [True, False]
    assert np.isnan(encode(model, spectra)[1]).all() and np.isfinite(encode(model, spectra)[0]).all()
    assert len(spectra) == 2 and np.isfinite(spectra.to("cpu").z.numpy()).all()


@pytest.mark.parametrize("z", [np.nan, np.inf, -1.0, -2.0, [0.1, np.nan]])
def test_fault_11_direct_call_raises(z, model):
    with pytest.raises(SpectrumError, match="finite and > -1"): redshift_wave(SDSS.grid.wave, np.array(z))
    z = np.atleast_1d(z)
    for survey in ("sdss", "desi"):  # the same lattice, and another
        with pytest.raises(SpectrumError, match="finite and > -1"): model.reconstruct(torch.zeros(len(z), 3), z, survey)


WAVE = np.linspace(4000.0, 4100.0, 101)


@pytest.mark.parametrize(
    ("wave", "words"),
    [
        (WAVE[::-1], "must increase"),
        (np.repeat(WAVE, 2), "must increase"),
        (np.where(WAVE == 4050, np.nan, WAVE), "not finite"),
        (WAVE / 10, "nm"),
        (WAVE / 1e4, "nm, µm"),
        (np.log10(WAVE), "log10"),
        (WAVE[None], "one row"),
        (WAVE[:1], "at least two"),
    ],
)
def test_fault_12_wavelengths_that_make_no_sense(wave, words):
    for function in (check_wave, Grid.from_wave):
        with pytest.raises(SpectrumError, match=words): function(wave)


def test_fault_12_irregular_grid_wrong_length_and_units_in_a_file(tmp_path):
    irregular = np.sort(4000 + 100 * np.random.default_rng(0).random(50))
    with pytest.raises(SpectrumError, match="neither a linear nor a log grid"): Grid.from_wave(irregular)
    with pytest.raises(SpectrumError, match=r"flux has shape \(2, 3900\)"): sample(2, flux=np.ones((2, 3900)))
    with pytest.raises(SpectrumError, match="ivar has shape"): sample(2, ivar=np.ones((3, M)))
    odd = ((WAVE / 10, "nm"), (np.repeat(WAVE, 2)[:101], "must increase"), (np.log10(WAVE), "log10"), (-WAVE, "not a wavelength"))
    for wave, words in odd:
        columns = [fits.Column(name, "D", array=array) for name, array in (("wave", wave), ("flux", WAVE), ("err", WAVE))]
        fits.BinTableHDU.from_columns(columns).writeto(tmp_path / "odd.fits", overwrite=True)
        with pytest.raises(SpectrumError, match=f"odd.fits.*{words}"): read_sdss(tmp_path / "odd.fits")


def test_fault_13_model_and_data_on_different_grids(model):
    both = r"3921 pixels, 3784.4 to 9332.5.*7781 pixels, 3600.0 to 9824.0"
    for function in (encode, reconstruct, chi2):
        with pytest.raises(SpectrumError, match=both): function(model, sample(2, survey=DESI))
    with pytest.raises(SpectrumError, match="cannot share a grid"): concatenate([sample(1), sample(1, survey=DESI)])


def test_fault_14_duplicate_ids(file, tmp_path):
    with pytest.raises(DataError, match=r"7 ids stand more than once: \[0, 1, 2, 3, 4\]"): sample(14, id=np.arange(14) % 7)
    with pytest.raises(DataError, match="more than once"): concatenate([sample(3), sample(3, seed=1)])
    kept = concatenate([sample(3), sample(5, seed=1)], dedupe="first")
    assert kept.id.tolist() == [0, 1, 2, 3, 4]
    assert_same(kept[:3], sample(3))
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "copy.fits").write_bytes(file.read_bytes())
    with pytest.raises(DataError, match=r"266516020001 \(again/copy.fits, spec-0266-51602-0001.fits\)"): read_sdss(tmp_path)
    spectra = read_sdss(tmp_path, dedupe="first")
    assert len(spectra) == 1 and spectra.table.meta["repeated"] == [("spec-0266-51602-0001.fits", "again/copy.fits")]


@settings(derandomize=True, max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 2**62), min_size=2, max_size=40), st.integers(0, 9), st.randoms(use_true_random=False))
def test_fault_14_one_object_is_never_in_two_splits(objects, seed, random):
    objects = np.array(objects + objects, dtype="i8")
    ones = np.ones((len(objects), M), "f4")
    tiny = Spectra(ones, ones, np.full(len(objects), 0.1), "sdss", object_id=objects)
    parts = [set(p.object_id.tolist()) for p in tiny.split(seed=seed)]
    assert sum(map(len, parts)) == len(set(objects.tolist()))
    order = np.array(random.sample(range(len(objects)), len(objects)))
    assert parts == [set(p.object_id.tolist()) for p in tiny[order].split(seed=seed)]  # nor does order decide


@pytest.mark.parametrize("n", [0, 1, 2])
def test_fault_15_no_or_few_spectra(n, model, tmp_path):
    spectra = sample(n)
    assert len(spectra) == n and spectra.sn.shape == (n,) and len(spectra[:0]) == 0
    assert sum(len(p) for p in spectra.split()) == n
    assert encode(model, spectra).shape == (n, 3) and reconstruct(model, spectra).shape == (n, M)
    assert chi2(model, spectra)["chi2_all"].shape == (n,)
    assert len(concatenate([spectra, spectra[:0]])) == n
    assert group_positions(np.arange(n), np.arange(n)).shape == (n,)
    assert len(write_sdss(spectra, tmp_path)) == n
    assert bpt_class(*np.ones((4, n))).shape == whan_class(*np.ones((2, n))).shape == (n,)
    assert len(spectra.to("cpu").flux) == n and spectra.summary()["n"][0] == n


@pytest.mark.parametrize("n", [0, 1, 2])
def test_fault_15_preprocess_of_no_or_few_spectra(n):
    spectra = preprocess(sample(n))
    assert len(spectra) == n and spectra.table["norm"].shape == (n,)


def test_fault_15_nothing_to_fit_or_join():
    from spectral_core.train import fit

    tiny = RedshiftAutoencoder("sdss", n_latent=2)
    with pytest.raises(DataError): fit(tiny, sample(0), sample(0), n_epoch=1, progress=False)
    with pytest.raises(DataError, match="nothing to concatenate"): concatenate([])


def test_fault_15_fewer_than_a_batch():
    from spectral_core.train import fit

    data = preprocess(sample(3))
    history = fit(RedshiftAutoencoder("sdss", n_latent=2), data, data, n_epoch=1, batch_size=64, progress=False)
    assert np.isfinite(history.best)


def test_fault_16_cuts_report_what_they_remove():
    rows, counts = select(6, {"bright": np.array([1, 1, 1, 1, 0, 0], bool), "near": np.array([1, 0, 1, 1, 1, 0], bool)})
    assert rows.tolist() == [0, 2, 3]
    assert [tuple(r) for r in counts] == [("bright", 6, 2, 4), ("near", 4, 1, 3)]
    with pytest.raises(DataError, match="cut 'bright' has shape"): select(5, {"bright": np.ones(6, bool)})


def test_fault_16_rows_without_a_measurement_are_unknown_not_dropped():
    absent = np.array([1.0, np.nan, 1.0])
    assert bpt_class(absent, absent, absent, 0.3 * absent)[1] == whan_class(absent, absent)[1] == "unknown"
    assert "unknown" not in whan_class(absent, absent)[[0, 2]]


def test_fault_16_redshifts_by_name_that_match_no_file_change_nothing(file):
    assert read_sdss(file, z={"elsewhere.fits": 0.4}).z[0] == read_sdss(file).z[0]


def test_fault_16_a_table_of_another_length_is_refused():
    with pytest.raises(SpectrumError, match="3 rows for 4 spectra"): sample(4, table=Table({"mass": [1.0, 2, 3]}))


# ------------------------------------------------------------------ names


@pytest.mark.parametrize("module, call", [
    ("archives.targets", lambda m: m.target_bit(Table({"DESI_TARGET": [1]}), "¤¤")),
    ("models.spender", lambda m: m.load_spender("¤¤")),
    ("pretrained", lambda m: m.load("¤¤")),
    ("shipping", lambda m: m.ship("¤¤")),
    ("simulate.filters", lambda m: m.load_filters("¤¤")),
    ("spectra.conditions", lambda m: m.ConditionedSpectra(sample(), ["¤¤"])),
    ("spectra.lines", lambda m: m.line_wave("¤¤")),
    ("spectra.surveys", lambda m: m.get_survey("¤¤"))])
def test_a_name_like_no_other_is_not_answered_with_none(module, call):
    with pytest.raises(SpectralError, match="¤¤") as error: call(importlib.import_module(f"spectral_core.{module}"))
    assert "None" not in str(error.value)
