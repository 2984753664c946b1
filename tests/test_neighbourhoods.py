"Scores of maps: purity and its error, trustworthiness, stability, islands."

import numpy as np
import pytest

from spectral_core.analysis.neighbourhoods import (
    find_islands,
    friends_of_friends,
    island_agreement,
    link_length,
    neighbour_correlation,
    neighbour_purity,
    neighbours,
    purity_gain,
    stability,
    triangulate,
    trustworthiness,
)
from spectral_core.core import DataError


def two_classes(seed, n=300, apart=2.0, dim=2):
    rng = np.random.default_rng(seed)
    m = rng.binomial(n, 0.3)
    x = rng.standard_normal((n, dim))
    x[:m, 0] += apart
    return x, np.repeat(["a", "b"], (m, n - m))


def test_neighbours_are_the_nearest_by_brute_force():
    x = np.random.default_rng(0).standard_normal((60, 3))
    distance = np.linalg.norm(x[:, None] - x, axis=2) + np.diag(np.full(60, np.inf))
    truth = np.argsort(distance, axis=1)[:, :5]
    assert np.array_equal(neighbours(x, 5), truth)
    assert np.array_equal(neighbours(x, 5, np.array([7, 3])), truth[[7, 3]])


def test_a_row_is_never_its_own_neighbour_not_even_among_equals():
    x = np.r_[np.zeros((6, 2)), np.ones((3, 2))]
    rows = np.arange(9)
    assert not (neighbours(x, 3) == rows[:, None]).any() and not (neighbours(x, 3, rows) == rows[:, None]).any()


def test_purity_by_hand():
    x = np.array([0.0, 1.0, 2.1, 10.0, 11.0])[:, None]
    found = neighbour_purity(x, ["a", "a", "b", "b", "b"], k=1)
    assert found.per_object.tolist() == [1, 1, 0, 1, 1]
    assert found.value == pytest.approx(0.8) and found.balanced == pytest.approx((1 + 2 / 3) / 2)
    assert found.classes["purity"].tolist() == pytest.approx([1, 2 / 3])
    assert found.chance == pytest.approx((2 * 1 + 3 * 2) / (5 * 4))


def test_purity_without_relation_is_what_chance_gives():
    x, labels = two_classes(0, 2000, apart=0.0)
    found = neighbour_purity(x, labels)
    assert abs(found.value - found.chance) < 4 * found.error
    assert (np.abs(found.classes["purity"] - found.classes["chance"]) < 4 * found.classes["error"]).all()


def test_errors_of_purity_and_gain_are_the_scatter_of_new_draws():
    draws = []
    for seed in range(60):
        x, labels = two_classes(seed, dim=4)
        p, g = neighbour_purity(x, labels, k=8), purity_gain(x, x[:, :2], labels, k=8)
        draws.append((p.value, p.error, p.balanced, p.balanced_error, g.value, g.error))
    draws = np.array(draws)
    ratio = draws[:, 1::2].mean(axis=0) / draws[:, ::2].std(axis=0)
    assert ratio[:2] == pytest.approx(1, abs=0.3) and 0.8 < ratio[2] < 1.7  # that of a difference is cautious


def test_unknown_and_ignored_objects_change_nothing():
    x, labels = two_classes(1)
    more = np.r_[x, np.full((5, 2), np.nan), x[:40]]
    found = neighbour_purity(more, np.r_[labels, ["a"] * 5, ["N/A"] * 40])
    assert found.value == neighbour_purity(x, labels).value and np.isnan(found.per_object[len(x):]).all()
    with pytest.raises(DataError, match="labels for"): neighbour_purity(x, labels[:-1])
    with pytest.raises(DataError, match="too few"): neighbour_purity(x[:15], labels[:15])


def test_gain_is_antisymmetric_and_shuffling_loses():
    x, labels = two_classes(2, apart=4.0)
    shuffled = np.random.default_rng(0).permutation(x)
    there, back = purity_gain(x, shuffled, labels), purity_gain(shuffled, x, labels)
    assert there.value == pytest.approx(-back.value) and there.error == pytest.approx(back.error)
    assert there.value > 5 * there.error and there.balanced > 5 * there.balanced_error


