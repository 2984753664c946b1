"""A second redshift in residuals: recovered where it is, seldom claimed where it is not."""

import numpy as np
import pytest
import torch

from spectral_core.analysis.blends import (
    Templates,
    find_blends,
    join_templates,
    mean_templates,
    near_lines,
    remove_continuum,
    second_redshift,
)
from spectral_core.analysis.outliers import TailCalibration, covariates
from spectral_core.analysis.realism import fit_components, rest_components
from spectral_core.core import DataError, SpectrumError
from spectral_core.simulate.anomalies import plant
from spectral_core.simulate.mock import mock_survey, reobserve
from spectral_core.simulate.stars import star_spectra
from spectral_core.spectra.container import Spectra
from spectral_core.spectra.preprocessing import preprocess
from spectral_core.spectra.surveys import SDSS
from spectral_core.spectra.wavelength import Grid, resample_rest

WAVE = SDSS.grid.wave
REST = Grid("log", np.log10(2300), 1e-4, 6200).wave


def lines(places: list[float], heights: list[float], kms: float) -> np.ndarray:
    return sum(h * np.exp(-0.5 * (np.log(REST / p) * 3e5 / kms) ** 2) for p, h in zip(places, heights))


OLD = 1 - lines([3934.8, 3969.6, 4305.6, 5176.6, 5270.0, 5895.6], [0.5, 0.45, 0.3, 0.35, 0.2, 0.3], 400)
YOUNG = 1 + lines([3728.5, 4862.7, 4960.3, 5008.2, 6564.6, 6585.3], [1.5, 1.2, 0.8, 2.4, 4.0, 1.5], 150)
TOY = Templates(("old", "young"), REST, np.stack([OLD, YOUNG]))


def second(z: np.ndarray, amplitude: float, kind: np.ndarray | int = 0) -> np.ndarray:
    kind = np.broadcast_to(kind, len(z))
    return amplitude * np.stack([np.interp(WAVE / (1 + zz), REST, TOY.flux[k]) for k, zz in zip(kind, z)])


@pytest.mark.parametrize(("sn", "tolerance"), [(np.inf, 3e-5), (20.0, 7e-4)])
def test_known_redshift_is_recovered(sn, tolerance):
    "Without noise to 9 km/s; at S/N 20, with a second object of 30 %, to 200 km/s in every case."
    rng = np.random.default_rng(0)
    z, kind = rng.uniform(0.01, 0.45, 24), np.arange(24) % 2
    residual = second(z, 0.3, kind) + rng.standard_normal((24, len(WAVE))) / sn
    found = second_redshift(WAVE, residual, np.full(residual.shape, 400.0), TOY)
    assert np.abs(found["z2"] - z).max() < tolerance
    assert (np.array(TOY.names)[kind] == found["template"]).all()
    assert np.median(found["amplitude"]) == pytest.approx(0.3, abs=0.03)


def test_false_alarms_come_at_the_promised_rate():
    rng = np.random.default_rng(1)
    sn = rng.uniform(5, 40, 900)
    residual, ivar = rng.standard_normal((900, len(WAVE))) / sn[:, None], np.repeat(sn[:, None] ** 2, len(WAVE), axis=1)
    delta = np.asarray(second_redshift(WAVE, residual, ivar, TOY)["delta_chi2"])
    conditions = np.column_stack([np.zeros(900), np.log10(sn), np.ones(900)])
    p = TailCalibration(delta[:600], conditions[:600], k=200)(delta[600:], conditions[600:])
    for level in (0.02, 0.1, 0.5): assert (p < level).mean() == pytest.approx(level, abs=0.06)


def test_the_search_does_not_care_about():
    "Overall flux units, a smooth continuum left in the residual, what is under the mask, and the other rows."
    rng = np.random.default_rng(2)
    z = rng.uniform(0.05, 0.4, 5)
    residual, ivar = second(z, 0.3) + 0.05 * rng.standard_normal((5, len(WAVE))), np.full((5, len(WAVE)), 400.0)
    ivar[:, 1500:1560] = 0
    base = second_redshift(WAVE, residual, ivar, TOY)
    scaled = second_redshift(WAVE, 7 * residual, ivar / 49, TOY)
    assert np.allclose(scaled["delta_chi2"], base["delta_chi2"]) and np.allclose(scaled["amplitude"], 7 * base["amplitude"])
    hidden = residual.copy()
    hidden[:, 1500:1560] = 1e4
    assert np.allclose(second_redshift(WAVE, hidden, ivar, TOY)["delta_chi2"], base["delta_chi2"])
    sloped = residual + np.linspace(-1, 1, len(WAVE))
    assert np.allclose(second_redshift(WAVE, sloped, ivar, TOY)["z2"], base["z2"], atol=1e-3)
    assert np.allclose(second_redshift(WAVE, residual[2:3], ivar[2:3], TOY)["delta_chi2"], base["delta_chi2"][2])


