"""Chapter 1's work, done by spender 0.3 and by us in one process, as ratios of time.

    pip install -e . 'spender==0.3'
    python benchmarks/spender_ratios.py                    # writes spender_ratios.md beside itself; ten minutes
    python benchmarks/spender_ratios.py --only loader      # prints the rows whose name holds the word, writes nothing

Both sides get the same inputs, and the same weights where the network is the same. First they must agree on the values;
then they take turns, and every turn gives one ratio, so that a busy machine disturbs both alike. On a CPU one thread works
and its CPU time is counted; on a GPU the clock on the wall is. Absolute times are context, the ratios are the result.
"""

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from spectral_core.models.autoencoder import COMPACT, RELEASED, RedshiftAutoencoder, rest_grid
from spectral_core.models.networks import released_weights
from spectral_core.models.similarity import similarity_loss, window_weight
from spectral_core.spectra.container import Batch, Spectra
from spectral_core.spectra.store import Store, write_store
from spectral_core.spectra.surveys import SDSS
from spectral_core.spectra.wavelength import Grid, resample_rest

LINEAR = rest_grid(SDSS, "linear")  # the paper's 7000 pixels
NATIVE = rest_grid(SDSS, "native")  # the lattice of the data, continued to the blue


@dataclass
class Case:
    "One piece of work: what each side calls, whom to compare with whom (theirs, ours, goal), and how well values agree."

    name: str
    n: int
    sides: dict[str, Callable[[], tuple[Tensor, ...]]]
    pairs: list[tuple[str, str, float | None]]
    tolerance: dict[str, float]  # of our sides that compute the same numbers


# ---- inputs


def make_batch(n: int, device: str = "cpu") -> Batch:
    "Noisy spectra with gaps; flux is 0 under weight 0, as spender's encoder has no other way to know."
    weight = torch.where(torch.rand(n, SDSS.grid.n) < 0.15, 0, 100 * torch.rand(n, SDSS.grid.n))
    flux = torch.where(weight > 0, 1 + 0.2 * torch.rand(n, SDSS.grid.n), 0)
    return Batch(*(x.to(device) for x in (flux, weight, 0.001 + 0.4 * torch.rand(n))))


def make_rest(n: int, grid: Grid, device: str = "cpu") -> Tensor:
    "Rest spectra (n, L) with features some ten Å wide, that want a gradient."
    wave, scale = torch.tensor(grid.wave), 10 + 40 * torch.rand(n, 1)
    return (1 + 0.2 * torch.sin(wave / scale)).float().to(device).requires_grad_()


def blocks(n: int, size: int = 2048) -> Iterator[Spectra]:
    "n noisy flat spectra on the SDSS grid, a block at a time."
    for first in range(0, n, size):
        rng, k = np.random.default_rng(first), min(size, n - first)
        flux = rng.normal(10, 2, (k, SDSS.grid.n)).astype("f4")
        ivar = rng.uniform(0.1, 2, flux.shape).astype("f4")
        yield Spectra(flux, ivar, rng.uniform(0, 0.4, k), "sdss", id=first + np.arange(k))


# ---- our side


def gradient(value: Tensor, of: Tensor) -> tuple[Tensor, Tensor]:
    return value.detach(), torch.autograd.grad(value, of)[0]


def our_similarity(latents: Tensor, rest: Tensor, wave: np.ndarray) -> Tensor:
    "spender 0.3's rest-frame similarity loss by Gram matrices: it sums over pairs and divides by n, so n − 1 times ours."
    low, high = np.searchsorted(wave, 4000.0, "right"), np.searchsorted(wave, 7000.0)
    rest = rest / rest[:, low:high].median(1, keepdim=True).values
    window = window_weight(wave, amplitude=1.0).sqrt().to(rest.device)
    return similarity_loss(latents, rest, window, family="scale_free") * (len(latents) - 1)


