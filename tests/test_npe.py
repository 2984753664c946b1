"""Amortised posteriors: known ones are found, support is exact, bad photometry is named, a galaxy's draws are its own."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from spectral_core.core import ConfigError, DataError, ModelFileError
from spectral_core.inference.calibration import LinearGaussian, c2st
from spectral_core.inference.npe import (
    N_CONTEXT,
    Posterior,
    PosteriorConfig,
    context,
    fit_posterior,
    load_posterior,
    paper_posterior,
    training_data,
)
from spectral_core.models.mixtures import AutoregressiveMixture, MixtureConfig
from spectral_core.pretrained import save_model
from spectral_core.simulate.photosurvey import mock_photometry
from spectral_core.simulate.priors import Prior
from spectral_core.train import fit

TINY = PosteriorConfig(n_hidden=64, n_block=2, n_component=3, n_member=1, n_noise=2, n_epoch=16, batch_size=128)


class Shift:
    "A model quick enough for tests: the bands answer to mass, dust and a burst, linearly."

    def magnitudes(self, theta: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        band = torch.linspace(-1, 1, 5, dtype=theta.dtype, device=theta.device)
        colours = theta[:, 1:2] + theta[:, 9:10] * (1 - band) - theta[:, 4:5] * (2 + band**2)
        return 42 - 2.5 * theta[:, :1] + 5 * torch.log10(z.to(theta))[:, None] + colours


@pytest.fixture(scope="module")
def samples():
    return [mock_photometry(n, seed=i, model=Shift()) for i, n in enumerate((6000, 1000, 600))]


@pytest.fixture(scope="module")
def posterior(samples):
    return fit_posterior(*samples[:2], TINY, device="cpu", progress=False)


def photometry(sample):
    return sample.mags, sample.sigma, sample.state, sample.z


def test_a_linear_gaussian_posterior_is_found():
    "C2ST against the exact posterior is 0.5 ± 0.1, and the posterior's own ranks are uniform."
    problem = LinearGaussian.random(4, 3, sigma=0.5, seed=2)
    (theta, x), (truth, seen) = problem.simulate(20_000, seed=0), problem.simulate(500, seed=1)
    parts = [torch.as_tensor(part, dtype=torch.float32) for part in (theta, x, truth, seen)]
    density = AutoregressiveMixture(3, MixtureConfig(n_hidden=48, n_block=2, n_component=2, context=4))
    fit(density, tuple(parts[:2]), tuple(parts[2:]), n_epoch=10, batch_size=512, lr=1e-2, progress=False, device="cpu")
    best = -0.5 * np.linalg.slogdet(2 * np.pi * np.e * problem.covariance)[1]
    assert density.log_prob(*parts[2:]).mean().item() == pytest.approx(best, abs=0.1)
    draws = density.sample(400, parts[3]).numpy()
    ranks = (draws < truth[:, None]).mean(1)
    assert all(stats.kstest(ranks[:, k], "uniform").pvalue > 1e-3 for k in range(3))
    ours, exact = density.sample(800, parts[3][0]).numpy(), problem.sample(seen[:1], 800)[0]
    assert abs(np.mean(c2st(ours, exact).accuracy) - 0.5) < 0.1


def test_every_galaxy_is_observed_anew_and_nothing_missing_is_told(samples):
    free, told = training_data(samples[0], n_noise=3, seed=1)
    assert free.shape == (18_000, 11) and told.shape == (18_000, N_CONTEXT) and torch.isfinite(told).all()
    assert torch.equal(free[:6000], samples[0].free) and (free[6000:12_000, 0] != free[12_000:, 0]).float().mean() > 0.99
    again = training_data(samples[0], n_noise=3, seed=1)
    assert torch.equal(told, again[1]) and not torch.equal(told, training_data(samples[0], n_noise=3, seed=2)[1])
    mags, sigma, state, z = (part[:50].clone() for part in photometry(samples[0]))
    state[:, 1] = 2
    one, other = mags.clone(), mags.clone()
    one[:, 1], other[:, 1] = -999, float("nan")
    assert torch.equal(context(one, sigma, state, z), context(other, sigma * torch.tensor([1, 7, 1, 1, 1]), state, z))


def test_draws_stay_inside_the_prior_and_cover_the_truth(samples, posterior):
    sample = samples[2]
    draws = posterior.sample(*photometry(sample), n=400)
    assert torch.isfinite(posterior.prior.log_prob(draws, sample.z[:, None].float())).all()
    for share in (0.68, 0.95):
        low, high = torch.quantile(draws, torch.tensor([0.5 - share / 2, 0.5 + share / 2]), dim=1)
        inside = ((sample.theta > low) & (sample.theta < high)).float().mean(0)
        assert (inside - share).abs().max() < 0.1
    assert draws[..., 0].std(1).median() < 0.3 < 1.3 < sample.theta[:, 0].std() * 2.5


def test_density_and_draws_agree(samples, posterior):
    "Averaged over the prior, posterior / prior is one; in theta and in the free parameters the ratio is the same."
    seen = [part[:1] for part in photometry(samples[2])]
    free = posterior.sample_free(*seen, n=5000)
    theta = posterior.prior.from_free(free.double(), seen[3][:, None])
    normal = -0.5 * free.double().square().sum(-1) - 5.5 * math.log(2 * math.pi)
    ratio = posterior.log_prob_free(free, *seen).double() - normal
    other = posterior.log_prob(theta, *seen) - posterior.prior.log_prob(theta, seen[3][:, None])
    torch.testing.assert_close(other, ratio, atol=2e-2, rtol=1e-3)
    cloud = torch.randn(1, 200_000, 11, generator=torch.Generator().manual_seed(0))
    density = posterior.log_prob_free(cloud, *seen).double() + 0.5 * cloud.double().square().sum(-1) + 5.5 * math.log(2 * math.pi)
    weight = density.exp()
    assert weight.mean().item() == pytest.approx(1, abs=5 * weight.std().item() / 200_000**0.5)


def test_a_galaxy_draws_alone_what_it_draws_in_the_table(samples, posterior):
    seen = [part[:40] for part in photometry(samples[2])]
    table = posterior.sample(*seen, n=300, seed=4)
    alone = posterior.sample(*(part[17:18] for part in seen), n=300, seed=4)
    torch.testing.assert_close(alone[0], table[17], atol=1e-3, rtol=1e-3)
    assert not torch.allclose(posterior.sample(*(part[17:18] for part in seen), n=300, seed=5)[0], table[17])
    as_double = posterior.sample(*(part.double() if part.is_floating_point() else part for part in seen), n=300, seed=4)
    torch.testing.assert_close(as_double, table, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("change, message", [
    (dict(mags=math.nan), "galaxy 3, band 1"), (dict(sigma=0.0), "galaxy 3, band 1"), (dict(sigma=-0.1), "galaxy 3, band 1"),
    (dict(sigma=math.inf), "galaxy 3, band 1"), (dict(state=7), "galaxy 3, band 1"),
])
def test_fault_45_bad_photometry_is_named(samples, posterior, change, message):
    parts = {name: getattr(samples[2], name)[:5].clone() for name in ("mags", "sigma", "state", "z")}
    parts["state"][:] = 0
    for name, value in change.items(): parts[name][3, 1] = value
    with pytest.raises(DataError, match=message): posterior.sample(**parts, n=10)


@pytest.mark.parametrize("z, message", [(-0.01, "not positive"), (0.0, "not positive"), (math.nan, "galaxy 3"), (50.0, "redsh")])
def test_absurd_redshifts_are_named(samples, posterior, z, message):
    mags, sigma, state, redshift = (part[:5].clone() for part in photometry(samples[2]))
    redshift[3] = z
    with pytest.raises(DataError, match=message): posterior.sample(mags, sigma, state, redshift, n=10)


def test_fault_46_gaps_and_limits_widen_the_posterior(samples, posterior):
    mags, sigma, state, z = (part[:100].clone() for part in photometry(samples[2]))
    state[:], width = 0, []
    for gaps in (0, 4):
        state[:, :gaps] = 2
        width.append(posterior.sample(mags, sigma, state, z, n=300)[..., 9].std(1).mean())
    assert width[1] > 1.1 * width[0]
    state[:] = 2
    with pytest.raises(DataError, match="no band at all"): posterior.sample(mags, sigma, state, z, n=10)


def test_more_than_photometry_can_be_told(samples):
    train, valid = samples[0][:3000], samples[1]
    told = [sample.free[:, 6:7] + 0.1 * torch.randn(len(sample), 1) for sample in (train, valid)]
    better = fit_posterior(train, valid, TINY, extra=tuple(told), device="cpu", progress=False)
    draws = better.sample_free(*photometry(valid), n=100, extra=told[1])
    assert (draws[..., 6].median(1).values - valid.free[:, 6]).abs().median() < 0.3
    with pytest.raises(DataError, match="extra columns"): better.sample(*photometry(valid), n=10, extra=told[1][:5])
    with pytest.raises(ConfigError, match="context"): better.sample(*photometry(valid), n=10)


def test_saved_and_loaded_it_is_the_same(samples, posterior, tmp_path):
    again = load_posterior(posterior.save(tmp_path / "posterior", {"seed": 1}))
    seen = [part[:3] for part in photometry(samples[2])]
    assert again.prior == posterior.prior
    torch.testing.assert_close(again.sample(*seen, n=50), posterior.sample(*seen, n=50))
    save_model(AutoregressiveMixture(2), tmp_path / "bare")
    with pytest.raises(ModelFileError, match="no prior"): load_posterior(tmp_path / "bare")


def test_samples_of_two_priors_do_not_mix(samples):
    other = mock_photometry(50, seed=9, model=Shift(), prior=Prior(kind="code"))
    with pytest.raises(ConfigError, match="different priors"): fit_posterior(samples[0], other, TINY)


def test_the_papers_network_draws_inside_its_box():
    sample = mock_photometry(300, seed=3, model=Shift(), missing=0.0, limits=0.0)
    theirs = paper_posterior(sample, n_hidden=8, n_transform=1, batch_size=50, max_epochs=1)
    x = torch.cat([sample.mags[:1], sample.sigma[:1], sample.z[:1, None].float()], 1)
    assert theirs.sample((20,), x=x, show_progress_bars=False).shape == (20, 11)
    limited = mock_photometry(50, seed=3, model=Shift(), limits=0.4)
    with pytest.raises(ConfigError, match="no gaps or limits"): paper_posterior(limited)


def test_the_posterior_is_one_density_with_one_prior():
    density = AutoregressiveMixture(11, MixtureConfig(n_hidden=16, context=N_CONTEXT)).eval()
    posterior = Posterior(density, Prior())
    one = [torch.tensor([[18.8, 17.8, 17.4, 17.2, 17.1]]), torch.full((1, 5), 0.05), None, torch.tensor([0.03])]
    assert posterior.sample(*one, n=12).shape == (1, 12, 11)
