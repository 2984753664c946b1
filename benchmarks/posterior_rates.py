"""Posteriors of galaxies by four densities, in one process: how fast they learn, and how fast they draw.

    python benchmarks/posterior_rates.py                # writes posterior_rates.md beside itself; about half an hour on one core
    python benchmarks/posterior_rates.py --only mixture --budget 20    # prints the rows whose name holds the word, writes nothing

All densities learn the same from the same rows: the free parameters of mock galaxies (normal under the prior, so that no draw
can be outside of it) given the context of `inference.npe`. Each gets the same CPU time for the same loop, Adam with a
cosine schedule over that time, for each of its peak learning rates; the better one counts. The score is the mean log-probability
of galaxies not trained on. One thread works.
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from time import process_time

import torch
import zuko
from page import processor, seconds, table
from torch import Tensor, nn

from spectral_core.inference.npe import N_CONTEXT, PosteriorConfig, training_data
from spectral_core.simulate.photosurvey import mock_photometry

N_FEATURES = 11
Data = dict[str, tuple[Tensor, Tensor]]


# ---- the densities, behind one interface


class Ours(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.density = PosteriorConfig(n_member=1).density(N_CONTEXT)

    def log_prob(self, x: Tensor, c: Tensor) -> Tensor: return self.density.log_prob(x, c)

    def sample(self, n: int, c: Tensor) -> Tensor: return self.density.sample(n, c)


class Zuko(nn.Module):
    def __init__(self, **settings: object) -> None:
        super().__init__()
        self.flow = zuko.flows.NSF(N_FEATURES, N_CONTEXT, bins=8, **settings)

    def log_prob(self, x: Tensor, c: Tensor) -> Tensor: return self.flow(c).log_prob(x)

    def sample(self, n: int, c: Tensor) -> Tensor: return self.flow(c).sample((n,)).transpose(0, 1)


class PaperMAF(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        from sbi.neural_nets import posterior_nn

        build = posterior_nn("maf", hidden_features=500, num_transforms=15, num_blocks=2, z_score_theta="none", z_score_x="none")
        self.flow = build(torch.randn(100, N_FEATURES), torch.randn(100, N_CONTEXT))

    def log_prob(self, x: Tensor, c: Tensor) -> Tensor: return self.flow.log_prob(x[None], c)[0]

    def sample(self, n: int, c: Tensor) -> Tensor: return self.flow.sample((n,), c).transpose(0, 1)


@dataclass(frozen=True)
class Method:
    about: str
    build: Callable[[], nn.Module]
    batch: int
    rates: tuple[float, ...]


METHODS = {
    "autoregressive mixture": Method("ours, the shipped default's member: 3 layers of 128, 8 normals", Ours, 512, (6e-3, 1.2e-2)),
    "autoregressive splines": Method("zuko NSF, 3 × 3 layers of 128, 8 bins",
                                     lambda: Zuko(transforms=3, hidden_features=(128,) * 3), 512, (4e-3, 8e-3)),
    "coupling splines": Method("zuko NSF in 2 passes, 5 × 3 layers of 128, 8 bins",
                               lambda: Zuko(transforms=5, passes=2, hidden_features=(128,) * 3), 512, (2e-3, 5e-3)),
    "MAF": Method("sbi, the paper's 15 × 2 layers of 500", PaperMAF, 512, (5e-4, 2e-3)),
    "MAF, as published": Method("the same with batches of 50 and a rate of 5e-4", PaperMAF, 50, (5e-4,)),
}


# ---- learning


def learn(method: Method, rate: float, data: Data, budget: float) -> tuple[nn.Module, int]:
    "The density after `budget` seconds of CPU time, and the steps it made in them."
    torch.manual_seed(0)
    model, (x, c) = method.build(), data["train"]
    optimiser = torch.optim.Adam(model.parameters(), lr=rate, fused=True)
    order, place, steps, start = torch.randperm(len(x)), 0, 0, process_time()
    while (share := (process_time() - start) / budget) < 1:
        for group in optimiser.param_groups: group["lr"] = rate * min(1, share / 0.05) * 0.5 * (1 + math.cos(math.pi * share))
        if place + method.batch > len(x): order, place = torch.randperm(len(x)), 0
        rows = order[place : place + method.batch]
        loss = -model.log_prob(x[rows], c[rows]).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 50.0)
        optimiser.step()
        place, steps = place + method.batch, steps + 1
    return model.eval(), steps


def score(model: nn.Module, x: Tensor, c: Tensor) -> tuple[float, float]:
    "Mean log-probability, and its standard error."
    with torch.no_grad(): value = torch.cat([model.log_prob(a, b) for a, b in zip(x.split(2000), c.split(2000))]).double()
    return value.mean().item(), value.std().item() / len(value) ** 0.5


def best(method: Method, data: Data, budget: float) -> tuple[nn.Module, int, float, float]:
    "Model, steps, rate and held-out score of the best rate; the rate is chosen on other rows than the score."
    runs = [(*learn(method, rate, data, budget), rate) for rate in method.rates]
    model, steps, rate = max(runs, key=lambda run: score(run[0], *data["valid"])[0])
    return model, steps, rate, score(model, *data["test"])


# ---- drawing


def draw_seconds(model: nn.Module, c: Tensor, n: int, n_repeat: int) -> float:
    "The least CPU time of n draws for each context (g, context)."
    with torch.no_grad(): return min(seconds(lambda: model.sample(n, c))[1] for _ in range(n_repeat))


def row(name: str, method: Method, data: Data, budget: float, slowest: float | None) -> tuple[str, float]:
    model, steps, rate, (value, error) = best(method, data, budget)
    one = draw_seconds(model, data["test"][1][:1], 10_000, 2 if "MAF" in name else 5)
    many = draw_seconds(model, data["test"][1][:100], 100, 1)
    size, ratio = sum(p.numel() for p in model.parameters()) / 1e6, "" if slowest is None else f"**{slowest / one:.0f}**"
    cells = [name, method.about, f"{size:.2f}", str(method.batch), f"{rate:g}", str(steps), f"**{value:.2f}** ± {error:.2f}",
             f"{one:.3f}", ratio, f"{many:.3f}"]
    return f"| {' | '.join(cells)} |", one


# ---- the page


def page(rows: list[str], budget: float, sizes: dict[str, int], prior: float) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("spectral-core", "sbi", "zuko", "torch"))
    titles = ["density", "what", "million weights", "batch", "rate", "steps", "held-out log-probability",
              "10,000 draws of a galaxy, s", "times faster than the MAF", "100 draws of 100 galaxies, s"]
    rows_of = ", ".join(f"{n} {name}" for name, n in sizes.items())
    return f"""# Posteriors: learning and drawing

