"""Laws of grids, air and vacuum, redshift, and the two ways to change the sampling."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_core.core import SpectrumError
from spectral_core.spectra.surveys import BOSS, DESI, SDSS
from spectral_core.spectra.wavelength import (
    Grid,
    air_to_vacuum,
    inside_rows,
    rebin,
    redshift_wave,
    resample_rest,
    shift_rows,
    vacuum_to_air,
)

quiet = settings(derandomize=True, max_examples=40, deadline=None)
grids = st.builds(
    lambda kind, first, n: Grid("log", np.log10(first), 1e-4, n) if kind else Grid("linear", first, 0.8, n),
    st.booleans(), st.floats(1500, 6000), st.integers(2, 5000),
)


# ---- grids


@quiet
@given(grids)
def test_pixel_is_the_inverse_of_wave_and_edges_lie_halfway(grid):
    index = np.arange(grid.n)
    np.testing.assert_allclose(grid.pixel(grid.wave), index, atol=1e-6)
    np.testing.assert_allclose(grid.pixel(grid.edges), np.arange(grid.n + 1) - 0.5, atol=1e-6)
    assert (grid.edges[:-1] < grid.wave).all() and (grid.wave < grid.edges[1:]).all()
    again = Grid.from_wave(grid.wave)
    np.testing.assert_allclose(again.wave, grid.wave, rtol=1e-9)
    assert again.n == grid.n


@quiet
@given(grids, st.floats(0, 1), st.floats(0, 1))
def test_a_crop_holds_just_the_pixels_inside(grid, a, b):
    low, high = np.sort(grid.wave[0] + np.array([a, b]) * (grid.wave[-1] - grid.wave[0]))
    wanted = grid.wave[(grid.wave >= low - 1e-9) & (grid.wave <= high + 1e-9)]
    if not len(wanted): return
    np.testing.assert_allclose(grid.crop(low, high).wave, wanted, rtol=1e-12)


def test_impossible_grids_are_refused():
    for kind, step, n in (("cubic", 1e-4, 10), ("log", 0.0, 10), ("linear", -0.8, 10), ("log", 1e-4, 0), ("log", np.nan, 5)):
        with pytest.raises(SpectrumError, match="grid"): Grid(kind, 3.5, step, n)


# ---- air, vacuum and redshift


def test_air_and_vacuum_are_inverse_and_agree_with_the_tables():
    wave = np.linspace(2000, 12000, 5001)
    np.testing.assert_allclose(air_to_vacuum(vacuum_to_air(wave)), wave, atol=1e-8)
    air, vacuum = np.array([3726.03, 4861.33, 5006.84, 6562.80]), np.array([3727.09, 4862.69, 5008.24, 6564.61])  # SDSS's list
    np.testing.assert_allclose(air_to_vacuum(air), vacuum, atol=0.02)
    assert (vacuum_to_air(np.array([1200.0, 1999.9])) == [1200.0, 1999.9]).all()


@quiet
@given(st.floats(-0.5, 5), st.floats(-0.5, 5))
def test_redshifts_undo_and_multiply(z, other):
    wave = SDSS.grid.wave[::100]
    seen = redshift_wave(wave, z)
    np.testing.assert_allclose(redshift_wave(seen, 1 / (1 + z) - 1), wave, rtol=1e-12)
    np.testing.assert_allclose(redshift_wave(seen, other), redshift_wave(wave, (1 + z) * (1 + other) - 1), rtol=1e-12)
    assert redshift_wave(wave, np.array([z, other])).shape == (2, len(wave))


# ---- interpolation at a fractional pixel


@quiet
@given(st.lists(st.floats(-60, 60), min_size=1, max_size=5), st.integers(1, 60), st.integers(0, 99))
def test_shift_is_linear_interpolation_and_zero_outside(starts, m, seed):
    x = torch.randn(len(starts), 40, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    start = torch.tensor(starts, dtype=torch.float64)
    found, inside = shift_rows(x, start, m).numpy(), inside_rows(40, start, m).numpy()
    position = start[:, None].numpy() + np.arange(m)
    expected = np.stack([np.interp(p, np.arange(40), row) for p, row in zip(position, x.numpy())])
    np.testing.assert_allclose(found[inside], expected[inside], atol=1e-5)  # a tolerance of 1e-6 pixel at the ends
    assert (found[(position <= -1) | (position >= 40)] == 0).all()
    np.testing.assert_array_equal(inside, (position >= -1e-6) & (position <= 39 + 1e-6))


def test_gradient_of_a_shift_is_its_transpose():
    "Checked against finite differences, and <y, A x> = <Aᵀ y, x>."
    draw = torch.Generator().manual_seed(0)
    start = torch.tensor([-3.3, 0.0, 4.6, 11.9], dtype=torch.float64)
    x = torch.randn(4, 20, generator=draw, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: shift_rows(v, start, 12), x)
    y = torch.randn(4, 12, generator=draw, dtype=torch.float64)
    out = shift_rows(x, start, 12)
    (transposed,) = torch.autograd.grad((y * out).sum(), x)
    torch.testing.assert_close((transposed * x).sum(1), (y * out).sum(1))


REST = [("log", 3.3, 1e-4, 7000), ("linear", 2000.0, 1.0, 7800), ("log", 3.3, 1.3e-4, 5400)]


@pytest.mark.parametrize("obs", [SDSS.grid, BOSS.grid, DESI.grid], ids=["sdss", "boss", "desi"])
@pytest.mark.parametrize("kind, first, step, n", REST)
def test_constants_stay_and_lines_land_at_one_plus_z(kind, first, step, n, obs):
    rest = Grid(kind, first, step, n)
    z = torch.tensor([0.0, 0.12345, 0.4], dtype=torch.float64)
    seen, inside = resample_rest(torch.full((3, rest.n), 7.0), rest, obs, z)
    assert torch.allclose(seen[inside], torch.tensor(7.0)) and (seen[~inside & (seen != 0)] <= 7.001).all()
    edges = obs.wave / (1 + z[:, None].numpy())
    np.testing.assert_array_equal(inside, (edges >= rest.wave[0] * (1 - 1e-9)) & (edges <= rest.wave[-1] * (1 + 1e-9)))
    line = torch.tensor(np.exp(-0.5 * ((rest.wave - 5008.24) / 4) ** 2), dtype=torch.float32).repeat(3, 1)
    seen = resample_rest(line, rest, obs, z)[0].double().numpy() * np.diff(obs.edges)
    np.testing.assert_allclose((seen * obs.wave).sum(1) / seen.sum(1), 5008.24 * (1 + z), rtol=3e-6)
    np.testing.assert_allclose(seen.sum(1), 4 * np.sqrt(2 * np.pi) * (1 + z), rtol=1e-3)  # the integral, per observed Å


def test_the_closed_form_agrees_with_the_general_one():
    "On one lattice a shift by windows; anywhere else a gather: the same interpolation."
    rest, x = Grid("log", 3.3, 1e-4, 7000), torch.rand(4, 7000, generator=torch.Generator().manual_seed(0))
    z = torch.tensor([0.0, 0.1, 0.2222, 0.45], dtype=torch.float64)
    fast = resample_rest(x, rest, SDSS.grid, z)
    slow = resample_rest(x, rest, Grid("log", SDSS.grid.first, 1e-4 * (1 + 1e-8), SDSS.grid.n), z)
    assert torch.equal(fast[1], slow[1])
    torch.testing.assert_close(fast[0], slow[0], atol=2e-4, rtol=0)


# ---- flux-conserving rebinning


@quiet
@given(grids, st.integers(0, 99))
def test_rebinning_keeps_constants_and_a_mask_only_grows(new, seed):
    rng = np.random.default_rng(seed)
    edges = np.sort(rng.uniform(3000, 7000, 300))
    edges = edges[np.r_[True, np.diff(edges) > 1e-3]]
    n = len(edges) - 1
    flat, ivar = np.full((1, n), 3.0), np.full((1, n), 4.0)
    out, weight = rebin(edges, flat, ivar, new)
    covered = (new.edges[:-1] >= edges[0]) & (new.edges[1:] <= edges[-1])
    assert (weight[0] > 0).tolist() == covered.tolist()
    np.testing.assert_allclose(out[0, covered], 3.0, rtol=1e-9)
    bad = rng.random(n) < 0.1
    hidden = rebin(edges, np.where(bad, np.nan, flat), np.where(bad, 0, ivar), new)[1][0]
    pieces = np.minimum(edges[1:], new.edges[1:, None]) - np.maximum(edges[:-1], new.edges[:-1, None])  # (new, old) overlaps
    share = (np.clip(pieces, 0, None) / np.diff(edges))[:, bad].sum(1)
    assert (hidden[share > 1e-6] == 0).all(), "a new pixel that saw a bad one is bad"
    np.testing.assert_allclose(hidden[share == 0], weight[0, share == 0], rtol=1e-9)


def test_rebinning_conserves_the_integral_and_adds_variances():
    rng = np.random.default_rng(0)
    fine = Grid("linear", 4000.0, 0.5, 4000)
    flux, ivar = rng.normal(10, 1, (3, fine.n)), rng.uniform(1, 4, (3, fine.n))
    coarse = Grid("linear", 4000.0 + 0.5 * 1.5, 2.0, 1000)  # four old pixels each
    out, weight = rebin(fine.edges, flux, ivar, coarse)
    np.testing.assert_allclose(out, flux.reshape(3, -1, 4).mean(2), rtol=1e-9)
    np.testing.assert_allclose(1 / weight, (1 / ivar).reshape(3, -1, 4).sum(2) / 16, rtol=1e-9)
    np.testing.assert_allclose((out * 2.0).sum(1), (flux * 0.5).sum(1), rtol=1e-12)
    same, again = rebin(fine.edges, flux, ivar, fine)
    np.testing.assert_allclose(same, flux, rtol=1e-9)
    np.testing.assert_allclose(again, ivar, rtol=1e-9)


def test_rebinned_errors_are_the_scatter():
    rng = np.random.default_rng(1)
    edges, new = np.linspace(4000, 4400, 801), Grid("log", np.log10(4010), 2e-4, 400)
    flux = 5 + 0.5 * rng.standard_normal((4000, 800))
    out, ivar = rebin(edges, flux, np.full(flux.shape, 4.0), new)
    inside = ivar[0] > 0
    np.testing.assert_allclose(out[:, inside].std(0) * np.sqrt(ivar[0, inside]), 1, atol=0.06)


def by_hand(edges, flux, ivar, new):
    "One spectrum, flux and variance, every overlap of every pair of pixels written out."
    part = np.minimum(edges[1:], new[1:, None]) - np.maximum(edges[:-1], new[:-1, None])
    part = np.clip(part, 0, None)
    return (part * flux).sum(1) / np.diff(new), (part**2 / ivar).sum(1) / np.diff(new) ** 2


@pytest.mark.parametrize("step", [2e-5, 1e-4, 1.7e-4, 3.9e-4, 3e-3], ids=lambda x: f"{x:g} dex")
def test_rebinning_to_the_rest_frames_of_many_spectra_is_one_by_one_the_sum_of_overlaps(step):
    rng = np.random.default_rng(3)
    z, old = np.array([0.0, 0.031, 0.2, 0.5]), Grid("log", 3.6, 1e-4, 900)
    flux, ivar = rng.normal(5, 1, (4, 900)), 10 ** rng.uniform(-3, 3, (4, 900))
    new = Grid("log", 3.45, step, int(0.2 / step))
    out, weight = rebin(old.edges, flux, ivar, new, z=z)
    assert out.shape == weight.shape == (4, new.n)
    for i in range(4):
        target = new.edges * (1 + z[i])
        inside = (target[:-1] >= old.edges[0]) & (target[1:] <= old.edges[-1])
        expected = by_hand(old.edges, flux[i], ivar[i], target)
        np.testing.assert_array_equal(weight[i] > 0, inside)
        np.testing.assert_allclose(out[i, inside], expected[0][inside], rtol=1e-10)
        np.testing.assert_allclose(1 / weight[i, inside], expected[1][inside], rtol=1e-9)
        np.testing.assert_allclose(out[i], rebin(old.edges, flux[i], ivar[i], new.edges, z=z[i])[0][0], rtol=1e-13)
    np.testing.assert_array_equal(rebin(old.edges, flux, ivar, new, z=z[1:2])[0][1], out[1])  # one redshift for all


def test_a_constant_stays_to_a_part_in_a_million_million_and_the_order_of_rows_means_nothing():
    rng = np.random.default_rng(4)
    z, level = rng.uniform(0, 0.3, 50), rng.uniform(1, 9, (50, 1))
    flux = level * np.ones(SDSS.grid.n)
    out, weight = rebin(SDSS.grid.edges, flux, np.ones_like(flux), Grid("log", 3.55, 9.8e-5, 4000), z=z)
    assert np.abs(np.where(weight > 0, out / level - 1, 0)).max() < 1e-12
    again = rebin(SDSS.grid.edges, flux[::-1], np.ones_like(flux), Grid("log", 3.55, 9.8e-5, 4000), z=z[::-1])
    np.testing.assert_array_equal(again[0], out[::-1])


def test_one_worthless_or_enormous_pixel_changes_no_other():
    edges, new = np.linspace(4000, 5000, 1001), Grid("linear", 4003.0, 1.7, 580)
    flux, ivar = np.ones((1, 1000)), np.full((1, 1000), 4.0)
    clean = rebin(edges, flux, ivar, new)
    for where, value in ((ivar, 1e-30), (ivar, 0.0), (flux, 1e30), (flux, np.nan)):
        kept, where[0, 300] = where[0, 300], value
        out = rebin(edges, flux, ivar, new)
        where[0, 300] = kept
        away = (new.edges[1:] < edges[300]) | (new.edges[:-1] > edges[301])
        for a, b in zip(out, clean): np.testing.assert_array_equal(a[0, away], b[0, away])
        assert np.isfinite(out).all()


def test_redshifts_that_do_not_fit_are_refused():
    flux = np.ones((3, SDSS.grid.n))
    for z, word in ((np.zeros(2), "2 redshifts for 3"), (np.array([0, np.nan, 0]), "finite"), (np.full(3, -2.0), "finite")):
        with pytest.raises(SpectrumError, match=word): rebin(SDSS.grid.edges, flux, flux, SDSS.grid, z=z)
    assert rebin(SDSS.grid.edges, flux[:0], flux[:0], SDSS.grid)[0].shape == (0, SDSS.grid.n)
    with pytest.raises(SpectrumError, match="increase"): rebin(SDSS.grid.edges, flux, flux, SDSS.grid.edges[::-1])
