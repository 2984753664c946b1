"Networks and RedshiftAutoencoder: the released shapes, redshift as an exact operation, masks, precision, seeds."

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from spectral_core.core import ConfigError, SpectrumError
from spectral_core.models.autoencoder import (
    PAPER,
    RELEASED,
    AutoencoderConfig,
    RedshiftAutoencoder,
    augment,
    broaden,
    disturb,
    rest_grid,
)
from spectral_core.models.networks import CompactEncoder, Decoder, SpenderEncoder, compress, released_weights
from spectral_core.models.similarity import fidelity_loss
from spectral_core.spectra.container import Batch
from spectral_core.spectra.surveys import BOSS, DESI, SDSS

M = SDSS.grid.n
SMALL = AutoencoderConfig(hidden=(16, 32))
FULL = dict(similarity=1.0, consistency=1.0)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def make_batch(n: int, seed: int = 0, m: int = M) -> Batch:
    "Noisy spectra around 1 with gaps."
    draw = torch.Generator().manual_seed(seed)
    flux = 1 + 0.2 * torch.randn(n, m, generator=draw)
    weight = torch.where(torch.rand(n, m, generator=draw) < 0.1, 0, 25.0)
    return Batch(torch.where(weight > 0, flux, 0), weight, 0.3 * torch.rand(n, generator=draw, dtype=torch.float64))


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# ── the released architecture ────────────────────────────────────────────────────────────────────────────────────


def test_released_model_has_the_published_size_and_lengths():
    model = RedshiftAutoencoder(SDSS, 6, RELEASED)
    assert abs(count(model) / 1e6 - 10.63) < 0.005 and model.rest.n == 7000
    lengths = []
    for layer in (model.encoder.conv1, model.encoder.conv2, model.encoder.conv3):
        layer.register_forward_hook(lambda module, inputs, output: lengths.append(tuple(output.shape[1:])))
    model.encode(torch.ones(1, M), torch.ones(1, M))
    assert lengths == [(128, 3921), (256, 785), (512, 72)]


def test_released_names_and_shapes_load_strictly():
    encoder = {"conv1.0.weight": (128, 1, 5), "conv1.0.bias": (128,), "conv1.2.weight": (128,)}
    encoder |= {"conv2.0.weight": (256, 128, 11), "conv2.0.bias": (256,), "conv2.2.weight": (256,)}
    encoder |= {"conv3.0.weight": (512, 256, 21), "conv3.0.bias": (512,), "conv3.2.weight": (512,)}
    for i, (a, b) in enumerate([(256, 128), (128, 64), (64, 32), (32, 6)]):
        encoder |= {f"mlp.{3 * i}.weight": (b, a), f"mlp.{3 * i}.bias": (b,)}
        if b != 6: encoder[f"mlp.{3 * i + 1}.weight"] = (b,)
    decoder = {}
    for i, (a, b) in enumerate([(6, 64), (64, 256), (256, 1024), (1024, 7000)]):
        decoder |= {f"mlp.{3 * i}.weight": (b, a), f"mlp.{3 * i}.bias": (b,)}
        decoder |= {f"mlp.{3 * i + 1}.beta": (b,), f"mlp.{3 * i + 1}.gamma": (b,)}
    shapes = {f"encoder.{k}": s for k, s in encoder.items()} | {f"decoder.{k}": s for k, s in decoder.items()}
    state = {k: torch.rand(s) for k, s in shapes.items()}
    extra = {"encoder.instrument.wave_obs": torch.zeros(M), "decoder.wave_rest": torch.zeros(7000)}
    model = RedshiftAutoencoder(SDSS, 6, RELEASED)
    model.load_state_dict(released_weights(state | extra))
    assert torch.equal(model.encoder.conv2[0].weight, state["encoder.conv2.0.weight"])
    state.pop("encoder.conv1.0.weight")
    with pytest.raises(RuntimeError, match="conv1.0.weight"):
        model.load_state_dict(released_weights(state))


