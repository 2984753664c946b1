"""Shuffled batches of spectra: our memory-mapped store against spender 0.3's data loaders, in one process.

    python benchmarks/loader.py [--n 12288] [--batch-size 512]

needs `pip install spectral-core[bench]`. The same random spectra (flux, weight, z) are written once in both formats; then
each loader runs whole shuffled epochs with the page cache warm. What counts is the ratio of CPU seconds, which a shared
machine disturbs least; wall seconds stand beside it. Without spender only our own rate and the plain copy are printed.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch

from spectral_core.spectra.container import Spectra
from spectral_core.spectra.store import write_store
from spectral_core.spectra.surveys import SDSS

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # local files only
BLOCK = 2048


def blocks(n: int) -> Iterable[Spectra]:
    "n noisy flat spectra on the SDSS grid, a block at a time."
    for first in range(0, n, BLOCK):
        rng, size = np.random.default_rng(first), min(BLOCK, n - first)
        flux = rng.normal(10, 2, (size, SDSS.grid.n)).astype("f4")
        ivar = rng.uniform(0.1, 2, flux.shape).astype("f4")
        yield Spectra(flux, ivar, rng.uniform(0, 0.4, size), "sdss", id=first + np.arange(size))


def spender_loaders(folder: Path, n: int, batch_size: int) -> dict[str, Iterable]:
    "The streaming (default) and the cached loader of spender over the same spectra; empty where spender is missing."
    try:
        from spender.data.dataset import get_data_loader, get_features, write_dataset
    except ImportError:
        return {}
    columns = ({"spec": s.flux, "w": s.weight, "z": s.z, "zerr": 0 * s.z, "norm": 0 * s.z + 1, "id": s.id} for s in blocks(n))
    write_dataset(folder, columns, get_features(SDSS.grid.n, ["id"]), ["id"], fractions={"train": 1.0})
    common = {"batch_size": batch_size, "shuffle": True}
    return {
        "spender_stream": get_data_loader(str(folder), **common),
        "spender_cache": get_data_loader(str(folder), streaming=False, **common),
    }


def seconds(epoch: Callable[[], int], n: int, repeats: int) -> dict[str, float]:
    "The fastest of some epochs, after one to warm up: spectra per CPU second and per wall second."
    assert epoch() == n, "the loader lost spectra"
    cpu, wall = [], []
    for _ in range(repeats):
        start = time.process_time(), time.perf_counter()
        epoch()
        cpu.append(time.process_time() - start[0])
        wall.append(time.perf_counter() - start[1])
    return {"spectra_per_cpu_s": n / min(cpu), "spectra_per_s": n / min(wall)}


def main() -> None:
    "Print one JSON object: rates of every loader and our ratio to each."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=12288)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    a = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        store = write_store(Path(folder) / "store", blocks(a.n))
        pixels = [np.array(store._flux), np.array(store._signed)]  # in memory already: the bound
        copies = lambda i: [p[i : i + a.batch_size].copy() for p in pixels]
        epochs = {
            "store": lambda: sum(len(batch.z) for batch in store.batches(a.batch_size)),
            "copy": lambda: sum(len(copies(i)[0]) for i in range(0, a.n, a.batch_size)),
        }
        for name, loader in spender_loaders(Path(folder) / "parquet", a.n, a.batch_size).items():
            epochs[name] = lambda loader=loader: sum(len(batch[2]) for batch in loader)
        rates = {name: seconds(epoch, a.n, a.repeats) for name, epoch in epochs.items()}
    ratios = {k: rates["store"]["spectra_per_cpu_s"] / v["spectra_per_cpu_s"] for k, v in rates.items() if k != "store"}
    print(json.dumps({"n": a.n, "batch_size": a.batch_size, "rates": rates, "store_over": ratios}, indent=1))


if __name__ == "__main__":
    main()
