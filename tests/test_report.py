"""Claims and their verdicts, the book a chapter keeps, tables on disk, and the page."""

from html.parser import HTMLParser
from io import BytesIO
from urllib.parse import unquote

import numpy as np
import pytest
from astropy.table import Table
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from spectral_core.core import ConfigError, RunError, write_json
from spectral_core.reporting import duration, light_png, write_report
from spectral_core.results import ChapterRun, publish_run, read_claims, read_results, verdict, write_table

CLAIM = {"id": "ratio", "what": "Δs_aug / Δs_rand", "paper": 0.04, "where": "Table 1", "tolerance": {"at_most": 0.13},
         "no_effect": 1.0}


def claim(rule, width, paper=2.0, **more):
    return dict(CLAIM, paper=paper, tolerance={rule: width}, **{"no_effect": 0.0} | more)


@pytest.mark.parametrize("rule, width, inside, outside", [
    ("relative", 0.1, [1.81, 2.19], [1.79, 2.21]), ("absolute", 0.5, [1.5, 2.5], [1.49, 2.51]),
    ("factor", 2.0, [1.0, 4.0], [0.99, 4.01]), ("at_least", 1.0, [1.0, 99.0], [0.99]),
    ("at_most", 3.0, [3.0, 0.1], [3.01]), ("between", [1.0, 3.0], [1.0, 3.0], [0.99, 3.01]),
    ("sign", 0, [0.01, 99.0], [])])
def test_each_rule_on_both_sides_of_its_edge(rule, width, inside, outside):
    assert {verdict(x, claim(rule, width), mock=False) for x in inside} == {"reproduced"}
    assert {verdict(x, claim(rule, width), mock=False) for x in outside} <= {"same sign"}
    assert verdict(-5.0, claim(rule, width), mock=False) == ("reproduced" if rule == "at_most" else "contradicted")


@settings(max_examples=200, derandomize=True)
@given(ours=st.floats(-1e6, 1e6), paper=st.floats(0.01, 1e3), null=st.floats(-10, 10), width=st.floats(0, 2))
def test_laws_of_the_verdict(ours, paper, null, width):
    plain, effect = claim("relative", width, paper), claim("relative", width, paper, no_effect=null)
    del plain["no_effect"]
    assert verdict(paper, plain, mock=False) == "reproduced"
    assert verdict(ours, plain, mock=False) in ("reproduced", "contradicted")  # without no_effect there is no middle
    assert verdict(ours, effect, mock=True) == verdict(ours, effect, mock=False)
    if verdict(ours, effect, mock=False) == "same sign": assert (ours > null) == (paper > null)
    hand = dict(effect, mock_cannot_test="put in by hand")
    assert verdict(ours, hand, mock=True) == "mock cannot test" != verdict(ours, hand, mock=False)


@pytest.mark.parametrize("change, message", [
    ({"no_efect": 1.0}, "no field 'no_efect'; did you mean 'no_effect'"), ({"paper": "0.04"}, "paper must be float"),
    ({"paper": True}, "paper must be float"), ({"where": None}, "where must be str"),
    ({"tolerance": {"atmost": 1}}, "tolerance must hold one rule"), ({"tolerance": {}}, "tolerance must hold one rule"),
    ({"tolerance": {"sign": 0}, "no_effect": None}, "needs no_effect"), ({"tolerance": {"between": 3}}, "two numbers, not 3"),
    ({"tolerance": {"relative": "0.1"}}, "takes a number"), ({"tolerance": {"at_most": True}}, "takes a number"),
    ({"tolerance": {"factor": 2}, "paper": 0.0}, "factor of 0")])
def test_a_claims_file_is_checked(change, message, tmp_path):
    write_json(tmp_path / "claims.json", [{k: v for k, v in (CLAIM | change).items() if v is not None}])
    with pytest.raises(ConfigError, match=message): read_claims(tmp_path / "claims.json")


def test_a_claim_stands_once(tmp_path):
    write_json(tmp_path / "claims.json", [CLAIM, CLAIM])
    with pytest.raises(ConfigError, match="'ratio'.* twice"): read_claims(tmp_path / "claims.json")


@pytest.fixture
def book(tmp_path):
    third = dict(CLAIM, id="third", mock_cannot_test="put in by hand")
    write_json(tmp_path / "claims.json", [CLAIM, dict(CLAIM, id="other"), third])
    return lambda name="run", **p: ChapterRun("01_redshift_invariance", out=tmp_path / name,
                                              claims=tmp_path / "claims.json", profile="smoke", **p)


