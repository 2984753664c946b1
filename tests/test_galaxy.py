"""Galaxies without noise: populations against exact integrals and bagpipes, lines where and as strong as they should be,
and the colours and lines of real galaxies of the same mass."""

import numpy as np
import pytest
import torch
from astropy.io import fits
from scipy.ndimage import gaussian_filter1d

from spectral_core.core import ConfigError
from spectral_core.manifest import fetch
from spectral_core.simulate.dust import attenuation, milky_way
from spectral_core.simulate.galaxy import broaden, make_galaxies, observed
from spectral_core.simulate.population import CLASSES, cosmic_age, draw_population, luminosity_distance
from spectral_core.simulate.ssp import AGE_EDGES, FINE, load_ssp
from spectral_core.simulate.synthesis import LINE_NAMES, mass_fractions, population_weights
from spectral_core.spectra.lines import LINES, line_wave
from spectral_core.spectra.surveys import BOSS, DESI, SDSS
from spectral_core.spectra.wavelength import air_to_vacuum


@pytest.fixture(scope="module")
def galaxies():
    "600 galaxies of all classes, with their truth."
    return make_galaxies(draw_population(600, seed=11))[0]


# ---- populations

HISTORIES = {  # lookback time in Gyr → star formation rate; log of the mass left of 1e10 M☉, by bagpipes 1.3.6
    "constant for 1 Gyr": (lambda age: np.where(age < 1, 1.0, 0.0), 9.8178),
    "delayed, 6 Gyr, tau 3": (lambda age: np.where(age < 6, (6 - age) * np.exp((age - 6) / 3), 0.0), 9.7394),
    "exponential, 8 Gyr, tau 1.5": (lambda age: np.where(age < 8, np.exp((age - 8) / 1.5), 0.0), 9.6843),
}


@pytest.mark.parametrize("name", HISTORIES)
def test_binned_populations_equal_the_exact_integral_over_ages(name):
    "Within 0.5 % in level and 0.1 % in shape (3800-7100 Å, solar); surviving masses as bagpipes has them."
    ssp, (rate, log_mass) = load_ssp("bc03"), HISTORIES[name]
    [path] = [path for path in fetch("bagpipes_grids") if "stellar" in path.name]
    with fits.open(path) as hdus:
        nodes, wave = hdus["STELLAR_AGE_YR"].data / 1e9, air_to_vacuum(hdus["WAVELENGTHS_AA"].data)
        spectra = hdus["ZMET_1.000ZSOL"].data.astype(float)
    solar = int(ssp.log_z.abs().argmin())
    age = np.linspace(0, 12, 24_001)
    middle = 0.5 * (age[1:] + age[:-1])
    mass = rate(middle) * np.diff(age)
    mass /= mass.sum()
    position = np.interp(middle, nodes, np.arange(len(nodes)))
    low = position.astype(int)
    share = np.bincount(low, mass * (1 - position + low), len(nodes))
    share += np.bincount(low + 1, mass * (position - low), len(nodes))
    exact = np.interp(FINE.wave, wave, share @ spectra)
    binned = np.histogram(middle, AGE_EDGES, weights=mass)[0]
    ours = binned @ ssp.stars[solar].double().numpy()
    seen = (FINE.wave > 3800) & (FINE.wave < 7100)
    ratio = (gaussian_filter1d(ours, 22) / gaussian_filter1d(exact, 22))[seen]  # 25 Å: beyond the sampling of the library
    assert abs(ratio.mean() - 1) < 0.005 and ratio.std() < 0.001
    assert 10 + np.log10(binned @ ssp.living[solar].double().numpy()) == pytest.approx(log_mass, abs=0.002)


def test_mass_and_metals_are_shared_out_whole(galaxies):
    mass, ssp = mass_fractions(galaxies), load_ssp("mixed")
    assert (mass >= 0).all()
    np.testing.assert_allclose(mass.sum(1), 1)
    weights = population_weights(torch.as_tensor(mass), torch.as_tensor(np.asarray(galaxies["log_z"])), ssp)
    np.testing.assert_allclose(weights.sum(1), mass, atol=1e-7)
    np.testing.assert_allclose(weights.sum(2) @ ssp.log_z.double(), galaxies["log_z"], atol=1e-5)
    older = AGE_EDGES[:-1] > cosmic_age(np.asarray(galaxies["z"]))[:, None]
    assert mass[older].max() < 1e-6, "no star is older than the universe"


