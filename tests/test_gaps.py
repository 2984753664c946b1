"""Iterative principal components: planted spectra, the plain loop, and what cannot be filled."""

import numpy as np
import pytest
import torch

from spectral_core.core import ConfigError, DataError, RunError, SpectrumError
from spectral_core.models.gaps import GapFiller, _leading, fill_gaps, held_out_error
from spectral_core.spectra.container import Spectra
from spectral_core.spectra.restframe import rest_survey


def planted(n, m=200, k=3, missing=0.25, seed=0):
    "Clean spectra of k components, with noise that differs from pixel to pixel, nonsense in the gaps, and weights."
    random = np.random.default_rng(seed)
    x = np.linspace(0, 1, m)
    parts = np.stack([np.sin((j + 2) * 2.5 * x + j) / (j + 1) for j in range(k)])
    clean = 1 + x + random.normal(size=(n, k)) @ parts
    sigma = 0.05 * random.uniform(0.5, 1.5, (n, m))
    gap = random.random((n, m)) < missing
    flux = np.where(gap, random.choice([np.nan, np.inf, -1e30], (n, m)), clean + sigma * random.normal(size=(n, m)))
    return clean, flux, np.where(gap, 0, sigma**-2.0)


@pytest.fixture(scope="module")
def sample():
    return planted(500)


@pytest.fixture(scope="module")
def filler(sample):
    _, flux, weight = sample
    return GapFiller(3, tolerance=1e-5).fit(flux[:300], weight[:300])


@pytest.mark.parametrize("run", [1, 15])
def test_hidden_pixels_of_new_spectra_come_back_to_their_noise(sample, filler, run):
    _, flux, weight = sample
    error = held_out_error(filler, flux[300:], weight[300:], run=run)
    assert error.n > 1000 and error.pixel.shape == (200,)
    assert abs(error.rms - 1) < 0.05 and abs(error.nmad - 1) < 0.06 and abs(error.bias) < 5 / error.n**0.5


def test_too_few_components_are_seen_in_the_held_out_error(sample):
    _, flux, weight = sample
    assert held_out_error(GapFiller(1).fit(flux[:300], weight[:300]), flux[300:], weight[300:]).rms > 2


def test_good_pixels_are_untouched_and_filled_ones_are_near_the_truth(sample, filler):
    clean, flux, weight = sample
    filled, good = filler.transform(flux, weight), weight > 0
    assert np.array_equal(filled[good], flux[good])
    assert np.sqrt(np.mean((filled - clean)[~good] ** 2)) < 0.4 * 0.05
    model = filler.transform(flux, weight, everywhere=True)
    assert np.array_equal(model[~good], filled[~good]) and not np.isclose(model[good], flux[good]).all()


def test_the_objective_never_rises_and_the_rounds_end_by_themselves(filler):
    assert (np.diff(filler.history["chi2"]) <= 1e-12).all()
    assert filler.converged and filler.history["change"][-1] < 1e-5 and len(filler.history) < 40
    assert filler.history["chi2"][-1] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("seed", range(6))
def test_the_objective_never_rises_where_systems_are_nearly_singular(seed):
    "Few pixels, more components than there are in the spectra, and weights over six decades."
    _, flux, weight = planted(60, m=30, k=2, missing=0.6, seed=seed)
    weight = weight * 10 ** np.random.default_rng(seed).uniform(-3, 3, weight.shape)
    history = GapFiller(8, n_iter=25, tolerance=0, min_coverage=0, unseen=0.0, seed=seed).fit(flux, weight).history["chi2"]
    assert (np.diff(history) <= 1e-9 * history[0]).all()


