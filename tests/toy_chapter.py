"""A chapter of a few cells, for tests of what runs chapters."""

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from spectral_core.core import write_json

PARAMETERS = """
run_id: str = ""
profile: str = "demo"
source: str = "mock"
train: str = "mock"
data: str = ""
seed: int = 0
device: str = "auto"
out: str = "runs/toy"
n_rows: int = 10
scale: float = 1.0
strict: bool = True
"""
START = """
from spectral_core.results import ChapterRun
run = ChapterRun({name!r}, out=out, claims={claims!r}, run_id=run_id, profile=profile, source=source, train=train,
                 data=data, seed=seed, device=device, n_rows=n_rows, scale=scale, strict=strict)
"""
FINISH = "run.finish();"


def write_toy(folder, name, claim, *cells, parameters=PARAMETERS, tags=("parameters",)):
    "A chapter with the given cells after the two that every chapter has, its one claim beside it."
    folder.mkdir(parents=True, exist_ok=True)
    claims = folder / f"{name[:2]}_claims.json"
    write_json(claims, [claim])
    first = new_code_cell(parameters, metadata={"tags": list(tags)})
    sources = [START.format(name=name, claims=str(claims)), *cells]
    notebook = new_notebook(cells=[new_markdown_cell("# Toy"), first, *map(new_code_cell, sources)])
    nbformat.write(notebook, folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"
