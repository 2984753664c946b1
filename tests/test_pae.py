"""The dense autoencoder of chapter 2, its masked χ², and the statistics over wavelength."""

import numpy as np
import pytest
import torch

from spectral_core import predict
from spectral_core.analysis.pixels import pixel_chi2, pixel_entropy
from spectral_core.core import ConfigError, DataError
from spectral_core.models.pae import DenseAutoencoder, PAEConfig, masked_chi2
from spectral_core.pretrained import load_model, save_model
from spectral_core.spectra.container import Spectra
from spectral_core.spectra.surveys import Survey
from spectral_core.spectra.wavelength import Grid
from spectral_core.train import fit

REST = Survey("rest200", Grid("log", 3.53, 0.39 / 200, 200), resolution=((3000.0, 9000.0), (70.0, 70.0)))


def made(n, seed=0, masked=0.2):
    "Spectra of two components and noise on the rest grid, with masked pixels that hold nonsense."
    random = np.random.default_rng(seed)
    x = np.linspace(0, 1, REST.grid.n)
    flux = 2 + random.normal(size=(n, 1)) * np.sin(6 * x) + random.normal(size=(n, 1)) * (x - 0.5)
    ivar = random.uniform(20, 40, flux.shape)
    flux = flux + random.normal(size=flux.shape) / np.sqrt(ivar)
    mask = random.random(flux.shape) < masked
    return Spectra(np.where(mask, 1e3, flux), ivar, np.zeros(n), REST, mask=mask)


def test_the_published_network_has_the_published_number_of_weights():
    wide = Survey("rest1000", Grid("log", 3.53, 3.9e-4, 1000), resolution=REST.resolution)
    model = DenseAutoencoder(wide)
    assert sum(p.numel() for p in model.parameters()) == 2_559_590
    widths = [layer.in_features for layer in (*model.encoder[::2], *model.decoder[::2])]
    assert widths == [1000, 800, 590, 10, 590, 800]
    assert not isinstance(model.encoder[-1], torch.nn.ReLU) and not isinstance(model.decoder[-1], torch.nn.ReLU)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_perfect_model_has_a_loss_of_one_per_valid_pixel_and_the_valid_share_per_pixel(share):
    random = torch.Generator().manual_seed(1)
    weight = torch.rand(400, 500, generator=random) + 0.1
    noise = torch.randn(400, 500, generator=random) / weight.sqrt()
    weight = torch.where(torch.rand(400, 500, generator=random) < share, 0, weight)
    n = int((weight > 0).sum())
    assert abs(float(masked_chi2(noise, torch.zeros_like(noise), weight)) - 1) < 5 * (2 / n) ** 0.5
    assert float(masked_chi2(noise, torch.zeros_like(noise), weight, "pixel")) == pytest.approx(
        float(masked_chi2(noise, torch.zeros_like(noise), weight)) * n / weight.numel(), rel=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_a_masked_pixel_has_no_say_in_latents_loss_or_gradient(bad):
    torch.manual_seed(0)
    model = DenseAutoencoder(REST, 3, PAEConfig(hidden=(20,)))
    batch = made(8).to("cpu")
    other = batch._replace(flux=torch.where(batch.weight > 0, batch.flux, bad))
    assert torch.equal(model.encode(*batch), model.encode(*other))
    gradients = []
    for b in (batch, other):
        model.zero_grad()
        model(b)["loss"].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.equal(*gradients) and torch.isfinite(gradients[0]).all()


def test_a_fit_takes_up_what_the_latents_can_and_predict_speaks_of_it():
    torch.manual_seed(0)
    model = DenseAutoencoder(REST, 4, PAEConfig(hidden=(64,)))
    train, valid = made(1500, masked=0.02), made(300, seed=1, masked=0.02)  # a masked pixel enters as 0 and costs the latents
    history = fit(model, train, valid, n_epoch=20, batch_size=32, lr=2e-3, schedule="exponential", progress=False, device="cpu")
    assert 0.95 < history.best < 1.25  # two components, a mean, and unit noise
    latents = predict.encode(model, valid)
    assert latents.shape == (300, 4)
    rebuilt = predict.reconstruct(model, valid)
    assert np.allclose(rebuilt, predict.rest_spectrum(model, latents), atol=1e-5)
    chi2 = predict.chi2(model, valid)
    weight = np.asarray(valid.weight)
    assert np.allclose(chi2["chi2_valid"], (weight * (valid.flux - rebuilt) ** 2).sum(1) / (weight > 0).sum(1), rtol=1e-3)
    per_pixel = pixel_chi2(valid.flux, rebuilt, weight)
    assert np.nanmean(per_pixel.chi2) == pytest.approx(history.best, rel=0.05)


def test_a_trained_autoencoder_comes_back_from_its_folder(tmp_path):
    model = DenseAutoencoder(REST, 3, PAEConfig(hidden=(20, 10), per="pixel"))
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    batch = made(5).to("cpu")
    assert again.config == model.config and torch.equal(model.encode(*batch), again.encode(*batch))


@pytest.mark.parametrize("wrong", [{"per": "spectrum"}, {"hidden": ()}, {"hidden": (10, 0)}])
def test_a_wrong_configuration_is_refused(wrong):
    with pytest.raises(ConfigError, match="PAEConfig"): PAEConfig(**wrong)


def test_chi2_of_a_pixel_that_nobody_saw_is_nan_and_shapes_must_agree():
    flux = np.ones((5, 3))
    weight = np.array([[1, 0, 1]] * 4 + [[0, 0, 1]], float)
    found = pixel_chi2(flux, flux + 2, weight)
    assert found.n.tolist() == [4, 0, 5] and np.isnan(found.chi2[1])
    assert found.chi2[[0, 2]].tolist() == [4, 4] and found.error[[0, 2]].tolist() == [0, 0]
    with pytest.raises(DataError, match="one shape"): pixel_chi2(flux, flux[:4], weight)


def test_entropy_does_not_see_bad_pixels_and_grows_with_scatter():
    random = np.random.default_rng(0)
    flux = 2.5 + random.normal(size=(20_000, 4)) * [0.1, 0.2, 0.4, 0.8]
    good = np.ones(flux.shape, bool)
    clean = pixel_entropy(flux, good)
    assert (np.diff(clean) > 0.9).all() and (np.diff(clean) < 1.1).all()  # a factor of two is one bit
    good[::7] = False
    assert np.allclose(pixel_entropy(np.where(good, flux, np.nan), good), clean, atol=0.02)


def test_a_linear_start_is_the_best_that_ten_numbers_can_do_linearly_and_needs_room():
    torch.manual_seed(0)
    train, valid = made(800, masked=0.02), made(200, seed=1, masked=0.02)
    model = DenseAutoencoder(REST, 3, PAEConfig(hidden=(30, 12))).begin(train.to("cpu"))
    random = DenseAutoencoder(REST, 3, PAEConfig(hidden=(30, 12)))
    with torch.no_grad(): begun, blind = (float(m(valid.to("cpu"))["loss"]) for m in (model, random))
    assert 0.9 < begun < 1.5 and blind > 50  # three numbers, a mean and two components, describe the sample
    latents = model.encode(*made(20, masked=0).to("cpu"))
    narrow = DenseAutoencoder(REST, 3, PAEConfig(hidden=(30, 5)))
    with pytest.raises(ConfigError, match="hidden layers of 6 units"): narrow.begin(train.to("cpu"))
    assert latents.shape == (20, 3) and torch.isfinite(latents).all()
