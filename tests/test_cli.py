"""The command line: what it starts, what it prints, how it fails."""

import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest
from matplotlib.figure import Figure

from spectral_core import chapters, manifest, scoring
from spectral_core.cli import main
from spectral_core.core import ConfigError, write_json
from spectral_core.results import ChapterRun

RESULTS = {"chapter": "01_redshift_invariance", "run_id": "0123456789abcdef", "seconds": 12.3,
           "parameters": {"out": "/runs/x"}, "claims": [{"verdict": "reproduced"}, {"verdict": "contradicted"}]}
NOT_SAID = "flagged: 1 × no redshift (in the header: Z, REDSHIFT, …, see docs/own_spectra.md)"


@pytest.fixture
def command(capsys, monkeypatch):
    "Run a command; returns (exit code, stdout, stderr)."
    monkeypatch.delenv("SPECTRAL_DEBUG", raising=False)

    def run(*arguments):
        with pytest.raises(SystemExit) as stop: main([str(a) for a in arguments])
        return stop.value.code, *capsys.readouterr()

    return run


def test_help_and_version_need_no_torch():
    "In a fresh process: the import of the command and its help load neither torch nor matplotlib nor papermill."
    code = "import sys\nfrom spectral_core.cli import main\ntry: main(['run', '--help'])\nexcept SystemExit as stop:\n" \
           " print(stop.code, sorted({'torch', 'matplotlib', 'papermill', 'sklearn', 'astropy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []" and "--profile" in done.stdout
    done = subprocess.run([sys.executable, "-m", "spectral_core", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == version("spectral-core")


def test_run_hands_everything_on(command, monkeypatch):
    given = {}
    monkeypatch.setattr(chapters, "run_chapter", lambda chapter, **settings: given.update(settings, chapter=chapter) or RESULTS)
    code, out, _ = command("run", "01", "--profile", "smoke", "--source", "sdss", "--train", "source", "--data", "files",
                           "--seed", 3, "--device", "cpu", "--out", "here", "-p", "n_rows", "-5", "-p", "name=a=b",
                           "--force", "--stale", "redo")
    assert code == 0 and out.splitlines()[-1] == "/runs/x/report.html"
    assert "1 reproduced, 1 contradicted" in out and "run 01234567" in out
    assert given.pop("parameters") == {"n_rows": "-5", "name": "a=b"}
    assert {k: str(v) for k, v in given.items()} == {
        "chapter": "01", "profile": "smoke", "source": "sdss", "train": "source", "data": "files", "seed": "3",
        "device": "cpu", "out": "here", "force": "True", "stale": "redo"}


@pytest.mark.parametrize("arguments, message", [
    (["run", "77"], "ConfigError: there is no chapter '77'"),
    (["run", "01", "-p", "alone"], "ConfigError: write -p name value"),
    (["run", "01", "-p", "a", "1", "-p", "a", "2"], "ConfigError: write -p name value once"),
    (["fetch", "sdss_galaxy_spektra"], "sdss_galaxy_spectra"),
    (["run", "01", "--data", "mix"], "--source sdss"),
    (["run", "01", "--source", "lamost"], "source must be one of"),
    (["fetch", "nope"], "`spectral-core list` names them all"),
    (["score", "x.fits", "--model", "sdsss"], "ModelFileError: no model 'sdsss'"),
    (["score", "x.fits", "--model", "nope"], "no model 'nope' that ranks spectra; there are desi, desi_stars, sdss, or a folder"),
    (["score", "x.fits", "--out", "x.doc"], "ConfigError: x.doc"),
    (["report", "nowhere"], "RunError: nowhere holds no finished run")])
def test_errors_of_the_library_are_one_line_and_code_2(command, arguments, message):
    code, out, err = command(*arguments)
    assert code == 2 and out == "" and message in err and err.count("\n") == 1 and "None" not in err


def test_mistakes_at_the_prompt(command, monkeypatch):
    code, _, err = command("run", "01", "--profil", "demo")
    assert code == 2 and "--profil" in err
    assert command("run", "01", "--seed", "many")[0] == 2
    assert command("rum", "01")[0] == 2
    monkeypatch.setenv("SPECTRAL_DEBUG", "1")
    with pytest.raises(ConfigError): main(["run", "77"])


def test_score_prints_the_top_and_where_the_table_is(command, monkeypatch, tmp_path):
    from astropy.table import Table

    table = Table({"rank": [1, -1], "id": [2**60, -1], "z": [0.123456, 0.2], "reason": ["", "no redshift"]})
    table["list"], table["file"] = ["ranked", "flagged"], ["a.fits", "b/c.fits"]
    given = {}
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(scoring, "score", lambda files, **settings: given.update(settings, files=files) or table)
    code, out, _ = command("score", "a.fits", "b", "--pictures", 3)
    assert code == 0 and out.splitlines()[-2:] == ["2 rows: 1 ranked, 1 flagged", NOT_SAID + ", in b/c.fits"]
    assert str(2**60) in out and "no redshift" in out and " 0.1235 " in out
    assert [str(f) for f in given["files"]] == ["a.fits", "b"] and (given["model"], given["pictures"]) == ("sdss", 3)
    reasons = [("flagged", 4, "no redshift", "x.fits"), ("flagged", 1, "no data", "y.fits")]
    record = {"lists": {"ranked": 7, "flagged": 5}, "reasons": reasons, "pictures": ["ranked_1.png"]}
    record |= {"spectra": 6, "parts": 1, "scored_now": 3}
    done = lambda *names, **settings: given.update(settings, names=names) or (record, table)
    monkeypatch.setattr(scoring, "score_survey", done)
    code, out, _ = command("score", "a.fits", "--out", "ranked.fits", "--latents", "latents.fits", "--device", "cpu")
    assert code == 0 and out.splitlines()[-5:] == ["12 rows: 7 ranked, 5 flagged", NOT_SAID.replace("1", "4") + ", e.g. x.fits",
                                                  "flagged: 1 × no data, in y.fits", "ranked_1.png", "ranked.fits"]
    assert [str(n) for n in given["names"][1:]] == ["ranked.fits", "sdss"]
    assert (str(given["latents"]), given["device"]) == ("latents.fits", "cpu")
    code, out, _ = command("score", "a.fits", "--out", "ranked.fits", "--shard", "2/4")
    assert (code, out, given["shard"]) == (0, "shard 2/4: 6 spectra in 1 part, 3 scored now\n", "2/4") and not given["force"]
    for option in (["--shard", "2/4"], ["--force"]): assert "--out" in command("score", "a.fits", *option)[2]
    code, _, err = command("score", "a.fits", "--pictures", -1)
    assert code == 2 and "--pictures" in err
    table.meta["pictures"] = '["score_1.png"]'
    assert command("score", "a.fits", "--pictures", 1)[1].splitlines()[-1] == "score_1.png"


def test_what_score_prints_fits_the_screen_and_counts_other_files(command, monkeypatch, tmp_path):
    from astropy.table import Table

    table = Table({"rank": [1, -1], "id": [2**60, -1], "z": [0.123456, np.nan], "sn": [3.0, np.nan],
                   "neg_log_prob": [9.0, np.nan], "tail_probability": [0.01, np.nan], "chi2_valid": [1.0, np.nan],
                   "reason": ["", "truncated: " + "x" * 130],
                   "list": ["ranked", "not read"], "file": ["spec-0266-51602-0003.fits", "deep/" * 20 + "cut.fits"]})
    monkeypatch.setattr(scoring, "score", lambda files, **settings: table)
    for kind in range(7): (tmp_path / f"objects.{kind}").write_text("id\n")
    for width in (80, 120, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        code, out, _ = command("score", tmp_path)
        assert code == 0 and max(map(len, out.splitlines())) <= width
        text = " ".join(out.split())
        assert " 2 rows: 1 ranked, 1 not read; 7 other files passed over (" in text
        assert " and 2 more kinds) not read: 1 × truncated: xxx" in text
        assert (str(2**60) in out) == (width >= 120), "the id outlives chi2_valid and sn"
        for text in ("truncated: xxx", "…", "cut.fits", "tail_probability", "spec-0266-51602-0003.fits"): assert text in out
    assert str(2**60) in out and "chi2_valid" in out
    assert table["reason"][1].endswith("x" * 130), "only what is printed is cut"
    table["file_row"] = [41, -1]
    monkeypatch.setenv("COLUMNS", "80")
    out = command("score", tmp_path)[1]
    assert " 41 " in out and "file_row" in out and str(2**60) not in out, "fibres of one coadd are told apart"


def test_reasons_are_counted_and_a_single_file_is_not_many(command, tmp_path, monkeypatch):
    "From files: the wrong unit of most, and a text that is no FITS file; then a data set that is no store."
    from astropy.table import Table

    from spectral_core.archives.sdss import write_sdss
    from spectral_core.simulate.mock import mock_survey

    monkeypatch.chdir(tmp_path)
    for i in range(3): Table({"wave": [4000.0, 4001.0], "flux": [1.0, i]}).write(f"{i}.fits")
    for name in ("x.csv", "y.txt"): (tmp_path / name).write_text("wave,flux\n4000,1\n")
    code, _, err = command("score", "x.csv", "--out", "t.fits")
    assert code == 2 and err.endswith(": text must become a FITS table, see docs/own_spectra.md\n")
    assert not (tmp_path / "t.fits.parts").exists()
    monkeypatch.setenv("COLUMNS", "300")
    write_sdss(mock_survey("sdss", n=1, seed=0), tmp_path / "good")
    for extra in ([], ["--out", "t.ecsv"]):
        three = [tmp_path / f"{i}.fits" for i in range(3)]
        code, out, err = command("score", tmp_path / "good", *three, "x.csv", "y.txt", *extra)
        lines = out.splitlines()
        first, second = (next(line for line in lines if line.startswith(f"not read: {n} × ")) for n in (3, 2))
        assert code == 0 and " × no spectrum found" in first and first.endswith(", e.g. 0.fits")
        assert " × not a FITS file" in second and "docs/own_spectra.md, e.g. x.csv" in second
    code, _, err = command("fit", "0.fits", "--model", "sdss", "--out", "f")
    assert code == 2 and err.splitlines()[-1].startswith("DataError: 0.fits is not a store")
    code, out, _ = command("score", tmp_path / "good")
    assert "1 row: 1 " in out


def test_coadds_without_redrock_say_where_redshifts_are():
    from spectral_core.cli import _why

    [coadd, spec] = _why([("flagged", 5, "no redshift, cropped", "coadd-1.fits"), ("flagged", 1, "no redshift", "mine.fits")])
    assert coadd == "flagged: 5 × no redshift, cropped (DESI's are in redrock-*.fits beside the coadd), e.g. coadd-1.fits"
    assert spec == f"{NOT_SAID}, in mine.fits"
    [deep] = _why([("flagged", 1, "no redshift", "sv3/bright/coadd-1.fits")])
    assert "redrock-*.fits" in deep and "header" not in deep
    assert [*_why([("flagged", 1, "no data", "a.fits")])] == ["flagged: 1 × no data, in a.fits"]


def test_fetch_and_list(command, monkeypatch):
    monkeypatch.setattr(manifest, "fetch", lambda name, **settings: ["one", "two"])
    assert command("fetch", "a", "b") == (0, "a: 2 files\nb: 2 files\n", "")
    monkeypatch.setattr(manifest, "fetch", lambda name, **settings: ["one"])
    assert command("fetch", "a")[1] == "a: 1 file\n"
    code, out, _ = command("list")
    assert code == 0 and "sdss_galaxy_spectra" in out and all(f"chapter {name}" in out for name in chapters.list_chapters())


def test_report_of_two_runs(command, tmp_path):
    write_json(tmp_path / "claims.json", [])
    for name in "ab":
        run = ChapterRun("02_x", out=tmp_path / name, claims=tmp_path / "claims.json", source="mock", profile="smoke")
        run.figure(Figure(), "one", "One.")
        run.finish()
    code, out, _ = command("report", "--out", tmp_path / "all.html", tmp_path / "a", tmp_path / "b")
    assert (code, out.strip()) == (0, str(tmp_path / "all.html")) and "2 runs" in (tmp_path / "all.html").read_text()
    assert command("report", "--out", tmp_path / "all.html", tmp_path)[0] == 0 and "2 runs" in (tmp_path / "all.html").read_text()


# ------------------------------------------------------------------ completion and help

COMPLETE = """import os, sys
os.environ |= {"COMP_WORDS": sys.argv[1], "COMP_CWORD": sys.argv[2], "_SPECTRAL_CORE_COMPLETE": "complete_bash"}
from spectral_core.cli import main
try: main([])
finally: print(sorted({"torch", "matplotlib", "papermill", "sklearn", "astropy"} & set(sys.modules)))"""


def complete(line: str) -> list[str]:
    "What a tab at the end of the line offers, in a fresh process that must load nothing heavy."
    words = line.split(" ")
    done = subprocess.run([sys.executable, "-c", COMPLETE, line, str(len(words) - 1)], capture_output=True, text=True, check=True)
    *offered, loaded = done.stdout.splitlines()
    assert loaded == "[]", f"{line!r} loads {loaded}"
    return offered


@pytest.mark.parametrize("line, offered", [
    ("spectral-core run 0", [name[:2] for name in chapters.list_chapters()]),
    ("spectral-core run 02_", ["02_probabilistic_autoencoder"]),
    ("spectral-core run 01 --profile ", ["smoke", "demo", "paper"]),
    ("spectral-core score x.fits --model sd", ["sdss"]),
    ("spectral-core fetch demo sdss_galaxy_s", ["sdss_galaxy_spectra"])])
def test_a_tab_offers_what_there_is_without_torch(line, offered):
    assert complete(line) == offered


def test_what_is_offered_as_a_model_can_be_scored_with():
    "The names come from file names alone; here each is loaded and ranks a spectrum."
    from spectral_core.core import shipped_models
    from spectral_core.spectra.container import Spectra

    for name in shipped_models(ranking=True):
        models = scoring.open_models(name)
        survey = models.autoencoder.survey
        spectra = Spectra(*[[[1.0] * survey.grid.n]] * 2, [0.1], survey)
        assert len(scoring._rank(models, spectra, "cpu")[0]) == 1


@pytest.mark.parametrize("command_name", ["", "run", "score", "fit", "fetch", "list", "report", "vet"])
def test_every_option_says_what_it_does(command_name):
    "Every command, argument and option has a help text of its own."
    import typer.main

    from spectral_core.cli import app

    top = typer.main.get_command(app)
    found = top.commands[command_name] if command_name else top
    assert set(top.commands) >= {"run", "score", "fetch", "list", "report"} and (found.help or "").strip()
    silent = [p.name for p in found.params if not getattr(p, "help", None) and not getattr(p, "hidden", False)]
    assert not silent, f"{command_name or 'spectral-core'}: no help for {silent}"


def test_help_asks_no_value_of_a_flag_and_cuts_no_sentence(command):
    for name in ("run", "score", "fit", "fetch", "vet"):
        out = command(name, "--help")[1]
        assert "<bool>" not in out and "--help " in out
    assert "..." not in command("--help")[1].partition("Commands:")[2]


def test_completion_is_installed_for_the_shell_in_use(tmp_path):
    import os

    env = os.environ | {"HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    command = [sys.executable, "-c", "from spectral_core.cli import main; main()", "--install-completion", "bash"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [script] = [path for path in tmp_path.rglob("*") if path.is_file() and "_SPECTRAL_CORE_COMPLETE" in path.read_text()]
    assert str(script) in (tmp_path / ".bashrc").read_text()
