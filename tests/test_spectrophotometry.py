"""Spectra of galaxies whose photometry and parameters are known, and what they add to a posterior."""

import numpy as np
import pytest
import torch

from spectral_core.core import ConfigError, DataError, generator
from spectral_core.figures.gain import plot_gain
from spectral_core.inference.calibration import LinearGaussian
from spectral_core.inference.reweight import importance_weights
from spectral_core.inference.spectrophotometry import fit_spectrum_likelihood, joint_gain, normal_scores, parameter_gain
from spectral_core.simulate.histories import PARAMETERS, THETA, parameters, star_formation
from spectral_core.simulate.photosurvey import mock_photometry
from spectral_core.simulate.priors import Prior
from spectral_core.simulate.provabgs import load_provabgs
from spectral_core.simulate.spectrophotometry import _young_share, draw_nuisances, fibre_spectra, nebula
from spectral_core.simulate.ssp import load_ssp
from spectral_core.simulate.synthesis import LINE_NAMES

rng = generator("test", __name__)
HALPHA = LINE_NAMES.index("halpha")


@pytest.fixture(scope="module")
def model():
    return load_provabgs("ssp")


@pytest.fixture(scope="module")
def galaxies():
    z = torch.linspace(0.01, 0.06, 300)
    return Prior().sample(300, z, seed=5), z


# ------------------------------------------------------------------ spectra


def test_a_row_depends_on_its_number_and_the_seed_not_on_the_length(model, galaxies):
    theta, z = (part.clone() for part in galaxies)
    theta[:, 0] = 10.5
    whole, some = fibre_spectra(model, theta, z, seed=1), fibre_spectra(model, theta[:7], z[:7], seed=1)
    assert (some.id == whole.id[:7]).all() and len(set(whole.id)) == 300
    np.testing.assert_allclose(some.flux, whole.flux[:7], rtol=2e-3, atol=2e-4)
    for name in (*THETA, "fibre_share", "sigma_kms", "excitation"):
        np.testing.assert_array_equal(some.table[name], whole.table[name][:7])
    other = fibre_spectra(model, theta[:7], z[:7], seed=2)
    assert not set(other.id) & set(some.id)
    assert (other.table["fibre_share"] != some.table["fibre_share"]).all()


def test_flux_follows_mass_and_fibre(model, galaxies):
    theta, z = (part[:40].clone() for part in galaxies)
    theta[:, 0] = 12.0  # bright: noise is small
    both = [fibre_spectra(model, theta, z, fibre_share=share, sigma_kms=150.0, seed=3) for share in (0.6, 0.3)]
    seen = ~both[0].mask & ~both[1].mask & (both[0].wave > 6000)
    ratio = np.nanmedian(np.where(seen, both[0].flux / np.where(seen, both[1].flux, 1), np.nan), axis=1)
    np.testing.assert_allclose(ratio, 2.0, rtol=0.02)


def test_gas_follows_young_stars_and_their_dust_alone(model, galaxies):
    theta, z = (part[:50].clone() for part in galaxies)
    ssp, flat = load_ssp("mixed"), torch.zeros(50)
    continuum, lines = nebula(model, ssp, theta, z, flat)
    assert (lines >= 0).all() and (continuum >= 0).all()
    more = theta.clone()
    more[:, 0] += 0.5
    np.testing.assert_allclose(nebula(model, ssp, more, z, flat)[1], lines * 10**0.5, rtol=1e-4)
    clear = theta.clone()
    clear[:, 8:10] = 0
    bright = nebula(model, ssp, clear, z, flat)[1]
    tau = theta[:, 8] * 5500 / 6564.6  # birth clouds; diffuse dust dims as well, so this is the least
    assert (lines[:, HALPHA] <= bright[:, HALPHA] * torch.exp(-tau) * 1.0001).all()
    balmer = bright[:, HALPHA] / bright[:, LINE_NAMES.index("hbeta")]
    np.testing.assert_allclose(balmer, 2.86, rtol=1e-4)
    assert (nebula(model, ssp, theta, z, flat + 1)[1][:, HALPHA] == lines[:, HALPHA]).all()  # excitation moves ratios only


def test_old_galaxies_have_no_gas(model, galaxies):
    theta, z = (part[:20].clone() for part in galaxies)
    theta[:, 4] = 1.0  # all mass in a burst, none younger than 10 Myr
    stars = star_formation(model.bases, theta, z)
    assert stars.weights.abs().max() < 1e-6
    lines = nebula(model, load_ssp("mixed"), theta, z, torch.zeros(20))[1]
    assert lines.abs().max() <= 1e-6 * 10 ** theta[:, 0].max()


