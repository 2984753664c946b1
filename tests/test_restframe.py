"""Spectra in the rest frame: means, overlaps, errors, the published sample and its counts."""

from dataclasses import replace

import numpy as np
import pytest
from astropy.cosmology import Planck18
from astropy.table import MaskedColumn, Table
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binned_statistic

from spectral_core.archives.sdss import read_sdss
from spectral_core.core import ConfigError, DataError, Flag, SpectrumError, generator
from spectral_core.spectra.container import Spectra
from spectral_core.spectra.preprocessing import preprocess
from spectral_core.spectra.restframe import (
    PAT2022,
    bin_mean,
    cap_sn,
    luminosity_distance,
    rest_sample,
    rest_survey,
    to_luminosity,
    to_rest,
    whole_sn,
)
from spectral_core.spectra.surveys import DESI, SDSS
from spectral_core.spectra.wavelength import Grid

rng = generator("test_restframe")  # anew for each test, see conftest
FINE = rest_survey("fine", 3800.0, 8400.0, 4000)


def noisy(z, survey=SDSS, level=5.0, sigma=0.5, holes=0.05, **columns) -> Spectra:
    "Flat spectra with noise, honest errors and holes."
    z = np.atleast_1d(np.asarray(z, float))
    shape = len(z), survey.grid.n
    flux = level + sigma * rng.standard_normal(shape)
    return Spectra(flux, np.full(shape, sigma**-2.0), z, survey, mask=rng.random(shape) < holes, table=Table(columns))


# ---- binning


def test_the_published_grid_has_1001_log_edges():
    np.testing.assert_allclose(PAT2022.grid.edges, np.logspace(np.log10(3388), np.log10(8318), 1001), rtol=1e-12)
    assert FINE.grid.n == 4000 and FINE.sigma_kms(5000) == pytest.approx(np.hypot(60, 59.5 / np.sqrt(12)), abs=0.1)
    for low, high, n in ((8318, 3388, 1000), (0, 8318, 1000), (3388, 8318, 0)):
        with pytest.raises(ConfigError, match="rest grid"): rest_survey("wrong", low, high, n)


@pytest.mark.parametrize("survey", [SDSS, DESI], ids=lambda s: s.name)
@pytest.mark.parametrize("rest", [PAT2022, FINE, rest_survey("wide", 2000, 12000, 37)], ids=lambda s: s.name)
def test_the_mean_is_scipys_binned_statistic(survey, rest):
    z = rng.uniform(0, 0.4, 4)
    flux, ivar = rng.normal(3, 2, (4, survey.grid.n)), rng.uniform(0.1, 9, (4, survey.grid.n))
    ivar[rng.random(ivar.shape) < 0.3] = 0
    mean, weight = bin_mean(survey.grid, flux, ivar, rest.grid, z)
    for i in range(4):
        ok = ivar[i] > 0
        wave = survey.grid.wave[ok] / (1 + z[i])
        count, expected = (binned_statistic(wave, flux[i, ok], how, rest.grid.edges)[0] for how in ("count", "mean"))
        variance = binned_statistic(wave, 1 / ivar[i, ok], "mean", rest.grid.edges)[0]
        some = count > 0
        np.testing.assert_array_equal(weight[i] > 0, some)
        np.testing.assert_allclose(mean[i, some], expected[some], rtol=1e-12)
        np.testing.assert_allclose(1 / weight[i, some], variance[some] / count[some], rtol=1e-12)
        assert not mean[i, ~some].any() and not weight[i, ~some].any()


