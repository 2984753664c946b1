"Released weights of spender: what its package says of a file is what ours says, to 1e-5; and files that lie are refused."

import hashlib
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from spectral_core.core import ModelFileError
from spectral_core.manifest import read_manifest
from spectral_core.models.spender import RELEASED, SpenderAutoencoder, SpenderConfig, load_spender, load_spender_flow
from spectral_core.pretrained import load_model, save_model
from spectral_core.spectra.surveys import BOSS, DESI, SDSS

LAYOUTS = {  # survey, latents, first and last rest wavelength, pixels
    "paper I": (SDSS, 10, 2522.9, 9332.5, 5881),
    "paper II": (SDSS, 6, 2359.0, 9332.0, 7000),
    "desi galaxies": (DESI, 6, 2000.0, 9824.0, 9780),
    "desi stars": (DESI, 6, 3582.4, 9872.8, 7864),
}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 (spender draws the start of its flow from it)


def peer(layout: str, activation: str = "speculator", spread: int = 0):
    "spender's own model with random weights, its wavelengths in double precision: in single they carry errors of 1e-4 Å."
    pytest.importorskip("spender")
    from spender import LSF, Instrument
    from spender.model import SpectrumAutoencoder

    survey, n_latent, first, last, n = LAYOUTS[layout]
    kind = type(survey.name.upper(), (Instrument,), {})
    lsf = LSF(torch.rand(spread) + 0.1) if spread else None
    act = None if activation == "speculator" else [torch.nn.LeakyReLU()] * 4
    wave = torch.linspace(first, last, n, dtype=torch.float64)
    model = SpectrumAutoencoder(kind(torch.as_tensor(survey.grid.wave), lsf=lsf), wave, n_latent=n_latent, act=act)
    return model.eval(), survey


def save(content, folder: Path, name: str = "model.pt") -> Path:
    torch.save(content, folder / name)
    return folder / name


def worst(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max())


KINDS = [(name, "speculator", 0) for name in LAYOUTS]
KINDS += [("paper II", "leaky_relu", 0), ("desi galaxies", "leaky_relu", 0), ("paper I", "speculator", 7)]


@pytest.mark.parametrize(("layout", "activation", "spread"), KINDS)
def test_latents_rest_model_and_reconstruction_are_those_of_the_package(layout, activation, spread, tmp_path):
    theirs, survey = peer(layout, activation, spread)
    ours = load_spender(save({"model": theirs.state_dict(), "losses": torch.zeros(3)}, tmp_path))
    assert ours.config.activation == activation and ours.survey.grid == survey.grid
    assert (ours.survey.z_max < 0.01) == (layout == "desi stars")
    flux, z = torch.rand(2, survey.grid.n), torch.rand(2, dtype=torch.float64) * ours.survey.z_max * 0.8
    with torch.no_grad():
        latents, rest, seen, valid = theirs._forward(flux, z=z)
        own = ours.encode(flux, torch.ones_like(flux))
        assert worst(own, latents) < 1e-5 and float(latents.std()) > 1e-3
        assert worst(ours.decode(latents), rest) < 1e-5
        observed, inside = ours.observe(rest, z)
        assert worst(ours.reconstruct(own, z), seen) < 2e-5
    assert worst(observed, seen) < 1e-5 and (inside == valid).float().mean() > 0.9995  # the outermost pixel is a convention


def test_a_loaded_model_is_saved_and_loaded_as_any_other(tmp_path):
    theirs, _ = peer("paper I", spread=5)
    ours = load_spender(save({"model": theirs.state_dict()}, tmp_path))
    again = load_model(save_model(ours, tmp_path / "folder"))
    latents, z = torch.randn(2, 10), torch.tensor([0.1, 0.3])
    with torch.no_grad(): assert torch.equal(again.reconstruct(latents, z), ours.reconstruct(latents, z))
    assert again.rest == ours.rest and again.config == ours.config


def old_habits(state: dict) -> dict:
    "The same tensors as an old file has them: other names, a redshift among the inputs, nothing of an instrument."
    kept = ((name, value) for name, value in state.items() if ".instrument." not in name)
    state = OrderedDict((name.replace(".mlp.", ".mlp.mlp."), value) for name, value in kept)
    name = "encoder.mlp.mlp.0.weight"
    state[name] = torch.cat([state[name], torch.rand(len(state[name]), 1)], 1)
    return state


