"""What the page on a GPU says is measured: operations are counted right, a refusal writes nothing, resumed fits are compared."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def gpu():
    sys.path.insert(0, str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(SCRIPT.parent))


class Product(nn.Module):
    "x Wᵀ; the time of its step is known below, so is its arithmetic."

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 8, bias=False)
        self.seen = []

    def forward(self, batch, progress):
        out = self.linear(batch[0])
        self.seen.append(out.dtype)
        return {"loss": out.float().square().mean()}


def test_arithmetic_of_a_step_and_its_share_of_the_ceiling(gpu, monkeypatch):
    "A product of (32, 16) and (16, 8) forward and for the weights backward: 2 · 32 · 16 · 8 operations each."
    model = Product()
    monkeypatch.setattr(gpu, "cases", lambda *a: {"toy": (model, (torch.ones(32, 16),), {})})
    monkeypatch.setattr(gpu, "seconds_of", lambda work, *a: work() or 1e-9)
    lines = gpu.step_rows("cpu", True, {"float32": 1e14, "bfloat16": 1e13})
    n_operation = 2 * 2 * 32 * 16 * 8
    for line, share in zip(lines, (n_operation / 1e-9 / 1e14, n_operation / 1e-9 / 1e13)):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[0] == "toy" and cells[1] == "32" and cells[-1] == "not measured"
        assert float(cells[5]) == pytest.approx(n_operation / 1e-9 / 1e12, rel=1e-2)
        assert cells[6] == f"{share:.1%}"
    assert set(model.seen) == {torch.float32, torch.bfloat16}


def test_the_steps_are_the_chapters_networks_at_their_batch_sizes(gpu):
    small = gpu.cases("cpu", True)
    assert [name[0] for name in small] == ["1", "3", "4", "5"]
    model, batch, terms = small["5: posterior of photometry"]
    step = gpu.step_of(model, batch, terms, "cpu", amp=True)
    before = [p.detach().clone() for p in model.parameters()]
    step()
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters()))
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_without_a_gpu_there_is_no_page(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    monkeypatch.setattr(Path, "write_text", lambda *a, **k: pytest.fail("nothing was measured, nothing is written"))
    with pytest.raises(SystemExit, match="no GPU here"): gpu.main()


def test_similarity_row_says_what_a_table_of_all_pairs_would_take(gpu):
    cells = [cell.strip() for cell in gpu.similarity_row("cpu", 100).strip("|").split("|")]
    assert float(cells[5]) == pytest.approx(100 * 100 * int(cells[1]) * 4 / 1e9, abs=0.005)


@pytest.mark.slow
def test_all_of_it_in_tiny_prints_its_page_and_touches_no_other():
    page = SCRIPT.with_suffix(".md")
    before = page.read_bytes() if page.exists() else None
    done = subprocess.run([sys.executable, SCRIPT, "--tiny"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "CPU, tiny: says nothing about speed" in done.stdout
    assert "| deterministic | the same bits |" in done.stdout
    assert (page.read_bytes() if page.exists() else None) == before
