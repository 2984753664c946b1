"""Magnitudes of the PROVABGS model: galaxies per second from each source, beside the published way of one galaxy at a time.

    python benchmarks/photometry_rates.py            # writes photometry_rates.md beside itself; less than two minutes on one core

The published way is written out here in plain numpy, as fast as one galaxy allows: both networks at all their wavelengths in
single precision, then speclite's integral through five bands. Its magnitudes must first agree with those of the batched emulator.
One thread works, in all libraries, and its CPU time is counted; the sources take turns, and the fastest of five turns counts.
It needs the data set `provabgs`: through SPECTRAL_MIRROR, or where its manifest says.
"""

import argparse
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from page import processor, seconds, table
from speclite.filters import load_filters
from threadpoolctl import threadpool_limits
from torch import Tensor

from spectral_core.simulate.emulators import provabgs_file
from spectral_core.simulate.filters import planck_distance
from spectral_core.simulate.histories import star_formation, t_age
from spectral_core.simulate.priors import Prior
from spectral_core.simulate.provabgs import Provabgs, load_provabgs

GOALS = {"emulator": 5000, "matrix": 10_000, "ssp": 10_000}  # galaxies per second


def draw(n: int) -> tuple[Tensor, Tensor]:
    "theta (n, 11) from the flat prior and redshifts (n,) of the NASA-Sloan Atlas's range."
    z = 0.01 + 0.045 * torch.rand(n, generator=torch.Generator().manual_seed(1))
    return Prior().sample(n, z, seed=1).float(), z


def read_networks(part: str) -> list[dict[str, np.ndarray]]:
    "The arrays of each wavelength range, from blue to red."
    with np.load(provabgs_file(part)) as arrays:
        names = sorted({key.split("/")[0] for key in arrays.files}, key=lambda name: arrays[f"{name}/wave"][0])
        return [{key.split("/")[1]: arrays[key] for key in arrays.files if key.startswith(f"{name}/")} for name in names]


def evaluate(networks: list[dict[str, np.ndarray]], x: np.ndarray) -> np.ndarray:
    "ln L at all wavelengths of one galaxy with inputs x (p,), by the recipe."
    out = []
    for a in networks:
        h = (x - a["param_shift"]) / a["param_scale"]
        for i in range(8):
            u = h @ a[f"W{i}"] + a[f"b{i}"]
            h = (a[f"beta{i}"] + (1 - a[f"beta{i}"]) / (1 + np.exp(-a[f"alpha{i}"] * u))) * u
        c = (h @ a["W8"] + a["b8"]) * a["pca_scale"] + a["pca_shift"]
        out.append((c @ a["pca_components"]) * a["spec_scale"] + a["spec_shift"])
    return np.concatenate(out)


def published(model: Provabgs, theta: Tensor, z: Tensor) -> Callable[[], np.ndarray]:
    "Magnitudes (n, 5) in a loop over galaxies; inputs and distances are ready before, in favour of the loop."
    smooth, burst, bands = read_networks("nmf_emulator"), read_networks("burst_emulator"), load_filters("sdss2010-*")
    wave = [np.concatenate([a["wave"] for a in networks]) for networks in (smooth, burst)]
    start, stars = len(wave[0]) - len(wave[1]), star_formation(model.bases, theta, z, model.burst)
    one = torch.cat([theta[:, 1:4], 10 ** theta[:, 6:8], theta[:, 8:11], t_age(z)[:, None]], 1).numpy()
    two = torch.stack([theta[:, 5].log10(), stars.burst_metallicity.log10(), theta[:, 9], theta[:, 10]], 1).numpy()
    share, sudden, mass = stars.weights.sum(1).numpy(), stars.burst.numpy(), theta[:, 0].double().numpy()
    distance = planck_distance(z.double()).numpy() * 3.0856776e24
    scale = 3.846e33 * 10**mass / (4 * np.pi * distance**2 * (1 + z.double().numpy()))

    @np.errstate(over="ignore")
    def work() -> np.ndarray:
        out = []
        for i in range(len(theta)):
            light = share[i] * np.exp(evaluate(smooth, one[i])[start:]) + sudden[i] * np.exp(evaluate(burst, two[i]))
            maggies = bands.get_ab_maggies(scale[i] * light.astype(float), wave[1] * (1 + float(z[i])))
            out.append([-2.5 * np.log10(maggies[name][0]) for name in bands.names])
        return np.array(out)

    return work


