"""Stacks: whole-pixel shifts, weights, errors by noise and by bootstrap, chunks, trends, the quasar to compare with."""

import numpy as np
import pytest
from astropy.table import Table
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_core.archives.sdss import read_sdss
from spectral_core.core import ConfigError, SpectrumError, generator
from spectral_core.spectra.container import Spectra
from spectral_core.spectra.lines import d4000n, equivalent_width
from spectral_core.spectra.restframe import PAT2022, to_rest
from spectral_core.spectra.stacking import (
    REFERENCE,
    StackSums,
    align,
    bootstrap_counts,
    measure_trends,
    quasar_composite,
    stack,
    stack_trends,
    whole_shift,
)
from spectral_core.spectra.surveys import BOSS, DESI, SDSS
from spectral_core.spectra.wavelength import Grid

rng = generator("test_stacking")  # anew for each test, see conftest
quiet = settings(derandomize=True, max_examples=40, deadline=None)


def galaxies(n=60, shape=lambda wave: 3 + 0 * wave, sigma=0.5, spread=0.0, survey=SDSS, z=None) -> Spectra:
    "One rest-frame spectrum at n redshifts, with noise; `spread` is the rms of the galaxies' own brightness."
    z = rng.uniform(0.05, 0.36, n) if z is None else np.asarray(z, float)
    level = 1 + spread * rng.standard_normal((n, 1))
    stretch, sigma = 1 + z[:, None], np.broadcast_to(np.reshape(sigma, (-1, 1)), (n, 1))
    flux = (shape(survey.grid.wave / stretch) * level + sigma * rng.standard_normal((n, survey.grid.n))) / stretch
    return Spectra(flux, np.broadcast_to((stretch / sigma) ** 2, flux.shape), z, survey)


INSIDE = (REFERENCE.wave > 3700) & (REFERENCE.wave < 6800)  # every z from 0.05 to 0.36 reaches it


# ---- whole pixels


@quiet
@given(st.floats(0, 0.5), st.floats(3900, 5900), st.sampled_from([SDSS, BOSS]))
def test_a_delta_line_lands_within_half_a_pixel(z, wave, survey):
    seen = int(np.rint(survey.grid.pixel(wave * (1 + z))))
    if not 0 <= seen < survey.grid.n: return
    true_wave = survey.grid.wave[seen] / (1 + z)  # where the pixel that holds the line truly is in the rest frame
    found = seen + whole_shift(survey.grid, np.array([z]))[0]
    assert abs(found - REFERENCE.pixel(true_wave)) <= 0.5 + 1e-6


def test_on_the_common_lattice_shifts_are_integers_of_the_redshift_alone():
    z = rng.uniform(0, 0.5, 1000)
    steps = np.rint(np.log10(1 + z) / 1e-4 + 1e-9).astype(int)
    np.testing.assert_array_equal(whole_shift(SDSS.grid, z), 780 - steps)
    np.testing.assert_array_equal(whole_shift(BOSS.grid, z), 490 - steps)


@quiet
@given(st.lists(st.integers(-40, 40), min_size=1, max_size=6), st.integers(1, 25), st.integers(0, 9))
def test_align_moves_pixels_and_invents_none(first, length, seed):
    x = np.random.default_rng(seed).integers(1, 99, (len(first), 12))
    expected = np.zeros((len(first), length), int)
    for i, f in enumerate(first):
        for j in range(12):
            if 0 <= f + j < length: expected[i, f + j] = x[i, j]
    np.testing.assert_array_equal(align(x, np.array(first), length), expected)


@pytest.mark.parametrize("grid", [DESI.grid, PAT2022.grid, Grid("log", 3.5, 2e-4, 2000)], ids=str)
def test_another_step_is_refused(grid):
    with pytest.raises(ConfigError, match="one log step"): whole_shift(grid, np.zeros(1))
    with pytest.raises(SpectrumError, match="finite"): whole_shift(SDSS.grid, np.array([0.1, np.nan]))


# ---- means and errors


@pytest.mark.parametrize("weights", ["ivar", "equal"])
def test_the_error_falls_with_the_root_of_the_number(weights):
    for n in (1, 4, 64):
        mean = stack(galaxies(n), weights=weights)
        assert (mean.n[INSIDE] == n).all()
        np.testing.assert_allclose(mean.error[INSIDE], 0.5 / np.sqrt(n), rtol=1e-3)
        pull = (mean.flux[INSIDE] - 3) / mean.error[INSIDE]
        assert abs(pull.std() - 1) < 0.05 and abs(pull.mean()) < 4 / np.sqrt(INSIDE.sum())


