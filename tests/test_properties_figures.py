"The figures of latents and properties: what is drawn is what was given, gaps stay gaps, and nothing is not drawn."

import io

import numpy as np
import pytest
from astropy.table import MaskedColumn, Table
from matplotlib.colors import to_hex

from spectral_core.core import DataError
from spectral_core.figures import properties
from spectral_core.figures.style import MODEL, OTHER
from spectral_core.spectra.lines import line_wave

rng = np.random.default_rng(0)
WAVE = 10 ** np.linspace(np.log10(3400), np.log10(8400), 300)
EDGES = np.linspace(-2.0, 2.0, 6), np.linspace(-1.0, 1.0, 4)
MEDIAN = np.arange(15.0).reshape(5, 3)
STEPS = np.ones((5, 300)) * np.arange(1, 6)[:, None]
SAME = np.linspace(-1, 1, 5), np.ones(5, bool)


def drawn(figure):
    figure.savefig(io.BytesIO(), format="png", dpi=40)
    return figure


def texts(ax):
    return [t.get_text() for t in ax.texts]


def fits(**columns):
    "A summary of six fits, best at four latents, with an error of 1 nat."
    n = np.arange(1, 7)
    base = {"iwae": np.minimum(n, 4) * 5.0, "iwae_error": np.ones(6), "active": np.minimum(n, 4.0), "active_error": np.zeros(6),
            "chi2": 50 + 50 / n, "chi2_error": np.full(6, np.nan)}  # fmt: skip
    return Table({"n_latent": n} | base | columns)


def told(mi, properties=("mass", "SFR")):
    "Mutual information of properties and two latents."
    rows = [(p, f"D{i + 1}", value, 0.02, 0.05) for p, row in zip(properties, mi) for i, value in enumerate(row)]
    return Table(rows=rows, names=["property", "latent", "mi", "error", "null"])


def test_a_map_has_its_first_index_along_x():
    hole = MEDIAN.copy()
    hole[0, 2] = np.nan
    figure = drawn(properties.plot_median_maps({"mass": (hole, *EDGES), "T-type": None, "none": (MEDIAN * np.nan, *EDGES)}))
    mesh = figure.axes[0].collections[0]
    corners = mesh.get_coordinates()
    assert np.array_equal(corners[0, :, 0], EDGES[0]) and np.array_equal(corners[:, 0, 1], EDGES[1])
    found = np.ma.filled(mesh.get_array().reshape(3, 5), -1)
    assert np.array_equal(found, np.where(np.isnan(hole), -1, hole).T)
    assert [texts(ax) for ax in figure.axes[:3]] == [[], ["no source has it"], ["no source has it"]]
    assert [ax.get_title(loc="left") for ax in figure.axes[:3]] == ["mass", "T-type", "none"]


@pytest.mark.parametrize("n", [1, 3, 5, 9])
def test_every_property_has_a_panel(n):
    figure = drawn(properties.plot_median_maps({str(i): (MEDIAN + i, *EDGES) for i in range(n)}))
    assert sum(ax.get_visible() and ax.get_title(loc="left") != "" for ax in figure.axes) == n


def test_a_criterion_stands_in_its_cell_and_the_star_on_the_best():
    values = np.array([[950.04, 930.0, np.nan], [960.0, np.inf, 999.9]])
    figure = drawn(properties.plot_bic_grid(values, ["none", "mass"], [1, 2, 3], best=(0, 1)))
    ax = figure.axes[0]
    places = {(round(t.get_position()[0]), round(t.get_position()[1])): t.get_text() for t in ax.texts}
    assert places == {(0, 0): "950.0", (1, 0): "930.0", (0, 1): "960.0", (2, 1): "999.9"}
    assert sorted((round(p.get_x() + 0.5), round(p.get_y() + 0.5)) for p in ax.patches if p.get_hatch()) == [(1, 1), (2, 0)]
    (star,) = [line for line in ax.lines if line.get_marker() == "*"]
    assert (star.get_xdata()[0], round(star.get_ydata()[0])) == (1, 0)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["none", "mass"]


def test_large_criteria_are_differences():
    figure = drawn(properties.plot_bic_grid(np.array([[3e7, 3e7 + 1234]]), ["none"], [1, 2]))
    assert texts(figure.axes[0]) == ["0", "1,234"]
    assert figure.axes[0].get_title(loc="left").endswith("30,000,000")


def test_equal_criteria_draw():
    assert texts(drawn(properties.plot_bic_grid(np.full((1, 2), 7.0), ["none"], [1, 2])).axes[0]) == ["7.0", "7.0"]


