"""Stars of the Milky Way Survey: libraries put together, draws, cuts, masks, and 280 real DESI stars to compare with."""

import numpy as np
import pytest
import torch
from astropy.io import fits
from scipy.ndimage import gaussian_filter1d

from spectral_core.core import ConfigError, DataError, Flag
from spectral_core.simulate import libraries, milkyway
from spectral_core.simulate.libraries import STAR_GRID, is_held_out, load_library
from spectral_core.simulate.milkyway import KINDS, mock_stars, mws_cuts, normalise_window, spectral_class
from spectral_core.spectra.preprocessing import preprocess
from spectral_core.spectra.surveys import DESI, get_survey

WAVE = STAR_GRID.wave
LIGHT = 299792.458


@pytest.fixture(scope="module")
def stars():
    return mock_stars(700, seed=5)


def rows_of(library, name):
    return np.flatnonzero(np.asarray(library.table["library"]) == name)


# ------------------------------------------------------------------ libraries


def test_every_library_is_there_and_loses_about_a_fifth():
    table = load_library().table
    for name, count in (("miles", 984), ("stelib", 150), ("mastar", 60)):
        rows = table["library"] == name
        assert rows.sum() >= count and 0.1 < table["held_out"][rows].mean() < 0.3


def test_a_star_in_two_libraries_is_held_out_of_both_or_of_none():
    table = load_library().table
    twice = set(table["name"][table["library"] == "miles"]) & set(table["name"][table["library"] == "stelib"])
    assert len(twice) > 50 and any(map(is_held_out, twice))
    for name in twice: assert len(set(table["held_out"][table["name"] == name])) == 1
    assert is_held_out("HD048682A") == is_held_out("HD048682B")


@pytest.mark.parametrize("name", ["miles", "stelib", "mastar"])
@pytest.mark.parametrize("line, teff", [(6564.6, 8500), (4862.7, 8500), (5891.6, 4500)])
def test_lines_stand_at_vacuum_wavelengths(name, line, teff):
    library = load_library()
    rows = rows_of(library, name)
    rows = rows[np.argsort(abs(np.log(library.table["teff"][rows] / teff)))[:9]]
    near = abs(WAVE - line) < 12
    found = np.median(WAVE[near][library.flux[rows][:, near].argmin(1)])
    assert abs(found - line) < 1.0  # air would be 1.3 to 1.8 Å to the blue


def test_the_same_star_looks_the_same_in_two_libraries():
    library = load_library()
    name, at = np.asarray(library.table["name"]), np.asarray(library.table["library"])
    both = [(np.flatnonzero((name == n) & (at == "miles"))[0], k) for n, k in zip(name, range(len(name)))
            if at[k] == "stelib" and ((name == n) & (at == "miles")).any()]
    x = libraries._shape(library.flux)
    first, second = np.array(both).T
    same = np.sqrt(((x[first] - x[second]) ** 2).sum(1))
    other = np.sqrt(((x[first] - x[np.roll(second, 7)]) ** 2).sum(1))
    assert np.median(same) < 0.06 < np.median(other)


def test_neither_a_factor_nor_dust_changes_a_shape():
    flux = load_library().flux[::200].astype(float)
    x = libraries._shape(flux)
    reddened = flux * 3 * 10 ** (-0.4 * 0.1 * libraries._CURVE)
    # what is clipped at 2 % of the normalisation feels the factor: warm stars have nothing below it
    warm = load_library().table["teff"][::200] > 5000
    np.testing.assert_allclose(libraries._shape(reddened)[warm], x[warm], atol=2e-3)


def test_labels_come_back_when_they_are_left_out():
    library = load_library()
    rows = rows_of(library, "miles")[::3]
    table, truth = library.table[rows].copy(), library.table[rows]
    lost = np.arange(len(rows)) % 4 == 0
    for name in ("teff", "logg", "feh"): table[name][lost] = np.nan
    libraries._label(libraries._shape(library.flux[rows]), table)
    scatter = lambda x: 1.48 * np.median(abs(np.asarray(x)))
    assert scatter(np.log(table["teff"] / truth["teff"])[lost]) < 0.06
    assert scatter((table["logg"] - truth["logg"])[lost]) < 0.5 and scatter((table["feh"] - truth["feh"])[lost]) < 0.4
    assert (table["teff"][~lost] == truth["teff"][~lost]).all()