@pytest.mark.parametrize("method", ["mean", "overlap"])
@pytest.mark.parametrize("rest", [PAT2022, FINE], ids=lambda s: s.name)
def test_a_constant_stays_and_what_is_not_covered_is_empty(method, rest):
    z = np.array([0.0, 0.05, 0.2, 0.36, 1.4, 9.0])
    flat = Spectra(np.full((6, 3921), 3.0), np.full((6, 3921), 4.0), z, "sdss")
    out = to_rest(flat, rest, method=method)
    low, high = ((x / (1 + z))[:, None] for x in SDSS.grid.edges[[0, -1]])
    covered = (rest.grid.edges[:-1] >= low) & (rest.grid.edges[1:] <= high)
    part = (rest.grid.edges[1:] > low) & (rest.grid.edges[:-1] < high)
    if method == "mean": assert not (covered & out.mask & (rest is PAT2022)).any() and not (~part & ~out.mask).any()
    else: np.testing.assert_array_equal(out.mask, ~covered)
    np.testing.assert_allclose(out.flux[~out.mask], 3.0, rtol=1e-6)
    assert not out.flux[out.mask].any() and not out.ivar[out.mask].any()
    assert out.flag[5] & Flag.NODATA and not out.z.any()
    np.testing.assert_array_equal(out.table["z"], z)


def test_overlap_conserves_the_flux_of_a_line_and_the_mean_does_so_on_average():
    z = rng.uniform(0.05, 0.3, 200)
    wave = SDSS.grid.wave / (1 + z[:, None])
    line = np.exp(-0.5 * ((wave - 5008.24) / 2.5) ** 2)
    seen, truth = Spectra(line, np.ones_like(line), z, "sdss"), 2.5 * np.sqrt(2 * np.pi)
    total = {m: (to_rest(seen, method=m).flux * np.diff(PAT2022.grid.edges)).sum(1) / truth for m in ("mean", "overlap")}
    np.testing.assert_allclose(total["overlap"], 1, rtol=1e-4)
    assert abs(total["mean"].mean() - 1) < 0.02 and 0.01 < total["mean"].std() < 0.2


@pytest.mark.parametrize("method", ["mean", "overlap"])
def test_errors_are_the_scatter_of_repeated_noise(method):
    "Monte Carlo: 5000 draws know a standard deviation to one per cent, the mean of 60 to 0.13."
    seen, survey = replace(SDSS, grid=SDSS.grid.crop(4700, 5300)), rest_survey("part", 4200.0, 4700.0, 60)
    sigma = rng.uniform(0.3, 3, seen.grid.n).astype("f4")
    noise = sigma * rng.standard_normal((5000, seen.grid.n), dtype=np.float32)
    rest = to_rest(Spectra(noise, np.broadcast_to(sigma**-2, noise.shape), np.full(5000, 0.1234), seen), survey, method=method)
    ratio = rest.flux.std(0) * np.sqrt(rest.ivar[0])
    assert not rest.mask.any() and np.abs(ratio - 1).max() < 0.04 and abs(ratio.mean() - 1) < 0.006


def test_bad_pixels_carry_nothing_over():
    spectra = noisy([0.1, 0.2])
    spoiled = spectra.flux.copy()
    spoiled[spectra.mask] = 1e9
    again = spectra.replace(flux=spoiled)
    for method in ("mean", "overlap"):
        a, b = (to_rest(s, method=method) for s in (spectra, again))
        np.testing.assert_array_equal(a.flux, b.flux)
        np.testing.assert_array_equal(a.ivar, b.ivar)
    assert to_rest(spectra).mask.mean() < to_rest(spectra, method="overlap").mask.mean()  # one touched pixel is enough


@settings(derandomize=True, max_examples=10, deadline=None)
@given(st.permutations(range(7)), st.integers(1, 6))
def test_rows_do_not_know_each_other(order, size):
    spectra = noisy(np.linspace(0.05, 0.35, 7))
    rows = np.array(order)[:size]
    whole, some = to_rest(spectra), to_rest(spectra, rows=rows)
    np.testing.assert_array_equal(some.flux, whole.flux[rows])
    np.testing.assert_array_equal(some.ivar, whole.ivar[rows])
    np.testing.assert_array_equal(some.id, spectra.id[rows])


def test_a_row_asked_for_twice_stands_twice_and_is_refused():
    with pytest.raises(DataError, match="more than once"): to_rest(noisy([0.1, 0.2]), rows=[1, 1])