@pytest.mark.parametrize("shuffle", [False, True])
def test_the_rule_is_the_smallest_within_one_error(shuffle):
    table = fits(iwae=np.array([5.0, 10, 19.2, 20, 20, 18.9]))
    if shuffle: table = table[[3, 0, 5, 1, 4, 2]]
    panels = drawn(properties.plot_dimension(table, truth=5)).axes
    for ax in panels[:3]:
        red = [line for line in ax.lines if line.get_color() == MODEL]
        assert [line.get_xdata()[0] for line in red] == [3] and "truth: 5" in [line.get_label() for line in ax.lines]
    curve = [line for line in panels[0].lines if line.get_marker() == "o"][0]
    assert curve.get_ydata().tolist() == [5, 10, 19.2, 20, 20, 18.9]


def test_without_an_error_nothing_is_chosen():
    figure = drawn(properties.plot_dimension(fits(iwae_error=np.full(6, np.nan))))
    assert not [line for ax in figure.axes for line in ax.lines if line.get_color() == MODEL]


def test_the_rule_is_the_one_of_the_analysis():
    from spectral_core.analysis.dimension import choose_dimension

    fit = lambda d, seed: (d, "none", seed, 500, -80.0 + 5 * min(d, 3) + 0.2 * seed, -85.0, 70.0 + 30 / d, min(d, 3))
    rows = [fit(d, seed) for d in range(1, 6) for seed in range(3)]
    choice = choose_dimension(Table(rows=rows, names=["n_latent", "conditions", "seed", "n", "iwae", "elbo", "chi2", "active"]))
    red = [line for line in properties.plot_dimension(choice.summary).axes[0].lines if line.get_color() == MODEL]
    assert [line.get_xdata()[0] for line in red] == [choice.dimension]


def test_steps_beyond_the_data_are_dashed_and_the_others_rise_in_colour():
    steps = STEPS.copy()
    steps[2, :50] = np.nan
    inside = np.array([True, True, True, True, False])
    figure = drawn(properties.plot_traversals(WAVE, {"D1": (steps, SAME[0], inside), "D2": (STEPS, SAME[0], SAME[1])}))
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 300]
    assert [line.get_linestyle() for line in lines] == ["-"] * 4 + ["--"]
    assert len({to_hex(line.get_color()) for line in lines[:4]}) == 4
    assert np.isnan(lines[2].get_ydata()[:50]).all() and (lines[2].get_ydata()[50:] == 3).all()
    assert len(figure.legends) == 1 and not properties.plot_traversals(WAVE, {"D2": (STEPS, *SAME)}).legends


def test_lines_are_named_where_they_are():
    blue, names = WAVE < 6000, {"Ha": ("halpha",), "O3": ("oiii_5007",)}
    figure = properties.plot_traversals(WAVE[blue], {"SFR": (STEPS[:, blue], *SAME)}, names=names)
    assert [(t.get_text(), t.get_position()[0]) for t in figure.axes[0].texts] == [("O3", pytest.approx(line_wave("oiii_5007")))]


def test_one_step_draws():
    drawn(properties.plot_traversals(WAVE, {"D1": (STEPS[:1], np.zeros(1), np.ones(1, bool))}))


def test_bars_are_the_information_given():
    table = told([[0.5, np.nan], [np.nan, np.nan], [-0.01, 0.2]], ("mass", "tau", "SFR"))
    table["mi"] = MaskedColumn(np.nan_to_num(table["mi"], nan=9.0), mask=np.isnan(table["mi"]))
    figure = drawn(properties.plot_information(table))
    assert [ax.get_title(loc="left") for ax in figure.axes[:3]] == ["mass", "tau", "SFR"]
    heights = [[bar.get_height() for bar in ax.patches] for ax in figure.axes[:3]]
    np.testing.assert_array_equal(heights, [[0.5, np.nan], [np.nan, np.nan], [-0.01, 0.2]])
    assert [texts(ax) for ax in figure.axes[:3]] == [[" no value"], ["no values, or too few"], []]


