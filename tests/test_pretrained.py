"""Model files: there and back exactly, and every way in which a folder can lie (rows 26, 27 and 30 of the fault matrix)."""

import hashlib
import io
import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from safetensors.torch import save as as_safetensors

from spectral_core.analysis.outliers import load_calibration
from spectral_core.core import ConfigError, ModelFileError, assets_dir
from spectral_core.inputs import load_filler, ready_for
from spectral_core.models.autoencoder import AutoencoderConfig, RedshiftAutoencoder
from spectral_core.models.flows import FlowConfig, MaskedAutoregressiveFlow, SplineFlow
from spectral_core.predict import chi2, encode, log_prob
from spectral_core.pretrained import load, load_model, read_card, save_model
from spectral_core.shipping import SIZES
from spectral_core.simulate.mock import mock_survey
from spectral_core.spectra.surveys import DESI, SDSS

X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
SMALL = AutoencoderConfig(hidden=(8,))
MODELS = {
    "maf": lambda: MaskedAutoregressiveFlow(3, FlowConfig(n_layer=2, n_hidden=8, seed=5)).standardise(X),
    "nflows": lambda: MaskedAutoregressiveFlow(3, FlowConfig(n_layer=2, n_hidden=8, backend="nflows", seed=5)).standardise(X),
    "spline": lambda: SplineFlow(3, FlowConfig(n_layer=2, n_hidden=8, n_bin=4)).standardise(X),
    "autoencoder": lambda: RedshiftAutoencoder("sdss", 2, SMALL),
    "rest frame": lambda: RedshiftAutoencoder("sdss", 2, replace(SMALL, frame="rest")),
    "desi": lambda: RedshiftAutoencoder(DESI, 2, SMALL),
    "spender": lambda: RedshiftAutoencoder("sdss", 2, replace(SMALL, encoder="spender", rest="linear")),
    "own survey": lambda: RedshiftAutoencoder(replace(SDSS, name="stars", z_max=0.005), 2, SMALL),
}


def output(model):
    "What a model says of fixed input."
    with torch.no_grad():
        if not hasattr(model, "encode"): return model.log_prob(X)
        flux = torch.linspace(0.5, 1.5, model.survey.grid.n).expand(2, -1)
        latents = model.encode(flux, torch.ones_like(flux), torch.tensor([0.001, 0.002]))
        return torch.cat([latents, model.decode(latents)], 1)


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    return save_model(MODELS["maf"](), tmp_path / "toy", {"made by": "a test"})


# ---- there and back


@pytest.mark.parametrize("kind", MODELS)
def test_what_is_loaded_is_what_was_saved(kind, tmp_path):
    torch.manual_seed(0)
    model = MODELS[kind]().eval()
    before = torch.random.get_rng_state()
    again = load_model(save_model(model, tmp_path / "model"))
    assert type(again) is type(model) and again.config == model.config and not again.training
    assert getattr(again, "survey", None) == getattr(model, "survey", None)
    for name, value in model.state_dict().items(): assert torch.equal(again.state_dict()[name], value), name
    torch.testing.assert_close(output(again), output(model), rtol=1e-5, atol=1e-6)
    assert torch.equal(torch.random.get_rng_state(), before) or kind not in ("maf", "nflows", "spline")


@pytest.mark.parametrize("kind", ["spline", "autoencoder"])
def test_half_precision_halves_the_file_and_keeps_three_digits(kind, tmp_path):
    torch.manual_seed(0)
    model = MODELS[kind]().eval()
    full, half = (save_model(model, tmp_path / str(h), half=h) for h in (False, True))
    size = [(f / "model.safetensors").stat().st_size for f in (full, half)]
    assert size[1] < 0.6 * size[0] or kind == "spline"  # of a tiny flow, names and masks are the larger part
    again, parameters = load_model(half), dict(model.named_parameters())
    for name, value in model.state_dict().items():
        loose = dict(rtol=2**-11, atol=2**-24) if name in parameters else dict(rtol=0, atol=0)  # z-scores stay exact
        torch.testing.assert_close(again.state_dict()[name], value, **loose)
    torch.testing.assert_close(output(again), output(model), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("value", "half"), [(np.nan, False), (np.inf, False), (1e5, True)])
def test_weights_that_are_no_numbers_are_not_written(folder, value, half):
    before = {p: p.read_bytes() for p in folder.iterdir()}
    model = load_model(folder)
    with torch.no_grad(): next(model.parameters()).view(-1)[0] = value
    with pytest.raises(ModelFileError, match="not finite"): save_model(model, folder, half=half)
    assert {p: p.read_bytes() for p in folder.iterdir()} == before


