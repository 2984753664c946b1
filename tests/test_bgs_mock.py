"""The mock of DESI's Bright Galaxy Survey: other populations untouched, magnitudes, cuts, exposures, emission lines."""

import astropy.units as u
import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.table import vstack
from scipy.ndimage import gaussian_filter1d

from spectral_core.analysis.lineews import EDGES, calibration_half, compare_widths, measure_like, share_above, truth_widths
from spectral_core.archives.widths import LineWidths, read_line_widths
from spectral_core.core import ConfigError, DataError
from spectral_core.simulate.galaxy import make_galaxies, observed
from spectral_core.simulate.mock import mock_survey, reobserve
from spectral_core.simulate.photometry import bgs_cuts, survey_columns, synthetic_magnitudes
from spectral_core.simulate.population import draw_population
from spectral_core.simulate.ssp import FINE, load_ssp
from spectral_core.spectra.lines import LINES
from spectral_core.spectra.surveys import DESI

C = 299792.458


def galaxies(blocks: int, seed: int, z_max: float = 1.0):
    "A drawn and completed `bgs` population with its magnitudes."
    parts = []
    for block in range(blocks):
        drawn = draw_population(256, seed, block, population="bgs")
        truth, light, lum = make_galaxies(drawn[drawn["z"] < z_max])
        truth.update(survey_columns(truth, light, lum))
        parts.append(truth)
    return vstack(parts)


@pytest.fixture(scope="module")
def mock():
    return mock_survey("desi", n=300, seed=4, population="bgs")


@pytest.fixture(scope="module")
def truth():
    return galaxies(5, 8)


# ---- other populations are what they were


BEFORE = {  # sums over draw_population(64, seed=3) made before "bgs" existed; "nearby", which chapter 3 is made of, as it began
    "survey": (10.397204039565995, 1181.3052421900586, 100.4940602553016, 36.27884501457838, 12520.05698354516, 45.62291625684834,
               1.9692716985778624, 202.82408076319598),
    "main": (6.441204039565996, 1163.1650753386511, 99.02735902240127, 42.183765471816415, 10661.974628873868, 45.62291625684834,
             1.8692716985778626, 202.82408076319598),
    "flat": (11.936204039565997, 1192.1546242917366, 107.70557681942762, 41.47013804441208, 13717.913617928709, 45.62291625684834,
             2.1692716985778624, 202.82408076319598),
    "bright": (1.4532040395659958, 974.9019666164243, 80.5953860833937, 33.21745201027372, 10780.333438401658, 45.62291625684834,
               1.7692716985778625, 202.82408076319598),
    "nearby": (4.040204039565996, 1149.4240729967892, 136.8241948806803, 57.630108387292836, 8652.391117852076, 36.95456216804716,
               4.629271698577862, 202.82408076319598),
}


@pytest.mark.parametrize("population", BEFORE)
def test_other_populations_did_not_move(population):
    "One more or one fewer random number anywhere would change all of these sums."
    t = draw_population(64, seed=3, population=population)
    columns = "z", "r_fibre", "tau", "a_v_gas", "sigma_gas", "ha_yield", "agn_n2", "qso_balmer"
    found = [float(np.sum(t[name])) for name in columns]
    np.testing.assert_allclose(found, BEFORE[population], rtol=1e-10)
    assert {"r50", "sulphur"} & set(t.colnames) == ({"sulphur"} if population == "nearby" else set())


def test_nearby_galaxies_have_no_long_tail_of_lines():
    "0.5 % of DESI's galaxies below z = 0.1 have more than 150 Å of Hα; `main` has 3 %."
    t = make_galaxies(draw_population(1500, seed=2, population="nearby"))[0]
    assert np.max(t["z"]) < 0.1006
    assert 0.0005 < np.mean(t["ew_halpha"] > 150) < 0.012
    assert 0.15 < np.mean(t["ew_halpha"] > 20) < 0.35


def test_bgs_leaves_the_other_rows_of_a_mixture_alone():
    t = draw_population(512, seed=3, population={"bgs": 0.5, "main": 0.5})
    main = t[t["sel"] == "main"]
    assert (main["sulphur"] == 0).all() and (main["z"] < 0.31).all() and len(main) > 200
    usual = np.clip(1.0 + 0.9 * np.exp(-main["z"] / 0.05), 0.35, 2.8)
    assert np.std(main["r_fibre"] - main["r"] - usual) < 0.4


# ---- the survey


