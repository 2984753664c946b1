"""The laws of a normalizing flow, for every kind and backend."""

import math

import pytest
import torch
from scipy import stats

from spectral_core.core import ConfigError, DataError
from spectral_core.models.flows import Flow, FlowConfig, MaskedAutoregressiveFlow, SplineFlow

KINDS = {
    "maf": (MaskedAutoregressiveFlow, "zuko"),
    "nflows": (MaskedAutoregressiveFlow, "nflows"),
    "spline": (SplineFlow, "zuko"),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def make(kind: str, n_features: int, **settings) -> Flow:
    "A flow with weights far from the identity, so that the laws are tested where they can fail."
    build, backend = KINDS[kind]
    flow = build(n_features, FlowConfig(backend=backend, n_layer=3, n_hidden=16, **settings)).eval()
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in flow.parameters(): weight += 0.3 * torch.randn(weight.shape, generator=random)
    return flow


def normal(n: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@every_kind
@pytest.mark.parametrize("context", [0, 2])
def test_noise_and_back_is_the_identity(kind, context):
    flow = make(kind, 4, context=context).double()
    x, c = 3 * normal(50, 4) + 1, (normal(50, 2, 1) if context else None)
    flow.standardise(x, c)
    u, _ = flow.to_noise(x, c)
    assert (u - x).abs().max() > 0.1
    torch.testing.assert_close(flow.from_noise(u, c), x, atol=1e-8, rtol=0)


@every_kind
@pytest.mark.parametrize("context", [0, 2])
def test_log_det_is_that_of_the_autograd_jacobian(kind, context):
    flow = make(kind, 4, context=context).double()
    x, c = 3 * normal(20, 4) + 1, (normal(20, 2, 1) if context else None)
    flow.standardise(x, c)
    row = lambda i: (lambda v: flow.to_noise(v[None], None if c is None else c[i : i + 1])[0][0])
    jacobian = torch.stack([torch.autograd.functional.jacobian(row(i), x[i]) for i in range(len(x))])
    torch.testing.assert_close(flow.to_noise(x, c)[1], torch.linalg.slogdet(jacobian)[1], atol=1e-9, rtol=0)


@every_kind
def test_density_integrates_to_one(kind):
    flow = make(kind, 2)
    flow.standardise(torch.stack([normal(500, 1)[:, 0] * 2 + 1, normal(500, 1, 1)[:, 0] * 0.5], 1))
    low, high = flow.sample(5000, seed=0).aminmax(dim=0)
    margin = 0.4 * (high - low)
    axes = [torch.linspace(a, b, 501) for a, b in zip(low - margin, high + margin)]
    with torch.no_grad(): density = flow.log_prob(torch.cartesian_prod(*axes)).exp()
    assert density.sum() * (axes[0][1] - axes[0][0]) * (axes[1][1] - axes[1][0]) == pytest.approx(1, abs=0.01)


@every_kind
def test_gaussian_is_learnt_and_draws_follow_the_density(kind):
    covariance = torch.tensor([[4.0, 1.2], [1.2, 1.0]])
    target = torch.distributions.MultivariateNormal(torch.tensor([3.0, -1.0]), covariance)
    x = normal(4000, 2).float() @ torch.linalg.cholesky(covariance).T + target.loc
    build, backend = KINDS[kind]
    flow = build(2, FlowConfig(backend=backend, n_layer=2, n_hidden=16)).standardise(x)
    optimiser = torch.optim.Adam(flow.parameters(), 1e-2)
    for _ in range(120):
        loss = flow(x)["loss"]
        optimiser.zero_grad(); loss.backward(); optimiser.step()
    draws = flow.sample(4000, seed=1)
    with torch.no_grad():
        assert (target.log_prob(x) - flow.log_prob(x)).mean() == pytest.approx(0, abs=0.02)  # Kullback-Leibler
        assert -flow.log_prob(draws).mean() == pytest.approx(target.entropy().item(), abs=0.08)
    for i in range(2):
        law = stats.norm(target.loc[i].item(), covariance[i, i].sqrt().item())
        assert stats.kstest(draws[:, i].numpy(), law.cdf).pvalue > 1e-3


@every_kind
def test_noise_of_draws_is_standard_normal(kind):
    flow = make(kind, 3)
    u = flow.to_noise(flow.sample(3000, seed=0))[0].detach()
    assert all(stats.kstest(u[:, i].numpy(), stats.norm.cdf).pvalue > 1e-3 for i in range(3))


@every_kind
def test_rows_do_not_see_each_other_and_far_outliers_stay_finite(kind):
    flow = make(kind, 6)
    x = normal(40, 6).float()
    flow.standardise(x)
    with torch.no_grad():
        alone = torch.cat([flow.log_prob(row[None]) for row in x])
        mixed = flow.log_prob(torch.cat([x, torch.full((1, 6), torch.nan), 1e6 * x]))
    torch.testing.assert_close(mixed[:40], alone, atol=1e-4, rtol=0)
    assert torch.isnan(mixed[40])
    assert torch.isfinite(mixed[41:]).all() and mixed[41:].max() < alone.min()


@every_kind
def test_shift_and_scale_enter_the_density_as_the_change_of_variables_says(kind):
    flow, other = make(kind, 3).double(), make(kind, 3).double()
    x = normal(30, 3)
    factor, offset = torch.tensor([2.0, 10.0, 1e-3]).double(), 5.0
    difference = flow.standardise(x).log_prob(x) - other.standardise(factor * x + offset).log_prob(factor * x + offset)
    torch.testing.assert_close(difference, factor.log().sum().expand(30), atol=1e-8, rtol=0)


@every_kind
def test_same_seed_same_weights_and_draws_whatever_came_before(kind):
    first = make(kind, 3).sample(4, seed=2)
    before = torch.random.get_rng_state()
    torch.rand(7)
    assert torch.equal(make(kind, 3).sample(4, seed=2), first)
    torch.random.set_rng_state(before)
    build, backend = KINDS[kind]
    build(3, FlowConfig(backend=backend))
    assert torch.equal(torch.random.get_rng_state(), before), "making a flow must not touch the user's generator"


def test_paper_size():
    "The flow released with the paper has 30,310 parameters for six latents."
    flow = MaskedAutoregressiveFlow(6, FlowConfig(backend="nflows"))
    assert sum(p.numel() for p in flow.parameters()) == 30_310


def test_standardise_uses_finite_rows_only_and_refuses_what_has_no_density():
    x = normal(100, 2)
    x[3] = torch.nan
    flow = MaskedAutoregressiveFlow(2).standardise(x)
    good = x[torch.isfinite(x).all(1)]
    torch.testing.assert_close(flow.shift, good.mean(0).float())
    torch.testing.assert_close(flow.scale, good.std(0).float())
    assert flow.standardised
    with pytest.raises(DataError, match=r"feature \[1\] is constant"):
        flow.standardise(torch.stack([x[:, 0], torch.ones(100)], 1))
    with pytest.raises(DataError, match="two finite rows"): flow.standardise(x[3:4])
    with pytest.raises(DataError, match="shape"): flow.standardise(x[:, :1])


def test_loss_is_minus_mean_log_prob_and_stays_float32_under_autocast():
    x = normal(64, 4).float()
    flow = MaskedAutoregressiveFlow(4).standardise(x)
    with torch.autocast("cpu", dtype=torch.bfloat16): loss = flow(x)["loss"]
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, -flow.log_prob(x).mean())
    standard = -0.5 * ((x - x.mean(0)) / x.std(0)).square().sum(1) - x.std(0).log().sum() - 2 * math.log(2 * math.pi)
    assert torch.corrcoef(torch.stack([standard, flow.log_prob(x).detach()]))[0, 1] > 0.5


def test_config_errors():
    with pytest.raises(ConfigError, match="zuko"): FlowConfig(backend="normflows")
    with pytest.raises(ConfigError, match="at least one"): FlowConfig(n_layer=0)
    with pytest.raises(ConfigError, match="zuko only"): SplineFlow(2, FlowConfig(backend="nflows"))
    flow = MaskedAutoregressiveFlow(2)
    with pytest.raises(ConfigError, match="context=0, but got 3"): flow.log_prob(normal(5, 2), normal(5, 3))