def gradients(model: Provabgs, theta: Tensor, z: Tensor) -> Callable[[], Tensor]:
    "The gradient of χ² of each galaxy with respect to theta: what a Hamiltonian sampler asks for."
    seen = model.magnitudes(theta, z).detach()

    def work() -> Tensor:
        rows = theta.clone().requires_grad_()
        return torch.autograd.grad(((model.magnitudes(rows, z) - seen + 0.02) ** 2).sum(), rows)[0]

    return work


def rates(work: dict[str, tuple[int, Callable]], turns: int) -> dict[str, float]:
    "Galaxies per CPU second of each piece of work, the fastest of some turns."
    cost = dict.fromkeys(work, np.inf)
    for _ in range(turns):
        for name, (_, call) in work.items(): cost[name] = min(cost[name], seconds(call)[1])
    return {name: work[name][0] / t for name, t in cost.items()}


def agreement(models: dict[str, Provabgs], theta: Tensor, z: Tensor, loop: Callable[[], np.ndarray]) -> dict[str, str]:
    "Median and 95th percentile of |Δm| over five bands against the loop; the emulator must agree, or nothing is timed."
    expected = loop()
    apart = {name: np.abs(model.magnitudes(theta, z).numpy() - expected) for name, model in models.items()}
    if not np.percentile(apart["emulator"], 95) < 0.002: raise SystemExit("the emulator is not the published one; not timed")
    return {name: f"{np.median(a):.4f} / {np.percentile(a, 95):.4f}" for name, a in apart.items() if name != "ssp"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=8192, help="galaxies in a batch")
    parser.add_argument("--alone", type=int, default=300, help="galaxies of the loop")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        theta, z = draw(given.n)
        models = {name: load_provabgs(name) for name in GOALS}
        few = theta[: given.alone], z[: given.alone]
        loop = published(models["emulator"], *few)
        off = agreement(models, *few, loop)
        quiet = torch.no_grad()
        work = {"one galaxy at a time, numpy and speclite": (given.alone, loop)}
        for name, m in models.items(): work[name] = (given.n, quiet(lambda m=m: m.magnitudes(theta, z)))
        for name, m in models.items(): work[f"{name}, spectra"] = (1024, quiet(lambda m=m: m.spectrum(theta[:1024], z[:1024])))
        for name, m in models.items(): work[f"{name}, gradients"] = (2048, gradients(m, theta[:2048], z[:2048]))
        rate = rates(work, given.turns)
    slow = next(iter(rate.values()))
    goal = {name: f"≥ {value:,}" for name, value in GOALS.items()}
    rows = [f"| {name} | {r:,.0f} | {1e3 / r:.3f} | **{r / slow:.1f}** | {goal.get(name, '')} | {off.get(name, '')} |"
            for name, r in rate.items()]
    titles = ["work", "galaxies/s", "ms each", "ratio", "goal", "median / 95 % of the difference, mag"]
    versions = ", ".join(f"{name} {version(name)}" for name in ("spectral-core", "torch", "numpy", "speclite"))
    pixels = ", ".join(f"{len(m.spectrum(theta[:1], 0.03)[0])} for {name}" for name, m in models.items())
    page = f"""# Magnitudes of the PROVABGS model

{versions}; {processor()}, one thread, CPU time, fastest of {given.turns} turns;
ugriz (sdss2010) of prior draws at 0.01 < z < 0.055, single precision, batches of {given.n}.

{table(titles, rows)}

Ratio: to the first row. Difference: of magnitudes to the first row's, all bands of {given.alone} galaxies; `ssp` is
another library of populations with other histories, which the tests compare. Emulator: both published networks, components
averaged over pixels of 1e-3 dex. Matrix: the same model as a table of populations behind analytic dust. Spectra: at all
wavelengths of the source, {pixels}.
Gradients: of a sum over bands with respect to the eleven parameters, forward and backward.
"""
    given.out.write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