def test_row_i_does_not_depend_on_n(mock):
    few = mock_survey("desi", n=20, seed=4, population="bgs")
    for name in ("id", "object_id", "z", "mask"): np.testing.assert_array_equal(getattr(few, name), getattr(mock, name)[:20])
    scale = np.median(np.abs(few.flux), axis=1, keepdims=True)
    np.testing.assert_allclose(few.flux / scale, mock.flux[:20] / scale, atol=2e-3)
    np.testing.assert_allclose(few.ivar, mock.ivar[:20], rtol=2e-3)
    for name in ("mag_g", "mag_r", "mag_z", "fibermag_r", "exposure", "r50"):
        np.testing.assert_allclose(few.table[name], mock.table[name][:20], atol=2e-3)


def test_redshifts_magnitudes_and_exposures_are_those_of_the_survey(mock):
    t = mock.table
    assert mock.good.all() and (mock.z >= 0.0099).all() and (mock.z < 0.8).all()
    assert 0.18 < np.median(mock.z) < 0.3
    assert ((t["exposure"] >= 90) & (t["exposure"] <= 540)).all()
    assert np.ptp(np.log(t["exposure"])) > 1.5
    assert (t["mag_r"] < t["fibermag_r"]).all() and (t["r50"] > 0).all()
    big = t["r50"] > np.median(t["r50"])
    assert np.mean((t["fibermag_r"] - t["mag_r"])[big]) > np.mean((t["fibermag_r"] - t["mag_r"])[~big]) + 0.5


def test_noise_falls_with_the_root_of_the_exposure(mock):
    "Of two spectra the ratio of errors in blank regions is that of the roots of their exposures, up to the night's own level."
    sky = np.median(mock.ivar[:, 400:1200], axis=1) ** -0.5
    faint = np.asarray(mock.table["fibermag_r"]) > 20
    slope = np.polyfit(np.log(mock.table["exposure"][faint]), np.log(sky[faint]), 1)[0]
    assert slope == pytest.approx(-0.5, abs=0.15)


def test_signal_to_noise_per_arm(mock):
    "About 1, 2.5 and 3 per pixel at a fibre magnitude of 20.5."
    rows = np.abs(mock.table["fibermag_r"] - 20.5) < 0.4
    sn = mock.flux[rows] * np.sqrt(mock.ivar[rows])
    for (_, first, last), goal in zip(DESI.arms, (1.0, 2.5, 3.0)):
        assert 0.4 < np.median(sn[:, (mock.wave > first) & (mock.wave < last)]) / goal < 1.8


def test_seen_again_the_exposure_stays(mock):
    again = reobserve(mock[:100])
    level = [np.log(np.median(s.ivar[:, 400:1200], axis=1)) for s in (again, mock[:100])]
    assert np.mean(level[0] - level[1]) == pytest.approx(0, abs=0.3)  # nights differ by 0.26 in ln σ
    faint = np.asarray(again.table["fibermag_r"]) > 20
    assert np.polyfit(np.log(again.table["exposure"][faint]), level[0][faint], 1)[0] == pytest.approx(1, abs=0.4)
    far = reobserve(mock[:4], z=0.5)
    for name in ("mag_r", "fibermag_r"): assert ((far.table[name] - mock.table[name][:4] > 0) == (mock.z[:4] < 0.5)).all()


def test_every_redshift_fills_the_grid(truth):
    for z in (0.001, 0.01, 0.3, 0.8):
        flux = sum(observed(truth[:8], np.full(8, z), "desi")).numpy()
        assert flux.shape == (8, DESI.grid.n) and np.isfinite(flux).all() and (flux > 0).all()
    with pytest.raises(ConfigError, match="possible"): observed(truth[:1], np.array([0.85]), "desi")


def test_an_unknown_population_names_the_nearest():
    with pytest.raises(ConfigError, match="bgs"): mock_survey("desi", n=2, population="bsg")


# ---- magnitudes and cuts


def test_magnitudes_are_those_of_speclite():
    "g and r of the spectra on DESI's pixels, by the library that defines the filters."
    from speclite.filters import load_filters

    drawn, light, lum = make_galaxies(draw_population(48, 2, population="bgs"))
    drawn["ebv_mw"] = 0.0
    ours = synthetic_magnitudes(drawn, light, lum)
    flux = sum(observed(drawn, survey="desi", made=(light, lum))).double().numpy() * 1e-17 * u.erg / u.s / u.cm**2 / u.AA
    filters = load_filters("decam2014-g", "decam2014-r")
    reference = filters.get_ab_magnitudes(*filters.pad_spectrum(flux, DESI.grid.wave * u.AA))
    for k, name in enumerate("gr"): np.testing.assert_allclose(ours[:, k], reference[f"decam2014-{name}"], atol=0.02)


