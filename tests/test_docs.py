"""The documentation: no page builds with a warning, every link inside leads somewhere, every command on a page runs."""

import os
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

pytest.importorskip("sphinx_book_theme")
pytest.importorskip("myst_nb")

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))
import build  # noqa: E402
import reference  # noqa: E402

SAMPLE = "10_spectra.wavelength|11_spectra.surveys|38_models.similarity|82_scoring|01_redshift_invariance"


def make(folder: Path, notebooks: str) -> Path:
    "Build the site below `folder` in a process of its own: Sphinx changes too much to share one."
    code = f"import sys; sys.path.insert(0, {str(DOCS)!r}); from pathlib import Path; import build; " \
           f"sys.exit(build.build(Path('site').resolve(), Path('work').resolve(), notebooks={notebooks!r}, quiet=True))"
    env = os.environ | {"SPECTRAL_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr[-3000:]
    return folder / "site"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return make(tmp_path_factory.mktemp("docs"), SAMPLE)


class Links(HTMLParser):
    "Addresses and anchors of a page."

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.found, self.anchors = [], set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list) -> None:
        attrs = dict(attrs)
        self.anchors |= {attrs.get("id"), attrs.get("name")} - {None}
        self.found += [attrs[key] for key in ("href", "src") if attrs.get(key)]


def broken(site: Path) -> list[str]:
    "Links of all pages that lead to no file of the site, or to no anchor in it."
    pages = {path: Links(path) for path in site.rglob("*.html") if "_static" not in path.parts}
    wrong = []
    for path, page in pages.items():
        for link in page.found:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or link == "#": continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file(): wrong.append(f"{path.name}: {link}")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                wrong.append(f"{path.name}: {link}")
    return wrong


# ------------------------------------------------------------------ the site


def test_every_link_inside_the_site_leads_somewhere(site):
    assert not broken(site)


def test_a_broken_link_would_be_found(tmp_path):
    (tmp_path / "a.html").write_text('<p id="here"><a href="#here">x</a><a href="#there">y</a><a href="b.html">z</a>')
    assert broken(tmp_path) == ["a.html: #there", "a.html: b.html"]


def test_a_library_page_marks_what_is_exported_and_shows_no_directives(site):
    page = (site / "library/38_models.similarity.html").read_text()
    assert "tag_exported" in page and "#|" not in page and "default_exp" not in page
    cells = nbformat.read(ROOT / "nbs/38_models.similarity.ipynb", as_version=4).cells
    [hidden] = [c.source for c in cells if "#| hide" in c.source]
    assert hidden.splitlines()[-1][:30] not in re.sub(r"<[^>]+>", "", page)


def test_names_in_prose_lead_to_the_reference(site):
    page = (site / "conventions.html").read_text()
    assert 'href="reference/spectra.html#spectral_core.spectra.surveys.DESI"' in page


def test_formulas_need_no_network_where_there_is_a_copy(site):
    [source] = re.findall(r'src="([^"]*mathjax[^"]*)"', (site / "library/10_spectra.wavelength.html").read_text())
    assert source == build.MATHJAX or (site / "library" / source.partition("?")[0]).resolve().is_file()


@pytest.mark.slow
def test_the_whole_site_builds_without_a_warning(tmp_path):
    site = make(tmp_path, "")
    assert not broken(site)
    pages = {path.stem for folder in ("library", "chapters") for path in (site / folder).glob("*.html")}
    assert {path.stem for folder in ("nbs", "papers") for path in (ROOT / folder).glob("*.ipynb")} <= pages
    assert not [path.name for path in (site / "library").glob("*.html") if "#| " in path.read_text()]


LOOK = """() => ({
    wider: document.documentElement.scrollWidth - innerWidth,
    broken: [...document.images].filter(image => !image.complete || !image.naturalWidth).length,
    formulas: document.querySelectorAll(".math").length, drawn: document.querySelectorAll("mjx-container svg").length})"""


@pytest.mark.parametrize("width", [1300, 390], ids=["desktop", "phone"])
@pytest.mark.parametrize("name", ["index", "own_spectra", "library/10_spectra.wavelength", "chapters/01_redshift_invariance",
                                  "reference/spectra", "reference/running", "datasets", "commands"])
def test_pages_fit_the_screen(site, page, name, width):
    "Nothing wider than the page, no broken picture, no complaint on the console, formulas drawn where MathJax is at hand."
    complaints = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.set_viewport_size({"width": width, "height": 900})
    page.goto((site / f"{name}.html").as_uri())
    seen = page.evaluate(LOOK)
    if seen["formulas"] and (site / "_static/mathjax.js").is_file():
        page.wait_for_selector("mjx-container svg", state="attached")
        count = "name => document.querySelectorAll(name).length"
        page.wait_for_function(f"({count})('mjx-container svg') >= ({count})('.math')")
        seen = page.evaluate(LOOK)
    else: complaints = [text for text in complaints if "ERR_" not in text]
    assert seen["wider"] <= 0 and seen["broken"] == 0 and not complaints


# ------------------------------------------------------------------ pages from notebooks and modules


