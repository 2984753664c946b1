"""The network and losses of chapter 1 against spender 0.3: the same work, in one process, as ratios.

    pip install -e . 'spender==0.3'
    python benchmarks/spender_ratios.py          # writes spender_ratios.json and spender_ratios.md beside itself

Each row runs both sides in turn, on the same inputs and where possible with the same weights, and compares the medians of
CPU time on one thread (robust on a shared machine). Where both compute the same number, `difference` says how well they agree.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import torch
from spender.data.sdss import SDSS as SpenderSDSS
from spender.loss import LossConfig, consistency_loss, similarity_restframe_loss
from spender.model import SpectrumAutoencoder

from spectral_core.models.autoencoder import COMPACT, RELEASED, RedshiftAutoencoder
from spectral_core.models.networks import released_weights
from spectral_core.models.similarity import similarity_loss, window_weight
from spectral_core.spectra.container import Batch
from spectral_core.spectra.surveys import SDSS
from spectral_core.spectra.wavelength import resample_rest

WINDOW = dict(restframe_sigma=1000.0)  # as in the SDSS training script


def make_batch(n: int) -> Batch:
    "Noisy spectra with gaps; what they look like does not change the time."
    weight = torch.where(torch.rand(n, SDSS.grid.n) < 0.15, 0, 100 * torch.rand(n, SDSS.grid.n))
    return Batch(1 + 0.2 * torch.rand(n, SDSS.grid.n), weight, 0.4 * torch.rand(n))


def make_models() -> tuple[SpectrumAutoencoder, RedshiftAutoencoder, RedshiftAutoencoder]:
    "spender, our model with the same shapes and the same weights, and the compact model."
    ours, compact = RedshiftAutoencoder(SDSS, 6, RELEASED), RedshiftAutoencoder(SDSS, 6, COMPACT)
    peer = SpectrumAutoencoder(SpenderSDSS(), torch.tensor(ours.rest.wave, dtype=torch.float32), n_latent=6)
    ours.load_state_dict(released_weights(peer.state_dict()))
    return peer.train(), ours.train(), compact.train()


def gradient(value: torch.Tensor, of: torch.Tensor) -> tuple[float, torch.Tensor]:
    return value.item(), torch.autograd.grad(value, of)[0]


def similarity_row(n: int, models) -> dict[str, Callable]:
    "Similarity of rest-frame spectra that are already decoded: value and gradient."
    _, ours, _ = models
    latents = torch.randn(n, 6)
    rest = (1 + 0.2 * torch.rand(n, ours.rest.n)).requires_grad_()
    wave = torch.tensor(ours.rest.wave, dtype=torch.float32)
    low, high = int((wave <= 4000).sum()), int((wave < 7000).sum())
    stub = SimpleNamespace(decode=lambda s: rest, decoder=SimpleNamespace(wave_rest=wave))
    weight = window_weight(wave, amplitude=1.0).sqrt()

    def gram():
        scaled = rest / rest[:, low:high].median(1, keepdim=True).values
        return gradient(similarity_loss(latents, scaled, weight, family="scale_free") * (n - 1), rest)

    config = LossConfig(**WINDOW)
    return {"spender": lambda: gradient(similarity_restframe_loss(stub, latents, config=config), rest), "ours": gram}


def decoded_similarity_row(n: int, models) -> dict[str, Callable]:
    "The same with the decoder in front: value and gradient of the latents."
    peer, ours, _ = models
    latents, config = torch.randn(n, 6).requires_grad_(), LossConfig(**WINDOW)
    wave = torch.tensor(ours.rest.wave, dtype=torch.float32)
    low, high = int((wave <= 4000).sum()), int((wave < 7000).sum())
    weight = window_weight(wave, amplitude=1.0).sqrt()

    def gram():
        rest = ours.decode(latents)
        rest = rest / rest[:, low:high].median(1, keepdim=True).values
        return gradient(similarity_loss(latents, rest, weight, family="scale_free") * (n - 1), latents)

    return {"spender": lambda: gradient(similarity_restframe_loss(peer, latents, config=config), latents), "ours": gram}


def interpolation_row(n: int, models, native: bool) -> dict[str, Callable]:
    "Rest spectra to observed ones and the gradient back: on the same 7000 linear pixels, or on our log lattice."
    peer, ours, compact = models
    model, batch = (compact if native else ours), make_batch(n)
    rest = (1 + 0.2 * torch.rand(n, ours.rest.n)).requires_grad_()
    own = (1 + 0.2 * torch.rand(n, model.rest.n)).requires_grad_() if native else rest
    pull = torch.rand(n, SDSS.grid.n)
    inside = torch.ones(n, SDSS.grid.n, dtype=torch.bool)
    if not native:  # both sides without their outermost pixel, where they differ in what counts as inside
        inside[:, [0, -1]] = False
    there = lambda: peer.decoder.transform(rest, instrument=peer.encoder.instrument, z=batch.z)
    here = lambda: resample_rest(own, model.rest, SDSS.grid, batch.z)[0]
    return {
        "spender": lambda: gradient((pull * inside * there()).sum(), rest),
        "ours": lambda: gradient((pull * inside * here()).sum(), own),
    }


def encode_row(n: int, models, compact: bool) -> dict[str, Callable]:
    peer, ours, small = models
    batch, model = make_batch(n), small if compact else ours
    flux = torch.where(batch.weight > 0, batch.flux, 0)
    return {
        "spender": torch.no_grad()(lambda: (0.0, peer.encode(flux))),
        "ours": torch.no_grad()(lambda: (0.0, model.encode(flux, batch.weight))),
    }


def step_row(n: int, models, compact: bool) -> dict[str, Callable]:
    "One training step with all three losses: encode, decode, augment, backward, Adam."
    peer, ours, small = models
    batch, model = make_batch(n), small if compact else ours
    there, here = torch.optim.Adam(peer.parameters(), 1e-4), torch.optim.Adam(model.parameters(), 1e-4, fused=True)
    config = LossConfig(**WINDOW)

    def spender_step():
        there.zero_grad()
        latents = peer.encode(batch.flux)
        loss = peer.loss(batch.flux, batch.weight, peer.encoder.instrument, z=batch.z, s=latents)
        loss = loss + 3 * similarity_restframe_loss(peer, latents, config=config)
        loss = loss + consistency_loss(latents, peer.encode(SpenderSDSS.augment_spectra(batch)[0]))
        loss.backward()
        there.step()
        return loss.item(), None

    def our_step():
        here.zero_grad()
        loss = model(batch, similarity=1.0, consistency=1.0)["loss"]
        loss.backward()
        here.step()
        return loss.item(), None

    return {"spender": spender_step, "ours": our_step}


ROWS = {  # name: (spectra, builder, compares values, goal)
    "similarity loss, forward and backward": (128, similarity_row, True, 15),
    "decode and similarity loss, forward and backward": (128, decoded_similarity_row, True, 15),
    "interpolation, same grid, forward and backward": (128, lambda n, m: interpolation_row(n, m, False), True, None),
    "interpolation, log lattice, forward and backward": (128, lambda n, m: interpolation_row(n, m, True), False, 5),
    "encode, same network": (64, lambda n, m: encode_row(n, m, False), True, None),
    "encode, compact network": (64, lambda n, m: encode_row(n, m, True), False, 1.3),
    "step with three losses, same network": (32, lambda n, m: step_row(n, m, False), False, None),
    "step with three losses, compact network": (32, lambda n, m: step_row(n, m, True), False, 1.15),
}


def clocked(work: Callable) -> tuple[float, tuple]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def difference(a: tuple, b: tuple) -> float:
    "Largest relative difference of the values and of the gradients (or latents)."
    (x, g), (y, h) = a, b
    value = abs(x - y) / abs(x) if x else 0.0
    return max(value, float((g - h).abs().max() / g.abs().max()))


def measure(name: str, models, repeats: int) -> dict:
    "One row of the table: medians over `repeats` alternating runs after one warm-up each."
    n, build, same, goal = ROWS[name]
    torch.manual_seed(0)
    sides = build(n, models)
    first = {k: work() for k, work in sides.items()}
    times = {k: [] for k in sides}
    for _ in range(repeats):
        for k, work in sides.items():
            times[k].append(clocked(work)[0])
    ms = {k: 1e3 * median(t) for k, t in times.items()}
    return {
        "row": name,
        "n": n,
        "spender_ms": ms["spender"],
        "ours_ms": ms["ours"],
        "ratio": ms["spender"] / ms["ours"],
        "goal": goal,
        "difference": difference(first["spender"], first["ours"]) if same else None,
    }


def as_markdown(result: dict) -> str:
    about = result["about"]
    lines = [
        f"spender {about['spender']} and spectral_core {about['spectral_core']}, torch {about['torch']}, "
        f"{about['threads']} thread, {about['processor']}; CPU time, medians of {about['repeats']}.",
        "",
        "| work | spectra | spender | ours | ratio | goal | difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in result["rows"]:
        goal = f"≥ {r['goal']}" if r["goal"] else ""
        apart = "" if r["difference"] is None else f"{r['difference']:.0e}"
        times = f"{r['spender_ms']:.1f} ms | {r['ours_ms']:.1f} ms"
        lines.append(f"| {r['row']} | {r['n']} | {times} | **{r['ratio']:.1f}** | {goal} | {apart} |")
    return "\n".join(lines) + "\n"


def processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [x.split(":")[1].strip() for x in info.read_text().splitlines() if "model name" in x] if info.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", 1)))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(""))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    models = make_models()
    rows = []
    for name in ROWS:
        rows.append(measure(name, models, given.repeats))
        print(f"{name:52s} {rows[-1]['ratio']:8.1f}×", flush=True)
    about = {"threads": given.threads, "repeats": given.repeats, "processor": processor()}
    about |= {"torch": torch.__version__, "spender": version("spender"), "spectral_core": version("spectral-core")}
    result = {"about": about, "rows": rows}
    given.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    given.out.with_suffix(".md").write_text(as_markdown(result))
    print("\n" + as_markdown(result))


if __name__ == "__main__":
    main()