def test_a_line_alone_has_the_magnitude_of_its_flux():
    "Hα at z = 0 in r: rate R λ F over the rate of a source of magnitude 0."
    from speclite.filters import load_filter

    one, light, lum = make_galaxies(draw_population(4, 2, population="bgs"))
    one["ebv_mw"] = 0.0
    only = torch.zeros_like(lum)
    only[:, list(LINES["name"]).index("halpha")] = 1e-3
    r = load_filter("decam2014-r")
    wave = 6564.6 * (1 + np.asarray(one["z"]))
    zero = np.trapezoid(3631e-23 * C * 1e13 / r.wavelength**2 * r.response * r.wavelength, r.wavelength)
    lines = sum(observed(one, survey="desi", made=(light * 0, only))).double().numpy()
    flux = lines.sum(1) * 0.8 * 1e-17
    expected = -2.5 * np.log10(flux * np.interp(wave, r.wavelength, r.response) * wave / zero)
    with np.errstate(divide="ignore"): ours = synthetic_magnitudes(one, light * 0, only)  # no light at all in g
    np.testing.assert_allclose(ours[:, 1], expected, atol=0.02)


def test_each_cut_removes_exactly_its_rows(truth):
    rows, counts = bgs_cuts(truth)
    odd = truth[rows[:40]].copy()
    break_it = {"observed in g, r and z": ("mag_g", np.nan), "BRIGHT or FAINT: r < 20.175": ("mag_r", 20.4),
                "fibre magnitude": ("fibermag_r", 23.2), "not (r > 12 and r_fibtot < 15)": ("fibermag_r", 14.5)}
    for k, (name, value) in enumerate(break_it.values()): odd[name][k] = value
    odd["mag_g"][4], odd["mag_z"][5] = odd["mag_r"][4] + 4.2, odd["mag_r"][5] + 1.1
    odd["mag_r"][6], odd["mag_g"][6], odd["mag_z"][6], odd["fibermag_r"][6] = 17.0, 17.8, 16.5, 22.4
    kept, counts = bgs_cuts(odd)
    assert kept.tolist() == list(range(7, 40))
    removed = dict(zip(counts["cut"], counts["removed"]))
    assert all(removed[name] == (2 if name == "fibre magnitude" else 1) for name in break_it)
    assert removed["-1 < g - r < 4"] == removed["-1 < r - z < 4"] == 1
    assert removed["not a star by Gaia (a mock galaxy has no entry)"] == 0
    assert bgs_cuts(odd[:0])[0].size == 0


def test_the_survey_is_limited_by_flux_not_by_the_draw(truth):
    "Galaxies that the cut on r removes exist: the draw is deeper than the limit; most drawn ones stay."
    rows, counts = bgs_cuts(truth)
    removed = dict(zip(counts["cut"], counts["removed"]))
    assert 0.01 < removed["BRIGHT or FAINT: r < 20.175"] / len(truth) < 0.25 and len(rows) > 0.7 * len(truth)
    assert (truth["mag_r"][rows] > 20.1).mean() > 0.03


# ---- emission lines


def few_widths(n=4000, k=3, seed=1):
    rng = np.random.default_rng(seed)
    lines = ("oii", "halpha", "nii_6584")[:k]
    lines = (*lines, "nii_6548", "oiii_5007", "oiii_4959")
    ew = 10 ** rng.normal(0.8, 0.4, (n, len(lines)))
    level = rng.normal(0, 1, (n, 1)).repeat(len(lines), 1)
    return LineWidths(lines, np.arange(n), rng.uniform(0.05, 0.32, n), ew, np.exp(-level), level)


def test_errors_follow_the_brightness_and_faint_lines_are_half_selected():
    real = few_widths()
    seen = measure_like(few_widths(seed=2), real)
    inside = (seen.z > EDGES[0]) & (seen.z < EDGES[-1])
    order = np.corrcoef(np.log(seen.error[inside, 0]), seen.level[inside, 0])[0, 1]
    assert order < -0.99 and np.isnan(seen.ew[~inside]).all() and np.nanmin(seen.ew) > 0
    nothing = measure_like(real._replace(ew=np.zeros_like(real.ew)), real)
    assert np.isfinite(nothing.ew[inside[: len(nothing.z)], 0]).mean() == pytest.approx(0.5, abs=0.1)
    k, j = (real.lines.index(name) for name in ("nii_6548", "nii_6584"))
    tied = np.isfinite(seen.ew[:, k])
    np.testing.assert_allclose(seen.ew[tied, k], seen.ew[tied, j] / 2.98)