def test_one_bad_redshift_is_a_flag_for_that_row():
    z = np.array([0.1, np.nan, -0.5, np.inf, -0.005, 30.0])
    out = to_rest(noisy(z, zwarning=np.zeros(6, int)))
    np.testing.assert_array_equal((out.flag & Flag.BAD_Z) > 0, [False, True, True, True, False, False])
    assert out.mask[[1, 2, 3, 5]].all() and not out.flux[[1, 2, 3]].any() and not out.mask[[0, 4]].all()
    np.testing.assert_array_equal(out.table["z"], z)
    np.testing.assert_array_equal(out.good, [True, False, False, False, True, False])
    with pytest.raises(ConfigError, match="overlap"): to_rest(noisy([0.1]), method="linear")


def test_coverage_is_judged_on_the_new_grid():
    spectra = noisy([0.1, 0.1])
    spectra = spectra.replace(mask=np.array([SDSS.grid.wave > 5000, SDSS.grid.wave < 0]))
    red = rest_survey("red", 4600.0, 8000.0, 500)
    assert spectra.flag[0] & Flag.LITTLE_COVERAGE and to_rest(spectra, rest_survey("blue", 3600, 4500, 100)).flag[0] == 0
    assert to_rest(spectra, red).flag[0] & Flag.NODATA == Flag.NODATA and to_rest(spectra, red).flag[1] == 0


# ---- scalings


def test_distances_are_astropys():
    z = np.r_[0.003, rng.uniform(0.01, 0.4, 50), 3.0]
    np.testing.assert_allclose(luminosity_distance(z), Planck18.luminosity_distance(z).value, rtol=1e-7)


def test_luminosity_does_not_depend_on_how_far_a_galaxy_is():
    "One galaxy at many distances: F_λ falls by D_L² and is stretched by 1+z."
    z = np.array([0.06, 0.1, 0.2, 0.3])
    shape = lambda wave: 1 + (wave / 5000) ** -2
    flux = shape(SDSS.grid.wave / (1 + z[:, None])) / (1 + z[:, None]) / (luminosity_distance(z)[:, None] / 400) ** 2
    rest = to_rest(Spectra(flux, np.full(flux.shape, 100.0), z, "sdss"), method="overlap")
    bright = to_luminosity(rest)
    both = ~rest.mask.any(0)
    np.testing.assert_allclose(bright.flux[:, both] / bright.flux[1, both], 1, rtol=1e-4)
    both = ~rest.mask
    np.testing.assert_allclose((bright.flux * np.sqrt(bright.ivar))[both], (rest.flux * np.sqrt(rest.ivar))[both], rtol=1e-5)
    np.testing.assert_allclose(bright.flux[1, 600], rest.flux[1, 600] * PAT2022.grid.wave[600] * 1.1, rtol=1e-6)


def test_without_a_distance_or_a_physical_unit_there_is_no_luminosity():
    odd = to_luminosity(to_rest(noisy([0.1, 0.0, np.nan])))
    np.testing.assert_array_equal((odd.flag & Flag.BAD_Z) > 0, [False, True, True])
    assert np.isfinite(odd.flux).all() and np.isfinite(odd.ivar).all()
    with pytest.raises(SpectrumError, match="to_rest"): to_luminosity(noisy([0.1]))
    with pytest.raises(SpectrumError, match="normalised"): rest_sample(preprocess(noisy([0.1])))
    assert len(rest_sample(preprocess(noisy([0.1])), luminosity=False).spectra) == 1


def test_the_cap_lowers_only_what_is_above_it():
    flux, ivar = rng.normal(0, 5, (3, 1000)), 10 ** rng.uniform(-2, 6, (3, 1000))
    flux[0, :10] = 0
    before = Spectra(flux, ivar, np.zeros(3), PAT2022)
    after = cap_sn(before, 50)
    sn = np.abs(before.flux) * np.sqrt(before.ivar)
    np.testing.assert_allclose(np.abs(after.flux) * np.sqrt(after.ivar), np.minimum(sn, 50), rtol=1e-5)
    np.testing.assert_array_equal(after.ivar[sn < 49.9], before.ivar[sn < 49.9])
    for limit in (0, -1, np.nan):
        with pytest.raises(ConfigError, match="positive"): cap_sn(before, limit)