def our_step(model: RedshiftAutoencoder, batch: Batch) -> Callable[[], tuple[Tensor, ...]]:
    "A training step with the three losses, as `fit` does it; returns fidelity and similarity, which hold no chance."
    optimiser = torch.optim.Adam(model.parameters(), 1e-4, fused=True)

    def step() -> tuple[Tensor, ...]:
        optimiser.zero_grad()
        losses = model(batch, similarity=3.0, consistency=1.0)
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        return losses["fidelity"].detach(), losses["similarity"].detach()

    return step


def summary(batches: Iterable[tuple[Tensor, Tensor, Tensor]], pixel: int = 1960) -> tuple[Tensor, ...]:
    "One epoch: the sizes of its batches, then redshift, flux and weight of one pixel of every spectrum, ordered."
    parts = [(x[:, pixel], w[:, pixel], z.float()) for x, w, z in batches]
    flux, weight, z = (torch.cat(column) for column in zip(*parts, strict=True))
    order = np.lexsort((flux, z))  # by z; some are alike in float32
    return torch.tensor([len(x) for x, _, _ in parts]), z[order], flux[order], weight[order]


def copies(store: Store, batch_size: int) -> Callable[[], tuple]:
    "The bytes of an epoch copied in order: the speed of memory, which no shuffled loader can beat."
    pixels = [np.array(store._flux), np.array(store._signed)]

    def epoch() -> tuple:
        for i in range(0, len(store), batch_size): [p[i : i + batch_size].copy() for p in pixels]
        return ()

    return epoch


# ---- spender's side


def load_spender() -> SimpleNamespace:
    "The parts of spender that are measured; an exit that says what to install where it is missing."
    try:
        from spender.data import dataset
        from spender.data.sdss import SDSS as Instrument
        from spender.loss import LossConfig, consistency_loss, similarity_restframe_loss
        from spender.model import SpectrumAutoencoder
    except ImportError as error:
        raise SystemExit(f"{error}: this compares with spender; pip install 'spender==0.3'") from error
    config = LossConfig(restframe_sigma=1000.0)  # as in its SDSS script

    def model(rest: Grid, device: str) -> SpectrumAutoencoder:
        return SpectrumAutoencoder(Instrument(), torch.tensor(rest.wave, dtype=torch.float32), n_latent=6).to(device)

    def similarity(autoencoder, latents: Tensor) -> Tensor:
        return similarity_restframe_loss(autoencoder, latents, config=config)

    return SimpleNamespace(model=model, similarity=similarity, consistency=consistency_loss, data=dataset,
                           instrument=Instrument, amplitude=config.similarity_amp)  # fmt: skip


