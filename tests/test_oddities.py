"""DESI's planted outliers: each group is what it says, measured on spectra without noise; real quasars look like ours."""

import numpy as np
import pytest
import torch
from astropy.io import fits
from scipy.ndimage import gaussian_filter1d

from spectral_core.core import ConfigError, SpectrumError
from spectral_core.simulate import oddities
from spectral_core.simulate.distortions import arm_shares, level, move_lines, split_lines
from spectral_core.simulate.instrument import quoted_sigma
from spectral_core.simulate.libraries import STAR_GRID, load_library, load_redrock
from spectral_core.simulate.oddities import GROUPS, MAKERS, MARK, plant_desi, plant_desi_all
from spectral_core.simulate.population import draw_population
from spectral_core.simulate.quasars import QUASAR_GRID, broad_absorption, quasar_light, quasar_spectra
from spectral_core.simulate.visibility import difference_chi2
from spectral_core.spectra.surveys import DESI, SDSS, Survey

WAVE = DESI.grid.wave


@pytest.fixture(scope="module")
def odd():
    return plant_desi_all(6, seed=2)


def made(group, n=8, seed=2):
    "Scene, noise-free odd spectra and truth."
    return oddities._make(group, n, seed, 20.0)


def peaks(profile):
    "Pixels of the local maxima above a tenth of the highest."
    middle = profile[1:-1]
    return 1 + np.flatnonzero((middle > profile[:-2]) & (middle > profile[2:]) & (middle > 0.1 * profile.max()))


# ------------------------------------------------------------------ what is planted, and its labels


def test_counts_are_counts_and_ranks_are_ranks():
    ranks = {row["group"]: row["paper_ranks"] for row in GROUPS}
    count = {row["group"]: row["paper_count"] for row in GROUPS}
    assert list(GROUPS["group"]) == list(MAKERS) and all(GROUPS["reason"]) and (GROUPS["low"] <= GROUPS["high"]).all()
    assert count["misclassified_star"] == 35 and count["double_peaked"] == len(ranks["double_peaked"].split(",")) == 9
    assert (ranks["quasar_pair"], count["quasar_pair"]) == ("15", 1)
    assert (ranks["several_galaxies"], count["several_galaxies"]) == ("26", 1)


def test_every_group_is_planted_with_its_truth(odd):
    assert set(odd.table["group"]) == set(MAKERS) - {"white_dwarf"} and odd.good.all() and len(set(odd.id)) == len(odd)
    assert ((odd.z >= 0) & (odd.z < 0.8)).all() and (odd.table["visible"] == (odd.table["difference_chi2"] >= MARK)).all()
    for row in GROUPS[GROUPS["group"] != "white_dwarf"]:
        few = odd.table[odd.table["group"] == row["group"]]
        assert len(few) == 6 and (few["amplitude"] >= row["low"]).all() and (few["amplitude"] <= row["high"]).all()
    assert all(odd.table["reason"]) and not any("nan" in reason for reason in odd.table["reason"])
    moved = abs(odd.table["true_z"] - odd.z) > 1e-3
    assert {"bal_quasar"} <= set(odd.table["group"][moved]) <= {"misclassified_star", "star_pair", "bal_quasar"}
    second = np.isfinite(odd.table["second_z"])
    assert set(odd.table["group"][second]) == {"star_pair", "m_star_and_galaxy", "several_galaxies", "quasar_pair"}
    assert set(odd.table["group"][odd.table["arm"] != ""]) == {"missing_arm", "misaligned_arms"}


def test_row_i_does_not_depend_on_n():
    for group in ("misclassified_star", "several_galaxies", "bal_quasar", "missing_arm"):
        few, many = plant_desi(group, 2, seed=5), plant_desi(group, 4, seed=5)
        np.testing.assert_array_equal(few.id, many.id[:2])
        np.testing.assert_allclose(few.flux, many.flux[:2], rtol=1e-3, atol=1e-3 * few.flux.max())
        assert list(few.table["reason"]) == list(many.table["reason"][:2])
    other = [plant_desi("red_quasar", 2, seed=seed, r_max=r) for seed, r in ((1, 20.0), (2, 20.0), (1, 19.5))]
    assert len({int(i) for spectra in other for i in spectra.id}) == 6


