"""Template fits: the recipe against independent arithmetic, against redrock's numbers, and on real DESI coadds."""

import numpy as np
import pytest
from astropy.io import fits
from scipy.integrate import quad
from scipy.sparse import dia_matrix

import spectral_core as sc
from spectral_core.analysis import redrock
from spectral_core.analysis.basis import pca_templates, star_class
from spectral_core.analysis.redrock import arm_chi2, bin_template, lyman_transmission, oii_penalty, redrock_weight
from spectral_core.analysis.redshiftscan import scan_redshift
from spectral_core.analysis.templatefit import (
    best_galaxy_redshift,
    fit_templates,
    lowest_minima,
    parabola,
    scan_chi2,
    template_models,
)
from spectral_core.archives.coadd import Arm, merge_arms, read_arms
from spectral_core.archives.templates import Template, read_redrock_templates, read_template, scan_redshifts
from spectral_core.core import DataError, SpectrumError
from spectral_core.spectra.container import Spectra
from spectral_core.spectra.surveys import DESI

REST = np.arange(2500, 11000, 0.5)
SLOPE = np.log(REST / 6000)
rng = np.random.default_rng(0)


def lines(places, depth, kms):
    return sum(d * np.exp(-0.5 * (np.log(REST / p) * 3e5 / kms) ** 2) for p, d in zip(places, depth))


DARK = lines([3934.8, 4102.9, 4341.7, 4862.7, 5895.6, 6564.6, 8544.4], [0.6, 0.3, 0.4, 0.5, 0.3, 0.6, 0.4], 120)
BRIGHT = lines([3728.5, 4862.7, 4960.3, 5008.2, 6564.6, 6585.3], [1.5, 1.2, 0.8, 2.4, 4.0, 1.5], 90)
TOY = {
    "STAR G": Template("STAR", "G", REST, np.stack([np.ones_like(REST), DARK, SLOPE]), scan_redshifts("STAR")),
    "GALAXY": Template("GALAXY", "", REST, np.stack([np.ones_like(REST), BRIGHT, SLOPE]), 10 ** np.arange(0, 0.13, 3e-4) - 1),
}


def made(name, coefficients, z, noise=0.0):
    "Spectra (n, m) on DESI's grid from toy templates, with noise of that σ, or exact ones with ivar 1."
    design = bin_template(TOY[name], DESI.grid.edges, np.asarray(z))
    flux = np.einsum("nk,nkm->nm", coefficients, design)
    return Spectra(flux + noise * rng.normal(size=flux.shape), np.full(flux.shape, 1 / noise**2 if noise else 1.0), z, "desi")


def toy_stars(n, seed=3):
    "Coefficients (n, 3) of stars with lines in absorption."
    generator = np.random.default_rng(seed)
    return np.stack([np.full(n, 4.0), generator.uniform(-2, -1, n), generator.normal(0, 0.5, n)], 1)


# ---- the files


def write(path, type="STAR", subtype="K", n=40, **more):
    unit = fits.PrimaryHDU(np.stack([np.ones(n), np.linspace(0, 1, n)]))
    unit.header.update({"EXTNAME": "BASIS_VECTORS", "CRVAL1": 4000.0, "CDELT1": 0.1, "RRTYPE": type, "RRSUBTYP": subtype, **more})
    unit.writeto(path)
    return path


def test_template_files_linear_and_log(tmp_path):
    linear = read_template(write(tmp_path / "rrtemplate-a.fits"))
    log = read_template(write(tmp_path / "rrtemplate-b.fits", "QSO", "LOZ", LOGLAM=1, CRVAL1=3.5, CDELT1=1e-4, VERSION="1.0"))
    assert linear.wave[-1] == pytest.approx(4003.9) and linear.name == "STAR K" and linear.igm == "None"
    assert log.wave[-1] == pytest.approx(10**3.5039) and log.name == "QSO LOZ" and log.igm == "Calura12"
    assert set(read_redrock_templates(tmp_path)) == {"STAR K", "QSO LOZ"}


@pytest.mark.parametrize(("change", "message"), [({"RRTYPE": None}, "no redrock template"), ({"RRTYPE": "MOON"}, "MOON")])
def test_bad_template_files(tmp_path, change, message):
    with pytest.raises(DataError, match=message): read_template(write(tmp_path / "rrtemplate-x.fits", **change))