def test_light_only_adds_and_the_first_object_is_not_its_own_second():
    z = np.array([0.2])
    ivar = np.full((1, len(WAVE)), 400.0)
    assert second_redshift(WAVE, -second(z, 0.3), ivar, TOY)["delta_chi2"][0] < 0.5 * second_redshift(
        WAVE, second(z, 0.3), ivar, TOY
    )["delta_chi2"][0]
    assert second_redshift(WAVE, second(z, 0.3), ivar, TOY)["z2"][0] == pytest.approx(0.2, abs=1e-4)
    kept_out = second_redshift(WAVE, second(z, 0.3), ivar, TOY, z=z)
    assert abs(kept_out["z2"][0] - 0.2) > 0.01


@pytest.mark.parametrize("n", [0, 1, 2])
def test_fault_15_few_or_no_spectra(n):
    flux = np.ones((n, len(WAVE)))
    spectra = Spectra(flux, flux, np.full(n, 0.1), "sdss")
    assert len(find_blends(spectra, flux, TOY)) == n
    assert near_lines(WAVE, np.full(n, 0.1)).shape == flux.shape


def test_rows_without_a_model_hold_nan():
    flux = np.ones((3, len(WAVE)))
    spectra = Spectra(flux, flux, [0.1, np.nan, 0.1], "sdss")
    flux[2] = np.nan
    found = find_blends(spectra, flux, TOY)
    assert np.isfinite(found["z2"]).tolist() == [True, False, False] and list(found["template"][1:]) == ["", ""]


def test_bad_input():
    with pytest.raises(SpectrumError, match="logarithmic"):
        second_redshift(np.linspace(3800, 9200, 50), np.ones((1, 50)), np.ones((1, 50)), TOY)
    with pytest.raises(DataError, match="labels"): mean_templates(REST, TOY.flux, ["a"])


def test_continuum_goes_and_lines_stay():
    flux = np.linspace(1, 3, len(WAVE))[None] + 0.5 * np.exp(-0.5 * ((np.arange(len(WAVE)) - 2000) / 3) ** 2)
    left = remove_continuum(flux, np.ones_like(flux))
    assert np.abs(left[0, 600:1600]).max() < 1e-6 and left[0, 2000] == pytest.approx(0.5, abs=0.03)


# ---- on mock galaxies: the same search on real model misfits


@pytest.fixture(scope="module")
def trained():
    "Components and templates of 250 mock galaxies, and stars: what a model knows, and what to look for."
    clean = preprocess(reobserve(mock_survey("sdss", n=250, seed=70), z=0.06, sn=500.0), telluric="none")
    galaxies = mean_templates(clean.wave / 1.06, clean.flux, clean.table["class"])
    stars, truth = star_spectra(60, 1)
    names = np.digitize(truth["teff"], [4200, 5500, 7500])
    return rest_components(clean, 15, window=(2700, 8600)), join_templates(galaxies, mean_templates(WAVE, stars.numpy(), names))


def search(spectra: Spectra, trained, null=None):
    basis, templates = trained
    spectra = preprocess(spectra)
    spectra = spectra[spectra.good]
    c, _ = fit_components(spectra, basis)
    model = torch.as_tensor(basis.mean + c @ (basis.vectors * basis.scale[:, None]))
    model, inside = resample_rest(model, basis.grid, spectra.survey.grid, torch.as_tensor(spectra.z))
    spectra = spectra.replace(mask=spectra.mask | ~inside.numpy())
    return spectra, find_blends(spectra, model.numpy(), templates, null=null)


def test_planted_blends_among_mock_galaxies(trained):
    "A second galaxy of 30-100 % of the first's light at S/N 20: right redshift for four in five, 2 % false alarms."
    mock = mock_survey("sdss", n=330, seed=71)
    ordinary, table = search(mock, trained)
    null = TailCalibration(np.asarray(table["delta_chi2"])[:230], covariates(ordinary)[:230], k=100)
    false = null(np.asarray(table["delta_chi2"])[230:], covariates(ordinary)[230:])
    assert (false < 0.02).mean() < 0.09
    blends, found = search(plant("blend_galaxy", 40, seed=5, sn=20.0), trained, null)
    right = np.abs(found["z2"] - blends.table["z_second"]) < 2e-3
    assert right.mean() > 0.8
    assert (found["false_alarm"][right] < 0.02).mean() > 0.7
    assert np.median(found["significance"][right]) > 2
