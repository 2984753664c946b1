"""Contributions of pixels to latents, by shap's DeepExplainer and by us in one process, as ratios of time.

    pip install -e . shap
    python benchmarks/deeplift_ratios.py                    # writes deeplift_ratios.md beside itself; three minutes

The work of chapter 3: which of 4000 pixels decide the latents of a spectrum, relative to a hundred other spectra. The network is
the encoder of Iwasaki+23 (figure 7, and the pooling of the published code) with random weights; activations do not work
in place, which shap could not follow. Both sides get the same network and the same spectra. First their values must agree to
1e-5 of the largest one, and add up to the latents; then they are timed.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import torch
from spender_ratios import machine, peak_memory
from torch import Tensor, nn

from spectral_core.analysis.attribution import attribute
from spectral_core.spectra.wavelength import Grid

REST = Grid("log", np.log10(3400), np.log10(8400 / 3400) / 3999, 4000)  # the grid of chapter 3


def load_shap() -> Callable[[nn.Module, Tensor], object]:
    "The class DeepExplainer; an exit that says what to install where it is missing."
    try:
        from shap import DeepExplainer
    except ImportError as error: raise SystemExit(f"{error}: this compares with shap; pip install shap") from error
    return DeepExplainer


def make_spectra(n: int) -> Tensor:
    "Rest-frame spectra (n, 4000) around 1: a slope, a break at 4000 Å, lines of random strength, noise."
    random, wave = torch.Generator().manual_seed(n), torch.tensor(REST.wave, dtype=torch.float32)
    draw = lambda: torch.randn(n, 1, generator=random)
    flux = 1 + 0.3 * draw() * (wave / 5500 - 1) - 0.15 * (2 + draw()) * (wave < 4000)
    for line in (3728, 4862, 5008, 6565): flux = flux + draw().exp() * torch.exp(-0.5 * ((wave - line) / 4) ** 2)
    return flux + 0.05 * torch.randn(n, len(wave), generator=random)


def make_encoder(n_output: int) -> nn.Sequential:
    "Four stages of convolution, normalisation, activation and pooling, 4000 to 64 × 248; two dense layers to the latents."
    torch.manual_seed(0)
    layers, channels = [nn.Unflatten(1, (1, 4000))], (1, 8, 16, 32, 64)
    for a, b in zip(channels, channels[1:]):
        layers += [nn.Conv1d(a, b, 5, padding=1), nn.BatchNorm1d(b), nn.LeakyReLU(), nn.MaxPool1d(2)]
    layers += [nn.Flatten(), nn.Linear(64 * 248, 1024), nn.LeakyReLU(), nn.Linear(1024, n_output)]
    model = nn.Sequential(*layers)
    with torch.no_grad():
        for i in range(30): model.train()(make_spectra(16 + i))  # statistics of the data, as after training
    return model.eval()


def sides_of(explainer: Callable, n: int, n_background: int, n_output: int) -> tuple[dict[str, Callable], Tensor, Tensor]:
    "Each side as a call that gives values (n, o, 4000); the outputs (n, o) and their means over the background (o,)."
    model, x, background = make_encoder(n_output), make_spectra(n), make_spectra(n_background)

    def theirs() -> tuple[np.ndarray]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "unrecognized nn.Module: Unflatten")
            return (explainer(model, background).shap_values(x).transpose(0, 2, 1),)

    with torch.no_grad(): output, expected = model(x).double(), model(background).double().mean(0)
    return {"DeepExplainer": theirs, "ours": lambda: (attribute(model, x, background).values,)}, output, expected


def timed(work: Callable) -> tuple[np.ndarray, float, float]:
    "The values, CPU seconds, and by how many GB the peak of the process rose."
    start = time.process_time()
    (values,), memory = peak_memory(work, "cpu")
    return values, time.process_time() - start, np.nan if memory is None else memory


def measure(explainer: Callable, n: int, n_background: int, n_output: int, goal: float, repeats: int) -> str:
    "Time the two sides if their values agree and add up; one line of the table."
    sides, output, expected = sides_of(explainer, n, n_background, n_output)
    ours, _, our_memory = timed(sides["ours"])
    theirs, seconds, their_memory = timed(sides["DeepExplainer"])
    apart, scale = np.abs(theirs - ours).max() / np.abs(theirs).max(), output.abs().max().item()
    missing = [np.abs(v.sum(-1, dtype=float) + expected.numpy() - output.numpy()).max() / scale for v in (theirs, ours)]
    if not (apart < 1e-5 and missing[1] < 1e-6): raise SystemExit(f"off by {apart:.1e}, sums by {missing}; not timed")
    turns = [timed(sides["ours"])[1] for _ in range(repeats)]
    line = (f"| {n_background} × {n} × {n_output} | **{seconds / median(turns):.3g}** | {seconds / max(turns):.3g} to "
            f"{seconds / min(turns):.3g} | ≥ {goal} | {apart:.0e} | {missing[0]:.0e} / {missing[1]:.0e} | "
            f"{their_memory:.1f} / {our_memory:.1f} | {seconds:.3g} / {median(turns):.3g} |")
    print(line, flush=True)
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=10, help="spectra")
    parser.add_argument("--background", type=int, default=100, help="background spectra")
    parser.add_argument("--repeats", type=int, default=5, help="calls of ours that are timed")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    explainer = load_shap()
    line = measure(explainer, given.n, given.background, 4, 5, given.repeats)
    versions = ", ".join(f"{name} {version(name)}" for name in ("shap", "torch", "numpy", "spectral-core"))
    head = ["backgrounds × spectra × outputs", "ratio", "over our calls", "goal", "difference", "additivity", "memory GB", "s"]
    page = f"""# Contributions of pixels against shap's DeepExplainer

{versions}; {machine("cpu")}, one thread, CPU time; ours {given.repeats} times, theirs once;
4000 pixels, float32, 16 million weights.

| {" | ".join(head)} |
|{"---|" * len(head)}
{line}

Ratio: their time over the median of ours, with the smallest and the largest; all outputs in one call. Difference: of the
values, relative to the largest one. Additivity: by how much sum over pixels + expected value misses the output, relative
to the largest output, theirs / ours. Memory: by how much the first call raised the peak of the process, theirs / ours.
s: seconds of a call, theirs / ours; they belong to this machine. DeepExplainer goes through the network once for every
output and spectrum, with the spectrum repeated beside each background; ours takes a spectrum forward once for a chunk of
backgrounds, and all outputs back together.
"""
    given.out.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
