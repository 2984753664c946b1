"""The learnt likelihood against the exact one, its laws, and p-values of photometry that is right or wrong."""

import pytest
import torch

from spectral_core.core import DataError
from spectral_core.inference.anle import exact_p_value, fit_likelihood, learnt_p_value
from spectral_core.inference.likelihood import log_likelihood
from spectral_core.simulate.photosurvey import mock_photometry
from spectral_core.simulate.provabgs import load_provabgs


@pytest.fixture(scope="module")
def setting():
    "The model, galaxies with all bands that were not trained on, and a likelihood learnt about the model's own magnitudes."
    model = load_provabgs("ssp")
    train, valid, test = (mock_photometry(n, seed, model, limits=0.0, missing=0.02) for seed, n in enumerate((6000, 1500, 1500)))
    learnt = fit_likelihood(train, valid, model, n_epoch=6)
    return model, test[(test.state == 0).all(1)], learnt


def test_it_comes_close_to_the_exact_likelihood_and_not_above_it(setting):
    model, test, learnt = setting
    exact = log_likelihood(model, test.theta[:, None], test.mags, test.sigma, None, test.z)[:, 0]
    lost = exact - learnt.log_prob(test.theta[:, None], test.mags, test.sigma, test.z)[:, 0]
    assert -3 * lost.std() / len(lost) ** 0.5 < lost.mean() < 0.3


def test_its_draws_have_the_noise_that_was_asked_for(setting):
    model, test, learnt = setting
    theta = test.theta[:50, None].expand(-1, 200, -1)
    mags = learnt.sample(theta, test.sigma[:50], test.z[:50])
    residual = (mags - model.magnitudes(test.theta[:50], test.z[:50])[:, None]) / test.sigma[:50, None]
    assert residual.flatten(0, 1).mean(0).abs().max() < 0.2 and (residual.flatten(0, 1).std(0) - 1).abs().max() < 0.15
    assert torch.equal(mags, learnt.sample(theta, test.sigma[:50], test.z[:50]))


def test_p_values_are_uniform_at_the_truth_and_agree(setting):
    model, test, learnt = setting
    truth = test.theta[:, None].expand(-1, 40, -1)
    exact = exact_p_value(model, test.theta[:, None], test.mags, test.sigma, None, test.z)
    found = learnt_p_value(learnt, truth, test.mags, test.sigma, test.z)
    at = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9])
    assert torch.allclose(torch.quantile(exact, at), at, atol=0.06)
    assert torch.allclose(torch.quantile(found, at), at, atol=0.1)
    assert torch.corrcoef(torch.stack([exact, found]))[0, 1] > 0.85


def test_weights_choose_the_draws_that_count(setting):
    model, test, learnt = setting
    wrong = test.theta[:20].clone()
    wrong[:, 0] += 0.5
    theta, seen = torch.stack([test.theta[:20], wrong], 1), (test.mags[:20], test.sigma[:20])
    first, second = torch.tensor([1.0, 0.0]).expand(20, 2), torch.tensor([0.0, 1.0]).expand(20, 2)
    alone = exact_p_value(model, theta[:, :1], *seen, None, test.z[:20])
    assert torch.allclose(exact_p_value(model, theta, *seen, None, test.z[:20], first), alone)
    assert exact_p_value(model, theta, *seen, None, test.z[:20], second).max() < 1e-6
    assert learnt_p_value(learnt, theta, *seen, test.z[:20], second).max() < 1e-6


def test_limits_and_gaps_leave_the_exact_p_value_to_the_other_bands(setting):
    model, test, _ = setting
    state = torch.zeros_like(test.state)
    state[:, 0], state[:, 4] = 2, 1
    spoilt = test.mags.clone()
    spoilt[:, 0] = torch.nan
    p = exact_p_value(model, test.theta[:, None], spoilt, test.sigma, state, test.z)
    at = torch.tensor([0.1, 0.5, 0.9])
    assert torch.allclose(torch.quantile(p, at), at, atol=0.06)


def test_too_few_whole_rows_are_refused(setting):
    model, test, _ = setting
    with pytest.raises(DataError, match="needs 1000"): fit_likelihood(test[:900], test, model)
