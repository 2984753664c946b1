"""Gap filling at survey size: the batched solve beside the plain loop over spectra, and a whole fit.

    python benchmarks/pca_ratios.py            # writes pca_ratios.md beside itself; less than two minutes on one core

The loop is what published iterative PCA does: for each spectrum, set up the normal matrix of its good pixels and solve it. Both
get the same spectra, weights and components, in double precision. One thread works, and its CPU time is counted; each side
is run three times in turn, and the fastest counts.
"""

import argparse
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spectral_core.models.gaps import GapFiller, held_out_error


def planted(n: int, m: int, k: int, missing: float = 0.1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    "Flux and inverse variance (n, m) of k smooth components with noise; the gaps come in runs of twenty."
    random = np.random.default_rng(seed)
    x = np.linspace(0, 1, m)
    parts = np.stack([np.sin((j + 2) * 2.5 * x + j) / (j + 1) for j in range(k)])
    sigma = 0.05 * random.uniform(0.5, 1.5, (n, m))
    gap = np.repeat(random.random((n, m // 20 + 1)) < missing, 20, axis=1)[:, :m]
    flux = 1 + x + random.normal(size=(n, k)) @ parts + sigma * random.normal(size=(n, m))
    return np.where(gap, 0, flux), np.where(gap, 0, sigma**-2.0)


def loop(flux: np.ndarray, weight: np.ndarray, mean: np.ndarray, scaled: np.ndarray) -> np.ndarray:
    "The same coefficients as `GapFiller.coefficients`, one spectrum after the other."
    out, one = np.empty((len(flux), len(scaled))), np.eye(len(scaled))
    for i, (f, w) in enumerate(zip(flux, weight)):
        weighted = scaled * w
        out[i] = np.linalg.solve(weighted @ scaled.T + one, weighted @ (f - mean))
    return out


def seconds(work: Callable[[], Any]) -> tuple[Any, float]:
    "What the work gives, and its CPU time."
    start = time.process_time()
    done = work()
    return done, time.process_time() - start


def compare(n: int, m: int, k: int) -> str:
    "A row of the table: times of both, their ratio, and the largest difference."
    flux, weight = planted(n, m, k)
    filler = GapFiller(k, n_iter=2).fit(flux[:500], weight[:500])
    scaled = filler.scale[:, None] * filler.components
    slow, fast = [], []
    for _ in range(3):
        theirs, t = seconds(lambda: loop(flux, weight, filler.mean, scaled))
        slow.append(t)
        ours, t = seconds(lambda: filler.coefficients(flux, weight))
        fast.append(t)
    off = np.abs(ours - theirs).max() / np.abs(theirs).max()
    return f"| {n} | {m} | {k} | {min(slow):.3f} | {min(fast):.3f} | **{min(slow) / min(fast):.1f}** | {off:.1e} |"


def whole(n: int, m: int, k: int, dtype: str) -> str:
    "A row of the table: a fit to convergence, and hidden pixels of 500 further spectra."
    flux, weight = (a.astype(dtype) for a in planted(n + 500, m, k))
    filler, fit = seconds(lambda: GapFiller(k).fit(flux[:n], weight[:n]))
    _, fill = seconds(lambda: filler.transform(flux[:n], weight[:n]))
    error = held_out_error(filler, flux[n:], weight[n:], run=20)
    cells = [n, m, k, dtype, len(filler.history), "yes" if filler.converged else "no", f"{fit:.1f}", f"{fill:.2f}"]
    return f"| {' | '.join(map(str, cells))} | {error.rms:.3f} | {error.bias:+.3f} |"


def table(titles: list[str], rows: list[str]) -> str:
    return "\n".join([f"| {' | '.join(titles)} |", "|" + "---|" * len(titles), *rows])


def processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [x.split(":")[1].strip() for x in info.read_text().splitlines() if "model name" in x] if info.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    solves = [compare(n, m, k) for n, m, k in ((1000, 4000, 5), (1000, 4000, 10), (4000, 4000, 10), (1000, 4000, 15))]
    fits = [whole(4000, 4000, 10, dtype) for dtype in ("float32", "float64")]
    versions = ", ".join(f"{name} {version(name)}" for name in ("spectral-core", "numpy", "torch"))
    given.out.write_text(f"""# Filling gaps by principal components

{versions}; {processor()}, one thread, CPU time, fastest of three.

## Coefficients of all spectra: loop and batch, double precision

{table(["spectra", "pixels", "components", "loop, s", "batched, s", "ratio", "largest relative difference"], solves)}

## A fit to convergence, and filling

{table(["spectra", "pixels", "components", "type", "rounds", "converged", "fit, s", "fill, s", "held-out rms", "bias"], fits)}

Held out: a twentieth of the good pixels of 500 spectra that the fit has not seen, hidden in runs of twenty; in units of the noise
of the pixel, so that 1 is the best there is.
""", encoding="utf-8")


if __name__ == "__main__":
    main()
