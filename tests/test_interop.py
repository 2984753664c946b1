"""Spectra out to tables, files and specutils and back: nothing may change, and what cannot be understood is refused."""

import numpy as np
import pytest
from astropy import units as u
from astropy.table import MaskedColumn, Table
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_core.core import DataError, Flag, SpectrumError, generator
from spectral_core.spectra.container import Spectra
from spectral_core.spectra.interop import FLUX_UNIT, from_specutils, from_table, to_specutils, to_table
from spectral_core.spectra.preprocessing import preprocess
from spectral_core.spectra.surveys import DESI, SDSS, Survey
from spectral_core.spectra.wavelength import Grid, vacuum_to_air
from spectral_core.tables import read_table, write_table

ARRAYS = ("flux", "ivar", "mask", "z", "id", "object_id", "flag")


def example(n: int = 4, survey: Survey = SDSS, key: int = 0) -> Spectra:
    "Smooth spectra with holes, large ids, a redshift that is not known, flags, and a catalogue with difficult names."
    rng = generator("interop", key)
    flux = (5 + np.sin(survey.grid.wave / 300) + rng.normal(0, 0.1, (n, survey.grid.n))).astype("f4")
    z = rng.uniform(0.01, 0.4, n)
    z[-1] = np.nan
    table = Table({"z": z + 1, "name": [f"o{i}" for i in range(n)], "rank": np.arange(n, dtype="i4")})
    return Spectra(flux, rng.uniform(50, 100, flux.shape), z, survey, mask=rng.random(flux.shape) < 0.05, id=2**60 + np.arange(n),
                   object_id=rng.integers(2**40, size=n), flag=np.full(n, Flag.CROPPED), table=table)


def assert_same(a: Spectra, b: Spectra):
    assert a.survey == b.survey and a.table.colnames == b.table.colnames
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
        assert getattr(a, name).dtype == getattr(b, name).dtype
    for name in a.table.colnames:
        np.testing.assert_array_equal(a.table[name], b.table[name], err_msg=name)
        assert a.table[name].dtype == b.table[name].dtype


# ------------------------------------------------------------------ tables


@pytest.mark.parametrize("ready", [False, True])
@pytest.mark.parametrize("suffix", [None, ".fits", ".parquet", ".ecsv"])
def test_a_table_brings_everything_back_bit_for_bit(tmp_path, suffix, ready):
    spectra = preprocess(example()) if ready else example()
    table = to_table(spectra)
    if suffix: table = read_table(write_table(table, tmp_path / f"t{suffix}"))
    assert (table["flux"].unit or u.dimensionless_unscaled) == (u.dimensionless_unscaled if ready else FLUX_UNIT)
    assert_same(from_table(table), spectra)


def test_a_survey_of_ones_own_comes_back_from_the_table():
    own = Survey("mine", Grid("linear", 4000.0, 2.0, 1500), resolution=((4000.0, 7000.0), (60.0, 60.0)), z_max=0.1)
    assert_same(from_table(to_table(example(survey=own))), example(survey=own))


@pytest.mark.parametrize("unit, size", [("erg / (s cm2 Angstrom)", 1e-17), ("W / (m2 um)", 1e-16), (str(FLUX_UNIT), 1)])
@pytest.mark.parametrize("noise", ["ivar", "error"])
def test_other_units_and_errors_say_the_same(unit, size, noise):
    spectra = example()
    table = Table({"flux": spectra.flux * float(size), "z": spectra.z})
    error = size / np.sqrt(spectra.weight.clip(1e-20, dtype=float))
    table[noise] = spectra.ivar / float(size) ** 2 if noise == "ivar" else error
    table["flux"].unit, table[noise].unit = unit, u.Unit(unit) ** -2 if noise == "ivar" else unit
    back = from_table(table, survey="sdss")
    np.testing.assert_allclose(back.flux, spectra.flux, rtol=3e-6)
    np.testing.assert_allclose(np.where(spectra.mask, 0, back.ivar), np.where(spectra.mask, 0, spectra.ivar), rtol=1e-5)


def test_masked_cells_and_errors_that_are_none_are_bad_pixels():
    flux, error = np.ones((1, 3921)), np.full((1, 3921), 0.1)
    error[0, :3] = 0, np.nan, -1
    table = Table({"flux": MaskedColumn(flux, mask=np.arange(3921)[None] == 10), "error": error, "z": [0.1]})
    assert np.flatnonzero(from_table(table, "sdss").mask[0]).tolist() == [0, 1, 2, 10]


@pytest.mark.parametrize("columns, survey, message", [
    (("flux", "ivar"), "sdss", "no column z"), (("ivar", "z"), "sdss", "no column flux"),
    (("flux", "z"), "sdss", "no column error"),
    (("flux", "ivar", "z"), None, "pass survey="), (("flux", "ivar", "z"), "desi", "shape")])
