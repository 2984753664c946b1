"""One small fit, under torchrun or alone: `ddp_target.py FOLDER`. Called by test_train.py."""

import logging
import sys
from pathlib import Path

import numpy as np
import torch

from spectral_core.models.flows import FlowConfig, MaskedAutoregressiveFlow
from spectral_core.train import fit


def main(folder: Path) -> None:
    logging.basicConfig(level=logging.INFO, filename=folder / "log.txt")
    x = np.random.default_rng(0).normal(size=(101, 3)).astype("f4")  # 101: shares of unequal size
    flow = MaskedAutoregressiveFlow(3, FlowConfig(n_layer=2, n_hidden=8))
    history = fit(flow, x[:75], x[75:], n_epoch=3, batch_size=20, lr=1e-2, run=folder / "run", progress=False, device="cpu")
    torch.save([flow.state_dict(), history["train_loss"].tolist(), history["valid_loss"].tolist()], folder / "out.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
