"""Maps, boxes and estimates from neighbours."""

import numpy as np
import pytest

from spectral_core.analysis.embedding import box_around, estimate_from_neighbours, fit_umap, umap_embedding
from spectral_core.core import DataError

rng = np.random.default_rng(0)


def test_umap_keeps_clusters_rows_and_its_seed():
    latents = np.repeat(10 * np.eye(3, 6), 25, axis=0) + 0.1 * rng.standard_normal((75, 6))
    latents[40] = np.nan
    first = umap_embedding(latents, seed=1)
    assert first.shape == (75, 2) and np.flatnonzero(np.isnan(first[:, 0])).tolist() == [40]
    assert np.array_equal(first, umap_embedding(latents, seed=1), equal_nan=True)
    kind = np.repeat(np.arange(3), 25)
    centres = np.array([np.nanmean(first[kind == k], axis=0) for k in range(3)])
    nearest = np.linalg.norm(first[:, None] - centres, axis=2).argmin(axis=1)
    assert (nearest == kind)[np.isfinite(first[:, 0])].all()


@pytest.mark.parametrize("n", [0, 1, 2, 16])
def test_fault_15_too_few_for_a_map(n):
    with pytest.raises(DataError, match="too few"): umap_embedding(np.zeros((n, 6)))


def test_box_holds_what_it_promises():
    xy = rng.standard_normal((500, 2))
    xy[3] = np.nan
    for n in (1, 40, 499):
        box = box_around(xy, xy[0], n)
        assert box.contains(xy).sum() == n and box.contains(xy)[0]
        assert np.ptp([box.low, box.high], axis=0)[0] == pytest.approx(np.ptp([box.low, box.high], axis=0)[1])
    for n in (0, 500):
        with pytest.raises(DataError, match="a box of"): box_around(xy, (0, 0), n)


def test_neighbours_reproduce_a_smooth_property():
    known, new = rng.uniform(-1, 1, (4000, 3)), rng.uniform(-0.8, 0.8, (200, 3))
    property_ = lambda s: np.stack([s[:, 0] + s[:, 1], s[:, 2] ** 2], axis=1)
    values = property_(known) + 0.1 * rng.standard_normal((4000, 2))
    found = estimate_from_neighbours(known, values, new, k=20)
    error = found.median - property_(new)
    assert (np.abs(error).mean(axis=0) < 0.1).all() and found.median.shape == (200, 2)
    assert found.scatter.mean(axis=0) == pytest.approx(0.13, abs=0.05)  # the error of the values, and the slope
    assert (found.distance > 0).all()


def test_unknown_values_and_broken_latents():
    known, values = rng.standard_normal((100, 6)), np.arange(100.0)
    values[50:] = np.nan
    found = estimate_from_neighbours(known, values, np.r_[known[60:62], np.full((1, 6), np.nan)], k=5)
    assert (found.median[:2] < 50).all() and np.isnan(found.median[2])
    with pytest.raises(DataError, match="too few"): estimate_from_neighbours(known, np.full(100, np.nan), known)
    with pytest.raises(DataError, match="values for"): estimate_from_neighbours(known, values[:3], known)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_fault_15_few_new_spectra(n):
    known = rng.standard_normal((50, 6))
    assert estimate_from_neighbours(known, known[:, 0], known[:n], k=3).median.shape == (n,)


def test_a_map_leaves_the_number_of_threads_alone():
    "numba sets it for all of OpenMP; a training after a map then ran on twice the threads, five times slower on busy cores."
    import torch

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        umap_embedding(np.random.default_rng(0).normal(size=(60, 3)), n_neighbors=5)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def fitted():
    x = np.repeat(10 * np.eye(3, 6), 40, axis=0) + 0.1 * np.random.default_rng(1).standard_normal((120, 6))
    x[7] = np.inf
    return x, fit_umap(x, n_neighbors=8)


def test_a_fitted_map_places_new_spectra_and_moves_nothing(fitted):
    x, fit = fitted
    before, kind = fit.positions.copy(), np.repeat(np.arange(3), 40)
    new = x[[0, 50, 100]] + 0.02
    new = np.r_[new, np.full((1, 6), np.nan)]
    places = fit.transform(new)
    assert np.array_equal(fit.positions, before, equal_nan=True) and np.isnan(fit.positions[7]).all()
    centres = np.array([np.nanmean(before[kind == k], axis=0) for k in range(3)])
    assert np.linalg.norm(places[:3, None] - centres, axis=2).argmin(axis=1).tolist() == [0, 1, 2]
    assert np.isnan(places[3]).all() and np.array_equal(places, fit.transform(new), equal_nan=True)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_fault_15_few_rows_to_place(fitted, n):
    x, fit = fitted
    assert fit.transform(x[:n]).shape == (n, 2)


def test_rows_of_another_width_are_refused(fitted):
    with pytest.raises(DataError, match="fitted to 6 features"): fitted[1].transform(np.zeros((3, 5)))
    with pytest.raises(DataError, match="rows"): fit_umap(np.zeros(50))


def test_placing_leaves_the_number_of_threads_alone(fitted):
    import torch

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        fitted[1].transform(fitted[0][:3])
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