def test_no_or_double_templates(tmp_path):
    with pytest.raises(DataError, match="no rrtemplate"): read_redrock_templates(tmp_path)
    write(tmp_path / "rrtemplate-1.fits"), write(tmp_path / "rrtemplate-2.fits")
    with pytest.raises(DataError, match="second template for STAR K"): read_redrock_templates(tmp_path)


# ---- the recipe


def test_pixels_hold_the_mean_of_the_stretched_template():
    "Against numerical quadrature of the piecewise linear curve."
    edges, z = np.array([5000.0, 5000.8, 5001.6, 7220.0, 7221.3]), 0.1
    got = bin_template(TOY["GALAXY"], edges, np.array([z]))[0, 1]
    f = lambda x: np.interp(x / (1 + z), REST, BRIGHT)
    narrow = [(low, high) for low, high in zip(edges, edges[1:]) if high - low < 5]
    knots = lambda low, high: REST[(REST * (1 + z) > low) & (REST * (1 + z) < high)] * (1 + z)
    want = [quad(f, low, high, points=knots(low, high), limit=2000)[0] / (high - low) for low, high in narrow]
    assert got[[0, 1, 3]] == pytest.approx(want, rel=1e-10)


def test_exact_form_equals_dense_algebra():
    "A = R·T with scipy's matrix, lstsq on √w, explicit residuals; three arms with rows of R that are incomplete."
    z, k, arms, design, data, weight = 0.23, 11, [], [], [], []
    for name, low, high in DESI.arms:
        wave = np.arange(low, high + 0.1, 0.8)
        diagonals = rng.uniform(0.02, 0.1, (k, len(wave)))
        diagonals /= diagonals.sum(0)
        matrix = dia_matrix((diagonals, np.arange(5, -6, -1)), shape=(len(wave),) * 2)
        flux, ivar = 5 + rng.normal(0, 1, len(wave)), rng.uniform(0.5, 2, len(wave))
        ivar[rng.integers(0, len(wave), 30)] = 0
        arms.append(Arm(name, wave, flux[None], ivar[None], ivar[None] <= 0, diagonals[None]))
        edges = np.append(wave, wave[-1] + 0.8) - 0.4
        design.append(matrix @ bin_template(TOY["GALAXY"], edges, np.array([z]))[0].T)
        data.append(flux)
        complete = matrix @ np.ones(len(wave)) >= 0.99
        assert 0 < complete.sum() < len(wave)
        weight.append(np.where(complete, redrock_weight(wave, flux, ivar), 0))
    design, data, weight = np.concatenate(design), np.concatenate(data), np.concatenate(weight)
    a = np.linalg.lstsq(design * np.sqrt(weight)[:, None], data * np.sqrt(weight), rcond=None)[0]
    chi2, got = arm_chi2(arms, TOY["GALAXY"], np.array([z]))
    assert got[0] == pytest.approx(a, rel=1e-7, abs=1e-9)
    assert chi2[0] == pytest.approx((weight * (data - design @ a) ** 2).sum() + oii_penalty(TOY["GALAXY"], a), rel=1e-9)


def test_weights_as_redrock_drops_pixels():
    wave = np.array([5000.0, 5575.0, 6000.0, 6001.0, 9793.0, 7000.0])
    assert redrock_weight(wave, np.array([1, 1, -5.1, -4.9, 1, np.nan]), np.ones(6)).tolist() == [1, 0, 0, 1, 0, 0]


def test_lyman_transmission_by_hand():
    got = lyman_transmission(np.array([1215.0 * 3, 1216.0 * 3, 1000.0 * 3]), np.array([2.0]), "Calura12")[0]
    tau = lambda line, weaker, wave: 0.0023 / weaker * (wave / line) ** 3.64
    assert got == pytest.approx([np.exp(-tau(1215.67, 1, 3645)), 1, np.exp(-tau(1215.67, 1, 3000) - tau(1025.72, 5.2615, 3000))])


def test_negative_oii_is_punished_for_galaxies_only():
    "The sum of the rest model over 3724-3733 Å, where negative."
    band = (REST >= 3724) & (REST <= 3733)
    a = np.array([[0.1, -2.0, 0.0], [0.1, 2.0, 0.0]])
    assert oii_penalty(TOY["GALAXY"], a) == pytest.approx([-(0.1 - 2 * BRIGHT[band]).sum(), 0])
    assert (oii_penalty(TOY["STAR G"], a) == 0).all()