@pytest.mark.parametrize("k", [5, 15])
def test_trustworthiness_is_that_of_scikit_learn(k):
    from sklearn import manifold

    x = np.random.default_rng(0).standard_normal((200, 6))
    for flat in (x[:, :2], x[::-1, :3]):
        assert trustworthiness(x, flat, k=k) == pytest.approx(manifold.trustworthiness(x, flat, n_neighbors=k), abs=1e-12)
    some = [trustworthiness(x, x[:, :2], k=k, n_query=100, seed=s) for s in range(20)]
    assert np.mean(some) == pytest.approx(trustworthiness(x, x[:, :2], k=k), abs=0.01)


def test_trustworthiness_skips_rows_that_are_nowhere():
    x = np.random.default_rng(0).standard_normal((100, 4))
    y = x[:, :2].copy()
    holes = np.insert(x, 5, np.nan, axis=0), np.insert(y, 5, 0.0, axis=0)
    assert trustworthiness(*holes) == trustworthiness(x, y)
    with pytest.raises(DataError, match="too few"): trustworthiness(x[:30], y[:30])


def test_a_turned_mirrored_and_scaled_map_is_the_same():
    x, _ = two_classes(3)
    table = stability({"a": x, "b": 4 * x[:, ::-1] - 3, "c": np.random.default_rng(1).permutation(x), "d": np.c_[x, x]}, k=10)
    pair = {(r["first"], r["second"]): (r["disparity"], r["overlap"]) for r in table}
    assert pair["a", "b"] == pytest.approx((0, 1), abs=1e-9) and pair["a", "d"][1] > 0.99 and np.isnan(pair["a", "d"][0])
    assert pair["a", "c"][0] > 0.9 and pair["a", "c"][1] < 0.1 and table.meta["chance"] == pytest.approx(10 / 299)


def test_friends_of_friends_is_single_linkage():
    from scipy.cluster.hierarchy import fcluster, linkage

    x = np.random.default_rng(0).standard_normal((300, 2))
    for link in (0.1, 0.2, 0.4):
        truth = fcluster(linkage(x, "single"), link, "distance")
        found = friends_of_friends(x, link)
        assert len(np.unique(truth)) == len(np.unique(found)) == len(np.unique(np.c_[truth, found], axis=0))


def test_objects_on_one_spot_are_friends():
    x = np.r_[np.random.default_rng(0).standard_normal((50, 2)), np.zeros((7, 2)) + [9.0, 9.0]]
    assert np.bincount(friends_of_friends(x, 1e-3)[50:]).max() == 7
    with pytest.raises(DataError, match="on one line"): triangulate(np.ones((8, 2)))
    with pytest.raises(DataError, match="too few"): link_length(x[:10])


def test_mixed_islands_are_found_again_and_pure_ones_are_not_counted():
    rng = np.random.default_rng(0)
    places = np.r_[rng.standard_normal((900, 2)), 0.1 * rng.standard_normal((12, 2)) + 9, 0.1 * rng.standard_normal((12, 2)) - 9]
    labels = np.r_[["passive"] * 912, ["retired", "composite", "passive"] * 4]
    places[3] = np.nan
    found = find_islands(places, labels)
    assert np.flatnonzero(found.mixed).tolist() == list(range(912, 924))
    assert (found.member[:900] == -1).all() and (found.member[900:912] >= 0).all()
    assert sorted(found.table["purity"]) == pytest.approx([1 / 3, 1]) and found.table["n"].tolist() == [12, 12]
    other = find_islands(-2 * places, labels)
    assert island_agreement(found, other).jaccard == 1 and island_agreement(found, other).chance < 0.02
    none = find_islands(places, np.full(924, "N/A"))
    assert not none.mixed.any() and np.isnan(island_agreement(none, none).jaccard) and island_agreement(none, found).jaccard == 0
    with pytest.raises(DataError, match="maps of"): island_agreement(found, find_islands(places[:900], labels[:900]))


def test_a_value_known_from_neighbours():
    x, _ = two_classes(4, 500)
    values = x[:, 0] ** 3
    values[0] = np.nan
    assert neighbour_correlation(x, values) > 0.9
    assert abs(neighbour_correlation(x, np.random.default_rng(0).permutation(500.0 + np.arange(500)))) < 0.2