def spender_step(peer: SimpleNamespace, model, batch: Batch) -> Callable[[], tuple[Tensor, ...]]:
    "The same step as its SDSS script takes it; losses divided by n and n − 1, the factors to ours."
    optimiser, n = torch.optim.Adam(model.parameters(), 1e-4), len(batch.flux)

    def step() -> tuple[Tensor, ...]:
        optimiser.zero_grad()
        latents = model.encode(batch.flux)
        fidelity = model.loss(batch.flux, batch.weight, model.encoder.instrument, z=batch.z, s=latents)
        similarity = peer.similarity(model, latents)
        moved = model.encode(peer.instrument.augment_spectra(batch)[0])
        (fidelity + peer.amplitude * similarity + peer.consistency(latents, moved)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        return fidelity.detach() / n, similarity.detach() / (n - 1)

    return step


# ---- the cases


def similarity_case(peer: SimpleNamespace, n: int, device: str) -> Case:
    "Value and gradient of the similarity loss of rest spectra that are decoded already."
    latents, rest = torch.randn(n, 6).to(device), make_rest(n, LINEAR, device)
    decoded = SimpleNamespace(decode=lambda s: rest, decoder=peer.model(LINEAR, device).decoder)
    sides = {
        "spender": lambda: gradient(peer.similarity(decoded, latents), rest),
        "ours": lambda: gradient(our_similarity(latents, rest, LINEAR.wave), rest),
    }
    return Case("similarity loss, forward and backward", n, sides, [("spender", "ours", 15)], {"ours": 1e-4})


def decoded_similarity_case(peer: SimpleNamespace, n: int, device: str) -> Case:
    "The same with the decoder in front: value and gradient of the latents."
    model, theirs = same_networks(peer, device)
    latents = torch.randn(n, 6).to(device).requires_grad_()
    sides = {
        "spender": lambda: gradient(peer.similarity(theirs, latents), latents),
        "ours": lambda: gradient(our_similarity(latents, model.decode(latents), LINEAR.wave), latents),
    }
    return Case("decoder and similarity loss, forward and backward", n, sides, [("spender", "ours", 15)], {"ours": 1e-4})


def redshift_case(peer: SimpleNamespace, n: int, device: str, grid: Grid, name: str, goal: float | None) -> Case:
    "Rest spectra as they are observed at their redshifts, and the gradient back."
    rest, z, pull = make_rest(n, grid, device), make_batch(n, device).z, torch.rand(n, SDSS.grid.n).to(device)
    theirs = peer.model(grid, device)
    transform = lambda: theirs.decoder.transform(rest, instrument=theirs.encoder.instrument, z=z)
    resample = lambda: resample_rest(rest, grid, SDSS.grid, z)[0]

    def both(observe: Callable[[], Tensor]) -> tuple[Tensor, ...]:
        seen = observe()
        return seen.detach(), torch.autograd.grad((pull * seen).sum(), rest)[0]

    forward = torch.no_grad()(lambda observe: (observe(),))
    sides = {
        "spender, forward": lambda: forward(transform),
        "ours, forward": lambda: forward(resample),
        "spender, forward and backward": lambda: both(transform),
        "ours, forward and backward": lambda: both(resample),
    }
    ways = {"forward": None, "forward and backward": goal}
    pairs = [(f"spender, {way}", f"ours, {way}", aim) for way, aim in ways.items()]
    return Case(f"redshift, {name}", n, sides, pairs, {"ours, forward": 1e-3, "ours, forward and backward": 2e-2})


def same_networks(peer: SimpleNamespace, device: str) -> tuple[RedshiftAutoencoder, torch.nn.Module]:
    "Our model of spender's architecture and spender's own, with the same weights."
    ours, theirs = RedshiftAutoencoder(SDSS, 6, replace(RELEASED, family="scale_free")), peer.model(LINEAR, device)
    ours.load_state_dict(released_weights(theirs.state_dict()))
    return ours.to(device).train(), theirs.train()


def encode_case(peer: SimpleNamespace, n: int, device: str) -> Case:
    "Latents of a batch, without gradients."
    ours, theirs = same_networks(peer, device)
    compact, batch = RedshiftAutoencoder(SDSS, 6, COMPACT).to(device), make_batch(n, device)
    sides = {
        "spender": torch.no_grad()(lambda: (theirs.encode(batch.flux),)),
        "ours, its network": torch.no_grad()(lambda: (ours.encode(batch.flux, batch.weight),)),
        "ours, compact network": torch.no_grad()(lambda: (compact.encode(batch.flux, batch.weight),)),
    }
    pairs = [("spender", "ours, its network", 1.3), ("spender", "ours, compact network", None)]
    return Case("encode", n, sides, pairs, {"ours, its network": 1e-3})


def step_case(peer: SimpleNamespace, n: int, device: str) -> Case:
    "A training step with all three losses and Adam."
    (ours, theirs), batch = same_networks(peer, device), make_batch(n, device)
    compact = RedshiftAutoencoder(SDSS, 6, replace(COMPACT, family="scale_free")).to(device).train()
    sides = {
        "spender": spender_step(peer, theirs, batch),
        "ours, its network": our_step(ours, batch),
        "ours, compact network": our_step(compact, batch),
    }
    pairs = [("spender", "ours, its network", 1.15), ("spender", "ours, compact network", None)]
    return Case("training step, three losses", n, sides, pairs, {"ours, its network": 1e-3})


def loader_case(peer: SimpleNamespace, folder: Path, n: int, batch_size: int) -> Case:
    "A shuffled epoch of (flux, weight, z) batches of n spectra, page cache warm."
    store = write_store(folder / "store", blocks(n))
    columns = ({"spec": s.flux, "w": s.weight, "z": s.z, "zerr": 0 * s.z, "norm": 1 + 0 * s.z, "id": s.id} for s in blocks(n))
    features = peer.data.get_features(SDSS.grid.n, ["id"])
    peer.data.write_dataset(str(folder / "parquet"), columns, features, ["id"], fractions={"train": 1.0})
    load = lambda **how: peer.data.get_data_loader(str(folder / "parquet"), batch_size=batch_size, shuffle=True, **how)
    stream, cache = load(), load(streaming=False)
    sides = {
        "spender, streamed (default)": lambda: summary(stream),
        "spender, cached": lambda: summary(cache),
        "plain copy": copies(store, batch_size),
        "our store": lambda: summary(store.batches(batch_size)),
    }
    goals = {"spender, streamed (default)": 20, "spender, cached": None, "plain copy": None}
    pairs = [(side, "our store", goal) for side, goal in goals.items()]
    return Case(f"shuffled epoch in batches of {batch_size}", n, sides, pairs, {"our store": 1e-6})


# ---- measuring


def clock(device: str) -> float:
    "Seconds: of this process on a CPU, on the wall once the GPU is done."
    if device == "cpu": return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def difference(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> float:
    "Largest difference of two results, relative to the largest value of each tensor; shapes must agree."
    assert [x.shape for x in a] == [x.shape for x in b], "the two sides return different shapes"
    return max(((x - y).abs().max() / x.abs().max().clamp(min=1e-30)).item() for x, y in zip(a, b, strict=True))


def peak_memory(work: Callable[[], tuple], device: str) -> tuple[tuple, float | None]:
    "The result of `work` and by how many GB the memory in use rose meanwhile; None where the system doesn't tell."
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        return work(), (torch.cuda.max_memory_allocated() - before) / 1e9

    def used(key: str) -> int:
        status = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(x.split()[1]) for x in status if x.startswith(key))

    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = used("VmRSS")
    except OSError: return work(), None
    return work(), (used("VmHWM") - before) / 1e9


def take_turns(sides: dict[str, Callable], repeats: int, device: str = "cpu", least: float = 0.2) -> dict[str, list[float]]:
    "Seconds a call (repeats,) of every side; in each turn all sides run, each for `least` seconds or more."
    def timed(work: Callable, calls: int) -> float:
        start = clock(device)
        for _ in range(calls): work()
        return (clock(device) - start) / calls

    calls = {name: int(np.ceil(least / max(timed(work, 1), 1e-6))) for name, work in sides.items()}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats):
        for name in list(sides)[:: 1 if turn % 2 else -1]: times[name].append(timed(sides[name], calls[name]))
    return times


