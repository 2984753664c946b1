"""Importance weights against known integrals, a plain Pareto fit, and another prior; draws that cannot be."""

import numpy as np
import pytest
import torch
from linear_galaxies import Model, Prior, draw, log_evidence, observe, posterior
from scipy.stats import genpareto

from spectral_core.core import ConfigError, DataError
from spectral_core.inference.reweight import (
    change_prior,
    importance_weights,
    pareto_smooth,
    resample,
    support_p_value,
    weighted_draws,
)
from spectral_core.simulate import priors


class Proposal:
    "The exact posterior of linear galaxies, in free coordinates, wider by `width` and shifted by `shift` of its σ."

    def __init__(self, mags, width=1.2, shift=0.0):
        self.laws = []
        for row in mags:
            mean, covariance = posterior(row)
            centre = Prior().to_free(mean[None], None)[0]
            slope = 5.5 * torch.exp(-0.5 * centre[0] ** 2) / (2 * torch.pi) ** 0.5  # d log M / d free
            scale = torch.cat([slope[None], torch.ones(3, dtype=torch.float64)])
            covariance = covariance / torch.outer(scale, scale)
            centre = centre + shift * covariance.diagonal().sqrt()
            self.laws.append(torch.distributions.MultivariateNormal(centre, width**2 * covariance))

    def sample_free(self, mags, sigma, state, z, n, seed):
        torch.manual_seed(seed)
        return torch.stack([law.sample((n,)) for law in self.laws])

    def log_prob_free(self, free, mags, sigma, state, z):
        return torch.stack([law.log_prob(rows) for law, rows in zip(self.laws, free)])


@pytest.mark.parametrize(("width", "shift"), [(1.0, 0.0), (1.3, 0.3)])
def test_weights_give_the_known_evidence_and_posterior(width, shift):
    _, mags, sigma, z = observe(4)
    found = weighted_draws(Proposal(mags, width, shift), Model(), Prior(), mags, sigma, None, z, 20_000)
    assert ((found.weights.log_evidence - log_evidence(mags)).abs() < 4 * found.weights.log_evidence_error + 1e-3).all()
    assert (found.weights.k_hat < 0.5).all() and (found.weights.effective > 8000).all()
    for g in range(4):
        mean, covariance = posterior(mags[g])
        weight = found.weights.weight[g, :, None]
        width_found = ((weight * (found.theta[g] - mean) ** 2).sum(0)).sqrt()
        assert (((weight * found.theta[g]).sum(0) - mean).abs() < 0.05 * covariance.diagonal().sqrt()).all()
        assert torch.allclose(width_found, covariance.diagonal().sqrt(), rtol=0.05)


def test_a_perfect_proposal_needs_no_weights():
    "The mass is uniform in log and normal in the likelihood, so only the bend of the free coordinate is left."
    _, mags, sigma, z = observe(3)
    found = weighted_draws(Proposal(mags, 1.0), Model(), Prior(), mags, sigma, None, z, 5000)
    assert (found.weights.effective > 4700).all()


def test_a_proposal_that_is_far_too_narrow_or_far_off_is_caught():
    _, mags, sigma, z = observe(3)
    for proposal in (Proposal(mags, 0.4), Proposal(mags, 1.0, shift=4.0)):
        found = weighted_draws(proposal, Model(), Prior(), mags, sigma, None, z, 5000)
        assert (found.weights.k_hat > 0.7).all() or (found.weights.effective < 250).all()


def test_weights_do_not_depend_on_the_constant():
    random = torch.Generator().manual_seed(0)
    target, proposal = torch.randn(2, 3, 500, generator=random, dtype=torch.float64)
    first, second = importance_weights(target, proposal), importance_weights(target - 800, proposal + 300)
    assert torch.allclose(first.weight, second.weight) and torch.allclose(first.log_evidence - 1100, second.log_evidence)


def test_each_galaxy_is_weighted_alone():
    random = torch.Generator().manual_seed(1)
    ratio = 2 * torch.randn(5, 400, generator=random, dtype=torch.float64)
    together = importance_weights(ratio, torch.zeros_like(ratio))
    for g in range(5): assert torch.equal(importance_weights(ratio[g : g + 1], torch.zeros(1, 400)).weight[0], together.weight[g])


def plain_pareto(excess):
    "Zhang & Stephens (2009), as a loop; then the prior of Vehtari+24."
    m, x = len(excess), np.sort(excess)
    n = 30 + int(np.sqrt(m))
    grid = [1 / x[-1] + (1 - np.sqrt(n / (j - 0.5))) / (3 * x[int(m / 4 + 0.5) - 1]) for j in range(1, n + 1)]
    profile = [m * (np.log(-b / np.mean(np.log1p(-b * x))) - np.mean(np.log1p(-b * x)) - 1) for b in grid]
    weights = [1 / sum(np.exp(other - one) for other in profile) for one in profile]
    b = np.dot(weights, grid)
    k = np.mean(np.log1p(-b * x))
    return (k * m + 5) / (m + 10), k, -k / b


