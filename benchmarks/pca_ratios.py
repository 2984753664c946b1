"""Gap filling at survey size: the batched solve beside the plain loop over spectra, and a whole fit.

    python benchmarks/pca_ratios.py            # writes pca_ratios.md beside itself; less than two minutes on one core

The loop is what published iterative PCA does: for each spectrum, set up the normal matrix of its good pixels and solve it. Both
get the same spectra, weights and components, in double precision. One thread works, in all libraries, and its CPU time is
counted; each side is run five times in turn, and the fastest counts.
"""

import argparse
from importlib.metadata import version
from pathlib import Path

import numpy as np
import scipy.linalg
import torch
from page import processor, seconds, table
from threadpoolctl import threadpool_limits

from spectral_core.models.gaps import GapFiller, _leading, held_out_error


def planted(n: int, m: int, k: int, missing: float = 0.1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    "Flux and inverse variance (n, m) of k smooth components with noise; the gaps come in runs of twenty."
    random = np.random.default_rng(seed)
    x = np.linspace(0, 1, m)
    parts = np.stack([np.sin((j + 2) * 2.5 * x + j) / (j + 1) for j in range(k)])
    sigma = 0.05 * random.uniform(0.5, 1.5, (n, m))
    gap = np.repeat(random.random((n, m // 20 + 1)) < missing, 20, axis=1)[:, :m]
    flux = 1 + x + random.normal(size=(n, k)) @ parts + sigma * random.normal(size=(n, m))
    return np.where(gap, 0, flux), np.where(gap, 0, sigma**-2.0)


def published(flux: np.ndarray, weight: np.ndarray, mean: np.ndarray, scaled: np.ndarray) -> np.ndarray:
    "Iterative PCA as it is usually written: weights times components, two products and SciPy's symmetric solver, row by row."
    out = np.empty((len(flux), len(scaled)))
    for i in range(len(flux)):
        normal = np.dot(scaled, (weight[i] * scaled).T) + np.eye(len(scaled))
        out[i] = scipy.linalg.solve(normal, np.dot(scaled, weight[i] * (flux[i] - mean)), assume_a="pos")
    return out


def tight(flux: np.ndarray, weight: np.ndarray, mean: np.ndarray, scaled: np.ndarray) -> np.ndarray:
    "The same with as little overhead as a loop can have: one product by the weights, and NumPy's solver."
    out, one = np.empty((len(flux), len(scaled))), np.eye(len(scaled))
    for i, (f, w) in enumerate(zip(flux, weight)):
        weighted = scaled * w
        out[i] = np.linalg.solve(weighted @ scaled.T + one, weighted @ (f - mean))
    return out


def least(n: int, m: int, k: int) -> float:
    "CPU time of the products alone that the coefficients need, at the rate of a large square product: no batch is faster."
    square = np.random.default_rng(0).random((1500, 1500))
    rate = 2 * 1500**3 / min(seconds(lambda: square @ square)[1] for _ in range(5))
    return 2 * n * m * (k * (k + 1) / 2 + k) / rate


def compare(n: int, m: int, k: int) -> str:
    "A row of the table: times of all, the batch's ratios, and the largest difference."
    flux, weight = planted(n, m, k)
    filler = GapFiller(k, n_iter=2).fit(flux[:500], weight[:500])
    scaled = filler.scale[:, None] * filler.components
    work = {
        "published": lambda: published(flux, weight, filler.mean, scaled),
        "tight": lambda: tight(flux, weight, filler.mean, scaled),
        "batched": lambda: filler.coefficients(flux, weight),
    }
    values, cost = {}, dict.fromkeys(work, np.inf)
    for name in [*work] * 5:
        values[name], t = seconds(work[name])
        cost[name] = min(cost[name], t)
    off = max(np.abs(values["batched"] - values[name]).max() for name in ("published", "tight")) / np.abs(values["tight"]).max()
    times = " | ".join(f"{t:.3f}" for t in cost.values())
    ratios = " | ".join(f"**{cost[name] / cost['batched']:.1f}**" for name in ("published", "tight"))
    return f"| {n} | {m} | {k} | {times} | {least(n, m, k):.3f} | {ratios} | {off:.1e} |"


def held(basis: np.ndarray, w: np.ndarray, y: np.ndarray, old: np.ndarray) -> np.ndarray:
    "Weighted fit of `basis` (k, m) to one row y (m,), held at `old` (k,) by a millionth of the normal matrix."
    normal = np.dot(basis, (w * basis).T)
    h = 1e-6 * normal.diagonal().mean() + 1e-20
    return scipy.linalg.solve(normal + h * np.eye(len(old)), np.dot(basis, w * y) + h * old, assume_a="pos")


def in_loops(flux: np.ndarray, weight: np.ndarray, k: int, n_iter: int) -> tuple[np.ndarray, ...]:
    "Mean, components, coefficients and χ² by the rounds of `GapFiller.fit`, in loops over spectra and over pixels."
    mean = (weight * flux).sum(axis=0) / weight.sum(axis=0)
    start = np.where(weight > 0, flux - mean, 0)[:: max(1, len(flux) // 250)]
    components = _leading(torch.from_numpy(start), k, seed=0).numpy()
    c = np.zeros((len(flux), k))
    for _ in range(n_iter):
        c = np.stack([held(components, w, f - mean, old) for f, w, old in zip(flux, weight, c)])
        basis, before = np.vstack([np.ones(len(c)), c.T]), np.vstack([mean, components]).T
        step = np.stack([held(basis, w, f, old) for f, w, old in zip(flux.T, weight.T, before)])
        mean, c = step[:, 0] + step[:, 1:] @ c.mean(axis=0), c - c.mean(axis=0)
        q, r = np.linalg.qr(step[:, 1:])
        u, s, v = np.linalg.svd(c @ r.T, full_matrices=False)
        sign = np.where((v @ q.T).sum(axis=1) < 0, -1, 1)
        components, c = sign[:, None] * (v @ q.T), sign * u * s
        chi2 = sum(w @ (f - mean - row @ components) ** 2 for f, w, row in zip(flux, weight, c))
    return mean, components, c, chi2


def same_algorithm(n: int, m: int, k: int, n_iter: int = 3) -> str:
    "A row of the table: iterative PCA as a whole in loops and batched, and the largest difference of mean and scaled components."
    flux, weight = planted(n, m, k)
    filler, cost = GapFiller(k, n_iter=n_iter, tolerance=0), np.full(2, np.inf)
    for _ in range(3):
        (mean, components, c, _), slow = seconds(lambda: in_loops(flux, weight, k, n_iter))
        cost = np.minimum(cost, [slow, seconds(lambda: filler.fit(flux, weight))[1]])
    theirs = np.vstack([mean, c.std(axis=0, ddof=1)[:, None] * components])
    ours = np.vstack([filler.mean, filler.scale[:, None] * filler.components])
    off = np.abs(ours - theirs).max() / np.abs(theirs).max()
    return f"| {n} | {m} | {k} | {n_iter} | {cost[0]:.3f} | {cost[1]:.3f} | **{cost[0] / cost[1]:.1f}** | {off:.1e} |"


def iteration(flux: np.ndarray, good: np.ndarray, k: int, n_iter: int) -> np.ndarray:
    "Filled spectra by the published scheme: components of the filled spectra, each spectrum projected by its good pixels, again."
    filled = np.where(good, flux, (flux * good).sum(axis=0) / good.sum(axis=0))
    for _ in range(n_iter):
        mean = filled.mean(axis=0)
        basis = np.linalg.svd(filled - mean, full_matrices=False)[2][:k]
        for i in range(len(flux)):
            normal = np.dot(basis, (good[i] * basis).T)
            c = scipy.linalg.solve(normal, np.dot(basis, good[i] * (filled[i] - mean)), assume_a="pos")
            filled[i] = np.where(good[i], flux[i], mean + c @ basis)
    return filled


def side_by_side(n: int, m: int, k: int, n_iter: int) -> list[str]:
    "Rows of a table: both algorithms fill the same spectra; a twentieth of the good pixels was hidden in runs of twenty."
    flux, weight = planted(n, m, k)
    kept = np.where(np.repeat(np.random.default_rng(1).random((n, m // 20 + 1)) < 0.05, 20, axis=1)[:, :m], 0, weight)
    hidden = (weight > 0) & (kept == 0)
    theirs, slow = seconds(lambda: iteration(flux, kept > 0, k, n_iter))
    filler = GapFiller(k)
    ours, fast = seconds(lambda: filler.fit(flux, kept).transform(flux, kept))
    rms = [np.sqrt(np.mean(((filled - flux) ** 2 * weight)[hidden])) for filled in (theirs, ours)]
    head = f"| {n} | {m} | {k} |"
    return [f"{head} published, equal weights, full decomposition | {n_iter} | {slow:.2f} | | {rms[0]:.3f} |",
            f"{head} `GapFiller` | {len(filler.history)} | {fast:.2f} | **{slow / fast:.0f}** | {rms[1]:.3f} |"]  # fmt: skip


def whole(n: int, m: int, k: int, dtype: str) -> str:
    "A row of the table: a fit to convergence, and hidden pixels of 500 further spectra."
    flux, weight = (a.astype(dtype) for a in planted(n + 500, m, k))
    filler, fit = seconds(lambda: GapFiller(k).fit(flux[:n], weight[:n]))
    _, fill = seconds(lambda: filler.transform(flux[:n], weight[:n]))
    error = held_out_error(filler, flux[n:], weight[n:], run=20)
    cells = [n, m, k, dtype, len(filler.history), "yes" if filler.converged else "no", f"{fit:.1f}", f"{fill:.2f}"]
    return f"| {' | '.join(map(str, cells))} | {error.rms:.3f} | {error.bias:+.3f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        solves = [compare(1000, m, k) for m in (500, 4000) for k in (5, 10, 15)]
        rounds = [same_algorithm(1000, m, k) for m in (500, 4000) for k in (5, 10, 15)]
        algorithms = [row for m in (500, 4000) for row in side_by_side(1000, m, 10, 10)]
        fits = [whole(4000, 4000, 10, dtype) for dtype in ("float32", "float64")]
    titles = ["spectra", "pixels", "components", "loop as published, s", "tight loop, s", "batched, s", "least, s", "ratio"]
    titles += ["to the tight loop", "largest relative difference"]
    versions = ", ".join(f"{name} {version(name)}" for name in ("spectral-core", "numpy", "torch"))
    given.out.write_text(f"""# Filling gaps by principal components

{versions}; {processor()}, one thread, CPU time, fastest of five.

## Iterative PCA: the same algorithm in loops and batched, double precision

{table(["spectra", "pixels", "components", "rounds", "in loops, s", "batched, s", "ratio", "largest difference"], rounds)}

Loops: each round fits spectrum by spectrum, then pixel by pixel, each with its own normal matrix and SciPy's symmetric solver.
Both start from the same components and give χ² after each round; only the batch also watches the change in the gaps.

## One step of it alone, the coefficients of all spectra, double precision

{table(titles, solves)}

Least: the arithmetic of the coefficients alone, n · m · (k (k + 1) / 2 + k) multiplications and additions, at the rate of a
large square product of NumPy. Narrow products reach about two thirds of that rate, and the rest is memory: the batch looks
whether there is anything to clean, subtracts the mean and weights, where the loops work on 4000 numbers in the cache. At 500
pixels a loop spends its time between the products, and the batch is five to ten times faster; at 4000 pixels the products
themselves are most of the work of both, and about four is what one thread can give.

## The whole algorithm, double precision

{table(["spectra", "pixels", "components", "algorithm", "rounds", "CPU s", "ratio", "hidden pixels, rms"], algorithms)}

## A fit to convergence, and filling

{table(["spectra", "pixels", "components", "type", "rounds", "converged", "fit, s", "fill, s", "held-out rms", "bias"], fits)}

Hidden or held out: a twentieth of the good pixels, in runs of twenty; the last table's are of 500 spectra that the fit has not
seen. The rms of what was filled is in units of the noise of the pixel, so that 1 is the best there is.
""", encoding="utf-8")


if __name__ == "__main__":
    main()
