"""The package as a whole: one list of requirements, floors, drift, forbidden patterns, what is in the wheel."""

import ast
import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import spectral_core

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "spectral_core"
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
CHAPTERS = sorted((ROOT / "papers").glob("[0-9]*.ipynb"))
BY_HAND = {"__init__", "__main__"}  # modules that no notebook exports
PUBLIC = sorted(set(spectral_core.__all__) - {folder.name for folder in PACKAGE.iterdir() if folder.is_dir()})

settings = configparser.ConfigParser()
settings.read(ROOT / "settings.ini")
settings = settings["DEFAULT"]


def code_cells(path: Path) -> list[str]:
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def default_exp(path: Path) -> str | None:
    "Dotted name of the module that a notebook exports, or None."
    found = re.findall(r"^#\|\s*default_exp\s+(\S+)", "\n".join(code_cells(path)), re.MULTILINE)
    assert len(found) <= 1, f"{path.name} exports to {found}"
    return found[0] if found else None


EXPORTS = {default_exp(path): path for path in NOTEBOOKS if default_exp(path)}


def module_file(name: str) -> Path:
    return PACKAGE / f"{name.replace('.', '/')}.py"


def package_files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path.name != "_modidx.py")


# ------------------------------------------------------------------ requirements


def requirements() -> list[Requirement]:
    return [Requirement(text) for key in settings if key.endswith("requirements") for text in settings[key].split()]


def pins() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_requirement_has_one_satisfying_pin(requirement):
    [pin] = [pin for pin in pins() if canonicalize_name(pin.name) == canonicalize_name(requirement.name)]
    [version] = [part.version for part in pin.specifier if part.operator == "=="]
    assert requirement.specifier.contains(version, prereleases=True)


def test_constraints_pin_each_package_once():
    names = [canonicalize_name(pin.name) for pin in pins()]
    assert len(names) == len(set(names))
    assert all([part.operator for part in pin.specifier] == ["=="] for pin in pins())


def test_environment_yml_installs_what_the_pins_say():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python = [line for line in environment["dependencies"] if isinstance(line, str) and line.startswith("python=")]
    assert python == [f"python={settings['min_python']}"]
    [pip] = [line["pip"] for line in environment["dependencies"] if isinstance(line, dict)]
    assert pip[0] == "-c constraints.txt" and len(pip) == 2
    editable = re.fullmatch(r"-e \.\[(.+)\]", pip[1])
    extras = {key.removesuffix("_requirements") for key in settings if key.endswith("_requirements")} | {"all"}
    assert editable and set(editable[1].split(",")) <= extras