def test_a_book_holds_what_it_was_told_once(book):
    run = book(source="mock", n_rows=3)
    run.metric("values", {"a": np.float32(1.5), "b": np.array([1, 2]), "c": np.nan, "d": np.inf})
    with pytest.raises(RunError, match="recorded twice"): run.metric("values", 1)
    assert run.claim("ratio", np.float64(0.5), interval=(0.4, 0.6)) == "same sign"
    with pytest.raises(RunError, match="recorded twice"): run.claim("ratio", 0.5)
    with pytest.raises(ConfigError, match="did you mean 'ratio'"): run.claim("ration", 0.5)
    assert run.claim("other", np.nan) == "not measured"
    assert run.claim("third", 0.1) == "mock cannot test"
    run.figure(Figure(), "one", "A figure.")
    with pytest.raises(RunError, match="saved twice"): run.figure(Figure(), "one", "Another.")
    run.finish()
    results = read_results(run.out)
    assert results["metrics"] == {"values": {"a": 1.5, "b": [1, 2], "c": None, "d": None}}
    assert [c["verdict"] for c in results["claims"]] == ["same sign", "mock cannot test"]
    assert results["not_measured"] == ["other"] and results["claims"][0]["interval"] == [0.4, 0.6]
    assert results["parameters"] == {"profile": "smoke", "source": "mock", "n_rows": 3, "out": str(run.out)}
    assert set(results["versions"]) > {"python", "numpy", "spectral-core"}


def test_a_real_run_is_judged_and_stamped_as_real(book, tmp_path):
    pictures = {}
    for source in ("mock", "sdss"):
        run = book(source, source=source)
        assert run.claim("third", 0.1) == ("mock cannot test" if source == "mock" else "reproduced")
        run.figure(Figure(figsize=(2, 2)), "blank", "Nothing but the stamp.")
        run.figure(Figure(figsize=(2, 2)), "mock", "Said to be simulated.", mock=True)
        run.finish()
        pictures[source] = [(run.out / "figures" / f"{n}.png").read_bytes() for n in ("blank", "mock")]
    assert pictures["mock"][0] == pictures["mock"][1] == pictures["sdss"][1] != pictures["sdss"][0]


def test_under_a_runner_nothing_is_published_and_a_new_book_starts_clean(book):
    run = book(run_id="abc")
    run.figure(Figure(), "old", "From a run that was killed.")
    run = book(run_id="abd")
    run.finish()
    assert not (run.out / "results.json").exists() and not (run.staging / "figures").exists()
    assert publish_run(run.out) == run.out / "results.json" and not run.staging.exists()


def test_catalogues_keep_units_shapes_and_text(book, tmp_path):
    from astropy import units

    table = Table({"id": np.array([2**60]), "latents": np.ones((1, 6), "f4"), "reason": ["peak above 100 × continuum"],
                   "flux": np.array([1.5]) * units.Unit("erg / (s cm2)")})
    run = book()
    run.catalogue(table)
    assert run.finish()["catalogues"] == ["catalogue.fits", "catalogue.parquet"]
    for name in ("catalogue.fits", "catalogue.parquet"):
        back = Table.read(run.out / name)
        assert back["id"][0] == 2**60 and back["latents"].shape == (1, 6) and back["flux"].unit == table["flux"].unit
    with pytest.raises(ConfigError, match="written as .fits"): write_table(table, tmp_path / "table.txt")


