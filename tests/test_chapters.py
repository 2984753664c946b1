"""The strict runner: what it refuses, what it does not believe, and what it leaves behind."""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from matplotlib.figure import Figure
from nbformat.v4 import new_markdown_cell
from toy_chapter import FINISH, PARAMETERS, write_toy
from waiting import wait

from spectral_core.chapters import (
    CHOICES,
    CONTRACT,
    check_parameters,
    data_fingerprint,
    find_chapter,
    list_chapters,
    read_parameters,
    result_problems,
    run_chapter,
)
from spectral_core.core import ConfigError, DataError, RunError, run_lock, write_json
from spectral_core.results import ChapterRun

WORK = """
import numpy as np
run.metric("rows", n_rows)
run.metric("draw", np.random.default_rng(seed).normal(size=3) * scale)
run.metric("nothing", float("nan"))
run.claim("rows", n_rows)
"""
FIGURE = """
import matplotlib.pyplot as plt
figure, axes = plt.subplots(figsize=(3, 2))
axes.plot([4000, 5000, 6000], [1, 3, 2])
run.figure(figure, "spectrum", "Three pixels.")
"""
CLAIM = {"id": "rows", "what": "rows", "paper": 10.0, "where": "§1", "tolerance": {"relative": 0.1}, "no_effect": 0.0}
FAULT = "exec(open('fault.py').read()) if __import__('os').path.exists('fault.py') else None"
LOOK = """
import json, os, sys, matplotlib
seen = [sys.executable, os.getcwd(), matplotlib.get_backend().lower(), os.environ.get("OMP_NUM_THREADS")]
json.dump(seen, open("seen.json", "w"))
"""


def toy(folder, *cells, **settings):
    "A chapter of the given cells in `folder`."
    return write_toy(folder, "77_toy", CLAIM, *cells, **settings)


def run(notebook, out, **settings):
    return run_chapter(notebook, out=out, profile="smoke", progress=False, **settings)


def names(folder):
    return sorted(p.name for p in Path(folder).iterdir())


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    "A complete run, its notebook and its results."
    folder = tmp_path_factory.mktemp("good")
    notebook = toy(folder, WORK, FAULT, FIGURE, LOOK, FINISH)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLBACKEND", "Agg")  # which empties all figures if it reaches the kernel
        patch.setenv("OMP_NUM_THREADS", "1")
        return notebook, folder / "out", run(notebook, folder / "out", seed=3, parameters={"scale": "2"})


def test_a_complete_run_leaves_everything(good):
    notebook, out, results = good
    assert names(out) == ["77_executed.ipynb", "figures", "report.html", "results.json", "run.lock", "seen.json"]
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(results))
    assert results["parameters"]["scale"] == 2.0 and results["parameters"]["strict"] is True
    assert results["metrics"]["nothing"] is None and results["claims"][0]["verdict"] == "reproduced"
    assert {"results", "core"} <= {m.split(".")[-1] for m in results["code"]}
    assert (out / "figures" / "spectrum.png").read_bytes().startswith(b"\x89PNG")
    cells = json.loads((out / "77_executed.ipynb").read_text())["cells"]
    assert any("image/png" in o.get("data", {}) for c in cells for o in c.get("outputs", []))


def test_the_kernel_is_this_python_in_out_with_inline_figures(good):
    seen = json.loads((good[1] / "seen.json").read_text())
    assert seen[:2] == [sys.executable, str(good[1])] and "inline" in seen[2] and seen[3] == "1"


