"""The prior: cube, free coordinates, densities and weights agree with each other and with textbooks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from spectral_core.core import ConfigError
from spectral_core.simulate.histories import THETA, betas, t_age
from spectral_core.simulate.priors import Prior, log_prior_ratio

PRIORS = [Prior(kind, burst) for kind in ("flat", "code") for burst in ("conditional", "code")]
each_prior = pytest.mark.parametrize("prior", PRIORS, ids=lambda p: f"{p.kind}-{p.burst}")
redshifts = torch.linspace(0, 0.3, 4000, dtype=torch.float64)


@each_prior
@settings(derandomize=True, deadline=None, max_examples=25)
@given(st.lists(st.floats(1e-6, 1 - 1e-6), min_size=11, max_size=11), st.floats(0, 1))
def test_cube_and_back(prior, unit, z):
    unit = torch.tensor(unit, dtype=torch.float64)
    theta = prior.from_unit(unit, z)
    torch.testing.assert_close(prior.to_unit(theta, z), unit, atol=1e-9, rtol=0)
    torch.testing.assert_close(prior.from_free(prior.to_free(theta, z), z), theta, atol=1e-9, rtol=0)
    assert prior.log_prob(theta, z).isfinite()


@each_prior
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_free_point_leaves_the_support(prior, dtype):
    free = torch.as_tensor(np.random.default_rng(0).standard_normal((4000, 11)) * 20, dtype=dtype)
    theta = prior.from_free(free, redshifts)
    low, high = prior.bounds(redshifts, theta)
    assert theta.dtype == dtype and ((theta >= low) & (theta <= high)).all()
    open_prior = Prior("code", prior.burst)  # the flat density is zero where a stick has no length
    assert open_prior.log_prob(theta, redshifts).isfinite().all()
    assert prior.to_free(theta, redshifts).isfinite().all()


def test_flat_kind_is_the_flat_dirichlet_and_the_code_is_not():
    n = 20_000
    flat, code = (betas(Prior(kind).sample(n, 0.05, seed=1)).numpy() for kind in ("flat", "code"))
    for k in range(4): assert stats.kstest(flat[:, k], stats.beta(1, 3).cdf).pvalue > 1e-3
    np.testing.assert_allclose(np.cov(flat.T), np.full((4, 4), -1 / 80) + np.eye(4) / 20, atol=2e-3)
    np.testing.assert_allclose(code.mean(0), [1 / 2, 1 / 4, 1 / 8, 1 / 8], atol=0.01)


@each_prior
def test_density_is_the_jacobian_of_the_map(prior):
    free = torch.as_tensor(np.random.default_rng(3).standard_normal((5, 11)))
    for x in free:
        jacobian = torch.autograd.functional.jacobian(lambda y: prior.from_free(y, 0.1), x)
        normal = stats.norm.logpdf(x.numpy()).sum()
        density = prior.log_prob(prior.from_free(x, 0.1), 0.1).item()
        assert density == pytest.approx(normal - torch.linalg.slogdet(jacobian).logabsdet.item(), abs=1e-8)


@each_prior
def test_density_integrates_to_one(prior):
    box = Prior("code", "code")
    theta = box.sample(200_000, 0.2, seed=2)
    integral = (prior.log_prob(theta, 0.2) - box.log_prob(theta, 0.2)).exp()
    assert integral.mean().item() == pytest.approx(1, abs=5 * integral.std().item() / 200_000**0.5 + 1e-6)


def test_bursts_follow_the_beginning_uniformly():
    z = torch.full((20_000,), 0.3, dtype=torch.float64)
    times = Prior().sample(20_000, z, seed=4)[:, 5].numpy()
    age = t_age(0.3).item()
    assert times.max() < age
    assert stats.kstest(times, stats.uniform(0.01, age - 0.01).cdf).pvalue > 1e-3
    early = Prior(burst="code").sample(20_000, z, seed=4)[:, 5].numpy() > age
    assert early.mean() == pytest.approx((13.27 - age) / 13.26, abs=0.015)


@pytest.mark.parametrize("column", range(11), ids=THETA)
def test_density_is_zero_outside_of_each_bound(column):
    prior = Prior()
    low, high = prior.bounds(0.2, torch.zeros(11, dtype=torch.float64))
    for value in (low[column] - 1e-6, high[column] + 1e-6, torch.nan):
        theta = 0.5 * (low + high)
        assert prior.log_prob(theta, 0.2).isfinite()
        theta[column] = value
        assert prior.log_prob(theta, 0.2) == -torch.inf


def test_free_coordinates_are_normal():
    free = Prior().to_free(Prior().sample(4000, redshifts, seed=5), redshifts).numpy()
    for column in free.T: assert stats.kstest(column, "norm").pvalue > 1e-3
    np.testing.assert_allclose(np.corrcoef(free.T), np.eye(11), atol=0.08)


def test_row_of_a_sample_does_not_depend_on_their_number():
    few, many = Prior().sample(10, redshifts[:10], seed=6), Prior().sample(4000, redshifts, seed=6)
    assert (few == many[:10]).all() and (Prior().sample(10, redshifts[:10], seed=7) != few).any()
    assert Prior().sample(3, 0.1).dtype == torch.float32 and few.dtype == torch.float64


def test_shapes_of_draws():
    unit, z = torch.rand(3, 5, 11, generator=torch.Generator().manual_seed(0)), torch.tensor([0.0, 0.1, 0.4])
    theta = Prior().from_unit(unit, z[:, None])
    assert theta.shape == (3, 5, 11) and Prior().log_prob(theta, z[:, None]).shape == (3, 5)
    torch.testing.assert_close(theta[2, 4], Prior().from_unit(unit[2, 4], 0.4))


def test_ratio_turns_one_prior_into_another():
    code, narrow = Prior("code", "code"), Prior(dust2=(0.0, 1.0))
    theta = code.sample(100_000, 0.1, seed=8)
    weight = log_prior_ratio(theta, 0.1, narrow, code).softmax(0)
    assert (weight[theta[:, 9] > 1] == 0).all() and (weight[theta[:, 5] > t_age(0.1)] == 0).all()
    np.testing.assert_allclose((weight[:, None] * betas(theta)).sum(0), 0.25, atol=0.01)
    ratio = log_prior_ratio(theta, 0.1, Prior("flat", "code"), code).double()
    torch.testing.assert_close(ratio, torch.log(6 * theta[:, 1].double() ** 2 * theta[:, 2].double()), atol=1e-4, rtol=0)


def test_ratio_refuses_what_was_never_drawn():
    theta = Prior().sample(5, 0.1)
    with pytest.raises(ConfigError, match="tburst"): log_prior_ratio(theta, 0.1, Prior(tburst=(0.001, 13.27)), Prior())
    with pytest.raises(ConfigError, match="never drawn"): log_prior_ratio(theta, 0.1, Prior(burst="code"), Prior())


@pytest.mark.parametrize("bad", [
    {"kind": "dirichlet"}, {"burst": "late"}, {"fburst": (1.0, 0.0)}, {"dust2": 3.0}, {"dust1": (0.0, float("nan"))},
])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))): Prior(**bad)


def test_prior_survives_json():
    prior = Prior("code", dust2=(0.0, 2.0))
    assert Prior.from_dict({k: list(v) if isinstance(v, tuple) else v for k, v in prior.to_dict().items()}) == prior
    assert prior.fingerprint() != Prior().fingerprint()