def test_the_tail_is_smoothed_as_a_plain_loop_would():
    random = np.random.default_rng(0)
    log_weight = np.stack([random.standard_t(3, 2000), random.normal(size=2000) * 2, np.log(random.pareto(1.5, 2000))])
    smooth, k_hat = pareto_smooth(torch.as_tensor(log_weight))
    for row, found, k_found in zip(log_weight, smooth.numpy(), k_hat.numpy()):
        m = int(min(0.2 * 2000, 3 * 2000**0.5))
        order = np.argsort(row)
        weight = np.exp(row - row.max())
        cut = weight[order[-m - 1]]
        k, k_raw, scale = plain_pareto(weight[order[-m:]] - cut)
        assert k_found == pytest.approx(k, abs=1e-8)
        if k > 1:  # no mean: left alone
            np.testing.assert_allclose(found, row, atol=1e-12)
            continue
        wanted = np.minimum(np.log(cut + genpareto.ppf((np.arange(m) + 0.5) / m, k, scale=scale)), 0) + row.max()
        np.testing.assert_allclose(found[order[-m:]], wanted, atol=1e-6)
        np.testing.assert_allclose(found[order[:-m]], row[order[:-m]], atol=1e-12)
    assert (k_hat > 1).sum() == 1


def test_smoothing_makes_heavy_tailed_estimates_steadier():
    "Weights with infinite variance (k = 0.6), mean known: the scatter over 200 repetitions goes down."
    u = torch.rand(200, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ratio = -0.6 * u.log()
    means = [torch.logsumexp(r, 1) - np.log(1000) for r in (ratio, pareto_smooth(ratio)[0])]
    assert means[1].var() < 0.8 * means[0].var()
    assert abs(float(means[1].exp().mean()) * 0.4 - 1) < 0.05


def test_resampled_draws_follow_the_weights():
    _, mags, sigma, z = observe(2)
    found = weighted_draws(Proposal(mags, 1.3, 0.3), Model(), Prior(), mags, sigma, None, z, 20_000)
    draws = resample(found.theta, found.weights.weight, 4000)
    for g in range(2):
        exact = draw(mags[g], 4000)
        assert ((draws[g].mean(0) - exact.mean(0)).abs() < 0.1 * exact.std(0)).all()
        assert torch.allclose(draws[g].std(0), exact.std(0), rtol=0.08)
    one, again = (resample(found.theta, found.weights.weight, 100, seed=1) for _ in range(2))
    assert torch.equal(one, again)


def test_there_and_back_again_to_another_prior():
    "Weights to another prior and then back are equal."
    flat, code = priors.Prior("flat"), priors.Prior("code")
    z = torch.tensor([0.02, 0.05], dtype=torch.float64)
    theta = torch.stack([code.sample(4000, z[g].expand(4000), seed=g) for g in range(2)])
    there = change_prior(theta, z, code, flat, smooth=False)
    back = change_prior(theta, z, flat, code, weight=there.weight, smooth=False)
    assert torch.allclose(back.weight, torch.full_like(back.weight, 1 / 4000), rtol=1e-4)
    assert (there.log_evidence.abs() < 4 * there.log_evidence_error).all()  # both priors are normalised
    with pytest.raises(ConfigError, match="reaches beyond"):
        change_prior(theta, z, flat, priors.Prior("flat", log_mstar=(6.0, 12.5)))


def test_impossible_draws_weigh_nothing():
    target, proposal = torch.zeros(2, 100), torch.zeros(2, 100)
    target[0, :50], proposal[0, 50:60], target[1] = torch.nan, torch.inf, -torch.inf
    found = importance_weights(target, proposal)
    assert float(found.effective[0]) == pytest.approx(40) and found.weight[0, :60].sum() == 0
    assert found.effective[1] == 0 and found.weight[1].sum() == 0
    assert found.log_evidence[1] == -torch.inf and found.k_hat[1] == torch.inf
    with pytest.raises(DataError, match="galaxy 1 has no draw"): resample(torch.zeros(2, 100, 3), found.weight)
    with pytest.raises(DataError, match="too few"): importance_weights(target[:, :20], proposal[:, :20])


def test_support_p_values_are_uniform_for_mocks_and_small_for_what_no_mock_is():
    chi2 = torch.distributions.Chi2(torch.tensor(2.0)).sample((3000,))
    n_band = torch.arange(3000) % 3 + 3
    chi2 = chi2 * n_band  # each number of bands has its own law
    p = support_p_value(chi2[:1500], n_band[:1500], chi2[1500:], n_band[1500:])
    for n in (3, 4, 5): assert abs(float((p[n_band[:1500] == n] < 0.2).float().mean()) - 0.2) < 0.07
    assert float(support_p_value(torch.tensor([500.0]), torch.tensor([4]), chi2, n_band)) == pytest.approx(1 / 1001)
    assert torch.isnan(support_p_value(torch.tensor([1.0]), torch.tensor([2]), chi2, n_band)).all()