def test_the_bar_names_the_heading_and_foretells_nothing(tmp_path, capsys, monkeypatch):
    "While a long cell works the heading above it stands before the bar, and the clock goes on."
    monkeypatch.setattr("spectral_core.execution.TICK", 0.1)
    notebook = toy(tmp_path, WORK, "import time; time.sleep(1.5)", FINISH)
    cells = nbformat.read(notebook, 4)
    cells["cells"].insert(-2, new_markdown_cell("## The long part\n\nIt takes a second."))
    nbformat.write(cells, notebook)
    run_chapter(notebook, out=tmp_path / "out", profile="smoke")
    said = capsys.readouterr().err
    bars = [bar for bar in said.split("\r") if "cells [" in bar]
    assert bars[0].startswith("77_toy:   0%") and not any("<" in bar or "?" in bar for bar in bars)
    seen = {bar.partition("[")[2][:5] for bar in bars if bar.startswith("The long part: ") and "| 6/8 " in bar}
    assert len(seen) > 1, seen
    last_bar = (Path(__file__).parents[1] / "papers" / "Snakefile").read_text().partition('LAST_BAR = r"')[2].partition('"')[0]
    log = "\n".join(said.split("\r")[:-1]) + "\n"  # as the workflow reads it, once a minute
    words = subprocess.run(["sed", "-nE", last_bar], input=log, capture_output=True, text=True, check=True).stdout
    assert words.splitlines()[0] == "cell 0/8, 77_toy" and "cell 6/8, The long part" in words


# What can be refused before a kernel starts: each of these returns in milliseconds.

WRONG = {
    "typo": ({"n_row": 3}, "did you mean 'n_rows'"),
    "text for an int": ({"n_rows": "abc"}, "'n_rows' must be int"),
    "exponent for an int": ({"n_rows": "1e3"}, "'n_rows' must be int"),
    "float for an int": ({"n_rows": 3.0}, "'n_rows' must be int"),
    "bool for an int": ({"n_rows": True}, "'n_rows' must be int"),
    "int for a bool": ({"strict": 1}, "'strict' must be bool"),
    "list for a float": ({"scale": [1.0]}, "'scale' must be float"),
    "standard argument": ({"seed": 3}, "have arguments of their own"),
}
BAD_CELLS = {
    "no annotation": (PARAMETERS + "n = 3\n", "lines like 'name: int = 3' only, not 'n = 3'"),
    "unknown type": (PARAMETERS + "n: list = []\n", "lines like"),
    "computed default": (PARAMETERS + "n: int = 3 * 4\n", "malformed"),
    "default of another type": (PARAMETERS + "n: int = 0.5\n", "'n' must be int, not 0.5"),
    "contract broken": (PARAMETERS.replace("seed: int = 0", ""), "must declare 'seed: int = …'"),
    "contract of another type": (PARAMETERS.replace("seed: int = 0", "seed: float = 0"), "must declare 'seed: int"),
    "syntax": (PARAMETERS + "n: int = = 3", "invalid syntax"),
}


@pytest.mark.parametrize("case", WRONG)
def test_fault_38_wrong_parameters_are_refused_before_the_kernel(case, tmp_path):
    given, message = WRONG[case]
    with pytest.raises(ConfigError, match=message): run(toy(tmp_path, FINISH), tmp_path / "out", parameters=given)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("case", BAD_CELLS)
def test_fault_38_a_parameters_cell_that_breaks_the_contract(case, tmp_path):
    cell, message = BAD_CELLS[case]
    with pytest.raises(ConfigError, match=message): read_parameters(toy(tmp_path, parameters=cell))


def test_fault_38_the_parameters_tag_and_expected_exceptions(tmp_path):
    with pytest.raises(ConfigError, match="0 cells are tagged 'parameters'"): read_parameters(toy(tmp_path, tags=()))
    with pytest.raises(ConfigError, match="may not expect exceptions"):
        read_parameters(toy(tmp_path, tags=("parameters", "raises-exception")))
    (tmp_path / "77_toy.ipynb").write_text("<html>")
    with pytest.raises(ConfigError, match="cannot be read as a notebook"): read_parameters(tmp_path / "77_toy.ipynb")


