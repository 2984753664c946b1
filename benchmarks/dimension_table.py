"""Does the rule find the dimension? Variational autoencoders of 1 to 8 latents on manifolds of known dimension.

    python benchmarks/dimension_table.py               # writes dimension_table.md beside itself; about six CPU minutes
    python benchmarks/dimension_table.py --seeds 1     # the first seed alone; prints, writes nothing

Each seed is another manifold, other noise and another start of the networks. A fit sees 3000 spectra of 64 pixels, 500 others
say which epoch to keep, and the rule looks at the importance-weighted bound of 1000 more. All networks are alike but for their
latents.
"""

import argparse
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from astropy.table import Table
from page import processor

from spectral_core.analysis.dimension import Choice, choose_dimension, synthetic_manifold
from spectral_core.analysis.trials import trial
from spectral_core.models.vae import VAEConfig
from spectral_core.spectra.container import Spectra
from spectral_core.spectra.surveys import Survey
from spectral_core.spectra.wavelength import Grid

TRUE, TRIED, N_PIXEL = (2, 4, 6), range(1, 9), 64
SIZES = {"train": 3000, "valid": 500, "test": 1000}
MANIFOLD = {"noise": 0.5, "curvature": 0.4}
NETWORK = VAEConfig(channels=(), hidden=(64, 64), positive=False, likelihood="ivar")
TRAINING = {"n_epoch": 30, "batch_size": 64, "lr": 4e-3}
DRAWS = 200  # importance samples per spectrum

GRID = Survey("manifold", Grid("log", 3.5315, 0.3928 / N_PIXEL, N_PIXEL), resolution=((3000.0, 9000.0), (70.0, 70.0)))


def data(dimension: int, seed: int) -> dict[str, Spectra]:
    "Train, valid and test parts of one manifold."
    made = synthetic_manifold(sum(SIZES.values()), dimension, N_PIXEL, seed=seed, **MANIFOLD)
    ends = np.cumsum(list(SIZES.values()))
    parts = [slice(end - size, end) for end, size in zip(ends, SIZES.values())]
    return {name: Spectra(made.flux[p], made.ivar[p], np.zeros(p.stop - p.start), GRID) for name, p in zip(SIZES, parts)}


def row(n_latent: int, seed: int, spectra: dict[str, Spectra]) -> dict:
    "Train one network and ask it about the test spectra: a row of a table of fits."
    settings = {"config": NETWORK, "linear_start": False, "draws": DRAWS, "device": "cpu"} | TRAINING
    return trial(tuple(spectra.values()), n_latent, seed=1000 * seed + n_latent, **settings).row


def words(settings: dict) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def table(titles: list[str], rows: list[list]) -> str:
    lines = [f"| {' | '.join(map(str, cells))} |" for cells in (titles, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(titles), *lines[1:]])


def cells(dimension: int, seed: int, choice: Choice) -> list:
    "One manifold's row of the page."
    right = "yes" if choice.dimension == dimension else "**no**"
    by_bic = [choice.by_bic, choice.by_bic_total, choice.by_bic_iwae]
    return [dimension, seed, choice.dimension, right, choice.paired, choice.best, *by_bic, choice.elbow, round(choice.active)]


def page(rows: list[list], bounds: list[list], seconds: float, n_seed: int) -> str:
    hits = {d: [sum(r[i] == d for r in rows if r[0] == d) for i in (2, *range(4, 11))] for d in TRUE}
    right = [[d, f"**{rule} of {n_seed}**", *rest] for d, (rule, *rest) in hits.items()]
    bics = ["BIC, mean χ²", "BIC, summed χ²", "BIC, IWAE"]
    others = ["paired rule", "largest IWAE", *bics, "elbow", "active units of the largest"]
    versions = ", ".join(f"{name} {version(name)}" for name in ("spectral-core", "torch"))
    return f"""# How many latents? Manifolds of known dimension

{versions}; {processor()}, one thread, {seconds / 60:.1f} CPU minutes for {len(rows) * len(TRIED)} networks.
Spectra of {N_PIXEL} pixels: {words(SIZES)}. Manifold: {words(MANIFOLD)}. Two hidden layers of {NETWORK.hidden[0]} in encoder and
decoder; {words(TRAINING)}; {DRAWS} draws for the bound.

## How often each gives the true dimension

{table(["true", "the rule", *others], right)}

The rule: the smallest dimension within one standard error of the best held-out IWAE. Paired: within two standard errors of the
difference, spectrum by spectrum.

## Every manifold

{table(["true", "seed", "the rule", "right", *others], rows)}

## Held-out IWAE, nats per spectrum: mean over seeds, relative to that at the true dimension

{table(["true", *TRIED, "standard error"], bounds)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    start, rows, bounds = time.process_time(), [], []
    for dimension in TRUE:
        summaries = []
        for seed in range(given.seeds):
            spectra = data(dimension, seed)
            fits = Table(rows=[row(n, seed, spectra) for n in TRIED])
            choice = choose_dimension(fits)
            rows.append(cells(dimension, seed, choice))
            bound, error = choice.summary["iwae"], choice.summary["iwae_error"][dimension - 1]
            summaries.append(np.append(bound - bound[dimension - 1], error))
            print(*rows[-1], np.round(summaries[-1], 2), f"{time.process_time() - start:.0f} s", flush=True)
        bounds.append([dimension, *(f"{x:.2f}" for x in np.mean(summaries, axis=0))])
    if given.seeds < 5: return
    given.out.write_text(page(rows, bounds, time.process_time() - start, given.seeds), encoding="utf-8")


if __name__ == "__main__":
    main()
