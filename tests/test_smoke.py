"""Every chapter from its first cell to its page: small, on simulated data, without network and without GPU (row 42)."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from spectral_core.chapters import list_chapters

VERDICTS = {"reproduced", "same sign", "mock cannot test", "contradicted"}
ALONE = ["unshare", "-rn", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]  # a network that is the loopback and nothing else
NOWHERE = dict.fromkeys(["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"], "http://127.0.0.1:9")


def can_be_alone() -> bool:
    "May this user make such a network? Where not, every proxy points nowhere instead."
    return bool(shutil.which("unshare")) and subprocess.run([*ALONE, "true"], capture_output=True).returncode == 0


@pytest.mark.chapter
@pytest.mark.parametrize("name", list_chapters())
def test_fault_42_a_chapter_runs_offline_and_leaves_everything_in_its_folder(name, tmp_path):
    command = [sys.executable, "-m", "spectral_core", "run", name, "--profile", "smoke", "--out", str(tmp_path / "out")]
    env = {key: value for key, value in os.environ.items() if key != "SPECTRAL_MIRROR"}
    env |= NOWHERE | {"CUDA_VISIBLE_DEVICES": "", "SPECTRAL_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run((ALONE if can_be_alone() else []) + command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [p.name for p in tmp_path.iterdir()] == ["out"], "a chapter writes into its own folder and nowhere else"
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["chapter"], results["profile"], results["source"]) == (name, "smoke", "mock")
    assert results["claims"] and {claim["verdict"] for claim in results["claims"]} <= VERDICTS
    assert results["metrics"] and results["figures"]
    for figure in results["figures"]: assert (tmp_path / "out" / figure["file"]).stat().st_size > 5000, figure
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Simulated data" in page and page.count("<img") == len(results["figures"])