def test_batched_equals_the_loop_over_spectra(sample, filler):
    _, flux, weight = sample
    flux = np.where(weight > 0, flux, 0)
    scaled = filler.scale[:, None] * filler.components
    loop = np.stack([np.linalg.solve((scaled * w) @ scaled.T + np.eye(3), (scaled * w) @ (f - filler.mean))
                     for f, w in zip(flux, weight)])  # fmt: skip
    ours = filler.coefficients(flux, weight)
    assert np.abs(ours - loop).max() <= 1e-12 * np.abs(loop).max()
    model = filler.mean + loop @ scaled
    assert np.abs(filler.transform(flux, weight, everywhere=True) - model).max() <= 1e-12 * np.abs(model).max()


def test_the_whole_fit_equals_its_loops_over_spectra_and_pixels(sample):
    "Three rounds, from the same start: mean and scaled components."
    flux, weight, k = np.where(sample[2] > 0, sample[1], 0)[:120], sample[2][:120], 3

    def held(basis, w, y, old):
        normal = (w * basis) @ basis.T
        h = 1e-6 * np.trace(normal) / len(old) + 1e-20
        return np.linalg.solve(normal + h * np.eye(len(old)), basis @ (w * y) + h * old)

    mean = (weight * flux).sum(0) / weight.sum(0)
    components, c = _leading(torch.from_numpy(np.where(weight > 0, flux - mean, 0)), k, seed=0).numpy(), np.zeros((120, k))
    for _ in range(3):
        c = np.stack([held(components, w, f - mean, old) for f, w, old in zip(flux, weight, c)])
        basis, before = np.vstack([np.ones(120), c.T]), np.vstack([mean, components]).T
        step = np.stack([held(basis, w, f, old) for f, w, old in zip(flux.T, weight.T, before)], axis=1)
        mean, c = step[0] + c.mean(0) @ step[1:], c - c.mean(0)
        u, s, v = np.linalg.svd(c @ step[1:], full_matrices=False)
        components, c = v[:k] * np.sign(v[:k].sum(1))[:, None], u[:, :k] * s[:k] * np.sign(v[:k].sum(1))
    ours = GapFiller(k, n_iter=3, tolerance=0).fit(flux, weight)
    assert np.abs(ours.mean - mean).max() <= 1e-12 * np.abs(mean).max()
    scaled = c.std(0, ddof=1)[:, None] * components
    assert np.abs(ours.scale[:, None] * ours.components - scaled).max() <= 1e-12 * np.abs(scaled).max()


def test_components_span_what_was_planted_and_are_in_order(sample, filler):
    clean = sample[0][:300]
    _, s, v = np.linalg.svd(clean - clean.mean(0), full_matrices=False)
    angle = np.linalg.svd(filler.components @ v[:3].T, compute_uv=False)
    assert angle.min() > 0.9995  # the noise of 300 spectra turns the weakest by a hundredth
    assert np.allclose(filler.components @ filler.components.T, np.eye(3), atol=1e-10)
    assert np.allclose(filler.scale, s[:3] / np.sqrt(299), rtol=0.03) and (np.diff(filler.scale) < 0).all()


def test_what_is_learnt_does_not_depend_on_the_order_or_the_sign_of_chance(sample, filler):
    _, flux, weight = sample
    order = np.random.default_rng(1).permutation(300)
    other = GapFiller(3, tolerance=1e-5, seed=5).fit(flux[:300][order], weight[:300][order])
    assert np.allclose(other.transform(flux, weight), filler.transform(flux, weight), atol=2e-3)


def test_single_precision_stays_single_and_agrees(sample, filler):
    _, flux, weight = sample
    flux, weight = np.where(weight > 0, flux, 0).astype("f4"), weight.astype("f4")
    filled = GapFiller(3, tolerance=1e-5).fit(flux[:300], weight[:300]).transform(flux, weight)
    assert filled.dtype == np.float32 and np.allclose(filled, filler.transform(flux, weight), atol=2e-3)