# ---- damage and lies


def rewrite(folder, **changes):
    "Change the description of a model, and its digest; None takes a key away."
    about = json.loads((folder / "model.json").read_text()) | {"digest": None} | changes
    about = {k: v for k, v in about.items() if v is not None}
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    (folder / "model.json").write_text(json.dumps({"digest": digest} | about))


def reweigh(folder, data):
    "Put other bytes in place of the weights, with their right digest."
    (folder / "model.safetensors").write_bytes(data)
    rewrite(folder, sha256=hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("kind", ["flip", "cut"])
@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_fault_25_a_damaged_model_is_refused(folder, kind, name):
    raw = (folder / name).read_bytes()
    for at in np.random.default_rng(0).integers(0, len(raw) - 2, 20):
        data = bytearray(raw[:at] if kind == "cut" else raw)
        if kind == "flip": data[at] ^= 1 << int(at) % 7
        (folder / name).write_bytes(data)
        if data.split() == raw.split(): continue  # one white space for another, in JSON
        with pytest.raises(ModelFileError, match="toy holds no usable model"): load_model(folder)
    (folder / name).write_bytes(raw)
    load_model(folder)


LIES = {
    "another class": {"class": "SplineFlow"},
    "a class of another kind": {"class": "RedshiftAutoencoder"},
    "a function": {"class": "os.system"},
    "a list for a class": {"class": ["MaskedAutoregressiveFlow"]},
    "no class": {"class": None},
    "no digest of the weights": {"sha256": None},
    "another digest": {"digest": "0" * 64},
    "another size": {"n_features": 4},
    "text for a size": {"n_features": "3"},
    "a size below zero": {"n_features": -3},
    "a size beyond all memory": {"n_features": 10**12},
    "an unknown setting": {"config": {"n_layer": 2, "n_hiden": 8}},
    "text for a number": {"config": {"n_layer": "2"}},
    "a hostile setting": {"config": {"backend": "os; os.system('touch canary')"}},
    "a list of settings": {"config": ["n_layer"]},
    "no settings": {"config": None},
    "other settings": {"config": {"n_layer": 3, "n_hidden": 8}},
}


@pytest.mark.parametrize("lie", LIES)
def test_fault_27_a_description_that_does_not_fit_the_weights(folder, lie):
    rewrite(folder, **LIES[lie])
    with pytest.raises(ModelFileError, match="toy holds no usable model"): load_model(folder)


@pytest.mark.parametrize("survey", ["sdsss", 7, ["sdss"], {"name": "x"}, {"name": "x", "grid": {"kind": "log"}}, None])
def test_fault_27_a_survey_that_is_none(tmp_path, survey):
    folder = save_model(RedshiftAutoencoder("sdss", 2, SMALL), tmp_path / "toy")
    rewrite(folder, survey=survey)
    with pytest.raises(ModelFileError, match="toy holds no usable model"): load_model(folder)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'"maf"', b"null", b"\xff\xfe", b"<html>404</html>"])
def test_fault_27_a_description_that_is_none(folder, text):
    (folder / "model.json").write_bytes(text)
    with pytest.raises(ModelFileError, match="toy holds no usable model"): load_model(folder)


def test_fault_27_tensors_missing_added_or_of_another_shape(folder):
    state = load_file(folder / "model.safetensors")
    name = next(k for k in state if k.endswith("weight"))
    changed = {
        "missing": {k: v for k, v in state.items() if k != name},
        "added": state | {"extra": torch.ones(3)},
        "reshaped": state | {name: state[name].T.contiguous()[:-1]},
        "renamed": {k.replace("steps", "stairs"): v for k, v in state.items()},
        "empty": {},
    }
    for other in changed.values():
        reweigh(folder, as_safetensors(other))
        with pytest.raises(ModelFileError, match="no usable model"): load_model(folder)
    reweigh(folder, as_safetensors(state))
    load_model(folder)


class Bomb:
    def __init__(self, canary): self.canary = canary

    def __reduce__(self): return (Path.touch, (self.canary,))


@pytest.mark.parametrize("how", ["torch", "pickle", "npy"])
def test_fault_26_a_pickle_in_place_of_weights_is_refused_and_nothing_runs(folder, tmp_path, how):
    buffer, canary = io.BytesIO(), tmp_path / "canary"
    if how == "torch": torch.save({"weight": Bomb(canary)}, buffer)
    elif how == "pickle": buffer.write(pickle.dumps(Bomb(canary)))
    else: np.save(buffer, np.array([Bomb(canary)], dtype=object), allow_pickle=True)
    reweigh(folder, buffer.getvalue())
    with pytest.raises(ModelFileError, match="no usable model"): load_model(folder)
    assert not canary.exists()