def test_most_oddities_are_visible_and_the_mark_knows_noise_free_spectra_only(odd):
    share = {group: odd.table["visible"][odd.table["group"] == group].mean() for group in set(odd.table["group"])}
    certain = {"misclassified_star", "bal_quasar", "quasar_pair", "red_quasar", "missing_arm"}
    assert min(share[group] for group in certain) >= 0.8 and odd.table["visible"].mean() > 0.6
    faint, bright = (plant_desi("double_peaked", 4, seed=1, sn=sn).table["difference_chi2"] for sn in (4.0, 12.0))
    np.testing.assert_allclose(bright, 9 * faint, rtol=0.02)


def test_unknown_groups_name_the_nearest():
    with pytest.raises(ConfigError, match="triple_peaked"): plant_desi("triple_peak", 1)


# ------------------------------------------------------------------ stars


def test_planted_stars_are_held_out_library_stars():
    s, light, extra = made("misclassified_star", 24)
    table = load_library().table
    held_out = set(table["name"][table["held_out"]])
    assert set(extra["star"]) <= held_out and not set(extra["star"]) & set(table["name"][~table["held_out"]])
    teff = extra["teff"]
    assert (teff < 3900).sum() >= 3 and (teff > 6500).sum() >= 3 and ((teff > 3900) & (teff < 6200)).sum() >= 6
    rows = {(str(name), float(t)): i for i, (name, t) in enumerate(table["name", "teff"].iterrows())}  # libraries share names
    for row, name, t, z in zip(light.numpy()[:6], extra["star"], teff, extra["z_true"]):
        same = np.interp(WAVE / (1 + z), STAR_GRID.wave, load_library().flux[rows[str(name), float(t)]])
        ratio = row / np.maximum(same, 1e-3)
        assert np.std(np.diff(ratio)[same[1:] > 0.05]) < 0.02 * np.median(ratio), "another star, or another velocity"


def test_misclassified_stars_have_their_magnitude_and_a_redshift_of_galaxies():
    s, light, extra = made("misclassified_star", 40)
    host = -2.5 * np.log10((level(light, DESI) / level(s.host, DESI)).squeeze(1).numpy())
    np.testing.assert_allclose(host + np.asarray(s.truth["r_fibre"]), s.amplitude, atol=1e-4)
    assert 0.2 < (extra["z"] > 0.01).mean() < 0.8 and extra["z"].max() > 0.3 and extra["z"].min() < 1e-3


def test_pairs_of_stars_are_hot_and_cool():
    s, light, extra = made("star_pair")
    assert (extra["teff"] >= 6000).all() and (extra["teff_second"] <= 4500).all()
    ratio = (level(light, DESI) / level(s.host, DESI)).squeeze(1).numpy()
    np.testing.assert_allclose(ratio, 1 + s.amplitude, rtol=0.03)


def test_m_stars_add_titanium_oxide():
    s, light, _ = made("m_star_and_galaxy", 20)
    added = (light - s.host).numpy()
    np.testing.assert_allclose((level(light - s.host, DESI) / level(s.host, DESI)).squeeze(1).numpy(), s.amplitude, rtol=1e-4)
    band = lambda low, high: added[:, (WAVE > low) & (WAVE < high)].mean(1)
    assert np.median(band(7060, 7140) / band(7030, 7048)) < 0.9, "no drop at the TiO head at 7054 Å"


# ------------------------------------------------------------------ galaxies and quasars


def test_second_galaxies_are_at_their_redshift():
    s, light, extra = made("several_galaxies", 10)
    single = np.isnan(extra["z_third"])
    assert 0 < single.sum() < 10
    added = (light - s.host)[torch.tensor(single)]
    sigma = quoted_sigma(light, DESI)[torch.tensor(single)]
    left = lambda z: difference_chi2(added, sigma, z[single], DESI)
    assert (left(extra["z_second"]) < 0.3 * left(s.z)).mean() > 0.7
    np.testing.assert_allclose((level(added, DESI).squeeze(1) / level(s.host, DESI).squeeze(1)[torch.tensor(single)]).numpy(),
                               s.amplitude[single], rtol=1e-3)


@pytest.mark.parametrize("group, shifts", [("double_peaked", 2), ("triple_peaked", 3)])
def test_narrow_lines_have_as_many_peaks_as_they_should(group, shifts):
    s, light, _ = made(group, 12)
    velocity = 299792.458 * (WAVE / (4862.692 * (1 + s.z[:, None])) - 1)
    found = []
    for row, v, gap in zip((light - s.continuum).numpy(), velocity, s.amplitude):
        near = abs(v) < 900
        at = v[near][peaks(row[near])]
        found.append(len(at) == shifts and np.allclose(np.diff(at), gap, atol=75))
    assert np.mean(found) >= 0.75
    edges = torch.cat([s.lines[:, :40], s.lines[:, -40:]], 1).amax(1) < 1e-3 * s.lines.amax(1)
    torch.testing.assert_close((light - s.continuum).sum(1)[edges], s.lines.sum(1)[edges], rtol=2e-3, atol=1e-2)