def test_what_a_table_lacks_is_said(columns, survey, message):
    table = to_table(example())[list(columns)]
    table.meta.clear()
    with pytest.raises(SpectrumError, match=message): from_table(table, survey)


def test_a_temperature_is_no_flux():
    table = to_table(example())
    table["flux"].unit = "K"
    with pytest.raises(SpectrumError, match="column flux: K is no flux density"): from_table(table)


# ------------------------------------------------------------------ tables of any kind


CELLS = {"i": st.integers(-2**62, 2**62), "f": st.floats(allow_infinity=False), "t": st.text("abc xyz", max_size=5),
         "b": st.booleans()}


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.tuples(*CELLS.values()), min_size=1, max_size=5), st.sampled_from([".fits", ".parquet", ".ecsv"]))
def test_every_table_comes_back_as_it_was(tmp_path_factory, rows, suffix):
    table = Table({name: np.array(column) for name, column in zip(CELLS, zip(*rows))})
    table["t"] = [text.strip() for text in table["t"].tolist()]  # FITS pads with blanks, astropy's ECSV drops leading ones
    table["latents"], table["covariance"] = np.random.default_rng(0).normal(size=(len(rows), 6)), np.ones((len(rows), 2, 3), "f4")
    table["f"].unit, table["i"].description = "km / s", "a number"
    table.meta = {"model": "sdss", "inputs": ["a", "b"], "a_long_name": 3.5}
    back = read_table(write_table(table, tmp_path_factory.mktemp("t") / f"t{suffix}"))
    assert back.colnames == table.colnames and dict(back.meta) == table.meta
    for name in table.colnames:
        np.testing.assert_array_equal(back[name], table[name], err_msg=name)
        assert (back[name].unit, back[name].description or None) == (table[name].unit, table[name].description or None)
        assert back[name].dtype.isnative and not hasattr(back[name], "mask")


def test_unreadable_tables_are_a_data_error(tmp_path):
    with pytest.raises(DataError, match="there is no table"): read_table(tmp_path / "no.fits")
    for suffix in (".fits", ".parquet", ".ecsv"):
        (tmp_path / f"t{suffix}").write_bytes(b"no table at all")
        with pytest.raises(DataError, match="not readable"): read_table(tmp_path / f"t{suffix}")


# ------------------------------------------------------------------ specutils


@pytest.fixture
def specutils():
    return pytest.importorskip("specutils")


@pytest.mark.parametrize("survey", [SDSS, DESI], ids=lambda s: s.name)
@pytest.mark.parametrize("ready", [False, True])
def test_specutils_brings_everything_back_bit_for_bit(specutils, survey, ready):
    spectra = preprocess(example(survey=survey)) if ready else example(survey=survey)
    listed = to_specutils(spectra)
    assert isinstance(listed, specutils.SpectrumList) and len(listed) == len(spectra)
    assert_same(from_specutils(listed, survey=survey), spectra)


def test_a_spectrum_means_in_specutils_what_it_means_here(specutils):
    "Their S/N and line flux are ours: mask, uncertainty and units are where specutils looks for them."
    from specutils import SpectralRegion
    from specutils.analysis import line_flux, snr

    spectra = example(1)
    [one] = to_specutils(spectra.replace(z=[0.1]))
    good = ~spectra.mask[0]
    assert np.isclose(float(snr(one)), np.mean((spectra.flux * np.sqrt(spectra.ivar))[0, good]), rtol=1e-5)
    assert np.isclose(one.redshift.value, 0.1) and one.spectral_axis.unit == u.AA
    inside = good & (spectra.wave > 5000) & (spectra.wave < 5010)
    found = line_flux(one, SpectralRegion(5000 * u.AA, 5010 * u.AA)).to_value("1e-17 erg / (s cm2)")
    assert np.isclose(found, (spectra.flux[0] * np.gradient(spectra.wave))[inside].sum(), rtol=0.25)


@pytest.mark.parametrize("kind", ["StdDevUncertainty", "VarianceUncertainty", "InverseVariance"])
@pytest.mark.parametrize("axis", ["nm", "Hz", "eV"])
def test_other_words_for_the_same_spectrum(specutils, kind, axis):
    import astropy.nddata

    spectra = example(2).replace(z=[0.1, 0.2], mask=None)
    power = {"StdDevUncertainty": -0.5, "VarianceUncertainty": -1, "InverseVariance": 1}[kind]
    uncertainty = getattr(astropy.nddata, kind)(spectra.ivar[0].astype(float) ** power)
    wave = (spectra.wave * u.AA).to(axis, equivalencies=u.spectral())
    other = specutils.Spectrum(flux=spectra.flux[0] * FLUX_UNIT, spectral_axis=wave, uncertainty=uncertainty, redshift=0.1)
    back = from_specutils(other)
    np.testing.assert_allclose(back.flux[0], spectra.flux[0], rtol=1e-6)
    np.testing.assert_allclose(back.ivar[0], spectra.ivar[0], rtol=1e-5)
    assert np.isclose(back.z[0], 0.1, atol=1e-12) and back.flag[0] == 0


