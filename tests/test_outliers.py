"""Ranking, calibrated tails, recall and AUC: laws, and the faults 15 and 33."""

import numpy as np
import pytest
from astropy.table import Table
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, kstest

from spectral_core.analysis.detection import auc, binomial_interval, budget_threshold, recall_at_budget, roc_curve
from spectral_core.analysis.outliers import (
    LISTS,
    NOISE_CHI2,
    TailCalibration,
    covariates,
    load_calibration,
    misfit,
    rank_outliers,
    rank_stability,
    save_calibration,
    tail_rank,
)
from spectral_core.core import ConfigError, DataError, Flag, ModelFileError, SpectrumError
from spectral_core.spectra.container import Spectra

quiet = settings(max_examples=60, deadline=None, derandomize=True)
scores = st.lists(st.floats(-50, 50), min_size=1, max_size=30)


def flat(n: int, sn: float | np.ndarray = 10.0, seed: int = 0) -> Spectra:
    "Flat normalised spectra with noise, ids far beyond 32 bits."
    rng = np.random.default_rng(seed)
    sn = np.broadcast_to(np.asarray(sn, float), (n,))[:, None]
    flux = 1 + rng.standard_normal((n, 3921)) / sn
    ids = 2**60 + np.arange(n)
    table = Table({"norm": np.ones(n)})
    return Spectra(flux, np.broadcast_to(sn**2, flux.shape), rng.uniform(0.02, 0.3, n), "sdss", id=ids, table=table)


# ---- ranking


def test_every_row_stands_in_exactly_one_list():
    spectra = flat(8)
    flux, ivar, z = spectra.flux.copy(), spectra.ivar.copy(), spectra.z.copy()
    flux[1, 5], ivar[2], z[3] = 101.0, 0.0, np.nan
    spectra = spectra.replace(flux=flux, ivar=ivar, z=z)
    log_prob = np.array([-1.0, -2, -3, -4, np.nan, -6, -7, -8])
    chi2_valid = np.array([1.0, 1, 1, 1, 1, 1, 1, NOISE_CHI2 + 1.5])  # misfit 0.122 at S/N 10
    ranked = rank_outliers(spectra, log_prob=log_prob, chi2={"chi2_all": chi2_valid, "chi2_valid": chi2_valid})
    assert sorted(ranked["row"]) == list(range(8))
    where = dict(zip(ranked["row"], ranked["list"]))
    assert [where[i] for i in range(8)] == [LISTS[i] for i in (0, 1, 3, 3, 4, 0, 0, 2)]
    assert list(ranked["row"][:3]) == [6, 5, 0]
    assert list(ranked["rank"]) == [1, 2, 3, -1, -1, -1, -1, -1]
    reason = dict(zip(ranked["row"], ranked["reason"]))
    for row, words in {1: "100", 2: "no data with a usable error", 3: "no redshift", 4: "log p"}.items():
        assert words in reason[row]
    assert not reason[0]
    assert ranked["id"].dtype == np.int64 and (ranked["id"] == spectra.id[ranked["row"]]).all()


@pytest.mark.parametrize("n", [0, 1, 2])
def test_fault_15_few_or_no_spectra(n):
    spectra = flat(3)[np.arange(n)]
    chi2_table = Table({"chi2_all": np.ones(n), "chi2_valid": np.ones(n)})
    results = rank_outliers(spectra, log_prob=-np.arange(n), chi2=chi2_table)
    assert len(results) == n and list(results["rank"]) == list(range(1, n + 1))
    assert covariates(spectra).shape == (n, 3)
    tail = TailCalibration(np.arange(20.0), np.zeros((20, 3)), k=10)
    assert tail.probability(spectra, np.zeros(n)).shape == (n,)


def test_fault_33_not_finite_log_prob_is_never_ranked():
    "NumPy sorts NaN last: a broken object would rank as the most normal, an infinite one as the most unusual."
    log_prob = np.array([np.nan, -3.0, np.inf, -np.inf, -5.0])
    ranked = rank_outliers(flat(5), log_prob=log_prob)
    assert list(ranked["row"][:2]) == [4, 1]
    rest = ranked[2:]
    assert set(rest["row"]) == {0, 2, 3} and set(rest["list"]) == {"not finite"} and set(rest["rank"]) == {-1}
    score = -log_prob
    score[3] = np.nan
    assert np.isfinite(auc(score, [0.0, 1.0]).value)
    tail = TailCalibration(np.arange(20.0), np.zeros((20, 3)), k=5)
    assert np.isnan(tail(log_prob, np.zeros((5, 3))))[[0, 2, 3]].all()


