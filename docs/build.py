"""Builds the documentation into _docs/: `make docs`.

Pages written by hand lie beside this file. The others are made here: the notebooks of the library through nbdev's processors
(none of which executes anything), the chapters with the figures of their last run, the reference from the source, tables
from benchmarks, data manifests and model cards. They are assembled in _proc/site and Sphinx does the rest.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbdev.process import NBProcessor, extract_directives
from nbdev.processors import clean_magics, hide_, hide_line, populate_language
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent))
import reference

DOCS, ROOT = Path(__file__).parent, Path(__file__).parent.parent
MATHJAX = "https://cdn.jsdelivr.net/npm/mathjax@3.2.2/es5/tex-svg.js"
MATHJAX_SHA256 = "d4295dc33744836935c1399feece5159577b34c5c8ffb9f1c6324cd82e03a882"

# ------------------------------------------------------------------ notebooks


def _only_imports(source: str) -> bool:
    return all(isinstance(node, ast.Import | ast.ImportFrom | ast.If) for node in ast.parse(source).body)


def _tag(cell: nbformat.NotebookNode, tag: str) -> None:
    cell.metadata["tags"] = [*cell.metadata.get("tags", []), tag]


def library_page(path: Path) -> nbformat.NotebookNode:
    "A notebook without its directives: exported cells marked, imports folded, hidden cells gone."
    notebook = NBProcessor(path, [populate_language, hide_, hide_line, clean_magics], process=True).nb
    module, cells = reference.Module(path, path.stem[3:]), []
    for cell in notebook.cells:
        exported, cell.source = "export" in cell.directives_, re.sub(r"(?m)^#\|.*\n?", "", cell.source).strip()
        if cell.cell_type == "code":
            if not cell.source: continue
            if exported: _tag(cell, "exported")
            if _only_imports(cell.source): _tag(cell, "hide-input")
        cells.append({key: cell[key] for key in ("cell_type", "source", "metadata")} | {"id": f"c{len(cells)}"})
    if module.name != "cli": cells[0]["source"] += f"\n\nIn the reference: `spectral_core.{module.name}`."
    return as_notebook(cells)


def as_notebook(cells: list[dict]) -> nbformat.NotebookNode:
    "Cells (source, type, tags and outputs) as a notebook in nbformat's own words."
    for cell in cells:
        cell["metadata"] = {"tags": cell["metadata"].get("tags", [])}
        if cell["cell_type"] == "code": cell |= {"outputs": cell.get("outputs", []), "execution_count": None}
    kernel = {"name": "python3", "display_name": "python3", "language": "python"}
    language = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return nbformat.from_dict({"cells": cells, "metadata": language, "nbformat": 4, "nbformat_minor": 5})


SHOWN = {"image/png", "image/svg+xml", "text/html", "text/markdown", "text/plain"}  # a widget says nothing on a page


def _outputs(cell: nbformat.NotebookNode) -> list[dict]:
    "What a reader wants to see of a cell's outputs: no widgets, no progress bars and warnings on stderr."
    kept = []
    for output in cell.get("outputs", []):
        if output.output_type == "stream" and output.name == "stderr": continue
        if "data" in output:
            if any("widget" in kind for kind in output.data): continue
            output["data"] = {kind: value for kind, value in output.data.items() if kind in SHOWN}
        kept.append(output)
    return kept


NOTE = """:::{{note}}
{}
:::"""
CLEAN = "This chapter is shown without figures: no executed copy of it lies in `papers/executed`. `make demo` makes them."
MOCK = "The outputs below are those of a run at profile `demo`, on **mock** spectra unless a figure says otherwise."


def chapter_page(path: Path) -> nbformat.NotebookNode:
    "A chapter with the outputs of its executed copy, where there is one, and a note that says which."
    executed = path.parent / "executed" / path.name
    notebook = nbformat.read(executed if executed.is_file() else path, as_version=4)
    cells = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    for cell in cells:
        if cell.cell_type != "code": continue
        extract_directives(cell)
        cell["outputs"] = _outputs(cell)
        if _only_imports(cell.source): _tag(cell, "hide-input")
    if path.name[0].isdigit():  # the vetting desk has nothing to show before somebody sits down
        head, _, rest = cells[0].source.partition("\n\n")
        cells[0]["source"] = "\n\n".join([head, NOTE.format(MOCK if executed.is_file() else CLEAN), rest])
    return as_notebook(cells)


# ------------------------------------------------------------------ other pages


def toctree(names: list[str], depth: int = 1) -> str:
    return "\n".join(["```{toctree}", f":maxdepth: {depth}", "", *names, "```", ""])


def room_pages() -> Iterator[tuple[str, str]]:
    "The library's table of contents: a page for every room, in the order of the floors."
    rooms = {room: [m.notebook.name for m in reference.modules() if m.room == room] for room in reference.ROOMS}
    intro = """# The library