def test_own_pixels_are_never_replaced():
    flux = load_library().flux[:40].astype(float)
    own = np.ones(flux.shape, bool)
    own[:, (WAVE > 6000) & (WAVE < 6500)] = False
    damaged, x = np.where(own, flux, 99.0), libraries._shape(flux)
    filled = libraries._complete(damaged, own, x, flux, x)
    np.testing.assert_array_equal(filled[own], flux[own])
    assert np.median(abs(filled[~own] / flux[~own] - 1)) < 0.02  # each star finds itself among the donors


def test_held_out_stars_lend_no_light():
    "Changing a held-out composite must leave every training star as it is."
    library = load_library()
    donors = rows_of(library, "mastar")
    assert library.table["held_out"][donors].any()
    train = rows_of(library, "miles")
    train = train[~np.asarray(library.table["held_out"])[train]][::60]
    keep = donors[~np.asarray(library.table["held_out"])[donors]]
    x = libraries._shape(library.flux)
    again = libraries._complete(library.flux[train].astype(float), library.own[train], x[train], library.flux[keep], x[keep])
    np.testing.assert_allclose(again, library.flux[train], rtol=0.02)


# ------------------------------------------------------------------ draws


def test_star_i_does_not_depend_on_n(stars):
    few = mock_stars(300, seed=5)
    np.testing.assert_array_equal(few.id, stars.id[:300])
    np.testing.assert_array_equal(few.object_id, stars.object_id[:300])
    np.testing.assert_array_equal(few.z, stars.z[:300])
    np.testing.assert_allclose(few.flux, stars.flux[:300], rtol=1e-4, atol=1e-3)
    assert (few.table["name"] == stars.table["name"][:300]).all()
    assert not set(mock_stars(300, seed=6).id) & set(stars.id)


def test_truth_has_all_columns_and_ids_are_unique(stars):
    wanted = "kind name second share library teff logg feh rv ebv r r_raw r_fibre exposure sn z".split()
    assert not set(wanted) - set(stars.table.colnames)
    assert len(set(stars.id)) == len(stars) and (stars.id >= 0).all() and set(stars.table["kind"]) <= set(KINDS)


def test_every_star_passes_the_cuts_of_the_survey(stars):
    assert all(passed.all() for passed in mws_cuts(stars.table).values())
    np.testing.assert_allclose(stars.table["r_raw"] - stars.table["r"], 2.165 * stars.table["ebv"])
    faint = (np.asarray(stars.table["r"]) > 18).mean()
    assert 0.5 < faint < 0.85  # counts grow as 10^(0.2 r)


def test_each_cut_removes_what_it_names():
    table = {"r": np.array([15.9, 17.0, 19.3, 19.1]), "r_raw": np.array([16.0, 17.0, 19.5, 20.1])}
    passed = mws_cuts(table)
    assert [list(p) for p in passed.values()] == [[False, True, True, True], [True, True, False, True], [True, True, True, False]]


def test_magnitudes_are_those_of_the_flux():
    flux = np.ones((1, len(WAVE)))
    truth = {"rv": np.zeros(1), "ebv": np.zeros(1), "r_raw": np.array([18.0])}
    seen, inside = milkyway._noise_free(flux, truth, DESI)
    centre = 6400.0  # a flat spectrum: f_nu at the band's pivot wavelength
    expected = 1e17 * 10 ** (-0.4 * (18 + 48.6)) * 2.99792458e18 / centre**2
    assert inside.all() and abs(seen[0, 3000].item() / expected - 1) < 0.02


def test_redshift_is_the_velocity_with_a_small_error(stars):
    error = stars.z * LIGHT - stars.table["rv"]
    assert 4 < np.std(error[stars.table["teff"] < 7000]) < 12 and abs(stars.table["rv"]).max() <= 600


