"Polygons in maps: who is inside, the rules that draw them, the file that keeps them."

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_core.analysis.regions import (
    Region,
    branch_polygons,
    read_regions,
    region_counts,
    region_of,
    save_regions,
    sequence_boxes,
)
from spectral_core.core import DataError


@settings(derandomize=True, max_examples=40, deadline=None)
@given(st.integers(3, 9), st.integers(0, 10**6))
def test_inside_is_inside_and_does_not_depend_on_the_first_corner_or_the_sense(k, seed):
    rng = np.random.default_rng(seed)
    angle = np.sort(rng.uniform(0, 2 * np.pi, k)) + np.arange(k) * 1e-3
    star = rng.uniform(0.5, 1.5, k)[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    if np.diff(angle, append=angle[0] + 2 * np.pi).max() > np.pi: return  # the origin would be outside
    points = rng.uniform(-2, 2, (200, 2))
    radius = np.hypot(*points.T)
    inside = Region("star", star).contains(points)
    for other in (star[::-1], np.roll(star, 1, axis=0), np.r_[star, star[:1]]):
        assert np.array_equal(Region("star", other).contains(points), inside)
    assert not inside[radius > 1.5].any()
    shrunk = Region("star", 0.5 * star).contains(0.5 * points)
    assert np.array_equal(shrunk, inside)


def test_inside_agrees_with_matplotlib_off_the_border():
    from matplotlib.path import Path

    corners = np.array([[0, 0], [3, 0.2], [2.5, 2], [1.5, 0.8], [0.4, 2.2]])
    points = np.random.default_rng(0).uniform(-1, 4, (5000, 2))
    assert np.array_equal(Region("W", corners).contains(points), Path(corners).contains_points(points))


def test_boxes_that_tile_the_plane_hold_each_point_once():
    points = np.r_[np.random.default_rng(0).uniform(0, 4, (300, 2)), [[1, 1], [0, 0], [2, 3], [3, 2]]]
    tiles = [Region.box(f"{i}{j}", (i + 0.5, j + 0.5), 0.5) for i in range(4) for j in range(4)]
    assert (sum(t.contains(points).astype(int) for t in tiles) == 1).all()
    assert region_of(tiles, points)[300:].tolist() == ["11", "00", "23", "32"]
    assert not tiles[0].contains([[np.nan, 0.5], [0.5, np.nan], [np.inf, 0.5]]).any()
    assert tiles[0].contains(np.empty((0, 2))).shape == (0,)


@pytest.mark.parametrize(
    "corners, why",
    [
        ([[0, 0], [1, 1]], "2 corners"),
        ([[0, 0], [1, 1], [0, 0]], "2 corners"),
        ([[0, 0], [1, 1], [2, 2], [5, 5]], "no area"),
        ([[1, 1]] * 4, "no area"),
        ([[0, 0], [1, 1], [1, 0], [0, 1]], "crosses itself"),
        ([[0, 0], [4, 0], [4, 4], [2, -1], [0, 4]], "crosses itself"),
        ([[0, 0], [1, 0], [1]], "no pairs of numbers"),
        ([[0, 0], [1, "0,5"], [1, 1]], "no pairs of numbers"),
        ([[0, 0], [1, None], [1, 1]], "not finite"),
        ([[0, 0, 0], [1, 0, 0], [0, 1, 0]], "shape"),
        ([], "shape"),
        (None, "shape"),
        ({"x": [0, 1, 2]}, "no pairs of numbers"),
    ],
)
def test_fault_33_a_wrong_polygon_is_refused_by_name(corners, why, tmp_path):
    with pytest.raises(DataError, match=why) as first: Region("C", corners)
    path = tmp_path / "regions.json"
    path.write_text(json.dumps({"broad-line": {"A": [[0, 0], [1, 0], [0, 1]], "C": corners}}))
    with pytest.raises(DataError, match=why) as second: read_regions(path)
    assert "'C'" in str(first.value) and "'C'" in str(second.value) and "regions.json" in str(second.value)


def test_what_is_saved_is_read(tmp_path):
    groups = {"top": [Region.box(str(i), (i, 0.1 * i), 0.3) for i in range(8)], "Hβ": [Region("β", [[0, 0], [1, 0], [0, np.pi]])]}
    path = save_regions(tmp_path / "new" / "regions.json", groups)
    again = read_regions(path)
    assert list(again) == ["top", "Hβ"] and [r.name for r in again["top"]] == list("01234567")
    for name in groups:
        for a, b in zip(groups[name], again[name]): assert np.array_equal(a.vertices, b.vertices)
    assert len(path.read_text().splitlines()) == 2 + 2 * 2 + 9  # a polygon a line


@pytest.mark.parametrize(
    "text, why",
    [
        ('{"top": {"0": [[0, 0], [1, 0], [0, 1]]', "no JSON"),
        ('{"top": {"0": [[0, 0], [1, 0], [0, 1]], "0": [[0, 0], [1, 0], [0, 1]]}}', "'0' stands there twice"),
        ('{"top": [[0, 0], [1, 0], [0, 1]]}', "should hold"),
        ("[]", "should hold"),
        ('{"top": {"": [[0, 0], [1, 0], [0, 1]]}}', "name"),
    ],
)
def test_a_broken_file_says_what_is_wrong(tmp_path, text, why):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(DataError, match=why): read_regions(tmp_path / "r.json")


def test_a_missing_file_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="No such file"): read_regions(tmp_path / "none.json")