> One numbered notebook for every module: prose, equation, code, a check, again and again.

The number is the floor a module stands on, and a module imports only from lower floors. Cells with a bar at their left are the
package itself, exported as they stand here; the cells without it check and show what was just defined, and run as tests.
Notebooks are kept without outputs: run them to see the figures.

"""
    yield "library/index.md", intro + toctree(list(reference.ROOMS), depth=2)
    for room, (title, subtitle) in reference.ROOMS.items():
        yield f"library/{room}.md", f"# {title}\n\n> {subtitle}\n\n" + toctree(rooms[room])


def benchmark_pages() -> Iterator[tuple[str, str]]:
    "The tables that benchmarks/ keeps, as they are."
    pages = sorted((ROOT / "benchmarks").glob("*.md"))
    intro = "# Benchmarks\n\n> The same work done by other codes and by us, in one process, as ratios.\n\n" \
            "Each page is written by the script of the same name in `benchmarks/`, and says on which machine.\n\n"
    yield "benchmarks/index.md", intro + toctree([page.name for page in pages])
    for page in pages: yield f"benchmarks/{page.name}", page.read_text()


def chapters() -> list[Path]:
    "The five chapters, then the vetting desk."
    return reference.wanted(ROOT / "papers")


def chapters_index() -> str:
    "The chapters as cards: title, paper, and one picture of the demo where there is one."
    lines = ["# The chapters", "", "> Five papers, each a notebook that runs from the first cell to the last.", "",
             "A run's report puts every number of a paper beside ours, with a verdict that is computed. The pictures are of",
             "runs at profile `demo`, on **mock** data.", "", "::::{grid} 1 1 2 2", ":gutter: 3", ""]
    for path in chapters():
        title, *rest = nbformat.read(path, as_version=4).cells[0].source.removeprefix("# ").splitlines()
        subtitle = " ".join(line.removeprefix("> ") for line in rest if line.startswith("> "))
        picture = f"pictures/{path.name[:2]}.png"
        lines += [f":::{{grid-item-card}} {title}", f":link: {path.stem}", ":link-type: doc"]
        if (DOCS / picture).is_file(): lines += [f":img-bottom: ../{picture}", f":img-alt: a figure of {title}, mock data"]
        lines += ["", subtitle, ":::", ""]
    return "\n".join([*lines, "::::", "", toctree([path.name for path in chapters()])])


def datasets_page() -> str:
    "Every manifest in one table: name, what, size, licence, citation."
    lines = ["# Data sets", "", "> What `sc.fetch(name)` knows, each file with its checksum.", "",
             "```{list-table}", ":header-rows: 1", ":widths: 20 32 10 20 18", "",
             *row("name", "what", "chapters", "licence", "to cite")]
    for path in sorted((ROOT / "data_manifests").glob("*.json")):
        entry = json.loads(path.read_text())
        chapters = ", ".join(map(str, entry["chapters"]))
        lines += row(f"`{path.stem}`", entry["title"], chapters, entry["licence"], entry["citation"])
    return "\n".join([*lines, "```", ""])


def row(*cells: str) -> list[str]:
    return [("* - " if i == 0 else "  - ") + " ".join(str(cell).split()) for i, cell in enumerate(cells)]


def _facts(value: object, depth: int = 0) -> list[str]:
    "Nested numbers and words of a card as a nested list."
    if not isinstance(value, dict): return [f"{value:.4g}" if isinstance(value, float) else str(value)]
    lines = []
    for key, inner in value.items():
        if isinstance(inner, dict): lines += ["  " * depth + f"- {key}:", *_facts(inner, depth + 1)]
        else: lines += ["  " * depth + f"- {key}: {_facts(inner)[0]}"]
    return lines


def models_page() -> str:
    "The cards of the models that travel with the package."
    lines = ["# Shipped models", "", "> `sc.load(name)`: small models trained on **mock** data; a card for each.", ""]
    for card in sorted((ROOT / "spectral_core/assets").glob("*/card.json")):
        size = sum(file.stat().st_size for file in card.parent.iterdir() if file.is_file()) / 1e6
        lines += [f"## {card.parent.name}", "", f"{size:.1f} MB", "", *_facts(json.loads(card.read_text())), ""]
    return "\n".join(lines)


def commands_page() -> str:
    "The help of the command line, as typer writes it."
    from typer.cli import get_docs_for_click
    from typer.main import get_command

    from spectral_core.cli import app

    command = get_command(app)
    text = get_docs_for_click(obj=command, ctx=command.context_class(command, info_name="spectral-core"), name="spectral-core")
    text = re.sub(r"\*\*Commands\*\*:\n\n(\* .*\n)+", "", text)  # the sections say the same, unabridged
    return re.sub(r"(?m)^(#+ )`(.*)`$", r"\1\2", text).replace("# spectral-core\n", "# Command line\n", 1)


# ------------------------------------------------------------------ the site


# Where the pages link to in the repository, and what stands there in the site.
IN_SITE = {
    b"../papers/vetting_desk.ipynb": b"chapters/index.md",
    b"../data_manifests": b"datasets.md",
    b"../CHANGELOG.md": b"changes.md",
    b"../spectral_core/assets": b"models.md",
    b"../nbs": b"library/archives.md",
}


def written_pages(folder: Path) -> Iterator[tuple[str, bytes]]:
    "What lies in docs/, its links leading to pages; files of the project that a page includes are found from `folder`."
    to_root = f"{os.path.relpath(ROOT, folder)}/".encode()
    for path in sorted(DOCS.rglob("*")):
        if path.suffix in {".md", ".css", ".png", ".svg"}:
            text = re.sub(rb"(?<=include} )\.\./", to_root, path.read_bytes())
            for link, page in IN_SITE.items(): text = text.replace(b"](" + link + b")", b"](" + page + b")")
            yield str(path.relative_to(DOCS)), text


def made_pages() -> Iterator[tuple[str, str]]:
    "The pages made from other files."
    yield from room_pages()
    yield from benchmark_pages()
    yield from ((f"reference/{name}", text) for name, text in reference.pages().items())
    yield "chapters/index.md", chapters_index()
    yield "datasets.md", datasets_page()
    yield "models.md", models_page()
    yield "commands.md", commands_page()
    yield "changes.md", (ROOT / "CHANGELOG.md").read_text()
    notebooks = [(f"library/{module.notebook.name}", module.notebook, library_page) for module in reference.modules()]
    notebooks += [(f"chapters/{path.name}", path, chapter_page) for path in chapters()]
    for name, path, page in tqdm(notebooks, desc="notebooks", unit="page", disable=None):
        yield name, nbformat.writes(page(path))


def assemble(folder: Path) -> None:
    "Write all sources below `folder`: files that did not change keep their time, files no longer wanted go."
    wanted = set()
    for name, content in [*written_pages(folder), *made_pages()]:
        path, content = folder / name, content.encode() if isinstance(content, str) else content
        wanted.add(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_bytes() != content: path.write_bytes(content)
    for path in [p for p in folder.rglob("*") if p.is_file() and p not in wanted]: path.unlink()


def local_mathjax(folder: Path) -> str:
    "Path of MathJax inside the site, fetched once; where that cannot be, the address from which browsers load it."
    from spectral_core.core import SpectralError, cache_dir
    from spectral_core.transfer import download

    kept = cache_dir() / "mathjax-3.2.2.js"
    if not kept.is_file() and not os.environ.get("SPECTRAL_OFFLINE"):
        kept.parent.mkdir(parents=True, exist_ok=True)
        try: download(MATHJAX, kept, sha256=MATHJAX_SHA256, bar=tqdm(disable=True))
        except (SpectralError, OSError) as error: print(f"no copy of MathJax ({error}): formulas need the network to be seen")
    if not kept.is_file(): return MATHJAX
    shutil.copyfile(kept, folder / "_static/mathjax.js")
    return "mathjax.js"


def build(out: Path, work: Path, *, notebooks: str = "", quiet: bool = False) -> int:
    """Assemble the sources, build the site, put it in place of the one before. Returns Sphinx's exit code.

    `notebooks` is a pattern for those that get pages. A warning is an error. Only what changed is parsed anew, but every page is
    written, since each shows the titles of all. A build that fails leaves the site as it was.
    """
    from sphinx.cmd.build import build_main

    sources, html = work / "site", work / "html"
    reference.ONLY = notebooks
    assemble(sources)
    mathjax = local_mathjax(sources)
    shutil.rmtree(html, ignore_errors=True)
    options = ["-q"] if quiet else []
    code = build_main([*options, "-W", "--keep-going", "-a", "-b", "html", "-c", str(DOCS), "-d", str(work / "doctrees"),
                       "-D", f"html_static_path={sources / '_static'}", "-D", f"mathjax_path={mathjax}", str(sources), str(html)])
    if code == 0:
        shutil.rmtree(out, ignore_errors=True)
        shutil.move(html, out)
    return code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "_docs", help="where the site goes")
    parser.add_argument("--work", type=Path, default=ROOT / "_proc", help="what is kept between builds")
    parser.add_argument("--quiet", action="store_true", help="warnings only")
    arguments = parser.parse_args()
    code = build(arguments.out, arguments.work, quiet=arguments.quiet)
    if code == 0: print(arguments.out / "index.html")
    return code


if __name__ == "__main__":
    sys.exit(main())