def test_readme_commands_exist():
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?:^|`)make (\w+)", readme, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target} is in the README only"
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert pyproject["requires-python"] == f">={settings['min_python']}"


# ------------------------------------------------------------------ notebooks and modules


def test_every_module_has_a_notebook_and_every_notebook_a_module():
    modules = {str(p.relative_to(PACKAGE).with_suffix("")).replace("/", ".") for p in package_files()}
    modules = {name for name in modules if name.split(".")[-1] not in BY_HAND}
    assert modules == set(EXPORTS), "a renamed notebook leaves its old module behind; delete it, or export the new one"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_name_says_what_it_exports(path):
    "Notebook 20_archives.sdss.ipynb exports archives.sdss."
    assert re.fullmatch(r"\d\d_" + re.escape(default_exp(path) or r""), path.stem)


def test_fault_43_export_drift(tmp_path):
    "Exporting all notebooks in an empty tree gives exactly the modules that stand here."
    shutil.copy(ROOT / "settings.ini", tmp_path)
    shutil.copytree(ROOT / "nbs", tmp_path / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    (tmp_path / "spectral_core").mkdir()
    (tmp_path / "spectral_core/__init__.py").touch()
    subprocess.run([Path(sys.executable).with_name("nbdev_export")], cwd=tmp_path, check=True, capture_output=True)
    drifted = [EXPORTS[name].name for name in EXPORTS
               if (tmp_path / module_file(name).relative_to(ROOT)).read_text() != module_file(name).read_text()]
    assert not drifted, f"run nbdev_export: the modules of {drifted} are not what the notebooks export"


@pytest.mark.parametrize("path", NOTEBOOKS + CHAPTERS, ids=lambda path: path.stem)
def test_fault_43_notebook_is_clean(path):
    "No outputs, no counts, no metadata but tags: what is committed is the source."
    for cell in json.loads(path.read_text())["cells"]:
        assert set(cell["metadata"]) <= {"tags"}, f"{path.name}: metadata {cell['metadata']}"
        assert not cell.get("outputs") and cell.get("execution_count") is None, f"{path.name} has outputs"


def imports(tree: ast.AST, own: str) -> set[str]:
    "Modules of this package that a module imports, anywhere in it, as dotted names below spectral_core."
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(["spectral_core", *own.split(".")[: -node.level], *filter(None, [node.module])])
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name.removeprefix("spectral_core.") for name in found} & set(EXPORTS)


@pytest.mark.parametrize("name", EXPORTS)
def test_fault_44_imports_go_down_only(name):
    floor = int(EXPORTS[name].name[:2])
    above = {other: EXPORTS[other].name for other in imports(ast.parse(module_file(name).read_text()), name)
             if int(EXPORTS[other].name[:2]) >= floor}
    assert not above, f"{EXPORTS[name].name} imports {above}; a module imports from lower numbers only"


def test_imports_are_found_in_every_form():
    "The floor test is worth something only if no way to import escapes it."
    text = """
from ..core import DataError
from .. import transfer
from .surveys import SDSS
import spectral_core.manifest
def f():
    from spectral_core.spectra import lines
"""
    found = imports(ast.parse(text), "spectra.container")
    assert found == {"core", "transfer", "spectra.surveys", "manifest", "spectra.lines"}


def test_no_public_name_equals_a_module_name():
    "Else `spectral_core.name` is the function first, and the module once somebody has imported it."
    assert not set(PUBLIC) & {part for name in EXPORTS for part in name.split(".")}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_exists(name):
    assert getattr(spectral_core, name) is not None


def test_one_version():
    assert spectral_core.__version__ == settings["version"]


@pytest.mark.parametrize("name", EXPORTS)
def test_modules_and_functions_stay_small(name):
    "A module is at most 300 lines (nbdev's cell marks not counted), a function at most 40."
    text = module_file(name).read_text()
    lines = re.sub(r"\n*^# %%.*\n", "\n", text, flags=re.MULTILINE).splitlines()
    assert len(lines) <= 300, f"{name} has {len(lines)} lines: it holds two ideas, split it"
    long = {node.name: node.end_lineno - node.lineno + 1 for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > 40}
    assert not long, f"functions over 40 lines in {name}: {long}"


# ------------------------------------------------------------------ forbidden patterns

BANNED_CALLS = {"eval", "exec", "system", "popen"}
BANNED_IMPORTS = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal"}
BANNED_KEYWORDS = {("shell", True), ("weights_only", False), ("strict", False), ("allow_pickle", True)}


def banned(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            found += [f"line {node.lineno}: import {name}" for name in names if name.split(".")[0] in BANNED_IMPORTS]
        if not isinstance(node, ast.Call): continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        # model.eval() switches a network to evaluation; only the builtin takes an argument
        if name in BANNED_CALLS and (isinstance(node.func, ast.Name) or name in ("system", "popen")):
            found.append(f"line {node.lineno}: {name}()")
        if isinstance(node.func, ast.Attribute) and ast.unparse(node.func) in ("yaml.load", "torch.hub.load"):
            found.append(f"line {node.lineno}: {ast.unparse(node.func)}")
        if name == "zip": continue  # zip(strict=False) harms nobody
        found += [f"line {node.lineno}: {key.arg}={key.value.value}" for key in node.keywords
                  if isinstance(key.value, ast.Constant) and (key.arg, key.value.value) in BANNED_KEYWORDS]
    return found


@pytest.mark.parametrize("path", package_files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_forbidden_patterns_in_modules(path):
    assert not banned(ast.parse(path.read_text()))


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_no_forbidden_patterns_in_chapters(path):
    cells = nbformat.read(path, as_version=4).cells
    for text in code_cells(path):
        tree = ast.parse(text)
        assert not banned(tree)
        assert not any(ast.unparse(node.func) in ("sys.exit", "exit", "quit") for node in ast.walk(tree)
                       if isinstance(node, ast.Call)), "a chapter that exits early looks finished"
    assert not any("raises-exception" in cell.metadata.get("tags", []) for cell in cells)
    assert [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])], "no cell is tagged parameters"


@pytest.mark.parametrize("text", [
    "import pickle", "from joblib import load", "eval('1')", "os.system('ls')", "subprocess.run('ls', shell=True)",
    "torch.load(f, weights_only=False)", "model.load_state_dict(d, strict=False)", "np.load(f, allow_pickle=True)",
    "yaml.load(text)", "torch.hub.load('a', 'b')",
])
def test_forbidden_patterns_are_recognised(text):
    assert banned(ast.parse(text))


def test_harmless_look_alikes_are_let_through():
    text = "model.eval(); zip(a, b, strict=False); re.compile('eval'); torch.load(f, weights_only=True)"
    assert not banned(ast.parse(text))


# ------------------------------------------------------------------ import and wheel


def test_fault_44_import_is_light_and_fast():
    code = """
import sys, time
start = time.process_time()
import spectral_core
print(time.process_time() - start, *sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, *modules = done.stdout.split()
    heavy = {"torch", "umap", "sklearn", "shap", "matplotlib", "papermill", "sbi", "nflows"} & set(modules)
    assert not heavy and float(seconds) < 2


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    "A wheel, built from the source distribution of a copy of what is under version control or about to be."
    source = tmp_path_factory.mktemp("source")
    keep = ["pyproject.toml", "setup.py", "settings.ini", "constraints.txt", "MANIFEST.in", "README.md", "LICENSE"]
    for name in keep: shutil.copy(ROOT / name, source)
    ignore = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for folder in ("spectral_core", "papers", "data_manifests"):
        shutil.copytree(ROOT / folder, source / folder, ignore=ignore)
    (source / "papers" / "99_toy.ipynb").write_text("{}")  # whether or not a chapter exists yet
    (source / "spectral_core/assets/toy").mkdir(parents=True)
    (source / "spectral_core/assets/toy/model.json").write_text("{}")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist"]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "would be ignored" not in done.stdout + done.stderr, "setuptools is about to leave out package data"
    [file] = (source / "dist").glob("*.whl")
    return file


@pytest.fixture(scope="module")
def wheel(built):
    "The names in the wheel."
    with zipfile.ZipFile(built) as archive: return set(archive.namelist())


def assets() -> list[Path]:
    return [path for path in (PACKAGE / "assets").rglob("*") if path.is_file() and "__pycache__" not in path.parts]


def test_wheel_holds_modules_chapters_manifests_and_assets(wheel):
    wanted = {f"spectral_core/{path.relative_to(PACKAGE)}" for path in package_files()}
    wanted |= {f"spectral_core/{path.relative_to(PACKAGE)}" for path in assets()}
    wanted |= {f"spectral_core/papers/{path.name}" for path in (ROOT / "papers").glob("*.json")}
    wanted |= {f"spectral_core/papers/{path.name}" for path in CHAPTERS}
    wanted |= {f"spectral_core/data_manifests/{path.name}" for path in (ROOT / "data_manifests").glob("*.json")}
    wanted |= {"spectral_core/papers/99_toy.ipynb", "spectral_core/assets/toy/model.json"}
    assert not wanted - wheel


def test_wheel_holds_nothing_else(wheel):
    inside = {name.split("/")[0] for name in wheel}
    assert inside == {"spectral_core", f"spectral_core-{settings['version']}.dist-info"}


def test_shipped_files_stay_small():
    sizes = [path.stat().st_size for path in assets()]
    assert sum(sizes) <= 40e6 and max(sizes) <= 8e6


def test_an_installed_wheel_finds_its_chapters_manifests_and_models_outside_a_clone(built, tmp_path):
    with zipfile.ZipFile(built) as archive: archive.extractall(tmp_path / "installed")
    code = """
import spectral_core
from spectral_core.chapters import list_chapters
from spectral_core.core import assets_dir
from spectral_core.manifest import list_datasets
from spectral_core.spectra.preprocessing import sky_lines
print(spectral_core.__file__, *list_chapters().values(), assets_dir(), len(list_datasets()), len(sky_lines()), sep="|")
"""
    env = os.environ | {"PYTHONPATH": str(tmp_path / "installed")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *paths, n_datasets, n_lines = done.stdout.strip().split("|")
    assert all(path.startswith(str(tmp_path / "installed")) and Path(path).exists() for path in paths), paths
    assert int(n_datasets) == len(list((ROOT / "data_manifests").glob("*.json"))) and int(n_lines) > 100
    assert [Path(path).name for path in paths[1:-1]] == [*(path.name for path in CHAPTERS), "99_toy.ipynb"]
