"""What `fit` promises: the right loop, the same bits after a kill, and a clear word when something is wrong."""

import errno
import json
import os
import pickle
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ddp_target import main as fit_alone
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from spectral_core import train as train_module
from spectral_core.core import ConfigError, DataError, ModelFileError, RunError, run_lock
from spectral_core.models.flows import FlowConfig, MaskedAutoregressiveFlow
from spectral_core.spectra.container import Spectra
from spectral_core.spectra.surveys import SDSS
from spectral_core.train import fit
from spectral_core.training.batching import batches, fingerprint, partition, usable_rows
from spectral_core.training.checkpoint import load_checkpoint, save_checkpoint, source_fingerprints
from spectral_core.training.schedule import FitConfig, Stage, learning_rate

HERE = Path(__file__).parent
QUIET = {"progress": False, "device": "cpu"}


class Line(nn.Module):
    "y = slope·x + offset, remembering how it was called."

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.calls = []

    def forward(self, batch, **terms):
        x, y = batch[:, :1].nan_to_num(), batch[:, 1:2]
        model = self.linear(x)
        self.calls.append((self.training, terms, x[:, 0].tolist(), model.dtype))
        return {"loss": (y - model).float().square().mean()}


def points(n=120, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    return np.stack([x, 3 * x - 1 + 0.1 * rng.normal(size=n)], 1).astype("f4")


def noisy_spectra(n, survey="sdss"):
    rng = np.random.default_rng(0)
    flux = 1 + 0.1 * rng.normal(size=(n, 3921)).astype("f4")
    return Spectra(flux, np.full_like(flux, 100), rng.uniform(0.01, 0.3, n), survey)


@pytest.fixture(autouse=True)
def every_epoch(monkeypatch):
    "Write a checkpoint after every epoch, however short."
    monkeypatch.setattr(train_module, "CHECKPOINT_SECONDS", 0.0)


# the loop


def test_every_row_is_met_once_per_epoch_in_a_new_order():
    model, data = Line(), points()
    fit(model, data, data[:10], n_epoch=3, batch_size=32, **QUIET)
    rows = [x for training, _, x, _ in model.calls if training]
    epochs = [sum(rows[4 * e : 4 * e + 4], []) for e in range(3)]
    assert [len(x) for x in rows] == [30] * 12
    for met in epochs: np.testing.assert_array_equal(np.sort(met), np.sort(data[:, 0]))
    assert epochs[0] != epochs[1] != epochs[2]


def test_stages_set_the_terms_and_progress_runs_within_a_stage():
    stages = [Stage("plain", 1), Stage("full", 2, {"weight": 2.0})]
    model = Line()
    history = fit(model, points(64), points(40, 1), stages=stages, batch_size=32, **QUIET)
    calls = [(terms.get("weight"), terms["progress"]) for training, terms, _, _ in model.calls if training]
    assert calls == [(None, 0.0), (None, 0.5), (2.0, 0.0), (2.0, 0.25), (2.0, 0.5), (2.0, 0.75)]
    assert all(terms == {"progress": 1.0, "weight": 2.0} for training, terms, _, _ in model.calls if not training)
    assert history["stage"].tolist() == ["plain", "full", "full"]
    model.calls.clear()
    fit(model, points(64), points(40, 1), stages=[Stage("still", 1, {"progress": 0.3})], **QUIET)
    assert {terms["progress"] for _, terms, _, _ in model.calls} == {0.3}


def test_it_finds_the_least_squares_line_and_reports_its_loss():
    data = points(400)
    model = Line()
    history = fit(model, data, data, n_epoch=40, batch_size=100, lr=0.1, **QUIET)
    slope, offset = np.polyfit(*data.astype("f8").T, 1)
    assert model.linear.weight.item() == pytest.approx(slope, abs=5e-3)
    assert model.linear.bias.item() == pytest.approx(offset, abs=5e-3)
    best = np.mean((data[:, 1] - slope * data[:, 0] - offset) ** 2)
    assert history.best == pytest.approx(best, rel=1e-3)


def test_best_weights_of_the_last_stage_are_kept_and_patience_ends_it():
    "With a learning rate far too high for the end, the last epoch is not the best one."
    model, valid = Line(), points(50, 1)
    settings = dict(batch_size=8, lr=0.5, schedule="constant", stages=[Stage("a", 2), Stage("b", 60)], patience=4)
    history = fit(model, points(64), valid, **settings, **QUIET)
    last_stage = history["valid_loss"][2:]
    assert history.best_epoch == 2 + np.argmin(last_stage)
    assert len(history) == history.best_epoch + 5 < 62
    loss = model(torch.as_tensor(valid))["loss"].item()
    assert loss == pytest.approx(history.best, rel=1e-4)
    assert loss < last_stage[-1]
    assert not model.training


def test_seed_decides_and_the_users_random_state_is_left_alone():
    def weights(seed, junk):
        torch.manual_seed(junk)
        model = Line()
        before = torch.random.get_rng_state()
        fit(model, points(), points(20, 1), n_epoch=2, batch_size=16, seed=seed, **QUIET)
        assert torch.equal(torch.random.get_rng_state(), before)
        return model.linear.weight.item()

    assert weights(0, junk=1) == weights(0, junk=2) != weights(1, junk=1)


@pytest.mark.parametrize("amp", [False, True])
def test_amp_is_really_active_inside_the_model(amp):
    model = Line()
    fit(model, points(), points(20, 1), n_epoch=1, amp=amp, **QUIET)
    assert {dtype for *_, dtype in model.calls} == {torch.bfloat16 if amp else torch.float32}
    assert model.linear.weight.dtype == torch.float32


@pytest.mark.parametrize("amp", [False, True])
def test_amp_reaches_the_networks_of_an_autoencoder_and_not_its_losses(amp):
    "Convolutions and linear layers in bfloat16, every loss and every weight in float32."
    from spectral_core.models.autoencoder import AutoencoderConfig, RedshiftAutoencoder

    seen, spectra = {"network": set(), "loss": set()}, noisy_spectra(6)
    model = RedshiftAutoencoder("sdss", 2, AutoencoderConfig(hidden=(8,)))
    for layer in model.modules():
        if not isinstance(layer, nn.Conv1d | nn.Linear): continue
        layer.register_forward_hook(lambda module, inputs, out: seen["network"].add(out.dtype))
    model.register_forward_hook(lambda module, inputs, out: seen["loss"].update(v.dtype for v in out.values()))
    stages = [Stage("all", 1, {"similarity": 1.0, "consistency": 1.0})]
    fit(model, spectra, spectra, stages=stages, batch_size=3, amp=amp, **QUIET)
    assert seen == {"network": {torch.bfloat16 if amp else torch.float32}, "loss": {torch.float32}}
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_gradients_are_clipped():
    class Steep(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(2))

        def forward(self, batch, *, progress=1.0): return 1e6 * (batch @ self.w).mean()

    seen = []
    model = Steep()
    step = torch.optim.Adam.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", lambda self: (seen.append(model.w.grad.norm().item()), step(self))[1])
        fit(model, points(), points(20, 1), n_epoch=1, clip=0.5, **QUIET)
    assert seen == pytest.approx([0.5] * len(seen), rel=1e-3)


def test_learning_rate_is_torchs_one_cycle():
    optimiser = torch.optim.Adam([nn.Parameter(torch.ones(1))])
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=1000)
    theirs = []
    for _ in range(1000):
        theirs.append(scheduler.get_last_lr()[0])
        optimiser.step()
        if len(theirs) < 1000: scheduler.step()
    np.testing.assert_allclose([learning_rate(k / 999, 1e-2) for k in range(1000)], theirs, atol=5e-5)