def test_young_shares_conserve_mass():
    share = _young_share()
    assert ((share >= 0) & (share <= 1)).all() and (share[12:] == 0).all()
    np.testing.assert_allclose(share[:9].sum(1), 1)


def test_nuisances_say_nothing_of_parameters():
    drawn = draw_nuisances(torch.arange(4000))
    assert ((drawn["fibre_share"] > 0) & (drawn["fibre_share"] <= 1)).all()
    table = torch.stack(list(drawn.values()))
    assert (torch.corrcoef(table) - torch.eye(3)).abs().max() < 0.06


def test_bad_input_is_named(model, galaxies):
    theta, z = galaxies
    with pytest.raises(DataError, match="wanted"): fibre_spectra(model, theta, z[:3])
    with pytest.raises(DataError, match="wanted"): fibre_spectra(model, theta[:0], z[:0])
    with pytest.raises(ConfigError, match="redshifts"): fibre_spectra(model, theta[:2], torch.tensor([0.03, 1.5]))
    with pytest.raises(ConfigError, match="source"):
        other = load_provabgs("ssp")
        other.name = "emulator"
        fibre_spectra(other, theta[:2], z[:2])


# ------------------------------------------------------------------ bits


def linear_case(seed, n_galaxy=800, n_draw=1000):
    "Two linear measurements: draws given the first, log-likelihoods of the second, and both exact covariances."
    both = LinearGaussian.random(6, 3, sigma=0.7, seed=seed)
    first = LinearGaussian(both.matrix[:3], 0.7)
    truth, x = both.simulate(n_galaxy, seed=seed + 1)
    draws = first.sample(x[:, :3], n_draw, seed=seed + 2)
    residuals = [(x[:, None, 3:] - t @ both.matrix[3:].T) / 0.7 for t in (draws, truth[:, None])]
    of_draws, of_truth = (torch.as_tensor(-0.5 * np.square(r).sum(-1)) for r in residuals)
    return draws, truth, of_draws, of_truth[:, 0], first.covariance, both.covariance


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_gain_of_a_linear_problem_is_the_exact_one(seed):
    draws, truth, log_like, log_truth, before, after = linear_case(seed)
    gain = joint_gain(log_like, log_truth)
    exact = 0.5 * np.log2(np.linalg.det(before) / np.linalg.det(after))
    assert abs(gain.mean - exact) < 4 * gain.error + 0.02
    weight = importance_weights(log_like, torch.zeros_like(log_like), smooth=False).weight.numpy()
    table = parameter_gain(draws, truth, weight, generator("prior", seed).normal(size=(50_000, 3)), "abc")
    first, second = (-0.5 * np.log2(np.diag(covariance)) for covariance in (before, after))
    for name, bits in (("photometry", first), ("gain", second - first)):
        assert (np.abs(table[name] - bits) < 4 * table[name + "_error"] + 0.03).all()
    np.testing.assert_allclose(table["narrower"], second - first, atol=0.06)


def test_a_spectrum_that_says_nothing_gains_nothing():
    draws, truth, log_like, log_truth, _, _ = linear_case(4, 100, 200)
    flat = joint_gain(torch.full_like(log_like, -7.0), torch.full_like(log_truth, -7.0))
    np.testing.assert_allclose(flat.bits, 0, atol=1e-9)
    table = parameter_gain(draws, truth, np.full(log_like.shape, 1 / 200), rng.normal(size=(5000, 3)), "abc")
    assert not table["gain"].any() and not table["narrower"].any()


def test_no_gain_exceeds_what_the_draws_can_show():
    _, _, log_like, log_truth, _, _ = linear_case(5, 100, 63)
    assert joint_gain(log_like, log_truth + 1e4).bits.max() <= 6 + 1e-9
    assert joint_gain(log_like - 1e4, log_truth).bits.min() >= 6 - 1e-6


def test_bits_survive_a_change_of_units():
    draws, truth, log_like, _, _, _ = linear_case(6, 150, 300)
    weight, prior = torch.softmax(log_like, 1).numpy(), rng.normal(size=(20_000, 3))
    tables = [parameter_gain(f(draws), f(truth), weight, f(prior), "abc") for f in (lambda v: v, lambda v: np.exp(v) + 5)]
    for name in ("photometry", "gain", "narrower"):
        np.testing.assert_allclose(tables[0][name], tables[1][name], atol=0.01)


