"""Filters: exact integrals, every road to a magnitude against another, curves by name and from files."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_core.core import ConfigError, SpectrumError
from spectral_core.simulate.filters import (
    Filters,
    Photometer,
    load_filters,
    maggies,
    pixel_means,
    planck_distance,
    to_nanomaggies,
)
from spectral_core.spectra.wavelength import Grid

AB = 3631e-23 * 2.99792458e18
GRID = Grid("log", 3.3, 1e-3, 900)


def curve(seed: int) -> Filters:
    "A band with a random, ragged response between 4000 and 6000 Å."
    rng = np.random.default_rng(seed)
    wave = np.sort(rng.uniform(4000, 6000, 20))
    return Filters(("ragged",), (wave,), (rng.random(20) * (rng.random(20) < 0.7) + 1e-3,))


@settings(derandomize=True, max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), z=st.floats(0, 0.6), width=st.floats(3, 300))
def test_weights_are_the_integral(seed, z, width):
    "Pixel means times weights are ∫ λ R f dλ / ∫ λ R f_AB dλ, however wide the pixels, for light that is constant in each."
    band = curve(seed)
    edges = np.arange(2000, 9000, width)
    level = np.random.default_rng(seed + 1).random(len(edges) - 1)
    fine = np.linspace(3990, 6010, 400001)
    response = np.interp(fine, band.wave[0], band.response[0], left=0, right=0)
    light = level[np.clip(np.searchsorted(edges * (1 + z), fine, side="right") - 1, 0, len(level) - 1)]
    expected = np.trapezoid(fine * response * light, fine) / np.trapezoid(response * AB / fine, fine)
    assert band.weights(edges, z) @ level == pytest.approx([expected], rel=2e-4)


@pytest.mark.parametrize("z", [0.0, 0.02, 0.2])
def test_a_source_flat_in_frequency_has_one_magnitude(z):
    "f_λ ∝ λ⁻² of AB magnitude 20, moved by z: (1 + z)² brighter in f_λ, the same in every band."
    edges = np.arange(1800, 13000, 5.0)
    flux = 10 ** (-0.4 * 20) * AB * (1 / edges[:-1] - 1 / edges[1:]) / np.diff(edges)
    seen = -2.5 * np.log10(load_filters("sdss2010").weights(edges, z) @ flux)
    assert seen == pytest.approx(20 - 5 * np.log10(1 + z), abs=1e-4)


def test_exact_weights_agree_with_speclite():
    from speclite.filters import load_filter

    edges = np.arange(2500, 12001, 1.0)
    wave = 0.5 * (edges[1:] + edges[:-1])
    flux = 1e-15 * (1 + 0.5 * np.sin(wave / 30)) * np.where(wave > 4300, 1, 0.3)
    bands = load_filters(["sdss2010", "decam2014-g", "decam2014-r"])
    theirs = [float(load_filter(name).get_ab_maggies(flux, wave)) for name in bands.names]
    apart = -2.5 * np.log10(bands.weights(edges) @ flux / theirs)
    assert np.abs(apart).max() < 6e-4  # their zero point of u steps over a gap
    assert np.abs(apart[1:5]).max() < 2e-5


def test_photometer_agrees_with_the_exact_integral():
    "A spectrum with breaks and lines at any redshift: shifting costs less than 0.001 mag, single precision nothing."
    wave = GRID.wave
    light = np.where(wave > 4000, 1, 0.3) * (wave / 5000) + 3 * np.exp(-0.5 * ((wave - 5008) / 12) ** 2)
    z = np.linspace(0.001, 0.25, 60)
    bands = load_filters("sdss2010")
    exact = -2.5 * np.log10(maggies(np.tile(light, (60, 1)), GRID.edges, z, bands))
    photometer = Photometer(bands, GRID)
    fast = photometer.magnitudes(torch.tensor(np.tile(light, (60, 1))), torch.tensor(z)).numpy()
    some = photometer.rest_pixels(0.001, 0.25)
    single = photometer.magnitudes(torch.tensor(np.tile(light[some], (60, 1)), dtype=torch.float32), torch.tensor(z), some.start)
    assert np.abs(fast - exact).max() < 1e-3
    assert np.abs(single.numpy() - fast).max() < 2e-5


def test_photometer_is_differentiable_and_linear_in_light():
    photometer, z = Photometer(load_filters("sdss2010-r"), GRID), torch.tensor([0.03, 0.1])
    light = torch.rand(2, GRID.n, dtype=torch.float64, requires_grad=True)
    flux = lambda x: 10 ** (-0.4 * photometer.magnitudes(x, z))
    slope = torch.autograd.grad(flux(light).sum(), light)[0]
    other = torch.rand(2, GRID.n, dtype=torch.float64)
    assert torch.allclose((slope * other).sum(1), flux(other)[:, 0], rtol=1e-9)


def test_distances_are_plancks():
    from astropy.cosmology import Planck13

    z = np.geomspace(1e-4, 1.9, 50)
    ratio = planck_distance(torch.tensor(z)).numpy() / Planck13.luminosity_distance(z).value
    assert np.abs(ratio - 1).max() < 1e-5


@pytest.mark.parametrize("z", [0.0, -0.1, np.nan, 5.0])
def test_absurd_redshifts_are_refused(z):
    with pytest.raises(SpectrumError, match="0 < z < 2"): planck_distance(torch.tensor([0.1, z]))


def test_bands_beyond_the_spectrum_are_refused():
    photometer, light = Photometer(load_filters("sdss2010"), GRID), torch.ones(1, GRID.n)
    with pytest.raises(SpectrumError, match="leave"): photometer.magnitudes(light, torch.tensor([0.7]))
    with pytest.raises(SpectrumError, match="stay on"): photometer.rest_pixels(0, 0.7)
    with pytest.raises(SpectrumError, match="leave"): maggies(light.numpy(), GRID.edges, 0.7, load_filters("sdss2010"))


def test_own_curves_from_files(tmp_path):
    rows = np.column_stack([[5000, 5500, 6000], [0, 0.7, 0]])
    np.savetxt(tmp_path / "mine.txt", rows)
    bands = {"b/wave": rows[:, 0], "b/response": rows[:, 1], "a/wave": rows[:, 0] - 900, "a/response": rows[:, 1]}
    np.savez(tmp_path / "set.npz", **bands)
    assert load_filters(tmp_path / "mine.txt").names == ("mine",)
    assert load_filters(tmp_path / "set.npz").names == ("a", "b")  # from blue to red
    assert load_filters([tmp_path / "mine.txt", "sdss2010-g"]).names == ("mine", "sdss2010-g")
    assert load_filters(tmp_path / "mine.txt").pivot == pytest.approx([5496], abs=5)


@pytest.mark.parametrize("wave, response", [([5, 4], [1, 1]), ([4, 5], [1, np.nan]), ([4, 5], [-1, 1]), ([4, 5], [0, 0])])
def test_bad_curves_are_refused(wave, response):
    with pytest.raises(ConfigError, match="increasing wavelengths"):
        Filters(("x",), (np.array(wave, float),), (np.array(response, float),))


@pytest.mark.parametrize("name, hint", [("sdss2011", "sdss2010"), ("decam2014-q", "decam2014"), ("/no/such/file.npz", "path")])
def test_unknown_names_are_refused(name, hint):
    with pytest.raises(ConfigError, match=hint): load_filters(name)


def test_pixel_means_conserve_and_nanomaggies():
    rng = np.random.default_rng(0)
    wave, spectra = np.sort(rng.uniform(3000, 6000, 300)), rng.random((3, 300))
    edges = np.linspace(wave[0], wave[-1], 40)
    total = (pixel_means(wave, spectra, edges) * np.diff(edges)).sum(1)
    assert total == pytest.approx(np.trapezoid(spectra, wave), rel=1e-9)
    assert to_nanomaggies(torch.tensor([22.5, 15.0])).tolist() == pytest.approx([1, 1000])


@pytest.mark.real
def test_older_sdss_curves(mirror):
    old, new = load_filters("sdss0"), load_filters("sdss2010")
    assert old.names == tuple(f"sdss_{band}0" for band in "ugriz")
    assert np.abs(old.pivot / new.pivot - 1).max() < 0.01