def galaxy_map(n=2000, seed=0):
    "Two quiescent groups; active galaxies bridge the upper one to the star-forming, composites the lower; a broad-line branch."
    rng = np.random.default_rng(seed)
    def along(a, b, width, share):
        t = rng.uniform(size=(int(share * n), 1))
        return (1 - t) * a + t * np.asarray(b) + rng.normal(0, width, (len(t), 2))
    parts = [
        ("star-forming", along([4, 0], [8, 0], 0.5, 0.35)),
        ("passive", along([-5, 3], [-3, 3], 0.4, 0.15)), ("passive", along([-5, -3], [-3, -3], 0.4, 0.15)),
        ("retired", along([-3, 3], [-2, 3], 0.4, 0.05)), ("retired", along([-3, -3], [-2, -3], 0.4, 0.05)),
        ("narrow-line AGN", along([-2, 3], [1.5, 2.5], 0.3, 0.08)),
        ("composite", along([1.5, 2.5], [5, 0.5], 0.3, 0.06)), ("composite", along([-2, -3], [5, -0.5], 0.3, 0.06)),
        ("broad-line", along([0, 8], [0, 3.5], 0.15, 0.04)), ("broad-line", along([-5, 3], [-3, 3], 0.3, 0.01)),
    ]  # fmt: skip
    return np.concatenate([p for _, p in parts]), np.concatenate([np.full(len(p), k) for k, p in parts])


@pytest.fixture(scope="module")
def galaxies():
    return galaxy_map()


def test_sequences_share_their_blue_end_and_only_one_meets_the_active(galaxies):
    xy, labels = galaxies
    found = sequence_boxes(xy, labels)
    assert [r.name for r in found.top] == [r.name for r in found.bottom] == list("01234567")
    assert np.array_equal(found.top[-1].vertices, found.bottom[-1].vertices)
    top, bottom = region_counts(found.top, xy, labels), region_counts(found.bottom, xy, labels)
    assert top["narrow-line AGN"].sum() > 20 and bottom["narrow-line AGN"].sum() == 0
    for counts in (top, bottom):
        assert counts["star-forming"][-1] == counts["n"][-1] > 0
        assert counts["passive"][0] + counts["retired"][0] >= 0.9 * counts["n"][0] > 0
        assert (counts["n"] > 0).all() and counts["n"].max() <= 21
    for boxes in (found.top, found.bottom):
        assert sum(r.contains(xy).astype(int) for r in boxes).max() == 1


def test_regions_are_the_same_twice_and_follow_a_turned_map(galaxies):
    xy, labels = galaxies
    again, turned = sequence_boxes(xy, labels), sequence_boxes(xy[:, ::-1] * 3, labels)
    for a, b, c in zip(sequence_boxes(xy, labels).top, again.top, turned.top):
        assert np.array_equal(a.vertices, b.vertices)
        assert c.vertices.mean(axis=0) == pytest.approx(3 * a.vertices.mean(axis=0)[::-1], abs=0.01)


def test_objects_without_place_or_class_change_nothing(galaxies):
    xy, labels = galaxies
    more = np.r_[xy, np.full((3, 2), np.nan), xy[:50]], np.r_[labels, ["passive"] * 3, ["N/A"] * 50]
    for draw in (lambda *a: sequence_boxes(*a).bottom, branch_polygons):
        for a, b in zip(draw(xy, labels), draw(*more)): assert np.array_equal(a.vertices, b.vertices)


def test_the_branch_is_walked_from_its_purest_end(galaxies):
    xy, labels = galaxies
    found = branch_polygons(xy, labels)
    counts = region_counts(found, xy, labels)
    assert counts["region"].tolist() == list("ABCDEF")
    height = [r.vertices[:, 1].mean() for r in found[:5]]
    assert height == sorted(height, reverse=True) and found[0].vertices[:, 1].max() > 7
    assert (counts["broad-line"][:4] == counts["n"][:4]).all() and counts["passive"][5] > counts["broad-line"][5] >= 8
    broad = labels == "broad-line"
    assert 0.45 < np.mean(region_of(found, xy[broad]) != "") < 0.75  # the compact half of each group


@pytest.mark.parametrize("missing", ["star-forming", "narrow-line AGN", "quiescent"])
def test_fault_16_a_missing_class_is_named(galaxies, missing):
    xy, labels = galaxies
    gone = ["retired", "passive"] if missing == "quiescent" else [missing]
    labels = np.where(np.isin(labels, gone), "N/A", labels)
    with pytest.raises(DataError, match=f"0 {missing} objects"): sequence_boxes(xy, labels)


def test_fault_16_too_few_broad_lines(galaxies):
    xy, labels = galaxies
    with pytest.raises(DataError, match="0 broad-line"): branch_polygons(xy, np.where(labels == "broad-line", "N/A", labels))
    with pytest.raises(DataError, match="too few for F"): branch_polygons(xy[:-20], labels[:-20])
    with pytest.raises(DataError, match="labels for positions"): branch_polygons(xy, labels[:-1])
    with pytest.raises(DataError, match="labels for positions"): sequence_boxes(np.c_[xy, xy], labels)


def test_maps_without_room_are_refused():
    rng = np.random.default_rng(0)
    xy, labels = rng.standard_normal((300, 2)), rng.choice(["star-forming", "narrow-line AGN", "passive"], 300)
    with pytest.raises(DataError, match="too short for 90"): sequence_boxes(xy, labels, n_boxes=90)
    with pytest.raises(DataError, match="on one line"): sequence_boxes(np.arange(300)[:, None] * [1.0, 1.0], np.sort(labels))
