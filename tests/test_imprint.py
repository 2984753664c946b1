"""The imprint of oxide bands: found where planted, with either sign, and nowhere else; figures; real templates on mock stars."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d

from spectral_core.analysis.blends import remove_continuum
from spectral_core.analysis.imprint import (
    WINDOW,
    correlations,
    displaced_patterns,
    oxide_imprint,
    oxide_pattern,
    relative_residuals,
)
from spectral_core.analysis.templatefit import fit_templates, template_models
from spectral_core.archives.coadd import merge_arms, read_arms
from spectral_core.archives.templates import read_redrock_templates
from spectral_core.core import DataError
from spectral_core.figures.stars import plot_imprints, plot_star_fits
from spectral_core.simulate.instrument import add_noise
from spectral_core.simulate.stars import load_stars, star_spectra
from spectral_core.spectra.container import Spectra
from spectral_core.spectra.surveys import DESI

PATTERN = oxide_pattern()
rng = np.random.default_rng(0)


def stars(amplitude, n=30, z=0.0, sigma=0.02):
    "n smooth stars with noise, their bands deeper or shallower by random shares of that rms; and the models without bands."
    model = (DESI.grid.wave / 6000) ** -1.0 * np.ones((n, 1))
    bands = np.interp(DESI.grid.wave, WINDOW.wave * (1 + z), PATTERN, left=0, right=0)
    flux = model * (1 + amplitude * rng.normal(size=(n, 1)) * bands + sigma * rng.normal(size=model.shape))
    return Spectra(flux, 1 / (sigma * model) ** 2, np.full(n, z), "desi"), model


def test_planted_bands_of_either_sign_are_found():
    found = oxide_imprint(*relative_residuals(*stars(0.2)), PATTERN, n_null=300)
    assert found.outside and found.statistic > 3 * found.high and found.p_value == pytest.approx(1 / 301)
    assert (found.correlation > 0.05).any() and (found.correlation < -0.05).any()


@pytest.mark.parametrize("scale", [0, 6, 37])
def test_without_bands_the_range_holds_95_percent(scale):
    "60 trials of 12 stars with errors correlated over `scale` pixels (37: 30 Å): 3 expected outside, at most 8 (p = 0.01)."
    outside, weight = 0, np.ones((12, len(PATTERN)))
    for _ in range(60):
        noise = rng.normal(size=weight.shape)
        if scale: noise = 0.3 * noise + gaussian_filter1d(noise, scale, axis=1) * scale**0.5
        outside += oxide_imprint(remove_continuum(noise, weight, 251), weight, PATTERN, n_null=200, seed=1).outside
    assert outside <= 8


def test_bands_elsewhere_do_not_count():
    "The same bands rotated by 500 Å are no oxide imprint."
    residual = rng.normal(0, 0.2, (30, 1)) * np.roll(PATTERN, 625) + 0.02 * rng.normal(size=(30, len(PATTERN)))
    right = rng.normal(0, 0.2, (30, 1)) * PATTERN + 0.02 * rng.normal(size=(30, len(PATTERN)))
    elsewhere, here = (oxide_imprint(r, np.ones_like(r), PATTERN, n_null=300).statistic for r in (residual, right))
    assert elsewhere < 0.3 * here


def test_the_statistic_does_not_care_about():
    "Flux units, the sign of every residual, the order of the rows, what is under the mask, and the star's velocity."
    spectra, model = stars(0.2)
    residual, weight = relative_residuals(spectra, model)
    base = oxide_imprint(residual, weight, PATTERN, n_null=200)
    scaled = relative_residuals(spectra.replace(flux=9 * spectra.flux, ivar=spectra.ivar / 81), 9 * model)
    assert oxide_imprint(*scaled, PATTERN, n_null=200).statistic == pytest.approx(base.statistic, rel=1e-4)
    assert oxide_imprint(-residual[::-1], weight[::-1], PATTERN, n_null=200).statistic == pytest.approx(base.statistic)
    mask, flux = spectra.mask.copy(), spectra.flux.copy()
    mask[:, 4000:4050] = True
    clean = relative_residuals(spectra.replace(mask=mask), model)
    flux[:, 4000:4050] = 1e5
    assert np.allclose(relative_residuals(spectra.replace(flux=flux, mask=mask), model)[0], clean[0])
    moved = oxide_imprint(*relative_residuals(*stars(0.2, z=1e-3)), PATTERN, n_null=200)
    assert moved.statistic > 3 * moved.high


def test_correlations_against_numpy():
    residual, weight = rng.normal(size=(3, 50)), rng.uniform(0.1, 2, (3, 50))
    patterns = rng.normal(size=(2, 50))
    for i in range(3):
        for k in range(2):
            cov = np.cov(residual[i], patterns[k], aweights=weight[i])
            assert correlations(residual, weight, patterns)[i, k] == pytest.approx(cov[0, 1] / np.sqrt(cov[0, 0] * cov[1, 1]))


def test_displaced_bands_keep_their_power_and_depend_on_the_seed():
    null = displaced_patterns(PATTERN, 200, seed=1)
    assert np.array_equal(null, displaced_patterns(PATTERN, 200, seed=1))
    assert not np.array_equal(null, displaced_patterns(PATTERN, 200, seed=2))
    assert np.allclose(np.abs(np.fft.rfft(null)), np.abs(np.fft.rfft(PATTERN)), atol=1e-9)
    assert np.abs([np.corrcoef(PATTERN, row)[0, 1] for row in null]).max() < 0.8


def test_rows_without_data_and_bad_input():
    spectra, model = stars(0.2, n=4)
    mask = spectra.mask.copy()
    mask[1] = True
    residual, weight = relative_residuals(spectra.replace(mask=mask), model)
    found = oxide_imprint(residual, weight, PATTERN)
    assert np.isnan(found.correlation).tolist() == [False, True, False, False] and np.isfinite(found.statistic)
    assert np.isfinite(relative_residuals(spectra, np.full_like(model, np.nan))[0]).all()
    with pytest.raises(DataError, match="no spectrum"): oxide_imprint(residual[1:2], weight[1:2], PATTERN)
    with pytest.raises(DataError, match="200 or more"): oxide_imprint(residual, weight, PATTERN, n_null=100)
    with pytest.raises(DataError, match="fit together"): oxide_imprint(residual[:, :-1], weight, PATTERN)
    with pytest.raises(DataError, match="models"): relative_residuals(spectra, model[:2])


def test_figures():
    spectra, model = stars(0.2, n=2)
    models = {"galaxy fit": model[0], "star fit": model[0] * 1.01}
    one = plot_star_fits(spectra.wave, spectra.flux[0], spectra.weight[0], models)
    names = [text.get_text() for text in one.axes[0].get_legend().get_texts()]
    assert len(one.axes) == 3 and names == ["data", "galaxy fit", "star fit"]
    assert "TiO" in [t.get_text() for t in one.axes[1].texts]
    assert len(plot_imprints(["a", "b"], np.array([1e-3, 2e-3]), np.full(2, 1e-4), np.full(2, 1e-3)).axes) == 1
    with pytest.raises(DataError, match="no models"): plot_star_fits(spectra.wave, spectra.flux[0], spectra.weight[0], {})


@pytest.mark.real
def test_class_k_leaves_oxide_bands_in_real_stars(mirror):
    """Library stars of 3900-5300 K at S/N 25, which no redrock vector was made from, fitted with class K: bands in the residuals.

    The same spectra around their own noise-free fluxes, an ideal model, hold none.
    """
    templates = read_redrock_templates()
    clean, truth = star_spectra(80, 11, "desi", teff=(3900, 5300))
    flux, ivar, mask = add_noise(clean * 120, "desi", torch.arange(80))
    spectra = Spectra(flux.numpy(), ivar.numpy(), truth["rv"] / 299792.458, "desi", mask=mask.numpy())
    fit = fit_templates(spectra, {"STAR K": templates["STAR K"]})
    pattern = oxide_pattern(templates["STAR M"])
    model = template_models(fit, templates, spectra)
    found = oxide_imprint(*relative_residuals(spectra, model), pattern)
    ideal = oxide_imprint(*relative_residuals(spectra, 120 * clean.numpy()), pattern)
    print(f"S/N {np.median(spectra.sn):.0f}: {found.statistic:.4f} of {found.low:.4f}-{found.high:.4f}, p {found.p_value:.3f}; "
          f"ideal {ideal.statistic:.4f} of {ideal.low:.4f}-{ideal.high:.4f}, p {ideal.p_value:.3f}")
    assert found.statistic > found.high and found.p_value < 0.02
    assert ideal.statistic < 0.3 * found.statistic and ideal.statistic <= ideal.high


@pytest.mark.real
def test_class_k_leaves_oxide_bands_in_a_real_desi_star(mirror):
    "The Milky Way target of the SV3 coadd, S/N 22: redrock's class K is the best fit, and its residual holds bands (r = 0.25)."
    templates = read_redrock_templates()
    flux, ivar, mask = merge_arms(read_arms(mirror / "desi_spectra/coadd-sv3-bright-10145.fits").arms.values())
    star = Spectra(flux, ivar, np.zeros(len(flux)), "desi", mask=mask)[[1]]
    fit = fit_templates(star, {"STAR K": templates["STAR K"]})
    residual = relative_residuals(star.replace(z=np.asarray(fit["z"])), template_models(fit, templates, star))
    found = oxide_imprint(*residual, oxide_pattern(templates["STAR M"]))
    assert found.correlation[0] == pytest.approx(0.25, abs=0.03) and found.outside and found.p_value < 0.005


@pytest.mark.real
def test_patterns_of_different_m_stars_agree(mirror):
    "redrock's mean M star (from models) and the coolest star of the library (observed)."
    library = load_stars()
    coolest = oxide_pattern((library.grid.wave, library.flux[-1].double().numpy()))
    assert np.corrcoef(coolest, oxide_pattern(read_redrock_templates()["STAR M"]))[0, 1] > 0.6