def test_lines_move_as_far_as_they_are_told():
    line = torch.exp(-0.5 * ((torch.tensor(WAVE) - 6900) / 1.5) ** 2).float()[None]
    moved = move_lines(line, DESI, torch.tensor([[1000.0]]), torch.ones(1, 1))[0]
    assert abs(WAVE[moved.argmax()] - 6900 * (1 + 1000 / 299792.458)) < 0.8
    pair = split_lines(line, DESI, torch.tensor([500.0]), torch.tensor([0.5]))[0].numpy()
    assert len(peaks(pair)) == 2


def test_troughs_are_as_deep_as_they_say_and_blueward():
    s, light, extra = made("bal_quasar", 10)
    clear = oddities._quasars(s, extra["z_true"], "nucleus")
    rest = WAVE / (1 + extra["z_true"][:, None])
    for row, plain, wave, depth in zip(light.numpy(), clear.numpy(), rest, s.amplitude):
        beside = (wave > 2815) & (wave < 3000)
        seen = row / plain / np.median(row[beside] / plain[beside])
        assert abs(seen[(wave > 2780) & (wave < 2803)].min() - (1 - depth)) < 0.03
        assert np.allclose(seen[beside], 1, atol=1e-3) and seen[(wave > 1890) & (wave < 1914)].min() < 1.05 - 0.85 * depth
    assert (abs(extra["z"] - extra["z_true"]) > 0.5).all()


def test_outlier_115_would_have_its_wrong_redshift():
    assert abs((1 + 1.535) * 2770 / 6564.614 - 1 - 0.0698) < 5e-4
    _, _, extra = made("bal_quasar", 40)
    halpha = abs((1 + extra["z_true"]) * 2770 / 6564.614 - 1 - extra["z"]) < 1e-9
    assert 0.2 < halpha.mean() < 0.8 and (extra["z"] >= 0).all()


def test_both_quasars_of_a_pair_show_their_lines():
    s, light, extra = made("quasar_pair", 10)
    bump = []
    for row, z in zip(light.numpy(), extra["z_second"]):
        rest = WAVE / (1 + z)
        middle, sides = abs(rest - 2799) < 10, (abs(rest - 2799) > 90) & (abs(rest - 2799) < 130)
        bump.append(row[middle].mean() / row[sides].mean())
    assert np.median(bump) > 1.08
    narrow = np.array([row[abs(WAVE / (1 + z) - 5008.24) < 2].mean() / row[abs(abs(WAVE / (1 + z) - 5008.24) - 22) < 5].mean()
                       for row, z in zip(light.numpy(), extra["z"])])
    assert (narrow > 1.1).all()


def test_red_quasars_are_red_and_their_oxygen_leans_to_the_blue():
    s, light, _ = made("red_quasar", 10)
    assert ((light[:, WAVE > 9000].median(1).values / light[:, WAVE < 4500].median(1).values) > 1.2).all()
    for row, z in zip(light.numpy(), s.z):
        v = 299792.458 * (WAVE / (5008.24 * (1 + z)) - 1)
        near = (v > -2300) & (v < 2300)
        profile, v = row[near] - np.quantile(row[near], 0.02), v[near]
        at = v[profile.argmax()]
        blue, red = (np.ptp(v[(profile > 0.3 * profile.max()) & side], axis=0) for side in (v <= at, v >= at))
        assert -700 < at < 50 and blue > 1.2 * red


def test_quasars_stay_on_their_grid():
    drawn = draw_population(256, 1, broad_line=1.0)
    light = quasar_light(drawn[drawn["class"] == "broad-line"][:2])
    with pytest.raises(SpectrumError, match="leave"): quasar_spectra(light, np.array([1.0, 2.3]), DESI)
    with pytest.raises(SpectrumError, match="qso_"): quasar_light(drawn["z",])
    seen = broad_absorption(torch.tensor([0.9]), torch.tensor([9000.0]), torch.tensor([1.0]))
    assert seen.min() >= 0.09 and seen.max() == 1 and (seen[0, QUASAR_GRID.wave > 2804] == 1).all()


