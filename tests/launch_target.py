"""A fit of a small flow in some processes, started as from a chapter: `launch_target.py RUN N`. Called by test_distributed.py."""

import sys
from pathlib import Path

import numpy as np
import torch

from spectral_core.models.flows import FlowConfig, MaskedAutoregressiveFlow
from spectral_core.train import History, fit
from spectral_core.training.distributed import fit_on_gpus

N_EPOCH = 400


def problem() -> tuple[MaskedAutoregressiveFlow, np.ndarray, np.ndarray]:
    "A flow and its data: 101 rows in batches of 20, so that shares are of unequal size."
    x = np.random.default_rng(0).normal(size=(131, 3)).astype("f4")
    return MaskedAutoregressiveFlow(3, FlowConfig(n_layer=2, n_hidden=8)), x[:101], x[101:]


def main(run: Path, processes: int, n_epoch: int = N_EPOCH) -> tuple[MaskedAutoregressiveFlow, History]:
    flow, *data = problem()
    settings = {"run": run, "n_epoch": n_epoch, "batch_size": 20, "lr": 1e-3, "device": "cpu", "progress": False}
    history = fit(flow, *data, **settings) if processes == 1 else fit_on_gpus(flow, *data, processes=processes, **settings)
    return flow, history


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]))