def test_the_nebular_grid_is_asked_for_nothing_beyond_its_range():
    "Above 1.5 solar the Cloudy lines collapse: older stars may be richer, gas and the stars in it are not."
    drawn = draw_population(200, seed=4, population="main")
    drawn = drawn[drawn["class"] == "star-forming"]
    drawn["log_z"] = 0.15
    _, bound, lines = make_galaxies(drawn)
    drawn["log_z"] = 0.40
    _, rich, same = make_galaxies(drawn)
    torch.testing.assert_close(lines, same, rtol=1e-4, atol=1e-12)
    assert (rich[:, FINE.n // 2] < bound[:, FINE.n // 2]).all()


def test_draws_stay_within_their_bounds():
    for seed in range(3):
        drawn = draw_population(4000, seed=seed)
        assert drawn["log_z"].max() <= 0.40 and set(drawn["class"]) <= set(CLASSES)
        assert (drawn["form_age"] < cosmic_age(drawn["z"])).all() and (drawn["a_v_gas"] >= drawn["a_v"]).all()
        for name in drawn.colnames:
            if drawn[name].dtype.kind == "f": assert np.isfinite(drawn[name]).all(), name


def test_distances_and_ages_are_those_of_the_cosmology():
    from astropy.cosmology import FlatLambdaCDM

    cosmology, z = FlatLambdaCDM(H0=70, Om0=0.3), np.array([0.004, 0.03, 0.1, 0.5, 2.0])
    np.testing.assert_allclose(luminosity_distance(z), cosmology.luminosity_distance(z).value, rtol=1e-4)
    np.testing.assert_allclose(cosmic_age(z), cosmology.age(z).value, rtol=1e-4)


def test_dust_has_its_definition():
    "A_V at 5500 Å, E(B−V) between B and V, more in the blue, the bump at 2175 Å."
    wave = torch.tensor([2175.0, 2600.0, 4400.0, 5500.0, 6563.0])
    a = attenuation(wave, torch.tensor([0.3, 1.0, 2.0]), torch.tensor([-0.4, 0.0, 0.2]))
    torch.testing.assert_close(a[:, 3], torch.tensor([0.3, 1.0, 2.0]), rtol=0.01, atol=0)
    assert (a[:, 2:].diff(dim=1) < 0).all() and a[0, 0] > 1.2 * a[0, 1]
    galactic = milky_way(torch.tensor([4400.0, 5494.5]), torch.tensor([0.05, 0.2]))
    torch.testing.assert_close(galactic[:, 0] - galactic[:, 1], torch.tensor([0.05, 0.2]), rtol=0.03, atol=0)


# ---- as a survey sees them


def test_whole_pixel_shifts_are_exact_and_smoothing_keeps_flux():
    walk = torch.randn(3, 4096, generator=torch.Generator().manual_seed(0), dtype=torch.float64).cumsum(1)
    x = walk - torch.linspace(0, 1, 4096, dtype=torch.float64) * (walk[:, -1:] - walk[:, :1])
    none = torch.zeros(3, 2, dtype=torch.float64)
    moved, _ = broaden(x, none, torch.tensor([0.0, 1.0, 7.0]))
    inner = slice(50, -50)
    for row, k in enumerate((0, 1, 7)): torch.testing.assert_close(moved[row, inner], x[row].roll(-k)[inner], atol=1e-6, rtol=0)
    line = torch.exp(-0.5 * ((torch.arange(4096.0, dtype=torch.float64) - 2000) / 3) ** 2)[None]
    smooth, _ = broaden(line, torch.full((1, 2), 4.0, dtype=torch.float64), torch.zeros(1))
    pixel = torch.arange(4096.0, dtype=torch.float64)
    assert smooth.sum().item() == pytest.approx(line.sum().item(), rel=1e-6)
    spread = (smooth * (pixel - 2000) ** 2).sum() / smooth.sum()
    assert spread.item() == pytest.approx(9 + 16, rel=1e-3)


@pytest.mark.parametrize("survey", [SDSS, BOSS, DESI], ids=lambda s: s.name)
def test_line_flux_put_in_is_line_flux_on_the_pixels(galaxies, survey):
    "Within 0.2 %, at another redshift than its own: what the truth table says, summed over pixels, without the Milky Way."
    truth, z = galaxies[galaxies["class"] == "star-forming"][:40], np.full(40, 0.08)
    truth["ebv_mw"] = 0.0
    painted = observed(truth, z, survey)[1].double().numpy() * np.diff(survey.grid.edges)
    distance = luminosity_distance(np.asarray(truth["z"])) / luminosity_distance(z)
    oxygen = np.asarray(truth["flux_oiii_5007"]) * distance**2
    lum = np.asarray(truth["line_lum"])
    share = lum / lum[:, [LINE_NAMES.index("oiii_5007")]]  # every line in units of [O III] 5007
    near = np.abs(survey.grid.wave / 1.08 - line_wave("oiii_5007")) < 25
    np.testing.assert_allclose(painted[:, near].sum(1), oxygen * (1 + share[:, LINE_NAMES.index("hei_5015")]), rtol=2e-3)
    low, high = survey.grid.wave[[0, -1]]
    wave = np.asarray(LINES["wave"]) * 1.08
    least, most = (share[:, (wave > low + gap) & (wave < high - gap)].sum(1) for gap in (60, -60))
    found = painted.sum(1) / oxygen
    assert (found > 0.998 * least).all() and (found < 1.002 * most).all()


ABSORPTION = [("Ca K", 3934.78, "passive"), ("Mg b", 5185.05, "passive"), ("H delta", 4102.89, "post-starburst")]


@pytest.mark.parametrize("name, wave, kind", ABSORPTION)
def test_absorption_lines_stand_at_their_vacuum_wavelengths(name, wave, kind):
    "End to end, of galaxies at z = 0.1 on SDSS's pixels: in air every line would be 1.1 to 1.5 Å to the blue."
    drawn = draw_population(3000, seed=3)
    drawn = drawn[drawn["class"] == kind][:8]
    drawn["sigma_v"], drawn["ebv_mw"] = 100.0, 0.0
    continuum = observed(make_galaxies(drawn)[0], np.full(len(drawn), 0.1))[0].double().numpy()
    rest = SDSS.grid.wave / 1.1
    near = np.abs(rest - wave) < (4 if name == "Mg b" else 6)
    depth = np.clip(1 - continuum[:, near] / continuum[:, near].max(1, keepdims=True), 0, None)
    depth = np.clip(depth - 0.6 * depth.max(1, keepdims=True), 0, None)
    centre = (depth * rest[near]).sum(1) / depth.sum(1)
    assert np.median(centre) == pytest.approx(wave, abs=0.45)


def test_the_fibre_magnitude_is_the_flux_at_6165(galaxies):
    truth = galaxies[:100]
    truth["ebv_mw"] = 0.0
    continuum = observed(truth)[0].numpy()
    near = np.abs(SDSS.grid.wave - 6165) < 250
    np.testing.assert_allclose(continuum[:, near].mean(1), 18 * 10 ** (-0.4 * (truth["r_fibre"] - 18)), rtol=0.15)
    with pytest.raises(ConfigError, match="possible"): observed(truth[:2], np.array([3.0, 0.1]))


# ---- as real galaxies are


def test_lines_say_what_the_galaxy_was_drawn_as(galaxies):
    "At least 80 % of star-forming galaxies and Seyferts, by the curves of Kauffmann and Kewley."
    share = lambda kind, found: np.mean(np.isin(galaxies["bpt"][galaxies["class"] == kind], found))
    assert share("star-forming", ["star-forming"]) > 0.8 and share("seyfert", ["seyfert", "liner"]) > 0.8
    whan = lambda kind: galaxies["whan"][galaxies["class"] == kind]
    assert np.isin(whan("passive"), ["passive", "retired"]).mean() > 0.9
    assert np.isin(whan("retired"), ["passive", "retired", "weak-agn"]).mean() > 0.9


def test_the_star_forming_ridge_is_where_884_real_galaxies_have_it():
    "log [OIII]/Hβ at given log [NII]/Hα: mock_survey's table from NSA and RESOLVE, within 0.1 dex."
    truth = make_galaxies(draw_population(1500, seed=2))[0]
    truth = truth[truth["class"] == "star-forming"]
    n2 = np.log10(truth["flux_nii_6584"] / truth["flux_halpha"])
    o3 = np.log10(truth["flux_oiii_5007"] / truth["flux_hbeta"])
    for centre, real in ((-0.9, 0.29), (-0.7, 0.10), (-0.5, -0.26), (-0.3, -0.37)):
        near = np.abs(n2 - centre) < 0.1
        assert near.sum() > 25 and np.median(o3[near]) == pytest.approx(real, abs=0.1), centre


NSA = {8.5: (1.22, 17.0, 0.10), 9.0: (1.27, 15.0, 0.22), 9.5: (1.40, 9.0, 0.27), 10.0: (1.66, 2.5, 0.53), 10.5: (1.90, 1.0, 0.73)}


def test_breaks_and_lines_follow_mass_as_in_the_nsa():
    """Medians of D4000 and EW(Hα) in Å and the share below 3 Å, per half dex of mass from 10^8.5 M☉ on (NSA, z < 0.025).

    EWs of the mock are 0.1-0.4 dex higher, some of it aperture: the bound is 0.55. Where the galaxies are of two kinds, at
    10-10.5, a median lies between two peaks and says little.
    """
    drawn = draw_population(12_000, seed=1, population={"main": 0.8, "flat": 0.2})
    drawn = drawn[drawn["z"] < 0.08]
    found = {}
    for low in NSA:
        rows = np.flatnonzero((drawn["log_mass_class"] >= low) & (drawn["log_mass_class"] < low + 0.5))[:300]
        truth = make_galaxies(drawn[rows])[0]
        ew = np.asarray(truth["ew_halpha"])
        found[low] = (np.median(truth["d4000"]), np.median(ew), np.mean(ew < 3))
    for low, (d4000, ew, weak) in NSA.items():
        assert found[low][2] == pytest.approx(weak, abs=0.15), found
        if low == 10.0: continue
        assert found[low][0] == pytest.approx(d4000, abs=0.12) and abs(np.log10(found[low][1] / ew)) < 0.55, found