def measure(case: Case, repeats: int, device: str) -> list[dict]:
    "Check that the sides of a case agree, let them take turns; one row for every pair."
    first = {name: peak_memory(case.sides[name], device) for name in reversed(case.sides)}
    apart = {ours: difference(first[theirs][0], first[ours][0]) for theirs, ours, _ in case.pairs
             if ours in case.tolerance and first[theirs][0]}  # fmt: skip
    for name, value in apart.items():
        if not value < case.tolerance[name]: raise SystemExit(f"{case.name}: {name} is off by {value:.1e}; not timed")
    times, rows = take_turns(case.sides, repeats, device), []
    for theirs, ours, goal in case.pairs:
        ratios = [a / b for a, b in zip(times[theirs], times[ours], strict=True)]
        rows.append({
            "work": case.name, "n": case.n, "theirs": theirs, "ours": ours, "goal": goal,
            "ratio": median(ratios), "low": min(ratios), "high": max(ratios),
            "ms": tuple(1e3 * median(times[k]) for k in (theirs, ours)),
            "memory": tuple(first[k][1] for k in (theirs, ours)),
            "difference": apart.get(ours) if first[theirs][0] else None,
        })  # fmt: skip
    return rows


# ---- the table


def line(row: dict) -> str:
    "One row of the Markdown table."
    number = lambda x: f"{x:.3g}" if x < 100 else f"{x:.0f}"
    goal = "" if row["goal"] is None else f"≥ {row['goal']}"
    memory = " / ".join("?" if x is None else "< 0.1" if x < 0.1 else f"{x:.1f}" for x in row["memory"])
    spread = f"{number(row['low'])} to {number(row['high'])}"
    apart = "" if row["difference"] is None else f"{row['difference']:.0e}"
    cells = [row["work"], str(row["n"]), row["theirs"], row["ours"], f"**{number(row['ratio'])}**", spread, goal, apart]
    cells += [memory, " / ".join(map(number, row["ms"]))]
    return f"| {' | '.join(cells)} |"


