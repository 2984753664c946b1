"The figures of posteriors and their calibration: what is drawn is what was given, and nothing is not drawn."

import io

import numpy as np
import pytest
from astropy.table import Table
from matplotlib.colors import to_hex
from scipy import stats

from spectral_core.core import DataError
from spectral_core.figures import calibration, posteriors
from spectral_core.inference.calibration import LinearGaussian, calibration_table, coverage_curve, percentile_scores

rng = np.random.default_rng(0)
NAMES = ["log_mstar", "beta1", "dust2", "an index"]
PROBLEM = LinearGaussian.random(3, 4, seed=2)
THETA, X = PROBLEM.simulate(300)
SCORES = percentile_scores(PROBLEM.sample(X, 100), THETA)
WAVE = np.array([3551.0, 4686, 6166, 7480, 8932])
MAGS, SIGMA = np.array([18.79, 17.80, 17.45, 17.21, 17.09]), np.array([0.06, 0.021, 0.021, 0.021, 0.034])


def drawn(figure):
    figure.savefig(io.BytesIO(), format="png", dpi=40)
    return figure


def visible(figure):
    return [ax for ax in figure.axes if ax.get_visible()]


def test_names_become_symbols_with_units():
    assert posteriors.labels(["tburst", "an index"]) == [r"$t_\mathrm{burst}$ (Gyr)", "an index"]


# ------------------------------------------------------------------ posteriors


def test_the_training_set_has_every_plane_and_the_catalogue_those_it_knows():
    train = {c: rng.normal(size=500) for c in ("log_mstar", "z", "mag_r")}
    figure = drawn(posteriors.plot_training_set({"training set": train, "NSA": {c: train[c][:200] for c in ("z", "mag_r")}}))
    assert len(visible(figure)) == 6
    histograms = {ax.get_xlabel(): len(ax.patches) for ax in visible(figure) if not ax.get_yticks().size}
    assert histograms[r"$r$ (mag)"] == 2
    assert [t.get_text() for t in figure.legends[0].texts] == ["training set (500)", "NSA (200)"]


def test_rows_of_the_training_set_stay_together():
    "A row that lacks one column is not drawn with another row's."
    a = rng.normal(size=400)
    figure = posteriors.plot_training_set({"training set": {"z": np.where(np.arange(400) < 100, np.nan, a), "mag_r": 15 + a}})
    assert figure.legends[0].texts[0].get_text() == "training set (300)"


def test_the_corner_draws_the_posterior_with_its_weights():
    "Weights that keep half of the draws give the histogram of this half."
    draws = rng.normal(size=(4000, 4))
    weights = (draws[:, 0] > 0).astype(float)
    figure = drawn(posteriors.plot_corner({"NPE": draws}, NAMES, weights={"NPE": weights}, truth=np.zeros(4)))
    steps = figure.axes[0].patches[0].get_xy()
    assert len(figure.axes) == 16 and steps[steps[:, 1] > 0, 0].min() > -0.2
    assert figure.axes[12].get_xlabel() == posteriors.labels(NAMES)[0]
    low, high = figure.axes[0].get_ylim()
    assert high > steps[:, 1].max()
    assert [t.get_text() for t in figure.legends[0].texts] == ["NPE", "truth"]


def test_the_corner_takes_a_parameter_without_any_scatter():
    draws = rng.normal(size=(500, 2)) * [1, 0]
    drawn(posteriors.plot_corner({"a": draws}, ["beta1", "beta2"]))


def test_photometry_shows_residuals_of_detections_and_limits_only():
    predicted = {"NPE": MAGS + 2 * SIGMA + 1e-3 * rng.normal(size=(200, 5))}
    figure = drawn(posteriors.plot_photometry(WAVE, (MAGS, SIGMA, np.array([0, 1, 0, 0, 2])), predicted,
                                              filters={"r": (np.linspace(5500, 7000, 9), np.ones(9))}))  # fmt: skip
    top, low = figure.axes
    marks = low.lines[0].get_ydata()
    assert len(marks) == 4 and np.allclose(marks, 2, atol=0.1)
    assert top.yaxis_inverted() and "upper limit" in [t.get_text() for t in figure.legends[0].texts]
    inside = sorted(top.get_ylim())
    assert all(inside[0] < m < inside[1] for m in MAGS)


def test_photometry_of_weighted_draws():
    predicted = np.concatenate([np.tile(MAGS, (50, 1)), np.tile(MAGS + SIGMA, (50, 1))])
    weights = np.r_[np.zeros(50), np.ones(50)]
    figure = posteriors.plot_photometry(WAVE, (MAGS, SIGMA), {"a": predicted}, weights={"a": weights})
    assert np.allclose(figure.axes[1].lines[0].get_ydata(), 1)