def test_what_is_not_there_is_named(tmp_path, folder):
    with pytest.raises(ModelFileError, match="nowhere"): load_model(tmp_path / "nowhere")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelFileError, match="model.safetensors"): load_model(folder)
    for call in (load, read_card):
        with pytest.raises(ModelFileError, match="did you mean 'sdss'"): call("sdsss")
        with pytest.raises(ModelFileError, match="no model '../sdss'"): call("../sdss")


# ---- what is shipped


SHIPPED = sorted(p.parent.name for p in assets_dir().glob("*/model.json"))


def test_there_is_a_model_for_each_chapter_and_a_density_for_those_that_rank():
    assert set(SHIPPED) == {*SIZES, "sedflow", *(f"{name}_flow" for name in SIZES if name != "vae")}
    for name in ("sdss", "desi", "desi_stars"):
        assert load(name).n_latent == load(f"{name}_flow").n_features
        assert len(load_calibration(assets_dir() / f"{name}_flow" / "tail.safetensors").statistic) > 1000


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_model_loads_and_its_card_says_how_it_was_made(name):
    model, card = load(name), read_card(name)
    told = [torch.zeros(n)] if (n := getattr(model.config, "context", 0)) else []
    assert torch.isfinite(output(model) if hasattr(model, "encode") else model.sample(100, *told, seed=0)).all()
    assert {"command", "data", "not for"} <= card.keys() and "seed" in card["data"] and "mock" in card["data"]
    if name not in SIZES: return
    assert card["command"].startswith(f"python -m spectral_core.shipping {name} --n ") and card["held-out mock"]["n"] > 300
    assert card["parameters"] == sum(p.numel() for p in model.parameters())


def test_input_of_another_kind_is_brought_to_each_model():
    near = mock_survey("sdss", n=40, seed=90, population="nearby")
    for name in ("sdss", "pae", "vae"):
        ready, model = ready_for(name, near), load(name)
        assert ready.survey.grid == model.survey.grid and np.isfinite(encode(model, ready)).all() and len(ready) > 30
        if name == "vae": assert not ready.mask[ready.good].any()
    assert (near.id[ready_for("pae", near).table["row"]] == ready_for("pae", near).id).all()
    with pytest.raises(ConfigError, match="reads no spectra"): ready_for("sdss_flow", near)


def test_the_cards_of_the_galaxy_models_say_what_a_new_mock_shows():
    for name, population in (("sdss", "survey"), ("desi", "bgs")):
        spectra = ready_for(name, mock_survey(name, n=200, seed=91, population=population))
        spectra = spectra[spectra.good]
        told, latents = read_card(name)["held-out mock"], encode(load(name), spectra)
        assert np.nanmedian(chi2(load(name), spectra)["chi2_valid"]) < 1.1 * told["median chi2_valid"]
        density = log_prob(load(f"{name}_flow"), latents)
        tail = load_calibration(assets_dir() / f"{name}_flow" / "tail.safetensors").probability(spectra, density)
        assert 0.35 < np.nanmedian(tail) < 0.65 and np.nanmean(tail < 0.1) < 0.2


def test_a_filler_that_is_none_is_refused(tmp_path):
    (tmp_path / "filler.safetensors").write_bytes(as_safetensors({"mean": torch.ones(3)}))
    with pytest.raises(ModelFileError, match="holds no filler: it has mean"): load_filler(tmp_path / "filler.safetensors")
    with pytest.raises(ModelFileError, match="holds no filler"): load_filler(tmp_path / "nowhere.safetensors")


# ---- devices


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_fault_30_a_model_trained_on_a_gpu_is_the_same_on_the_cpu(tmp_path):
    from spectral_core.train import fit
    from spectral_core.training.checkpoint import load_checkpoint

    flow = MODELS["maf"]()
    fit(flow, X, X, n_epoch=2, run=tmp_path / "run", device="cuda", progress=False)
    assert next(flow.parameters()).is_cuda
    with torch.no_grad(): there = flow.log_prob(X.cuda()).cpu()
    here = load_model(save_model(flow, tmp_path / "model"))
    torch.testing.assert_close(output(here), there, rtol=1e-3, atol=1e-3)
    assert not any(v.is_cuda for v in load_checkpoint(tmp_path / "run")["model"].values())
    again = MODELS["maf"]()
    assert len(fit(again, X, X, n_epoch=2, run=tmp_path / "run", device="cpu", progress=False)) == 2
    torch.testing.assert_close(output(again), there, rtol=1e-3, atol=1e-3)
