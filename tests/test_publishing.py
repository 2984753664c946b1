"""Executed chapters, the pictures of the front page, and the README that shows them."""

import json
import os
import re
import subprocess
import sys
from base64 import b64encode
from copy import deepcopy
from io import BytesIO
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

from spectral_core.core import RunError, write_json
from spectral_core.publishing import COVERS, LARGEST, cover, publish

ROOT = Path(__file__).parent.parent
CHAPTERS = sorted((ROOT / "papers").glob("[0-9]*.ipynb"))
README = (ROOT / "README.md").read_text()

# ------------------------------------------------------------------ publishing a toy


def cell(kind: str, source: str, **more) -> dict:
    extra = {"outputs": [], "execution_count": None} if kind == "code" else {}
    return {"cell_type": kind, "id": f"c{len(source)}", "metadata": {}, "source": source.splitlines(keepends=True)} | extra | more


def png(size: tuple[int, int] = (600, 300), noise: bool = False) -> bytes:
    "A picture in one colour, or half full of dots."
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (200 if noise else 1, 3), dtype=np.uint8)
    pixels = colours[rng.integers(0, len(colours), size[::-1])]
    pixels[: size[1] // 2] = colours[0]
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


PARAMETERS = "run_id: str = ''\nprofile: str = 'demo'\nsource: str = 'mock'\ntrain: str = 'mock'\ndata: str = ''\n" \
             "seed: int = 0\ndevice: str = 'auto'\nout: str = 'runs/77'\nwidth: float = 3.0"
CLAIM = {"id": "ratio", "what": "a|b < c", "paper": 0.04, "where": "Table 1", "tolerance": {"at_most": 0.13}, "ours": 0.05,
         "interval": None, "verdict": "mock cannot test", "reason": "put in by hand"}


class Toy:
    "A chapter of three cells and a finished run of it."

    def __init__(self, folder: Path):
        self.folder, self.out = folder, folder / "runs/77_toy"
        (self.out / "figures").mkdir(parents=True)
        (self.out / "figures/one.png").write_bytes(png())
        tagged = cell("code", PARAMETERS, metadata={"tags": ["parameters"]})
        cells = [cell("markdown", "# 77 · Toy\n\nOld prose."), tagged, cell("code", "plot()")]
        self.source = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
        self.executed = deepcopy(self.source)
        self.executed["metadata"] = {"papermill": {"input_path": "/home/somebody"}}
        self.executed["cells"].insert(2, cell("code", f"out = '{self.out}'", metadata={"tags": ["injected-parameters"]}))
        shown = lambda data, **more: {"output_type": "display_data", "data": data, "metadata": {"width": 3}} | more
        self.executed["cells"][3] |= {"execution_count": 9, "metadata": {"papermill": {"duration": 1}}, "outputs": [
            shown({"image/png": b64encode(png()).decode(), "text/plain": ["<Figure>"]}),
            shown({"application/vnd.jupyter.widget-view+json": {}, "text/plain": ["bar"]}),
            {"output_type": "stream", "name": "stderr", "text": ["50%|####"]},
            {"output_type": "stream", "name": "stdout", "text": [f"wrote {self.out}/x\n", "<a at 0x7f00aa>\n"]},
            shown({"text/html": ['<table id="table1407">']}, output_type="execute_result", execution_count=9)]}
        self.results = {"chapter": "77_toy", "profile": "demo", "source": "mock", "seed": 0, "seconds": 65.0, "claims": [CLAIM],
                        "versions": {"spectral-core": "0.1.0"}, "figures": [{"name": "one", "file": "figures/one.png"}],
                        "parameters": dict(profile="demo", source="mock", train="mock", data="", seed=0, device="auto", width=3.0,
                                           run_id="abc", out=str(self.out))}

    def publish(self) -> dict:
        write_json(self.folder / "77_toy.ipynb", self.source)
        write_json(self.out / "77_executed.ipynb", self.executed)
        write_json(self.out / "results.json", self.results)
        places = self.folder / "executed", self.folder / "pictures"
        paths = publish(self.folder / "runs", *places, {"77_toy": self.folder / "77_toy.ipynb"})
        assert [p.name for p in paths] == ["77_toy.ipynb", "77.png"]
        nbformat.validate(nbformat.read(paths[0], as_version=4))
        return json.loads(paths[0].read_text())


@pytest.fixture
def toy(tmp_path):
    return Toy(tmp_path)


def test_a_published_chapter_is_its_source_with_outputs_and_two_notes(toy):
    toy.source["cells"][0]["source"] = ["# 77 · Toy\n", "\n", "New prose."]
    shown = toy.publish()
    assert shown["metadata"] == toy.source["metadata"]
    title, banner, parameters, plot, claims = shown["cells"]
    assert [title["source"], parameters["source"], plot["source"]] == [c["source"] for c in toy.source["cells"]]
    for text in ("**mock** data", "seed 0", "1 min 5 s", "1 mock cannot test"): assert text in "".join(banner["source"])
    assert r"a\|b \< c" in claims["source"][-1] and "put in by hand" in claims["source"][-1]
    picture, told, table = plot["outputs"]
    assert list(picture["data"]) == ["image/png"] and plot["execution_count"] == table["execution_count"] == 2
    assert "".join(told["text"]) == "wrote runs/demo/77_toy/x\n<a at>\n" and table["data"] == {"text/html": ["<table>"]}
    text = json.dumps(shown)
    assert str(toy.folder) not in text and "papermill" not in text and "/home/" not in text


def test_a_second_refresh_changes_nothing(toy):
    first = toy.publish(), (toy.folder / "pictures/77.png").read_bytes()
    assert first == (toy.publish(), (toy.folder / "pictures/77.png").read_bytes())


def break_code(toy): toy.source["cells"][2]["source"] = ["plot(2)"]
def break_seed(toy): toy.results["parameters"]["seed"] = 3
def break_own_parameter(toy): toy.results["parameters"]["width"] = 4.0
def break_figures(toy): toy.results["figures"] = []
def add_a_cell(toy): toy.executed["cells"].append(cell("code", "more()"))
def too_large(toy):
    toy.executed["cells"][3]["outputs"] = [{"output_type": "display_data", "metadata": {},
                                            "data": {"image/png": b64encode(png((2000, 2200), noise=True)).decode()}}]


@pytest.mark.parametrize("fault, message", [
    (break_code, "code cell 2, of 2"), (add_a_cell, "code cell 3, of 2"), (break_seed, "'seed': 3"),
    (break_own_parameter, "'width': 4.0"), (break_figures, "no figure"), (too_large, "a forge shows 2 MB")])
def test_what_cannot_be_published_leaves_the_last_set(toy, fault, message):
    before = toy.publish()
    fault(toy)
    with pytest.raises(RunError, match=message): toy.publish()
    assert json.loads((toy.folder / "executed/77_toy.ipynb").read_text()) == before


def test_a_chapter_without_a_run_is_named(toy):
    with pytest.raises(RunError, match="77_toy holds no finished run"):
        publish(toy.folder / "runs", toy.folder / "a", toy.folder / "b", {"77_toy": toy.folder / "77_toy.ipynb"})


@pytest.mark.parametrize("size", [(1300, 450), (400, 300), (200, 900)])
def test_a_cover_keeps_its_shape_and_its_weight(size):
    light = cover(png(size, noise=True), largest=60_000)
    with Image.open(BytesIO(light)) as image: width, height = image.size
    assert len(light) <= 60_000 and width <= min(900, size[0])
    assert abs(width / height / (size[0] / size[1]) - 1) < 0.03


# ------------------------------------------------------------------ what is committed


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_executed_chapter_has_the_cells_of_its_source(path):
    executed = path.parent / "executed" / path.name
    assert executed.is_file(), "run `make executed`"
    shown, source = (json.loads(p.read_text())["cells"] for p in (executed, path))
    kept = [c for c in shown if c["metadata"].get("tags") != ["run"]]
    told = [c for c in shown if c["metadata"].get("tags") == ["run"]]
    both = [[(c["cell_type"], c["id"], "".join(c["source"])) for c in cells] for cells in (kept, source)]
    assert both[0] == both[1], f"{executed.name} shows an older chapter; run `make executed`"
    assert len(told) == 2 and "mock" in "".join(told[0]["source"]) and "| claim |" in "".join(told[1]["source"])


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_executed_chapter_shows_figures_and_no_traces_of_its_run(path):
    executed = path.parent / "executed" / path.name
    text = executed.read_text()
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    assert len(text.encode()) <= LARGEST and sum("image/png" in o.get("data", {}) for o in outputs) >= 5
    assert not any(o.output_type == "error" or o.get("name") == "stderr" for o in outputs)
    assert not re.search(r"papermill|iopub|/home/|/tmp/|/root/|/Users/|/work/", text)
    assert set(notebook.metadata) <= {"kernelspec"}


def test_pictures_are_small_and_there_is_one_for_each_chapter():
    pictures = sorted((ROOT / "docs/pictures").glob("*.png"))
    assert [p.stem for p in pictures] == [p.stem[:2] for p in CHAPTERS] == sorted(COVERS)
    for picture in pictures:
        assert picture.stat().st_size <= 150_000
        with Image.open(picture) as image: assert 400 <= image.width <= 900


# ------------------------------------------------------------------ README


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_readme_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", README) + re.findall(r'src="([^"]+)"', README)
    local = [link for link in links if not link.startswith("https://")]
    assert len(local) > 15 and not [link for link in local if not (ROOT / link).exists()]


def test_readme_shows_every_chapter_with_a_picture_that_says_mock():
    titles = {p.stem: json.loads(p.read_text())["cells"][0]["source"][0][2:].strip() for p in CHAPTERS}
    for name, title in titles.items(): assert f"### [{title}](papers/executed/{name}.ipynb)" in README
    texts = re.findall(r'<img src="docs/pictures/\d\d.png" width="\d+" alt="([^"]+)">', README)
    assert len(texts) == len(CHAPTERS) and all("mock" in text for text in texts)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    "A folder with mock spectra, made as the README says."
    from spectral_core.archives.sdss import write_sdss
    from spectral_core.simulate.mock import mock_survey

    folder = tmp_path_factory.mktemp("own")
    write_sdss(mock_survey("sdss", n=150), folder / "my_spectra")
    return folder


def test_readme_python_runs(own):
    "Every line as it stands, but for the number of epochs."
    (code,) = blocks("python")
    assert len([line for line in code.splitlines() if line]) == 10
    check = "\nassert len(ranked) == 150 and latents.shape == (len(test), 6) and len(draws) > 100\n"
    command = [sys.executable, "-c", code.replace("n_epoch=20", "n_epoch=1") + check]
    done = subprocess.run(command, cwd=own, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr[-1500:]


def test_readme_commands_run(own):
    text = "".join(blocks("sh")).splitlines()
    lines = [line.split("#")[0].split() for line in text if line.startswith("spectral-core")]
    assert [line[1] for line in lines] == ["score", "vet"]
    for line in lines:
        more = ["--top", "3", "--mock"] if line[1] == "vet" else []
        done = subprocess.run([sys.executable, "-m", "spectral_core", *line[1:], *more], cwd=own, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-1500:]
    assert (own / "ranked.fits").is_file() and "mock" in (own / "top.html").read_text()
