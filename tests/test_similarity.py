"The losses between spectra and latents: laws, constants of the papers, gradients."

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_core.core import ConfigError
from spectral_core.models.similarity import (
    anneal,
    consistency_loss,
    fidelity_loss,
    pairwise_distance,
    rest_weight,
    similarity_loss,
    window_weight,
)
from spectral_core.spectra.surveys import SDSS
from spectral_core.spectra.wavelength import Grid

MINIMUM = 2 / (1 + math.exp(2.5))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(0, 59), max_size=20, unique=True),
    st.sampled_from([math.nan, math.inf, -math.inf, 1e30]),
    st.sampled_from([0.0, -1.0, math.nan]),
)
def test_what_lies_under_the_mask_has_no_influence(pixels, value, weight_value):
    torch.manual_seed(1)
    flux, model, weight = torch.randn(3, 20), torch.randn(3, 20, requires_grad=True), torch.rand(3, 20) + 0.1
    masked = torch.zeros(60, dtype=torch.bool)
    masked[pixels] = True
    masked = masked.view(3, 20)
    dirty_flux, dirty_weight = flux.masked_fill(masked, value), weight.masked_fill(masked, weight_value)
    loss = fidelity_loss(dirty_flux, model, dirty_weight)
    (gradient,) = torch.autograd.grad(loss, model)
    kept = (weight * (flux - model) ** 2)[~masked].sum() / (2 * 60)
    assert torch.allclose(loss, kept)
    assert (gradient[masked] == 0).all() and torch.isfinite(gradient).all()


def test_fidelity_is_half_the_mean_chi2_and_the_mean_over_rows():
    flux, model, weight = torch.randn(5, 40), torch.randn(5, 40), torch.rand(5, 40)
    loss = fidelity_loss(flux, model, weight)
    assert torch.allclose(loss, 0.5 * (weight * (flux - model) ** 2).mean())
    rows = [fidelity_loss(flux[i : i + 1], model[i : i + 1], weight[i : i + 1]) for i in range(5)]
    assert torch.allclose(loss, torch.stack(rows).mean())


def test_pixels_outside_the_model_do_not_count():
    flux, inside = torch.randn(2, 10), torch.arange(10).expand(2, 10) < 7
    model = torch.zeros(2, 10, requires_grad=True)
    fidelity_loss(flux, model, torch.ones(2, 10), inside).backward()
    assert (model.grad[:, 7:] == 0).all() and (model.grad[:, :7] != 0).all()


@pytest.mark.parametrize("offset", [0.0, 1.0, 1e3])
def test_gram_distances_equal_the_literal_ones(offset):
    x, weight = torch.randn(20, 300) + offset, torch.rand(300)
    literal = ((weight * (x.double()[:, None] - x.double())) ** 2).mean(-1)
    distance = pairwise_distance(x, weight)
    assert torch.allclose(distance.double(), literal, rtol=1e-4, atol=1e-6)
    assert torch.allclose(distance, distance.T, rtol=1e-4, atol=1e-6)
    assert (distance >= 0).all() and (distance.diagonal() == 0).all()


def test_gradient_of_gram_distances():
    x = torch.randn(6, 30, requires_grad=True)
    pull = torch.rand(6, 6)
    (gram,) = torch.autograd.grad((pull * pairwise_distance(x)).sum(), x)
    (literal,) = torch.autograd.grad((pull * ((x[:, None] - x[None]) ** 2).mean(-1)).sum(), x)
    assert torch.allclose(gram, literal, atol=1e-6)


def test_distances_of_equal_rows_have_finite_gradients():
    x = torch.ones(4, 8, requires_grad=True)
    (pairwise_distance(x).sum() + similarity_loss(x, x, family="scale_free")).backward()
    assert torch.isfinite(x.grad).all()


def test_distances_stay_float32_under_autocast():
    x = torch.randn(8, 512)
    with torch.autocast("cpu", torch.bfloat16):
        distance = pairwise_distance(x.bfloat16())
    assert distance.dtype == torch.float32
    assert torch.allclose(distance, pairwise_distance(x.bfloat16().float()))


@pytest.mark.parametrize("family", ["paper", "scale_free"])
def test_similarity_of_aligned_distances_is_the_papers_minimum(family):
    x = torch.randn(10, 60)
    assert abs(float(similarity_loss(x, x, family=family)) - MINIMUM) < 1e-6
    assert abs(MINIMUM - 0.1517) < 5e-5


