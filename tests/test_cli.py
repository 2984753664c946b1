"""The command line: what it starts, what it prints, how it fails."""

import subprocess
import sys
from importlib.metadata import version

import pytest
from matplotlib.figure import Figure

from spectral_core import chapters, manifest, scoring
from spectral_core.cli import main
from spectral_core.core import ConfigError, write_json
from spectral_core.results import ChapterRun

RESULTS = {"chapter": "01_redshift_invariance", "run_id": "0123456789abcdef", "seconds": 12.3,
           "parameters": {"out": "/runs/x"}, "claims": [{"verdict": "reproduced"}, {"verdict": "contradicted"}]}


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
    (["score", "x.fits", "--model", "sdsss"], "ModelFileError: no model 'sdsss'"),
    (["score", "x.fits", "--out", "x.doc"], "ConfigError: x.doc"),
    (["report", "nowhere"], "RunError: nowhere holds no finished run")])
def test_errors_of_the_library_are_one_line_and_code_2(command, arguments, message):
    code, out, err = command(*arguments)
    assert code == 2 and out == "" and message in err and err.count("\n") == 1


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
    table["list"] = ["ranked", "flagged"]
    given = {}
    monkeypatch.setattr(scoring, "score", lambda files, **settings: given.update(settings, files=files) or table)
    code, out, _ = command("score", "a.fits", "b", "--pictures", 3)
    assert code == 0 and out.splitlines()[-1] == "2 rows: 1 ranked, 1 flagged"
    assert str(2**60) in out and "no redshift" in out and " 0.1235 " in out
    assert [str(f) for f in given["files"]] == ["a.fits", "b"] and (given["model"], given["pictures"]) == ("sdss", 3)
    record = {"lists": {"ranked": 7, "flagged": 5}, "spectra": 6, "parts": 2, "scored_now": 3}
    done = lambda *names, **settings: given.update(settings, names=names) or (record, table)
    monkeypatch.setattr(scoring, "score_survey", done)
    code, out, _ = command("score", "a.fits", "--out", "ranked.fits", "--latents", "latents.fits", "--device", "cpu")
    assert code == 0 and out.splitlines()[-2:] == ["12 rows: 7 ranked, 5 flagged", "ranked.fits"]
    assert [str(n) for n in given["names"][1:]] == ["ranked.fits", "sdss"]
    assert (str(given["latents"]), given["device"]) == ("latents.fits", "cpu")
    code, out, _ = command("score", "a.fits", "--out", "ranked.fits", "--shard", "2/4")
    assert (code, out, given["shard"]) == (0, "shard 2/4: 6 spectra in 2 parts, 3 of them scored now\n", "2/4")
    assert "--out" in command("score", "a.fits", "--shard", "2/4")[2]


def test_fetch_and_list(command, monkeypatch):
    monkeypatch.setattr(manifest, "fetch", lambda name, **settings: ["one", "two"])
    assert command("fetch", "a", "b") == (0, "a: 2 files\nb: 2 files\n", "")
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