# ------------------------------------------------------------------ arms


def test_shares_of_arms_add_up():
    for survey in (DESI, SDSS):
        shares = arm_shares(survey)
        torch.testing.assert_close(shares.sum(0), torch.ones(survey.grid.n))
        assert shares.min() >= 0 and shares.max() <= 1
    assert ((arm_shares(DESI) > 0) & (arm_shares(DESI) < 1)).any(0).sum() == pytest.approx(49 + 124, abs=4)
    with pytest.raises(SpectrumError, match="arms"): arm_shares(Survey("plain", DESI.grid, DESI.resolution))


def test_a_missing_arm_is_missing_and_its_neighbour_keeps_the_overlap():
    lost, (_, light, _) = plant_desi("missing_arm", 30, seed=3), made("missing_arm", 30, seed=3)
    own = {"b": WAVE < 5760, "r": (WAVE > 5800) & (WAVE < 7520), "z": WAVE > 7620}
    limit = {"b": (3600, 5760), "r": (5800, 7520), "z": (7620, 9824)}
    for row, arm in zip(range(30), lost.table["arm"]):
        low, high = limit[arm]
        assert lost.mask[row][own[arm]].all() and (lost.ivar[row][own[arm]] == 0).all()
        assert lost.mask[row][(WAVE < low - 1) | (WAVE > high + 1)].mean() < 0.05
    assert set(lost.table["arm"]) == set("brz") and (lost.table["true_z"] == lost.z).all()
    ramp = (WAVE > 7530) & (WAVE < 7610)
    half = np.isin(lost.table["arm"], ["r", "z"])
    pull = ((lost.flux - light.numpy()) * np.sqrt(lost.ivar))[half][:, ramp]
    assert 0.85 < np.std(pull[~lost.mask[half][:, ramp]]) < 1.25, "errors do not tell the noise of what is left"


def test_the_step_between_misaligned_arms_is_the_amplitude():
    s, light, extra = made("misaligned_arms", 20)
    factor = (light / s.host).numpy()
    for row, arm, size in zip(factor, extra["arm"], s.amplitude):
        own = {"b": WAVE < 5760, "r": (WAVE > 5800.5) & (WAVE < 7519.5), "z": WAVE > 7620.5}
        np.testing.assert_allclose(abs(row[own[arm]] - 1), size, rtol=1e-3)
        np.testing.assert_allclose(row[np.any([own[other] for other in "brz" if other != arm], axis=0)], 1, rtol=1e-5)
        steps = abs(np.diff(gaussian_filter1d(row, 2)))
        assert set(np.floor(WAVE[1:][steps > 1e-4] / 100)) <= {57, 58, 75, 76}
    assert (factor > 1.01).any(1).any() and (factor < 0.99).any(1).any()


# ------------------------------------------------------------------ real data


@pytest.mark.real
def test_mean_quasar_follows_the_composite_of_the_sdss(mirror):
    "Vanden Berk et al. (2001), from 1250 to 4750 Å, for nuclei as little reddened as those found by their blue colour."
    data = fits.getdata(mirror / "qso_composite" / "optical_nir_qso_sed_001.fits")
    nuclei = draw_population(500, seed=3, broad_line=1.0)
    nuclei = nuclei[nuclei["class"] == "broad-line"][:200]
    nuclei["qso_a_v"] *= 0.3
    ours, wave = quasar_light(nuclei).mean(0).numpy(), QUASAR_GRID.wave
    real = np.interp(wave, data["WAVELENGTH"], data["FLUX"])
    ratio = ours / real / np.median((ours / real)[(wave > 3000) & (wave < 3100)])
    binned = np.array([np.log(ratio[(wave > low) & (wave < low + 250)]).mean() for low in range(1250, 4750, 250)])
    assert np.ptp(binned) < 0.16 and abs(binned - binned.mean()).max() < 0.08 + 0.04


@pytest.mark.real
def test_white_dwarfs_come_from_held_out_templates(mirror):
    load_redrock.cache_clear()
    seen = plant_desi("white_dwarf", 6, seed=1)
    table = load_redrock().table
    assert set(seen.table["star"]) <= set(table["name"][table["held_out"]])
    assert all(name.startswith("redrock-WD") for name in seen.table["star"])
    assert (seen.table["teff"] > 4000).all() and seen.table["visible"].sum() >= 5
