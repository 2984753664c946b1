"""The variational autoencoder of chapter 3: layers, likelihood and divergence, conditions, bounds on the likelihood."""

import copy
from dataclasses import replace
from math import log

import numpy as np
import pytest
import torch
from astropy.table import MaskedColumn, Table
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from spectral_core import predict
from spectral_core.core import ConfigError, DataError, Flag, SpectrumError
from spectral_core.models.start import start_linear
from spectral_core.models.vae import (
    SMALL,
    VAEConfig,
    VariationalAutoencoder,
    active_units,
    gaussian_kl,
    gaussian_log_likelihood,
    iwae,
    log_importance,
    mean_network,
    published_weights,
)
from spectral_core.pretrained import load_model, save_model
from spectral_core.spectra.conditions import ConditionedSpectra
from spectral_core.spectra.container import Spectra
from spectral_core.spectra.surveys import Survey
from spectral_core.spectra.wavelength import Grid
from spectral_core.train import fit

NOISE = 0.1
TINY = VAEConfig(channels=(2, 3), hidden=(8,))
QUICK = replace(SMALL, likelihood="ivar")


def rest(n):
    return Survey(f"rest{n}", Grid("log", 3.5315, 0.3928 / n, n), resolution=((3000.0, 9000.0), (70.0, 70.0)))


def made(n, seed=0, m=120):
    "Spectra with two numbers behind them, one of them in the table; a tenth of the pixels is masked and holds nonsense."
    random, x = np.random.default_rng(seed), np.linspace(-1, 1, m)
    slope, line = random.normal(size=(2, n, 1))
    flux = 1.5 + 0.3 * slope * x + (0.6 + 0.2 * line) * np.exp(-((x / 0.1) ** 2)) + NOISE * random.normal(size=(n, m))
    mask = random.random((n, m)) < 0.1
    table = Table({"slope": slope[:, 0], "one": np.ones(n)})
    return Spectra(np.where(mask, 1e3, flux), np.full((n, m), NOISE**-2), np.zeros(n), rest(m), mask=mask, table=table)


def trained(n_latent, config, train, valid, n_epoch=20):
    torch.manual_seed(0)
    model = VariationalAutoencoder(train.survey, n_latent, config)
    return model, fit(model, train, valid, n_epoch=n_epoch, batch_size=32, lr=1e-2, progress=False, device="cpu")


@pytest.fixture(scope="module")
def sample():
    return made(1000), made(300, seed=1)


@pytest.fixture(scope="module")
def blind(sample):
    "A fit with as many latents as there is to learn, and told nothing."
    return trained(2, QUICK, *sample)


@pytest.fixture(scope="module")
def published():
    torch.manual_seed(0)
    return VariationalAutoencoder(rest(4000)).eval()


def outputs(layers, x, *kinds):
    "Last axes of the outputs of the layers of some kinds, in order."
    found = []
    for layer in layers:
        x = layer(x)
        if isinstance(layer, kinds): found.append(x.shape[-1])
    return found


def test_the_published_network_has_the_published_lengths_and_weights(published):
    with torch.no_grad():
        flux = torch.ones(1, 4000)
        assert outputs(published.features, flux, nn.Conv1d) == [3998, 1997, 996, 496]
        assert outputs(published.features, flux, nn.MaxPool1d) == [1999, 998, 498, 248]
        assert outputs(published.features, flux, nn.Flatten, nn.Linear) == [15872, 1024]
        latents = torch.zeros(1, 4)
        assert outputs(published.decoder, latents, nn.Unflatten, nn.ConvTranspose1d) == [250, 502, 1006, 2014, 4028]
        assert outputs(published.decoder, latents, nn.Linear) == [1024, 16000, 4000]
    convolutions = 13_840 + (10_272 + 64 + 2_576 + 32 + 648 + 16 + 200 + 16 + 25)
    dense = (15_872 + 1) * 1024 + 2 * 1025 * 4 + 5 * 1024 + 1025 * 16_000 + 4029 * 4000
    assert sum(p.numel() for p in published.parameters()) == convolutions + dense  # 48.8 million
    channels = [layer.out_channels for layer in published.decoder if isinstance(layer, nn.ConvTranspose1d)]
    assert channels == [32, 16, 8, 8]