def cell(kind: str, source: str, **more) -> dict:
    extra = {"outputs": [], "execution_count": None} if kind == "code" else {}
    return {"cell_type": kind, "source": source, "metadata": {}, "id": f"c{hash(source) % 10**8}"} | extra | more


def write(path: Path, cells: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.from_dict({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}), path)
    return path


def test_a_chapter_shows_the_outputs_of_its_executed_copy_but_no_noise(tmp_path):
    source = [cell("markdown", "# 01 · Toy\n\n> Subtitle"), cell("code", "1 + 1")]
    path = write(tmp_path / "01_toy.ipynb", source)
    assert "without figures" in build.chapter_page(path).cells[0].source
    output = lambda data: {"output_type": "display_data", "data": data, "metadata": {}}
    stream = lambda name: {"output_type": "stream", "name": name, "text": name}
    widget = {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "bar"}
    outputs = [output({"image/png": "iVBORw0KGgo="}), output(widget), stream("stderr"), stream("stdout")]
    injected = cell("code", "out = 'somewhere'", metadata={"tags": ["injected-parameters"]})
    write(tmp_path / "executed/01_toy.ipynb", [source[0], injected, cell("code", "1 + 1", outputs=outputs)])
    title, code = build.chapter_page(path).cells
    assert "mock" in title.source and title.source.endswith("> Subtitle")
    assert [o.get("name") or list(o["data"]) for o in code.outputs] == [["image/png"], "stdout"]


def test_a_library_page_folds_imports_and_drops_hidden_cells(tmp_path):
    cells = [cell("markdown", "# toy"), cell("code", "#| default_exp toy"), cell("code", "#| export\nimport os"),
             cell("code", "#| export\ndef f(): pass"), cell("code", "#| hide\n2 + 2"), cell("code", "#| eval: false\n3 + 3")]
    page = build.library_page(write(tmp_path / "10_toy.ipynb", cells)).cells
    assert [c.source for c in page[1:]] == ["import os", "def f(): pass", "3 + 3"]
    assert [c.metadata["tags"] for c in page[1:]] == [["exported", "hide-input"], ["exported"], []]


TOY = '''"""A toy."""
from ..core import Flag
__all__ = ["Box", "fold", "SIZE"]
SIZE = 3  # edge in Å

class Box:
    "A box."
    n: int = 2  # pixels

    def __init__(self, edge: float) -> None: ...

    @property
    def volume(self) -> float:
        "Volume in Å³."

    def _private(self): ...

def fold(
    box: Box,  # what to fold
    *,
    flags: tuple[Flag, ...] = tuple(f for f in ()),  # why not
    times: int = 1,
) -> Box:
    "Fold it; shape (n,)."

def hidden(): ...
'''


def test_the_reference_says_what_the_source_says(tmp_path, monkeypatch):
    "Signature with full names, comments beside parameters, fields and constants; nothing private, no computed defaults."
    monkeypatch.setattr(reference, "PACKAGE", tmp_path)
    (tmp_path / "spectra").mkdir()
    (tmp_path / "spectra/toy.py").write_text(TOY)
    text = "\n".join(reference.module_page(reference.Module(Path("10_spectra.toy.ipynb"), "spectra.toy")))
    assert "{py:class} Box(edge: float)" in text and "{py:property} volume\n:type: float" in text
    box, flag = "spectral_core.spectra.toy.Box", "spectral_core.core.Flag"
    assert f"{{py:function}} fold(box: {box}, *, flags: tuple[{flag}, ...]=..., times: int=1) -> {box}\n" in text
    assert ":param box: what to fold\n:param flags: why not\n" in text and ":param times" not in text
    assert "{py:attribute} n\n:type: int\n:value: 2\n\npixels" in text and "{py:data} SIZE\n:value: 3\n\nedge in Å" in text
    assert "hidden" not in text and "_private" not in text


def test_every_public_name_is_in_the_reference():
    pages = "\n".join(reference.pages().values())
    public = {name for module in reference.modules() if module.name != "cli" for name in reference.public(module.tree)}
    missing = public - set(re.findall(r"{py:(?:function|class|data)} (\w+)", pages))
    assert not missing


# ------------------------------------------------------------------ what the pages tell readers to do


