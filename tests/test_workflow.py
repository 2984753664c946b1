"""The workflow: what it runs, what it leaves alone, how it survives; here and through a SLURM of one node."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from toy_chapter import FINISH, write_toy
from waiting import wait

from spectral_core.chapters import run_chapter
from spectral_core.results import read_results

pytest.importorskip("snakemake")
ROOT = Path(__file__).parent.parent
SNAKEMAKE = str(Path(sys.executable).with_name("snakemake"))
# A training that takes its time where a file `slow` lies beside the runs, and says where it went on from.
TRAIN = """
import time
from pathlib import Path
import numpy as np, torch
from spectral_core import train as training
training.CHECKPOINT_SECONDS = 0.0
from spectral_core.train import fit
found = Path("models/last.ckpt").exists()
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Dropout(0.3), torch.nn.Linear(16, 6))
    def forward(self, batch, *, progress=1.0):
        if Path("../../../slow").exists() and Path("models/last.ckpt").exists(): time.sleep(60)
        return {"loss": (self.net(batch) - batch).square().mean()}
torch.manual_seed(seed)
x = np.random.default_rng(seed).normal(size=(64, 6)).astype("f4")
net = Net()
history = fit(net, x, x, n_epoch=4, batch_size=32, seed=seed, run="models", device="cpu", progress=False)
run.metric("weights", [float(p.double().sum()) for p in net.parameters()])
Path("resumed").write_text(str(found))
"""
CLAIM = {"id": "seed", "what": "seed", "paper": 1.0, "where": "§1", "tolerance": {"relative": 0.1}}
JUDGE = "run.metric('seed', seed)\nrun.claim('seed', seed + 1)"


def toy(folder, name, *cells):
    "A chapter of a few seconds."
    return write_toy(folder, name, CLAIM, JUDGE, *cells, FINISH)


def command(folder, *config, profile="local", file="Snakefile"):
    how = ["--profile", str(ROOT / "papers/profiles" / profile)] if profile else []
    return [SNAKEMAKE, "--snakefile", str(ROOT / "papers" / file), *how, "--directory", str(folder), "--config", *config]


def snakemake(folder, *config, **settings):
    done = subprocess.run(command(folder, *config, **settings), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def kill_all(process):
    "kill -9 for a process and for all that it started, whatever session they are in."
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True).stdout.splitlines()
    family = [process.pid]
    for pid in family: family += [int(child) for child, parent in map(str.split, listed) if int(parent) == pid]
    for pid in family: os.kill(pid, signal.SIGKILL)
    process.wait()


def test_killed_half_way_it_goes_on_gives_the_same_numbers_and_then_runs_only_what_changed(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as the workflow does: two threads add up in another order
    chapters = [toy(tmp_path / "papers", name, TRAIN) for name in ("77_first", "78_second")]
    config = ["profile=smoke", f"chapters={[str(c) for c in chapters]}"]
    folders = [tmp_path / "runs/smoke" / c.stem for c in chapters]
    ids = lambda: [read_results(f)["run_id"] for f in folders]
    (tmp_path / "slow").touch()
    with subprocess.Popen(command(tmp_path, *config), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as engine:
        wait(lambda: all((f / "models/last.ckpt").exists() for f in folders))  # two at a time, as the profile says
        kill_all(engine)
    assert not any((f / "results.json").exists() for f in folders)
    (tmp_path / "slow").unlink()

    said = snakemake(tmp_path, *config)  # the same call again: no lock in the way
    assert "78_second begins; follow it in runs/smoke/logs/78_second.log" in said and "1 reproduced" in said
    assert [(f / "resumed").read_text() for f in folders] == ["True", "True"]
    straight = run_chapter(chapters[0], profile="smoke", out=tmp_path / "straight", progress=False)
    assert json.dumps(read_results(folders[0])["metrics"]) == json.dumps(straight["metrics"])
    assert (tmp_path / "straight" / "resumed").read_text() == "False"
    page = (tmp_path / "runs/report-smoke.html").read_text()
    assert "77_first" in page and "78_second" in page

    first = ids()
    for path in (tmp_path / "papers").iterdir(): os.utime(path)  # touched is not changed
    assert "Nothing to be done" in snakemake(tmp_path, *config) and ids() == first
    notebook = json.loads(chapters[1].read_text())
    notebook["cells"][-1]["source"] = "run.metric('more', 1)\nrun.finish();"
    chapters[1].write_text(json.dumps(notebook))
    snakemake(tmp_path, *config)
    second = ids()
    assert second[0] == first[0] and second[1] != first[1] and read_results(folders[1])["metrics"]["more"] == 1
    assert read_results(folders[1].with_name("78_second.former"))["run_id"] == first[1]
    assert (folders[1] / "resumed").read_text() == "False", "checkpoints of older code are not this run's"


def test_one_run_for_each_chapter_source_and_seed_and_a_report_over_them(tmp_path):
    (tmp_path / "spectra").mkdir()
    (tmp_path / "spectra" / "one.fits").touch()
    wanted = ["profile=paper", "chapters=[1, 4]", "sources=[mock, sdss]", "seeds=[0, 3]", "data={'sdss': 'spectra'}"]
    said = snakemake(tmp_path, *wanted, "--dry-run", "--printshellcmds", profile=None)
    for name in ("01_redshift_invariance", "04_desi_outliers"):
        for suffix in ("", "-s3", "-sdss", "-sdss-s3"): assert f"output: runs/paper/{name}{suffix}/results.json" in said
    assert said.count("--source sdss --train mock --seed 3 --data spectra --out runs/paper/0") == 2
    assert said.count("gpu=1") == 8 and said.count("runtime=2880") == 8 and "runs/report-paper.html" in said
    assert said.count("spectra/one.fits") == 4, "one's own spectra are inputs too"
    outside = next(line for line in said.splitlines() if "input:" in line and "01_redshift_invariance.ipynb" in line)
    assert "01_claims.json" in outside and "data_manifests/demo.json" in outside


def test_a_failing_chapter_says_what_failed_and_does_not_stop_the_others(tmp_path):
    bad, good = toy(tmp_path / "papers", "77_bad"), toy(tmp_path / "papers", "78_good")
    bad.write_text(bad.read_text().replace("run.finish();", "1 / 0"))
    chapters = f"chapters={[str(bad), str(good)]}"
    done = subprocess.run(command(tmp_path, "profile=smoke", chapters), capture_output=True, text=True)
    assert done.returncode == 1
    assert "RunError: 77_bad failed: cell 5 raised ZeroDivisionError: division by zero" in done.stdout
    assert (tmp_path / "runs/smoke/78_good/results.json").exists() and not (tmp_path / "runs/report-smoke.html").exists()


def test_make_installs_what_a_target_needs_and_only_once(tmp_path):
    "The Makefile with stand-ins for the tools of the environment: they say how they were called."
    for name in ("Makefile", "constraints.txt", "settings.ini", "setup.py", "pyproject.toml"): shutil.copy(ROOT / name, tmp_path)
    for folder in ("data_manifests", "papers"): shutil.copytree(ROOT / folder, tmp_path / folder)
    tools = tmp_path / ".venv/bin"
    tools.mkdir(parents=True)
    for name in ("python", "pip", "spectral-core", "ruff", "nbdev_test", "snakemake"):
        (tools / name).write_text(f'#!/bin/sh\necho "{name} $*"\n')
        (tools / name).chmod(0o755)

    def make(target):
        done = subprocess.run(["make", target], cwd=tmp_path, capture_output=True, text=True, check=True)
        return [line for line in done.stdout.splitlines() if line.split()[0] in {p.name for p in tools.iterdir()}]

    few, fetch = make("environment")
    [run] = make("demo")
    assert few.endswith("-e .[chapters]") and fetch == "spectral-core fetch demo" and "--profile papers/profiles/local" in run
    assert make("demo") == [run]
    everything = make("test")[0]
    assert everything.endswith(".[chapters,dev,docs,interop,bench]")
    assert not any(line.startswith("pip") for target in ("test", "demo", "docs", "executed") for line in make(target))
    with open(tmp_path / "settings.ini", "a") as file: file.write("# one more requirement\n")
    assert make("test")[0] == everything  # requirements changed
    assert make("demo") == [run]  # the larger set counts for the smaller
    (tools / "snakemake").write_text("#!/bin/sh\necho trouble >&2; exit 1\n")
    done = subprocess.run(["make", "demo"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0 and "trouble" in done.stderr and "report:" not in done.stdout


def test_a_survey_fanned_out_in_shards_is_the_table_of_one_call(tmp_path):
    from spectral_core.simulate.mock import mock_survey
    from spectral_core.spectra.store import write_store

    mock = mock_survey("sdss", n=12, seed=0)
    for name, rows in (("a", mock[:5]), ("b", mock[5:])): write_store(tmp_path / name, rows)
    snakemake(tmp_path, "files=[a, b]", "out=many.ecsv", "shards=2", file="score.smk")
    shards = [json.loads((tmp_path / f"many.ecsv.parts/shard-{k}-of-2.json").read_text()) for k in (1, 2)]
    assert sorted(shard["spectra"] for shard in shards) == [5, 7]
    alone = [sys.executable, "-m", "spectral_core", "score", "a", "b", "--out", "one.ecsv"]
    subprocess.run(alone, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "many.ecsv").read_bytes() == (tmp_path / "one.ecsv").read_bytes()


# ------------------------------------------------------------------ SLURM


def test_the_page_shows_the_profile_that_is_used():
    assert (ROOT / "papers/profiles/slurm/config.yaml").read_text() in (ROOT / "docs/cluster.md").read_text()


@pytest.fixture(scope="module")
def slurm():
    "A SLURM of one node; what to set in the environment to talk to it. Skipped where SLURM or munge are not installed."
    where = os.environ["PATH"] + ":/usr/sbin"
    if any(shutil.which(tool, path=where) is None for tool in ("slurmctld", "slurmd", "munged", "sbatch")):
        pytest.skip("slurm-wlm and munge are not installed")
    folder, script = Path(f"/tmp/slurm-{os.getpid()}"), str(ROOT / "tests/one_node_slurm.sh")  # short: it holds a socket
    try:
        started = subprocess.run([script, "start", folder], capture_output=True, text=True)
        assert started.returncode == 0, started.stderr
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
            patch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
            yield folder
    finally:
        subprocess.run([script, "stop", folder], check=True)
        shutil.rmtree(folder)


SOON = ("--seconds-between-status-checks", "1", "--slurm-init-seconds-before-status-checks", "1", "--latency-wait", "5")


def slurm_jobs(folder):
    "What the controller has written about the jobs that ended."
    return [line for line in (folder / "log/slurmctld").read_text().splitlines() if "WEXITSTATUS" in line]


def test_a_chapter_goes_through_slurm(slurm, tmp_path):
    chapter = toy(tmp_path / "papers", "77_toy")
    said = snakemake(tmp_path, "profile=smoke", f"chapters=['{chapter}']", "gpus=1", *SOON, profile="slurm")
    assert "has been submitted with SLURM jobid" in said
    assert read_results(tmp_path / "runs/smoke/77_toy")["claims"][0]["verdict"] == "reproduced"
    assert slurm_jobs(slurm)[-1].endswith("WEXITSTATUS 0")
    [log] = (tmp_path / ".snakemake/slurm_logs").rglob("*.log")
    assert "mem_mb=4000" in log.read_text() and "gpu=1" in log.read_text() and "runtime=30" in log.read_text()
    assert "gres:gpu:1" in subprocess.run(["scontrol", "show", "job", log.stem], capture_output=True, text=True).stdout


@pytest.mark.slow
@pytest.mark.chapter
def test_chapter_1_goes_through_slurm(slurm, tmp_path):
    snakemake(tmp_path, "profile=smoke", "chapters=[1]", *SOON, profile="slurm")
    results = read_results(tmp_path / "runs/smoke/01_redshift_invariance")
    assert results["profile"] == "smoke" and results["claims"] and (tmp_path / "runs/report-smoke.html").exists()
    assert slurm_jobs(slurm)[-1].endswith("WEXITSTATUS 0")