def test_fault_38_choices_and_data(tmp_path):
    notebook = toy(tmp_path, FINISH)
    with pytest.raises(ConfigError, match="profile must be one of"):
        run_chapter(notebook, profile="tiny", out=tmp_path / "out")
    with pytest.raises(ConfigError, match="source must be one of .*, not 'lamost'"):
        run(notebook, tmp_path / "out", source="lamost")
    with pytest.raises(ConfigError, match="train must be one of"): run(notebook, tmp_path / "out", train="real")
    with pytest.raises(ConfigError, match="source is 'mock'.* --source sdss"): run(notebook, tmp_path / "out", data=tmp_path)
    with pytest.raises(DataError, match="no file or folder"):
        run(notebook, tmp_path / "out", source="sdss", data=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no files"):
        run(notebook, tmp_path / "out", source="sdss", data=tmp_path / "empty")


def test_no_chapter_takes_a_source_that_the_runner_does_not_know():
    "The sources that the chapters name in their own checks are all that there are."
    named = [re.findall(r"if source not in (\(.*?\))", path.read_text().replace("\\", "")) for path in list_chapters().values()]
    assert all(named) and {word for texts in named for text in texts for word in ast.literal_eval(text)} == {*CHOICES["source"]}


def test_an_unknown_chapter_is_answered_with_those_there_are():
    with pytest.raises(ConfigError, match="'07'; Chapters: 01_redshift_invariance, 02_"): find_chapter("07")
    with pytest.raises(ConfigError, match="did you mean '05_sedflow'"): find_chapter("sedflow")


def test_every_type_is_read_from_text(tmp_path):
    declared = read_parameters(toy(tmp_path))
    assert set(CONTRACT) <= set(declared)
    read = check_parameters(declared, {"n_rows": "-4", "scale": "1e-3", "strict": "False", "device": "7"})
    assert (read["n_rows"], read["scale"], read["strict"], read["device"]) == (-4, 1e-3, False, "7")


# What only shows when it runs. The same chapter completed before in the same folder; since then a figure was lost, so
# it runs again, and this time a file `fault.py` in the folder makes a cell go wrong.

FAULTS = {
    "fault_35_raises": ("1 / 0", "cell 5 raised ZeroDivisionError: division by zero"),
    "fault_35_finishes_then_raises": ("run.finish(); 1 / 0", "cell 5 raised ZeroDivisionError"),
    "fault_36_killed": ("import os; os._exit(0)", "DeadKernelError"),
    "fault_36_timeout": ("import time; time.sleep(60)", "CellTimeoutError"),
    "fault_37_exit_0": ("run.finish(); import sys; sys.exit(0)", "code cell 5 of 8 did not complete"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_35_36_37_a_run_that_does_not_end_well(name, good, tmp_path):
    notebook, first, _ = good
    fault, message = FAULTS[name]
    out = tmp_path / "out"
    shutil.copytree(first, out)
    (out / "figures" / "spectrum.png").unlink()
    (out / "fault.py").write_text(fault)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != "run.lock"}
    with pytest.raises(RunError, match=message) as error:
        run(notebook, out, seed=3, parameters={"scale": 2.0}, timeout=2 if "timeout" in name else None)
    failed = out / "77_toy.failed.ipynb"
    assert str(failed) in str(error.value) and failed.is_file()
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != "run.lock"} == \
        before | {p: p.read_bytes() for p in (failed, out / "unfinished.json")}


# What a chapter may claim about itself and the runner does not believe. No kernel is needed to say it.

LIES = {
    "a figure is lost": (lambda run, p: (run.staging / "figures/spectrum.png").unlink(), "spectrum.png is missing"),
    "another run": (lambda run, p: p.write_text(p.read_text().replace('"run_id": "new"', '"run_id": "old"')),
                    "belongs to another run"),
    "an old file": (lambda run, p: os.utime(p, (1, 1)), "older than this run"),
    "no file": (lambda run, p: p.unlink(), "no results.json was written"),
    "other parameters": (lambda run, p: p.write_text(p.read_text().replace('"n_rows": 10', '"n_rows": 11')),
                         "'n_rows' came back as 11, given 10"),
    "a parameter kept back": (lambda run, p: p.write_text(p.read_text().replace('"n_rows": 10', '"rows": 10')),
                              "'n_rows' came back as None, given 10"),
}


@pytest.mark.parametrize("lie", [None, *LIES])
def test_fault_36_results_that_are_not_of_this_run(lie, tmp_path):
    write_json(tmp_path / "claims.json", [CLAIM])
    started = time.time()
    book = ChapterRun("77_toy", out=tmp_path / "out", claims=tmp_path / "claims.json", run_id="new", n_rows=10)
    book.figure(Figure(), "spectrum", "Nothing.")
    book.finish()
    if lie: LIES[lie][0](book, book.staging / "results.json")
    problems = result_problems(book.staging, {"run_id": "new", "out": str(tmp_path / "out"), "n_rows": 10}, started)
    assert problems == [] if lie is None else LIES[lie][1] in problems[0]


def test_fault_39_two_runs_in_one_folder(good, tmp_path):
    notebook, out = good[0], tmp_path / "out"
    holder = subprocess.Popen([sys.executable, "-c", "import sys, time\nfrom spectral_core.core import run_lock\n"
                               f"with run_lock({str(out)!r}): print('held', flush=True); time.sleep(60)"],
                              stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(RunError, match=f"in use by pid {holder.pid}"): run(notebook, out)
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with run_lock(out): pass  # freed by kill -9


def test_fault_40_the_same_run_twice_gives_the_same_numbers(good, tmp_path):
    notebook, _, first = good
    second = run(notebook, tmp_path / "again", seed=3, parameters={"scale": 2.0})
    assert json.dumps(first["metrics"]) == json.dumps(second["metrics"])
    assert json.dumps(first["claims"]) == json.dumps(second["claims"])
    assert first["run_id"] != second["run_id"]


def test_a_complete_run_is_returned_and_another_refused(good, tmp_path):
    notebook, out, results = good
    before = (out / "results.json").read_bytes()
    again = run(notebook, out, seed=3, parameters={"scale": 2.0})
    assert again["run_id"] == results["run_id"]
    with pytest.raises(ConfigError, match="seed 3 there, 4 asked"):
        run(notebook, out, seed=4, parameters={"scale": 2.0})
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    other = toy(tmp_path, WORK, FIGURE, FINISH)
    with pytest.raises(ConfigError, match=r"older code \(77_toy.ipynb changed since"):
        run(other, copy, seed=3, parameters={"scale": 2.0})
    changed = json.loads((copy / "results.json").read_text())
    changed["code"]["spectral_core.core"] = "0" * 12
    write_json(copy / "results.json", changed)
    with pytest.raises(ConfigError, match=r"older code \(core.py changed since"):
        run(notebook, copy, seed=3, parameters={"scale": 2.0})
    assert (out / "results.json").read_bytes() == before


def test_force_sets_the_earlier_run_aside_and_data_are_known_by_content(good, tmp_path):
    notebook, first, _ = good
    out, data = tmp_path / "out", tmp_path / "data"
    shutil.copytree(first, out)
    data.mkdir()
    (data / "a.fits").write_bytes(b"one")
    results = run(notebook, out, source="sdss", data=data, force=True)
    assert json.loads((tmp_path / "out.former" / "results.json").read_text())["seed"] == 3
    assert results["data"] == data_fingerprint(data) and results["parameters"]["data"] == str(data)
    shutil.copytree(data, tmp_path / "elsewhere")  # the same files at another place are the same data
    assert run(notebook, out, source="sdss", data=tmp_path / "elsewhere")["run_id"] == results["run_id"]
    (data / "a.fits").write_bytes(b"two")
    with pytest.raises(ConfigError, match="holds another run \\(data '"): run(notebook, out, source="sdss", data=data)


def test_stale_redo_sets_another_run_aside_and_returns_this_one(good, tmp_path):
    notebook, first, results = good
    out = tmp_path / "out"
    shutil.copytree(first, out)
    again = run(notebook, out, seed=3, parameters={"scale": 2.0}, stale="redo")
    assert again["run_id"] == results["run_id"] and not (tmp_path / "out.former").exists()
    other = run(notebook, out, seed=4, parameters={"scale": 2.0}, stale="redo")
    assert other["seed"] == 4 and json.loads((tmp_path / "out.former" / "results.json").read_text())["seed"] == 3
    with pytest.raises(ConfigError, match="stale must be"): run(notebook, out, stale="ignore")


def test_checkpoints_of_older_code_are_kept_by_hand_and_set_aside_by_the_workflow(tmp_path):
    "A chapter leaves a checkpoint and fails; mended, it goes on from there, unless the run must be of one piece."
    leave = "from pathlib import Path\nPath('checkpoint').touch()"
    out = tmp_path / "out"
    with pytest.raises(RunError): run(toy(tmp_path, WORK, leave, "1 / 0", FINISH), out)
    mended = toy(tmp_path, WORK, "from pathlib import Path\nrun.metric('resumed', Path('checkpoint').exists())", FINISH)
    with pytest.raises(ConfigError, match="another, unfinished run \\(seed 0 there, 1 asked"): run(mended, out, seed=1)
    kept = tmp_path / "kept"
    shutil.copytree(out, kept)
    assert run(mended, kept)["metrics"]["resumed"] is True
    assert run(mended, out, stale="redo")["metrics"]["resumed"] is False
    assert (tmp_path / "out.former" / "checkpoint").exists()


def test_a_changed_manifest_makes_a_run_old(good, tmp_path):
    notebook, first, _ = good
    copy = tmp_path / "out"
    shutil.copytree(first, copy)
    changed = json.loads((copy / "results.json").read_text())
    changed["manifests"] = {__file__: "0" * 12}
    write_json(copy / "results.json", changed)
    with pytest.raises(ConfigError, match=r"test_chapters.py changed since"):
        run(notebook, copy, seed=3, parameters={"scale": 2.0})


def test_a_killed_runner_takes_its_kernel_along_and_can_start_again(tmp_path):
    "The chapter notes its process id and sleeps the first time; the runner gets kill -9; the second time it completes."
    note = "import os, time\nfirst = not os.path.exists('pid')\nopen('pid', 'w').write(str(os.getpid()))\n" \
           "time.sleep(60 if first else 0)"
    notebook, out = toy(tmp_path, WORK, note, FINISH), tmp_path / "out"
    command = [sys.executable, "-m", "spectral_core", "run", str(notebook), "--out", str(out), "--profile", "smoke"]
    runner = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait(lambda: (out / "pid").is_file() and (out / "pid").read_text())
    kernel = int((out / "pid").read_text())
    runner.send_signal(signal.SIGKILL)
    runner.wait()
    assert "results.json" not in names(out)
    wait(lambda: not Path(f"/proc/{kernel}").exists() or b"\0" not in Path(f"/proc/{kernel}/cmdline").read_bytes())
    assert run(notebook, out)["metrics"]["rows"] == 10
    assert names(out) == ["77_executed.ipynb", "pid", "report.html", "results.json", "run.lock"]


def test_ctrl_c_stops_everything_in_one_line_and_the_same_command_goes_on(tmp_path):
    "As a shell sends it, to the runner alone, and as `timeout` does, twice."
    note = "import os, time\nfirst = not os.path.exists('pid')\nopen('pid', 'w').write(str(os.getpid()))\n" \
           "time.sleep(60 if first else 0)"
    for times in (1, 2):
        folder = tmp_path / str(times)
        notebook, out = toy(folder, WORK, note, FINISH), folder / "out"
        command = [sys.executable, "-m", "spectral_core", "run", str(notebook), "--out", str(out), "--profile", "smoke"]
        runner = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        wait(lambda: (out / "pid").is_file() and (out / "pid").read_text())  # noqa: B023
        for _ in range(times): runner.send_signal(signal.SIGINT)
        said = runner.communicate(timeout=60)[1]
        assert runner.returncode == 130 and said.endswith("\nstopped; the same command goes on from here\n")
        assert "Traceback" not in said and "rror" not in said
        assert not Path(f"/proc/{(out / 'pid').read_text()}").exists() and "results.json" not in names(out)
        assert run(notebook, out)["metrics"]["rows"] == 10
