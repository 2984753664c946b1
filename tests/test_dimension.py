"""The rule for the number of latents, on models whose likelihood is known, and the criteria beside it."""

import numpy as np
import pytest
from astropy.table import Table

from spectral_core.analysis.dimension import COLUMNS, bic, choose_dimension, elbow, n_conditions, summarise, synthetic_manifold
from spectral_core.core import DataError


def ppca_fits(manifold, noise, dimensions, n_train):
    "Probabilistic PCA with known noise: exact log-likelihoods of held-out spectra, by the full covariance."
    train, test = manifold.flux[:n_train].astype(float), manifold.flux[n_train:].astype(float)
    mean, m = train.mean(0), train.shape[1]
    _, s, v = np.linalg.svd(train - mean, full_matrices=False)
    rows = []
    for d in dimensions:
        w = v[:d].T * np.sqrt(np.maximum(s[:d] ** 2 / n_train - noise**2, 0))
        covariance = w @ w.T + noise**2 * np.eye(m)
        x, log_det = test - mean, np.linalg.slogdet(2 * np.pi * covariance)[1]
        log_l = -0.5 * ((x @ np.linalg.inv(covariance) * x).sum(1) + log_det)
        rest = x - x @ v[:d].T @ v[:d]
        chi2 = (rest**2).sum(1).mean() / noise**2
        rows.append((d, "none", 0, len(test), log_l.mean(), log_l.mean(), chi2, d, log_l.std() / np.sqrt(len(test))))
    return Table(rows=rows, names=[*COLUMNS, "iwae_error"])


@pytest.mark.parametrize("dimension", [2, 4, 6])
def test_the_rule_finds_the_dimension_of_flat_manifolds(dimension):
    right, elbows = 0, 0
    for seed in range(5):
        manifold = synthetic_manifold(1200, dimension, 40, 0.5, seed, curvature=0)
        choice = choose_dimension(ppca_fits(manifold, 0.5, range(1, 11), 800))
        right, elbows = right + (choice.dimension == dimension), elbows + (choice.elbow == dimension)
        assert choice.best >= choice.dimension
    assert right >= 4 and elbows >= 4


def test_linear_models_count_the_straight_directions_of_a_bent_manifold():
    manifold = synthetic_manifold(3000, 2, 40, 0.2, curvature=0.6)
    assert choose_dimension(ppca_fits(manifold, 0.2, range(1, 11), 2000)).dimension > 2


def fits(seeds=3, conditions=("none", "mass"), scatter=0.2):
    "IWAE rises up to three latents and is flat above, with a slight noise that favours five."
    rows = [(d, c, s, 500, -80 + 5 * min(d, 3) + scatter * (s - 1) + 0.005 * d, -85.0, 85 - 5.0 * min(d, 3), min(d, 3))
            for c in conditions for d in range(1, 6) for s in range(seeds)]  # fmt: skip
    return Table(rows=rows, names=list(COLUMNS))


def test_the_rule_takes_the_smallest_within_an_error_of_the_best():
    choice = choose_dimension(fits())
    error = 0.2 / np.sqrt(3)
    assert (choice.best, choice.dimension, choice.elbow, choice.active) == (5, 3, 3, 3)
    assert choice.threshold == pytest.approx(-80 + 15 + 0.025 - error)
    assert choose_dimension(fits(scatter=1e-4)).dimension == 5  # without scatter a hundredth of a nat decides


def test_the_error_over_spectra_joins_that_over_seeds():
    table = fits()
    table["iwae_error"] = 0.3
    assert np.allclose(summarise(table)["iwae_error"], np.hypot(0.2 / np.sqrt(3), 0.3))
    single = table[table["seed"] == 1]
    assert np.allclose(summarise(single)["iwae_error"], 0.3) and choose_dimension(single).dimension == 3


def test_paired_differences_see_what_the_scatter_between_spectra_hides():
    random, table = np.random.default_rng(0), fits()
    assert choose_dimension(table).paired is None
    shared, own = random.normal(0, 300, 500), random.normal(0, 0.3, (len(table), 500))
    table["bounds"] = shared + own + np.asarray(table["iwae"])[:, None]
    table["bounds"][4, 7] = np.nan  # a spectrum that one model cannot use is left out for all
    table["iwae_error"] = 300 / 500**0.5
    choice = choose_dimension(table)
    assert choice.dimension == 1 and choice.paired == 3


