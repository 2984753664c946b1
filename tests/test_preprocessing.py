"""Spectra made ready for a model: masks that only grow, a norm that can be undone, the same result in any unit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_core.core import ConfigError, Flag
from spectral_core.spectra.container import Spectra, group_positions, split_number
from spectral_core.spectra.preprocessing import normalise, preprocess, select, sky_lines, telluric_mask, window_median
from spectral_core.spectra.surveys import BOSS, DESI, SDSS

quiet = settings(derandomize=True, max_examples=25, deadline=None)


def sample(n=4, seed=0, survey=SDSS, level=20.0):
    rng, m = np.random.default_rng(seed), survey.grid.n
    flux, ivar = level * rng.normal(1, 0.05, (n, m)), rng.uniform(0.5, 2, (n, m)) / (0.05 * level) ** 2
    return Spectra(flux, ivar, rng.uniform(0.01, 0.35, n), survey, mask=rng.random((n, m)) < 0.05)


# ---- the sky


def test_masked_shares_are_those_of_the_papers():
    "12 % of SDSS (Liang+23 §2), 25 % of DESI (Liang+23b); the scaled rule contains the fixed one."
    shares = {s.name: telluric_mask(s.grid.wave, s.telluric).mean() for s in (SDSS, DESI)}
    assert shares["sdss"] == pytest.approx(0.124, abs=0.003) and shares["desi"] == pytest.approx(0.249, abs=0.005)
    for survey in (SDSS, BOSS, DESI):
        fixed, scaled, none = (telluric_mask(survey.grid.wave, rule) for rule in ("fixed", "scaled", "none"))
        assert not none.any() and (fixed <= scaled).all() and fixed.sum() < scaled.sum()
    with pytest.raises(ConfigError, match="'fixed', 'scaled' or 'none'"): telluric_mask(SDSS.grid.wave, "fixd")


def test_the_brightest_sky_lines_are_masked_at_their_places():
    lines = sky_lines()
    assert np.isin([5578.9], np.round(lines["wave"], 1)) and (lines["intensity"] >= 2).all()
    for wave in (5578.9, 6302.0, 6365.5, 8829.5):  # vacuum: [O I] and an OH line
        near = np.abs(SDSS.grid.wave - wave) < 4
        assert telluric_mask(SDSS.grid.wave)[near].all(), wave


# ---- the norm


@quiet
@given(st.floats(1e-4, 1e4), st.integers(0, 99))
def test_the_unit_of_the_flux_goes_into_the_norm(unit, seed):
    spectra = sample(seed=seed)
    one, other = preprocess(spectra), preprocess(spectra.replace(flux=unit * spectra.flux, ivar=spectra.ivar / unit**2))
    np.testing.assert_allclose(other.flux, one.flux, rtol=1e-5)
    np.testing.assert_allclose(other.ivar, one.ivar, rtol=1e-5)
    np.testing.assert_allclose(other.table["norm"], unit * one.table["norm"], rtol=1e-5)
    np.testing.assert_allclose(other.table["sn"], one.table["sn"], rtol=1e-4)
    np.testing.assert_array_equal(other.flag, one.flag)


def test_the_norm_is_the_median_of_the_rest_window_and_can_be_undone():
    spectra = sample()
    done = preprocess(spectra)
    for row in range(len(done)):
        rest = done.wave / (1 + done.z[row])
        inside = (rest >= 5300) & (rest <= 5850) & ~done.mask[row]
        assert done.table["norm"][row] == pytest.approx(np.median(spectra.flux[row, inside]), rel=1e-3)
        assert np.median(done.flux[row, inside]) == pytest.approx(1, abs=1e-3)
    norm = np.asarray(done.table["norm"])[:, None]
    np.testing.assert_allclose((done.flux * norm)[~done.mask], spectra.flux[~done.mask], rtol=1e-5)
    np.testing.assert_allclose((done.ivar / norm**2)[~done.mask], spectra.ivar[~done.mask], rtol=1e-5)
    assert (spectra.mask <= done.mask).all() and (telluric_mask(done.wave) <= done.mask).all()
    assert "norm" not in spectra.table.colnames, "the input is as it was"


def test_twice_is_the_same_as_once_and_rows_do_not_see_each_other():
    done = preprocess(sample())
    again = preprocess(done)
    np.testing.assert_allclose(again.flux, done.flux, rtol=1e-5)
    np.testing.assert_allclose(again.table["norm"], done.table["norm"], rtol=1e-5)
    alone = preprocess(sample()[2:3])
    np.testing.assert_array_equal(alone.flux, done.flux[2:3])
    np.testing.assert_array_equal(alone.table["norm"], done.table["norm"][2:3])


def test_every_survey_is_normalised_by_the_same_rest_window():
    for survey in (SDSS, BOSS, DESI):
        spectra = sample(3, survey=survey)
        rest = spectra.wave / (1 + spectra.z[:, None])
        step = np.where((rest > 5300) & (rest < 5850), 7.0, 2.0)
        norm, count = window_median(spectra.replace(flux=step, ivar=np.ones_like(step)), survey.norm_window)
        np.testing.assert_allclose(norm, 7.0)
        assert (count > 300).all()
        done = normalise(spectra.replace(flux=step))
        assert done.good.all() and not (done.flag & Flag.NO_NORM).any()


# ---- samples


@quiet
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), max_size=40))
def test_counts_of_cuts_add_up(rows):
    cuts = dict(zip("abc", np.array(rows, bool).reshape(-1, 3).T))
    kept, counts = select(len(rows), cuts)
    assert kept.tolist() == [i for i, r in enumerate(rows) if all(r)]
    assert counts["before"][0] == len(rows) and counts["left"][-1] == len(kept)
    assert (counts["before"] - counts["removed"] == counts["left"]).all() and (counts["left"][:-1] == counts["before"][1:]).all()


def test_splits_have_their_shares_and_depend_on_the_object_alone():
    ids = np.arange(200_000) * 7919
    number = split_number(ids, seed=3)
    assert np.histogram(number, 10, (0, 1))[0] == pytest.approx(20_000, rel=0.03)
    np.testing.assert_array_equal(number[::-1], split_number(ids[::-1], seed=3))
    assert abs(np.corrcoef(number, split_number(ids, seed=4))[0, 1]) < 0.01
    stored = split_number(np.array([266516020001, 0, -1]))  # or no split of the past can be had again
    assert stored == pytest.approx([0.83033228, 0.42997202, 0.06826433], abs=1e-8)


def test_positions_within_an_arcsecond_are_one_object_across_zero_and_the_pole():
    ra = np.array([0.0, 359.99999, 180.0, 180.0, 10.0, 200.0, np.nan])
    dec = np.array([0.0, 0.0, 30.0, 30.0 + 0.9 / 3600, 89.99995, 89.99995, 0.0])
    found = group_positions(ra, dec)
    assert found[0] == found[1] and found[2] == found[3] and found[4] == found[5] and found[6] == -1
    assert len(set(found.tolist())) == 4
    assert group_positions(ra, dec, 0.02)[0] != group_positions(ra, dec, 0.02)[1]
    order = np.array([6, 3, 5, 0, 2, 4, 1])
    np.testing.assert_array_equal(group_positions(ra[order], dec[order]), found[order])