class Page(HTMLParser):
    "Text, pictures, links and the balance of the tags of a page."

    def __init__(self, path):
        super().__init__()
        self.text, self.images, self.links, self.open = "", [], [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "img": self.images.append(attrs)
        if tag == "a": self.links.append(attrs["href"])
        if tag not in ("img", "meta", "br"): self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def report(book, tmp_path):
    "A page of two runs, one of which knows its chapter's title."
    for name, source in (("a", "mock"), ("b & <c>", "sdss")):
        run = book(name, source=source, seed=1, train="mock")
        run.metric("auc", {"quasars": 0.93456, "rows": [1.0, 2.0], "a_long_name_" * 9: 1.0})
        run.claim("ratio", 0.5, interval=(0.4, 0.6))
        run.claim("third", 0.1)
        run.figure(Figure(figsize=(6, 3)), "one", 'A "quoted" <b>caption</b>.')
        run.catalogue(Table({"id": [1]}))
        run.finish()
    first = "# 01 · Moved & unmoved\n\n> Author & Author (2023),\n> *A Paper*.\n\nText."
    cell = {"cell_type": "markdown", "source": first.splitlines(keepends=True)}
    write_json(tmp_path / "a/01_executed.ipynb", {"cells": [cell]})
    return write_report([tmp_path / "a", tmp_path / "b & <c>"], tmp_path / "pages" / "report.html")


def test_the_page_is_whole_offline_and_says_everything(report):
    html = Page(report)
    assert not html.open and "http" not in report.read_text() and "<b>" not in report.read_text()
    assert [i["alt"] for i in html.images] == ['A "quoted" <b>caption</b>.'] * 2
    assert all(i["src"].startswith("data:image/png;base64,") for i in html.images)
    for text in ("1 same sign", "1 mock cannot test", "1 reproduced", "[0.4, 0.6]", "≤ 0.13", "Table 1", "0.9346", "4 claims",
                 "2 same sign", "auc · quasars", "Not measured in this run: other", "seed 1", "01 · redshift invariance",
                 "01 · Moved & unmoved", "Author & Author (2023), A Paper.", "put in by hand"):
        assert text in html.text, text
    assert html.text.count("Simulated data") == 1 and html.text.count("Profile smoke: its sizes are too small") == 1
    inside, outside = ([x for x in html.links if x.startswith("#") is here] for here in (True, False))
    assert set(inside) == {"#top", "#a", "#b%20%26%20%3Cc%3E"}
    assert all((report.parent / unquote(x)).is_file() for x in outside) and len(outside) == 7


def test_a_page_of_another_profile_says_nothing_of_smoke(tmp_path):
    write_json(tmp_path / "claims.json", [CLAIM])
    run = ChapterRun("01_redshift_invariance", out=tmp_path / "run", claims=tmp_path / "claims.json", profile="demo")
    run.finish()
    assert "smoke" not in Page(write_report(run.out, tmp_path / "report.html")).text


def test_a_page_needs_finished_runs(tmp_path):
    with pytest.raises(RunError, match="no finished run"): write_report(tmp_path, tmp_path / "report.html")
    with pytest.raises(RunError, match="name at least one"): write_report([], tmp_path / "report.html")
    (tmp_path / "results.json").write_text('{"run_id": ')
    with pytest.raises(RunError, match="not readable JSON"): write_report(tmp_path, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_the_folder_above_runs_stands_for_those_that_are_finished(tmp_path):
    write_json(tmp_path / "claims.json", [])
    runs = tmp_path / "runs"
    for name in ("a", "b", "a.former"):
        ChapterRun("02_x", out=runs / name, claims=tmp_path / "claims.json", profile="demo").finish()
    for name in ("stopped", ".unfinished"): (runs / name).mkdir()
    (runs / ".unfinished/results.json").write_text("{}")
    page = write_report(runs, tmp_path / "report.html").read_text()
    assert page == write_report([runs / "a", runs / "b"], tmp_path / "report.html").read_text() and "2 runs" in page
    with pytest.raises(RunError, match="stopped holds no finished run"):
        write_report([runs, runs / "stopped"], tmp_path / "report.html")


def test_times_as_one_says_them():
    assert [duration(s) for s in (0.4, 41.2, 59.7, 3599.4, 7380)] == ["0 s", "41 s", "1 min 0 s", "59 min 59 s", "2 h 3 min"]


@settings(max_examples=20, derandomize=True, deadline=None)
@given(n_colours=st.integers(2, 250), seed=st.integers(0, 99))
def test_a_picture_of_few_colours_loses_nothing(n_colours, seed):
    from PIL import Image

    rng = np.random.default_rng(seed)
    palette = np.unique(rng.integers(0, 256, (n_colours, 3), dtype=np.uint8), axis=0)
    pixels = palette[rng.integers(0, len(palette), (40, 60))]
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    light = light_png(stream.getvalue())
    with Image.open(BytesIO(light)) as image: assert np.array_equal(np.asarray(image.convert("RGB")), pixels)
    assert len(light) <= len(stream.getvalue())


SEEN = """() => ({
  width: document.documentElement.scrollWidth,
  broken: [...document.images].filter(i => !i.complete || i.naturalWidth < 10).length,
  wide: [...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1)
    .map(e => e.outerHTML.slice(0, 80)),
  cells: [...document.querySelectorAll('.claims td')].map(c => {
    const style = getComputedStyle(c), before = getComputedStyle(c, '::before').content, box = c.getBoundingClientRect()
    return {label: c.dataset.label, told: before, size: parseFloat(style.fontSize), height: box.height, width: box.width,
            cut: c.scrollWidth > c.clientWidth + 1}
  })
})"""


@pytest.mark.parametrize("name, width, height", [("desk", 1280, 900), ("phone", 390, 844)])
def test_the_page_fits_a_desk_and_a_phone(report, browser, tmp_path, name, width, height):
    "Nothing is wider than the screen, no picture is broken, nothing is fetched, and the numbers of a claim can be told apart."
    screen = browser.new_page(viewport={"width": width, "height": height})
    asked = []
    screen.on("request", lambda request: asked.append(request.url))
    screen.goto(report.as_uri())
    screen.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    seen = screen.evaluate(SEEN)
    screen.screenshot(path=tmp_path / f"{name}.png", full_page=True)
    screen.close()
    assert seen["width"] <= width and not seen["wide"] and seen["broken"] == 0
    assert all(url.startswith(("data:", report.as_uri())) for url in asked)
    assert len(seen["cells"]) == 4 * 5 and not any(cell["cut"] for cell in seen["cells"])
    assert all(cell["size"] >= 12 and cell["height"] > 12 and cell["width"] > 40 for cell in seen["cells"])
    labels = {c["label"]: c["told"] for c in seen["cells"]}
    if name == "phone": assert all(f"{label}: " in told for label, told in labels.items() if label != "claim")
    else: assert set(labels.values()) == {"none"}


def test_a_figure_that_is_too_wide_would_be_seen(browser, tmp_path):
    "The measure itself: a page that does not fit is found."
    (tmp_path / "bad.html").write_text('<!doctype html><body><img src="missing.png"><div style="width:900px">wide</div></body>')
    screen = browser.new_page(viewport={"width": 390, "height": 844})
    screen.goto((tmp_path / "bad.html").as_uri())
    seen = screen.evaluate(SEEN)
    screen.close()
    assert seen["width"] > 390 and seen["wide"] and seen["broken"] == 1
