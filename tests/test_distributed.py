"""One fit in several processes: the same numbers, everybody there, nobody left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from launch_target import main as launched
from waiting import wait

from spectral_core.cli import main
from spectral_core.core import ConfigError, RunError, run_lock
from spectral_core.models.autoencoder import COMPACT, RedshiftAutoencoder
from spectral_core.pretrained import load_model, save_model
from spectral_core.spectra.container import Spectra
from spectral_core.spectra.store import write_store
from spectral_core.train import fit
from spectral_core.training.checkpoint import load_weights
from spectral_core.training.distributed import fit_on_gpus, fit_store, read_settings
from spectral_core.training.schedule import FitConfig, Stage

HERE = Path(__file__).parent
SMALL = {"batch_size": 12, "lr": 1e-3, "device": "cpu", "progress": False}


def some_spectra(n=50, seed=0):
    "Normalised, with lines of different strength, masked pixels, and one redshift that is not known."
    rng = np.random.default_rng(seed)
    flux = 1 + 0.1 * rng.normal(size=(n, 3921)) + rng.exponential(size=(n, 1)) * (np.arange(3921) % 400 < 8)
    z = np.where(np.arange(n) == 7, np.nan, rng.uniform(0.01, 0.3, n))
    return Spectra(flux, np.full_like(flux, 100), z, "sdss", mask=rng.random(flux.shape) < 0.05, id=100 + np.arange(n))


def network():
    torch.manual_seed(0)
    return RedshiftAutoencoder("sdss", 2, COMPACT)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    "The same autoencoder fitted here and in two processes: {name: (model, history, run)}."
    folder, found, data = tmp_path_factory.mktemp("pair"), {}, some_spectra()
    stages = [Stage("fidelity", 1), Stage("more", 1, {"progress": 0.5})]
    for name, how in {"here": fit, "two": lambda *a, **k: fit_on_gpus(*a, **k, processes=2)}.items():
        model = network()
        history = how(model, data[:38], data[38:], stages=stages, seed=3, run=folder / name, **SMALL)
        found[name] = model, history, folder / name
    return found


def test_two_processes_fit_an_autoencoder_as_one_does(pair):
    (one, history, _), (two, same, run) = pair.values()
    for name in ("train_loss", "valid_loss"): np.testing.assert_allclose(same[name], history[name], rtol=1e-4)
    assert same.excluded == history.excluded == {"train": 1, "valid": 0}
    data = some_spectra().to("cpu")
    with torch.no_grad(): torch.testing.assert_close(two.encode(*data), one.encode(*data), rtol=0, atol=2e-3)
    for name, value in load_weights(run / "model.safetensors").items(): torch.testing.assert_close(two.state_dict()[name], value)
    assert not two.training


def test_both_processes_were_there_and_the_copies_of_the_data_are_gone(pair):
    run = pair["two"][2]
    log = (run / "launch/log.txt").read_text()
    assert "process 0 of 2 on cpu" in log and "process 1 of 2 on cpu" in log
    assert sorted(p.name for p in (run / "launch").iterdir()) == ["fit.json", "log.txt", "model"]
    card = json.loads((run / "trained/card.json").read_text())
    assert (card["processes"], card["n_train"], card["n_valid"]) == (2, 38, 12)
    assert card["valid_loss"] == pair["two"][1].best


def test_a_run_of_two_processes_is_the_same_run_for_one(pair, monkeypatch):
    "Equal records: the finished run returns at once, in whatever number of processes; other settings are refused."
    _, history, run = pair["two"]
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("a finished run must not start processes"))
    stages, model, data = [Stage("fidelity", 1), Stage("more", 1, {"progress": 0.5})], network(), some_spectra()
    again = fit_on_gpus(model, data[:38], data[38:], stages=stages, seed=3, run=run, processes=2, **SMALL)
    assert again.epochs == history.epochs
    for name, value in pair["two"][0].state_dict().items(): assert torch.equal(model.state_dict()[name], value)
    with pytest.raises(ConfigError, match="fit.seed: 3 -> 4"):
        fit_on_gpus(model, data[:38], data[38:], stages=stages, seed=4, run=run, processes=2, **SMALL)


def test_words_of_a_failing_process_reach_the_caller(tmp_path):
    data = some_spectra(24).replace(flux=30 * some_spectra(24).flux)
    with pytest.raises(RunError, match=r"in 2 processes failed: DataError: the fluxes in .* have a median of .*normalise first"):
        fit_on_gpus(network(), data, data, run=tmp_path, processes=2, n_epoch=1, **SMALL)


def running(run):
    try:
        with run_lock(run): return False
    except RunError:
        return True


@pytest.mark.slow
def test_processes_end_with_a_parent_that_was_killed_and_the_run_goes_on_from_there(tmp_path):
    whole, history = launched(tmp_path / "whole", 1)
    command = [sys.executable, HERE / "launch_target.py", tmp_path / "run", "2"]
    with subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}) as parent:
        try:
            wait(lambda: (tmp_path / "run/history.json").exists() and running(tmp_path / "run"))
            time.sleep(1)
        finally:
            parent.send_signal(signal.SIGKILL)
    assert parent.returncode == -signal.SIGKILL
    wait(lambda: not running(tmp_path / "run"), 60)
    assert not (tmp_path / "run/model.safetensors").exists(), "it ended before it was killed: nothing is shown"
    flow, again = launched(tmp_path / "run", 2)
    np.testing.assert_allclose(again["valid_loss"], history["valid_loss"], atol=2e-4)
    for name, value in whole.state_dict().items(): torch.testing.assert_close(flow.state_dict()[name], value, atol=2e-3, rtol=0)


# the command


@pytest.fixture
def store(tmp_path):
    return write_store(tmp_path / "store", some_spectra(60)).folder


def test_command_fits_a_store_by_its_own_split_and_leaves_a_model_to_load(tmp_path, store, capsys):
    first = save_model(network(), tmp_path / "first")
    words = ["--n-epoch", 1, "--batch-size", 20, "--seed", 5, "--device", "cpu"]
    main_quietly("fit", store, "--model", first, "--out", tmp_path / "run", *words)
    assert str(tmp_path / "run/trained") in capsys.readouterr().out
    model, parts = network(), some_spectra(60).split(seed=5)
    fit(model, *parts[:2], n_epoch=1, batch_size=20, seed=5, device="cpu", progress=False)
    found = load_model(tmp_path / "run/trained")
    for name, value in model.state_dict().items(): torch.testing.assert_close(found.state_dict()[name], value)
    settings = read_settings(tmp_path / "run/config.json")
    assert settings == FitConfig((Stage("fit", 1),), batch_size=20, seed=5)


def main_quietly(*words):
    "The command line in this process; its exit code, or None."
    try:
        main([str(word) for word in words])
    except SystemExit as end:
        return end.code


@pytest.mark.parametrize(("words", "why"), [
    (["--processes", "4"], "4 processes were asked for, and 1 is at work: start them with torchrun --nproc_per_node=4"),
    (["--model", "sdsss"], "no model 'sdsss' in this package; did you mean 'sdss'?"),
    (["--model", "sdss_flow"], "a MaskedAutoregressiveFlow learns from arrays"),
    (["--settings", "absent.json"], "absent.json holds no settings of a fit"),
    (["--lr", "-1"], "lr"),
])
def test_command_refuses_with_one_line(tmp_path, store, capsys, words, why):
    assert main_quietly("fit", store, "--out", tmp_path / "run", "--device", "cpu", "--model", "sdss", *words) == 2
    said = capsys.readouterr().err
    assert why in said and said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_spectra_of_another_grid_are_refused_before_the_first_step(tmp_path):
    other = some_spectra(10)
    boss = Spectra(np.ones((10, 4686)), np.ones((10, 4686)), other.z, "boss")
    folder = write_store(tmp_path / "boss", boss).folder
    with pytest.raises(Exception, match="rebin them or load another model"):
        fit_store(folder, "sdss", tmp_path / "run", device="cpu")