def test_bad_settings_are_refused():
    for bad in ({"batch_size": 0}, {"lr": -1.0}, {"schedule": "step"}, {"stages": ()}, {"stages": (Stage("a", 0),)}):
        with pytest.raises(ConfigError): FitConfig(**bad)
    with pytest.raises(ConfigError, match="batch_size"): fit(Line(), points(), points(), batch_size=2.5, **QUIET)


def test_rows_that_cannot_be_used_are_counted_not_lost():
    data = points()
    data[[3, 7], 1] = np.nan, np.inf
    model = Line()
    history = fit(model, data, points(20, 1), n_epoch=1, **QUIET)
    assert history.excluded == {"train": 2, "valid": 0}
    assert sum(len(x) for training, _, x, _ in model.calls if training) == 118
    with pytest.raises(DataError, match="none of the 2 rows of the valid data"):
        fit(Line(), data, data[[3, 7]], n_epoch=1, **QUIET)


def test_flow_is_standardised_before_its_first_step_and_pairs_are_data():
    x = 5 + 2 * np.random.default_rng(0).normal(size=(100, 2)).astype("f4")
    flow = MaskedAutoregressiveFlow(2, FlowConfig(context=1, n_layer=1, n_hidden=8))
    fit(flow, (x, x[:, :1]), (x, x[:, :1]), n_epoch=1, **QUIET)
    torch.testing.assert_close(flow.shift, torch.as_tensor(x.mean(0)))
    torch.testing.assert_close(flow.context_scale, torch.as_tensor(x[:, :1].std(0, ddof=1)))


