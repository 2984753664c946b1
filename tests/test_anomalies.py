"""Planted outliers: every group there, each change what it says it is, the mark a matter of noise-free spectra."""

import numpy as np
import pytest
import torch

from spectral_core.core import ConfigError, SpectrumError
from spectral_core.simulate import anomalies
from spectral_core.simulate.anomalies import GROUPS, MAKERS, plant, plant_all
from spectral_core.simulate.distortions import (
    bridge_gaps,
    emission,
    level,
    miscalibration,
    power_law,
    sky_spectrum,
    split_lines,
)
from spectral_core.simulate.visibility import VISIBLE, difference_chi2, ordinary_components
from spectral_core.spectra.surveys import get_survey

SDSS = get_survey("sdss")
WAVE, WIDTH = SDSS.grid.wave, torch.tensor(np.diff(SDSS.grid.edges))


@pytest.fixture(scope="module")
def odd():
    return plant_all(6, seed=2)


def scene(group, n=6, seed=2):
    return anomalies._scene(group, n, SDSS, seed)


def test_table_two_adds_up():
    assert GROUPS["paper_count"].sum() == 100 and len(set(GROUPS["group"])) == len(GROUPS)
    assert set(GROUPS["group"][GROUPS["planted"]]) == set(MAKERS)
    assert all(GROUPS["reason"]) and all(GROUPS["unit"]) and (GROUPS["low"] <= GROUPS["high"]).all()


def test_every_group_is_planted_with_its_truth(odd):
    assert len(odd) == 6 * len(MAKERS) and odd.good.all() and len(set(odd.id)) == len(odd)
    for row in GROUPS[GROUPS["planted"]]:
        amplitude = odd.table["amplitude"][odd.table["group"] == row["group"]]
        assert len(amplitude) == 6 and (amplitude >= row["low"]).all() and (amplitude <= row["high"]).all()
    second = np.isfinite(odd.table["z_second"])
    assert set(odd.table["group"][second]) == {"blend_galaxy", "blend_star"}
    assert {g for g, name in zip(odd.table["group"], odd.table["star"]) if name} == {"blend_star", "star"}
    moved = np.abs(odd.table["z_true"] - odd.z) > 1e-6
    assert set(odd.table["group"][moved]) == {"star", "wrong_redshift"}
    assert (odd.table["visible"] == (odd.table["difference_chi2"] >= VISIBLE)).all()


def test_row_i_does_not_depend_on_n():
    for group in ("blend_galaxy", "bad_spectrum", "he2_agn"):
        few, many = plant(group, 2, seed=5), plant(group, 4, seed=5)
        np.testing.assert_array_equal(few.id, many.id[:2])
        np.testing.assert_allclose(few.flux, many.flux[:2], rtol=1e-3, atol=1e-3 * few.flux.max())
    assert not np.array_equal(plant("dusty", 2, seed=1).flux, plant("dusty", 2, seed=2).flux)


def test_blends_add_up():
    for group in ("blend_galaxy", "blend_star"):
        s = scene(group)
        light, extra = MAKERS[group](s)
        added = light - s.host
        assert (added >= -1e-3).all()
        ratio = (level(added, SDSS) / level(s.host, SDSS)).squeeze(1).numpy()
        np.testing.assert_allclose(ratio, s.amplitude, rtol=0.01)
        assert (abs(np.asarray(extra["z_second"]) - s.z) > 0.01).all()


def test_double_peaks_conserve_line_flux_and_centre():
    s = scene("velocity_structure")
    light, _ = MAKERS["velocity_structure"](s)
    before, after = (x.double() @ WIDTH for x in (s.lines, light - s.continuum))
    edge = torch.cat([s.lines[:, :30], s.lines[:, -30:]], 1).amax(1) > 1e-3 * s.lines.amax(1)  # a line half outside
    assert edge.sum() < 4
    torch.testing.assert_close(after[~edge], before[~edge], rtol=2e-3, atol=1e-2)
    line = torch.exp(-0.5 * ((torch.tensor(WAVE) - 6900) / 1.5) ** 2).float()[None]
    double = split_lines(line, SDSS, torch.tensor([500.0]), torch.tensor([0.4]))[0].double()
    peaks = np.flatnonzero((double[1:-1] > double[:-2]) & (double[1:-1] > double[2:])) + 1
    assert len(peaks) == 2 and abs(np.log(WAVE[peaks[1]] / WAVE[peaks[0]]) * 299792 - 500) < 75
    assert abs((double * WIDTH * torch.tensor(WAVE)).sum() / (double * WIDTH).sum() - 6900) < 0.05


def test_added_lines_have_their_equivalent_width():
    s = scene("ni_5200")
    added = ((MAKERS["ni_5200"](s)[0] - s.host).double() @ WIDTH).numpy()
    near = np.rint(SDSS.grid.pixel(5200.5 * (1 + s.z))).astype(int)
    continuum = np.array([row[i - 20 : i + 21].mean() for row, i in zip(s.continuum.numpy(), near)])
    np.testing.assert_allclose(added / continuum / (1 + s.z), 2 * s.amplitude, rtol=0.02)
    with pytest.raises(SpectrumError, match="outside"):
        emission(s.continuum, np.full(6, 1.0), SDSS, {5199.349: 1.0}, s.amplitude, 100.0)