def test_a_step_of_the_published_network_has_finite_gradients_everywhere(published):
    random = torch.Generator().manual_seed(0)
    flux = 1 + 0.1 * torch.randn(3, 4000, generator=random)
    spectra = Spectra(flux.numpy(), np.ones((3, 4000)), np.zeros(3), rest(4000))
    model = published.standardise(spectra.to("cpu")).train()
    model(spectra.to("cpu"))["loss"].backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert all((p.grad != 0).any() for p in (model.mean_head.weight, model.features[1].weight, model.decoder[0].weight))
    model.eval().zero_grad()


@pytest.mark.parametrize("config", [TINY, SMALL, replace(TINY, conditions=("slope",))])
def test_no_layer_works_in_place_and_none_is_used_twice(config):
    model, calls = VariationalAutoencoder(rest(120), 3, config), []
    layers = [layer for layer in model.modules() if not list(layer.children())]
    assert not any(getattr(layer, "inplace", False) for layer in layers)
    for layer in layers: layer.register_forward_hook(lambda layer, *_: calls.append(layer))
    context = torch.zeros(2, len(config.conditions))
    model.decode(model.encode(torch.rand(2, 120), torch.ones(2, 120), context=context), context)
    assert len(calls) == len(set(calls)) == len(layers)


def test_the_small_network_is_small():
    weights = sum(p.numel() for p in VariationalAutoencoder(rest(4000), 6, SMALL).parameters())
    assert 2e5 < weights < 1e6


@settings(derandomize=True, max_examples=30, deadline=None)
@given(st.floats(-3, 3), st.floats(-4, 3))
def test_the_divergence_is_torch_s_and_never_negative(mean, log_variance):
    m, v = torch.tensor([[mean]], dtype=torch.float64), torch.tensor([[log_variance]], dtype=torch.float64)
    posterior, prior = torch.distributions.Normal(m, (v / 2).exp()), torch.distributions.Normal(0.0, 1.0)
    assert torch.allclose(gaussian_kl(m, v), torch.distributions.kl_divergence(posterior, prior), rtol=1e-9, atol=1e-12)
    assert gaussian_kl(m, v) >= 0


def test_the_divergence_is_what_draws_say_to_one_percent():
    torch.manual_seed(0)
    mean, log_variance = torch.tensor([0.8, -1.5, 0.3]), torch.tensor([-1.0, 0.4, -3.0])
    posterior = torch.distributions.Normal(mean, (log_variance / 2).exp())
    draws = posterior.sample((400_000,))
    expected = (posterior.log_prob(draws) - torch.distributions.Normal(0.0, 1.0).log_prob(draws)).mean(0)
    assert torch.allclose(gaussian_kl(mean, log_variance), expected, rtol=0.01)