def test_the_comparison_finds_a_factor_of_two():
    real, mock = few_widths()._replace(error=np.full((4000, 6), 0.01)), few_widths(seed=2)
    same, twice = compare_widths(real, mock), compare_widths(real, mock._replace(ew=2 * mock.ew))
    own = ~np.isin(same["line"], ["nii_6548", "oiii_4959"])  # these are made of their partners
    assert np.abs(same["dex"][own]).max() < 0.1
    np.testing.assert_allclose((twice["dex"] - same["dex"])[own], np.log10(2), atol=0.02)
    assert len(same) == 6 * (len(EDGES) - 1) and (same["n_real"] > 300).all()
    with pytest.raises(DataError, match="the catalogue"): compare_widths(real, mock._replace(lines=("a",)))


def test_share_above_counts_significant_lines_only():
    widths = few_widths()._replace(ew=np.full((4000, 6), 10.0), error=np.full((4000, 6), 1.0))
    widths.ew[:40, 1], widths.error[:10, 1] = 200.0, 1e4
    widths.ew[3000:, 1] = np.nan
    assert share_above(widths) == (30 / 3000, 30)


def test_halves_do_not_overlap_and_are_halves():
    ids = np.arange(39633149726034475, 39633149726034475 + 20000)
    half = calibration_half(ids)
    assert half.mean() == pytest.approx(0.5, abs=0.02)
    np.testing.assert_array_equal(calibration_half(ids[::3]), half[::3])


def test_damaged_catalogues_are_refused(tmp_path):
    with pytest.raises(DataError, match="no npz file"): read_line_widths(tmp_path / "none.npz")
    np.savez(tmp_path / "a.npz", z=np.ones(2))
    with pytest.raises(DataError, match="lacks targetid"): read_line_widths(tmp_path / "a.npz")


# ---- against real galaxies


@pytest.mark.real
@pytest.mark.slow
def test_line_widths_of_real_galaxies(mirror):
    """On the half of the catalogue that did not calibrate the mock: medians within 0.15 dex, and no heavier tail of strong lines.

    With a third as many galaxies the median Hα beyond z = 0.25, which falls between two classes, scatters by 0.06 dex.
    """
    real = read_line_widths(mirror / "desi_sv3_bgs_line_ews" / "line_ews.npz")
    assert len(real.z) == 108_459
    real = real.rows(~calibration_half(real.id))
    truth = galaxies(120, 2026, z_max=EDGES[-1])
    mock = truth_widths(truth[bgs_cuts(truth)[0]])
    table = compare_widths(real, mock)
    assert (table["n_mock"] > 1000).all()
    assert np.abs(table["dex"]).max() < 0.15, table[np.abs(table["dex"]) > 0.12]
    assert share_above(measure_like(mock, real))[0] < 3 * share_above(real)[0]
    here = [np.histogram(z, EDGES)[0] / np.histogram(z, EDGES)[0].sum() for z in (real.z, mock.z)]
    assert np.abs(here[0] - here[1]).max() < 0.06  # shares per redshift bin


@pytest.mark.real
def test_what_softer_absorption_lines_cost(mirror):
    "Narrow absorption of a real K template at DESI's resolution, and as wide as the populations make it."
    with fits.open(mirror / "redrock_templates" / "rrtemplate-STAR-K-v0.1.fits") as hdus:
        flux, head = hdus[0].data[0].astype(float), hdus[0].header
    step = 2e-5
    grid = np.arange(np.log10(4600), np.log10(5500), step)
    star = np.interp(10**grid, head["CRVAL1"] + head["CDELT1"] * np.arange(len(flux)), flux)
    library = np.interp(5050, FINE.wave, load_ssp("mixed").sigma_kms.numpy())
    instrument, lost = DESI.sigma_kms(5050 * 1.1), {}
    for sigma_v in (30, 60, 100):
        wanted = np.hypot(sigma_v, instrument)
        have = np.hypot(library, max(wanted**2 - library**2, 15**2) ** 0.5)
        width = lambda kms: gaussian_filter1d(star, kms / (C * np.log(10) * step))
        variance = [np.var((width(s) / gaussian_filter1d(star, 400))[1000:-1000]) for s in (wanted, have)]
        lost[sigma_v] = 1 - variance[1] / variance[0]
    assert 0.05 < lost[30] < 0.3 and lost[60] < 0.05 and abs(lost[100]) < 1e-6
