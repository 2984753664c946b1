"""Networks and losses on another device than the CPU, without one: the meta device stands in for a GPU.

Its tensors hold no numbers, but they know where they are. Whatever a network keeps or makes on the CPU by mistake meets them in
some operation, and `OneDevice` stops there, as CUDA would.
"""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spectral_core.models.autoencoder import COMPACT, RedshiftAutoencoder
from spectral_core.models.flows import MaskedAutoregressiveFlow, SplineFlow
from spectral_core.models.gis import GIS
from spectral_core.models.mixtures import AutoregressiveMixture, MixtureConfig
from spectral_core.models.pae import DenseAutoencoder
from spectral_core.models.vae import SMALL, VAEConfig, VariationalAutoencoder
from spectral_core.spectra.conditions import ConditionedBatch
from spectral_core.spectra.container import Batch
from spectral_core.spectra.restframe import PAT2022, rest_survey
from spectral_core.spectra.surveys import DESI, SDSS

MOVES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
REST = {n: rest_survey(f"rest{n}", 3800.0, 8400.0, n) for n in (500, 4000)}


class OneDevice(TorchDispatchMode):
    "Refuses operations between devices; answers a question for one value of a meta tensor with 1, and counts these."

    def __init__(self):
        super().__init__()
        self.waits = 0  # for the device, to hand over a value

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor) and x.dim()]
        devices = {x.device.type for x in tensors}
        if len(devices) > 1 and function not in MOVES: raise RuntimeError(f"{function} between {sorted(devices)}")
        if function is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            self.waits += 1
            return 1
        return function(*args, **(kwargs or {}))


@pytest.fixture
def elsewhere(monkeypatch):
    "The mode, with autocast, which knows no meta device, left out."
    monkeypatch.setattr(torch, "autocast", lambda *a, **k: nullcontext())
    with OneDevice() as mode: yield mode


def batch(m, n=4, context=0):
    z = torch.rand(n, dtype=torch.float64, device="meta")
    parts = torch.rand(n, m, device="meta"), torch.rand(n, m, device="meta"), z
    return ConditionedBatch(*parts, torch.rand(n, context, device="meta")) if context else Batch(*parts)


ALL = {"similarity": 1.0, "consistency": 1.0, "recovery": 1.0}
AUTOENCODERS = {
    "chapter 1": (lambda: RedshiftAutoencoder(SDSS, 6, COMPACT), 3921, ALL),
    "chapter 1, published encoder": (lambda: RedshiftAutoencoder(SDSS, 6, replace(COMPACT, encoder="spender")), 3921, ALL),
    "chapter 2": (lambda: DenseAutoencoder(PAT2022), PAT2022.grid.n, {}),
    "chapter 3": (lambda: VariationalAutoencoder(REST[500], 4, SMALL), 500, {}),
    "chapter 3, published": (lambda: VariationalAutoencoder(REST[4000], 4, VAEConfig()), 4000, {}),
    "chapter 4": (lambda: RedshiftAutoencoder(DESI, 6, replace(COMPACT, rest="linear")), 7781, ALL),
}
MIXTURE = MixtureConfig(context=2, n_member=2, n_hidden=16)
DENSITIES = {
    "MAF": (lambda: MaskedAutoregressiveFlow(3), 0),
    "spline flow": (lambda: SplineFlow(3), 0),
    "mixture": (lambda: AutoregressiveMixture(3, MIXTURE), 2),
}


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_a_training_step_stays_on_the_device(name, elsewhere):
    make, m, terms = AUTOENCODERS[name]
    model = make().to("meta")
    out = model(batch(m), progress=0.5, **terms)
    assert {value.device.type for value in out.values()} == {"meta"}
    out["loss"].backward()
    assert all(p.grad is None or p.grad.is_meta for p in model.parameters())
    assert any(p.grad is not None for p in model.parameters())
    # each wait lets the device run dry: one look at the redshifts for each time that spectra are moved, no more
    assert elsewhere.waits <= 6, f"{elsewhere.waits} values a step travel back to the CPU"


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_encoding_and_reconstruction_stay_on_the_device(name, elsewhere):
    make, m, _ = AUTOENCODERS[name]
    model, seen = make().to("meta").eval(), batch(m)
    latents = model.encode(*seen)
    assert latents.is_meta and model.reconstruct(latents, seen.z).shape == (4, m)


def test_conditions_stay_on_the_device(elsewhere, monkeypatch):
    monkeypatch.setattr("spectral_core.models.vae.check_conditions", lambda *a: None)  # it counts what is not finite
    model = VariationalAutoencoder(REST[500], 2, replace(SMALL, conditions=("log_mass",))).to("meta")
    model(batch(500, context=1))["loss"].backward()


@pytest.mark.parametrize("name", DENSITIES)
def test_densities_and_draws_stay_on_the_device(name, elsewhere):
    make, context = DENSITIES[name]
    model, x = make().to("meta"), torch.rand(5, 3, device="meta")
    told = [torch.rand(5, context, device="meta")] if context else []
    model((x, *told) if told else x)["loss"].backward()
    assert model.log_prob(x, *told).is_meta
    assert model.sample(5, *told, seed=0).is_meta


def test_gaussianisation_stays_on_the_device(elsewhere):
    model = GIS(3).to("meta")
    assert model.log_prob(torch.rand(5, 3, device="meta")).is_meta and model.sample(5, seed=0).is_meta


def test_the_trap_closes(elsewhere):
    "A tensor that a module keeps without registering it is left behind on the CPU, and noticed."
    class Forgetful(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = torch.ones(3)

        def forward(self, x): return x + self.shift

    with pytest.raises(RuntimeError, match=r"between \['cpu', 'meta'\]|same device"):
        Forgetful().to("meta")(torch.rand(5, 3, device="meta"))