def test_training_sizes_keep_their_seeds_and_p_values_a_logarithm():
    values = {"log p": rng.normal(size=(3, 2)), "p": np.array([1e-6, 1e-3, 0.1])}
    figure = drawn(posteriors.plot_training_size([1e3, 1e4, 1e5], values, bounds={"p": 0.001}))
    left, right = figure.axes
    assert left.get_yscale() == "linear" and right.get_yscale() == "log"
    assert np.allclose(left.lines[0].get_ydata(), values["log p"].mean(1)) and len(left.lines[1].get_ydata()) == 6
    assert right.lines[-1].get_ydata()[0] == 0.001


def test_masses_show_the_difference_and_its_steps():
    mass = rng.normal(10, 0.5, 2000)
    ours = mass + 0.2 + rng.normal(0, 0.05, 2000)
    ours[3] = np.nan
    steps = Table({"step": ["printed", "h"], "offset": [0.2, -0.01], "scatter": [0.05, 0.04]})
    figure = drawn(posteriors.plot_masses(mass, ours, np.full(2000, 0.1), steps=steps))
    assert np.allclose(figure.axes[1].lines[1].get_ydata(), 0.2, atol=0.02)
    assert [t.get_text() for t in figure.axes[2].texts] == ["+0.20 ± 0.05", "-0.01 ± 0.04"]
    assert len(drawn(posteriors.plot_masses(mass, ours, np.full(2000, 0.1))).axes) == 2


# ------------------------------------------------------------------ calibration


def test_pp_draws_the_empirical_distribution_of_each_parameter():
    figure = drawn(calibration.plot_pp({"NPE": SCORES, "chains": SCORES[:50]}, NAMES))
    left, right = figure.axes
    main = {line.get_label(): line for line in left.lines if not line.get_label().startswith("_")}
    assert list(main) == posteriors.labels(NAMES)
    u, share = main["an index"].get_data()
    assert np.allclose(share, [(SCORES[:, 3] < v).mean() for v in u], atol=1 / 300 + 1e-9)
    assert len({to_hex(line.get_color()) for line in main.values()}) == 4
    assert all(np.abs(line.get_ydata()).max() <= max(right.get_ylim()) for line in right.lines[4:])


def test_ranks_show_ks_p_per_parameter():
    figure = drawn(calibration.plot_ranks({"NPE": SCORES}, NAMES))
    for k, ax in enumerate(visible(figure)):
        assert f"p = {stats.kstest(SCORES[:, k], 'uniform').pvalue:.2g}" in ax.get_title(loc="left")
    assert len(visible(drawn(calibration.plot_ranks({"NPE": SCORES[:, :3]}, NAMES[:3])))) == 3


def test_coverage_and_intervals_are_those_of_the_tables():
    curve, table = coverage_curve(SCORES[:, 0]), calibration_table(SCORES, NAMES)
    left, right = drawn(calibration.plot_coverage({"a": curve})).axes
    assert np.allclose(left.lines[0].get_ydata(), curve["coverage"])
    assert np.allclose(right.lines[0].get_ydata(), curve["coverage"] - curve["level"])
    one, two = drawn(calibration.plot_intervals({"a": table})).axes
    assert np.allclose(two.containers[0].lines[0].get_xdata(), table["coverage_95"])
    assert [t.get_text() for t in one.get_yticklabels()] == posteriors.labels(NAMES)


def test_c2st_counts_those_below_the_bound():
    figure = drawn(calibration.plot_c2st({"NPE": [0.7, 0.5, 0.6], "other": [0.5, 0.55, 0.52]}, error=0.01))
    [ax] = figure.axes
    assert [t.get_text() for t in ax.get_legend().texts] == ["NPE: 2 of 3 up to 0.65", "other: 3 of 3 up to 0.65"]
    assert np.allclose(ax.lines[-1].get_ydata(), [0.55, 0.52, 0.5])


# ------------------------------------------------------------------ nothing to draw


@pytest.mark.parametrize("call, word", [
    (lambda: posteriors.plot_corner({}, NAMES), "no posterior"),
    (lambda: posteriors.plot_corner({"a": np.zeros((0, 4))}, NAMES), "a column per name"),
    (lambda: posteriors.plot_corner({"a": np.full((9, 4), np.nan)}, NAMES), "not all finite"),
    (lambda: posteriors.plot_training_set({"a": {"z": np.full(9, np.nan)}}), "no row of 'a'"),
    (lambda: posteriors.plot_photometry(WAVE, (MAGS, SIGMA), {"a": np.zeros((5, 4))}), "magnitudes of a"),
    (lambda: posteriors.plot_training_size([1, 2], {"p": [0.1]}), "1 values for 2"),
    (lambda: posteriors.plot_masses(np.full(5, np.nan), np.ones(5), np.ones(5)), "no galaxy"),
    (lambda: calibration.plot_pp({"a": SCORES}, NAMES[:2]), "a column per name"),
    (lambda: calibration.plot_ranks({"a": SCORES * np.nan}, NAMES), "not all finite"),
    (lambda: calibration.plot_coverage({}), "no coverage"),
    (lambda: calibration.plot_intervals({}), "no table"),
    (lambda: calibration.plot_c2st({}), "no accuracy"),
])
def test_nothing_to_draw_is_said(call, word):
    with pytest.raises(DataError, match=word): call()
