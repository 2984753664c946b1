"""Densities of ten features, side by side on a target whose density is known: Gaussianisation, MAF and spline flow.

    python benchmarks/gis_density.py                  # writes gis_density.md beside itself; about ten minutes on one core
    python benchmarks/gis_density.py --only fast      # prints the rows whose name holds the word, writes nothing

The target is that of tests/density_target.py. All methods see the same 50,000 points and the same 20,000 for validation; what
counts is the mean log-probability of 20,000 others, and how far it stays below that of the true density (the Kullback-Leibler
divergence). One thread works, and its CPU time is counted.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from page import processor, seconds, table
from torch import Tensor, nn

from spectral_core.models.flows import FlowConfig, MaskedAutoregressiveFlow, SplineFlow
from spectral_core.models.gis import FAITHFUL, FAST, GIS, GISConfig
from spectral_core.train import fit

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import density_target as target  # noqa: E402

MAF = FlowConfig(n_layer=5, n_hidden=128, n_block=2)
SPLINE = FlowConfig(n_layer=3, n_hidden=64, n_block=2)

FEW = {"train": 2500, "valid": 800}  # as many latents as a short run of chapter 2 has

Data = dict[str, Tensor]
Fitted = tuple[nn.Module, int]  # the density, and how many iterations or epochs made it


def gaussianise(config: GISConfig) -> Callable[[Data], Fitted]:
    def make(data: Data) -> Fitted:
        gis = GIS(target.N_FEATURES, config)
        return gis, len(gis.fit(data["train"], data["valid"], progress=False)["train"]) - 1

    return make


def train(build: type, config: FlowConfig, n_epoch: int, batch_size: int, lr: float) -> Callable[[Data], Fitted]:
    def make(data: Data) -> Fitted:
        flow = build(target.N_FEATURES, config)
        settings = dict(n_epoch=n_epoch, batch_size=batch_size, lr=lr, device="cpu", progress=False)
        history = fit(flow, data["train"], data["valid"], **settings)
        return flow, len(history)

    return make


def single_normal(data: Data) -> Fitted:
    gis, _ = gaussianise(replace(FAST, n_iter=1))(data)
    gis.load_state_dict(GIS(target.N_FEATURES).state_dict() | {name: getattr(gis, name) for name in ("shift", "scale")})
    return gis, 1


def methods(n_faithful: int) -> dict[str, tuple[str, Callable[[Data], Fitted]]]:
    "Name, what it is, and how it is made."
    return {
        "single normal": ("the whitening alone", single_normal),
        "GIS, faithful": (f"the first {n_faithful} of 200 iterations", gaussianise(replace(FAITHFUL, n_iter=n_faithful))),
        "GIS, fast": ("until validation ends it, at most 600 iterations", gaussianise(replace(FAST, n_iter=600))),
        "MAF": ("5 steps, two layers of 128 each", train(MaskedAutoregressiveFlow, MAF, 54, 100, 1e-2)),
        "spline flow": ("3 steps, two layers of 64 each, 8 bins", train(SplineFlow, SPLINE, 30, 100, 5e-3)),
    }


# ---- measuring


def row(name: str, about: str, make: Callable[[Data], Fitted], data: Data) -> str:
    "Fit one density, hold it against the truth, and give its row of the table."
    (density, n), cost = seconds(lambda: make(data))
    with torch.no_grad(): ours = density.log_prob(data["test"]).double().numpy()
    truth = target.log_prob(data["test"].numpy())
    excess = truth - ours
    error, together = excess.std() / len(excess) ** 0.5, np.corrcoef(truth, ours)[0, 1]
    divergence = f"**{excess.mean():.2f}** ± {error:.2f}"
    cells = [name, about, str(n), f"{cost:.1f}", f"{cost / n:.2f}", f"{ours.mean():.2f}", divergence, f"{together:.2f}"]
    return f"| {' | '.join(cells)} |"


def compare(n: int, n_iter: int, data: Data) -> str:
    "Both presets on the first `n` points for `n_iter` iterations: seconds an iteration, their ratio, log-probabilities."
    part = data | {"train": data["train"][:n]}
    cost, held_out = {}, {}
    for name, preset in (("faithful", FAITHFUL), ("fast", FAST)):
        (gis, _), total = seconds(lambda preset=preset: gaussianise(replace(preset, n_iter=n_iter, patience=n_iter))(part))
        cost[name], held_out[name] = total / n_iter, gis.log_prob(data["test"]).mean().item()
    cells = [str(n), str(n_iter), f"{cost['faithful']:.2f}", f"{cost['fast']:.3f}", f"**{cost['faithful'] / cost['fast']:.0f}**"]
    return f"| {' | '.join([*cells, *(f'{x:.2f}' for x in held_out.values())])} |"


# ---- the page


def page(rows: list[str], few: list[str], presets: str, truth: float) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("spectral-core", "zuko", "torch"))
    sizes = ", ".join(f"{n} {name}" for name, n in target.SIZES.items())
    titles = ["density", "what", "iterations or epochs", "CPU s", "each", "log-probability", "below the truth", "correlation"]
    equal = ["points", "iterations", "faithful, s each", "fast, s each", "ratio", "log-probability, faithful", "fast"]
    return f"""# Densities of ten features

{versions}; {processor()}, one thread, CPU time. Points: {sizes}.
All log-probabilities are means over the test points, in nats; that of the true density is {truth:.3f}.

{table(titles, rows)}

Below the truth: the Kullback-Leibler divergence from the true density and its standard error. Correlation: of true and fitted
log-probability over the test points, what matters where objects are ranked. There is one target, and one seed of it.

## With {FEW["train"]} points, {FEW["valid"]} for validation

{table(titles, few)}

## The two presets at equal iterations

{table(equal, [presets])}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="measure the rows whose name holds the word; write no file")
    parser.add_argument("--faithful", type=int, default=10, help="iterations of the faithful preset")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = {name: torch.from_numpy(x) for name, x in target.datasets().items()}
    few = data | {name: data[name][:n] for name, n in FEW.items()}
    rows: dict[str, list[str]] = {"all": [], "few": []}
    for name, (about, make) in methods(given.faithful).items():
        for part, points in (("all", data), ("few", few)):
            if given.only not in name or (part == "few" and "faithful" in name): continue
            rows[part].append(row(name, about, make, points))
            print(part, rows[part][-1], flush=True)
    if given.only: return
    truth = target.log_prob(data["test"].numpy()).mean()
    given.out.write_text(page(rows["all"], rows["few"], compare(10_000, 20, data), truth), encoding="utf-8")


if __name__ == "__main__":
    main()