def test_exact_form_equals_the_redrock_package(tmp_path):
    "Where redrock is installed: the same χ² to 1e-9 on the same arms."
    pytest.importorskip("redrock")
    from redrock.targets import DistTargetsCopy, Spectrum, Target
    from redrock.templates import load_dist_templates
    from redrock.zfind import zfind

    toy, z, parts, arms = TOY["GALAXY"], np.linspace(0.1, 0.3, 41), [], []
    unit = fits.PrimaryHDU(toy.basis)
    unit.header.update({"EXTNAME": "BASIS_VECTORS", "CRVAL1": REST[0], "CDELT1": 0.5, "LOGLAM": 0})
    unit.header.update({"RRTYPE": "GALAXY", "RRSUBTYP": "", "RRIGM": "None", "VERSION": "0.1"})
    fits.HDUList([unit, fits.ImageHDU(z, name="REDSHIFTS")]).writeto(tmp_path / "rrtemplate-GALAXY-None-v0.1.fits")
    for name, low, high in DESI.arms:
        wave = np.arange(low, high + 0.1, 0.8)
        flux, diagonals = 5 + rng.normal(0, 1, len(wave)), np.zeros((11, len(wave)))
        diagonals[5] = 1
        matrix = dia_matrix((diagonals, np.arange(5, -6, -1)), shape=(len(wave),) * 2)
        ivar = redrock_weight(wave, flux, np.ones(len(wave)))
        parts.append(Spectrum(wave, flux, ivar, matrix, matrix.tocsr(), band=name))
        arms.append(Arm(name, wave, flux[None], ivar[None], ivar[None] <= 0, diagonals[None]))
    targets = DistTargetsCopy([Target("1", parts)])
    scan, _ = zfind(targets, load_dist_templates(targets.wavegrids(), templates=str(tmp_path)), mp_procs=1, nminima=3)
    theirs = scan["1"]["GALAXY"]
    assert np.ravel(theirs["zchi2"] + theirs["penalty"]) == pytest.approx(arm_chi2(arms, toy, z)[0], rel=1e-9)


# ---- many at once


def test_fast_form_equals_exact_form():
    sample = made("GALAXY", rng.uniform(0.5, 2, (5, 3)), np.linspace(0.02, 0.3, 5), noise=0.3)
    lsf = np.broadcast_to(redrock.survey_resolution("desi"), (5, 11, 7781))
    arm = Arm("all", sample.wave, sample.flux, sample.ivar, sample.mask, lsf)
    z = TOY["GALAXY"].redshifts[::40]
    fast = scan_chi2(sample, TOY["GALAXY"], z)
    for row in (0, 3): assert fast[row] == pytest.approx(arm_chi2([arm], TOY["GALAXY"], z, row)[0], rel=1e-9)


@pytest.fixture(scope="module")
def sample():
    generator = np.random.default_rng(5)
    lit = np.stack([np.full(30, 2.0), generator.uniform(0.5, 1.5, 30), generator.normal(0, 0.3, 30)], 1)
    star = made("STAR G", toy_stars(30), generator.uniform(-1e-3, 1e-3, 30), 0.4)
    galaxy = made("GALAXY", lit, generator.uniform(0.01, 0.3, 30), 0.4)
    galaxy = galaxy.replace(id=np.arange(30, 60))
    return sc.concatenate([star, galaxy])


def test_classes_redshifts_and_errors(sample):
    "All classes right; redshift errors are honest: pulls of unit width (60 of them: 0.75 to 1.3)."
    fit = fit_templates(sample, TOY)
    assert (fit["spectype"] == ["STAR"] * 30 + ["GALAXY"] * 30).all() and (fit["zwarn"][30:] == 0).all()
    pull = (np.asarray(fit["z"]) - sample.z) / fit["zerr"]
    assert 0.7 < np.sqrt(np.mean(pull**2)) < 1.4 and np.abs(pull).max() < 5
    assert np.asarray(fit["chi2"] / fit["n_pixels"]) == pytest.approx(1, abs=0.08)
    model = template_models(fit, TOY, sample)
    assert ((sample.flux - model) ** 2 * sample.weight).mean(axis=1) == pytest.approx(1, abs=0.08)