def as_markdown(rows: list[dict], about: str) -> str:
    "The page: what ran where, the table, how to read it."
    titles = ["work", "spectra", "theirs", "ours", "ratio", "over the turns", "goal", "difference", "memory GB", "ms"]
    head = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    large = 5 * 4 * 512**2 * LINEAR.n / 1e9
    notes = f"""Ratio: their time over ours, median of the turns, with the smallest and the largest. Difference: of the values
both compute (loss, gradient, spectra, latents), relative to the largest; empty where the networks differ. spender keeps
wavelengths in float32, about 1e-3 of a pixel: that is the difference in the redshift rows. Memory: by how much the first
call raised the peak of the process, theirs / ours. ms: medians, theirs / ours; they belong to this machine.
The similarity loss of spender holds five float32 arrays of n × n × {LINEAR.n}: {large:.0f} GB for its own batches of 512. The
second row of that loss is the largest power of two, up to 512, that fits into this machine."""
    return "\n".join(["# Chapter 1 against spender", "", about, "", *head, *map(line, rows), "", notes, ""])


def machine(device: str) -> str:
    "The name of the processor that does the work."
    if device != "cpu": return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    names = [x.split(":")[1].strip() for x in info.read_text().splitlines() if "model name" in x] if info.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def largest_batch(device: str, wanted: int = 512) -> int:
    "The largest power of two up to `wanted` whose six (n, n, L) float32 arrays fit into 80 % of the free memory."
    free = torch.cuda.mem_get_info()[0] if device != "cpu" else os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    while wanted > 2 and 6 * 4 * wanted**2 * LINEAR.n > 0.8 * free: wanted //= 2
    return wanted


def cases(peer: SimpleNamespace, folder: Path, given: argparse.Namespace) -> dict[str, Callable[[], Case]]:
    "Every case under a short name, built when its turn comes."
    n, device = given.n, given.device
    return {
        "similarity": lambda: similarity_case(peer, n, device),
        "similarity of a large batch": lambda: similarity_case(peer, largest_batch(device), device),
        "decoder and similarity": lambda: decoded_similarity_case(peer, n, device),
        "redshift, native": lambda: redshift_case(peer, n, device, NATIVE, "rest lattice of 1e-4 dex", 5),
        "redshift, linear": lambda: redshift_case(peer, n, device, LINEAR, "the paper's 7000 linear pixels", None),
        "encode": lambda: encode_case(peer, n, device),
        "step": lambda: step_case(peer, n, device),
        "loader": lambda: loader_case(peer, folder, given.loader_n, 512),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=128, help="spectra in a batch")
    parser.add_argument("--loader-n", type=int, default=12288, help="spectra in the data set")
    parser.add_argument("--repeats", type=int, default=7, help="turns")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--only", default="", help="measure the cases whose name holds this word; write no file")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": folder}  # local files only, and nothing left behind
        peer = load_spender()
        for name, build in cases(peer, Path(folder), given).items():
            if given.only not in name: continue
            torch.manual_seed(0)
            measured = measure(build(), given.repeats, given.device)
            print(*map(line, measured), sep="\n", flush=True)
            rows += measured
    versions = ", ".join(f"{name} {version(name)}" for name in ("spender", "spectral-core", "torch"))
    threads = "one thread, CPU time" if given.device == "cpu" else "wall time"
    about = f"{versions}; {machine(given.device)}, {threads}; {given.repeats} turns; spectra of {SDSS.grid.n} pixels."
    if not given.only: given.out.write_text(as_markdown(rows, about), encoding="utf-8")


if __name__ == "__main__":
    main()
