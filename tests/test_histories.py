"""Star formation and metals of 42 bins: laws, and slow loops of the published recipe."""

import numpy as np
import pytest
import torch
from astropy.cosmology import Planck13
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_core.core import ConfigError, DataError
from spectral_core.simulate.histories import (
    LOOKBACK_EDGES,
    METALLICITY_RANGE,
    PARAMETERS,
    THETA,
    HistoryBases,
    betas,
    bin_edges,
    derived,
    load_bases,
    make_bases,
    parameters,
    smooth_histories,
    star_formation,
    sticks,
    t_age,
    theta_of,
    write_bases,
)

unit = st.floats(0, 1, allow_subnormal=False)


def draws(n, seed=0, dtype=torch.float64):
    "Theta over the whole box, bursts before the beginning included."
    low = torch.tensor([7, 0, 0, 0, 0, 0.01, -4.3468, -4.3468, 0, 0, -2], dtype=dtype)
    high = torch.tensor([12.5, 1, 1, 1, 1, 13.27, -1.8239, -1.8239, 3, 3, 1], dtype=dtype)
    return low + torch.as_tensor(np.random.default_rng(seed).random((n, 11)), dtype=dtype) * (high - low)


def constant_bases():
    "One rate and one metallicity at all times."
    t = torch.linspace(0.5, 13, 7, dtype=torch.float64)
    return HistoryBases("constant", t, torch.ones(4, 7, dtype=torch.float64), torch.ones(2, 7, dtype=torch.float64))


# ------------------------------------------------------------------ shares


@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.tuples(unit, unit, unit))
def test_shares_sum_to_one_and_come_back(z):
    theta = torch.zeros(11, dtype=torch.float64)
    theta[1:4] = torch.tensor(z, dtype=torch.float64)
    shares = betas(theta)
    assert shares.min() >= 0 and abs(shares.sum() - 1) < 1e-12
    torch.testing.assert_close(betas(theta_of(parameters(theta))), shares, atol=1e-9, rtol=0)


def test_a_stick_that_is_used_up_leaves_nothing():
    assert sticks(torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 1]])).tolist() == [[0, 0, 0], [1, 1, 1]]


def test_parameters_are_named_in_order():
    theta = draws(5)
    values = parameters(theta)
    assert values.shape == (5, len(PARAMETERS)) and theta.shape[1] == len(THETA)
    for name in set(THETA) & set(PARAMETERS):
        assert (values[:, PARAMETERS.index(name)] == theta[:, THETA.index(name)]).all()


# ------------------------------------------------------------------ times


def test_age_of_the_universe_is_plancks():
    z = np.random.default_rng(0).uniform(-0.01, 2.9, 200)
    np.testing.assert_allclose(t_age(torch.as_tensor(z)), Planck13.age(z).value, atol=2e-6)
    assert t_age(torch.tensor([0.1])).dtype == torch.float32 and t_age(0.1).dtype == torch.float64


@pytest.mark.parametrize("z", [float("nan"), float("inf"), -0.2, 7.0])
def test_absurd_redshift_is_refused(z):
    with pytest.raises(DataError, match="leave them out"): t_age(torch.tensor([0.1, z]))


@pytest.mark.parametrize("z", [-0.01, 0.0, 0.03, 0.2, 0.6])
def test_bins_are_the_published_ones_cut_at_the_age(z):
    age = t_age(z).item()
    published = [*LOOKBACK_EDGES[:-1][LOOKBACK_EDGES[:-1] < age], age]
    edges = bin_edges(z).numpy()
    assert edges.shape == (43,) and (np.diff(edges) >= 0).all()
    np.testing.assert_allclose(np.unique(edges), published)


# ------------------------------------------------------------------ populations


