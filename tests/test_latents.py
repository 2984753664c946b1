"""Rotations, traversals, maps and matched axes of latents."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_core.analysis.latents import (
    axis_correlation,
    axis_of_property,
    axis_stability,
    match_axes,
    median_map,
    principal_rotation,
    traverse,
)
from spectral_core.core import DataError


def cloud(n=2000, scales=(4, 3, 2, 1), seed=0):
    "Principal coordinates and latents, which are these turned and shifted."
    random = np.random.default_rng(seed)
    true = random.normal(size=(n, len(scales))) * scales
    return true, true @ np.linalg.qr(random.normal(size=(len(scales),) * 2))[0] - 3


@settings(derandomize=True, max_examples=25, deadline=None)
@given(st.integers(1, 8), st.integers(0, 1000))
def test_a_rotation_loses_nothing_and_is_sorted(s, seed):
    latents = np.random.default_rng(seed).normal(size=(60, s)) @ np.random.default_rng(seed + 1).normal(size=(s, s))
    rotation = principal_rotation(latents)
    d = rotation.rotate(latents)
    assert np.allclose(rotation.unrotate(d), latents, atol=1e-9)
    assert np.allclose(rotation.axes @ rotation.axes.T, np.eye(s), atol=1e-10)
    assert np.allclose(np.cov(d.T).reshape(s, s), np.diag(rotation.variance), atol=1e-9 * rotation.variance[0])
    assert (np.diff(rotation.explained) <= 1e-12).all() and rotation.explained.sum() == pytest.approx(1)
    assert np.allclose(np.linalg.norm(latents[1:] - latents[0], axis=1), np.linalg.norm(d[1:] - d[0], axis=1))


def test_signs_follow_the_property_and_else_the_largest_loading():
    true, latents = cloud()
    mass = true[:, 0] - true[:, 1]
    for mirror in (1, -1):
        rotation = principal_rotation(mirror * latents, mass)
        correlation = axis_correlation(rotation.rotate(mirror * latents), mass[:, None])[:, 0]
        assert (correlation[:2] > 0.3).all()
        free = principal_rotation(mirror * latents)
        assert (free.axes[np.arange(4), np.abs(free.axes).argmax(axis=1)] > 0).all()
    holed = np.where(np.arange(2000) < 500, np.nan, mass)
    assert np.allclose(principal_rotation(latents, holed).axes[:2], principal_rotation(latents, mass).axes[:2])


def test_missing_rows_stay_missing_and_have_no_say():
    _, latents = cloud()
    holed = latents.copy()
    holed[::7] = np.nan
    rotation = principal_rotation(holed)
    assert np.allclose(rotation.axes, principal_rotation(np.delete(latents, np.s_[::7], axis=0)).axes)
    assert np.array_equal(np.isnan(rotation.rotate(holed)).any(axis=1), np.isnan(holed).any(axis=1))


def test_a_collapsed_latent_has_no_variance_and_does_no_harm():
    _, latents = cloud()
    latents = np.column_stack([latents, np.full(2000, 0.1)])
    rotation = principal_rotation(latents)
    assert rotation.explained[-1] < 1e-20 and abs(rotation.axes[-1, -1]) == pytest.approx(1)
    assert traverse(latents, 0).inside.all()
    with pytest.raises(DataError, match="one point"): principal_rotation(np.ones((50, 3)))
    with pytest.raises(DataError, match="3 of 50"): principal_rotation(np.where(np.arange(50)[:, None] < 3, latents[:50], np.nan))


def test_a_traversal_moves_one_axis_over_percentiles_of_the_data():
    _, latents = cloud()
    rotation = principal_rotation(latents)
    walk = traverse(latents, 2, percentiles=(10, 50, 90))
    d = rotation.rotate(walk.latents)
    assert np.allclose(d[:, 2], np.percentile(rotation.rotate(latents)[:, 2], (10, 50, 90))) and np.allclose(d[:, 2], walk.value)
    assert np.allclose(np.delete(d, 2, axis=1), np.delete(np.median(rotation.rotate(latents), axis=0), 2))


def test_shares_are_counts_of_the_data_within_the_stated_distance():
    _, latents = cloud(scales=(3, 1))
    walk = traverse(latents, 0, radius=0.5)
    scaled = principal_rotation(latents).rotate(latents) / np.sqrt(principal_rotation(latents).variance)
    steps = principal_rotation(latents).rotate(walk.latents) / np.sqrt(principal_rotation(latents).variance)
    count = (np.linalg.norm(scaled[None] - steps[:, None], axis=2) <= 0.5).sum(axis=1)
    assert np.abs(walk.share * len(latents) - count).max() <= 2  # standard deviations with n and with n − 1
    assert walk.share[0] < walk.share[2] > walk.share[-1]


def test_steps_where_no_galaxy_is_are_flagged():
    random = np.random.default_rng(0)
    angle = random.uniform(0, 2 * np.pi, 3000)
    ring = np.column_stack([1.2 * np.cos(angle), np.sin(angle)]) + 0.02 * random.normal(size=(3000, 2))
    assert not traverse(ring, 0).inside[1:4].any()
    assert traverse(random.normal(size=(3000, 4)), 0).inside.all()
    with pytest.raises(DataError, match="axis 5"): traverse(ring, 5)


@settings(derandomize=True, max_examples=20, deadline=None)
@given(st.integers(0, 400), st.integers(1, 9), st.integers(1, 6))
def test_maps_equal_the_median_cell_by_cell(seed, bins, least):
    x, y, value = np.random.default_rng(seed).integers(0, 12, (3, 80)).astype(float)
    found = median_map(x, y, value, bins, min_count=least)
    if np.ptp(x) == 0 or np.ptp(y) == 0: return
    count, xe, ye = np.histogram2d(x, y, bins)
    assert np.array_equal(found.count, count) and np.allclose(found.x_edges, xe) and np.allclose(found.y_edges, ye)
    i, j = (np.minimum(np.searchsorted(e, a, "right") - 1, bins - 1) for a, e in ((x, found.x_edges), (y, found.y_edges)))
    for a, b in np.ndindex(bins, bins):
        cell = value[(i == a) & (j == b)]
        assert (len(cell) < least and np.isnan(found.median[a, b])) or found.median[a, b] == np.median(cell)


def test_objects_without_a_value_or_beyond_the_edges_count_nowhere():
    x, y, value = np.random.default_rng(0).normal(size=(3, 1000))
    value[:100] = np.nan
    edges = np.linspace(-1, 1, 5)
    found = median_map(x, y, value, (edges, edges))
    assert found.count.sum() == ((np.abs(x) <= 1) & (np.abs(y) <= 1))[100:].sum()
    with pytest.raises(DataError, match="none of 1000"): median_map(x, y, np.full(1000, np.nan))
    with pytest.raises(DataError, match="equal columns"): median_map(x, y[1:], value)


def test_axes_are_matched_through_shuffling_mirrors_and_further_axes():
    true, latents = cloud()
    random = np.random.default_rng(1)
    d = principal_rotation(latents).rotate(latents)
    six = np.column_stack([random.normal(size=2000), d[:, [3, 1, 0, 2]] * [-1, 1, -1, 1] + 0.05 * random.normal(size=(2000, 4)),
                           np.zeros(2000)])
    pairs = match_axes(d, six)
    assert pairs["second"].tolist() == [3, 2, 4, 1]
    assert (np.abs(pairs["correlation"]) > 0.99).all() and np.sign(pairs["correlation"]).tolist() == [-1, 1, 1, -1]
    stable = axis_stability({"4": d, "6": six})
    assert len(stable) == 4 and stable["b"].tolist() == [3, 2, 4, 1]
    which = axis_of_property({"4": d, "6": six}, {"mass": true[:, 0], "SFR": true[:, 1]})
    assert which["axis"].tolist() == [0, 1, 3, 2]
    few = axis_of_property({"1": d[:, :1]}, {"mass": true[:, 0], "SFR": true[:, 1]})
    assert few["axis"].tolist() == [0, -1] and np.isnan(few["correlation"][1])
    with pytest.raises(DataError, match="not the same"): match_axes(d, six[:-1])


def test_points_without_spread_one_row_and_another_width_are_refused_by_name():
    _, latents = cloud()
    rotation = principal_rotation(latents)
    with pytest.raises(DataError, match="no latent varies"): traverse(np.ones_like(latents), 0, rotation)
    with pytest.raises(DataError, match="1 of 1 rows"): principal_rotation(latents[:1])
    for call in (rotation.rotate, rotation.unrotate):
        with pytest.raises(DataError, match="a rotation of"): call(latents[:, 1:])
    flat = median_map(np.ones(20), np.arange(20.0), np.full(20, 3.0), 4)
    assert flat.count.sum() == 20 and (np.diff(flat.x_edges) > 0).all() and np.nanmin(flat.median) == 3


def test_a_property_that_no_object_has_is_named_and_masked_values_are_missing():
    _, latents = cloud()
    with pytest.raises(DataError, match="no object has 'dust'"):
        axis_of_property({"a": latents}, {"dust": np.full(len(latents), np.nan)})
    with pytest.raises(DataError, match="no property is given"): axis_of_property({"a": latents}, {})
    hidden = np.arange(len(latents)) < 500
    masked = np.ma.masked_array(np.where(hidden, 1e6, latents[:, 0]), hidden)
    assert abs(axis_of_property({"a": latents}, {"mass": masked})["correlation"][0]) > 0.99
    assert median_map(latents[:, 0], latents[:, 1], masked).count.sum() == len(latents) - 500