def test_the_sn_of_a_whole_spectrum_adds_up():
    spectra = noisy([0.1, 0.1], level=0.2, sigma=1.0, holes=0.0)
    half = spectra.replace(mask=np.array([SDSS.grid.wave > 0, SDSS.grid.wave > 5000]))
    np.testing.assert_allclose(whole_sn(spectra), spectra.flux.sum(1) / np.sqrt(SDSS.grid.n), rtol=1e-5)
    assert whole_sn(half)[0] == 0 and abs(whole_sn(half)[1] - 0.2 * np.sqrt((SDSS.grid.wave <= 5000).sum())) < 5


# ---- the sample


def mixed(n=120) -> Spectra:
    level = np.where(np.arange(n) % 8 == 0, 1e-3, 5.0)[:, None]
    spectra = noisy(np.linspace(0.03, 0.4, n), level=level, zwarning=np.where(np.arange(n) % 9 == 0, 4, 0))
    mask = spectra.mask
    mask[3::10, 1000:3500] = True
    z = spectra.z.copy()
    z[50] = np.nan
    return spectra.replace(mask=mask, z=z)


def test_counts_follow_the_cuts_one_by_one():
    spectra = mixed()
    sample = rest_sample(spectra)
    rest = to_rest(spectra)
    cuts = [spectra.good, spectra.table["zwarning"] == 0, (spectra.z > 0.05) & (spectra.z < 0.36),
            rest.mask.mean(1) < 0.4, whole_sn(rest) > 50]  # fmt: skip
    expected = [len(spectra), *(int(np.all(cuts[: k + 1], axis=0).sum()) for k in range(5))]
    assert sample.counts["before"].tolist() == expected[:-1] and sample.counts["left"].tolist() == expected[1:]
    assert sample.counts["cut"].tolist() == ["no fatal flag", "ZWARNING = 0", "0.05 < z < 0.36", "masked < 40%", "S/N > 50"]
    assert (sample.counts["removed"] > 0).all()  # each cut has something to do here
    np.testing.assert_array_equal(sample.rows, np.flatnonzero(np.all(cuts, axis=0)))
    np.testing.assert_array_equal(sample.spectra.id, spectra.id[sample.rows])
    np.testing.assert_array_equal(sample.spectra.table["z"], spectra.z[sample.rows])


def test_the_sample_is_divided_by_one_number_and_validation_by_the_same():
    spectra = mixed()
    sample = rest_sample(spectra, max_pixel_sn=None)
    raw = to_luminosity(to_rest(spectra, rows=sample.rows))
    assert sample.scale == pytest.approx(raw.flux[~raw.mask].mean(dtype=float), rel=1e-6)
    np.testing.assert_allclose(sample.spectra.flux, raw.flux / sample.scale, rtol=1e-5)
    np.testing.assert_allclose(sample.spectra.ivar, raw.ivar * sample.scale**2, rtol=1e-5)
    other = rest_sample(spectra[40:80], scale=sample.scale, max_pixel_sn=None)
    mine = np.isin(sample.spectra.id, other.spectra.id)
    np.testing.assert_array_equal(other.spectra.flux, sample.spectra.flux[mine])
    assert other.scale == sample.scale


@pytest.mark.parametrize("step, options", [
    ("0.05 < z < 0.36", {"z_range": None}), ("ZWARNING = 0", {"zwarning": False}), ("masked < 40%", {"max_masked": None}),
    ("S/N > 50", {"min_sn": None})])  # fmt: skip
def test_every_cut_is_an_option(step, options):
    spectra = mixed()
    full, without = rest_sample(spectra), rest_sample(spectra, **options)
    assert step in full.counts["cut"] and step not in without.counts["cut"]
    assert len(without.rows) > len(full.rows) and np.isin(full.rows, without.rows).all()


def test_every_scaling_is_an_option():
    spectra = mixed()
    plain = rest_sample(spectra, luminosity=False, scale=1.0, max_pixel_sn=None)
    expected = to_rest(spectra, rows=plain.rows)
    np.testing.assert_array_equal(plain.spectra.flux, expected.flux)
    np.testing.assert_array_equal(plain.spectra.ivar, expected.ivar)
    sn = rest_sample(spectra, max_pixel_sn=3).spectra
    assert (np.abs(sn.flux) * np.sqrt(sn.ivar)).max() < 3.001
    assert rest_sample(spectra, FINE, method="overlap").spectra.survey is FINE