def test_criteria_are_what_the_words_say():
    rows = summarise(fits())
    for row in rows:
        mean = 85 - 5 * min(row["n_latent"], 3)
        k = row["n_latent"] + (row["conditions"] == "mass")
        assert row["k"] == k
        assert row["bic"] == pytest.approx(k * np.log(500) + mean)
        assert row["bic_total"] == pytest.approx(k * np.log(500) + 500 * mean)
        assert row["bic_iwae"] == pytest.approx(k * np.log(500) - 2 * 500 * row["iwae"])
    choice = choose_dimension(fits())
    assert (choice.by_bic, choice.by_bic_total, choice.by_bic_iwae) == (1, 3, 3)
    assert bic(4, 31_657, 904.2) == pytest.approx(945.65, abs=0.01)
    assert [n_conditions(c) for c in ("", "none", "mass", "mass+SFR+dust")] == [0, 0, 1, 3]


def test_the_published_criterion_moves_with_the_number_of_spectra_and_ours_does_not():
    few, many = fits(), fits()
    few["n"], many["n"] = 50, 10**9
    assert choose_dimension(many).by_bic < choose_dimension(few).by_bic
    assert choose_dimension(many).dimension == choose_dimension(few).dimension


def test_elbows():
    assert elbow(np.arange(1, 7), np.array([900, 400, 150, 64, 63.5, 63])) == 4
    assert elbow(np.array([3, 1, 2, 4]), np.array([64, 900, 65, 64])) == 2
    assert elbow(np.array([1, 2]), np.array([9, 1])) is None
    assert elbow(np.array([1, 2, 3]), np.array([5, 5, 5])) is None


def test_bad_tables_say_what_is_wrong():
    table = fits()
    with pytest.raises(DataError, match="there are 'mass', 'none'"): choose_dimension(table, "SFR")
    with pytest.raises(DataError, match="needs a standard error"): choose_dimension(fits(seeds=1))
    with pytest.raises(DataError, match="columns conditions, n, iwae, elbo, chi2, active"): summarise(table["n_latent", "seed"])
    with pytest.raises(DataError, match="without a row"): choose_dimension(table[:0])
    table["chi2"][7] = np.inf
    with pytest.raises(DataError, match=r"chi2 is inf for 3 latents, conditions 'none', seed 1 \(1 such fits\)"):
        choose_dimension(table)


def test_manifolds_are_what_they_claim():
    made = synthetic_manifold(4000, 4, 50, 0.3, seed=1)
    assert made.flux.shape == made.ivar.shape == made.clean.shape == (4000, 50) and made.latents.shape == (4000, 4)
    assert np.mean((made.flux - made.clean) ** 2 * made.ivar) == pytest.approx(1, abs=0.01)
    flat = synthetic_manifold(4000, 4, 50, 0.3, seed=1, curvature=0).clean
    assert np.linalg.matrix_rank(flat - flat.mean(0), tol=1e-6) == 4
    assert np.linalg.matrix_rank(made.clean - made.clean.mean(0), tol=1e-6) == 12
    assert np.array_equal(made.flux, synthetic_manifold(4000, 4, 50, 0.3, seed=1).flux)
    assert not np.array_equal(made.flux, synthetic_manifold(4000, 4, 50, 0.3, seed=2).flux)
    rough = np.abs(np.diff(made.clean, axis=1)).mean()
    assert rough < np.abs(np.diff(np.random.default_rng(0).permuted(made.clean, axis=1), axis=1)).mean() / 2
    with pytest.raises(DataError, match="13 pixels"): synthetic_manifold(10, 4, 12)


def test_bounds_alone_are_enough_and_those_that_do_not_match_are_refused():
    random, table = np.random.default_rng(0), fits()
    table["bounds"] = random.normal(0, 3, (len(table), 500)) + np.asarray(table["iwae"])[:, None]
    del table["iwae"]
    rows = summarise(table)
    assert rows["iwae"][0] == pytest.approx(np.mean(table["bounds"][(table["n_latent"] == 1) & (table["conditions"] == "mass")]))
    assert {"deficit", "deficit_error"} <= set(choose_dimension(table).summary.colnames)
    assert choose_dimension(table).paired == 3 and "iwae" not in table.colnames
    broken = table.copy()
    broken["bounds"] = np.nan
    with pytest.raises(DataError, match="0 spectra have a bound"): choose_dimension(broken)