def test_spender_encoder_equals_its_definition_written_out():
    encoder, flux = SpenderEncoder(6), torch.rand(3, M)
    f = nn.functional
    x = flux[:, None]
    for i, width in enumerate((5, 11, 21), start=1):
        convolution, _, act = getattr(encoder, f"conv{i}")
        x = f.conv1d(x, convolution.weight, convolution.bias, padding=width // 2)
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        x = torch.where(x > 0, x, act.weight[:, None] * x)
        if i < 3: x = f.max_pool1d(x, width, padding=width // 2)
    value, logit = x[:, :256], x[:, 256:]
    expected = encoder.mlp((value * logit.exp() / logit.exp().sum(-1, keepdim=True)).sum(-1))
    assert torch.allclose(encoder(flux, torch.ones(3, M)), expected, atol=1e-5)


def test_rest_grids_of_the_papers():
    linear, log, native = (rest_grid(SDSS, k) for k in ("linear", "log", "native"))
    for grid in (linear, log):
        assert grid.n == 7000 and np.allclose(grid.wave[[0, -1]], [2359, 9332])
    assert rest_grid(DESI, "linear").n == 9780 and PAPER.hidden == (256, 512, 1024)
    offset = (SDSS.grid.first - native.first) / native.step
    assert abs(offset - round(offset)) < 1e-6  # the same lattice
    with pytest.raises(ConfigError, match="native"):
        rest_grid(BOSS, "log")


def test_compact_model_is_small():
    model = RedshiftAutoencoder(SDSS, 6)
    assert count(model) * 2 < 8e6  # bytes in half precision
    flops = []
    for c in model.encoder.convolutions:
        c.register_forward_hook(lambda layer, inputs, out: flops.append(2 * out[0, 0].numel() * layer.weight.numel()))
    model.encode(torch.ones(1, M), torch.ones(1, M))
    assert sum(flops) < 0.05 * 0.982e9  # spender's forward pass


# ── masks ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("config", [SMALL, AutoencoderConfig(frame="rest", hidden=(16, 32)), RELEASED])
def test_masked_pixels_have_no_influence_and_no_gradient(config):
    model, batch = RedshiftAutoencoder(SDSS, 3, config).eval(), make_batch(2)
    dirty = batch._replace(flux=torch.where(batch.weight > 0, batch.flux, torch.nan).requires_grad_())
    losses = [model(b, **FULL, generator=torch.Generator().manual_seed(3)) for b in (batch, dirty)]
    for name, value in losses[0].items():
        assert torch.isfinite(value) and torch.allclose(value, losses[1][name])
    losses[1]["loss"].backward()
    assert (dirty.flux.grad[batch.weight == 0] == 0).all() and torch.isfinite(dirty.flux.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_row_without_data_is_harmless():
    model, batch = RedshiftAutoencoder(SDSS, 3, SMALL), make_batch(4)
    weight = batch.weight.clone()
    weight[1] = 0
    loss = model(batch._replace(weight=weight), **FULL)["loss"]
    loss.backward()
    assert torch.isfinite(loss) and all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_compress_tells_a_gap_from_a_line():
    flux, weight = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[1.0, 1.0, 0.0]])
    x = compress(flux, weight)
    assert abs(float(x[0, 0, 0])) < 1e-6 and x[0, 0, 1] < -0.8
    assert x[0, 0, 2] == 0 and x[0, 1].tolist() == [1, 1, 0]


@pytest.mark.parametrize("config", [SMALL, RELEASED])
def test_rows_are_independent_and_the_batch_is_the_mean_of_singles(config):
    model, batch = RedshiftAutoencoder(SDSS, 3, config).eval(), make_batch(4)
    with torch.no_grad():
        whole = model.encode(*batch)
        single = torch.cat([model.encode(*(t[i : i + 1] for t in batch)) for i in range(4)])
        assert torch.allclose(whole, single, atol=1e-5)
        losses = [model(Batch(*(t[i : i + 1] for t in batch)))["fidelity"] for i in range(4)]
        assert torch.allclose(model(batch)["fidelity"], torch.stack(losses).mean(), rtol=1e-5)


# ── redshift ─────────────────────────────────────────────────────────────────────────────────────────────────────


def line_at(grid, wave: float, n: int = 1) -> torch.Tensor:
    return torch.tensor(np.exp(-(((grid.wave - wave) / 5) ** 2) / 2), dtype=torch.float32).repeat(n, 1)


@pytest.mark.parametrize("rest", ["native", "linear", "log"])
@pytest.mark.parametrize("survey", [SDSS, BOSS, DESI])
def test_a_line_at_5007_lands_at_5007_times_one_plus_z(rest, survey):
    model = RedshiftAutoencoder(SDSS, 2, AutoencoderConfig(rest=rest, hidden=(8,)))
    z = torch.tensor([0.0, 0.1234, 0.4], dtype=torch.float64)
    flux, inside = model.observe(line_at(model.rest, 5007, 3), z, survey)
    centre = (flux * torch.tensor(survey.grid.wave)).sum(1) / flux.sum(1)
    assert torch.allclose(centre, 5007 * (1 + z), atol=0.1)
    assert (flux[~inside] == 0).all()


def test_whole_pixel_redshifts_are_exact():
    model = RedshiftAutoencoder(SDSS, 2, SMALL)
    rest = torch.rand(1, model.rest.n)
    for k in (0, 1, 700):
        z = torch.tensor([10 ** (k * 1e-4) - 1], dtype=torch.float64)
        first = round((SDSS.grid.first - model.rest.first) / 1e-4) - k
        flux, inside = model.observe(rest, z)
        assert torch.allclose(flux, rest[:, first : first + M], atol=1e-6) and inside.all()


def test_rest_frame_encoder_sees_exact_copies():
    "Two observations of one rest-frame spectrum, whole pixels apart, give the same latents where all of it is seen."
    model = RedshiftAutoencoder(SDSS, 3, AutoencoderConfig(frame="rest", hidden=(8,))).eval()
    rest, weight = torch.rand(1, model.rest.n), torch.zeros(1, model.rest.n)
    weight[:, 2000:5000] = 1
    rows = []
    for k in (0, 37, 400):
        z = torch.tensor([10 ** (k * 1e-4) - 1], dtype=torch.float64)
        first = round((SDSS.grid.first - model.rest.first) / 1e-4) - k
        rows.append(model.encode(rest[:, first : first + M], weight[:, first : first + M], z))
    assert torch.allclose(rows[0], rows[1], atol=1e-5) and torch.allclose(rows[0], rows[2], atol=1e-5)
    with pytest.raises(SpectrumError, match="redshift"):
        model.encode(rest[:, :M], weight[:, :M])
    with pytest.raises(ConfigError, match="lattice"):
        RedshiftAutoencoder(DESI, 3, AutoencoderConfig(frame="rest"))


def test_other_surveys_agree_with_the_models_own():
    "SDSS and BOSS share a lattice; where SDSS's lines are wider than BOSS's, nothing changes at all."
    model = RedshiftAutoencoder(SDSS, 2, SMALL)
    rest, z = line_at(model.rest, 5007, 2) + 1, torch.tensor([0.1, 0.3])
    own, _ = model.observe(rest, z)
    boss, inside = model.observe(rest, z, "boss")
    offset = round((SDSS.grid.first - BOSS.grid.first) / 1e-4)
    same = boss[:, offset : offset + M]
    assert inside[:, offset : offset + M].all()
    assert torch.allclose(own.sum(1), same.sum(1), rtol=1e-4)  # flux conserved
    assert (own - same).max() >= 0 and (own - same).abs().max() < 0.1
    desi, inside = model.observe(rest, z, DESI)
    wave = np.interp(5007 * 1.1, DESI.grid.wave, desi[0].numpy())
    assert abs(wave - np.interp(5007 * 1.1, SDSS.grid.wave, own[0].numpy())) < 0.03


def test_broaden_adds_in_quadrature_and_keeps_flux():
    pixel = np.arange(400) - 200
    x = torch.tensor(np.exp(-(pixel**2) / (2 * 3.0**2)), dtype=torch.float64)[None]
    sigma = np.full(400, 2.0)
    sigma[0] = 5.0  # the bank reaches further than this line needs
    out = broaden(x, sigma)[0]
    assert abs(float(out.sum() / x.sum()) - 1) < 1e-9
    assert abs(float((out * torch.tensor(pixel**2)).sum() / out.sum()) - (9 + 4)) < 0.01
    assert torch.equal(broaden(x, np.zeros(400)), x)


# ── augments ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_augment_never_extrapolates_and_masks_only_grow():
    batch = make_batch(32)
    moved = augment(batch, SDSS, noise=0)
    assert (moved.flux[moved.weight == 0] == 0).all()
    assert moved.flux.abs().max() <= batch.flux.abs().max() + 1e-5 and moved.weight.max() <= batch.weight.max() + 1e-4
    pixel = torch.arange(M) + torch.log10((1 + batch.z) / (1 + moved.z))[:, None] / 1e-4
    outside = (pixel < -1e-3) | (pixel > M - 1 + 1e-3)
    assert outside.any() and (moved.weight[outside] == 0).all()
    nearest = pixel.round().long().clamp(0, M - 1)
    assert (batch.weight.gather(1, nearest)[moved.weight > 0] > 0).all()
    assert moved.z.min() >= 0 and moved.z.max() <= 0.5 and moved.z.std() > 0.1


def test_augment_moves_a_line_with_its_redshift():
    wave = torch.tensor(SDSS.grid.wave)
    batch = Batch(line_at(SDSS.grid, 5007 * 1.2, 20), torch.ones(20, M), torch.full((20,), 0.2, dtype=torch.float64))
    moved = augment(batch, SDSS, noise=0)
    kept = (moved.weight * (moved.flux > 1e-3)).sum(1) > 25  # not under the masked block
    centre = (moved.flux * wave).sum(1) / moved.flux.sum(1)
    assert kept.sum() > 10 and torch.allclose(centre[kept], (5007 * (1 + moved.z))[kept], atol=0.1)


def test_disturbance_is_its_own_for_each_spectrum_and_enters_the_weight():
    flux, weight = torch.ones(200, 1000), torch.full((200, 1000), 4.0)
    noisy, new = disturb(flux, weight, noise=0.5)
    blocks = new == 0
    assert (blocks.sum(1) == 50).all() and len({int(b.float().argmax()) for b in blocks}) > 100
    hit = (new > 0) & (new < 4)
    assert abs(float(hit.sum() / (~blocks).sum()) - 0.05) < 0.003
    assert torch.allclose(new[hit], torch.tensor(1 / (1 / 4 + 0.25)))
    assert abs(float(((noisy - 1)[hit] / 0.5).std()) - 1) < 0.05 and (noisy[(new == 4)] == 1).all()


def test_stars_are_moved_by_velocities():
    from dataclasses import replace

    stars = replace(SDSS, z_max=0.005)
    z = augment(make_batch(500), stars).z
    assert z.min() < -0.002 and z.max() > 0.002 and z.abs().max() <= 0.0025


# ── forward: precision, seeds, terms ─────────────────────────────────────────────────────────────────────────────


def test_autocast_reaches_the_convolutions_and_not_the_losses():
    model, batch, seen = RedshiftAutoencoder(SDSS, 3, SMALL), make_batch(2), {}
    model.encoder.convolutions[1].register_forward_hook(lambda m, i, o: seen.update(convolution=o.dtype))
    model.decoder.mlp[0].register_forward_hook(lambda m, i, o: seen.update(linear=o.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        out = model(batch, **FULL)
    assert seen == {"convolution": torch.bfloat16, "linear": torch.bfloat16}
    assert all(v.dtype == torch.float32 for v in out.values())
    exact = model(batch)["fidelity"]
    assert torch.allclose(out["fidelity"], exact, rtol=0.05)


def test_a_step_is_reproducible_from_the_global_seed_or_a_generator():
    model, batch = RedshiftAutoencoder(SDSS, 3, SMALL), make_batch(4)
    values = []
    for _ in range(2):
        torch.manual_seed(7)
        values.append(model(batch, **FULL)["loss"].item())
    assert values[0] == values[1]
    draw = [model(batch, **FULL, generator=torch.Generator().manual_seed(s))["loss"].item() for s in (1, 1, 2)]
    assert draw[0] == draw[1] != draw[2]


def test_terms_are_left_out_and_weighted():
    model, batch = RedshiftAutoencoder(SDSS, 3, SMALL), make_batch(4)
    assert set(model(batch)) == {"loss", "fidelity"}
    calls = []
    model.encoder.register_forward_hook(lambda m, i, o: calls.append(len(o)))
    out = model(batch, similarity=3.0, consistency=2.0)
    assert calls == [8]  # original and augment together
    total = out["fidelity"] + 3 * out["similarity"] + 2 * out["consistency"]
    assert torch.allclose(out["loss"], total)
    flat = model(batch, similarity=1.0, progress=0.0)["similarity"]
    assert abs(flat.item() - 0.1517) < 1e-4  # k1 = 0: every pair costs the minimum


@pytest.mark.parametrize("family", ["paper", "scale_free"])
@pytest.mark.parametrize("weighting", ["code", "text"])
def test_a_small_step_down_the_gradient_lowers_the_loss(family, weighting):
    config = AutoencoderConfig(hidden=(16, 32), family=family, weighting=weighting)
    model, batch = RedshiftAutoencoder(SDSS, 2, config), make_batch(8)

    def loss() -> torch.Tensor:
        return model(batch, **FULL, generator=torch.Generator().manual_seed(0))["loss"]

    before = loss()
    before.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    with torch.no_grad():
        for p in model.parameters(): p -= 1e-5 * p.grad / norm
        change = float(loss() - before)
    assert change == pytest.approx(-1e-5 * float(norm), rel=0.3), float(norm)


def test_recovery_is_the_fidelity_of_the_augment_to_the_original():
    model, batch = RedshiftAutoencoder(SDSS, 2, SMALL).eval(), make_batch(4)
    with torch.no_grad():
        out = model(batch, recovery=2.0, generator=torch.Generator().manual_seed(3))
        moved = augment(batch, SDSS, generator=torch.Generator().manual_seed(3))
        seen, inside = model.observe(model.decode(model.encode(moved.flux, moved.weight)), batch.z)
        weight = batch.weight / (1 + batch.weight * SMALL.error_floor**2)
        expected = fidelity_loss(batch.flux, seen, weight, inside)
    assert "consistency" not in out and float(out["recovery"]) == pytest.approx(float(expected), rel=1e-5)
    assert float(out["loss"]) == pytest.approx(float(out["fidelity"] + 2 * out["recovery"]), rel=1e-6)


def test_error_floor_bounds_the_weight_of_a_pixel():
    "Errors far below the floor count as the floor; without a floor the loss is equation 1."
    batch = make_batch(4)
    sharp = batch._replace(weight=torch.where(batch.weight > 0, 1e8, 0))
    for floor, weight in ((0.05, 400.0), (0.0, 1e8)):
        torch.manual_seed(1)
        model = RedshiftAutoencoder(SDSS, 2, AutoencoderConfig(hidden=(16, 32), error_floor=floor)).eval()
        with torch.no_grad():
            seen, inside = model.observe(model.decode(model.encode(*sharp)), sharp.z)
            plain = fidelity_loss(sharp.flux, seen, torch.where(sharp.weight > 0, weight, 0), inside)
            assert float(model(sharp)["fidelity"]) == pytest.approx(float(plain), rel=1e-3)


def test_begin_puts_the_mean_spectrum_into_the_decoder():
    model, batch = RedshiftAutoencoder(SDSS, 2, AutoencoderConfig(hidden=(16, 4))), make_batch(30)
    model.begin(batch)
    with torch.no_grad(): mean = model.decode(torch.zeros(1, 2))
    covered = slice(1500, 4500)  # rest pixels that most of the batch sees
    assert abs(float(mean[0, covered].mean()) - 1) < 0.1 and mean.isfinite().all()
    with pytest.raises(ConfigError, match="silu"): RedshiftAutoencoder(SDSS, 2, replace(RELEASED, hidden=(8, 8, 8))).begin(batch)


def test_wrong_lengths_and_words_are_refused():
    model = RedshiftAutoencoder("sdss", 3, SMALL)
    with pytest.raises(SpectrumError, match="3921 pixels"):
        model.encode(torch.ones(1, 3900), torch.ones(1, 3900))
    with pytest.raises(ConfigError, match="native, linear, log"):
        AutoencoderConfig(rest="logarithmic")
    with pytest.raises(ConfigError, match="activation"):
        RedshiftAutoencoder("sdss", 3, AutoencoderConfig(activation="tanh"))
    with pytest.raises(ConfigError, match="hidden"):
        AutoencoderConfig.from_dict({"hiden": (3,)})


def test_saved_weights_give_the_same_model():
    a, b = RedshiftAutoencoder(SDSS, 3, SMALL).eval(), RedshiftAutoencoder(SDSS, 3, SMALL).eval()
    assert not any("window" in k for k in a.state_dict())  # only what was learned
    b.load_state_dict(a.state_dict())
    batch = make_batch(2)
    torch.testing.assert_close(a.encode(*batch), b.encode(*batch))
    copy = CompactEncoder(3)
    copy.load_state_dict({k.removeprefix("encoder."): v for k, v in a.state_dict().items() if k.startswith("encoder.")})
    torch.testing.assert_close(copy(batch.flux, batch.weight), a.encode(*batch))


def test_decoder_starts_from_a_flat_spectrum():
    for activation in ("speculator", "silu"):
        spectra = Decoder(6, 500, (64, 256, 128), activation)(torch.zeros(3, 6))
        assert abs(spectra.median().item() - 1) < 0.2
