"""JupyterLab opens the notebooks and runs them, in a real browser."""

from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_lab_runs_a_notebook(lab, page):
    name = lab.add(ROOT / "nbs" / "00_core.ipynb")
    lab.open(page, name)
    page.screenshot(path="/tmp/h_lab.png")
    assert lab.run_all(page)
    saved = lab.save(page, name)
    assert all(c["execution_count"] for c in saved["cells"] if c["cell_type"] == "code")
    lab.restart()
    lab.open(page, name)