def test_ivar_weights_recover_the_mean_of_unequal_noises():
    sigma = 10 ** rng.uniform(-1, 1, 80)
    spectra = galaxies(80, sigma=sigma)
    best, plain = stack(spectra), stack(spectra, weights="equal")
    for mean, error in ((best, (sigma**-2).sum() ** -0.5), (plain, np.sqrt((sigma**2).sum()) / 80)):
        np.testing.assert_allclose(mean.error[INSIDE], error, rtol=1e-3)
        assert abs(((mean.flux[INSIDE] - 3) / error).std() - 1) < 0.05
    np.testing.assert_allclose(best.n_eff[INSIDE], (sigma**-2).sum() ** 2 / (sigma**-4).sum(), rtol=1e-3)
    np.testing.assert_allclose(plain.n_eff[INSIDE], 80, rtol=1e-9)


def test_the_mean_is_the_loop_of_the_paper():
    "The reference implementation of the description, one spectrum at a time, in masked arrays of NaN and zero."
    spectra = galaxies(12, shape=lambda w: w / 1000, spread=0.3)
    spectra = spectra.replace(mask=rng.random(spectra.flux.shape) < 0.1)
    flux, ivar = np.full((12, REFERENCE.n), np.nan), np.zeros((12, REFERENCE.n))
    for i, z in enumerate(spectra.z):
        index = np.rint((np.log10(SDSS.grid.wave) - np.log10(1 + z) - 3.5) / 1e-4).astype(int)
        ok = (index >= 0) & (index < REFERENCE.n) & ~spectra.mask[i]
        flux[i, index[ok]], ivar[i, index[ok]] = spectra.flux[i, ok] * (1 + z), spectra.ivar[i, ok] / (1 + z) ** 2
    some = ivar.sum(0) > 0
    mean = stack(spectra)
    np.testing.assert_array_equal(mean.n, (ivar > 0).sum(0))
    np.testing.assert_array_equal(np.isnan(mean.flux), ~some)
    np.testing.assert_allclose(mean.flux[some], (np.nansum(flux * ivar, 0) / np.where(some, ivar.sum(0), 1))[some], rtol=1e-6)
    np.testing.assert_allclose(mean.error[some], ivar.sum(0)[some] ** -0.5, rtol=1e-6)


def test_a_line_is_where_it_belongs_and_keeps_its_flux():
    line = lambda w: np.exp(-0.5 * ((w - 5008.24) / 3) ** 2)
    mean = stack(galaxies(80, shape=line, sigma=1e-3), weights="equal")
    near = np.abs(mean.wave - 5008.24) < 40
    width = np.diff(REFERENCE.edges)[near]
    assert abs((mean.flux[near] * mean.wave[near]).sum() / mean.flux[near].sum() - 5008.24) < 0.2  # pixels of 1.15 Å
    np.testing.assert_allclose((mean.flux[near] * width).sum(), 3 * np.sqrt(2 * np.pi), rtol=2e-3)


def test_bootstrap_is_noise_and_variety_and_error_is_noise():
    calm, varied = galaxies(150, sigma=0.2), galaxies(150, sigma=0.2, spread=0.3)
    for spectra, expected in ((calm, 0.2), (varied, np.hypot(0.2, 0.9))):
        mean = stack(spectra, weights="equal", n_bootstrap=150)
        np.testing.assert_allclose(np.median(mean.bootstrap[INSIDE]), expected / np.sqrt(150), rtol=0.15)
        np.testing.assert_allclose(np.median(mean.scatter[INSIDE]), expected, rtol=0.15)
        np.testing.assert_allclose(mean.error[INSIDE], 0.2 / np.sqrt(150), rtol=1e-3)
    levelled = stack(varied, weights="equal", normalise=(5300, 5850), n_bootstrap=50)
    assert np.median(levelled.scatter[INSIDE]) < 0.5 * np.median((mean.scatter / mean.flux)[INSIDE])  # brightness is gone
    assert abs(np.median(levelled.flux[INSIDE]) - 1) < 0.003  # whatever the redshift


