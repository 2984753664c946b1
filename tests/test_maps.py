"The figures of classes and of many spectra: they draw what they are given, warn of nothing, and refuse to draw nothing."

import io
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.colors import to_hex

from spectral_core.core import DataError
from spectral_core.figures import maps, panels
from spectral_core.spectra.labels import LABELS as LABELS_OF_PAPER

NAMES = list(maps.LABEL_COLORS)
rng = np.random.default_rng(0)
N = 400
XY = rng.standard_normal((N, 2))
LABELS = rng.choice(NAMES, N)
WAVE = np.linspace(3400.0, 8300.0, 300)


def drawn(figure):
    figure.savefig(io.BytesIO(), format="png", dpi=40)
    return figure


def points(figure):
    "Colours and positions of all scattered points."
    dots = [c for ax in figure.axes for c in ax.collections if len(c.get_offsets())]
    return np.concatenate([c.get_facecolors() for c in dots]), np.concatenate([c.get_offsets() for c in dots])


def test_every_label_has_its_colour():
    assert LABELS_OF_PAPER == tuple(maps.LABEL_COLORS)


@pytest.mark.parametrize("labels", [LABELS, np.full(N, "passive"), np.full(N, "N/A")], ids=["all", "one", "unknown"])
def test_figures_of_classes_draw_any_mixture(labels):
    holes = XY.copy()
    holes[::7] = np.nan
    ew = np.where(np.arange(N) % 5, 2.0, np.nan) - (np.arange(N) % 3)
    drawn(maps.plot_map({"one": holes, "two": XY}, labels, black="broad-line"))
    drawn(maps.plot_planes({"a": (holes[:, 0], XY[:, 1], ew, labels), "b": (XY[:, 0] - 9, XY[:, 1], ew, labels)}))
    drawn(maps.plot_latent_corner(np.c_[holes, XY, np.ones(N)], labels, size=4, trim=[0.01, 1, 0.01, 0.01, 0]))


def test_a_map_shows_each_object_in_the_colour_of_its_class():
    holes = XY.copy()
    holes[:9] = np.nan
    colors, places = points(maps.plot_map({"map": holes}, LABELS))
    assert len(places) == N - 9
    where = {tuple(p): to_hex(c) for p, c in zip(np.asarray(places), colors)}
    assert all(where[tuple(p)] == maps.LABEL_COLORS[l] for p, l in zip(XY[9:], LABELS[9:]))


def test_regions_are_drawn_and_named_once():
    box = lambda name, x: SimpleNamespace(name=name, vertices=np.array([[x, 0], [x + 1, 0], [x + 1, 1], [x, 1.0]]))
    groups = {"top": [box("0", -1), box("7", 1)], "bottom": [box("0", -2), box("7", 1)]}
    figure = drawn(maps.plot_map({"map": XY}, LABELS, regions=groups))
    assert sorted(t.get_text() for t in figure.axes[0].texts) == ["0", "0", "7"]
    assert {line.get_linestyle() for line in figure.axes[0].lines} == {"-", "--"}


def test_planes_put_each_class_on_its_plane():
    figure = maps.plot_planes({"s": (np.zeros(7), np.zeros(7), np.ones(7), NAMES)})
    shown = [sum(len(c.get_offsets()) for c in ax.collections) for ax in figure.axes]
    assert shown == [3, 1, 2]


def test_masked_columns_are_unknown_not_zero():
    x = np.ma.masked_array(np.zeros(6), [1, 0, 0, 0, 0, 0])
    figure = maps.plot_planes({"s": (x, np.zeros(6), np.ones(6), ["star-forming"] * 6)})
    assert sum(len(c.get_offsets()) for c in figure.axes[0].collections) == 5


