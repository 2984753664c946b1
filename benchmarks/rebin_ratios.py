"""Flux and errors of spectra on a new grid, by spectres 2.2 and by us in one process, as ratios of time.

    pip install -e . spectres numba
    python benchmarks/rebin_ratios.py                    # writes rebin_ratios.md beside itself; two minutes

The work of chapters 2 and 3: 3921 pixels at an own redshift each onto 4000 rest-frame pixels from 3400 to 8400 Å.
spectres 2.2.2 comes with a fast module and never uses it: its `__init__` asks that module for a name that it does not
define, and falls back to the slow one without a word. Both are measured, the fast one called by its own name. spectres
wants one grid per call, so it is called once per spectrum; where all spectra share a redshift it takes them in one call,
and that is measured as well.
"""

import argparse
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import numpy as np
from spender_ratios import machine, take_turns

from spectral_core.core import generator
from spectral_core.spectra.surveys import SDSS
from spectral_core.spectra.wavelength import Grid, rebin

REST = Grid("log", np.log10(3400), np.log10(8400 / 3400) / 3999, 4000)  # the grid of chapter 3


def load_spectres() -> SimpleNamespace:
    "What `import spectres` gives and its numba kernel; an exit that says what to install where one is missing."
    try:
        import spectres
        from spectres.spectral_resampling_numba import spectres_numba
    except ImportError as error:
        raise SystemExit(f"{error}: this compares with spectres; pip install spectres numba") from error
    return SimpleNamespace(shipped=spectres.spectres, numba=spectres_numba)


def middle_edges(wave: np.ndarray) -> np.ndarray:
    "Pixel edges (m + 1,) as spectres takes them: half-way between neighbours, the outer ones as far beyond."
    middle = (wave[1:] + wave[:-1]) / 2
    return np.concatenate([[wave[0] - (wave[1] - wave[0]) / 2], middle, [wave[-1] + (wave[-1] - wave[-2]) / 2]])


def make_spectra(n: int, same_z: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    "Flux and error (n, 3921) and redshifts (n,): noise on a slope, errors that differ from pixel to pixel."
    rng = generator("rebin benchmark", n)
    error = rng.uniform(0.2, 2, (n, SDSS.grid.n))
    flux = 3 + SDSS.grid.wave / 5000 + error * rng.standard_normal(error.shape)
    return flux, error, np.full(n, 0.08) if same_z else rng.uniform(0.05, 0.11, n)


def sides_of(peer: SimpleNamespace, n: int, same_z: bool) -> dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]]:
    "Each side as a call without arguments that gives flux and error (n, 4000), 0 where the spectrum does not reach."
    flux, error, z = make_spectra(n, same_z)
    old, new, ivar = SDSS.grid.wave, REST.wave, error**-2
    edges, target = middle_edges(old), middle_edges(new)

    def theirs(work: Callable) -> tuple[np.ndarray, ...]:
        call = lambda f, e, x: work(new, old / (1 + x), f, e, fill=0, verbose=False)
        if same_z: return call(flux, error, z[0])
        return tuple(np.stack(rows) for rows in zip(*map(call, flux, error, z)))

    def ours() -> tuple[np.ndarray, np.ndarray]:
        value, weight = rebin(edges, flux, ivar, target, z=z[:1] if same_z else z)
        return value, np.sqrt(np.divide(1, weight, out=np.zeros_like(weight), where=weight > 0))

    return {"spectres as shipped": lambda: theirs(peer.shipped), "its numba kernel": lambda: theirs(peer.numba), "ours": ours}


def difference(a: tuple[np.ndarray, ...], b: tuple[np.ndarray, ...]) -> float:
    "Largest difference of fluxes and of errors, relative to the largest value."
    return max(float(np.abs(x - y).max() / np.abs(x).max()) for x, y in zip(a, b, strict=True))


def measure(peer: SimpleNamespace, name: str, n: int, same_z: bool, goals: dict[str, float | None], repeats: int) -> list[str]:
    "Check that the sides agree to 1e-10, let them take turns; one line of the table for every pair."
    sides, lines = sides_of(peer, n, same_z), []
    first = {key: work() for key, work in sides.items()}
    apart = {key: difference(first[key], first["ours"]) for key in goals}
    if max(apart.values()) > 1e-10: raise SystemExit(f"{name}: off by {apart}; not timed")
    times = take_turns(sides, repeats)
    for key, goal in goals.items():
        ratios = [a / b for a, b in zip(times[key], times["ours"])]
        each = [1e3 * median(times[side]) / n for side in (key, "ours")]
        lines.append(f"| {name} | {n} | {key} | **{median(ratios):.3g}** | {min(ratios):.3g} to {max(ratios):.3g} | "
                     f"{'' if goal is None else f'≥ {goal}'} | {apart[key]:.0e} | {each[0]:.3g} / {each[1]:.3g} |")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=16, help="spectra")
    parser.add_argument("--repeats", type=int, default=5, help="turns")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    given = parser.parse_args()
    warnings.simplefilter("ignore")  # spectres tells at each call that some pixels are outside
    peer = load_spectres()
    goals = {"spectres as shipped": 250, "its numba kernel": 1.8}
    lines = measure(peer, "a redshift each", given.n, False, goals, given.repeats)
    lines += measure(peer, "one redshift, one call", 16 * given.n, True, dict.fromkeys(goals), given.repeats)
    versions = ", ".join(f"{name} {version(name)}" for name in ("spectres", "numba", "numpy", "spectral-core"))
    head = ["work", "spectra", "theirs", "ratio", "over the turns", "goal", "difference", "ms a spectrum, theirs / ours"]
    page = f"""# Rebinning flux and errors against spectres

{versions}; {machine("cpu")}, one thread, CPU time; {given.repeats} turns; 3921 to 4000 pixels, float64.

| {" | ".join(head)} |
|{"---|" * len(head)}
""" + "\n".join(lines) + """

Ratio: their time over ours, median of the turns, with the smallest and the largest. Difference: of flux and error,
relative to the largest value. As shipped: `import spectres` falls back to its Python loop although numba is there (the
import asks for a name that the numba module does not define); the kernel was compiled before it was timed. One redshift,
one call: all spectra on one grid, where spectres need not repeat its loop over pixels.
"""
    given.out.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
