"""Calibration: right posteriors pass, each kind of wrong one is caught, and the answers are those of slow, plain loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial import cKDTree

from spectral_core.core import DataError
from spectral_core.inference.calibration import (
    LinearGaussian,
    c2st,
    calibration_table,
    compare_draws,
    conditional_table,
    coverage,
    coverage_curve,
    distance_scores,
    ecdf_band,
    percentile_scores,
    quantiles,
    ranks,
)

rng = np.random.default_rng(0)
NAMES = list("abcdef")
PROBLEM = LinearGaussian.random(4, 6, seed=1)  # fewer data than parameters, like five bands for eleven
THETA, X = PROBLEM.simulate(1000, seed=1)


def posterior(n=300, **wrong):
    return PROBLEM.sample(X, n, seed=2, **wrong)


def ks(scores):
    return stats.kstest(scores, "uniform").pvalue


def weights_of(draws, width, x=X):
    "Right over too wide a posterior, at its draws, from the densities of scipy."
    right = stats.multivariate_normal(cov=PROBLEM.covariance)
    proposal = stats.multivariate_normal(cov=width**2 * PROBLEM.covariance)
    step = draws - PROBLEM.mean(x)[:, None]
    return np.exp(right.logpdf(step) - proposal.logpdf(step)).reshape(step.shape[:2])


# ------------------------------------------------------------------ the known posterior


def test_the_known_posterior_is_prior_times_likelihood():
    "log p(θ|x) - log p(θ) - log p(x|θ) does not depend on θ."
    theta = rng.normal(size=(50, 6))
    post = stats.multivariate_normal(PROBLEM.mean(X[:1])[0], PROBLEM.covariance).logpdf(theta)
    likelihood = stats.norm(theta @ PROBLEM.matrix.T, PROBLEM.sigma).logpdf(X[0]).sum(1)
    assert np.ptp(post - likelihood - stats.norm.logpdf(theta).sum(1)) < 1e-9


def test_the_known_posterior_passes_everything():
    draws = posterior()
    scores = percentile_scores(draws, THETA)
    assert calibration_table(scores, NAMES).meta["passed"]
    assert conditional_table(scores, X, NAMES, list("wxyz")).meta["passed"]
    assert ks(distance_scores(draws, THETA)) > 0.01
    assert np.abs(coverage(scores) - [[0.68], [0.95]]).max() < 0.05
    u, low, high = ecdf_band(len(scores), n_curve=6)
    share = (scores[:, :, None] < u).mean(0)
    assert ((share >= low) & (share <= high)).all()


# ------------------------------------------------------------------ what is wrong is caught


@pytest.mark.parametrize("wrong, column, sign", [
    (dict(width=0.8), "width", 1), (dict(width=1.25), "width", -1),
    (dict(shift=0.25), "shift", -1), (dict(shift=-0.25), "shift", 1),
], ids=str)
def test_a_posterior_too_narrow_or_wide_or_shifted_is_caught_by_sbc_tarp_and_c2st(wrong, column, sign):
    draws = posterior(**wrong)
    table = calibration_table(percentile_scores(draws, THETA), NAMES)
    assert not table.meta["passed"] and (sign * table[column] > 4).sum() >= 5
    corner = np.full(THETA.shape, 3.0)  # seen from one side; from all sides a shift is nearer as often as farther
    assert ks(distance_scores(draws, THETA, references=corner if "shift" in wrong else None)) < 0.01
    assert ks(distance_scores(posterior(), THETA, references=corner)) > 0.01
    told = c2st(draws[0], PROBLEM.sample(X[:1], 300, seed=5)[0])
    assert told.accuracy > 0.5 + 3 * told.error


def test_each_parameter_answers_for_itself():
    draws = posterior()
    draws[:, :, 3] += 0.5
    assert list(calibration_table(percentile_scores(draws, THETA), NAMES)["passed"]) == [k != 3 for k in range(6)]


def test_the_prior_as_posterior_is_caught_only_by_what_looks_at_the_data():
    prior = rng.normal(size=(1000, 300, 6))
    scores = percentile_scores(prior, THETA)
    assert calibration_table(scores, NAMES).meta["passed"] and ks(distance_scores(prior, THETA)) > 0.01
    assert not conditional_table(scores, X, NAMES, list("wxyz")).meta["passed"]
    others, their_x = PROBLEM.simulate(5000, seed=8)
    alike = others[cKDTree(their_x).query(X)[1]]
    assert ks(distance_scores(prior, THETA, references=alike)) < 1e-9
    assert ks(distance_scores(posterior(), THETA, references=alike)) > 0.01


def test_a_width_right_on_average_only_is_caught_by_its_feature():
    "Too narrow for half of the objects, too wide for the other half."
    good = X[:, 0] > 0
    draws = np.where(good[:, None, None], posterior(width=0.7), posterior(width=1.45))
    table = conditional_table(percentile_scores(draws, THETA), X[:, :1], NAMES, ["x"])
    assert not table["passed"].any() and (table["width"] > 0.1).all()


def test_the_rule_lets_a_right_posterior_through():
    "A family-wise level of 10 %: of 300 calibrations of six independent uniform columns about 30 fail."
    failed = sum(not calibration_table(scores, NAMES, level=0.1).meta["passed"] for scores in rng.random((300, 100, 6)))
    assert 12 <= failed <= 50


# ------------------------------------------------------------------ scores


def test_ranks_are_those_of_a_loop():
    draws, truth = rng.normal(size=(40, 25, 3)), rng.normal(size=(40, 3))
    loop = [[sum(draws[g, i, k] < truth[g, k] for i in range(25)) for k in range(3)] for g in range(40)]
    assert np.array_equal(ranks(percentile_scores(draws, truth), 25), loop)


def test_scores_are_exactly_uniform_for_any_number_of_draws():
    "Even for three: shares among three draws alone would have four values."
    values = rng.normal(size=(20000, 4, 1))
    assert ks(percentile_scores(values[:, 1:], values[:, 0])[:, 0]) > 0.01


def test_ties_are_broken_evenly():
    values = rng.integers(0, 3, size=(20000, 8, 1))
    scores = percentile_scores(values[:, 1:], values[:, 0])[:, 0]
    assert ks(scores) > 0.01 and np.bincount(ranks(scores, 7), minlength=8).min() > 2300


def test_weights_repair_a_wrong_posterior():
    draws = posterior(1000, width=1.3)
    assert not calibration_table(percentile_scores(draws, THETA), NAMES).meta["passed"]
    weights = weights_of(draws, 1.3)
    assert calibration_table(percentile_scores(draws, THETA, weights), NAMES).meta["passed"]
    assert ks(distance_scores(draws, THETA)) < 0.01 < ks(distance_scores(draws, THETA, weights))
    # a score from few effective draws scatters, but about the one from many
    assert np.abs(percentile_scores(draws, THETA, weights) - percentile_scores(posterior(1000), THETA)).mean() < 0.05


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.integers(1, 6), st.integers(2, 12), st.integers(0, 10**6), st.floats(0.1, 100))
def test_whole_weights_are_repeats(g, n, seed, factor):
    "A draw of weight two counts as two draws; only the sum is free, and rows don't know each other."
    random = np.random.default_rng(seed)
    draws, truth = random.normal(size=(g, n, 2)), random.normal(size=(g, 2))
    times = random.integers(0, 4, size=(g, n))
    times[:, 0] += 1
    share = [[(np.repeat(draws[i, :, k], times[i]) < truth[i, k]).mean() for k in range(2)] for i in range(g)]
    scores = percentile_scores(draws, truth, factor * times)
    n_eff = times.sum(1) ** 2 / np.square(times).sum(1)
    assert (np.abs(scores - share) <= 1 / (n_eff[:, None] + 1) + 1e-9).all()
    assert np.allclose(scores[:1], percentile_scores(draws[:1], truth[:1], times[:1]))


def test_distance_scores_are_those_of_a_loop():
    draws, truth, points = rng.normal(size=(30, 50, 2)), rng.normal(size=(30, 2)), rng.normal(size=(30, 2))
    scale = np.ptp(truth, axis=0)
    distance = lambda v, g: np.hypot(*((v - points[g]) / scale))
    loop = [sum(distance(d, g) < distance(truth[g], g) for d in draws[g]) for g in range(30)]
    assert np.array_equal(ranks(distance_scores(draws, truth, references=points), 50), loop)


# ------------------------------------------------------------------ curves and bands


def test_coverage_of_known_scores():
    assert np.allclose(coverage(np.linspace(0, 1, 10001)[:, None], [0.3, 0.68])[:, 0], [0.3, 0.68], atol=1e-3)
    assert np.allclose(coverage(np.full((9, 2), 0.5)), 1) and np.allclose(coverage(np.full((9, 2), 0.99)), 0)


def test_coverage_curve_has_its_band():
    curve = coverage_curve(rng.random(400))
    assert (curve["low"] <= curve["coverage"]).all() and (curve["coverage"] <= curve["high"]).all()
    assert curve["coverage"][-1] == 1 and np.abs(curve["coverage"] - curve["level"]).max() < 0.1
    middle = len(curve) // 2
    assert np.isclose(curve["high"][middle] - curve["low"][middle], 4 * np.sqrt(0.25 / 400), rtol=0.15)


@pytest.mark.parametrize("n, n_curve", [(100, 1), (1000, 12)])
def test_all_curves_together_stay_in_the_band(n, n_curve):
    u, low, high = ecdf_band(n, level=0.9, n_curve=n_curve)
    counts = rng.multinomial(n, np.full(100, 0.01), size=(2000, n_curve)).cumsum(axis=2)[:, :, :-1] / n
    inside = ((counts >= low - 1e-12) & (counts <= high + 1e-12)).all(axis=(1, 2)).mean()
    assert 0.87 < inside < 0.95


def test_the_band_is_wider_than_the_pointwise_one():
    u, low, high = ecdf_band(1000, level=0.99)
    assert (low <= stats.binom.ppf(0.005, 1000, u) / 1000).all() and (high >= stats.binom.ppf(0.995, 1000, u) / 1000).all()


# ------------------------------------------------------------------ two samples


@pytest.mark.parametrize("kind", ["mlp", "boosting"])
def test_equal_samples_can_not_be_told_apart(kind):
    a, b = (PROBLEM.sample(X[:1], 1000, seed=seed)[0] for seed in (1, 2))
    told = c2st(a, b, classifier=kind)
    assert abs(told.accuracy - 0.5) < 4 * told.error < 0.05
    assert c2st(a, b + 3 * np.sqrt(np.diag(PROBLEM.covariance)), classifier=kind).accuracy > 0.99


@pytest.mark.parametrize("shift", [0.1, 0.3])
def test_accuracy_is_below_the_best_possible_and_near_it(shift):
    "Two normals of one covariance, a Mahalanobis distance d apart, are told apart with Φ(d/2) at best."
    sigma = shift * np.sqrt(np.diag(PROBLEM.covariance))
    best = stats.norm.cdf(0.5 * np.sqrt(sigma @ np.linalg.solve(PROBLEM.covariance, sigma)))
    told = c2st(PROBLEM.sample(X[:1], 1000, seed=1)[0], PROBLEM.sample(X[:1], 1000, seed=2, shift=shift)[0])
    assert best - 0.06 < told.accuracy < best + 3 * told.error


def test_repeats_unequal_numbers_and_shared_draws_do_not_mislead():
    a, b = (PROBLEM.sample(X[:1], 1000, seed=seed)[0] for seed in (1, 2))
    for told in (c2st(a, np.repeat(b[:250], 20, axis=0)), c2st(a, b[:150]), c2st(np.r_[a, b], b)):
        assert abs(told.accuracy - 0.5) < 4 * told.error


def test_weighted_samples_are_compared_with_their_weights():
    right, wide = PROBLEM.sample(X[:1], 1000, seed=1)[0], PROBLEM.sample(X[:1], 1500, seed=3, width=1.3)
    told = c2st(right, wide[0], weights_b=weights_of(wide, 1.3, X[:1])[0])
    assert abs(told.accuracy - 0.5) < 4 * told.error
    assert c2st(right, wide[0]).accuracy > 0.5 + 4 * told.error


# ------------------------------------------------------------------ quantiles


def test_quantiles_of_equal_weights_and_of_repeats():
    draws = rng.normal(size=(5, 400, 2))
    assert np.allclose(quantiles(draws, (0.16, 0.5), np.ones((5, 400))), quantiles(draws, (0.16, 0.5)))
    times = rng.integers(1, 4, size=400)
    weighted, repeated = quantiles(draws, (0.16, 0.84), np.tile(times, (5, 1))), np.repeat(draws, times, axis=1)
    assert np.abs(weighted - quantiles(repeated, (0.16, 0.84))).max() < 0.05


def test_weighted_quantiles_are_those_of_the_target():
    draws = PROBLEM.sample(X[:200], 2000, seed=2, width=1.3)
    found = quantiles(draws, (0.16, 0.84), weights_of(draws, 1.3, X[:200])) - PROBLEM.mean(X[:200])[:, None]
    wanted = np.array([[-1], [1]]) * stats.norm.ppf(0.84) * np.sqrt(np.diag(PROBLEM.covariance))
    assert np.abs(found.mean(0) / wanted - 1).max() < 0.03


def test_comparison_finds_shift_and_width():
    shift, width = compare_draws(posterior(width=0.8, shift=0.3), PROBLEM.sample(X, 600, seed=4))
    assert np.allclose(shift.mean(0), 0.3, atol=0.02) and np.allclose(width.mean(0), 0.8, atol=0.02)


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize("call, word", [
    (lambda: percentile_scores(np.zeros((3, 4)), np.zeros((3, 4))), "wanted"),
    (lambda: percentile_scores(np.zeros((3, 4, 2)), np.zeros((3, 3))), "truths of shape"),
    (lambda: percentile_scores(np.full((3, 4, 2), np.nan), np.zeros((3, 2))), "3 of 3"),
    (lambda: percentile_scores(np.zeros((3, 4, 2)), np.full((3, 2), np.inf)), "not finite"),
    (lambda: percentile_scores(np.zeros((3, 4, 2)), np.zeros((3, 2)), -np.ones((3, 4))), "not negative"),
    (lambda: percentile_scores(np.zeros((3, 4, 2)), np.zeros((3, 2)), np.zeros((3, 4))), "all zero"),
    (lambda: percentile_scores(np.zeros((3, 4, 2)), np.zeros((3, 2)), np.full((3, 4), np.nan)), "finite"),
    (lambda: percentile_scores(np.zeros((3, 4, 2)), np.zeros((3, 2)), np.ones(4)), "one per draw"),
    (lambda: calibration_table(np.full((5, 1), 2.0), ["a"]), "0 … 1"),
    (lambda: calibration_table(np.full((5, 1), np.nan), ["a"]), "finite"),
    (lambda: conditional_table(np.ones((5, 1)), np.full((5, 1), np.nan), ["a"], ["x"]), "finite"),
    (lambda: distance_scores(np.zeros((3, 4, 2)), np.zeros((3, 2)), references=np.zeros(2)), "references"),
    (lambda: c2st(np.zeros((5, 2)), np.zeros((500, 2))), "20 draws"),
    (lambda: compare_draws(np.zeros((3, 4, 2)), np.zeros((2, 4, 2))), "different objects"),
])
def test_bad_input_is_named(call, word):
    with pytest.raises(DataError, match=word): call()
