"""The laws of an autoregressive mixture: a density that integrates to one, and draws that follow it."""

import numpy as np
import pytest
import torch
from scipy import stats

from spectral_core.core import ConfigError, DataError
from spectral_core.models.mixtures import AutoregressiveMixture, MaskedNetwork, MixtureConfig
from spectral_core.train import fit


def make(n_features: int = 3, spread: float = 0.3, **settings) -> AutoregressiveMixture:
    "A density far from the one it begins with."
    density = AutoregressiveMixture(n_features, MixtureConfig(n_hidden=16, n_component=3, **settings)).eval()
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in density.parameters(): weight += spread * torch.randn(weight.shape, generator=random)
    return density


@pytest.mark.parametrize("settings", [{}, {"n_member": 2}, {"order": (1, 0)}, {"context": 2, "n_block": 1}])
def test_the_density_integrates_to_one(settings):
    density = make(2, **settings).double()
    density.shift.copy_(torch.tensor([1.0, -2.0])), density.scale.copy_(torch.tensor([2.0, 0.5]))
    side = torch.linspace(-40, 40, 601, dtype=torch.float64)
    x = torch.cartesian_prod(side, side) * density.scale + density.shift
    context = torch.tensor([[0.5, -1.0]]).double().expand(len(x), 2) if density.config.context else None
    cell = (side[1] - side[0]) ** 2 * density.scale.prod()
    with torch.no_grad(): total = density.log_prob(x, context).exp().sum() * cell
    assert total.item() == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("n_hidden", [4, 16, 37])
def test_no_factor_knows_a_later_feature(n_hidden):
    net = MaskedNetwork(6, 2, MixtureConfig(n_hidden=n_hidden)).double()
    x = torch.randn(6, 1, dtype=torch.float64)
    before = net(x)
    for k in range(6):
        moved = x.clone()
        moved[k] += 1
        same = (net(moved) == before).all((1, 2))
        assert same[: k + 1].all()
        if n_hidden > 6: assert not same[k + 1 :].any()


def test_draws_have_the_density_they_claim():
    "E[log q] over draws is minus the entropy, from a grid; and each marginal's distribution is the integral of the density."
    density = make(2, 0.2, n_member=2, order=(1, 0)).double()
    side = torch.linspace(-15, 15, 601, dtype=torch.float64)
    with torch.no_grad():
        log_q = density.log_prob(torch.cartesian_prod(side, side)).double().view(601, 601)
        draws = density.sample(40_000, seed=1)
        mean, sem = (f(density.log_prob(draws).double()) for f in (torch.mean, lambda v: v.std() / 200))
    q, cell = log_q.exp(), (side[1] - side[0]).double() ** 2
    assert abs(mean - (q * log_q).sum() * cell) < 4 * sem
    for axis in range(2):
        mass = q.sum(1 - axis) * cell
        cdf = mass.cumsum(0) - mass / 2
        assert stats.kstest(draws[:, axis].numpy(), lambda v, cdf=cdf: np.interp(v, side, cdf)).pvalue > 1e-3


def test_draws_and_order_in_the_table_have_nothing_to_do_with_each_other():
    density, context = make(4, context=2), torch.randn(30, 2)
    seeds = torch.arange(100, 130)
    whole = density.sample(700, context, seed=seeds)
    assert whole.shape == (30, 700, 4) and torch.equal(whole, density.sample(700, context, seed=seeds))
    shuffled = torch.randperm(30)
    torch.testing.assert_close(density.sample(700, context[shuffled], seed=seeds[shuffled]), whole[shuffled], atol=1e-4, rtol=0)
    same = density.sample(700, context[:1].expand(2, 2), seed=seeds[:2])
    assert (same[0] != same[1]).all(-1).all()


def test_many_draws_are_cut_in_pieces_that_differ():
    draws = make(2).sample(20_001)
    assert draws.shape == (20_001, 2) and len(draws.unique(dim=0)) == 20_001


def test_members_share_the_draws_and_the_density_is_their_average():
    density = make(2, n_member=3)
    x = density.sample(7)
    assert x.shape == (7, 2)
    each = density.member_log_prob(x)
    torch.testing.assert_close(density.log_prob(x).exp(), each.exp().mean(0))
    assert density.train()(x)["loss"] >= density.eval()(x)["loss"]
    with torch.no_grad(): density.members[1].last.bias.view(2, 3, 3)[:, 1] += 1000
    assert ((density.sample(9).abs() > 100).all(1)).nonzero().flatten().tolist() == [1, 4, 7]


def test_a_normal_whose_mean_follows_the_context_is_learned():
    random = torch.Generator().manual_seed(0)
    context = torch.randn(20_000, 1, generator=random)
    x = torch.cat([2 * context, -context], 1) + 0.5 * torch.randn(20_000, 2, generator=random)
    density = AutoregressiveMixture(2, MixtureConfig(n_hidden=32, n_block=2, n_component=2, context=1))
    halves = [(x[rows], context[rows]) for rows in (slice(4000, None), slice(4000))]
    fit(density, *halves, n_epoch=6, batch_size=512, lr=1e-2, progress=False, device="cpu")
    best = -np.log(2 * np.pi * 0.25 * np.e)
    assert density.log_prob(x[:4000], context[:4000]).mean().item() == pytest.approx(best, abs=0.03)


def test_what_cannot_be_is_said():
    with pytest.raises(ConfigError, match="not one of 3 features"): AutoregressiveMixture(3, MixtureConfig(order=(1, 0)))
    with pytest.raises(DataError, match=r"feature \[1\]"): make(2).standardise(torch.tensor([[0.0, 1.0], [1.0, 1.0]]))
    density = make(2, context=2)
    with pytest.raises(ConfigError, match="got 0 context"): density.log_prob(torch.zeros(1, 2))
    with pytest.raises(ConfigError, match="got 3 context"): density.sample(4, torch.zeros(3))
    density.standardise(torch.randn(50, 2), torch.cat([torch.randn(50, 1), torch.ones(50, 1)], 1))
    assert density.context_scale[1] == 1
    strange = torch.tensor([[1e9, -1e9]])
    assert density.log_prob(torch.zeros(1, 2), strange).isfinite().all() and density.sample(50, strange).isfinite().all()