def test_the_likelihood_is_a_normal_density_over_valid_pixels():
    torch.manual_seed(0)
    flux, model, precision = torch.randn(5, 40), torch.randn(3, 5, 40), torch.rand(5, 40) + 0.1
    density = torch.distributions.Normal(model, precision.rsqrt()).log_prob(flux)
    masked = torch.rand(5, 40) < 0.3
    found = gaussian_log_likelihood(torch.where(masked, torch.nan, flux), model, torch.where(masked, 0, precision))
    assert torch.allclose(found, torch.where(masked, 0, density).sum(-1), atol=1e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("config", [replace(TINY, likelihood="ivar"), SMALL])
def test_a_masked_pixel_has_no_say_in_latents_loss_or_gradient(config, bad):
    torch.manual_seed(0)
    batch = made(8).to("cpu")
    model = VariationalAutoencoder(rest(120), 3, config).standardise(batch)
    other = batch._replace(flux=torch.where(batch.weight > 0, batch.flux, bad))
    again = copy.deepcopy(model).standardise(other)
    assert all(torch.isfinite(p).all() for p in again.parameters()) and torch.equal(again.fill, model.fill)
    assert torch.equal(model.eval().encode(*batch), model.encode(*other))
    gradients = []
    for b in (batch, other):
        torch.manual_seed(1)
        model.zero_grad()
        model.train()(b)["loss"].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.equal(*gradients) and torch.isfinite(gradients[0]).all()


def test_in_ivar_mode_pixels_of_small_variance_say_more_and_in_mse_mode_all_say_the_same():
    batch = made(4).to("cpu")
    for likelihood in ("mse", "ivar"):
        model = VariationalAutoencoder(rest(120), 2, replace(SMALL, likelihood=likelihood, sigma=0.3)).standardise(batch)
        zero = torch.zeros_like(batch.flux)
        ratio = model.log_likelihood(batch._replace(weight=4 * batch.weight), zero) - model.log_likelihood(batch, zero)
        chi2 = (batch.weight * batch.flux.square() * (batch.weight > 0)).sum(1)
        expected = -1.5 * chi2 + (batch.weight > 0).sum(1) * log(2) if likelihood == "ivar" else torch.zeros(4)
        assert torch.allclose(ratio, expected, rtol=1e-4)


def test_a_fit_lowers_the_loss_to_the_noise_and_predict_speaks_of_it(sample, blind):
    model, history = blind
    floor = (sample[1].weight > 0).sum(1).mean() / 2 * (1 + log(2 * np.pi * NOISE**2))
    assert history["valid_loss"][0] > history.best + 20 and 3 < history.best - floor < 8
    assert np.allclose(history["valid_loss"], history["valid_reconstruction"] + history["valid_kl"], rtol=1e-5)  # beta = 1
    latents = predict.encode(model, sample[1])
    assert latents.shape == (300, 2)
    assert np.allclose(predict.reconstruct(model, sample[1]), predict.rest_spectrum(model, latents), atol=1e-5)
    assert np.nanmean(predict.chi2(model, sample[1])["chi2_valid"]) == pytest.approx(1, abs=0.1)


def test_latents_that_say_nothing_are_found(sample, blind):
    variance, active = active_units(blind[0], sample[1])
    assert active.all() and (variance > 0.3).all()
    assert not active_units(blind[0], sample[1], threshold=10).active.any()
    with torch.no_grad(): kl = gaussian_kl(*blind[0].posterior(*sample[1].to("cpu"))).mean(0)
    assert (kl > 1).all()
    crushed, _ = trained(2, replace(QUICK, beta=1e4), *sample, n_epoch=4)  # a prior that no spectrum can pay for
    assert not active_units(crushed, sample[1]).active.any()
    half, loading, offset = linear()
    with torch.no_grad(): half.mean_head.weight[1] = 0
    assert active_units(half, drawn(half, loading, offset, 200)).active.tolist() == [True, False]


def test_the_bound_of_a_fit_lies_above_its_elbo_and_below_the_likelihood_of_pure_noise(sample, blind):
    model, history = blind
    bound = iwae(model, sample[1], 64)
    pixels = (sample[1].weight > 0).sum(1)
    assert bound.mean() > -history.best
    assert bound.mean() < (-pixels / 2 * (1 + log(2 * np.pi * NOISE**2))).mean()


def test_what_is_told_need_not_be_held(sample, blind):
    train, valid = (ConditionedSpectra(part, ["slope"]) for part in sample)
    told, _ = trained(1, replace(QUICK, conditions=("slope",)), train, valid)
    alone, _ = trained(1, QUICK, *sample)
    gain = iwae(told, valid) - iwae(alone, sample[1])
    assert gain.mean() > 10 and abs(gain.mean() + iwae(alone, sample[1]).mean() - iwae(blind[0], sample[1]).mean() - 3) < 2
    latents = predict.encode(told, valid)
    line = np.where(valid.mask, np.nan, valid.flux)[:, 58:62]
    assert abs(np.corrcoef(latents[:, 0], np.nanmean(line, 1))[0, 1]) > 0.9
    assert abs(np.corrcoef(latents[:, 0], valid.context[:, 0])[0, 1]) < 0.3
    with torch.no_grad(): low, high = told.decode(torch.zeros(2, 1), torch.tensor([[-1.5], [1.5]]))
    assert (high - low)[:20].mean() < -0.2 and (high - low)[-20:].mean() > 0.2


def test_conditions_are_standardised_so_their_unit_does_not_matter():
    batch = ConditionedSpectra(made(50), ["slope"]).to("cpu")
    scaled = batch._replace(context=1e3 * batch.context + 1e4)
    found = []
    for b in (batch, scaled):
        torch.manual_seed(0)
        model = VariationalAutoencoder(rest(120), 2, replace(SMALL, conditions=("slope",))).standardise(b).eval()
        found.append(model.encode(*b))
    assert torch.allclose(*found, atol=1e-3)
    shuffled = scaled._replace(context=scaled.context.flip(0))
    assert not torch.allclose(model.encode(*shuffled), found[1], atol=1e-2)


@pytest.mark.parametrize("n_latent", [1, 4, 10])
@pytest.mark.parametrize("sigma", [None, 0.1])
def test_the_published_loss_has_the_direction_of_ours(n_latent, sigma):
    torch.manual_seed(0)
    beta, used = published_weights(n_latent, 120, sigma=sigma)
    assert beta * used**2 == pytest.approx(0.1 * 120 / (2e3 * n_latent))
    model = VariationalAutoencoder(rest(120), n_latent, replace(TINY, positive=False, beta=beta, sigma=used)).double().eval()
    flux = torch.rand(6, 120, dtype=torch.float64)
    batch = made(6).to("cpu")._replace(flux=flux, weight=torch.ones_like(flux))
    parameters = list(model.parameters())
    torch.manual_seed(1)
    mean, log_variance = model.posterior(*batch)
    rebuilt = model.decode(mean + (log_variance / 2).exp() * torch.randn_like(mean))
    published = 1e3 * (flux - rebuilt).square().mean() + 0.1 * gaussian_kl(mean, log_variance).mean()
    theirs = torch.autograd.grad(published, parameters)
    torch.manual_seed(1)
    ours = torch.autograd.grad(model(batch)["loss"], parameters)
    a, b = (torch.cat([g.flatten() for g in gradient]) for gradient in (ours, theirs))
    assert torch.allclose(a / a.norm(), b / b.norm(), atol=1e-6)
    assert float(a.norm() / b.norm()) == pytest.approx(beta * 10 * n_latent, rel=1e-5)


def linear(m=25, sigma=0.5, likelihood="mse", off=0.7):
    "A model with a linear decoder, its loading and offset; the posterior is `off` the right one in log-variance and mean."
    torch.manual_seed(3)
    config = VAEConfig(channels=(), hidden=(), positive=False, sigma=sigma, likelihood=likelihood)
    model = VariationalAutoencoder(rest(m), 2, config).eval()
    with torch.no_grad():
        loading = torch.linalg.qr(torch.randn(m, 2)).Q * torch.tensor([1.5, 0.8])
        model.decoder[0].weight.copy_(loading)
        precision = 1 + loading.square().sum(0) / sigma**2
        model.mean_head.weight.copy_((loading / sigma**2 / precision).T)
        model.mean_head.bias.copy_(-model.mean_head.weight @ model.decoder[0].bias + off * 0.3)
        model.log_variance_head.weight.zero_()
        model.log_variance_head.bias.copy_(off - precision.log())
    return model, loading, model.decoder[0].bias.detach()


def drawn(model, loading, offset, n, sigma=0.5):
    torch.manual_seed(4)
    flux = torch.randn(n, 2) @ loading.T + offset + sigma * torch.randn(n, len(offset))
    return Spectra(flux.numpy(), np.full(flux.shape, sigma**-2), np.zeros(n), model.survey)


def exact(loading, offset, flux, sigma=0.5):
    density = torch.distributions.LowRankMultivariateNormal(offset, loading, torch.full((len(offset),), sigma**2))
    return density.log_prob(torch.as_tensor(flux)).numpy()


def test_with_the_right_posterior_every_bound_is_the_likelihood():
    model, loading, offset = linear(off=0.0)
    spectra = drawn(model, loading, offset, 50)
    for k in (1, 8): assert np.allclose(iwae(model, spectra, k), exact(loading, offset, spectra.flux), atol=1e-3)


@pytest.mark.parametrize("likelihood", ["mse", "ivar"])
def test_bounds_rise_with_k_from_the_elbo_to_the_likelihood(likelihood):
    model, loading, offset = linear(likelihood=likelihood)
    spectra = drawn(model, loading, offset, 600)
    truth = exact(loading, offset, spectra.flux).mean()
    with torch.no_grad(): elbo = -np.mean([float(model(spectra.to("cpu"))["loss"]) for _ in range(60)])
    draws = {1: 60, 4: 15, 32: 4, 256: 2}
    bounds = [np.mean([iwae(model, spectra, k, seed=s).mean() for s in range(n)]) for k, n in draws.items()]
    assert elbo == pytest.approx(bounds[0], abs=0.05)
    assert (np.diff(bounds) > 0).all() and -1e-3 < truth - bounds[-1] < 0.01 and truth - elbo > 0.1
    closest = iwae(model, spectra[:40], 20_000)
    assert np.abs(closest - exact(loading, offset, spectra.flux[:40])).max() < 0.06


def test_a_masked_spectrum_has_the_likelihood_of_the_pixels_it_has():
    model, loading, offset = linear()
    for head in (model.mean_head, model.log_variance_head):  # draws from the prior: the encoder knows nothing of masks
        for parameter in head.parameters(): nn.init.zeros_(parameter)
    spectra = drawn(model, loading, offset, 30)
    mask = np.zeros((30, 25), bool)
    mask[:, 10:] = True
    bound = iwae(model, spectra.replace(mask=mask), 20_000)
    assert np.abs(bound - exact(loading[:10], offset[:10], spectra.flux[:, :10])).max() < 0.1


def test_draws_may_be_decoded_a_few_at_a_time():
    model, loading, offset = linear()
    batch = drawn(model, loading, offset, 20).to("cpu")
    whole, sliced = (log_importance(model, batch, 50, torch.Generator().manual_seed(0), size) for size in (10**9, 1))
    assert whole.shape == (50, 20) and torch.allclose(whole, sliced, atol=1e-4)


def test_spectra_without_data_get_nan_and_none_at_all_is_refused():
    model, loading, offset = linear()
    spectra = drawn(model, loading, offset, 10)
    mask = np.zeros((10, 25), bool)
    mask[3] = True
    some = spectra.replace(mask=mask)
    assert some.flag[3] & Flag.NODATA
    assert np.isnan(iwae(model, some)).tolist() == [i == 3 for i in range(10)]
    assert np.isfinite(active_units(model, some).variance).all()
    with pytest.raises(DataError, match="none of the 1 spectra"): iwae(model, some[[3]])
    with pytest.raises(SpectrumError, match="the model reads"): iwae(model, made(3))


@pytest.mark.parametrize("conditions", [(), ("slope",)])
def test_a_model_comes_back_from_its_folder(tmp_path, conditions):
    torch.manual_seed(0)
    spectra = ConditionedSpectra(made(40), conditions)
    model = VariationalAutoencoder(rest(120), 3, replace(TINY, conditions=conditions, beta=2.0)).standardise(spectra.to("cpu"))
    model(spectra.to("cpu"))  # batch norm has seen something
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    assert again.config == model.config and again.standardised
    assert torch.equal(model.eval().encode(*spectra.to("cpu")), again.encode(*spectra.to("cpu")))


@pytest.mark.parametrize("config", [TINY, SMALL])
def test_the_chain_of_layers_is_the_encoder_at_fixed_conditions(config):
    torch.manual_seed(0)
    flux, weight = torch.rand(5, 120), torch.ones(5, 120)
    model = VariationalAutoencoder(rest(120), 3, config).eval()
    assert torch.allclose(mean_network(model)(flux), model.encode(flux, weight), atol=1e-6)
    model = VariationalAutoencoder(rest(120), 3, replace(config, conditions=("a", "b"))).eval()
    context = torch.tensor([0.4, -3.0])
    chain = mean_network(model, context)
    assert torch.allclose(chain(flux), model.encode(flux, weight, context=context), atol=1e-6)
    assert isinstance(chain, nn.Sequential) and all(not list(layer.children()) for layer in chain)


def test_conditions_that_are_not_known_are_refused_by_name():
    spectra = made(20)
    spectra.table["mass"] = MaskedColumn(np.ones(20), mask=np.arange(20) == 4)
    spectra.table["sfr"] = np.where(np.arange(20) >= 18, np.inf, 1.0)
    with pytest.raises(DataError, match="'mass' is not finite in 1 of 20 rows, first in row 4"):
        ConditionedSpectra(spectra, ["slope", "mass"])
    with pytest.raises(DataError, match="'sfr' is not finite in 2 of 20 rows"): ConditionedSpectra(spectra, ["sfr"])
    with pytest.raises(DataError, match="did you mean 'slope'"): ConditionedSpectra(spectra, ["slop"])
    flagged = spectra.replace(flag=np.where(np.arange(20) == 4, Flag.NODATA, 0))
    assert len(ConditionedSpectra(flagged, ["mass"])) == 20  # a row that will not be used may lack it
    told = ConditionedSpectra(spectra, ["slope", "one"])
    assert told[3:7].context.shape == (4, 2) and torch.equal(told[3:7].context, told.context[3:7])
    model = VariationalAutoencoder(rest(120), 2, replace(SMALL, conditions=("slope", "one")))
    with pytest.raises(DataError, match="'one' is constant"): fit(model, told, told, n_epoch=1, progress=False, device="cpu")
    batch = told.to("cpu")
    with pytest.raises(DataError, match=r"conditions \(slope, one\), but context has 0"): model(spectra.to("cpu"))
    with pytest.raises(DataError, match="context has 1"): model.encode(*batch[:3], context=batch.context[:, :1])
    with pytest.raises(DataError, match="'one' is not finite"): model.decode(torch.zeros(1, 2), torch.tensor([0.0, torch.nan]))
    with pytest.raises(DataError, match=r"conditions \(\), but context has 2"): VariationalAutoencoder(rest(120), 2, SMALL)(batch)


WRONG = [{"likelihood": "gauss"}, {"sigma": 0.0}, {"beta": -1.0}, {"dropout": 1.0}, {"channels": (8, 0)}, {"hidden": (0,)}]


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_configuration_is_refused(wrong):
    with pytest.raises(ConfigError, match="VAEConfig"): VAEConfig(**wrong)


def test_too_few_pixels_for_the_convolutions_are_refused():
    with pytest.raises(ConfigError, match="40 pixels are too few for 4 convolutions"): VariationalAutoencoder(rest(40))


def test_a_linear_start_says_what_the_data_are_before_any_step_and_a_fit_goes_on_from_there(sample):
    train, valid = (ConditionedSpectra(part, ["slope"]) for part in sample)
    torch.manual_seed(0)
    config = replace(SMALL, hidden=(24, 12), likelihood="ivar", conditions=("slope",))
    model = start_linear(VariationalAutoencoder(train.survey, 1, config), train.to("cpu")).eval()
    floor = (valid.weight > 0).sum(1).mean() / 2 * (1 + log(2 * np.pi * NOISE**2))
    with torch.no_grad(): begun = float(model(valid.to("cpu"))["loss"])
    history = fit(model, train, valid, n_epoch=3, batch_size=50, lr=1e-3, progress=False, device="cpu")
    assert 0 < history.best - floor <= begun - floor < 6


@pytest.mark.parametrize("wrong", [{"hidden": (5,)}, {"channels": (2,), "hidden": (50,)}])
def test_a_linear_start_needs_room_and_dense_layers(wrong):
    model = VariationalAutoencoder(rest(120), 3, replace(SMALL, **wrong))
    with pytest.raises(ConfigError, match="linear start"): start_linear(model, made(30).to("cpu"))


def test_one_spectrum_is_no_standard_has_no_active_units_and_has_a_bound():
    spectra, config = made(30), replace(SMALL, likelihood="ivar")
    model = VariationalAutoencoder(spectra.survey, 2, config)
    for few in (spectra[:0], spectra[:1], spectra.replace(mask=np.ones(spectra.flux.shape, bool))):
        with pytest.raises(DataError, match="have a good pixel: a standard needs two"): model.standardise(few.to("cpu"))
    model.standardise(spectra.to("cpu"))
    with pytest.raises(DataError, match="over one spectrum is none"): active_units(model, spectra[:1], device="cpu")
    with pytest.raises(ConfigError, match="k is at least 1"): iwae(model, spectra, 0, device="cpu")
    assert np.isfinite(iwae(model, spectra[:1], 4, device="cpu")).all()