def test_attribution_is_red_up_and_blue_down():
    values = np.where(WAVE < 5000, 1.0, -2.0)
    values[10:20] = np.nan
    figure = drawn(properties.plot_attribution(WAVE, np.ones(300), {"D3": values}, {"D3": np.abs(values), "D4": WAVE * np.nan}))
    assert len(figure.axes) == 3
    up, down = figure.axes[1].collections
    heights = lambda fill: np.concatenate([path.vertices[:, 1] for path in fill.get_paths()])
    assert (heights(up).min(), heights(up).max(), to_hex(up.get_facecolor()[0])) == (0, 1, MODEL)
    assert (heights(down).min(), heights(down).max(), to_hex(down.get_facecolor()[0])) == (-2, 0, OTHER)
    (label,) = [t.get_text() for t in figure.axes[2].get_legend().get_texts()]
    blue = np.sum(WAVE[20:] < 5000) + 10
    assert label == f"D3: {blue / (blue + 2 * np.sum(WAVE >= 5000)):.0%} below 5000 Å"


def test_windows_hold_their_own_wavelengths():
    spike = np.where(np.arange(300) == np.argmin(np.abs(WAVE - line_wave("halpha"))), 1.0, 1e-3)
    figure = drawn(properties.plot_attribution(WAVE, WAVE * np.nan, {}, {"D1": spike}, window=100.0))
    heights, edges, _ = figure.axes[1].patches[0].get_data()
    assert edges[np.nanargmax(heights)] <= line_wave("halpha") < edges[np.nanargmax(heights) + 1]
    assert np.all(np.diff(edges) == 100)


def test_attribution_draws_without_means():
    assert len(drawn(properties.plot_attribution(WAVE, np.ones(300), {"D1": np.zeros(300), "D2": np.sin(WAVE)}, {})).axes) == 3


def test_a_block_is_as_high_as_it_is_long():
    names = ["spectrum", "conv 8", "dense", "latents", ""]
    figure = drawn(properties.plot_network(names, [400, 100, 100, 4, 400], [1, 8, 1, 1, 1]))
    heights = [patch.get_height() for patch in figure.axes[0].patches]
    assert heights == pytest.approx([1, 0.5, 0.5, 0.1, 1])
    assert to_hex(figure.axes[0].patches[3].get_facecolor()) == MODEL
    assert "100\n× 8" in texts(figure.axes[0]) and "conv\n8" in texts(figure.axes[0])


@pytest.mark.parametrize(
    "draw, why",
    [
        (lambda: properties.plot_median_maps({}), "no finite median"),
        (lambda: properties.plot_median_maps({"T-type": None, "mass": (MEDIAN * np.nan, *EDGES)}), "no finite median"),
        (lambda: properties.plot_median_maps({"mass": (MEDIAN.T, *EDGES)}), r"\(3, 5\) medians for \(5, 3\) cells"),
        (lambda: properties.plot_bic_grid(np.full((1, 2), np.nan), ["none"], [1, 2]), "no finite BIC"),
        (lambda: properties.plot_bic_grid(np.ones((1, 2)), ["none"], [1, 2, 3]), "3 columns"),
        (lambda: properties.plot_dimension(fits(iwae=np.full(6, np.nan))), "no finite iwae"),
        (lambda: properties.plot_traversals(WAVE, {}), "no finite flux"),
        (lambda: properties.plot_traversals(WAVE, {"D1": (STEPS * np.nan, *SAME)}), "no finite flux"),
        (lambda: properties.plot_traversals(WAVE[1:], {"D1": (STEPS, *SAME)}), "299 wavelengths"),
        (lambda: properties.plot_traversals(WAVE, {"D1": (STEPS[1:], *SAME)}), "differ in number"),
        (lambda: properties.plot_traversals(WAVE, {"D1": (STEPS, SAME[0] * np.nan, SAME[1])}), "no finite value along D1"),
        (lambda: properties.plot_information(told([[np.nan, np.nan]])), "no finite mutual information"),
        (lambda: properties.plot_information(told([[0.1, 0.2]])[:0]), "no finite mutual"),
        (lambda: properties.plot_attribution(WAVE, WAVE, {}, {}), "no finite attribution"),
        (lambda: properties.plot_attribution(WAVE, WAVE, {"D1": WAVE * np.nan}, {}), "no finite attribution"),
        (lambda: properties.plot_attribution(WAVE, WAVE, {"D1": WAVE[1:]}, {}), "attribution to 'D1' has shape"),
        (lambda: properties.plot_attribution(WAVE, WAVE[1:], {"D1": WAVE}, {}), "the spectrum has shape"),
        (lambda: properties.plot_network([], [], []), "every block"),
        (lambda: properties.plot_network(["conv"], [3, 4], [1]), "every block"),
        (lambda: properties.plot_network(["conv"], [3], [0]), "at least one channel"),
    ],
)  # fmt: skip
def test_fault_16_nothing_to_draw_is_said(draw, why):
    with pytest.raises(DataError, match=why): draw()