def test_what_the_fit_does_not_care_about(sample):
    "Blocks, other rows, and units: flux times 7 gives the same classes, redshifts and χ² (no negative [O II] here)."
    part = sample[[3, 40]]
    base = fit_templates(part, TOY)
    assert np.allclose(fit_templates(part, TOY, block=1)["chi2"], base["chi2"], rtol=1e-10)
    assert np.allclose(fit_templates(part[[1]], TOY)["z"], base["z"][1], atol=1e-10)
    scaled = fit_templates(part.replace(flux=7 * part.flux, ivar=part.ivar / 49), TOY)
    assert np.allclose(scaled["chi2"], base["chi2"], rtol=1e-5) and np.allclose(scaled["z"], base["z"], atol=1e-8)
    assert np.allclose(scaled["coeff"], 7 * np.asarray(base["coeff"]), rtol=1e-3, atol=1e-3)


def test_delta_chi2_is_the_distance_to_the_next_minimum_elsewhere():
    "Two superposed galaxies: their redshifts are the two best minima, and the gap is the difference of both χ²."
    a, z = np.array([[1.0, 1.0, 0.0]]), np.array([0.1])
    first, second = made("GALAXY", a, z, 0.3), made("GALAXY", 0.8 * a, z + 0.15, 0.3)
    fit = fit_templates(first.replace(flux=first.flux + second.flux, ivar=first.ivar / 2), {"GALAXY": TOY["GALAXY"]})
    near = np.linspace(0.248, 0.252, 401)
    both = first.replace(flux=first.flux + second.flux, ivar=first.ivar / 2)
    assert fit["z"][0] == pytest.approx(0.1, abs=1e-4)
    assert fit["deltachi2"][0] == pytest.approx(scan_chi2(both, TOY["GALAXY"], near).min() - fit["chi2"][0], rel=0.02)


def test_minima_at_the_end_of_the_range_are_marked(sample):
    fit = best_galaxy_redshift(sample[45:46].replace(z=[0.0]), TOY["GALAXY"], z_max=float(sample.z[45]) - 2e-3)
    assert fit["zwarn"][0] & 1 << 5 or abs(fit["z"][0] - sample.z[45]) > 1e-3
    assert best_galaxy_redshift(sample[45:46], TOY["GALAXY"])["z"][0] == pytest.approx(sample.z[45], abs=1e-4)


@pytest.mark.parametrize("n", [0, 1])
def test_fault_15_few_or_no_spectra(sample, n):
    assert len(fit_templates(sample[:n], TOY)) == n


def test_rows_without_data_have_no_class(sample):
    part = sample[[0, 35]]
    mask = part.mask.copy()
    mask[0] = True
    fit = fit_templates(part.replace(mask=mask), TOY)
    assert list(fit["spectype"]) == ["", "GALAXY"] and fit["zwarn"][0] == 512 and np.isnan(fit["z"][0])
    assert np.isnan(template_models(fit, TOY, part)[0]).all()


def test_parabola_and_minima():
    x = np.array([[0.0, 0.5, 2.0], [0.0, 1.0, 2.0]])
    place, depth, width = parabola(x, np.stack([4 * (x[0] - 0.8) ** 2 + 1, np.array([1.0, 2.0, 1.0])]))
    assert (place[0], depth[0], width[0]) == pytest.approx((0.8, 1.0, 0.5)) and np.isnan(width[1]) and place[1] == 1
    found = lowest_minima(np.array([[5.0, 4.0, 3.0, 2.0, 1.0]]), np.linspace(0, 0.1, 5), 2, 100.0)
    assert found["edge"][0, 0] and found["chi2"][0].tolist() == [1.0, np.inf]


def test_templates_of_the_mocks_own_stars():
    "PCA of toy stars: vectors that find velocities of other stars to their errors, and say that they are a mock's."
    stars = made("STAR G", toy_stars(40), rng.uniform(-1e-3, 1e-3, 40), 0.02)
    template = pca_templates(stars[:30], np.full(30, "STAR G"), 3)["STAR G"]
    assert template.version == "mock" and "30 mock spectra" in template.note and template.basis.shape[0] == 3
    fit = fit_templates(stars[30:], {"STAR G": template})
    assert np.abs(np.asarray(fit["z"]) - stars.z[30:]).max() < 1.5e-5
    assert "".join(star_class(np.array([3500, 5000, 5800, 7000]))) == "MKGF"
    with pytest.raises(DataError, match="vectors need"): pca_templates(stars[:4], np.full(4, "STAR G"))


def test_bad_input(sample):
    with pytest.raises(DataError, match="one template or more"): fit_templates(sample, {})
    with pytest.raises(DataError, match="redshifts within"): fit_templates(sample, TOY, z_range=(2, 3))
    with pytest.raises(DataError, match="Inoue"): lyman_transmission(REST, np.zeros(1), "Inoue")