def test_a_redshift_warning_that_is_not_known_does_not_pass():
    spectra = noisy([0.1, 0.2, 0.3])
    spectra.table["zwarning"] = MaskedColumn([0, 0, 4], mask=[False, True, False])
    assert rest_sample(spectra).rows.tolist() == [0]
    del spectra.table["zwarning"]
    assert rest_sample(spectra).rows.tolist() == [0, 1, 2]


@pytest.mark.parametrize("n", [0, 1, 2])
def test_small_and_empty_samples(n):
    sample = rest_sample(noisy(np.full(n, 0.1)))
    assert len(sample.spectra) == len(sample.rows) == n and sample.counts["left"][-1] == n
    assert np.isnan(sample.scale) == (n == 0)
    if n == 0:
        with pytest.raises(ConfigError, match="training set"): rest_sample(noisy([0.1]), scale=sample.scale)
    for scale in (0.0, -1.0):
        if n: pytest.raises(ConfigError, rest_sample, noisy([0.1]), scale=scale)


def test_a_pixel_of_the_input_grid_lands_in_the_bin_that_holds_it():
    z = rng.uniform(0.05, 0.3, 30)
    pixel = rng.integers(500, 3000, 30)
    flux = np.zeros((30, SDSS.grid.n))
    flux[np.arange(30), pixel] = 1
    rest = to_rest(Spectra(flux, np.ones_like(flux), z, "sdss"))
    wave = SDSS.grid.wave[pixel] / (1 + z)
    inside = (wave > 3388) & (wave < 8318)
    expected = np.searchsorted(PAT2022.grid.edges, wave) - 1
    np.testing.assert_array_equal(rest.flux.argmax(1)[inside], expected[inside])


def test_spectra_in_the_rest_frame_can_be_brought_to_another_grid():
    spectra = noisy([0.1, 0.2], holes=0)
    once = to_rest(spectra, FINE, method="overlap")
    twice = to_rest(once.replace(table=Table()), rest_survey("coarse", 4000.0, 7000.0, 50), method="overlap")
    direct = to_rest(spectra, rest_survey("coarse", 4000.0, 7000.0, 50), method="overlap")
    np.testing.assert_allclose(twice.flux, direct.flux, atol=0.03)
    assert Grid.from_wave(twice.wave).n == 50


# ---- real spectra


@pytest.mark.real
def test_real_spectra_pass_through_as_the_loop_of_the_paper_would_have_it(mirror):
    spectra = read_sdss(mirror / "sdss_galaxy_spectra")
    sample = rest_sample(spectra)
    table = spectra.table
    assert sample.counts["left"][1] == ((table["zwarning"] == 0) & spectra.good).sum() and 10 < len(sample.rows) < len(spectra)
    assert np.isfinite(sample.spectra.flux).all() and sample.spectra.good.all()
    assert 0.9 < sample.spectra.flux[~sample.spectra.mask].mean() < 1.1
    rest = to_rest(spectra, rows=sample.rows[:5])
    for i, row in enumerate(sample.rows[:5]):
        ok = ~spectra.mask[row]
        wave = spectra.wave[ok] / (1 + spectra.z[row])
        mean = binned_statistic(wave, spectra.flux[row, ok], "mean", PAT2022.grid.edges).statistic
        np.testing.assert_array_equal(rest.mask[i], np.isnan(mean))
        np.testing.assert_allclose(rest.flux[i][~rest.mask[i]], mean[~rest.mask[i]], rtol=2e-5, atol=1e-4)
    exact = to_rest(spectra, rows=sample.rows, method="overlap")
    both = ~(exact.mask | sample.spectra.mask)
    pull = ((exact.flux - to_rest(spectra, rows=sample.rows).flux) * np.sqrt(exact.ivar))[both]
    assert np.median(np.abs(pull)) < 0.5  # two ways to bin the same photons
