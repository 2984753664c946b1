"""What one GPU does with the work of the chapters: ceilings, training steps, precision, memory, scoring, exact resume.

    python benchmarks/gpu.py            # on a machine with an NVIDIA GPU: writes gpu.md beside itself; less than eight minutes
    python benchmarks/gpu.py --tiny     # the same work in tiny, on the CPU: prints its page, which says nothing about speed

Nothing is downloaded: spectra are drawn from the shipped networks, with noise. A step is what `fit` does with a batch that
is on the device already. Its arithmetic is counted by torch, operation by operation, and divided by its time and by the best
matrix product that this device can do in the same precision.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from page import processor, table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import spectral_core as sc
from spectral_core import train as train_module
from spectral_core.core import generator, sha256_of
from spectral_core.inference.npe import N_CONTEXT, PosteriorConfig
from spectral_core.models.autoencoder import COMPACT, PAPER, RedshiftAutoencoder
from spectral_core.models.similarity import similarity_loss, window_weight
from spectral_core.models.vae import SMALL, VAEConfig, VariationalAutoencoder
from spectral_core.spectra.container import Batch, Spectra
from spectral_core.spectra.restframe import rest_survey
from spectral_core.spectra.surveys import DESI, SDSS

BOTH = {"similarity": 1.0, "consistency": 1.0}
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


# ---- clocks


def wait(device: str) -> None:
    if device == "cuda": torch.cuda.synchronize()


def seconds_of(work: Callable[[], object], device: str, repeats: int) -> float:
    "Median time on the wall of a piece of work, after three calls that warm up."
    for _ in range(3): work()
    times = []
    for _ in range(repeats):
        wait(device)
        start = time.perf_counter()
        work()
        wait(device)
        times.append(time.perf_counter() - start)
    return median(times)


def peak_memory(work: Callable[[], object], device: str) -> float | None:
    "Largest memory on the device during the work, in GB; None on a CPU."
    if device != "cuda": return None
    torch.cuda.reset_peak_memory_stats()
    work()
    wait(device)
    return torch.cuda.max_memory_allocated() / 1e9


def gigabytes(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f}"


# ---- ceilings


def ceilings(device: str, tiny: bool) -> dict[str, float]:
    "Bytes per second of copies on the device and to it, operations per second of a matrix product in each precision."
    n, repeats = (2**20, 3) if tiny else (2**30, 20)
    here, there = torch.ones(n, dtype=torch.uint8, device=device), torch.empty(n, dtype=torch.uint8, device=device)
    outside = torch.ones(n // 4, dtype=torch.uint8)
    found = {"copy": 2 * n / seconds_of(lambda: there.copy_(here), device, repeats),
             "to the device": n / 4 / seconds_of(lambda: outside.to(device, copy=True), device, repeats)}
    size = 256 if tiny else 8192
    for name, dtype in PRECISIONS.items():
        a = torch.randn(size, size, device=device, dtype=dtype)
        found[name] = 2 * size**3 / seconds_of(lambda a=a: a @ a, device, repeats)
    return found


# ---- training steps


def random_batch(survey: object, n: int, device: str) -> Batch:
    "Noisy spectra near 1 with masked pixels, on the device."
    flux = 1 + 0.2 * torch.randn(n, survey.grid.n, device=device)
    weight = torch.where(torch.rand_like(flux) < 0.15, 0, 100.0)
    return Batch(flux, weight, 0.01 + 0.3 * torch.rand(n, device=device, dtype=torch.float64))


def cases(device: str, tiny: bool) -> dict[str, tuple[nn.Module, object, dict]]:
    "The published networks of chapters 1, 3, 4, 5 at their batch sizes (in tiny: small ones): (model, batch, terms)."
    n, config = (4, COMPACT) if tiny else (512, PAPER)
    rest = rest_survey("chapter3", 3800.0, 8400.0, 500 if tiny else 4000)
    vae = VariationalAutoencoder(rest, 4, SMALL if tiny else VAEConfig())
    desi = RedshiftAutoencoder(DESI, 6, replace(config, rest="linear"))
    posterior = PosteriorConfig()
    rows = 8 if tiny else posterior.batch_size
    density = posterior.density(N_CONTEXT)
    photometry = torch.randn(rows, density.n_features, device=device), torch.randn(rows, N_CONTEXT, device=device)
    return {
        "1: SDSS autoencoder, all losses": (RedshiftAutoencoder(SDSS, 6, config), random_batch(SDSS, n, device), BOTH),
        "3: variational autoencoder": (vae, random_batch(rest, n // 2, device), {}),
        "4: DESI autoencoder, all losses": (desi, random_batch(DESI, n, device), BOTH),
        "5: posterior of photometry": (density.standardise(photometry), photometry, {}),
    }


def step_of(model: nn.Module, batch: object, terms: dict, device: str, amp: bool) -> Callable[[], None]:
    "One step as `fit` makes it."
    model.to(device).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=amp): out = model(batch, progress=0.5, **terms)
        optimiser.zero_grad(set_to_none=True)
        out["loss"].backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if not torch.isfinite(norm + out["loss"].detach()): raise SystemExit("a loss that is not finite: not timed")
        optimiser.step()

    return step


def step_rows(device: str, tiny: bool, best: dict[str, float]) -> list[str]:
    "A line for every chapter and precision."
    lines = []
    for name, (model, batch, terms) in cases(device, tiny).items():
        for precision in PRECISIONS:
            torch.manual_seed(0)
            step = step_of(model, batch, terms, device, precision == "bfloat16")
            with FlopCounterMode(display=False) as counter: step()
            time_of_one = seconds_of(step, device, 3 if tiny else 30)
            rate, n = counter.get_total_flops() / time_of_one, len(batch[0])
            lines.append(f"| {name} | {n} | {precision} | {1e3 * time_of_one:.3g} | {n / time_of_one:.3g} | {rate / 1e12:.3g} | "
                         f"{rate / best[precision]:.1%} | {gigabytes(peak_memory(step, device))} |")
            print(lines[-1], flush=True)
        model.cpu()
    return lines


# ---- precision, memory, scoring


def drawn_spectra(n: int, seed: int = 0) -> Spectra:
    "Spectra of the shipped network for draws of its density, with noise of S/N 10, on the SDSS grid."
    model, flow, rng = sc.load("sdss"), sc.load("sdss_flow"), generator("gpu benchmark", seed)
    z, parts = rng.uniform(0.02, 0.3, n), []
    with torch.no_grad():
        for rows in np.array_split(np.arange(n), max(1, n // 512)):
            parts.append(model.reconstruct(flow.sample(len(rows), seed=int(rows[0])), torch.as_tensor(z[rows])).numpy())
    flux = np.concatenate(parts)
    flux += 0.1 * rng.standard_normal(flux.shape, dtype=np.float32)
    mask = np.broadcast_to(sc.telluric_mask(SDSS.grid.wave), flux.shape)
    return Spectra(flux, np.full_like(flux, 100), z, "sdss", mask=mask)


def curves(spectra: Spectra, device: str, n_epoch: int) -> list[str]:
    "Validation losses of the same fit in both precisions, epoch by epoch."
    train, valid, _ = spectra.split()
    found = {}
    for precision in PRECISIONS:
        torch.manual_seed(0)
        model = RedshiftAutoencoder("sdss", 6, COMPACT)
        model.begin(train.to("cpu"))
        history = sc.fit(model, train, valid, stages=[sc.Stage("all", n_epoch, BOTH)], batch_size=64, lr=1e-3, device=device,
                         amp=precision == "bfloat16", progress=False)
        found[precision] = history["valid_loss"]
    return [f"| {i + 1} | {a:.5g} | {b:.5g} | {b / a - 1:+.2%} |" for i, (a, b) in enumerate(zip(*found.values()))]


def similarity_row(device: str, n: int) -> str:
    "Time and memory of the similarity loss and its gradient over all pairs of n spectra, and of the table it never makes."
    rest = RedshiftAutoencoder(SDSS, 6, COMPACT).rest
    latents, spectra = (torch.randn(n, k, device=device, requires_grad=True) for k in (6, rest.n))
    window = window_weight(rest.wave).sqrt().to(device)

    def work() -> tuple[Tensor, ...]:
        return torch.autograd.grad(similarity_loss(latents, spectra, window), (latents, spectra))

    inputs = (latents.nbytes + spectra.nbytes) / 1e9
    milliseconds, memory = 1e3 * seconds_of(work, device, 10), gigabytes(peak_memory(work, device))
    return f"| {n} | {rest.n} | {milliseconds:.3g} | {memory} | {inputs:.2f} | {n * n * rest.n * 4 / 1e9:.2f} |"


def scoring_row(spectra: Spectra, device: str) -> str:
    "Spectra per second through latents, density and χ², from the memory of the machine."
    model, flow = sc.load("sdss"), sc.load("sdss_flow")

    def work() -> None:
        latents = sc.encode(model, spectra, device=device, batch_size=1024)
        sc.log_prob(flow, latents, device=device)
        sc.chi2(model, spectra, device=device, batch_size=1024)

    rate = len(spectra) / seconds_of(work, device, 3)
    return f"| sdss, sdss_flow | {len(spectra)} | {rate:.4g} | {4e7 / rate / 3600:.3g} |"


# ---- exact resume


def victim(run: Path, device: str, die_at: int, deterministic: bool) -> None:
    "A short fit; it kills itself in step `die_at`, unless that is 0."
    if deterministic: torch.use_deterministic_algorithms(True, warn_only=True)
    train_module.CHECKPOINT_SECONDS, step, done = 0.0, torch.optim.Adam.step, []

    def counted(self: torch.optim.Adam) -> None:
        done.append(1)
        if len(done) == die_at: os.kill(os.getpid(), signal.SIGKILL)
        step(self)

    torch.optim.Adam.step = counted
    torch.manual_seed(0)
    spectra = drawn_spectra(64)
    sc.fit(RedshiftAutoencoder("sdss", 4, COMPACT), spectra[:48], spectra[48:], stages=[sc.Stage("all", 3, BOTH)], batch_size=8,
           device=device, run=run, progress=False)


def resumed(device: str, deterministic: bool) -> str:
    "Is the model of a fit that was killed in its second epoch, and called again, the same to the bit?"
    environment = os.environ | ({"CUBLAS_WORKSPACE_CONFIG": ":4096:8"} if deterministic else {})

    def fit(run: Path, die_at: int) -> int:
        words = [sys.executable, __file__, "--victim", run, "--die-at", die_at, "--device", device]
        words += ["--deterministic"] * deterministic
        return subprocess.run([str(word) for word in words], env=environment, check=False).returncode

    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder, "whole"), Path(folder, "killed")
        codes = [fit(whole, 0), fit(killed, 9), fit(killed, 0)]
        if codes != [0, -signal.SIGKILL, 0]: raise SystemExit(f"the fits ended with {codes}")
        same = sha256_of(whole / "model.safetensors") == sha256_of(killed / "model.safetensors")
    return f"| {'deterministic' if deterministic else 'as `fit` runs'} | {'the same bits' if same else 'other bits'} |"


# ---- the page


def page(device: str, tiny: bool) -> str:
    "All measurements as Markdown."
    start, best = time.perf_counter(), ceilings(device, tiny)
    steps = step_rows(device, tiny, best)
    spectra = drawn_spectra(96 if tiny else 8192)
    curve, similarity = curves(spectra, device, 2 if tiny else 10), similarity_row(device, 16 if tiny else 512)
    scoring, again = scoring_row(spectra, device), [resumed(device, sure) for sure in ([True] if tiny else [True, False])]
    name = "CPU, tiny: says nothing about speed" if tiny else f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    head = [f"# The chapters' work on one GPU\n\n{name}; {processor()}; torch {torch.__version__}; all of it took "
            f"{(time.perf_counter() - start) / 60:.1f} minutes.\n\n## Ceilings\n",
            table(["copy on the device, GB/s", "copy to it, GB/s", *(f"{name} product, TFLOP/s" for name in PRECISIONS)],
                  [f"| {best['copy'] / 1e9:.4g} | {best['to the device'] / 1e9:.3g} | "
                   f"{best['float32'] / 1e12:.3g} | {best['bfloat16'] / 1e12:.3g} |"])]
    titles = ["chapter", "batch", "precision", "ms a step", "rows a second", "TFLOP/s", "of the ceiling", "memory, GB"]
    pairs = ["spectra", "pixels", "ms with gradient", "memory, GB", "its inputs, GB", "a table of all differences, GB"]
    fit = "Two precisions, one fit: the compact network of chapter 1, all losses, validation loss"
    parts = {"Training steps": table(titles, steps),
             fit: table(["epoch", *PRECISIONS, "difference"], curve),
             "The similarity loss over all pairs": table(pairs, [similarity]),
             "Scoring: latents, density, χ²": table(["models", "spectra", "spectra a second", "hours for 40 million"], [scoring]),
             "Killed in the second epoch and called again": table(["algorithms", "weights"], again)}
    return "\n".join([*head, *(f"\n## {title}\n\n{text}" for title, text in parts.items())]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="on the CPU, in seconds; prints and writes nothing")
    parser.add_argument("--victim", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--die-at", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cuda", help=argparse.SUPPRESS)
    parser.add_argument("--deterministic", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation.*")
    if given.tiny or given.device == "cpu": torch.set_num_threads(1)  # more come and go with the load, and change the last bits
    if given.victim: return victim(given.victim, given.device, given.die_at, given.deterministic)
    if given.tiny: return print(page("cpu", tiny=True))
    if not torch.cuda.is_available(): raise SystemExit("no GPU here, and nothing else is worth a page: try --tiny")
    text = page("cuda", tiny=False)
    Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