@pytest.mark.parametrize("n", [1, 2])
def test_fault_15_tiny_samples_can_be_fitted_and_empty_ones_are_refused(n):
    assert len(fit(Line(), points(n), points(n), n_epoch=2, batch_size=128, **QUIET)) == 2
    with pytest.raises(DataError, match="none of the 0 rows"): fit(Line(), points(0), points(n), **QUIET)


def test_fault_41_batches_do_not_depend_on_threads_and_weights_hardly():
    parts = partition(np.random.default_rng(0).permutation(100), 16)
    data = torch.arange(100)
    assert all(torch.equal(batch, data[rows]) for rows, batch in batches(data, parts))
    flows = []
    for n_thread in (1, 2):
        torch.set_num_threads(n_thread)
        flow = MaskedAutoregressiveFlow(3, FlowConfig(n_layer=2))
        x = np.random.default_rng(0).normal(size=(600, 3)).astype("f4")
        fit(flow, x[:500], x[500:], n_epoch=2, **QUIET)
        flows.append(flow.state_dict())
    torch.set_num_threads(1)
    for name, value in flows[0].items(): torch.testing.assert_close(value, flows[1][name], atol=1e-4, rtol=0)


# runs


def test_a_run_folder_holds_weights_record_and_history(tmp_path):
    model = Line()
    history = fit(model, points(), points(20, 1), n_epoch=2, run=tmp_path, **QUIET)
    assert load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys()
    record = json.loads((tmp_path / "config.json").read_text())
    assert record["fit"]["seed"] == 0
    assert "spectral_core.train" in record["code"]
    assert json.loads((tmp_path / "history.json").read_text())["epochs"] == history.epochs
    subprocess.run(["sha256sum", "-c", "model.safetensors.sha256"], cwd=tmp_path, check=True, capture_output=True)
    model.calls.clear()
    again = fit(model, points(), points(20, 1), n_epoch=2, run=tmp_path, **QUIET)
    assert again.epochs == history.epochs
    assert not model.calls, "a complete run must not train again"


