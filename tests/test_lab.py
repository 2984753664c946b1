"""JupyterLab opens every notebook and runs it, in a real browser; the user's own Jupyter is left alone."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = sorted((ROOT / "nbs").glob("*.ipynb"))
PAPERS = sorted((ROOT / "papers").glob("*.ipynb"))
PICTURE = '.jp-OutputArea-output img, .jp-OutputArea-output svg'


@pytest.fixture
def desk(lab, page):
    "Open a notebook of the repository, as a copy; returns its content. Kernels end with the test, and no script may have failed."
    failures = []
    page.on("pageerror", lambda error: failures.append(str(error)))

    def show(path: Path) -> dict:
        lab.open(page, lab.add(path))
        return json.loads(path.read_text())

    yield show
    for kernel in lab.api("kernels"): lab.api(f"kernels/{kernel['id']}", method="DELETE")
    assert not failures


def assert_shown(page, notebook: dict) -> None:
    "Every cell stands in the page, the title is rendered, and nobody is asked anything."
    assert page.locator(".jp-Notebook .jp-Cell").count() == len(notebook["cells"])
    title = "".join(notebook["cells"][0]["source"]).splitlines()[0].lstrip("# ")
    shown = page.locator(".jp-RenderedMarkdown h1").first.inner_text()
    assert shown.rstrip("¶") == title
    assert page.locator(".jp-Dialog").count() == 0


def assert_ran(lab, page, path: Path) -> None:
    "Every code cell ran, in order, and none wrote an error."
    assert lab.run_all(page, timeout=300), page.locator(".jp-RenderedText[data-mime-type*=error]").all_inner_texts()
    cells = [cell for cell in lab.save(page, path.name)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    images = sum(any(kind.startswith("image/") for kind in output.get("data", ())) for output in outputs)
    assert page.locator(PICTURE).count() >= images


def test_a_notebook_of_the_library_opens_and_runs(lab, page, desk):
    path = ROOT / "nbs" / "10_spectra.wavelength.ipynb"
    assert_shown(page, desk(path))
    assert_ran(lab, page, path)


def test_a_chapter_opens_with_its_equations(page, desk):
    path = ROOT / "papers" / "01_redshift_invariance.ipynb"
    assert_shown(page, desk(path))
    page.wait_for_selector(".jp-RenderedMarkdown mjx-container", state="attached", timeout=20_000)


def test_a_failing_cell_is_noticed(lab, page):
    "The test of the tests: a notebook with an error does not pass for one that ran."
    cell = {"cell_type": "code", "source": ["1 / 0"], "metadata": {}, "outputs": [], "execution_count": None, "id": "a"}
    metadata = {"kernelspec": {"name": "python3", "display_name": "python3"}}
    book = {"cells": [cell], "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    (lab.root / "failing.ipynb").write_text(json.dumps(book))
    lab.open(page, "failing.ipynb")
    assert not lab.run_all(page)


@pytest.mark.slow
def test_files_outlive_a_restart_and_kernels_do_not(lab, page):
    name = lab.add(ROOT / "nbs" / "00_core.ipynb", "again/core.ipynb")
    lab.open(page, name)
    assert len(lab.api("kernels")) >= 1
    lab.restart()
    assert lab.api("kernels") == [] and (lab.root / name).is_file()
    lab.open(page, name)


@pytest.mark.slow
@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.stem)
def test_every_notebook_of_the_library_opens_and_runs(lab, page, desk, path):
    assert_shown(page, desk(path))
    assert_ran(lab, page, path)


@pytest.mark.slow
@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_every_chapter_opens(page, desk, path):
    assert_shown(page, desk(path))