def test_janskys_and_air(specutils):
    from astropy.nddata import InverseVariance

    spectra = example(2).replace(z=[0.1, 0.2], mask=None)
    axis = u.spectral_density(spectra.wave * u.AA)
    flux = (spectra.flux[0].astype(float) * FLUX_UNIT).to(u.mJy, axis)
    ivar = ((spectra.ivar[0].astype(float) ** -0.5 * FLUX_UNIT).to_value(u.mJy, axis)) ** -2
    noise = InverseVariance(ivar, unit=u.mJy**-2)
    build = lambda wave: specutils.Spectrum(flux=flux, spectral_axis=wave * u.AA, uncertainty=noise)
    back = from_specutils(build(spectra.wave), z=0.1)
    np.testing.assert_allclose(back.flux[0], spectra.flux[0], rtol=1e-5)
    np.testing.assert_allclose(back.ivar[0], spectra.ivar[0], rtol=1e-5)
    in_air = from_specutils(build(vacuum_to_air(spectra.wave)), z=0.1, air=True)
    np.testing.assert_allclose(in_air.flux[0], spectra.flux[0], rtol=1e-5)
    assert in_air.flag[0] == 0


def test_one_spectrum_of_many_rows(specutils):
    from astropy.nddata import InverseVariance

    spectra = example(3)
    many = specutils.Spectrum(flux=spectra.flux * FLUX_UNIT, spectral_axis=spectra.wave * u.AA, mask=spectra.mask,
                              uncertainty=InverseVariance(spectra.ivar), meta={"id": 5})
    back = from_specutils(many, z=[0.1, 0.2, 0.3])
    np.testing.assert_array_equal(back.flux, spectra.flux)
    assert back.z.tolist() == [0.1, 0.2, 0.3] and back.id.tolist() == [0, 1, 2]


def test_other_grids_conserve_flux_and_say_so(specutils):
    wave = np.arange(3000.0, 10500.0, 1.7)
    flux = 3 + np.exp(-0.5 * ((wave - 6000) / 20) ** 2)
    other = specutils.Spectrum(flux=flux * FLUX_UNIT, spectral_axis=wave * u.AA, redshift=0.1,
                               uncertainty=to_specutils(example(1))[0].uncertainty.__class__(np.ones(len(wave))))
    back = from_specutils([other, other], survey="desi")
    assert (back.flag == Flag.REBINNED).all() and not back.mask.any()
    middle = (back.wave > 5800) & (back.wave < 6200)
    assert np.isclose((back.flux[0, middle] - 3).sum() * 0.8, 20 * np.sqrt(2 * np.pi), rtol=1e-3)


def test_part_of_the_lattice_is_placed_and_what_is_outside_is_left_out(specutils):
    spectra = example(2).replace(z=[0.1, 0.2])
    grid = Grid("log", SDSS.grid.first - 10 * SDSS.grid.step, SDSS.grid.step, 1000)
    wide = example(2, Survey("wide", grid, resolution=SDSS.resolution)).replace(z=[0.1, 0.2], flag=np.zeros(2, "i4"))
    back = from_specutils(to_specutils(wide))
    np.testing.assert_array_equal(back.flux[:, :990], wide.flux[:, 10:])
    assert back.mask[:, 990:].all() and (back.flag & Flag.CROPPED).all() and not (back.flag & Flag.REBINNED).any()
    part = [one[100:3000] for one in to_specutils(spectra)]
    np.testing.assert_array_equal(from_specutils(part).weight[:, 100:3000], spectra.weight[:, 100:3000])


def test_what_specutils_objects_lack_is_said(specutils):
    [one] = to_specutils(example(2)[:1])
    usual = {"flux": one.flux, "spectral_axis": one.spectral_axis.value * u.AA, "uncertainty": one.uncertainty}
    build = lambda **changes: specutils.Spectrum(**usual | changes)
    with pytest.raises(SpectrumError, match="spectrum 1 states no redshift; pass z="): from_specutils([one, build()])
    with pytest.raises(SpectrumError, match="spectrum 0 has no uncertainty"): from_specutils(build(uncertainty=None))
    hot = build(flux=one.flux.value * u.K, uncertainty=type(one.uncertainty)(one.uncertainty.array))
    with pytest.raises(SpectrumError, match="spectrum 0: K is no flux"): from_specutils(hot, z=0)
    with pytest.raises(SpectrumError, match="no spectra"): from_specutils([])
    assert from_specutils(build(), z=0.0).z[0] == 0