def test_spectra_without_pixels_are_nan_and_known_beforehand(sample, filler):
    _, flux, weight = sample
    weight = np.where(np.arange(500)[:, None] == 7, 0, weight)
    filled, fillable = filler.transform(flux, weight), filler.fillable(flux, weight)
    assert np.array_equal(np.flatnonzero(~fillable), [7])
    assert np.array_equal(np.isnan(filled).all(axis=1), ~fillable) and np.isfinite(filled[fillable]).all()
    again = GapFiller(3, tolerance=1e-5).fit(flux[:300], weight[:300])
    assert again.n_used == 299


def test_a_spectrum_of_few_pixels_falls_back_to_the_mean(sample, filler):
    _, flux, weight = sample
    noisy = np.where(np.arange(200) == 50, 1e-8, 0) * np.ones((1, 1))
    flux = np.where(noisy > 0, 3.0, np.nan)
    filled = filler.transform(flux, noisy)
    assert np.abs(filled - filler.mean)[0, np.arange(200) != 50].max() < 1e-3


def test_pixels_that_nobody_has_are_named(sample):
    _, flux, weight = sample
    weight = np.where(np.isin(np.arange(200), [0, 1, 2, 120]), 0, weight)
    with pytest.raises(DataError, match=r"pixels 0-2 \(3400.0-3402.0 Å\), 120 \(3520.0-3520.0 Å\) are masked"):
        GapFiller(3).fit(flux, weight, 3400.0 + np.arange(200))
    patient = GapFiller(3, unseen=np.nan).fit(flux, weight)
    filled = patient.transform(flux, weight)
    assert np.array_equal(np.flatnonzero(np.isnan(filled).any(axis=0)), [0, 1, 2, 120])
    assert np.isfinite(held_out_error(patient, flux, weight).rms)


def test_wrong_input_is_refused(sample, filler):
    _, flux, weight = sample
    with pytest.raises(DataError, match="one shape"): GapFiller(3).fit(flux, weight[:10])
    with pytest.raises(DataError, match="0 of 500 have them"): GapFiller(3).fit(flux, np.zeros_like(weight))
    with pytest.raises(DataError, match="components need 22 spectra"): GapFiller(10).fit(flux[:20], weight[:20])
    with pytest.raises(DataError, match="199 pixels for components of 200"): filler.transform(flux[:, 1:], weight[:, 1:])
    with pytest.raises(DataError, match="nothing to hold out"): held_out_error(filler, flux[:5], np.zeros((5, 200)))
    with pytest.raises(RunError, match="call fit first"): GapFiller(3).transform(flux, weight)
    with pytest.raises(ConfigError, match="one component"): GapFiller(0)


# ---- bad input


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_what_stands_in_a_gap_does_not_matter_however_large(sample, dtype):
    "Zeros, numbers without a square, NaN and infinity: the same fit, the same filled spectra."
    _, flux, weight = sample
    weight, found = weight.astype(dtype), []
    for junk in (0, 1e30, -1e30, np.nan, np.inf):
        there = np.where(weight > 0, flux, junk).astype(dtype)
        filler = GapFiller(3, tolerance=1e-5).fit(there[:300], weight[:300])
        found.append((filler.transform(there, weight), filler.history["chi2"]))
    for filled, chi2 in found[1:]:
        assert np.array_equal(filled, found[0][0]) and np.array_equal(chi2, found[0][1])


def test_input_may_be_read_only_reversed_and_of_other_types_and_is_never_changed(sample, filler):
    _, flux, weight = sample
    flux = np.where(weight > 0, flux, 0)
    before, expected = (flux.copy(), weight.copy()), filler.transform(flux, weight)
    flux.flags.writeable = weight.flags.writeable = False
    assert np.array_equal(filler.transform(flux, weight), expected)
    assert np.array_equal(filler.transform(flux[::-1, ::-1][::-1, ::-1], weight), expected)
    assert np.array_equal(filler.transform(flux.astype(">f8"), weight.astype(">f8")), expected)
    assert np.isfinite(filler.transform(np.round(flux).astype(int), weight > 0)).all()
    assert np.array_equal(GapFiller(3, tolerance=1e-5).fit(flux[:300], weight[:300]).transform(flux, weight), expected)
    assert np.array_equal(flux, before[0]) and np.array_equal(weight, before[1])


