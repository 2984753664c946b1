"""How real is the mock? Laws of the measures, and (marked real) the mock against the mirror's galaxies."""

import numpy as np
import pytest
from astropy.table import Table
from sklearn.mixture import GaussianMixture

from spectral_core.analysis.outliers import TailCalibration
from spectral_core.analysis.realism import density_rank, fit_components, matched_classifier, rest_components
from spectral_core.archives.sdss import read_sdss
from spectral_core.core import DataError, SpectrumError
from spectral_core.simulate.correction import learning_half
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


@pytest.fixture(scope="module")
def basis():
    "30 components of nearly noise-free mock galaxies."
    clean = preprocess(reobserve(mock_survey("sdss", n=600, seed=21), z=0.06, sn=500.0), telluric="none")
    return rest_components(clean[clean.good], 30)


@pytest.mark.real
def test_mock_against_the_thirty_real_galaxies(mirror, basis):
    """mock_survey.md §8: span (χ² per pixel of mean + 30 components: median ≤ 1.25, mean ≤ 2), and a (z, S/N)-matched
    judge ≤ 0.85 whose null is within 0.5 ± 0.15 (30 objects: σ ≈ 0.06)."""
    real = preprocess(read_sdss(mirror / "sdss_galaxy_spectra"))
    real = real[real.good & (real.z > 0.002) & (real.z < 0.45)]
    assert len(real) >= 25
    c, chi2 = fit_components(real, basis)
    assert np.median(chi2) <= 1.25 and chi2.mean() <= 2, dict(zip(real.id.tolist(), chi2.round(2).tolist()))
    twins = preprocess(matched_mock(real.z, real.sn, seed=5, per_object=4))
    twins = twins[twins.good]
    judge = matched_classifier(c, fit_components(twins, basis)[0], twins.table["match"])
    assert judge.auc.value <= 0.85 and abs(judge.null.value - 0.5) < 0.15, judge[:2]


@pytest.fixture(scope="module")
def bright(mirror):
    "Bright galaxies, the half that the correction of the populations has not seen: S/N near 57, z near 0.03."
    return preprocess(learning_half(mirror / "sdss_galaxy_bright")[1])


@pytest.mark.real
def test_mock_against_bright_galaxies_that_nothing_was_learned_from(bright, basis):
    "The judge at most 0.85 and its null 0.5 ± 0.1; density rank 0.3-0.75, at most 30 % beyond the mock's 95 %."
    real = bright[bright.good][:150]
    twins = preprocess(matched_mock(real.z, real.sn, seed=5, per_object=3))
    twins = twins[twins.good]
    norm = [np.median(s.table["norm"]) for s in (real, twins)]
    assert 0.6 < norm[1] / norm[0] < 1.7, "galaxies of this S/N are about as bright as real ones"
    c, mock = (fit_components(s, basis)[0] for s in (real, twins))
    judge = matched_classifier(c, mock, twins.table["match"])
    assert judge.auc.value <= 0.85 and abs(judge.null.value - 0.5) < 0.1, judge[:2]
    known = GaussianMixture(4, reg_covar=1e-3, random_state=0).fit(mock[::2, :8])
    calibration = TailCalibration.fit(twins[1::2], known.score_samples(mock[1::2, :8]), k=100)
    rank = density_rank(real, known.score_samples(c[:, :8]), calibration)
    assert 0.3 < rank.median < 0.75 and rank.beyond_95 < 0.3


@pytest.mark.real
def test_two_looks_at_a_galaxy_differ_as_much_as_in_the_survey(mirror):
    "Colours of the galaxies observed twice: their scatter is calibration, within a factor of two of the mock's."
    real = preprocess(read_sdss(mirror / "sdss_galaxy_bright", dedupe="first"))
    real = real[real.good & (real.z > 0.002) & (real.z < 0.2) & (real.sn > 20)]
    _, back, count = np.unique(real.object_id, return_inverse=True, return_counts=True)
    pairs = np.array([np.flatnonzero(back == k)[:2] for k in np.flatnonzero(count > 1)])
    assert len(pairs) > 15
    first = real[pairs[:, 0]]
    twins = matched_mock(first.z, first.sn, seed=3)
    looks = [preprocess(reobserve(twins, sn=real.sn[rows], seed=k)) for k, rows in enumerate(pairs.T)]

    def colour(spectra, low, high):
        level = [np.ma.median(np.ma.array(spectra.flux, mask=spectra.mask)[:, (WAVE > a) & (WAVE < b)], axis=1)
                 for a, b in ((low, high), (5300, 5800))]
        return np.ma.log(level[0] / level[1])

    for low, high in ((4000, 4300), (4500, 4800), (6600, 6850), (8400, 8700)):
        scatter = [np.ma.median(np.abs(colour(a, low, high) - colour(b, low, high)))
                   for a, b in ((first, real[pairs[:, 1]]), looks)]
        assert 0.5 < scatter[1] / scatter[0] < 2, (low, scatter)