def test_a_fatal_flag_beats_a_fine_score():
    spectra = flat(3).replace(flag=np.array([0, Flag.BAD_NORM, Flag.LITTLE_COVERAGE]))
    ranked = rank_outliers(spectra, log_prob=[-1.0, -99.0, -50.0])
    assert list(ranked["row"]) == [2, 0, 1] and ranked["list"][2] == "flagged"
    assert "little coverage" in ranked["reason"][0] and ranked["rank"][0] == 1  # information only


@quiet
@given(st.permutations(range(9)))
def test_order_does_not_depend_on_row_order(order):
    spectra, log_prob = flat(9), np.array([-1.0, -1, -5, -5, np.nan, -9, -2, -2, -2])
    expected = rank_outliers(spectra, log_prob=log_prob)["id"]
    assert (rank_outliers(spectra[order], log_prob=log_prob[list(order)])["id"] == expected).all()


def test_bad_arguments_say_what_to_do():
    spectra = flat(3)
    with pytest.raises(DataError, match="one value per row"): rank_outliers(spectra, log_prob=np.zeros(2))
    with pytest.raises(ConfigError, match="tail="): rank_outliers(spectra, log_prob=[0.0] * 3, by="tail_probability")
    with pytest.raises(SpectrumError, match="preprocess"): rank_outliers(spectra.replace(table=Table()), log_prob=[0.0] * 3)


def test_misfit_recovers_a_planted_one():
    "A reconstruction wrong by 20 % of the continuum has misfit 0.2 whatever the S/N, once χ² rises above its allowance."
    for sn in (20.0, 80.0):
        spectra = flat(4, sn, seed=3)
        chi2_valid = ((spectra.flux - 1.2) ** 2 * spectra.ivar).mean(axis=1)
        assert misfit(chi2_valid, np.full(4, sn)) == pytest.approx(0.2, abs=0.005)


# ---- calibrated tails


@quiet
@given(scores, st.lists(st.floats(-50, 50), min_size=2, max_size=40))
def test_tail_rank_is_a_falling_probability(values, sample):
    value = np.sort(values)
    p = tail_rank(value, np.tile(sample, (len(value), 1)))
    assert ((p >= 0) & (p <= 1)).all() and (np.diff(p) <= 1e-12).all()


def test_tail_rank_is_uniform_for_draws_from_the_sample():
    rng = np.random.default_rng(0)
    for law in (lambda s: rng.gamma(3, 1, s), rng.standard_normal, lambda s: rng.integers(0, 9, s) + 0.0):
        p = tail_rank(law(3000), law((3000, 100)))
        for level in (0.01, 0.05, 0.2): assert (p <= level).mean() < level + 0.012  # never too eager
    assert kstest(tail_rank(rng.gamma(3, 1, 3000), rng.gamma(3, 1, (3000, 100))), "uniform").pvalue > 1e-3


def sample(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    "Conditions, and a −log p that scatters more where the S/N is low."
    rng = np.random.default_rng(seed)
    conditions = np.column_stack([rng.uniform(0.02, 0.4, n), rng.uniform(0.3, 1.6, n), rng.uniform(0.95, 0.99, n)])
    return conditions, chi2.rvs(6, size=n, random_state=rng) / 2 * (1 + 6 / 10 ** conditions[:, 1])


def test_noisy_is_not_rare():
    (known, known_score), (conditions, score) = sample(6000, 1), sample(3000, 2)
    faint = conditions[:, 1] < 0.6
    p = TailCalibration(known_score, known)(score, conditions)
    raw = score > np.quantile(score, 0.95)
    assert raw[faint].mean() > 3 * raw[~faint].mean()  # raw: the faint fill the list
    assert (p[faint] < 0.05).mean() == pytest.approx((p[~faint] < 0.05).mean(), abs=0.025)


def test_calibration_survives_its_file_and_damage_is_noticed(tmp_path):
    conditions, score = sample(2000, 3)
    tail = TailCalibration(score, conditions, k=50)
    path = save_calibration(tail, tmp_path / "tail.safetensors")
    assert path.stat().st_size < 1_000_000 * 2000 / 60_000 * 1.1  # 60,000 spectra fit into 1 MB
    back = load_calibration(path)
    assert back.k == 50 and (back(score[:200], conditions[:200]) == tail(score[:200], conditions[:200])).all()
    whole = path.read_bytes()
    for keep in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:keep])
        with pytest.raises(ModelFileError, match="write it again"): load_calibration(path)
    with pytest.raises(ModelFileError): load_calibration(tmp_path / "none.safetensors")