def by_loop(bases, theta, z, burst="conditional"):
    "The recipe of Hahn+22 as its code has it: shapes on 50,000 points, trapezoids, bin by bin; one galaxy."
    age, (log_mstar, *_, fraction, t_burst, gamma1, gamma2) = t_age(z).item(), theta[:8].tolist()
    fine, knots = np.linspace(0, 13.8, 50_000), bases.t_lookback_gyr.numpy()

    def at(shape, t):
        j = np.clip(np.searchsorted(knots, t) - 1, 0, len(knots) - 2)
        return shape[j] + (shape[j + 1] - shape[j]) / (knots[j + 1] - knots[j]) * (t - knots[j])

    rate = sum(b * at(s, fine) for b, s in zip(betas(theta).tolist(), bases.sfh.numpy()))
    shape1, shape2 = bases.zh.numpy()
    metals = lambda t: float(np.clip(10**gamma1 * at(shape1, t) + 10**gamma2 * at(shape2, t), *METALLICITY_RANGE))
    edges = [*LOOKBACK_EDGES[:-1][LOOKBACK_EDGES[:-1] < age], age]
    mass, middle = [], []
    for low, high in zip(edges[:-1], edges[1:]):
        t = np.array([low, *fine[(fine > low) & (fine < high)], high])
        mass.append(np.trapezoid(np.interp(t, fine, rate), t))
        middle.append((low + high) / 2)
    burst_mass = fraction if t_burst < age else 0.0
    smooth = 1 - (fraction if burst == "code" else burst_mass)
    mass = smooth * np.array(mass) / np.sum(mass)
    inside = [min(max((1 - low) / (high - low), 0), 1) for low, high in zip(edges[:-1], edges[1:])]
    recent = np.dot(mass, inside)
    found = {
        "weights": mass, "metallicity": np.array([metals(t) for t in middle]),
        "burst": burst_mass, "burst_metallicity": metals(t_burst),
        "log_sfr_1gyr": log_mstar + np.log10(recent + burst_mass * (t_burst < 1)) - 9,
        "age_mw": np.dot(mass, middle) + burst_mass * t_burst,
    }
    return found | {"log_z_mw": np.log10(np.dot(mass, found["metallicity"]) + burst_mass * metals(t_burst))}


def agrees_with_the_loop(bases, burst):
    theta, z = draws(40, seed=3), torch.linspace(0, 0.6, 40, dtype=torch.float64)
    stars = star_formation(bases, theta, z, burst)
    results = derived(bases, theta, z)
    for i in range(len(theta)):
        slow = by_loop(bases, theta[i], z[i], burst)
        k = len(slow["weights"])
        np.testing.assert_allclose(stars.weights[i, :k], slow["weights"], atol=1e-6)
        assert (stars.weights[i, k:] == 0).all()
        np.testing.assert_allclose(stars.metallicity[i, :k], slow["metallicity"], rtol=1e-9)
        assert stars.burst[i].item() == pytest.approx(slow["burst"])
        assert stars.burst_metallicity[i].item() == pytest.approx(slow["burst_metallicity"])
        if burst == "conditional":
            for name, values in results.items(): assert values[i].item() == pytest.approx(slow[name], abs=2e-5), name


@pytest.mark.parametrize("burst", ["conditional", "code"])
def test_own_bases_agree_with_a_slow_loop(burst):
    agrees_with_the_loop(load_bases("own"), burst)


@pytest.mark.real
@pytest.mark.parametrize("burst", ["conditional", "code"])
def test_published_bases_agree_with_a_slow_loop(mirror, burst):
    agrees_with_the_loop(load_bases("provabgs"), burst)


@pytest.mark.real
def test_published_bases_are_those_of_the_paper(mirror):
    bases = load_bases("provabgs")
    peaks = bases.t_lookback_gyr[bases.sfh.argmax(1)]
    np.testing.assert_allclose(peaks, [1.2, 5.6, 8.4, 11.1], atol=0.2)
    np.testing.assert_allclose(bases.sfh.sum(1), 1, rtol=1e-6)


def test_constant_history_has_the_answers_of_the_textbook():
    theta, z = draws(50, seed=1), torch.linspace(0, 0.5, 50, dtype=torch.float64)
    theta[:, 4], age = 0, t_age(z)
    stars, results = star_formation(constant_bases(), theta, z), derived(constant_bases(), theta, z)
    torch.testing.assert_close(stars.weights, bin_edges(z).diff() / age[:, None])
    torch.testing.assert_close(results["age_mw"], age / 2)
    torch.testing.assert_close(results["log_sfr_1gyr"], theta[:, 0] - 9 - age.log10())
    gamma = (10 ** theta[:, 6:8]).sum(1).clamp(*METALLICITY_RANGE)
    torch.testing.assert_close(results["log_z_mw"], gamma.log10())


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.floats(0, 1), st.floats(0.01, 13.27), st.floats(0, 1))
def test_mass_is_conserved_and_only_the_code_loses_it(fraction, t_burst, z):
    theta = draws(1, seed=5)
    theta[:, 4:6] = torch.tensor([fraction, t_burst], dtype=torch.float64)
    total = {rule: (s.weights.sum() + s.burst.sum()).item() for rule in ("conditional", "code")
             for s in [star_formation(load_bases(), theta, z, rule)]}
    assert total["conditional"] == pytest.approx(1, abs=1e-9)
    assert total["code"] == pytest.approx(1 if t_burst < t_age(z).item() else 1 - fraction, abs=1e-9)