@pytest.mark.parametrize(
    "draw, why",
    [
        (lambda: maps.plot_map({}, []), "no map"),
        (lambda: maps.plot_map({"m": XY * np.nan}, LABELS), "no finite position"),
        (lambda: maps.plot_map({"m": XY[:0]}, []), "no finite position"),
        (lambda: maps.plot_map({"m": np.c_[XY, XY]}, LABELS), "shape"),
        (lambda: maps.plot_map({"m": XY}, LABELS[:5]), "5 labels"),
        (lambda: maps.plot_map({"m": XY}, np.full(N, "seyfert")), "'seyfert' has no colour"),
        (lambda: maps.plot_planes({}), "no sample"),
        (lambda: maps.plot_redshifts({"a": np.array([np.nan])}), "no finite redshift"),
        (lambda: maps.plot_latent_corner(XY * np.nan, LABELS), "no finite latents"),
        (lambda: maps.plot_confusion(np.zeros((2, 2), int), "ab", "ab"), "no object"),
        (lambda: maps.plot_confusion(np.ones((2, 2), int), "ab", "abc"), "3 columns"),
        (lambda: panels.plot_stacks(WAVE, {}), "no stack"),
        (lambda: panels.plot_stacks(WAVE, {"top": {"0": -np.ones(300)}}), "no stack"),
        (lambda: panels.plot_stacks(WAVE, {"top": {"0": np.ones(299)}}), "shape"),
        (lambda: panels.plot_grid(WAVE, np.ones((3, 299))), "299 pixels"),
        (lambda: panels.plot_grid(WAVE, np.ones((0, 300))), "no spectra"),
        (lambda: panels.plot_log_prob({"GIS": np.array([])}), "no finite log-prob"),
        (lambda: panels.plot_pixel_chi2(WAVE, WAVE * np.nan, WAVE), "no finite χ²"),
        (lambda: panels.plot_architecture([10, 5]), "three or more"),
    ],
)  # fmt: skip
def test_fault_16_nothing_to_draw_is_said(draw, why):
    with pytest.raises(DataError, match=why): draw()


def test_small_samples_draw():
    drawn(maps.plot_redshifts({"train": np.array([0.1]), "valid": np.array([])}))
    drawn(maps.plot_map({"m": XY[:1]}, LABELS[:1]))
    drawn(maps.plot_latent_corner(XY[:2], LABELS[:2], size=3))
    drawn(panels.plot_log_prob({"one": np.array([-3.0]), "none": np.array([np.nan])}))
    drawn(panels.plot_grid(WAVE, np.zeros((1, 300)), ["N/A"]))
    drawn(maps.plot_confusion(np.array([[5, 0], [0, 0]]), "ab", "ab"))


def test_stacks_stand_in_their_order_with_what_is_known():
    hole = np.where(WAVE < 5000, np.nan, 1.0)
    stacks = {"top": {"7": np.ones(300), "0": hole}, "bottom": {"7": 2 * np.ones(300), "0": WAVE * np.nan}}
    figure = drawn(panels.plot_stacks(WAVE, stacks, reference=("VB01", WAVE[::2], np.ones(150))))
    heights = [np.nanmean(line.get_ydata()) for line in figure.axes[0].lines]
    assert len(heights) == 4 and heights[0] > heights[1] > heights[2]
    assert heights[3] == pytest.approx(heights[1])  # twice the flux, normalised
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["VB01", "7", "0", "top", "bottom"]


def test_a_grid_leaves_gaps_where_there_are_no_data():
    flux = np.ones((5, 300))
    flux[0, :40], flux[1, 5] = 0, np.nan
    figure = drawn(panels.plot_grid(WAVE, flux, [str(i) for i in range(5)], model=0.9 * flux, colors=["k"] * 5))
    assert [np.isnan(ax.lines[0].get_ydata()).sum() for ax in figure.axes[:5]] == [40, 1, 0, 0, 0]
    assert [ax.get_visible() for ax in figure.axes] == [True] * 5 + [False] * 3


def test_chi2_is_drawn_minus_one_where_it_is_known():
    chi2 = np.where(WAVE < 3500, np.nan, 1.5)
    figure = drawn(panels.plot_pixel_chi2(WAVE, chi2, 0.1 * np.ones(300)))
    assert len(figure.axes) == 3 and figure.axes[0].get_xlim()[0] >= 3500
    for ax in figure.axes: assert np.unique(ax.lines[0].get_ydata()).tolist() == [0.5]


def test_the_network_is_drawn_from_its_layers():
    figure = drawn(panels.plot_architecture([50, 20, 3, 20, 50]))
    assert figure.axes[0].get_title(loc="left") == f"{50 * 20 * 2 + 20 * 3 * 2 + 20 + 3 + 20 + 50:,} parameters"
    assert len(figure.axes[0].patches) == 5
