"""Spectra of galaxies whose photometry and parameters are known, and what they add to a posterior."""

import numpy as np
import pytest
import torch

from spectral_core.core import ConfigError, DataError, generator
from spectral_core.simulate.histories import THETA, star_formation
from spectral_core.simulate.priors import Prior
from spectral_core.simulate.provabgs import load_provabgs
from spectral_core.simulate.spectrophotometry import _young_share, draw_nuisances, fibre_spectra, nebula
from spectral_core.simulate.ssp import load_ssp
from spectral_core.simulate.synthesis import LINE_NAMES

rng = generator("test", __name__)
HALPHA = LINE_NAMES.index("halpha")


@pytest.fixture(scope="module")
def model():
    return load_provabgs("ssp")


@pytest.fixture(scope="module")
def galaxies():
    z = torch.linspace(0.01, 0.06, 300)
    return Prior().sample(300, z, seed=5), z


# ------------------------------------------------------------------ spectra


def test_a_row_depends_on_its_number_and_the_seed_not_on_the_length(model, galaxies):
    theta, z = (part.clone() for part in galaxies)
    theta[:, 0] = 10.5
    whole, some = fibre_spectra(model, theta, z, seed=1), fibre_spectra(model, theta[:7], z[:7], seed=1)
    assert (some.id == whole.id[:7]).all() and len(set(whole.id)) == 300
    np.testing.assert_allclose(some.flux, whole.flux[:7], rtol=2e-3, atol=2e-4)
    for name in (*THETA, "fibre_share", "sigma_kms", "excitation"):
        np.testing.assert_array_equal(some.table[name], whole.table[name][:7])
    other = fibre_spectra(model, theta[:7], z[:7], seed=2)
    assert not set(other.id) & set(some.id)
    assert (other.table["fibre_share"] != some.table["fibre_share"]).all()


def test_flux_follows_mass_and_fibre(model, galaxies):
    theta, z = (part[:40].clone() for part in galaxies)
    theta[:, 0] = 12.0  # bright: noise is small
    both = [fibre_spectra(model, theta, z, fibre_share=share, sigma_kms=150.0, seed=3) for share in (0.6, 0.3)]
    seen = ~both[0].mask & ~both[1].mask & (both[0].wave > 6000)
    ratio = np.nanmedian(np.where(seen, both[0].flux / np.where(seen, both[1].flux, 1), np.nan), axis=1)
    np.testing.assert_allclose(ratio, 2.0, rtol=0.02)


def test_gas_follows_young_stars_and_their_dust_alone(model, galaxies):
    theta, z = (part[:50].clone() for part in galaxies)
    ssp, flat = load_ssp("mixed"), torch.zeros(50)
    continuum, lines = nebula(model, ssp, theta, z, flat)
    assert (lines >= 0).all() and (continuum >= 0).all()
    more = theta.clone()
    more[:, 0] += 0.5
    np.testing.assert_allclose(nebula(model, ssp, more, z, flat)[1], lines * 10**0.5, rtol=1e-4)
    clear = theta.clone()
    clear[:, 8:10] = 0
    bright = nebula(model, ssp, clear, z, flat)[1]
    tau = theta[:, 8] * 5500 / 6564.6  # birth clouds; diffuse dust dims as well, so this is the least
    assert (lines[:, HALPHA] <= bright[:, HALPHA] * torch.exp(-tau) * 1.0001).all()
    balmer = bright[:, HALPHA] / bright[:, LINE_NAMES.index("hbeta")]
    np.testing.assert_allclose(balmer, 2.86, rtol=1e-4)
    assert (nebula(model, ssp, theta, z, flat + 1)[1][:, HALPHA] == lines[:, HALPHA]).all()  # excitation moves ratios only


def test_old_galaxies_have_no_gas(model, galaxies):
    theta, z = (part[:20].clone() for part in galaxies)
    theta[:, 4] = 1.0  # all mass in a burst, none younger than 10 Myr
    stars = star_formation(model.bases, theta, z)
    assert stars.weights.abs().max() < 1e-6
    lines = nebula(model, load_ssp("mixed"), theta, z, torch.zeros(20))[1]
    assert lines.abs().max() <= 1e-6 * 10 ** theta[:, 0].max()


def test_young_shares_conserve_mass():
    share = _young_share()
    assert ((share >= 0) & (share <= 1)).all() and (share[12:] == 0).all()
    np.testing.assert_allclose(share[:9].sum(1), 1)


def test_nuisances_say_nothing_of_parameters():
    drawn = draw_nuisances(torch.arange(4000))
    assert ((drawn["fibre_share"] > 0) & (drawn["fibre_share"] <= 1)).all()
    table = torch.stack(list(drawn.values()))
    assert (torch.corrcoef(table) - torch.eye(3)).abs().max() < 0.06


def test_bad_input_is_named(model, galaxies):
    theta, z = galaxies
    with pytest.raises(DataError, match="wanted"): fibre_spectra(model, theta, z[:3])
    with pytest.raises(DataError, match="wanted"): fibre_spectra(model, theta[:0], z[:0])
    with pytest.raises(ConfigError, match="redshifts"): fibre_spectra(model, theta[:2], torch.tensor([0.03, 1.5]))
    with pytest.raises(ConfigError, match="source"):
        other = load_provabgs("ssp")
        other.name = "emulator"
        fibre_spectra(other, theta[:2], z[:2])
