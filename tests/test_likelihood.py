"""The likelihood against a plain loop, its laws, best fits, and photometry that cannot be used."""

import numpy as np
import pytest
import torch
from linear_galaxies import SLOPES, ZERO, Model, Prior, observe
from scipy.stats import norm

from spectral_core.core import DataError
from spectral_core.inference.likelihood import best_fit, chi2, log_likelihood, observed, predict


def plain(theta, mags, sigma, state):
    "One galaxy, one theta, band by band."
    total = 0.0
    for b, predicted in enumerate(ZERO + SLOPES.numpy() @ np.asarray(theta)):
        if state[b] == 0: total += norm.logpdf(mags[b], predicted, sigma[b])
        if state[b] == 1: total += norm.logcdf((predicted - mags[b]) / sigma[b])
    return total


def case(n=6, seed=0):
    "Galaxies with all three states, and several theta for each."
    theta, mags, sigma, z = observe(n, seed)
    random = torch.Generator().manual_seed(seed)
    state = torch.randint(0, 3, (n, 5), generator=random).to(torch.int8)
    state[:, 2] = 0
    near = theta[:, None] + 0.05 * torch.randn(n, 4, 4, generator=random, dtype=torch.float64)
    return near, mags, sigma, state, z


def test_it_is_the_plain_sum_over_bands():
    theta, mags, sigma, state, z = case()
    found = log_likelihood(Model(), theta, mags, sigma, state, z)
    wanted = [[plain(t, mags[g], sigma[g], state[g]) for t in theta[g]] for g in range(len(theta))]
    np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-10)


def test_what_is_missing_does_not_count_whatever_it_holds():
    theta, mags, sigma, state, z = case()
    found = log_likelihood(Model(), theta, mags, sigma, state, z)
    spoilt = torch.where(state == 2, torch.nan, mags), torch.where(state == 2, -1.0, sigma)
    theta.requires_grad_()
    again = log_likelihood(Model(), theta, *spoilt, state, z)
    assert torch.equal(again, found)
    assert torch.isfinite(torch.autograd.grad(again.sum(), theta)[0]).all()


def test_gradients_are_those_of_finite_differences():
    theta, mags, sigma, state, z = case(2)
    theta.requires_grad_()
    assert torch.autograd.gradcheck(lambda t: log_likelihood(Model(), t, mags, sigma, state, z), theta, eps=1e-6, atol=1e-4)


def test_chi2_is_twice_the_distance_from_a_perfect_match():
    theta, mags, sigma, state, z = case()
    perfect = mags + 100 * sigma * (state == 1)  # detections matched, limits passed by far
    best = torch.stack([norm_sum(sigma[g], state[g]) for g in range(len(mags))])
    found = chi2(Model(), theta, mags, sigma, state, z)
    assert torch.allclose(found, -2 * (log_likelihood(Model(), theta, mags, sigma, state, z) - best[:, None]), atol=1e-8)
    assert (chi2(_Fixed(perfect), theta, mags, sigma, state, z) < 1e-10).all()


class _Fixed:
    "The same magnitudes (g, 5) for any theta."

    def __init__(self, mags): self.mags = mags

    def magnitudes(self, theta, z): return self.mags.repeat_interleave(len(theta) // len(self.mags), 0)


def norm_sum(sigma, state):
    return torch.tensor(sum(norm.logpdf(0, 0, s) for s, kind in zip(sigma.numpy(), state.numpy()) if kind == 0))


def test_pieces_do_not_change_a_prediction():
    theta, *_, z = case()
    model = Model()
    assert torch.equal(predict(model, theta, z, chunk=5), predict(model, theta, z))
    assert model.n == 2 * theta[..., 0].numel()


def test_a_prediction_that_is_not_finite_is_impossible():
    theta, mags, sigma, _, z = case()
    theta[0, 0, 0] = torch.nan
    found = log_likelihood(Model(), theta, mags, sigma, None, z)
    assert found[0, 0] == -torch.inf and torch.isfinite(found[1:]).all()


def test_best_fit_is_the_weighted_least_squares_solution():
    "Five bands, four parameters: one minimum, reached from far away, and never left."
    theta, mags, sigma, z = observe(20, seed=1)
    start = torch.tensor([[8.0, 2.0, -2.0, 1.0]], dtype=torch.float64).expand(20, 4)
    found, lowest = best_fit(Model(), Prior(), start, mags, sigma, None, z, n_step=40)
    exact = torch.linalg.lstsq(SLOPES / sigma[0, :, None], ((mags - ZERO) / sigma).T).solution.T
    inside = (exact[:, 1:].abs() < 4.9).all(1)  # the search stays within five σ of the prior
    assert inside.sum() > 10
    assert torch.allclose(found[inside], exact[inside], atol=1e-3)
    assert (lowest <= chi2(Model(), theta[:, None], mags, sigma, None, z)[:, 0] + 1e-9).all()
    again, same = best_fit(Model(), Prior(), found, mags, sigma, None, z, n_step=3)
    assert (same <= lowest + 1e-12).all()


@pytest.mark.parametrize(("band", "value", "column", "says"), [
    (1, 0.0, "sigma", "error 0"), (2, -0.1, "sigma", "error -0.1"), (3, np.nan, "sigma", "error nan"),
    (0, np.inf, "mags", "magnitude inf"), (4, 7, "state", "state 7"), (0, np.nan, "z", "z nan"),
])
def test_fault_45_46_bad_photometry_is_refused_with_its_row(band, value, column, says):
    _, mags, sigma, z = observe(5)
    parts = {"mags": mags, "sigma": sigma, "state": torch.zeros(5, 5, dtype=torch.int8), "z": z}
    if column == "z": parts["z"][3] = value
    else: parts[column][3, band] = value
    with pytest.raises(DataError, match=f"galaxy 3, band {band}.*{says}"): observed(**parts)


def test_shapes_that_do_not_belong_together_are_refused():
    theta, mags, sigma, z = observe(5)
    with pytest.raises(DataError, match="belong together"): observed(mags, sigma[:4], None, z)
    with pytest.raises(DataError, match="5 galaxies, draws"): log_likelihood(Model(), theta, mags, sigma, None, z)