def blocks(page: str, *languages: str) -> list[tuple[str, str]]:
    return re.findall(rf"^```({'|'.join(languages)})\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)


def test_your_own_spectra_in_ten_minutes(tmp_path, monkeypatch):
    "Every command on the page, in its order, in one folder; commands of the shell in this process, which has torch already."
    import matplotlib

    from spectral_core.cli import main

    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    names = {}
    for language, text in blocks("own_spectra.md", "python", "bash"):
        if language == "python": exec(compile(text, "own_spectra.md", "exec"), names)
        for line in text.splitlines() if language == "bash" else []:
            program, *arguments = shlex.split(line)
            with pytest.raises(SystemExit) as end: main(arguments)
            assert program == "spectral-core" and not end.value.code, line
    made = {"ranked.ecsv", "other.ecsv", "gallery.html", "first.png", "runs/first_try/model.safetensors"}
    assert not [name for name in made if not (tmp_path / name).is_file()]
    assert len(names["ranked"]) == 24
    other = Table.read("other.ecsv")
    assert sorted(other["file"]) == ["iraf.fits", "mine.fits"] and {*other["list"]} == {"poor reconstruction"}, "as the page says"


@pytest.fixture
def as_table(tmp_path, monkeypatch):
    "The page's lines for images, alone, on an image of ours: its spectrum as the library reads it."
    from spectral_core.archives.layouts import read_spectrum

    [text] = [text for _, text in blocks("own_spectra.md", "python") if "iraf.fits" in text]
    text = re.sub(r"^(bands|cards) = .*\n|^fits.writeto.*\n", "", text, flags=re.MULTILINE)
    text = text.replace('open("iraf.fits"', 'open("yours.fits"')
    monkeypatch.chdir(tmp_path)

    def run(data, more=(), **cards):
        header = fits.Header({"CRVAL1": 4000.0, "CDELT1": 2.0, "REDSHIFT": 0.08} | cards)
        units = [fits.PrimaryHDU(data, header), *(fits.ImageHDU(values, name=name) for name, values in more)]
        fits.HDUList(units).writeto("yours.fits", overwrite=True)
        exec(compile(text, "own_spectra.md", "exec"), {})
        return read_spectrum("other/iraf.fits")

    return run


@pytest.mark.parametrize("name, spread", [("STD", 0.5), ("VAR", 0.25), ("IVAR", 4.0)])
@pytest.mark.parametrize("kind, factor", [("WAVE", 1.0), ("AWAV", 1.00028)])
def test_an_image_of_specutils_becomes_a_table_with_its_own_error_and_wavelengths(as_table, name, spread, kind, factor):
    "Units and metres as specutils 2.4 writes them."
    cards = {"CTYPE1": kind, "CUNIT1": "m", "CRVAL1": 4e-7, "CDELT1": 2e-10, "BUNIT": "1e-16 erg / (Angstrom s cm2)"}
    mask = np.arange(50) == 7
    read = as_table(np.arange(50.0), [(name, np.full(50, spread)), ("MASK", mask.astype("u1"))], **cards)
    assert np.allclose(read.flux, 10 * np.arange(50)) and np.allclose(read.ivar, 0.04) and ((read.bits != 0) == mask).all()
    assert np.allclose(10**read.loglam, (4000 + 2 * np.arange(50)) * factor, rtol=1e-5) and read.facts["z"] == 0.08


def test_an_image_of_iraf_becomes_a_table_and_what_is_not_known_is_refused(as_table):
    bands = np.arange(200.0).reshape(4, 1, 50)
    read = as_table(bands, CTYPE1="LINEAR")
    assert np.allclose(read.flux, bands[0, 0]) and np.allclose(read.ivar, bands[3, 0] ** -2.0)
    assert np.allclose(10**read.loglam, (4000 + 2 * np.arange(50)) * 1.00028, rtol=1e-5)
    log = as_table(bands, **{"CRVAL1": 3.6, "CDELT1": 1e-4, "DC-FLAG": 1})
    assert np.allclose(log.loglam, 3.6 + 1e-4 * np.arange(50) + np.log10(1.00028), atol=1e-5)
    for data, more in ((bands[0, 0], []), (bands[:, 0], []), (bands[:2], []), (bands[0, 0], [("UNCERT", bands[3, 0])])):
        with pytest.raises(ValueError, match="which band"): as_table(data, more)
    with pytest.raises(KeyError, match="MULTISPE"): as_table(bands, CTYPE1="MULTISPE")


def test_which_files_a_folder_is_searched_for_and_that_a_named_one_is_read(tmp_path):
    from spectral_core.archives.sdss import write_sdss
    from spectral_core.ranking.parts import find_sources
    from spectral_core.scoring import score
    from spectral_core.simulate.mock import mock_survey

    [file] = write_sdss(mock_survey("sdss", n=1, seed=0), tmp_path / "made")
    taken, passed = ["a.fits", "b.FIT", "c.fits.gz", "d.fit.gz", "deep/e.fits"], ["f.fts", "g.dat", "h.fits~", "i"]
    for name in taken + passed:
        (tmp_path / "all" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "all" / name).write_bytes(file.read_bytes())
    assert sorted(s.name for s in find_sources(tmp_path / "all")) == sorted(taken)
    for name in passed: assert score(tmp_path / "all" / name, progress=False)["list"].tolist() != ["not read"], name


def test_the_pages_runs_do_not_meet_in_one_folder():
    runs = [re.findall(r'run="([^"]+)"', path.read_text()) for path in (ROOT / "README.md", DOCS / "own_spectra.md")]
    assert all(runs) and not {*runs[0]} & {*runs[1]}


def test_the_install_line_is_that_of_the_readme():
    [(_, text)] = blocks("own_spectra.md", "console")
    assert text.strip().removeprefix("$ ") in (ROOT / "README.md").read_text()


def test_mock_models_are_called_mock():
    assert "mock" in build.models_page().partition("## ")[0]