{versions}; {processor()}, one thread, CPU time. Mock galaxies of the NASA-Sloan Atlas with gaps and limits: {rows_of}.
Each density learned for {budget:.0f} s, for each of its learning rates; the log-probability is the mean over the test galaxies in
nats, in the free parameters, where the prior itself scores {prior:.2f}. Draws are of the density alone, none rejected.

{table(titles, rows)}

A short run with one seed: it says which density learns fastest, not where each would end.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="measure the rows whose name holds the word; write no file")
    parser.add_argument("--budget", type=float, default=60.0, help="CPU seconds of learning per rate")
    parser.add_argument("--n", type=int, default=100_000, help="training galaxies, each observed four times")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    sizes = {"train": given.n, "valid": 5000, "test": 20_000}
    samples = {name: mock_photometry(n, seed=i) for i, (name, n) in enumerate(sizes.items())}
    data = {name: training_data(sample, 4 if name == "train" else 1) for name, sample in samples.items()}
    shift, scale = data["train"][1].mean(0), data["train"][1].std(0)
    data = {name: (x, (c - shift) / scale) for name, (x, c) in data.items()}
    prior = -0.5 * (data["test"][0].square().sum(1).mean().item() + N_FEATURES * math.log(2 * math.pi))
    rows, slowest = {}, None
    for name, method in reversed(METHODS.items()):  # the MAF first: the others are held against it
        if given.only not in name: continue
        rows[name], one = row(name, method, data, given.budget, slowest)
        if "MAF" in name: slowest = one if slowest is None else min(slowest, one)
        print(rows[name], flush=True)
    if given.only: return
    given.out.write_text(page([rows[name] for name in METHODS], given.budget, sizes, prior), encoding="utf-8")


if __name__ == "__main__":
    main()