def test_all_of_a_recent_burst_is_recent():
    theta = draws(2, seed=6)
    theta[:, 0], theta[:, 4], theta[:, 5] = 10, 1, torch.tensor([0.5, 1.5])
    found = derived(load_bases(), theta, 0.05)
    assert found["log_sfr_1gyr"].tolist() == [pytest.approx(1.0), -torch.inf]
    np.testing.assert_allclose(found["age_mw"], [0.5, 1.5])


def test_mass_scales_the_rate_and_nothing_else():
    theta = draws(20, seed=7)
    heavy = theta.clone()
    heavy[:, 0] += 1
    one, two = derived(load_bases(), theta, 0.1), derived(load_bases(), heavy, 0.1)
    torch.testing.assert_close(two["log_sfr_1gyr"], one["log_sfr_1gyr"] + 1)
    assert all((one[k] == two[k]).all() for k in ("log_z_mw", "age_mw"))


def test_shapes_of_draws_and_one_redshift_per_galaxy():
    theta, z = draws(12, seed=8).reshape(3, 4, 11), torch.tensor([0.01, 0.1, 0.3], dtype=torch.float64)
    stars = star_formation(load_bases(), theta, z[:, None])
    assert stars.weights.shape == (3, 4, 42) and stars.burst.shape == (3, 4) and parameters(theta).shape == (3, 4, 12)
    torch.testing.assert_close(stars.weights[1], star_formation(load_bases(), theta[1], 0.1).weights)
    ages = derived(load_bases(), theta, z[:, None])["age_mw"]
    torch.testing.assert_close(ages[2, 3], derived(load_bases(), theta[2, 3], 0.3)["age_mw"])


def test_single_precision_is_enough():
    theta, z = draws(500, seed=9), torch.rand(500, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.2
    exact, single = star_formation(load_bases(), theta, z), star_formation(load_bases(), theta.float(), z)
    assert single.weights.dtype == torch.float32
    assert (single.weights - exact.weights).abs().max() < 2e-6 and single.weights.min() > -1e-6
    torch.testing.assert_close(single.metallicity.double(), exact.metallicity, rtol=1e-4, atol=0)


def test_gradients_are_those_of_finite_differences():
    theta = draws(4, seed=10)
    theta[:, 5] = 4.07  # not on a knot, where the slope jumps
    theta.requires_grad_()
    assert torch.autograd.gradcheck(lambda t: tuple(derived(load_bases(), t, 0.05).values()), theta)
    assert torch.autograd.gradcheck(lambda t: star_formation(load_bases(), t, 0.05).weights, theta)


# ------------------------------------------------------------------ our own shapes


def test_shipped_bases_are_what_the_command_makes(tmp_path):
    shipped, made = load_bases("own"), make_bases()
    for name in ("t_lookback_gyr", "sfh", "zh"):
        one, two = getattr(shipped, name), getattr(made, name)
        assert one.dtype == torch.float64 and (one - two).abs().max() < 0.02 * one.max()
    assert write_bases(tmp_path / "bases.safetensors").stat().st_size < 10_000


def test_own_bases_cover_all_times():
    own = load_bases("own")
    assert own.sfh.min() >= 0 and own.zh.min() >= 0 and own.t_lookback_gyr[0] == 0 and own.t_lookback_gyr[-1] == 13.8
    youth = (own.sfh * own.t_lookback_gyr).sum(1)
    assert (youth.diff() > 1).all()


def test_smooth_histories_form_one_mass_and_no_stars_before_their_start():
    t, rate, metals = smooth_histories(100, seed=4)
    np.testing.assert_allclose(rate.sum(1), 1)
    assert rate.min() >= 0 and metals.min() >= 0 and (rate[:, -1] == 0).all()
    assert (smooth_histories(100, seed=4)[1] == rate).all() and (smooth_histories(100, seed=5)[1] != rate).any()


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="provabgs"): load_bases("provabs")
    with pytest.raises(ConfigError, match="conditional"): star_formation(load_bases(), draws(1), 0.1, "conditoinal")
