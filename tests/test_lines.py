"""Lines, indices and classes: both sides of every boundary, measures that see what was put in (fault matrix, row 17)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_core.core import SpectrumError
from spectral_core.spectra.lines import (
    EW_WINDOWS,
    INDICES,
    LINES,
    bpt_class,
    d4000n,
    equivalent_width,
    kauffmann2003,
    kewley2001,
    lick_index,
    line_wave,
    log_ratio,
    whan_class,
    window_mean,
)
from spectral_core.spectra.surveys import DESI, SDSS

quiet = settings(derandomize=True, max_examples=60, deadline=None)
WAVE = SDSS.grid.wave


def bpt_at(x, y, **more):
    "Class at log [NII]/Hα = x and log [OIII]/Hβ = y."
    return bpt_class(np.ones_like(x), 10.0 ** np.asarray(y), np.full_like(x, 3.0), 3 * 10.0 ** np.asarray(x), **more)


# ---- classes


def test_classes_change_at_the_curves_and_nowhere_else():
    x, step = np.linspace(-1.8, -0.01, 80), 1e-6
    assert set(bpt_at(x, kauffmann2003(x) - step)) == {"star-forming"}
    between = x[kewley2001(x) > kauffmann2003(x) + 0.01]
    assert len(between) > 50 and set(bpt_at(between, kauffmann2003(between) + step)) == {"composite"}
    assert set(bpt_at(between, kewley2001(between) - step)) == {"composite"}
    assert set(bpt_at(x, np.maximum(kewley2001(x), kauffmann2003(x)) + step)) <= {"seyfert", "liner"}
    x = np.linspace(0.0, 0.4, 30)
    line = 1.05 * x + 0.45  # Schawinski et al. 2007
    assert (kewley2001(x) < line).all()
    assert set(bpt_at(x, line + step)) == {"seyfert"} and set(bpt_at(x, line - step)) == {"liner"}


def test_curves_are_the_papers():
    "Values by hand from the published equations, and nothing lies below a curve beyond its pole."
    assert kauffmann2003([-1.0]) == pytest.approx(0.61 / -1.05 + 1.3) and kewley2001([-1.0]) == pytest.approx(0.61 / -1.47 + 1.19)
    x = np.array([0.05, 0.3, 0.47, 2.0])
    assert np.isneginf(kauffmann2003(x)).all() and np.isneginf(kewley2001(x)).tolist() == [False, False, True, True]
    assert set(bpt_at(np.array([0.47, 0.6, 3.0]), np.array([-5.0, -1.0, -3.0]))) == {"liner"}


@quiet
@given(st.lists(st.floats(1e-3, 1e3), min_size=4, max_size=4), st.floats(1e-6, 1e6))
def test_a_class_does_not_depend_on_the_unit(fluxes, unit):
    assert bpt_class(*fluxes) == bpt_class(*(unit * f for f in fluxes)) or np.abs(
        log_ratio(fluxes[1], fluxes[0]) - np.array([kauffmann2003(log_ratio(fluxes[3], fluxes[2])),
                                                   kewley2001(log_ratio(fluxes[3], fluxes[2]))])).min() < 1e-9


BAD = st.sampled_from([0.0, -1.0, -1e30, np.nan, np.inf, -np.inf])


@quiet
@given(st.lists(st.one_of(st.floats(0.1, 10), BAD), min_size=4, max_size=4))
def test_fault_17_fluxes_that_are_no_fluxes(fluxes):
    "Unknown where a line is not positive or not finite, without a warning (which would be an error here)."
    known = np.isfinite(fluxes).all() and min(fluxes) > 0
    assert (bpt_class(*fluxes) != "unknown") == known
    assert np.isfinite(log_ratio(fluxes[0], fluxes[1])) == (np.isfinite(fluxes[:2]).all() and min(fluxes[:2]) > 0)
    ew, nii = fluxes[:2]
    assert (whan_class(ew, nii) == "unknown") == (not np.isfinite([ew, nii]).all() or (ew >= 3 and nii <= 0))


def test_fault_17_weak_lines_are_unknown_to_bpt_and_go_on_to_whan():
    x = np.full(3, -0.5)
    assert bpt_at(x, x, sn=np.array([2.9, 3.0, np.nan])).tolist() == ["unknown", "star-forming", "unknown"]
    assert whan_class([0.3, 0.3, -1.0, 2.9], [0.2, 0.6, -0.5, -1.0]).tolist() == ["passive", "retired", "passive", "retired"]


def test_whan_changes_at_three_and_six_angstrom_and_at_the_ratio():
    edge = 10**-0.4
    for ew, share, kind in (
        (2.999, 1.0, "retired"), (3.001, 1.0, "weak-agn"), (5.999, 1.0, "weak-agn"), (6.001, 1.0, "strong-agn"),
        (20, edge * 1.001, "strong-agn"), (20, edge * 0.999, "star-forming"), (4, edge * 0.999, "star-forming"),
        (0.499, 1.0, "passive"), (0.501, 1.0, "retired"), (0.3, 3.0, "retired"),
    ):
        assert whan_class(ew, ew * share) == kind, (ew, share)


def test_a_line_is_found_by_its_name():
    assert len(set(LINES["name"])) == len(LINES) and (np.diff(LINES["wave"]) > 0).all()
    assert line_wave("halpha") == pytest.approx(6564.61, abs=0.01)  # SDSS's table of vacuum wavelengths
    assert line_wave("oiii_5007") == pytest.approx(5008.24, abs=0.01)
    with pytest.raises(SpectrumError, match="did you mean 'halpha'"): line_wave("halfa")


# ---- windows, indices, equivalent widths


def spectra(z, name, ew, level=3.0, slope=1e-4, sigma=2.0, wave=WAVE):
    "Straight continua with one Gaussian line of a rest-frame equivalent width, as observed."
    low, high = EW_WINDOWS[name][2:4]
    rest = wave / (1 + np.asarray(z, float)[:, None])
    centre = 0.5 * (low + high)
    continuum = level * (1 + slope * (rest - centre))
    return continuum * (1 + ew * np.exp(-0.5 * ((rest - centre) / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi)))


@pytest.mark.parametrize("wave", [WAVE, DESI.grid.wave], ids=["log", "linear"])
@pytest.mark.parametrize("name", EW_WINDOWS)
@pytest.mark.parametrize("ew", [-3.0, 0.0, 40.0])
def test_equivalent_width_is_what_was_put_in(name, ew, wave):
    "In the rest frame, so the same at every redshift, and whatever the flux unit."
    z = np.array([0.05, 0.17, 0.3])
    flux = spectra(z, name, ew, wave=wave)
    found = equivalent_width(wave, flux, name, z=z)
    np.testing.assert_allclose(found, ew, atol=0.02 + 0.01 * abs(ew))
    np.testing.assert_allclose(equivalent_width(wave, 1e-17 * flux, name, z=z), found, rtol=1e-9, atol=1e-9)


def test_what_is_not_seen_has_no_measure():
    z, flux = np.array([0.1, 0.1, 0.1]), spectra([0.1, 0.1, 0.1], "hbeta", 5.0)
    good = np.ones(flux.shape, bool)
    rest = WAVE / 1.1
    good[1, (rest > 4812) & (rest < 4842)] = False  # the blue side
    good[2, (rest > 4855) & (rest < 4858)] = False  # an eighth of the line
    found = equivalent_width(WAVE, np.where(good, flux, 1e6), "hbeta", z=z, good=good)
    assert np.isnan(found).tolist() == [False, True, False] and abs(found[2] - 5) < 2.5
    assert np.isnan(equivalent_width(WAVE, flux[:1], "hbeta", z=0.95)).all()  # beyond the red end
    assert np.isnan(equivalent_width(WAVE, -flux[:1], "hbeta", z=z[:1])).all()  # no continuum to divide by
    for call, name in ((equivalent_width, "hbata"), (lick_index, "Mgc")):
        with pytest.raises(SpectrumError, match="known"): call(WAVE, flux, name)
    with pytest.raises(SpectrumError, match="3921 wavelengths, but flux has shape"): window_mean(WAVE, flux[:, 1:], 5000, 5100)


@pytest.mark.parametrize("name", INDICES)
def test_a_straight_continuum_has_no_index_and_emission_a_negative_one(name):
    z = np.array([0.02, 0.2])
    straight = 2 - 1e-4 * (WAVE / (1 + z[:, None]) - 5000)
    low, high = INDICES[name][2:4]
    np.testing.assert_allclose(lick_index(WAVE, straight, name, z=z), 0, atol=2e-3)
    line = np.exp(-0.5 * ((WAVE / (1 + z[:, None]) - 0.5 * (low + high)) / 2) ** 2) / (2 * np.sqrt(2 * np.pi))
    for ew in (3.0, -3.0): np.testing.assert_allclose(lick_index(WAVE, straight * (1 + ew * line), name, z=z), -ew, rtol=0.02)


@quiet
@given(st.floats(0.5, 2.5), st.floats(0.0, 0.5), st.floats(1e-3, 1e3))
def test_d4000_is_the_step_in_fnu(step, z, unit):
    rest = WAVE / (1 + z)
    flux = unit * WAVE**-2.0 * np.where(rest > 3975, step, 1.0)
    found = d4000n(WAVE, flux, z=z)
    if rest[0] < 3850: assert found == pytest.approx(step, rel=1e-3)
    else: assert np.isnan(found).all() or found == pytest.approx(step, rel=1e-3)


@quiet
@given(st.floats(4000, 8800), st.floats(1.0, 300), st.floats(-1e-3, 1e-3))
def test_mean_of_a_straight_line_is_its_middle(low, width, slope):
    "Edges fall inside pixels: the parts count by their width."
    flux = 5 + slope * (WAVE - 6000)
    found = window_mean(WAVE, flux[None], low, low + width)
    assert found == pytest.approx(5 + slope * (low + width / 2 - 6000), rel=1e-3)