def test_bright_hii_regions_have_the_equivalent_width_they_are_labelled_with():
    s = scene("bright_hii")
    light, _ = MAKERS["bright_hii"](s)
    wave = torch.tensor(WAVE)[None] / (1 + torch.tensor(s.z)[:, None])
    side = ((wave > 6480) & (wave < 6530)) | ((wave > 6610) & (wave < 6660))
    base = torch.stack([row[k].median() for row, k in zip(light, side)])
    line = (wave > 6535) & (wave < 6605)
    ew = (((light / base[:, None] - 1) * line) @ WIDTH.float()).numpy() / (1 + s.z)
    assert (ew > 0.95 * s.amplitude).all() and (ew < 1.6 * s.amplitude).all()  # [N II] is in the window too


def test_extreme_dust_takes_the_blue_and_the_balmer_lines():
    s = scene("dusty", 12)
    light, host = MAKERS["dusty"](s)[0].numpy(), s.host.numpy()
    blue, red = ((WAVE > 4000) & (WAVE < 4500)), ((WAVE > 6500) & (WAVE < 7500))
    colour = lambda x: -2.5 * np.log10(x[:, blue].mean(1) / x[:, red].mean(1))
    redder = colour(light) - colour(host)
    assert redder.min() > 0 and np.median(redder) > 1
    middle = abs(WAVE - 6165) < 200
    np.testing.assert_allclose(light[:, middle].mean(1) / host[:, middle].mean(1), 1, atol=0.15)


def test_old_bursts_deepen_hdelta():
    s = scene("strong_hdelta", 12)
    light, _ = MAKERS["strong_hdelta"](s)
    rest = WAVE[None] / (1 + s.z[:, None])
    band = lambda x, low, high: np.array([row[(r > low) & (r < high)].mean() for row, r in zip(x.numpy(), rest)])
    depth = lambda x: 1 - 2 * band(x, 4085, 4122) / (band(x, 4042, 4081) + band(x, 4129, 4162))
    assert (depth(light) > 0.13).all() and np.median(depth(light)) > np.median(depth(s.host)) + 0.1


def test_bad_spectra_are_straight_where_they_say():
    bad = plant("bad_spectrum", 5, seed=1)
    s = scene("bad_spectrum", 5, seed=1)
    _, extra = MAKERS["bad_spectrum"](s)
    first, last = extra["gaps"]
    assert np.allclose((last - first).sum(1) / SDSS.grid.n, s.amplitude, atol=2e-3)
    for row, a, b in zip(bad.flux, first[:, 1], last[:, 1]):
        inside = row[a + 3 : b - 3]
        bend = np.abs(np.diff(inside[inside != 0], n=2))  # lost pixels are zero, at most two jumps each
        assert np.median(bend) < 1e-4 * np.abs(row).max()


def test_one_plate_has_one_curve_and_another_another():
    rms = torch.tensor([0.1, 0.2])
    factor = miscalibration(SDSS, rms, 2208) - 1
    torch.testing.assert_close(factor[1], 2 * factor[0], atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(factor.std(1), rms, rtol=0.02, atol=0)
    assert not torch.allclose(miscalibration(SDSS, rms, 266)[0] - 1, factor[0], atol=0.01)


def test_small_helpers():
    line = torch.arange(50.0)[None]
    torch.testing.assert_close(bridge_gaps(line, torch.tensor([[10]]), torch.tensor([[30]])), line)
    assert (power_law(SDSS, torch.tensor([-1.0]))[0].diff() < 0).all()
    for survey in ("sdss", "boss", "desi"): assert sky_spectrum(survey).shape == (get_survey(survey).grid.n,)


def test_the_mark_knows_noise_free_spectra_only(odd):
    again = plant("star", 6, seed=2)
    rows = odd.table["group"] == "star"
    np.testing.assert_allclose(again.table["difference_chi2"], odd.table["difference_chi2"][rows], rtol=1e-3)
    faint, bright = (plant("star", 6, seed=2, sn=sn) for sn in (5, 20))
    np.testing.assert_allclose(bright.table["difference_chi2"], 16 * faint.table["difference_chi2"], rtol=1e-3)
    assert abs(np.median(bright.sn) / 20 - 1) < 0.1, "and the noise is what was asked for"


def test_what_ordinary_galaxies_can_do_is_no_difference():
    basis, rest = ordinary_components()
    s, n = scene("blend_galaxy"), 6
    from spectral_core.spectra.wavelength import resample_rest

    mix = (torch.randn(n, len(basis), generator=torch.Generator().manual_seed(0)) @ basis)
    seen, _ = resample_rest(mix, rest, SDSS.grid, torch.tensor(s.z))
    sigma = torch.full_like(seen, 0.05)
    assert (difference_chi2(seen, sigma, s.z, SDSS) < 1e-3).all()
    wild = torch.sin(torch.arange(SDSS.grid.n) / 7.0).expand(n, -1)
    assert (difference_chi2(wild, sigma, s.z, SDSS) > 100).all()


@pytest.mark.parametrize("survey", ["boss", "desi"])
def test_other_surveys(survey):
    for group in ("blend_star", "sky_residual", "extended_oiii"):
        spectra = plant(group, 2, survey, seed=1)
        assert spectra.survey.name == survey and spectra.good.all()


def test_unknown_and_unplanted_groups_are_refused():
    with pytest.raises(ConfigError, match="no template"): plant("snia", 1)
    with pytest.raises(ConfigError, match="wolf_rayet"): plant("wolf-rayet", 1)