def test_weighted_draws_count_by_their_effective_number():
    _, _, log_like, log_truth, _, _ = linear_case(7, 50, 40)
    weight = torch.linspace(1, 3, 40, dtype=torch.float64).expand(50, -1)
    weight = weight / weight.sum(1, keepdim=True)
    n = 1 / np.square(weight.numpy()).sum(1)
    like, truth = np.exp(log_like.numpy()), np.exp(log_truth.numpy())
    expected = np.log2(truth / ((n * (weight.numpy() * like).sum(1) + truth) / (n + 1)))
    np.testing.assert_allclose(joint_gain(log_like, log_truth, weight).bits, expected, atol=1e-6)


def test_normal_scores_are_normal_and_ordered():
    prior = rng.exponential(size=(4000, 1))
    scores = normal_scores(prior, prior)[:, 0]
    assert abs(scores.mean()) < 1e-3 and abs(scores.std() - 1) < 0.01
    assert (np.diff(scores[prior[:, 0].argsort()]) > 0).all()


@pytest.fixture(scope="module")
def learned(model):
    "Galaxies, stand-ins for latents that are known functions of theta, and the density learned from them."
    sample = mock_photometry(1500, 3, model)
    noise = torch.randn(1500, 2, generator=torch.Generator().manual_seed(0))
    latents = torch.stack([sample.theta[:, 9], sample.theta[:, 4] + sample.theta[:, 9]], 1) + 0.2 * noise
    latents[::100] = torch.nan
    sn = torch.full((1500,), 20.0)
    likelihood = fit_spectrum_likelihood(model, sample[:1200], latents[:1200], sn[:1200], n_member=1, n_epoch=12, device="cpu")
    return sample, latents, sn, likelihood


def test_likelihood_knows_dust_from_latents_and_is_silent_without(learned):
    sample, latents, sn, likelihood = learned
    assert likelihood.n_left_out == 12
    test = slice(1200, 1500)
    theta = sample.theta[test][:, None].repeat(1, 60, 1)
    theta[..., 9], theta[..., 4] = torch.rand(300, 60) * 3, torch.rand(300, 60)
    weights = likelihood.weights(latents[test], theta, sample.z[test], sn[test])
    known = torch.isfinite(latents[test]).all(1)
    dust = (weights.weight * theta[..., 9]).sum(1)
    assert torch.corrcoef(torch.stack([dust, sample.theta[test][:, 9]])[:, known])[0, 1] > 0.95
    torch.testing.assert_close(weights.weight[~known], torch.full((int((~known).sum()), 60), 1 / 60))


def test_a_row_of_the_likelihood_does_not_depend_on_the_others(learned):
    sample, latents, sn, likelihood = learned
    theta = sample.theta[:40][:, None]
    whole = likelihood.log_prob(latents[:40], theta, sample.z[:40], sn[:40])
    some = likelihood.log_prob(latents[5:9], theta[5:9], sample.z[5:9], sn[5:9])
    torch.testing.assert_close(some, whole[5:9], rtol=1e-4, atol=1e-4)


def test_bad_latents_are_named(model, learned):
    sample, latents, sn, likelihood = learned
    with pytest.raises(DataError, match="200 are needed"): fit_spectrum_likelihood(model, sample[:150], latents[:150], sn[:150])
    with pytest.raises(DataError, match="for 1500 galaxies"): fit_spectrum_likelihood(model, sample, latents[:9], sn)
    few = sample[:3]
    for wrong in (latents[:3, :1], latents[:2]):
        with pytest.raises(DataError, match="one row per galaxy"): likelihood.log_prob(wrong, few.theta[:, None], few.z, sn[:3])
    draws = parameters(sample.theta[:4])[:, None].repeat(1, 30, 1).numpy()
    weight = np.full((4, 30), 1 / 30)
    with pytest.raises(DataError, match="names"): parameter_gain(draws, draws[:, 0], weight, draws[:, 0], PARAMETERS[:3])


def test_plot_gain_shows_every_parameter():
    draws, truth, log_like, log_truth, _, _ = linear_case(8, 100, 100)
    weight = torch.softmax(log_like, 1).numpy()
    table = parameter_gain(draws, truth, weight, rng.normal(size=(5000, 3)), ["log_mstar", "dust1", "dust2"])
    left, right = plot_gain(table, joint_gain(log_like, log_truth).bits).axes
    assert [text.get_text() for text in left.get_yticklabels()][0].startswith("$") and len(left.patches) == 6
    assert sum(bar.get_height() for bar in right.patches) == 100