def test_resampling_is_poisson_over_objects_and_nothing_else_matters():
    counts = bootstrap_counts(np.arange(4000), 50, seed=1)
    assert abs(counts.mean() - 1) < 0.01 and abs(counts.var() - 1) < 0.02
    assert abs(np.corrcoef(counts)[np.triu_indices(50, 1)].mean()) < 0.01
    np.testing.assert_array_equal(counts[:, [5, 9, 5]], bootstrap_counts(np.array([5, 9, 5]), 50, seed=1))
    assert (counts != bootstrap_counts(np.arange(4000), 50, seed=2)).mean() > 0.5
    spectra = galaxies(40, spread=0.3)
    pairs = spectra.replace(object_id=np.arange(40) // 2)
    one, other = (np.median(stack(s, weights="equal", n_bootstrap=100).bootstrap[INSIDE]) for s in (spectra, pairs))
    again = stack(spectra[::-1], weights="equal", n_bootstrap=100)
    assert np.median(again.bootstrap[INSIDE]) == pytest.approx(one, rel=1e-5)
    assert other != one


# ---- sums


@quiet
@given(st.lists(st.integers(0, 30), max_size=4), st.sampled_from(["ivar", "equal"]), st.sampled_from([None, (5300, 5850)]))
def test_chunks_and_order_change_nothing(cuts, weights, normalise):
    spectra = galaxies(30)
    options = {"weights": weights, "normalise": normalise, "n_bootstrap": 5, "seed": 3}
    whole, sums = stack(spectra, **options), StackSums(**options)
    edges = [0, *sorted(cuts), 30]
    for a, b in reversed(list(zip(edges[:-1], edges[1:]))): sums.add(spectra[a:b])
    for name in ("flux", "error", "scatter", "n", "n_eff"):
        np.testing.assert_allclose(getattr(sums.stack, name), getattr(whole, name), rtol=1e-7, atol=1e-6)
    np.testing.assert_allclose(sums.stack.resamples, whole.resamples, rtol=1e-4, atol=1e-5)
    assert (sums.stack.n_spectra, sums.stack.left_out) == (30, 0)


def test_what_cannot_be_used_is_left_out_and_counted():
    z = np.array([0.1, np.nan, -0.5, 0.2, 0.3, 0.3])
    spectra = galaxies(6, z=np.nan_to_num(z, nan=0.1).clip(0)).replace(z=z)
    mask, flux = spectra.mask.copy(), spectra.flux.copy()
    mask[3], flux[4] = True, -flux[4]
    spectra = spectra.replace(mask=mask, flux=flux)
    mean = stack(spectra)
    assert (mean.n_spectra, mean.left_out, mean.n.max()) == (3, 3, 3)
    mean = stack(spectra, normalise=(5300, 5850))  # a negative median is no norm either
    assert (mean.n_spectra, mean.left_out) == (2, 4) and abs(np.nanmedian(mean.flux) - 1) < 0.02
    far = stack(galaxies(2, z=[0.1, 7.0]))
    assert far.n.max() == 1 and np.isfinite(far.flux[far.n > 0]).all()


@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_and_no_spectra(n):
    mean = stack(galaxies(n), n_bootstrap=20, normalise=(5300, 5850))
    assert mean.n_spectra == n and mean.resamples.shape == (20, REFERENCE.n)
    assert np.isnan(mean.flux[mean.n == 0]).all() and np.isfinite(mean.flux[mean.n > 0]).all()
    assert np.isnan(mean.bootstrap).all() == (n < 2)
    assert np.isnan(stack(galaxies(n)).bootstrap).all()  # none asked for
    assert len(stack_trends([mean])) == 1 and len(stack_trends([])) == 0


def test_wrong_weights_are_refused():
    with pytest.raises(ConfigError, match="'ivar' or 'equal'"): stack(galaxies(2), weights="median")


def test_rest_frame_spectra_stack_on_their_own_grid():
    rest = to_rest(galaxies(30))
    mean = stack(rest, reference=PAT2022.grid)
    good = mean.n == 30
    expected = (rest.flux * rest.weight).sum(0) / np.maximum(rest.weight.sum(0), 1e-9)
    np.testing.assert_allclose(mean.flux[good], expected[good], rtol=1e-5)
    np.testing.assert_array_equal(mean.wave, PAT2022.grid.wave)
    with pytest.raises(ConfigError, match="to_rest"): stack(rest)


# ---- trends


def test_trends_are_those_of_the_formulas():
    wave, step = REFERENCE.wave, lambda at, up: np.where(REFERENCE.wave > at, up, 1.0) / REFERENCE.wave**2 * 1e7
    four = measure_trends(wave, step(3975, 1.7)[None])
    balmer = measure_trends(wave, step(3700 + 50, 1.4)[None])
    for found, expected in ((four, (1.7, 1.7, 1.0, 2.5 * np.log10(1.7))), (balmer, (1.0, 1.4, 1.4, 2.5 * np.log10(1.4)))):
        values = [found[k][0] for k in ("d4000n", "balmer_break", "balmer_part", "colour_3500")]
        np.testing.assert_allclose(values, expected, rtol=1e-4)
    line = 1 + 20 / 3 / np.sqrt(2 * np.pi) * np.exp(-0.5 * ((wave - 6564.61) / 3) ** 2)
    ew = measure_trends(wave, line[None])["ew_halpha"]
    assert ew[0] == pytest.approx(20, rel=0.01) and ew[0] == equivalent_width(wave, line, "halpha")[0]
    gap = np.where((wave > 3340) & (wave < 3500), np.nan, line)
    found = measure_trends(wave, gap[None])
    assert np.isnan(found["colour_3500"][0]) and found["d4000n"][0] == d4000n(wave, line)[0]


def test_the_errors_of_trends_are_the_scatter_of_repeated_samples():
    "A sequence of samples, each with its bootstrap error: their spread is that error."
    shape = lambda w: np.where(w > 3975, 1.5, 1.0) + 0 * w
    table = stack_trends([stack(galaxies(40, shape, sigma=2.0, spread=0.1), n_bootstrap=60) for _ in range(12)])
    assert table["name"].tolist() == [str(i) for i in range(12)] and (table["n_spectra"] == 40).all()
    for name in ("d4000n", "balmer_break", "ew_halpha"):
        ratio = np.std(table[name], ddof=1) / np.median(table[f"{name}_err"])
        assert 0.5 < ratio < 1.7, (name, ratio)  # twelve samples know their scatter to 20 per cent
    np.testing.assert_allclose(np.mean(table["d4000n"]), 1.5 * (4050 / 3900) ** 2, rtol=0.02)


def test_names_and_coverage_are_told():
    low_z = stack(galaxies(10, z=np.full(10, 0.05)))
    table = stack_trends({"near": low_z, "far": stack(galaxies(10, z=np.full(10, 0.3)))})
    assert table["name"].tolist() == ["near", "far"] and table["n_blue"].tolist() == [0, 10]
    assert np.isnan(table["colour_3500"][0]) and np.isfinite(table["colour_3500"][1])
    assert np.isnan(table["d4000n_err"]).all()


# ---- the quasar


def composite_at(folder, wave, flux):
    folder.mkdir(parents=True)
    Table({"WAVELENGTH": wave, "FLUX": flux}).write(folder / "optical_nir_qso_sed_001.fits")


def test_without_a_source_there_is_a_warning_and_no_quasar(tmp_path, monkeypatch):
    monkeypatch.setenv("SPECTRAL_CACHE", str(tmp_path))
    monkeypatch.delenv("SPECTRAL_MIRROR", raising=False)
    with pytest.warns(UserWarning, match="no quasar composite.*qso_composite"): assert quasar_composite(offline=True) is None


def test_a_damaged_composite_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setenv("SPECTRAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SPECTRAL_MIRROR", str(tmp_path / "mirror"))
    composite_at(tmp_path / "mirror" / "qso_composite", np.arange(3000.0, 7000), np.ones(4000))
    with pytest.warns(UserWarning, match="damaged"): assert quasar_composite(offline=True) is None


@pytest.mark.real
def test_the_quasar_of_the_mirror_is_blue_with_broad_lines(mirror):
    wave, flux, name = quasar_composite(offline=True)
    assert name == "qso_composite" and wave[0] < 1000 and wave[-1] > 9000
    around = lambda w: np.median(flux[np.abs(wave - w) < 15])
    assert around(2000) > around(4200) > 0.9 * around(5500) and around(6564.6) > 1.5 * around(6300)
    assert np.median(flux[(wave > 5300) & (wave < 5850)]) == pytest.approx(1)


@pytest.mark.real
def test_real_galaxies_and_quasars_stack_to_what_they_are(mirror):
    galaxy, quasar = (read_sdss(mirror / f"sdss_{name}_spectra") for name in ("galaxy", "qso"))
    near = lambda s: s[s.good & (s.table["zwarning"] == 0) & (s.z > 0.02) & (s.z < 0.36)]
    table = stack_trends({name: stack(near(s), weights="equal", normalise=(5300, 5850), n_bootstrap=30)
                          for name, s in (("galaxy", galaxy), ("quasar", quasar))})
    assert (table["n_spectra"] > 10).all()
    assert table["d4000n"][0] > table["d4000n"][1] + 2 * np.hypot(*table["d4000n_err"])
    assert table["ew_halpha"][1] > table["ew_halpha"][0]