# ---- the autoencoder's own redshift


def test_redshift_scan_with_the_shipped_model():
    "Mock galaxies at the survey's noise: every redshift within 600 km/s, the median within 60."
    mock = sc.preprocess(sc.mock_survey("sdss", n=4, seed=3))
    near = np.concatenate([z + np.arange(-5, 6) * 5e-4 for z in mock.z])  # and a coarse grid everywhere else
    z = np.unique(np.concatenate([near[near > 0], np.arange(0, 0.45, 5e-3)]))
    scan = scan_redshift(sc.load("sdss"), mock, z, device="cpu")
    error = np.abs(np.asarray(scan.best["z"]) - mock.z) / (1 + mock.z)
    assert error.max() < 2e-3 and np.median(error) < 2e-4 and scan.chi2.shape == (4, len(z))
    with pytest.raises(SpectrumError, match="three redshifts"): scan_redshift(sc.load("sdss"), mock, [0.1])


# ---- real coadds, real templates


@pytest.fixture(scope="module")
def real(mirror):
    "Three files merged: the BGS galaxy of 2021, five quasars, three SV3 BGS galaxies with a Milky Way star and a sky fibre."
    names = ("coadd-4-80613-thru20210324", "coadd-1-80693-thru20210204", "coadd-sv3-bright-10145")
    coadds = [read_arms(mirror / "desi_spectra" / f"{name}.fits") for name in names]
    flux, ivar, mask = (np.concatenate(parts) for parts in zip(*(merge_arms(c.arms.values()) for c in coadds)))
    return coadds, Spectra(flux, ivar, np.zeros(len(flux)), "desi", mask=mask)


@pytest.mark.real
def test_exact_fits_give_redrocks_numbers(mirror, real):
    "redrock 0.21 with this template: χ² 8380 for a luminous red galaxy, 9 more without R; z of the BGS galaxy 0.368746."
    galaxy = read_redrock_templates()["GALAXY"]
    arms = list(read_arms(mirror / "desi_spectra/coadd-sv3-dark-26065.fits").arms.values())
    z = np.array([0.980515])
    chi2 = arm_chi2(arms, galaxy, z, 4)[0][0]
    assert chi2 == pytest.approx(8380, abs=3)
    plain = [a._replace(resolution=None, mask=a.weight <= 0) for a in arms]
    assert arm_chi2(plain, galaxy, z, 4)[0][0] - chi2 == pytest.approx(9, abs=0.5)
    near = np.linspace(0.36870, 0.36879, 10)
    best = near[arm_chi2(real[0][0].arms.values(), galaxy, near)[0].argmin()]
    assert best == pytest.approx(0.368746, abs=1e-5)


@pytest.mark.real
def test_real_objects_find_their_class_and_redshift(real):
    "redrock's z of the galaxy 0.368744, quasars of a catalogue to 0.002 (one with Δχ² 24 to 0.04), a K star of the Milky Way."
    fit = fit_templates(real[1])
    assert list(fit["spectype"][:10]) == ["GALAXY"] + ["QSO"] * 5 + ["GALAXY", "STAR", "GALAXY", "QSO"]
    assert fit["z"][0] == pytest.approx(0.368744, abs=1e-5) and fit["chi2"][0] > 5e4  # the early template: not the pipeline's χ²
    assert np.abs(fit["z"][[1, 2, 3, 5]] - [2.116627, 2.225017, 2.228644, 2.998523]).max() < 2e-3
    assert abs(fit["z"][4] - 3.035649) < 0.04 and fit["deltachi2"][4] < 40
    assert (fit["subtype"][7], abs(fit["z"][7]) < 1e-3, fit["deltachi2"][7] > 1e3) == ("K", True, True)
    assert fit["z"][[6, 8, 10]] == pytest.approx([0.2526, 0.3082, 0.2767], abs=3e-4)
    assert fit["zwarn"][9] & 4  # a sky fibre has no class that beats the next


@pytest.mark.real
def test_quasars_get_a_galaxy_redshift_below_0_8(real):
    templates = read_redrock_templates()
    quasars = best_galaxy_redshift(real[1][1:4], templates["GALAXY"])
    free = fit_templates(real[1][1:4], {"QSO HIZ": templates["QSO HIZ"]}, z_range=(2.0, 2.5))
    assert ((quasars["z"] >= 0) & (quasars["z"] <= 0.8)).all() and (quasars["chi2"] > free["chi2"]).all()
