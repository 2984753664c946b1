"""Mutual information against the closed form of two normals, its laws, its null, and columns that cannot be asked."""

import numpy as np
import pytest
from astropy.table import MaskedColumn

from spectral_core.analysis.information import information_null, information_table, mutual_information
from spectral_core.core import DataError


def pair(rho, n, seed=0):
    random = np.random.default_rng(seed)
    x, e = random.normal(size=(2, n))
    return x, rho * x + np.sqrt(1 - rho**2) * e


@pytest.fixture(scope="module")
def null():
    return information_null(2000, n_null=60)


@pytest.mark.parametrize("rho", [0, 0.3, 0.6, 0.9])
def test_two_normals_have_the_information_of_the_closed_form(rho):
    "Within 0.02 nats with 10,000 pairs. One sample's own luck is rho/√n, 0.009 at 0.9: so four samples, and one by its error."
    found = [mutual_information(*pair(rho, 10_000, seed), null=np.zeros(1), n_cut=1) for seed in range(4)]
    off = np.array([f.value for f in found]) + 0.5 * np.log(1 - rho**2)
    assert abs(off[0]) < 0.02 and abs(off.mean()) < 0.015
    assert all(abs(o) < 4 * f.error and 0.002 < f.error < 0.02 for o, f in zip(off, found))


def test_it_is_symmetric_and_blind_to_monotone_maps(null):
    x, y = pair(0.7, 2000)
    value = mutual_information(x, y, null=null, n_cut=1).value
    for a, b in ((y, x), (np.exp(x), y), (-x, y**3), (np.arctan(x), 1e3 + y)):
        assert mutual_information(a, b, null=null, n_cut=1).value == pytest.approx(value, abs=1e-12)


def test_it_sees_what_a_correlation_does_not(null):
    x, y = pair(0, 2000)
    found = mutual_information(x, np.cos(3 * x) + 0.1 * y, null=null)
    assert abs(np.corrcoef(x, np.cos(3 * x) + 0.1 * y)[0, 1]) < 0.1
    assert found.value > 0.8 and found.p == 1 / 61


def test_the_null_is_near_zero_and_its_p_values_are_fair(null):
    assert abs(null.mean()) < 3 * null.std() / np.sqrt(len(null)) + 0.002
    p = np.array([mutual_information(*pair(0, 2000, 100 + i), null=null, n_cut=1).p for i in range(60)])
    assert 0.35 < p.mean() < 0.65 and (p <= 0.05).mean() < 0.17
    skewed = np.random.default_rng(3).gamma(0.5, size=(2, 2000))
    assert mutual_information(*skewed, null=null).p > 0.01


def test_catalogue_rounding_and_repeated_rows_do_not_break_it(null):
    x, y = pair(0.6, 2000)
    whole = mutual_information(x, y, null=null).value
    assert abs(mutual_information(x, np.round(y, 1), null=null).value - whole) < 0.05
    two_classes = mutual_information(x, (y > 0).astype(int), null=null)
    assert 0.05 < two_classes.value < np.log(2)


def test_missing_values_are_left_out_and_counted(null):
    x, y = pair(0.6, 2500)
    holed = np.where(np.arange(2500) % 5 == 0, [np.nan, np.inf, -np.inf, np.nan, np.nan] * 500, y)
    found = mutual_information(x, holed, null=null, n_cut=1)
    keep = np.isfinite(holed)
    assert (found.n, found.n_missing) == (2000, 500)
    assert found[:2] == mutual_information(x[keep], y[keep], null=null, n_cut=1)[:2]


@pytest.mark.parametrize("column, reason", [
    (np.ones(500), "constant, 1"), (np.full(500, np.nan), "0 pairs"), (np.r_[np.arange(30.0), np.full(470, np.nan)], "30 pairs"),
])
def test_columns_without_information_say_why(column, reason):
    x = np.random.default_rng(0).normal(size=500)
    with pytest.raises(DataError, match=reason): mutual_information(x, column)
    table = information_table(np.column_stack([x, x]), {"dust": column, "fine": x**3}, n_null=10)
    assert np.isnan(table["mi"][:2]).all() and all(reason in text for text in table["reason"][:2])
    assert np.isfinite(table["mi"][2:]).all() and not any(table["reason"][2:])


def test_small_samples_have_no_error_rather_than_a_wrong_one():
    assert np.isnan(mutual_information(*pair(0.9, 300), n_null=10).error)


def test_the_table_finds_the_planted_pairs_and_a_collapsed_latent():
    random = np.random.default_rng(0)
    latents = np.column_stack([*random.normal(size=(2, 1200)), np.zeros(1200)])
    latents[:9] = np.nan
    properties = {"mass": latents[:, 0] + random.normal(size=1200), "SFR": np.abs(latents[:, 1])}
    table = information_table(latents, properties, names=["A", "B", "C"], n_null=40)
    assert [tuple(r) for r in table["property", "latent"][table["p"] < 0.04]] == [("mass", "A"), ("SFR", "B")]
    assert table["rho"][0] == pytest.approx(np.sqrt(0.5), abs=0.08)
    assert (table["n"] == 1191).all() and (table["n_missing"] == 9).all()
    assert "constant" in table["reason"][2]
    with pytest.raises(DataError, match="5 values of mass"): information_table(latents, {"mass": np.ones(5)})


def test_what_a_table_has_masked_is_missing_whatever_stands_beneath():
    x, y = pair(0.9, 1000)
    hidden = np.arange(1000) % 2 == 0
    column = MaskedColumn(np.where(hidden, 99.0, y), mask=hidden)
    found = mutual_information(x, column, n_null=5)
    assert (found.n, found.n_missing) == (500, 500)
    assert found.value == mutual_information(x[~hidden], y[~hidden], n_null=5).value
    row = information_table(x[:, None], {"mass": column}, n_null=5)[0]
    assert (row["n"], row["n_missing"]) == (500, 500)


def test_one_row_and_no_null_are_refused_or_counted():
    with pytest.raises(DataError, match="1 pairs"): mutual_information([1.0], [2.0])
    with pytest.raises(DataError, match="n_null is at least 1"): mutual_information(*pair(0.5, 300), n_null=0)
    row = information_table(np.ones((1, 2)), {"mass": [1.0]})[0]
    assert np.isnan(row["mi"]) and row["n"] == 1 and "1 pairs" in row["reason"]


def test_independent_columns_with_ties_have_fair_p_values():
    "A property in five classes, and one rounded to a tenth: the null of continuous columns still holds."
    random, null = np.random.default_rng(3), information_null(300, n_null=100, seed=4)
    p = [mutual_information(random.normal(size=300), make(random), null=null).p for _ in range(40)
         for make in (lambda r: r.integers(0, 5, 300), lambda r: np.round(r.normal(size=300), 1))]  # fmt: skip
    assert 0.35 < np.mean(p) < 0.65 and np.mean(np.array(p) < 0.05) < 0.15
