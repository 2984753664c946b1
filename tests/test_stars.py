"""Real library stars: vacuum wavelengths, temperatures, draws that do not depend on their number."""

import numpy as np
import pytest
import torch

from spectral_core.core import ConfigError
from spectral_core.simulate.stars import load_stars, star_spectra
from spectral_core.spectra.surveys import get_survey

WAVE = get_survey("sdss").grid.wave


def minimum_near(flux, wave, centre, half=20):
    near = abs(wave - centre) < half
    return wave[near][flux[near].argmin()]


@pytest.mark.parametrize("centre, teff", [(6564.6, 9000), (4862.7, 9000), (3934.8, 5800), (8544.4, 5800)])
def test_lines_stand_at_their_vacuum_wavelengths(centre, teff):
    library = load_stars()
    star = library.flux[np.argmin(abs(library.teff - teff))].numpy()
    assert abs(minimum_near(star, library.grid.wave, centre) - centre) < 1.2  # air would be 1.1 to 2.4 Å to the blue


def test_cool_stars_show_titanium_oxide():
    library = load_stars()
    wave, flux = library.grid.wave, library.flux.numpy()
    band = flux[:, (wave > 7060) & (wave < 7140)].mean(1) / flux[:, (wave > 7030) & (wave < 7048)].mean(1)
    assert band[library.teff > 5000].min() > 0.93 and band[library.teff < 3700].min() < 0.5


def test_star_i_does_not_depend_on_n():
    few, table = star_spectra(5, 3)
    many, more = star_spectra(50, 3)
    torch.testing.assert_close(few, many[:5], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(table["teff"], more["teff"][:5], rtol=1e-12)
    assert not torch.equal(star_spectra(5, 4)[0], few)


def test_mixes_are_convex():
    library = load_stars()
    flux, truth = star_spectra(200, 0)
    assert library.teff.min() <= truth["teff"].min() and truth["teff"].max() <= library.teff.max()
    assert (flux >= 0).all() and torch.isfinite(flux).all()
    window = (WAVE > 5300) & (WAVE < 5850)
    torch.testing.assert_close(flux[:, window].median(1).values, torch.ones(200), rtol=1e-4, atol=1e-4)


def test_radial_velocity_moves_the_lines():
    flux, truth = star_spectra(300, 1, teff=(7000, 10000))
    found = np.array([minimum_near(row.numpy(), WAVE, 6564.6, 10) for row in flux])
    slope, centre = np.polyfit(truth["rv"], found, 1)
    assert abs(slope / (6564.6 / 299792.458) - 1) < 0.15 and abs(centre - 6564.6) < 0.5


def test_held_out_stars_are_never_drawn_otherwise():
    names = [set(star_spectra(400, 0, held_out=h)[1]["name"]) for h in (False, True)]
    assert not names[0] & names[1] and names[0] | names[1] == set(load_stars().name)


@pytest.mark.parametrize("survey", ["boss", "desi"])
def test_other_surveys_see_the_same_star(survey):
    here, there = star_spectra(3, 0)[0].numpy(), star_spectra(3, 0, survey)[0].numpy()
    wave = get_survey(survey).grid.wave
    for a, b in zip(here, there): assert np.median(abs(np.interp(WAVE, wave, b) / a - 1)[100:-100]) < 0.02


def test_impossible_temperature_is_refused():
    with pytest.raises(ConfigError, match="no library star"): star_spectra(1, teff=(100, 200))