def test_files_of_all_ages_give_the_same_model(tmp_path):
    theirs, _ = peer("paper I")
    state, flux = theirs.state_dict(), torch.rand(1, SDSS.grid.n)
    contents = {
        "bare": state,
        "list": {"model": [state, state], "losses": np.zeros((4, 2))},
        "old": {"model": [old_habits(state)], "losses": [np.float64(1.0), np.zeros(3, np.float32)]},
        "parallel": {"model": {f"module.{name}": value for name, value in state.items()}},
    }
    with torch.no_grad():
        expected = theirs.encode(flux)
        for name, content in contents.items():
            model = load_spender(save(content, tmp_path), survey="sdss")
            assert worst(model.encode(flux, torch.ones_like(flux)), expected) < 1e-5, name
    with pytest.raises(ModelFileError, match="survey='sdss'"): load_spender(save(contents["old"], tmp_path))


@pytest.mark.filterwarnings("ignore:Use PointwiseAffineTransform:DeprecationWarning")
def test_densities_are_those_of_the_package(tmp_path):
    pytest.importorskip("spender")
    from spender import NeuralDensityEstimator

    theirs = NeuralDensityEstimator(dim=6, initial_pos={"bounds": [[-1, 1]] * 6, "std": [0.5] * 6}).eval()
    with torch.no_grad():
        for parameter in theirs.parameters(): parameter.add_(0.1 * torch.randn_like(parameter))
    ours, x = load_spender_flow(save(theirs.state_dict(), tmp_path)), torch.randn(200, 6)
    with torch.no_grad():
        expected = theirs.log_prob(x)
        torch.testing.assert_close(ours.log_prob(x), expected, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(ours.double().log_prob(x.double()).float(), expected, rtol=1e-5, atol=1e-4)
    assert float(expected.std()) > 0.1 and torch.isfinite(ours.sample(10)).all()


# ---- what is not believed


class Bomb:
    def __init__(self, canary): self.canary = canary

    def __reduce__(self): return (Path.touch, (self.canary,))


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_file_that_would_run_code_is_refused_and_nothing_runs(how, tmp_path):
    file, canary = tmp_path / "bomb.pt", tmp_path / "canary"
    if how == "torch": torch.save({"model": {}, "losses": Bomb(canary)}, file)
    else: file.write_bytes(pickle.dumps(Bomb(canary)))
    with pytest.raises(ModelFileError, match="no file of spender's"): load_spender(file)
    assert not canary.exists()


def test_a_hash_in_the_name_is_checked(tmp_path):
    model = SpenderAutoencoder(BOSS, 2, SpenderConfig(hidden=(4, 4, 4), n_rest=50))
    state = {k: v for k, v in model.state_dict().items()} | {"decoder.wave_rest": torch.as_tensor(model.rest.wave)}
    raw = save(state, tmp_path).read_bytes()
    right, wrong = (tmp_path / f"toy-{digest}.pt" for digest in (hashlib.sha256(raw).hexdigest()[:8], "0" * 8))
    for file in (right, wrong): file.write_bytes(raw)
    assert load_spender(right, "boss").n_latent == 2
    with pytest.raises(ModelFileError, match="SHA-256"): load_spender(wrong, "boss")


def test_other_layouts_are_named(tmp_path):
    model = SpenderAutoencoder(SDSS, 2, SpenderConfig(hidden=(4, 4, 4), n_rest=50))
    state = dict(model.state_dict()) | {"decoder.wave_rest": torch.as_tensor(model.rest.wave)}
    cut = {k: v for k, v in state.items() if k != "encoder.conv2.0.weight"}
    headless = {k: v for k, v in state.items() if not k.startswith("decoder")}
    lies = {"no state dict": {"model": 3}, "no decoder": headless, "not fit": cut}
    lies["not linear"] = state | {"decoder.wave_rest": torch.logspace(3.4, 3.9, 50)}
    for words, content in lies.items():
        with pytest.raises(ModelFileError, match=words): load_spender(save(content, tmp_path), "sdss")
    for call in (load_spender, load_spender_flow):
        with pytest.raises(ModelFileError, match="did you mean"): call("sdss_3")
    with pytest.raises(ModelFileError, match="no flow"): load_spender_flow(save(state, tmp_path))


def test_the_manifest_lists_every_released_file():
    entry = read_manifest("spender_weights")
    assert {file["path"] for file in entry["files"]} == set(RELEASED.values())
