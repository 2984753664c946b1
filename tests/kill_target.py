"""Kills real fits with SIGKILL and resumes them: `python kill_target.py FOLDER`, called by test_train.py, prints JSON.

Every fit runs in a forked child of a parent that has imported torch and done nothing else, so a kill costs little.
"""

import json
import os
import random
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # every optimiser imports it; once here instead of once per child
from torch import nn

from spectral_core import train
from spectral_core.models.flows import FlowConfig, MaskedAutoregressiveFlow
from spectral_core.training import checkpoint


class DropoutNet(nn.Module):
    "An autoencoder of a table, with dropout and noise: it would notice any random number that is not drawn again."

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.3), nn.GELU(), nn.Linear(16, 6))

    def forward(self, batch, *, progress=1.0, noise=0.0):
        return {"loss": (self.net(batch + noise * progress * torch.randn_like(batch)) - batch).square().mean()}


def autoencoder():
    from spectral_core.models.autoencoder import AutoencoderConfig, RedshiftAutoencoder
    from spectral_core.spectra.container import Spectra

    rng = np.random.default_rng(0)
    flux = 1 + 0.1 * rng.normal(size=(16, 3921)).astype("f4")
    spectra = Spectra(flux, np.full_like(flux, 100), rng.uniform(0.01, 0.3, 16), "sdss")
    stages = [train.Stage("fidelity", 1), train.Stage("all", 1, {"similarity": 1.0, "consistency": 1.0})]
    model = RedshiftAutoencoder("sdss", 2, AutoencoderConfig(hidden=(8,)))
    return model, spectra[:12], spectra[12:], dict(stages=stages, batch_size=4)


def table(kind):
    x = np.random.default_rng(1).normal(size=(120, 6)).astype("f4") * np.arange(1, 7, dtype="f4")
    stages = [train.Stage("plain", 1), train.Stage("noisy", 1, {"noise": 0.3} if kind == "dropout" else {})]
    model = DropoutNet() if kind == "dropout" else MaskedAutoregressiveFlow(6, FlowConfig(n_layer=2, n_hidden=8))
    return model, x[:90], x[90:], dict(stages=stages, batch_size=32)


def in_child(work):
    "Run `work` in a forked child; True where it ended by SIGKILL. Any other failure of the child is ours."
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status): return os.WTERMSIG(status) == signal.SIGKILL
    if os.WEXITSTATUS(status): raise SystemExit(f"child failed: {status}")
    return False


def die_at(owner, name, n):
    "From now on the n-th call of owner.name kills the process, before (n > 0) or after (n < 0) it has been made."
    original, calls = getattr(owner, name), [0]

    def mortal(*args, **kwargs):
        calls[0] += 1
        if n > 0 and calls[0] == n: os.kill(os.getpid(), signal.SIGKILL)
        out = original(*args, **kwargs)
        if n < 0 and calls[0] == -n: os.kill(os.getpid(), signal.SIGKILL)
        return out

    setattr(owner, name, mortal)


def fit(kind, run, prepare=lambda: None):
    "A fit as a user would start it: first weights and random state differ from one process to the next."
    train.CHECKPOINT_SECONDS = 0.0
    torch.manual_seed(os.getpid())
    model, data, valid, settings = autoencoder() if kind == "autoencoder" else table(kind)
    prepare()
    train.fit(model, data, valid, run=run, lr=1e-2, seed=3, progress=False, device="cpu", **settings)


def outcome(run):
    "Everything that must be the same: weights, optimiser, history without its seconds."
    state = checkpoint.load_checkpoint(run)
    history = json.loads(state.pop("history"))
    for row in history["epochs"]: row.pop("seconds")
    return (run / "model.safetensors").read_bytes(), json.dumps(history), state


def same(a, b):
    if isinstance(a, torch.Tensor): return torch.equal(a, b)
    if isinstance(a, dict): return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple): return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    return a == b


def report(kind, folder):
    "{what was killed: [did it die, does the resumed run end with the same bits]}."
    first = folder / "first"  # killed before its first step: holds the record and the random first weights
    assert in_child(lambda: fit(kind, first, lambda: die_at(train._State, "call", 1)))
    copy = lambda name: shutil.copytree(first, folder / name)
    straight = copy("straight")
    in_child(lambda: fit(kind, straight))
    expected = outcome(straight)
    steps = random.Random(f"{kind} steps").sample(range(2, 8), 3)  # 3 steps and a validation per epoch
    plans = {f"step {k}": (train._State, "call", k) for k in sorted(steps)}
    if kind == "dropout":  # and 20 times inside the writing of checkpoints, history and weights
        plans |= {f"rename {k}": (os, "replace", k) for k in (*range(1, 9), *range(-8, 0))}
        plans |= {f"write {k}": (Path, "write_bytes", k) for k in (1, 2, -1, -2)}
    out = {}
    for name, plan in plans.items():
        run = copy(name.replace(" ", "_"))
        killed = in_child(lambda: fit(kind, run, lambda: die_at(*plan)))  # noqa: B023
        in_child(lambda: fit(kind, run))  # noqa: B023
        out[name] = [killed, same(outcome(run), expected)]
    return out


if __name__ == "__main__":
    torch.set_num_threads(1)
    for model in (autoencoder()[0], table("maf")[0]): checkpoint.source_fingerprints(model, "spectral_core.train")
    print(json.dumps({kind: report(kind, Path(sys.argv[1]) / kind) for kind in ("dropout", "maf", "autoencoder")}))