@pytest.mark.parametrize("family", ["paper", "scale_free"])
def test_similarity_is_bounded_and_ignores_the_order_of_rows(family):
    latents, rest, order = torch.randn(12, 6), torch.randn(12, 80), torch.randperm(12)
    value = similarity_loss(latents, rest, family=family)
    assert MINIMUM < value <= 1
    assert torch.allclose(value, similarity_loss(latents[order], rest[order], family=family))


def test_scale_free_losses_do_not_see_the_scale_and_the_papers_do():
    latents, moved, rest = torch.randn(12, 6), torch.randn(12, 6), torch.randn(12, 80)
    for family, same in (("scale_free", True), ("paper", False)):
        similar = [similarity_loss(a * latents, rest, family=family) for a in (1.0, 7.0)]
        consistent = [consistency_loss(a * latents, a * moved, sigma=3.0, family=family) for a in (1.0, 7.0)]
        assert torch.allclose(*similar, rtol=1e-4) == same
        assert torch.allclose(*consistent, rtol=1e-4) == same


def test_similarity_pulls_latents_towards_the_spectral_distance():
    rest = torch.tensor([[0.0], [1.0]])
    for gap, sign in ((0.2, 1), (1.8, -1)):  # too near: pushed apart; too far: pulled together
        latents = torch.tensor([[0.0], [gap]], requires_grad=True)
        similarity_loss(latents, rest).backward()
        assert sign * float(-latents.grad[1]) > 0


def test_steep_slope_charges_one_per_mismatched_pair():
    latents, rest = torch.tensor([[0.0], [3.0]]), torch.zeros(2, 5)
    assert abs(float(similarity_loss(latents, rest, k1=10)) - (1 + MINIMUM) / 2) < 1e-6


def test_consistency_is_zero_for_equal_latents_and_known_one_sigma_away():
    s = torch.randn(50, 6)
    assert float(consistency_loss(s, s)) == 0
    one = 1 / (1 + math.exp(-1)) - 0.5
    assert abs(float(consistency_loss(s, s + 0.1)) - one) < 1e-4
    assert abs(float(consistency_loss(s, s + 100)) - 0.5) < 1e-6


def test_one_spectrum_gives_finite_losses():
    s, x = torch.randn(1, 6, requires_grad=True), torch.randn(1, 50)
    for family in ("paper", "scale_free"):
        loss = similarity_loss(s, x, family=family) + consistency_loss(s, s + 1, family=family)
        (gradient,) = torch.autograd.grad(loss, s)
        assert torch.isfinite(loss) and torch.isfinite(gradient).all()


def test_window_of_the_code():
    window = window_weight(np.array([3000.0, 4000.0, 5000.0, 6000.0]))
    assert torch.allclose(window / 20, torch.tensor([math.exp(-1), 0.7788, 1.0, 0.7788]), atol=1e-4)


def test_weight_of_the_text_is_the_mean_inverse_variance_at_rest():
    rest = Grid("log", SDSS.grid.first - 0.2, 1e-4, 6200)
    weight = torch.linspace(1, 3, SDSS.grid.n).expand(2, -1)
    w = rest_weight(weight, torch.tensor([0.0, 0.0]), rest, SDSS.grid)
    assert abs(float(w.square().mean()) - 10) < 1e-3
    assert (w[:1999] == 0).all() and (w[2001 + SDSS.grid.n :] == 0).all()  # never observed
    ratio = w[2000 : 2000 + SDSS.grid.n] / weight[0]
    assert torch.allclose(ratio, ratio.mean().expand_as(ratio), rtol=1e-3)
    assert (rest_weight(torch.zeros(2, SDSS.grid.n), torch.zeros(2), rest, SDSS.grid) == 0).all()


@pytest.mark.parametrize("n_cycle", [1, 3])
def test_annealing_rises_to_one_in_each_cycle(n_cycle):
    progress = np.linspace(0, 1, 301)
    value = np.array([anneal(p, n_cycle) for p in progress])
    assert value[0] == 0 and value[-1] == 1 and value.min() >= 0 and value.max() <= 1
    assert (np.diff(value) < 0).sum() == n_cycle - 1
    assert anneal(-1) == 0 and anneal(2) == 1


def test_unknown_family_is_refused():
    x = torch.randn(3, 4)
    with pytest.raises(ConfigError, match="scale_free"):
        similarity_loss(x, x, family="free")
    with pytest.raises(ConfigError, match="scale_free"):
        consistency_loss(x, x, family="free")