@pytest.fixture(scope="module")
def kills(tmp_path_factory):
    "The report of kill_target.py, which kills about thirty real fits."
    command = [sys.executable, HERE / "kill_target.py", tmp_path_factory.mktemp("kills")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", ["dropout", "maf", "autoencoder"])
def test_fault_23_killed_at_any_step_ends_with_the_same_bits(kills, kind):
    steps = {name: result for name, result in kills[kind].items() if name.startswith("step")}
    assert len(steps) == 3
    assert all(result == [True, True] for result in steps.values()), steps


def test_fault_24_killed_while_writing_ends_with_the_same_bits(kills):
    writes = {name: result for name, result in kills["dropout"].items() if not name.startswith("step")}
    assert len(writes) == 20
    assert all(result == [True, True] for result in writes.values()), writes


def test_fault_22_full_disk_leaves_the_old_checkpoint(tmp_path):
    save_checkpoint(tmp_path, {"epoch": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(RunError, match="disk is full"): save_checkpoint(tmp_path, {"weights": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert load_checkpoint(tmp_path) == {"epoch": 1}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.ckpt"]


def test_fault_22_a_fit_says_that_the_disk_is_full(tmp_path, monkeypatch):
    def full(self, data): raise OSError(errno.ENOSPC, "No space left on device")

    fit(Line(), points(), points(20, 1), n_epoch=1, run=tmp_path, **QUIET)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RunError, match="could not write .*last.ckpt: the disk is full"):
        fit(Line(), points(), points(20, 1), n_epoch=1, run=tmp_path / "other", **QUIET)


def test_fault_22_a_run_folder_that_cannot_be_made_is_noticed_before_the_first_step(tmp_path):
    (tmp_path / "file").write_text("in the way")
    model = Line()
    with pytest.raises(RunError, match="cannot use .*file/run as a run folder"):
        fit(model, points(), points(20, 1), n_epoch=1, run=tmp_path / "file" / "run", **QUIET)
    assert not model.calls


def damage(path, kind, seed):
    data = bytearray(path.read_bytes())
    where = int(np.random.default_rng(seed).integers(len(data)))
    if kind == "flip": data[where] ^= 1 << (where % 8)
    path.write_bytes(data if kind == "flip" else data[:where])


@pytest.mark.parametrize("kind", ["flip", "cut"])
@pytest.mark.parametrize("seed", range(5))
def test_fault_25_damaged_checkpoint_gives_way_to_the_one_before_loudly(tmp_path, kind, seed):
    for epoch in (1, 2): save_checkpoint(tmp_path, {"epoch": epoch, "weights": torch.ones(500)})
    damage(tmp_path / "last.ckpt", kind, seed)
    with pytest.warns(RuntimeWarning, match="last.ckpt is damaged.* going on from the older prev.ckpt"):
        assert load_checkpoint(tmp_path)["epoch"] == 1
    damage(tmp_path / "prev.ckpt", kind, seed)
    with pytest.raises(ModelFileError, match="no usable checkpoint"): load_checkpoint(tmp_path)


def test_fault_25_a_run_with_a_damaged_checkpoint_ends_with_the_same_bits(tmp_path):
    outcome = []
    for name in ("whole", "damaged"):
        torch.manual_seed(0)
        stages = [Stage("only", 3)]
        if name == "damaged":
            with pytest.MonkeyPatch.context() as patch:  # stop after the second epoch
                patch.setattr(train_module, "_finished", lambda state: len(state.history) >= 2)
                fit(Line(), points(), points(20, 1), stages=stages, run=tmp_path / name, **QUIET)
            damage(tmp_path / name / "last.ckpt", "flip", 0)
            with pytest.warns(RuntimeWarning, match="damaged"):
                fit(Line(), points(), points(20, 1), stages=stages, run=tmp_path / name, **QUIET)
        else:
            fit(Line(), points(), points(20, 1), stages=stages, run=tmp_path / name, **QUIET)
        outcome.append((tmp_path / name / "model.safetensors").read_bytes())
    assert outcome[0] == outcome[1]


class Bomb:
    def __init__(self, canary): self.canary = canary

    def __reduce__(self): return (Path.touch, (self.canary,))


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_fault_26_malicious_checkpoint_is_refused_and_nothing_runs(tmp_path, how):
    import hashlib
    import io

    canary, buffer = tmp_path / "canary", io.BytesIO()
    torch.save({"model": Bomb(canary)}, buffer) if how == "torch" else buffer.write(pickle.dumps(Bomb(canary)))
    data = buffer.getvalue()
    (tmp_path / "last.ckpt").write_bytes(hashlib.sha256(data).hexdigest().encode() + b"\n" + data)
    with pytest.raises(ModelFileError, match="no checkpoint of ours"): load_checkpoint(tmp_path)
    assert not canary.exists()


def test_fault_28_other_settings_or_data_are_refused_with_the_difference(tmp_path):
    data, valid = points(), points(20, 1)
    fit(Line(), data, valid, n_epoch=1, run=tmp_path, **QUIET)
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(ConfigError, match=r"fit.lr: 0.001 -> 0.01"):
        fit(Line(), data, valid, n_epoch=1, lr=0.01, run=tmp_path, **QUIET)
    with pytest.raises(ConfigError, match=r"fit.stages.0.n_epoch: 1 -> 2"):
        fit(Line(), data, valid, n_epoch=2, run=tmp_path, **QUIET)
    other = data.copy()
    other[17, 1] += 1e-6
    with pytest.raises(ConfigError, match=r"data.train: 120:"): fit(Line(), other, valid, n_epoch=1, run=tmp_path, **QUIET)
    with pytest.raises(ConfigError, match=r"model.class: Line -> "):
        fit(MaskedAutoregressiveFlow(2), data, valid, n_epoch=1, run=tmp_path, **QUIET)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert len(fit(Line(), data, valid, n_epoch=2, lr=0.01, run=tmp_path, force=True, **QUIET)) == 2
    assert (tmp_path / "model.safetensors").read_bytes() != before


def test_fault_28_another_survey_of_the_same_name_is_another_model(tmp_path):
    "z_max decides where augments go: it belongs to what a run is."
    from spectral_core.models.autoencoder import AutoencoderConfig, RedshiftAutoencoder

    def run(survey, **config):
        model = RedshiftAutoencoder(survey, 2, AutoencoderConfig(hidden=(4,), **config))
        return fit(model, noisy_spectra(4, survey), noisy_spectra(4, survey), n_epoch=1, run=tmp_path, **QUIET)

    run(SDSS)
    assert len(run("sdss")) == 1
    with pytest.raises(ConfigError, match=r"model.arguments.survey.z_max: 0.5 -> 0.4"): run(replace(SDSS, z_max=0.4))
    with pytest.raises(ConfigError, match=r"model.arguments.config.sigma_s: 0.1 -> 0.2"): run(SDSS, sigma_s=0.2)


def test_fault_28_other_code_is_refused_but_comments_and_layout_are_not_code(tmp_path, monkeypatch):
    package = tmp_path / "toy_model"
    package.mkdir()
    helper = "def half(x):\n    return x / 2\n"
    (package / "helper.py").write_text(helper)
    (package / "__init__.py").write_text(
        "import torch\nfrom torch import nn\nfrom .helper import half\n\n\nclass Toy(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.w = nn.Parameter(torch.ones(2))\n\n"
        "    def forward(self, batch, progress=1.0):\n        return half((batch @ self.w).square().mean())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def run(text):
        (package / "helper.py").write_text(text)
        for name in ("toy_model", "toy_model.helper"): sys.modules.pop(name, None)
        import linecache

        linecache.checkcache()
        from toy_model import Toy

        return fit(Toy(), points(), points(20, 1), n_epoch=1, run=tmp_path / "run", **QUIET)

    run(helper)
    run("# a comment\n\n" + helper.replace("x / 2", "(x / 2)  # halve"))
    with pytest.raises(ConfigError, match=r"code.toy_model.helper: "): run(helper.replace("2", "3"))


def test_code_of_an_autoencoder_covers_everything_it_imports_from_us():
    from spectral_core.models.autoencoder import AutoencoderConfig, RedshiftAutoencoder

    code = source_fingerprints(RedshiftAutoencoder("sdss", 2, AutoencoderConfig(hidden=(4,))), "spectral_core.train")
    wanted = ("train", "training.checkpoint", "core", "models.similarity", "models.networks", "spectra.wavelength")
    assert {f"spectral_core.{name}" for name in wanted} <= code.keys()


def test_fault_29_absent_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="'cuda' is not available"): fit(Line(), points(), points(), device="cuda")
    fit(Line(), points(), points(20, 1), n_epoch=1, progress=False, device="auto")


def test_fault_31_out_of_memory_suggests_a_batch_size_and_keeps_the_checkpoint(tmp_path):
    class Hungry(Line):
        limit = 1000

        def forward(self, batch, **terms):
            if len(batch) > self.limit: raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7 GiB")
            return super().forward(batch, **terms)

    model = Hungry()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "_finished", lambda state: len(state.history) >= 1)
        fit(model, points(), points(20, 1), n_epoch=2, batch_size=64, run=tmp_path, **QUIET)
    kept = (tmp_path / "last.ckpt").read_bytes()
    model.limit = 40
    with pytest.raises(RunError, match="batch_size=64 on cpu; the checkpoint is kept.*batch_size=32"):
        fit(model, points(), points(20, 1), n_epoch=2, batch_size=64, run=tmp_path, **QUIET)
    assert (tmp_path / "last.ckpt").read_bytes() == kept


def test_fault_32_loss_not_a_number_stops_before_the_step_and_names_the_rows(tmp_path):
    class Fragile(Line):
        explode_at = 10**9

        def forward(self, batch, **terms):
            out = super().forward(batch, **terms)
            n = sum(training for training, *_ in self.calls)
            return {"loss": out["loss"] * (float("nan") if n == self.explode_at else 1)}

    data = points()
    data[55, 1] = 1e4
    model = Fragile()
    model.explode_at = 6  # four steps an epoch: the second step of the second epoch
    with pytest.raises(RunError, match=r"loss nan.* in epoch 2, step 2.*Largest rows: \d+ \(norm"):
        fit(model, data, points(20, 1), n_epoch=4, batch_size=30, run=tmp_path, **QUIET)
    assert all(torch.isfinite(w).all() for w in model.parameters())
    state = load_checkpoint(tmp_path)
    assert len(json.loads(state["history"])["epochs"]) == 1
    assert all(torch.isfinite(w).all() for w in state["model"].values())
    data[55, 1] = 1e30
    with pytest.raises(RunError, match=r"loss inf.*Largest rows: 55 \(norm 1e\+30\)"):
        fit(Line(), data, points(20, 1), n_epoch=1, batch_size=120, **QUIET)


def test_fault_32_a_validation_loss_that_is_no_number_ends_the_fit_as_well(tmp_path):
    valid = points(20, 1)
    valid[3, 1] = 1e30
    with pytest.raises(RunError, match="validation loss inf after epoch 1"):
        fit(Line(), points(), valid, n_epoch=2, run=tmp_path, **QUIET)
    assert json.loads(load_checkpoint(tmp_path)["history"])["epochs"] == []
    assert not (tmp_path / "model.safetensors").exists()


def test_fault_39_one_run_per_folder_and_a_kill_frees_the_lock(tmp_path):
    hold = """if True:
        import sys, time
        from spectral_core.core import run_lock
        with run_lock(sys.argv[1]): print("held", flush=True); time.sleep(60)
    """
    with subprocess.Popen([sys.executable, "-c", hold, tmp_path], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=f"in use by pid {other.pid}"):
            fit(Line(), points(), points(20, 1), n_epoch=1, run=tmp_path, **QUIET)
        other.kill()
    assert len(fit(Line(), points(), points(20, 1), n_epoch=1, run=tmp_path, **QUIET)) == 1
    with run_lock(tmp_path): pass


# processes


def test_two_processes_do_what_one_does(tmp_path):
    for name in ("one", "two"): (tmp_path / name).mkdir()
    fit_alone(tmp_path / "one")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([*torchrun, HERE / "ddp_target.py", tmp_path / "two"], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "process 0 of 2" in (tmp_path / "two/log.txt").read_text()
    (one, *losses), (two, *same_losses) = (torch.load(tmp_path / name / "out.pt") for name in ("one", "two"))
    for name, value in one.items(): torch.testing.assert_close(two[name], value, atol=2e-5, rtol=0)
    np.testing.assert_allclose(same_losses, losses, atol=1e-4)
    assert (tmp_path / "two/run/model.safetensors").exists()


def test_a_launcher_that_starts_too_few_processes_is_noticed(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    with pytest.raises(RunError, match="WORLD_SIZE is 2, but 1"): fit(Line(), points(), points(), **QUIET)


# data


@settings(derandomize=True, max_examples=80, deadline=None)
@given(st.integers(1, 400), st.integers(1, 64), st.integers(1, 8))
def test_batches_hold_every_row_once_and_work_for_every_process(n, batch_size, world):
    rows = np.random.default_rng(n).permutation(1000)[:n]
    if n < world:
        with pytest.raises(DataError, match=f"{n} usable rows are too few"): partition(rows, batch_size, world)
        return
    parts = partition(rows, batch_size, world)
    sizes = [len(part) for part in parts]
    assert np.concatenate(parts).tolist() == rows.tolist() and max(sizes) - min(sizes) <= 1 and min(sizes) >= world
    assert max(sizes) <= max(batch_size, 2 * world - 1)


@settings(derandomize=True, max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=4))
def test_every_epoch_belongs_to_one_stage(lengths):
    config = FitConfig(tuple(Stage(str(i), n) for i, n in enumerate(lengths)))
    found = [(stage.name, before) for stage, before in map(config.stage_at, range(config.n_epoch))]
    assert found == [(str(i), k) for i, n in enumerate(lengths) for k in range(n)]
    with pytest.raises(IndexError): config.stage_at(config.n_epoch)


@pytest.mark.parametrize("schedule", ["onecycle", "cosine", "exponential", "constant"])
def test_the_learning_rate_has_its_peak_and_stays_positive(schedule):
    rates = [learning_rate(t, 0.01, schedule) for t in np.linspace(0, 0.999, 1000)]
    assert max(rates) == pytest.approx(0.01, rel=1e-4) and min(rates) > 0
    if schedule in ("onecycle", "cosine"): assert rates[-1] < 1e-6


def test_the_exponential_rate_loses_one_percent_in_each_of_two_hundred_epochs():
    rates = [learning_rate(epoch / 200, 1e-3, "exponential") for epoch in range(201)]
    assert np.allclose(np.divide(rates[1:], rates[:-1]), 0.99)


def test_fingerprint_sees_every_bit_of_small_data_and_the_length_of_large():
    x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    seen = {fingerprint(x), fingerprint(x.double()), fingerprint(x[:99]), fingerprint(x.flip(0))}
    assert len(seen) == 4
    assert fingerprint(x) == fingerprint(x.clone())
    for row in (0, 4097, 19_999):  # any one value of a sample as large as a chapter's
        x = torch.zeros(20_000, 2)
        x[row, 1] = 1e-30
        assert fingerprint(x) != fingerprint(torch.zeros(20_000, 2))
    large = torch.zeros(10_000, 1)
    assert fingerprint(large, n_sample=100) != fingerprint(large[:-1], n_sample=100)


def test_usable_rows_follow_good_where_the_data_has_it():
    class Flagged:
        good = np.array([True, False, True])

        def __len__(self): return 3

    assert usable_rows(Flagged()).tolist() == [0, 2]
