"""The reference, written from the source of the modules: signatures, docstrings, the comment beside each parameter.

Nothing is imported, so that it takes a second and needs no torch. Docstrings and comments are Markdown, as in the notebooks.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "spectral_core"

# Slug, title and the modules of each room, in the order of the floors.
ROOMS = {
    "foundations": ("Foundations", "Errors, seeds, files that are whole or not there, data sets by name."),
    "spectra": ("Spectra", "What a spectrum is, whatever the survey: grids, containers, masks, lines, stores."),
    "archives": ("Archives", "Survey files and catalogues in, `Spectra` and tables out."),
    "simulate": ("Simulation", "Galaxies, stars, photometry and surveys with known truth."),
    "models": ("Models", "Networks, densities and their losses, nothing else."),
    "training": ("Training and prediction", "One fit for every model; batches, checkpoints, shipped weights."),
    "analysis": ("Analysis", "What latents and densities say."),
    "inference": ("Inference", "Posteriors, calibration, reweighting."),
    "figures": ("Figures", "Arrays or `Spectra` in, a figure out."),
    "ranking": ("Ranking", "Any number of files cut into parts, scored apart and merged into one table."),
    "vetting": ("Vetting", "What people say of the most unusual: evidence, desk, gallery, labels."),
    "running": ("Running", "Scoring, chapters, reports, the command line."),
}


@dataclass(frozen=True)
class Module:
    "One notebook and the module it exports."

    notebook: Path  # nbs/10_spectra.wavelength.ipynb
    name: str  # spectra.wavelength

    @property
    def room(self) -> str:
        "The folder; for a module without one, by its floor."
        if "." in self.name: return self.name.split(".")[0]
        floor = int(self.notebook.name[:2])
        return "foundations" if floor < 10 else "training" if floor < 60 else "running"

    @property
    def file(self) -> Path:
        return PACKAGE / f"{self.name.replace('.', '/')}.py"

    @cached_property
    def source(self) -> str:
        return self.file.read_text()

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)


ONLY = ""  # what a notebook's name must match to have a page; a site of a few pages is for tests


def wanted(folder: Path) -> list[Path]:
    "The notebooks of a folder that the site shows, in order."
    return [path for path in sorted(folder.glob("*.ipynb")) if re.search(ONLY, path.stem)]


def modules() -> list[Module]:
    "All modules that are exported, in the order of their notebooks."
    return [module for module in map(_module, wanted(ROOT / "nbs")) if module.file.is_file()]


@cache
def _module(notebook: Path) -> Module:
    return Module(notebook, notebook.stem[3:])


def public(tree: ast.Module) -> list[str]:
    "The names in `__all__`."
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__": return ast.literal_eval(node.value)
    return []


def top_names() -> dict[str, str]:
    "What `import spectral_core as sc` offers: name → module, read from the table in `__init__.py`."
    for node in ast.parse((PACKAGE / "__init__.py").read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_HOME":
            return {name: home for home, names in ast.literal_eval(node.value).items() for name in names}
    return {}


def index() -> dict[str, str]:
    "Public name → its full name, where that is unique or `sc.` has chosen; names of modules, full or from the room on."
    homes: dict[str, list[str]] = {}
    for module in modules():
        if module.name == "cli": continue
        for name in public(module.tree): homes.setdefault(name, []).append(module.name)
    homes |= {name: [home] for name, home in top_names().items() if home in homes.get(name, [])}
    names = {name: f"spectral_core.{home[0]}.{name}" for name, home in homes.items() if len(home) == 1}
    full = {module.name: f"spectral_core.{module.name}" for module in modules() if module.name != "cli"}
    return names | {name: target for name, target in full.items() if "." in name} | {target: target for target in full.values()}


# ------------------------------------------------------------------ one module


def comments(source: str) -> dict[int, str]:
    "Line number → the comment at its end."
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


def own_names(module: Module) -> dict[str, str]:
    "What the names of this package mean inside a module: its own classes, and those it imports → full name."
    home = ["spectral_core", *module.name.split(".")]
    names = {node.name: ".".join([*home, node.name]) for node in module.tree.body if isinstance(node, ast.ClassDef)}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            source = [*home[: -node.level], *(node.module or "").split(".")]
            names |= {alias.asname or alias.name: ".".join([*source, alias.name]) for alias in node.names}
    return names


class _Qualify(ast.NodeTransformer):
    "Names in annotations become full names, which the site shows short and links."

    def __init__(self, names: dict[str, str]) -> None:
        self.names = names

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.parse(self.names[node.id], mode="eval").body if node.id in self.names else node


def _written_out(default: ast.expr | None) -> ast.expr | None:
    "A default as it stands; `...` for one that is computed by a loop or a function of its own."
    computed = default and any(isinstance(node, ast.comprehension | ast.Lambda) for node in ast.walk(default))
    return ast.Constant(...) if computed else default


def _signature(node: ast.FunctionDef, names: dict[str, str], method: bool = False) -> str:
    "`(files, model='sdss', *, out=None) -> Table`, without the `self` of a method."
    arguments = node.args
    decorators = [ast.unparse(d) for d in node.decorator_list]
    if method and "staticmethod" not in decorators:
        first = arguments.posonlyargs or arguments.args
        del first[0]
    for argument in ast.walk(arguments):
        if isinstance(argument, ast.arg) and argument.annotation:
            argument.annotation = _Qualify(names).visit(argument.annotation)
    arguments.defaults = [_written_out(default) for default in arguments.defaults]
    arguments.kw_defaults = [_written_out(default) for default in arguments.kw_defaults]
    returns = f" -> {ast.unparse(_Qualify(names).visit(node.returns))}" if node.returns else ""
    return f"({ast.unparse(arguments)}){returns}"


def _parameters(node: ast.FunctionDef, beside: dict[int, str]) -> list[str]:
    "`:param name: comment` for every parameter that has its line, and a comment on it, to itself."
    arguments = [a for a in ast.walk(node.args) if isinstance(a, ast.arg)]
    lines = [a.lineno for a in arguments]
    described = [a for a in arguments if lines.count(a.lineno) == 1 and a.lineno != node.lineno and beside.get(a.lineno)]
    return [f":param {a.arg}: {beside[a.lineno]}" for a in sorted(described, key=lambda a: a.lineno)]


def _directive(kind: str, signature: str, body: list[str], options: list[str] | None = None, depth: int = 3) -> list[str]:
    fence = "`" * depth
    return [f"{fence}{{py:{kind}}} {signature}", *(options or []), "", *body, fence, ""]


def _docstring(node: ast.AST) -> list[str]:
    return [*(ast.get_docstring(node) or "").splitlines(), ""]


def _function(node: ast.FunctionDef, names: dict[str, str], beside: dict[int, str], method: bool = False) -> list[str]:
    decorators = {ast.unparse(d) for d in node.decorator_list}
    if decorators & {"property", "cached_property"}:
        kind = [f":type: {ast.unparse(_Qualify(names).visit(node.returns))}"] if node.returns else []
        return _directive("property", node.name, _docstring(node), kind)
    options = [f":{d}:" for d in sorted(decorators & {"classmethod", "staticmethod"})]
    body = [*_docstring(node), *_parameters(node, beside)]
    return _directive("method" if method else "function", node.name + _signature(node, names, method), body, options)


def _class(node: ast.ClassDef, names: dict[str, str], beside: dict[int, str]) -> list[str]:
    "The class with its fields, properties and public methods inside."
    body, call = _docstring(node), ""
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and not item.target.id.startswith("_"):
            default = [f":value: {ast.unparse(item.value)}"] if item.value else []
            kind = f":type: {ast.unparse(_Qualify(names).visit(item.annotation))}"
            body += _directive("attribute", item.target.id, [beside.get(item.lineno, "")], [kind, *default])
        elif isinstance(item, ast.FunctionDef) and item.name == "__init__":
            call = _signature(item, names, method=True).removesuffix(" -> None")
            body += [*_parameters(item, beside), ""]
        elif isinstance(item, ast.FunctionDef) and not item.name.startswith("_"):
            body += _function(item, names, beside, method=True)
    if node.bases: body = ["Bases: " + ", ".join(f"`{ast.unparse(base)}`" for base in node.bases), "", *body]
    return _directive("class", node.name + call, body, depth=5)  # what is inside has shorter fences


def _constant(node: ast.Assign | ast.AnnAssign, name: str, beside: dict[int, str]) -> list[str]:
    value = ast.unparse(node.value) if node.value else ""
    return _directive("data", name, [beside.get(node.lineno, "")], [f":value: {value}"] if 0 < len(value) < 60 else [])


def module_page(module: Module) -> list[str]:
    "What a module offers, as the lines of a section."
    tree, names, offered = ast.parse(module.source), own_names(module), set(public(module.tree))
    beside = comments(module.source)
    where = f"[{module.notebook.stem}](../library/{module.notebook.name})"
    about = f"{ast.get_docstring(tree) or ''} Explained and checked in {where}."
    lines = [f"## {module.name}", "", "```{py:module} " + f"spectral_core.{module.name}", "```", "", about, ""]
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name in offered: lines += _function(node, names, beside)
        elif isinstance(node, ast.ClassDef) and node.name in offered: lines += _class(node, names, beside)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            flat = [n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]
            for name in flat: lines += _constant(node, name, beside) if name in offered else []
    return lines


# ------------------------------------------------------------------ pages


def summary(module: Module, name: str) -> str:
    "The first sentence of a name's docstring."
    for node in module.tree.body:
        if getattr(node, "name", "") == name:
            return re.split(r"(?<=[.:;])\s", " ".join((ast.get_docstring(node) or "").split()))[0].rstrip(":;")
    return ""


def overview() -> str:
    "The names of `spectral_core` itself, in the order of the floors, each with its first sentence."
    lines = ["# Reference", "", "> `import spectral_core as sc` loads nothing heavy: a name arrives when it is first used.", ""]
    offered, rooms = top_names(), {}
    for module in modules():
        for name in public(module.tree):
            if offered.get(name) == module.name: rooms.setdefault(module.room, []).append((module, name))
    for room, members in rooms.items():
        lines += [f"## {ROOMS[room][0]}", "", "```{list-table}", ":widths: 30 70", ":class: names", ""]
        for module, name in members:
            lines += [f"* - {{py:obj}}`sc.{name} <spectral_core.{module.name}.{name}>`", f"  - {summary(module, name)}"]
        lines += ["```", ""]
    lines += ["## Everything", "", "Every public name of every module, with its parameters:", "",
              "```{toctree}", ":maxdepth: 2", "", *ROOMS, "```", ""]
    return "\n".join(lines)


def pages() -> dict[str, str]:
    "File name → text of the reference: an overview and one page for every room."
    found = {"index.md": overview()}
    for room, (title, subtitle) in ROOMS.items():
        lines = [f"# {title}", "", f"> {subtitle}", ""]
        for module in modules():
            if module.room == room and module.name != "cli": lines += module_page(module)
        found[f"{room}.md"] = "\n".join(lines)
    return found