def test_lines_move_with_the_velocity():
    truth = {"rv": np.array([-500.0, 0, 500]), "ebv": np.zeros(3), "r_raw": np.full(3, 17.0)}
    library = load_library()
    row = np.argmin(abs(library.table["teff"] - 9000))
    seen, _ = milkyway._noise_free(library.flux[[row] * 3], truth, DESI)
    near = abs(DESI.grid.wave - 6564.6) < 25
    found = DESI.grid.wave[near][seen[:, near].argmin(1)]
    np.testing.assert_allclose(np.diff(found), 6564.6 * 500 / LIGHT, atol=1.2)


def test_labels_of_a_mixture_lie_between_its_stars(stars):
    table = load_library().table
    teff = {name: t for name, t in zip(table["name"], table["teff"]) if name.startswith("MaStar")}
    rows = np.flatnonzero(stars.table["library"] == "mastar")
    for t in stars.table[rows][:60]:
        low, high = sorted((teff[t["name"]], teff[t["second"]]))
        assert low * 0.999 <= t["teff"] <= high * 1.001


def test_turn_off_stars_dominate_and_all_kinds_occur(stars):
    counts = {kind: (stars.table["kind"] == kind).mean() for kind in set(stars.table["kind"])}
    assert max(counts, key=counts.get) == "turn-off" and not {"white dwarf", "cataclysmic"} & set(counts)
    classes = spectral_class(stars.table["teff"])
    assert {"A", "F", "G", "K", "M"} <= set(classes)


def test_held_out_stars_are_never_drawn_otherwise():
    names = [set(t["name"]) | set(t["second"]) for t in (mock_stars(400, 1, held_out=h).table for h in (False, True))]
    assert not names[0] & names[1] and all(map(is_held_out, names[1])) and len(names[1]) > 60


def test_shares_can_be_asked_for():
    table = mock_stars(80, 0, kinds={"hot": 3, "giant": 1}).table
    assert set(table["kind"]) == {"hot", "giant"} and 45 <= (table["kind"] == "hot").sum() <= 75
    assert table["logg"][table["kind"] == "giant"].max() < 3.9 and np.median(table["teff"][table["kind"] == "hot"]) > 10_000


# ------------------------------------------------------------------ masks and surveys


def test_preprocessing_takes_the_mock(stars):
    ready = preprocess(stars)
    assert ready.good.all() and (ready.flag == 0).all() and np.isfinite(ready.flux).all()
    norm = np.array([np.median(f[~m & (stars.wave > 5350) & (stars.wave < 5800)]) for f, m in zip(ready.flux, ready.mask)])
    assert abs(np.median(norm) - 1) < 0.02


def test_all_arms_are_covered_by_default_and_gaps_can_be_masked(stars):
    assert (~stars.mask).mean() > 0.99
    masked = mock_stars(300, 5, gaps="mask")
    np.testing.assert_array_equal(masked.id, stars.id[:300])
    miles = np.asarray(masked.table["library"] == "miles")
    optical = (masked.wave > 4000) & (masked.wave < 7300)
    assert masked.mask[miles][:, masked.wave > 7430].all() and masked.mask[miles][:, optical].mean() < 0.01
    assert (masked.ivar[masked.mask] == 0).all() and (masked.ivar[~masked.mask] > 0).all()
    same = ~masked.mask
    np.testing.assert_allclose(masked.flux[same], stars.flux[:300][same], rtol=1e-4, atol=1e-3)


def test_a_window_masks_everything_else(stars):
    seen = mock_stars(100, 5, window=(4000, 5000))
    inside = (seen.wave >= 4000) & (seen.wave <= 5000)
    assert seen.mask[:, ~inside].all() and (seen.ivar[:, ~inside] == 0).all()
    np.testing.assert_array_equal(seen.mask[:, inside], stars.mask[:100, inside])
    np.testing.assert_allclose(seen.flux[:, inside], stars.flux[:100, inside] * ~seen.mask[:, inside], rtol=1e-4, atol=1e-3)