@pytest.mark.parametrize("n", [0, 1, 2])
def test_no_spectrum_or_a_few(sample, filler, n):
    _, flux, weight = sample
    assert np.allclose(filler.transform(flux[:n], weight[:n]), filler.transform(flux, weight)[:n], rtol=0, atol=1e-12)
    assert filler.coefficients(flux[:n], weight[:n]).shape == (n, 3) and filler.fillable(flux[:n], weight[:n]).shape == (n,)
    with pytest.raises(DataError, match=f"{n} of {n} have them"): GapFiller(3).fit(flux[:n], weight[:n])


def test_negative_weights_are_gaps(sample, filler):
    _, flux, weight = sample
    assert np.array_equal(filler.transform(flux, np.where(weight > 0, weight, -5.0)), filler.transform(flux, weight))


def test_a_constant_pixel_is_filled_with_its_constant(sample):
    _, flux, weight = sample
    flux = np.where((np.arange(200) == 60) & (weight > 0), 2.5, flux)
    filler = GapFiller(3, tolerance=1e-6).fit(flux[:300], weight[:300])
    hole = np.where(np.arange(200) == 60, 0, weight)
    assert np.abs(filler.transform(flux, hole)[:, 60] - 2.5).max() < 1e-3


def test_identical_spectra_have_components_without_strength():
    "Nothing varies: the mean is all there is, and no number is lost."
    flux, weight = np.tile(np.linspace(1, 2, 50), (30, 1)), np.full((30, 50), 100.0)
    weight[::3, 10:14] = 0
    filler = GapFiller(3).fit(flux, weight)
    assert filler.converged and (filler.scale < 1e-6).all()
    assert np.allclose(filler.transform(flux, weight), flux, atol=1e-9)


def test_a_table_of_one_spectrum_without_its_axis_is_refused(sample, filler):
    _, flux, weight = sample
    for call in (filler.transform, filler.coefficients):
        for wrong in ((flux[0], weight[0]), (1.0, 1.0), (flux[:4], weight[:3])):
            with pytest.raises(DataError, match="one shape|pixels for components"): call(*wrong)


def test_whole_spectra_keep_what_was_measured():
    "Filled pixels weigh as much as the row's median; a row without data stays masked and says so."
    random = np.random.default_rng(4)
    flux = 1 + random.normal(size=(80, 2)) @ random.normal(size=(2, 40)) + 0.01 * random.normal(size=(80, 40))
    weight = np.where(random.random((80, 40)) < 0.2, 0, 1e4 * random.uniform(0.5, 2, (80, 40)))
    weight[5] = 0
    spectra = Spectra(flux, weight, np.zeros(80), rest_survey("forty", 4000.0, 8000.0, 40))
    whole = fill_gaps(GapFiller(2).fit(flux, weight), spectra)
    rows = np.arange(80) != 5
    np.testing.assert_array_equal(whole.good, rows)
    np.testing.assert_array_equal(whole.flux[~spectra.mask], spectra.flux[~spectra.mask])
    np.testing.assert_array_equal(whole.ivar[~spectra.mask], spectra.ivar[~spectra.mask])
    assert not whole.mask[rows].any()
    assert whole.mask[5].all()
    for row in (0, 9):
        gap = spectra.mask[row]
        np.testing.assert_allclose(whole.ivar[row][gap], np.median(spectra.ivar[row][~gap]), rtol=1e-6)
    shorter = GapFiller(2).fit(flux[:, :39], weight[:, :39])
    with pytest.raises(SpectrumError, match="40 pixels for a filler of 39"): fill_gaps(shorter, spectra)
