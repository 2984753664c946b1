"""Line measurement: known fluxes come back with honest errors, on toys, on the mock and against other people's fits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr

from spectral_core.archives.catalogs import join_lines, read_pipeline_lines, read_resolve_eco_nsa, truth_lines
from spectral_core.archives.sdss import read_sdss
from spectral_core.core import SpectrumError
from spectral_core.simulate.mock import mock_survey
from spectral_core.simulate.templates import stellar_templates
from spectral_core.spectra.container import Spectra
from spectral_core.spectra.labels import BPT_LINES, broad_rule, has_broadline, label_galaxies
from spectral_core.spectra.linefit import fit_lines
from spectral_core.spectra.lines import line_wave
from spectral_core.spectra.starlight import fit_starlight, stellar_basis
from spectral_core.spectra.surveys import BOSS, DESI, SDSS
from spectral_core.spectra.wavelength import Grid

PARTNER = {"oiii_5007": "oiii_4959", "nii_6584": "nii_6548"}
NAMES = ("hbeta", "oiii_5007", "halpha", "nii_6584")  # Balmer, forbidden, Balmer, forbidden


def painted(flux, z, survey, sigma=(130.0, 160.0), velocity=0.0):
    "Light (n, m) of the four lines of `flux` (n, 4), pixels integrated, doublets 1 : 3."
    out = np.zeros((len(z), survey.grid.n))
    for k, name in enumerate(NAMES):
        for line, share in ((name, 1.0), (PARTNER.get(name), 1 / 3)):
            if line is None: continue
            centre = line_wave(line) * (1 + z[:, None]) * np.exp(velocity / 299792.458)
            width = np.hypot(sigma[k % 2], survey.sigma_kms(centre)) * centre / 299792.458
            inside = np.diff(ndtr((survey.grid.edges - centre) / width), axis=1)
            out += share * flux[:, k : k + 1] * inside / np.diff(survey.grid.edges)
    return out


def flat(n, seed=0, sn=15.0, survey=SDSS, flux=None, level=10.0, z=None, **more):
    "Straight continua with the four lines and white noise; returns Spectra and the fluxes."
    rng = np.random.default_rng(seed)
    z = rng.uniform(0.03, 0.3, n) if z is None else np.broadcast_to(z, n).astype(float)
    flux = rng.uniform(0, 80, (n, 4)) if flux is None else np.broadcast_to(flux, (n, 4)).astype(float)
    clean = level * (1 + rng.uniform(-0.3, 0.3, (n, 1)) * (survey.grid.wave / 6000 - 1)) + painted(flux, z, survey, **more)
    noise = level / sn
    return Spectra(clean + rng.normal(0, noise, clean.shape), np.full(clean.shape, noise**-2), z, survey), flux


def line_free():
    "Two power laws: a library without lines, for spectra without stars."
    grid = Grid("log", 3.53, 1e-4, 3400)
    return stellar_basis(np.array([(grid.wave / 5000) ** s for s in (-1, 0, 1)]), grid, n_components=3, sigma_kms=(60,), a_v=(0,))


# ---- known fluxes


@pytest.mark.parametrize("survey", [SDSS, BOSS, DESI], ids=lambda s: s.name)
def test_injected_fluxes_come_back_with_honest_errors(survey):
    spectra, flux = flat(300, seed=1, survey=survey)
    lines = fit_lines(spectra, line_free(), ew_floor=0)
    assert lines["measured"].all()
    for k, name in enumerate(NAMES):
        pull = np.asarray((lines[f"flux_{name}"] - flux[:, k]) / lines[f"err_{name}"])
        assert abs(np.median(pull)) < 0.25 and 0.85 < pull.std() < 1.2, name
        detected = flux[:, k] > 40
        assert abs(np.median(lines[f"flux_{name}"][detected] / flux[detected, k]) - 1) < 0.02, name
    bright = flux.min(1) > 20
    for kind, sigma in (("balmer", 130), ("forbidden", 160)):
        pull = np.asarray((lines[f"sigma_{kind}"] - sigma) / lines[f"sigma_err_{kind}"])[bright]
        assert abs(np.median(lines[f"sigma_{kind}"][bright]) - sigma) < 5 and 0.6 < pull.std() < 1.5, kind


def test_undetected_lines_scatter_around_zero():
    spectra, _ = flat(300, seed=2, flux=np.zeros(4))
    lines = fit_lines(spectra, line_free(), ew_floor=0)
    for name in NAMES:
        pull = np.asarray(lines[f"flux_{name}"] / lines[f"err_{name}"])
        assert abs(pull.mean()) < 0.25 and 0.8 < pull.std() < 1.25, name
    assert (lines["velocity"] == 0).mean() > 0.95 and not lines["broad"].any()


def test_equivalent_widths_are_rest_frame_and_unit_free():
    z = np.array([0.05, 0.15, 0.3])
    spectra, _ = flat(3, sn=1000.0, flux=np.array([20.0, 20.0, 60.0, 20.0]), z=z, level=10.0)
    lines = fit_lines(spectra, line_free(), ew_floor=0)
    rest = spectra.wave / (1 + z[:, None])
    for name, flux in zip(NAMES, (20, 20, 60, 20)):
        level = np.array([row[np.abs(w - line_wave(name)) < 60].min() for row, w in zip(spectra.flux, rest)])
        np.testing.assert_allclose(lines[f"ew_{name}"], flux / level / (1 + z), rtol=0.04)
    scaled = fit_lines(spectra.replace(flux=spectra.flux * 50, ivar=spectra.ivar / 2500), line_free(), ew_floor=0)
    np.testing.assert_allclose(scaled["ew_halpha"], lines["ew_halpha"], rtol=1e-3)
    np.testing.assert_allclose(scaled["flux_halpha"], 50 * lines["flux_halpha"], rtol=1e-3)
    norm = np.array([2.0, 3.0, 4.0])
    normalised = spectra.replace(flux=spectra.flux / norm[:, None], ivar=spectra.ivar * norm[:, None] ** 2, table=None)
    normalised.table["norm"] = norm
    np.testing.assert_allclose(fit_lines(normalised, line_free(), ew_floor=0)["flux_halpha"], lines["flux_halpha"], rtol=1e-3)


@pytest.mark.parametrize("velocity", [-250.0, 100.0])
def test_a_shifted_redshift_loses_no_flux(velocity):
    spectra, flux = flat(40, seed=3, flux=np.full(4, 80.0), velocity=velocity)
    lines = fit_lines(spectra, line_free(), ew_floor=0)
    assert abs(np.median(lines["velocity"]) - velocity) < 10
    assert np.abs((lines["velocity"] - velocity) / lines["velocity_err"]).max() < 5
    assert abs(np.median(lines["flux_halpha"]) - 80) < 2


def test_the_floor_is_an_equivalent_width():
    spectra, _ = flat(20, sn=200.0)
    without, with_floor = (fit_lines(spectra, line_free(), ew_floor=f) for f in (0.0, 0.3))
    np.testing.assert_allclose(with_floor["ew_err_halpha"] ** 2, without["ew_err_halpha"] ** 2 + 0.09, rtol=1e-6)
    np.testing.assert_array_equal(with_floor["flux_halpha"], without["flux_halpha"])


# ---- what is not seen


def test_masked_lines_are_not_measured_and_say_so():
    spectra, flux = flat(5, seed=4, z=0.1)
    mask = np.zeros(spectra.flux.shape, bool)
    for row, name in enumerate(NAMES): mask[row] = np.abs(spectra.wave / 1.1 / line_wave(name) - 1) < 1.5e-3
    hidden = spectra.replace(mask=mask, flux=np.where(mask, 1e5, spectra.flux))
    lines = fit_lines(hidden, line_free(), ew_floor=0)
    for row, name in enumerate(NAMES):
        assert np.isnan([lines[f"{what}_{name}"][row] for what in ("flux", "err", "ew", "ew_err")]).all()
        assert lines["reason"][row] == f"not covered: {name}" and not lines["measured"][row]
    whole = fit_lines(spectra, line_free(), ew_floor=0)
    assert whole["measured"].all() and lines["measured"][4]
    assert abs(lines["flux_halpha"][4] - whole["flux_halpha"][4]) < 1e-3
    labels, counts = label_galaxies(lines)
    assert labels[:4].tolist() == ["N/A"] * 4 and counts.meta["no_row"] == 4


@pytest.mark.parametrize("z, reason", [(0.5, "not covered: halpha nii_6584"), (np.nan, "flagged: no usable pixels or redshift")])
def test_lines_beyond_the_end(z, reason):
    spectra, _ = flat(2)
    lines = fit_lines(spectra.replace(z=np.array([0.1, z])), line_free())
    assert lines["reason"].tolist() == ["", reason] and np.isnan(lines["flux_halpha"][1])


@settings(derandomize=True, max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_fault_15_blocks_order_and_neighbours_do_not_matter(seed):
    "A row's measurement depends on the row alone: not on the block, the order or a dead neighbour. n = 0, 1 work."
    rng = np.random.default_rng(seed)
    spectra, _ = flat(7, seed=seed % 1000)
    lines = fit_lines(spectra, line_free())
    order = rng.permutation(7)
    again = fit_lines(spectra[order], line_free(), block=3)
    np.testing.assert_allclose(again["flux_halpha"], lines["flux_halpha"][order], rtol=1e-6, atol=1e-4)
    dead = spectra.replace(ivar=np.where(np.arange(7)[:, None] == 2, 0, spectra.ivar))
    kept = np.arange(7) != 2
    others = fit_lines(dead, line_free())["flux_halpha"][kept]
    np.testing.assert_allclose(others, lines["flux_halpha"][kept], rtol=1e-6, atol=1e-4)
    assert len(fit_lines(spectra[:0], line_free())) == 0 and fit_lines(spectra[:0]).colnames == lines.colnames
    one = fit_lines(spectra[3], line_free())
    np.testing.assert_allclose(one["flux_halpha"], lines["flux_halpha"][3:4], rtol=1e-6, atol=1e-4)


def test_basis_refuses_what_is_no_library():
    grid = Grid("log", 3.53, 1e-4, 3400)
    with pytest.raises(SpectrumError, match="logarithmic"): stellar_basis(np.ones((2, 10)), Grid("linear", 4000, 1.0, 10))
    with pytest.raises(SpectrumError, match="finite and positive"): stellar_basis(np.full((2, 3400), np.nan), grid)


# ---- broad lines


def test_broad_lines_by_the_rule():
    for sigma, broad in ((150.0, False), (260.0, True), (1500.0, True)):
        spectra, _ = flat(20, seed=5, sn=40.0, flux=np.full(4, 400.0), sigma=(sigma, 120.0))
        assert fit_lines(spectra, line_free())["broad"].mean() == broad, sigma
    line = dict(flux=[100.0], err=[9.9], sigma=[250.0], sigma_err=[9.9])
    assert broad_rule(**line)
    for wrong in (dict(err=[10.0]), dict(sigma_err=[10.0]), dict(sigma_err=[0.0]), dict(err=[-1.0]), dict(flux=[np.nan])):
        assert not broad_rule(**(line | wrong))
    assert broad_rule([0.0], [-1.0], [300.0], [5.0], unfitted=True)


def test_a_pedestal_below_narrow_lines_is_a_broad_component():
    flux = np.full(4, 150.0)
    spectra, _ = flat(30, seed=6, sn=30.0, flux=flux, z=0.1)
    wide = painted(np.tile([200.0, 0.0, 600.0, 0.0], (30, 1)), spectra.z, SDSS, sigma=(1500.0, 120.0))
    plain, both = (fit_lines(s, line_free()) for s in (spectra, spectra.replace(flux=spectra.flux + wide)))
    assert not plain["broad_component"].any() and both["broad_component"].all()
    assert abs(np.median(both["flux_broad"]) - 600) < 120  # the narrow Gaussian, a little wider now, has the rest
    assert abs(np.median(both["sigma_broad"]) - 1500) < 300
    assert abs(np.median(plain["flux_broad"] / plain["err_broad"])) < 2


# ---- the mock, whose truth is known


@pytest.fixture(scope="module")
def mock():
    return mock_survey("sdss", 512, seed=5)


def test_mock_truth_is_found(mock):
    "Medians of measured minus true EW by less than a quarter of an ångström; errors that explain the scatter."
    plain = np.asarray(mock.table["qso_strength"]) <= 0
    lines = fit_lines(mock, stellar_templates())
    for name in BPT_LINES:
        true = np.asarray(mock.table[f"ew_{name}"])
        weak = plain & np.isfinite(lines[f"ew_{name}"]) & (true < 3)
        off = np.asarray(lines[f"ew_{name}"] - true)[weak]
        assert weak.sum() > 200 and abs(np.median(off)) < 0.25, name
        pull = off / np.asarray(lines[f"ew_err_{name}"])[weak]
        assert 0.6 < 1.4826 * np.median(np.abs(pull - np.median(pull))) < 1.3, name


def test_stars_of_another_library_cost_less_than_no_stars(mock):
    weak = (np.asarray(mock.table["qso_strength"]) <= 0) & (np.asarray(mock.table["ew_hbeta"]) < 3)
    off = {}
    for name, basis in (("other", stellar_templates("bc03")), ("none", None)):
        ew = np.asarray(fit_lines(mock, basis)["ew_hbeta"] - mock.table["ew_hbeta"])[weak]
        off[name] = np.nanmedian(np.abs(ew))
    assert off["other"] < 0.4 and off["none"] > 1.5 * off["other"]


def test_labels_of_the_mock_from_its_own_spectra(mock):
    "At S/N > 10 most labels are those that the true fluxes would give under the same errors."
    lines = fit_lines(mock, stellar_templates())
    narrow = (np.asarray(mock.table["qso_strength"]) <= 0) & ~np.asarray(lines["broad"]) & (mock.sn > 10)
    own, truth = label_galaxies(lines)[0], label_galaxies(truth_lines(mock.table, lines))[0]
    assert narrow.sum() > 150 and (own == truth)[narrow].mean() > 0.7
    star = narrow & (truth == "star-forming")
    assert (own == truth)[star].mean() > 0.8


def test_type_1_nuclei_of_a_mock():
    many = mock_survey("sdss", 256, seed=9, broad_line=0.5)
    many = many[(many.z > 0.02) & (many.z < 0.38)]
    lines, nucleus = fit_lines(many, stellar_templates()), np.asarray(many.table["qso_strength"]) > 0
    found = np.asarray(lines["broad"] | lines["broad_component"])
    assert nucleus.sum() > 60 and found[nucleus].mean() > 0.8 and found[~nucleus].mean() < 0.12


def test_starlight_model_leaves_noise(mock):
    model, modes = fit_starlight(mock[:64], stellar_templates())
    good = ~mock.mask[:64] & (model != 0)
    chi = np.where(good, (mock.flux[:64] - model) * np.sqrt(mock.ivar[:64]), 0)
    per_row = (chi**2).sum(1) / good.sum(1)
    assert np.median(per_row) < 1.5 and modes.shape[:2] == mock[:64].flux.shape and np.isfinite(modes).all()


# ---- real spectra


@pytest.fixture(scope="module")
def bright(mirror):
    spectra = read_sdss(mirror / "sdss_galaxy_bright", and_mask="pixel")
    return spectra, fit_lines(spectra, stellar_templates()), read_pipeline_lines(mirror / "sdss_galaxy_bright")


@pytest.mark.real
def test_pipeline_lines_and_ours_of_the_same_spectra(bright):
    spectra, lines, pipeline = bright
    theirs, counts = join_lines(pipeline, spectra.id)
    assert dict(zip(counts["step"], counts["n"]))["unmatched spectra"] == 0 and theirs["measured"].sum() == 687
    for name, low, high in (("oiii_5007", 0.95, 1.08), ("halpha", 0.97, 1.12), ("nii_6584", 0.93, 1.06)):
        strong = theirs["measured"] & np.isfinite(lines[f"flux_{name}"]) & (theirs[f"flux_{name}"] > 10 * theirs[f"err_{name}"])
        ratio = np.asarray(lines[f"flux_{name}"] / theirs[f"flux_{name}"])[strong]
        assert strong.sum() > 150 and low < np.median(ratio) < high, name
        assert 1.4826 * np.median(np.abs(ratio - np.median(ratio))) < 0.15, name


@pytest.mark.real
def test_our_fluxes_are_those_of_nsa(bright, mirror):
    "Third measurement of the same spectra: where the pipeline's Hβ is negative, NSA and we agree."
    spectra, lines, pipeline = bright
    nsa, _ = join_lines(read_resolve_eco_nsa(mirror / "catalog_resolve_eco_nsa" / "NSA_RESOLVE_crossmatched.csv"), spectra.id)
    theirs, _ = join_lines(pipeline, spectra.id)
    both = nsa["measured"] & lines["measured"]
    assert both.sum() > 20
    for name in BPT_LINES:
        spread = np.hypot(lines[f"err_{name}"], nsa[f"err_{name}"])[both]
        ours = np.asarray(lines[f"flux_{name}"] - nsa[f"flux_{name}"])[both] / spread
        assert abs(np.median(ours)) < 1.5, name
    pipeline_off = np.asarray((theirs["flux_hbeta"] - nsa["flux_hbeta"]) / np.hypot(theirs["err_hbeta"], nsa["err_hbeta"]))[both]
    assert np.median(pipeline_off) < -3


@pytest.mark.real
def test_broadline_subclass_is_the_rule_with_its_slip(bright):
    "All BROADLINE subclasses, and no other, once lines that were not fitted count as detected."
    _, _, pipeline = bright
    subclass = has_broadline(pipeline["subclass"])
    assert (np.asarray(pipeline["broad_unfitted"]) == subclass).all() and subclass.sum() == 271
    assert not (np.asarray(pipeline["broad"]) & ~subclass).any() and (~np.asarray(pipeline["broad"]) & subclass).sum() == 64


@pytest.mark.real
def test_real_quasars_are_broad(mirror):
    "The rule on our single Gaussians finds the quasars whose Hα and Hβ are in reach."
    quasars = read_sdss(mirror / "sdss_qso_spectra", and_mask="pixel")
    quasars = quasars[(quasars.z > 0.02) & (quasars.z < 0.36)]
    broad = has_broadline(quasars.table["subclass"].astype(str))
    assert broad.sum() > 50 and np.asarray(fit_lines(quasars, stellar_templates())["broad"])[broad].mean() > 0.95