def test_the_noise_is_the_one_quoted():
    bright = mock_stars(120, 8)
    truth = mock_stars(120, 8, "sdss")
    assert (bright.table["name"] == truth.table["name"]).all() and not set(bright.id) & set(truth.id)
    np.testing.assert_array_equal(bright.object_id, truth.object_id)
    smooth = np.flatnonzero((bright.wave > 5900) & (bright.wave < 7500))
    first, second = smooth[:-1:2], smooth[1::2]
    good = ~(bright.mask[:, first] | bright.mask[:, second])
    variance = 1 / bright.ivar[:, first][good] + 1 / bright.ivar[:, second][good]
    pull = (bright.flux[:, second] - bright.flux[:, first])[good] / np.sqrt(variance)
    assert 0.9 < 1.48 * np.median(abs(pull)) < 1.3  # lines of the stars add a little


@pytest.mark.parametrize("survey", ["sdss", "boss"])
def test_other_surveys_see_the_same_stars(survey, stars):
    seen = mock_stars(60, 5, survey)
    assert (seen.table["name"] == stars.table["name"][:60]).all() and preprocess(seen).good.all()
    wave = get_survey(survey).grid.wave
    assert seen.mask[:, wave > 9870].all()


@pytest.mark.parametrize("options, word", [
    ({"kinds": {"white dwarf": 1}}, "redrock"), ({"kinds": {"gaint": 1}}, "giant"), ({"gaps": "zero"}, "mask"),
    ({"templates": "phoenix"}, "redrock"), ({"n": 0}, "at least one"),
])
def test_bad_options_are_refused(options, word):
    with pytest.raises(ConfigError, match=word): mock_stars(**{"n": 3, **options})


def test_default_needs_no_mirror(monkeypatch):
    def no_mirror(name, **_): raise DataError(name)
    monkeypatch.setattr(libraries, "fetch", no_mirror)
    libraries.load_redrock.cache_clear()
    assert len(mock_stars(3)) == 3
    with pytest.raises(DataError, match="redrock_templates"): mock_stars(3, templates="redrock")


def test_classes_have_the_usual_limits():
    assert "".join(spectral_class([3500, 4500, 5800, 6500, 9000, 15000, 40000])) == "MKGFABO"


def test_norm_is_predicted_from_a_window(stars):
    part = mock_stars(200, 9, held_out=True, window=(4000, 5000))
    ready = normalise_window(part, stars)
    truth = preprocess(mock_stars(200, 9, held_out=True)).table["norm"]
    error = np.log(ready.table["norm"] / truth)
    assert 1.48 * np.median(abs(error)) < 0.06 and abs(np.median(error)) < 0.03 and ready.good.all()
    np.testing.assert_allclose(ready.flux * np.asarray(ready.table["norm"])[:, None], part.flux * ~ready.mask, rtol=1e-4)
    assert (preprocess(part).flag & Flag.NO_NORM).all(), "else nobody would need the prediction"


def test_norm_scales_with_the_flux_and_dark_rows_are_flagged(stars):
    part = stars[:4]
    double = part.replace(flux=2 * part.flux, ivar=part.ivar / 4)
    norm = normalise_window(part, stars).table["norm"]
    np.testing.assert_allclose(normalise_window(double, stars).table["norm"], 2 * norm, rtol=1e-5)
    dark = normalise_window(part.replace(flux=-abs(part.flux)), stars)
    assert (dark.flag & Flag.BAD_NORM).all() and np.isnan(dark.table["norm"]).all() and np.isfinite(dark.flux).all()


# ------------------------------------------------------------------ real data


