"""How real is the mock? Laws of the measures, and (marked real) the mock against the mirror's galaxies."""

import numpy as np
import pytest
from astropy.table import Table

from spectral_core.analysis.outliers import TailCalibration
from spectral_core.analysis.realism import density_rank, fit_components, matched_classifier, rest_components
from spectral_core.archives.sdss import read_sdss
from spectral_core.core import DataError, SpectrumError
from spectral_core.simulate.mock import matched_mock, mock_survey, reobserve
from spectral_core.spectra.container import Spectra
from spectral_core.spectra.preprocessing import preprocess
from spectral_core.spectra.surveys import SDSS

rng = np.random.default_rng(0)
WAVE = SDSS.grid.wave


def toy(z: np.ndarray, c: np.ndarray, sn: float) -> Spectra:
    "Spectra 1 + c₁ sin + c₂ cos + c₃ line in the rest frame, with noise."
    rest = WAVE / (1 + z[:, None])
    parts = np.stack([np.sin(rest / 300), np.cos(rest / 450), 3 * np.exp(-0.5 * ((rest - 5008) / 6) ** 2)])
    flux = 1 + np.einsum("nk,knm->nm", c, parts) + rng.standard_normal(rest.shape) / sn
    return Spectra(flux, np.full(flux.shape, sn**2), z, "sdss", table=Table({"norm": np.ones(len(z))}))


BASIS = rest_components(toy(np.full(60, 0.05), 0.2 * rng.standard_normal((60, 3)), 1e5), 3)


def test_components_are_found_again_at_any_redshift():
    "The same galaxies at other redshifts have the same coefficients, and χ² is 1 for the noise that was put in."
    c = 0.2 * rng.standard_normal((40, 3))
    near, far = (fit_components(toy(np.full(40, z), c, 50.0), BASIS) for z in (0.02, 0.25))
    assert np.allclose(near[0], far[0], atol=0.15)
    for _, chi2 in (near, far): assert chi2 == pytest.approx(1, abs=0.12)


def test_what_is_masked_or_flagged_has_no_say():
    spectra = toy(np.full(3, 0.1), 0.2 * rng.standard_normal((3, 3)), 50.0)
    base = fit_components(spectra, BASIS)
    flux, mask, z = spectra.flux.copy(), spectra.mask.copy(), spectra.z.copy()
    flux[0, 1000:1100], mask[0, 1000:1100], z[2] = 1e5, True, np.nan
    c, chi2 = fit_components(spectra.replace(flux=flux, mask=mask, z=z), BASIS)
    assert np.allclose(c[0], base[0][0], atol=0.1) and np.allclose(c[1], base[0][1])
    assert np.isnan(c[2]).all() and np.isnan(chi2[2])
    assert fit_components(spectra[:0], BASIS)[0].shape == (0, 3)
    blind = spectra.replace(z=np.full(3, np.nan))
    assert np.isnan(fit_components(blind, BASIS)[1]).all()


def test_bad_input():
    spectra, match = toy(np.linspace(0, 0.1, 9), np.zeros((9, 3)), 9.0), np.repeat(range(5), 3)
    with pytest.raises(SpectrumError, match="common redshift"): rest_components(spectra, 3)
    with pytest.raises(DataError, match="too few"): rest_components(spectra[:3], 3)
    with pytest.raises(DataError, match="needs 10"): matched_classifier(np.zeros((5, 8)), np.zeros((15, 8)), match)


def test_judge_sees_a_shift_and_nothing_where_nothing_is():
    mock, match = rng.standard_normal((600, 8)), np.repeat(np.arange(200), 3)
    same = matched_classifier(rng.standard_normal((200, 8)), mock, match)
    moved = matched_classifier(rng.standard_normal((200, 8)) + 0.5, mock, match)
    assert abs(same.auc.value - 0.5) < 0.1 and abs(same.null.value - 0.5) < 0.1
    assert moved.auc.value > 0.75
    real = rng.standard_normal((200, 8))
    real[:20] = np.nan
    assert np.isnan(matched_classifier(real, mock, match).value[:20]).all()


def test_density_rank_is_uniform_among_equals():
    spectra = toy(rng.uniform(0.05, 0.3, 1500), np.zeros((1500, 3)), 20.0)
    log_prob = -0.5 * (rng.standard_normal((1500, 6)) ** 2).sum(axis=1)
    found = density_rank(spectra[1000:], log_prob[1000:], TailCalibration.fit(spectra[:1000], log_prob[:1000], k=100))
    assert found.median == pytest.approx(0.5, abs=0.1) and found.beyond_95 == pytest.approx(0.05, abs=0.05)
    odd = density_rank(spectra[1000:], log_prob[1000:] - 50, TailCalibration.fit(spectra[:1000], log_prob[:1000], k=100))
    assert odd.median > 0.999


@pytest.mark.real
def test_mock_against_the_thirty_real_galaxies(mirror):
    """mock_survey.md §8: span (χ² per pixel of mean + 30 components: median ≤ 1.25, mean ≤ 2), and a (z, S/N)-matched
    judge ≤ 0.85 whose null is within 0.5 ± 0.15 (30 objects: σ ≈ 0.06)."""
    real = preprocess(read_sdss(mirror / "sdss_galaxy_spectra"))
    real = real[real.good & (real.z > 0.002) & (real.z < 0.45)]
    assert len(real) >= 25
    clean = preprocess(reobserve(mock_survey("sdss", n=600, seed=21), z=0.06, sn=500.0), telluric="none")
    basis = rest_components(clean[clean.good], 30)
    c, chi2 = fit_components(real, basis)
    assert np.median(chi2) <= 1.25 and chi2.mean() <= 2, dict(zip(real.id.tolist(), chi2.round(2).tolist()))
    twins = preprocess(matched_mock(real.z, real.sn, seed=5, per_object=4))
    twins = twins[twins.good]
    judge = matched_classifier(c, fit_components(twins, basis)[0], twins.table["match"])
    assert judge.auc.value <= 0.85 and abs(judge.null.value - 0.5) < 0.15, judge[:2]
