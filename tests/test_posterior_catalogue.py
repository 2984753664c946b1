"""The catalogue of posteriors: every row has its fate, draws stay in the prior, real masses agree with the atlas'."""

import re
import warnings

import numpy as np
import pytest
import torch

from spectral_core.archives.nsa import clean_photometry, nsa_mass, nsa_photometry, read_nsa
from spectral_core.core import DataError, Flag
from spectral_core.inference.catalogue import PROPERTIES, posterior, posterior_catalogue, property_draws, support_distance
from spectral_core.inference.npe import load_posterior
from spectral_core.simulate.histories import PARAMETERS
from spectral_core.simulate.photosurvey import mock_photometry
from spectral_core.simulate.provabgs import load_provabgs

# the paper's galaxy of Figure 2; its redshift is not printed
SEEN = [18.79, 17.80, 17.45, 17.21, 17.09], [0.05, 0.02, 0.02, 0.02, 0.03], 0.035


@pytest.fixture(scope="module")
def shipped():
    return load_posterior("sedflow")


@pytest.fixture(scope="module")
def model():
    return load_provabgs("ssp")


def test_rows_that_cannot_be_used_keep_their_place_a_flag_and_a_reason(shipped, model):
    mags = np.tile(SEEN[0], (6, 1))
    sigma, z = np.tile(SEEN[1], (6, 1)), np.full(6, SEEN[2])
    mags[1], sigma[2, 0], z[3], z[4] = np.nan, -0.02, np.nan, 40.0
    table = posterior_catalogue(shipped, model, clean_photometry(mags, sigma, z), n=200, progress=False)
    usable = np.isfinite(table["log_mstar"])
    assert usable.tolist() == [True, False, False, False, False, True]
    assert [bool(flag & Flag.FATAL) for flag in table["flag"]] == (~usable).tolist()
    assert all(table["reason"][~usable] != "")
    assert table["flag"][2] & Flag.BAD_IVAR and table["n_band"].tolist()[:3] == [5, 0, 4]
    for name in PROPERTIES:
        assert (table[name + "_lo"] <= table[name])[usable].all() and (table[name] <= table[name + "_hi"])[usable].all()
    assert np.allclose(table["log_mstar"][0], table["log_mstar"][5], atol=1e-4)  # the same photometry, the same draws


def test_a_row_does_not_depend_on_chunks(shipped, model):
    sample = mock_photometry(7, seed=3, model=model)
    seen = clean_photometry(sample.mags, sample.sigma, sample.z, sample.state)
    one, other = (posterior_catalogue(shipped, model, seen, n=200, chunk=chunk, progress=False) for chunk in (3, 7))
    for name in ("log_mstar", "age_mw", "n_effective"):
        assert np.allclose(one[name], other[name], rtol=1e-3, atol=1e-3, equal_nan=True)


def test_one_galaxy_at_the_notebook(shipped, model):
    plain, weighted = posterior(*SEEN, n=500), posterior(*SEEN, n=500, model=model)
    assert plain.colnames == list(PARAMETERS) and len(plain) == 500
    assert weighted.colnames == [*PROPERTIES, "weight", "log_likelihood"] and abs(weighted["weight"].sum() - 1) < 1e-5
    assert np.allclose(plain["log_mstar"], weighted["log_mstar"], atol=1e-5)
    betas = np.sum([plain[f"beta{k}"] for k in range(1, 5)], axis=0)
    assert np.allclose(betas, 1, atol=1e-5) and (plain["dust2"] > 0).all() and (plain["dust2"] < 3).all()
    with pytest.warns(UserWarning, match="u - g is 12.80, and the network learned from"):
        posterior([30, 17.2, 16.5, 16.2, 16.0], [0.05] * 5, 0.1, n=10)
    with pytest.warns(UserWarning, match="ln error of u"): posterior(SEEN[0], [1e-5, *SEEN[1][1:]], SEEN[2], n=10)
    blind = posterior([np.nan, *SEEN[0][1:]], SEEN[1], SEEN[2], n=500)
    assert np.std(blind["dust2"]) > 0.8 * np.std(plain["dust2"])
    for bad in (([np.nan] * 5, SEEN[1], 0.03), (SEEN[0], SEEN[1], -1.0), (SEEN[0], SEEN[1], np.nan)):
        with pytest.raises(DataError, match="no posterior"): posterior(*bad)


@pytest.mark.parametrize("mag", [188.0, -1.0, 0.0, 40.0, 100.0, 1e30])
def test_a_number_that_is_no_magnitude_is_left_out_with_a_word(shipped, mag):
    with pytest.warns(UserWarning, match=rf"g is {re.escape(f'{mag:g}')}, no magnitude .* taken as missing") as said:
        posterior([SEEN[0][0], mag, *SEEN[0][2:]], *SEEN[1:], n=10)
    assert said[0].filename == __file__


@pytest.mark.parametrize("mag", [np.nan, -9999, -999.0, -99, 99, 99.99, np.float32(-99.9), 999, 9999.0])
def test_a_missing_band_as_surveys_write_it_is_no_mistake(shipped, mag):
    draws = posterior([SEEN[0][0], np.nan, *SEEN[0][2:]], *SEEN[1:], n=10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = posterior([SEEN[0][0], mag, *SEEN[0][2:]], *SEEN[1:], n=10)
        posterior(np.array([SEEN[0]]), np.array([SEEN[1]]), SEEN[2], n=10)  # a row of a catalogue
    assert (draws["log_mstar"] == again["log_mstar"]).all()


def test_derived_quantities_follow_each_draw(model):
    sample = mock_photometry(5, seed=4, model=model)
    theta = sample.theta[:, None].expand(5, 3, 11)
    values = property_draws(model, theta, sample.z)
    alone = model.derived(sample.theta, sample.z)
    assert torch.allclose(values[:, 2, PROPERTIES.index("age_mw")], alone["age_mw"], rtol=1e-4)
    assert torch.allclose(values[:, 0, -4], alone["log_mstar_surviving"], atol=1e-4)


def test_support_is_asked_in_what_the_network_is_told(shipped, model):
    train, new = mock_photometry(3000, seed=1, model=model), mock_photometry(300, seed=2, model=model)
    near = support_distance(shipped, train, new.mags, new.sigma, new.state, new.z)
    far = support_distance(shipped, train, new.mags + torch.tensor([2.0, -2, 2, -2, 2]), new.sigma, new.state, new.z)
    assert near.shape == (300,) and (far > np.quantile(near, 0.99)).mean() > 0.9
    itself = train.mags[:3], train.sigma[:3], train.state[:3], train.z[:3]
    assert support_distance(shipped, train, *itself, k=1).max() == 0


@pytest.mark.real
def test_surviving_masses_of_real_galaxies_agree_with_the_atlas(mirror, shipped):
    table = read_nsa()[::40]
    seen = nsa_photometry(table)
    found = posterior_catalogue(shipped, load_provabgs("matrix"), seen, n=500, progress=False)
    off = (found["log_mstar_surviving"] - nsa_mass(table))[seen.good]
    assert len(off) > 50 and abs(np.nanmedian(off)) < 0.25 and 0.5 * np.subtract(*np.nanpercentile(off, (84, 16))) < 0.25