@pytest.mark.real
def test_white_dwarfs_come_from_redrock(mirror):
    libraries.load_redrock.cache_clear()
    seen = mock_stars(200, 0, templates="redrock", kinds={"white dwarf": 3, "cataclysmic": 1, "M dwarf": 1})
    compact = np.isin(seen.table["kind"], ["white dwarf", "cataclysmic"])
    assert (seen.table["library"][compact] == "redrock").all() and {"redrock", "mastar"} <= set(seen.table["library"][~compact])
    library = libraries.load_redrock()
    assert (library.flux >= 0).all() and torch.isfinite(torch.tensor(library.flux)).all()
    width = []  # hydrogen lines of white dwarfs are far broader than any of the libraries' A stars
    white = library.flux[["WD" in name for name in library.table["name"]]]
    for flux in (white, load_library().flux[abs(load_library().table["teff"] - 9000) < 500]):
        level = np.median(flux[:, (WAVE > 4960) & (WAVE < 5000)], axis=1)
        width.append(np.quantile(1 - flux[:, (WAVE > 4893) & (WAVE < 4908)].mean(1) / level, 0.9))
    assert width[0] > 2 * width[1]


@pytest.mark.real
def test_real_stars_lie_within_reach_of_the_libraries(mirror):
    "The best library star with dust and a cubic leaves little of a real DESI star of class A to K."
    data = np.load(mirror / "desi_dr1_stars" / "stars_4000_5000.npz")
    rows = np.flatnonzero((data["median_snr"] > 15) & np.isin(data["bin"], list("AFGK")))
    residual = best_residual(data["wave"], data["flux"][rows], data["ivar"][rows], load_library().flux)
    assert np.median(residual) < 0.03


@pytest.mark.real
def test_white_dwarf_templates_bring_hot_stars_within_reach(mirror):
    data = np.load(mirror / "desi_dr1_stars" / "stars_4000_5000.npz")
    rows = np.flatnonzero((data["median_snr"] > 15) & np.isin(data["bin"], list("OB")))
    star = [data["wave"], data["flux"][rows], data["ivar"][rows]]
    libraries.load_redrock.cache_clear()
    without, white = best_residual(*star, load_library().flux), best_residual(*star, libraries.load_redrock().flux)
    assert np.median(white) < 0.03 < 0.04 < np.median(without)


@pytest.mark.real
@pytest.mark.parametrize("letter, low, high", [("G", 0.007, 0.015), ("K", 0.009, 0.018), ("M", 0.02, 0.06)])
def test_what_the_resolution_of_miles_costs(mirror, letter, low, high):
    "rms between 2.5 Å FWHM and DESI's resolution in 4000-5000 Å, from templates of 0.1 Å."
    with fits.open(mirror / "redrock_templates" / f"rrtemplate-STAR-{letter}-v0.1.fits") as hdus:
        flux = hdus[1].data[::40].astype(float) @ hdus[0].data[:, 9500:20500]  # 3950-5050 Å
    flux = flux[(flux > 0).all(1)][:30]
    sigma = DESI.sigma_kms(4500) * 4500 / LIGHT
    here, there = (gaussian_filter1d(flux, s / 0.1, axis=1)[:, 500:-500] for s in (sigma, 2.5 / 2.3548))
    assert low < np.median(np.std(there / here - 1, axis=1)) < high


def best_residual(wave, flux, ivar, library):
    "(n,) smallest rms of data/model - 1 beyond the noise over library stars and velocities, a cubic in wavelength free."
    smooth = lambda x: gaussian_filter1d(x, 1.2, axis=1)  # of both: DESI's pixels of 0.8 Å to about 2.5 Å FWHM
    data, best = smooth(flux.astype(float)), np.full(len(flux), np.inf)
    noise = np.array([np.median(1 / i[i > 0]) for i in ivar]) / np.median(data, axis=1) ** 2 / (2 * np.sqrt(np.pi) * 1.2)
    data /= np.median(data, axis=1, keepdims=True)
    basis = np.vander(np.linspace(-1, 1, len(wave)), 4)
    for v in range(-8, 9):
        shifted = np.array([np.interp(wave / (1 + v * 50 / LIGHT), WAVE, f) for f in library[::2]])
        q = np.linalg.qr(shifted[:, :, None] * basis)[0]
        part = np.einsum("klc,nl->nkc", q, data)
        left = (data**2).sum(1)[:, None] - (part**2).sum(2)
        best = np.minimum(best, left.min(1) / len(wave))
    return np.sqrt(np.maximum(best - noise, 0))