def test_stability_of_rankings():
    rng = np.random.default_rng(0)
    truth = rng.standard_normal(2000)
    runs = truth + 0.1 * rng.standard_normal((3, 2000))
    runs[0, 0] = np.nan
    close, far = rank_stability(runs), rank_stability(truth + 3.0 * rng.standard_normal((3, 2000)))
    assert close["n"] == 1999 and close["spearman"] > 0.95 > far["spearman"] and close["overlap"] > 0.7 > far["overlap"]
    assert close["spearman_matrix"].shape == (3, 3)
    with pytest.raises(DataError, match="too few"): rank_stability(np.full((2, 5), np.nan))


# ---- AUC and recall


@quiet
@given(scores, scores)
def test_auc_is_the_share_of_ordered_pairs(a, b):
    a, b = np.array(a), np.array(b)
    direct = ((a[:, None] > b) + 0.5 * (a[:, None] == b)).mean()
    found = auc(a, b, n_bootstrap=20)
    assert found.value == pytest.approx(direct)
    assert auc(b, a, n_bootstrap=20).value == pytest.approx(1 - direct)
    fpr, tpr = roc_curve(a, b)
    assert np.trapezoid(tpr, fpr) == pytest.approx(direct)
    assert 0 <= found.low <= found.high <= 1


def test_bootstrap_equals_resampling_one_by_one():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal(40) + 1, rng.standard_normal(60)
    slow = [auc(rng.choice(a, 40), rng.choice(b, 60), n_bootstrap=2).value for _ in range(800)]
    fast = auc(a, b, level=0.68)
    assert (fast.high - fast.low) / 2 == pytest.approx(np.std(slow), rel=0.15)


def test_recall_counts_the_flagged_and_keeps_to_the_budget():
    rng = np.random.default_rng(0)
    score = np.concatenate([rng.standard_normal(5000), rng.standard_normal(200) + 10, np.full(25, np.nan)])
    group = np.repeat(["", "odd", "broken", ""], [5000, 200, 20, 5])
    table = recall_at_budget(score, group != "", group, budget=0.01)
    rows = {r["group"]: r for r in table}
    assert rows["broken"]["flagged"] == 20 and rows["broken"]["recall"] == 1 and np.isnan(rows["broken"]["auc"])
    assert rows["odd"]["recall"] == 1 and rows["odd"]["auc"] > 0.999 and rows["all"]["n"] == 220
    assert table.meta["ordinary_flagged"] == 5
    assert np.nanmean(score[group == ""] > table.meta["threshold"]) <= 0.01
    with pytest.raises(DataError, match="budget"): budget_threshold(np.arange(50), 0.01)
    with pytest.raises(DataError, match="length"): recall_at_budget(score, group != "", group[:3])


def test_binomial_interval_covers():
    rng = np.random.default_rng(0)
    for n, p in ((15, 0.5), (60, 0.9), (200, 0.05)):
        low, high = binomial_interval(rng.binomial(n, p, 4000), np.full(4000, n), 0.68)
        assert ((low <= p) & (p <= high)).mean() == pytest.approx(0.68, abs=0.14)


def test_planted_outliers_are_found():
    "reliability.md §4: 1 % odd spectra in a Gaussian latent space, scored by its density, reach AUC ≥ 0.9."
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((3000, 6))
    odd = np.arange(3000) < 30
    latents[odd] *= 2.5
    neg_log_prob = 0.5 * (latents**2).sum(axis=1)
    assert auc(neg_log_prob[odd], neg_log_prob[~odd]).value > 0.9
