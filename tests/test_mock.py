"""The mock survey: rows that are their own, truth that is in the spectra, the same galaxy seen again."""

import numpy as np
import pytest

from spectral_core.archives.sdss import read_sdss, write_sdss
from spectral_core.core import ConfigError, SpectrumError
from spectral_core.simulate.galaxy import observed
from spectral_core.simulate.mock import BLOCK, matched_mock, mock_blocks, mock_survey, reobserve
from spectral_core.simulate.population import luminosity_distance
from spectral_core.spectra.container import concatenate
from spectral_core.spectra.lines import d4000n, equivalent_width
from spectral_core.spectra.preprocessing import preprocess
from spectral_core.spectra.surveys import DESI, SDSS

N = BLOCK + 44


@pytest.fixture(scope="module")
def mock():
    return mock_survey("sdss", n=N, seed=5)


def assert_same_rows(a, b):
    "The same observations, to what another size of matrix product may change."
    for name in ("id", "object_id", "mask", "z", "flag"): np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    scale = np.median(np.abs(b.flux), axis=1, keepdims=True)
    np.testing.assert_allclose(a.flux / scale, b.flux / scale, atol=1e-3)
    np.testing.assert_allclose(a.ivar, b.ivar, rtol=1e-3)
    assert a.table.colnames == b.table.colnames
    for name in a.table.colnames:
        if a.table[name].dtype.kind != "f": continue
        np.testing.assert_allclose(a.table[name], b.table[name], rtol=2e-3, atol=2e-3, err_msg=name)


# ---- rows


@pytest.mark.parametrize("n", [1, 20, BLOCK, BLOCK + 1])
def test_row_i_does_not_depend_on_n(mock, n):
    assert_same_rows(mock_survey("sdss", n=n, seed=5), mock[:n])


def test_blocks_are_the_survey_and_seeds_other_surveys(mock):
    parts = list(mock_blocks("sdss", N, 5))
    assert [len(p) for p in parts] == [BLOCK, N - BLOCK]
    assert_same_rows(concatenate(parts), mock)
    other = mock_survey("sdss", n=40, seed=6)
    assert not set(other.id) & set(mock.id) and not set(other.object_id) & set(mock.object_id)
    assert not np.isin(other.z, mock.z).any()
    clean = sum(observed(mock.table[:8], mock.z[:8])).numpy()
    pull = np.diff((mock.flux[:8] - clean) * np.sqrt(mock.ivar[:8]))[:, 100:3800]  # of neighbours: calibration is smooth
    together = np.corrcoef(np.where(mock.mask[:8, 101:3801] | mock.mask[:8, 100:3800], 0, pull))
    assert np.abs(together - np.eye(8)).max() < 0.15, "each row has noise of its own"


def test_every_survey_sees_the_same_galaxies(mock):
    desi = mock_survey("desi", n=3, seed=5)
    assert desi.survey == DESI and (desi.object_id == mock.object_id[:3]).all() and not set(desi.id) & set(mock.id)
    for name in ("z", "log_mass", "flux_halpha", "d4000", "a_v"):
        np.testing.assert_allclose(desi.table[name], mock.table[name][:3], rtol=1e-3)
    here, there = (preprocess(s) for s in (mock[:3], desi))
    for a, b in zip(here, there):
        grid = np.arange(4300, 8800, 150.0)  # broad bins: beyond noise, calibration agrees to a few percent
        level = [np.array([np.median(s.flux[0][(np.abs(s.wave - w) < 75) & ~s.mask[0]]) for w in grid]) for s in (a, b)]
        assert np.median(np.abs(level[0] / level[1] - 1)) < 0.12


def test_a_mock_is_clean_and_knows_its_truth(mock):
    assert mock.good.all() and len(set(mock.id)) == len(set(mock.object_id)) == N and (mock.id >= 0).all()
    assert (mock.z == mock.table["z"]).all() and ((mock.z > 0) & (mock.z < 0.51)).all()
    for name in mock.table.colnames:
        if mock.table[name].dtype.kind == "f": assert np.isfinite(mock.table[name]).mean() > 0.95, name
    assert (mock.table["log_mass"] < mock.table["log_mass_formed"]).all()
    assert (mock.table["age_light"] < 14).all() and (mock.table["log_z"] <= 0.40).all()
    np.testing.assert_allclose(mock.table["sn"], mock.sn)


def test_options_that_make_no_sense(mock):
    with pytest.raises(ConfigError, match="at least one row"): mock_survey(n=0)
    with pytest.raises(ConfigError, match="n ≥ 0"): mock_survey(n=-3)
    with pytest.raises(ConfigError, match="did you mean 'sdss'"): mock_survey("sdsss", n=3)
    with pytest.raises(ConfigError, match="did you mean bright"): mock_survey(n=3, population="brigt")
    with pytest.raises(ConfigError, match="share between 0 and 1"): mock_survey(n=3, broad_line="many")
    bare = mock[:2].replace(table=mock[:2].table[["z"]])
    with pytest.raises(SpectrumError, match="mock truth"): reobserve(bare)
    with pytest.raises(ConfigError, match="possible: .* to"): reobserve(mock[:2], z=2.5)


def test_type_1_nuclei_come_as_asked():
    share = lambda b: np.mean(mock_survey(n=64, seed=9, broad_line=b).table["class"] == "broad-line")
    assert share(0.0) == 0 and share(1.0) > 0.4 and share("survey") < 0.03


# ---- truth


def test_the_truth_is_in_the_spectra(mock):
    "Seen again at a S/N of 300: 4000 Å break and equivalent widths measured on the spectra are those of the table."
    rows = np.flatnonzero((mock.z < 0.3) & (mock.table["class"] != "broad-line") & (mock.table["sigma_v"] < 200))[:60]
    seen = reobserve(mock[rows], sn=300.0)
    good = ~seen.mask
    breaks = d4000n(seen.wave, seen.flux, z=seen.z, good=good)
    assert np.nanmedian(np.abs(breaks / seen.table["d4000"] - 1)) < 0.03  # calibration tilts it by as much
    ew = equivalent_width(seen.wave, seen.flux, "oiii_5007", z=seen.z, good=good)
    strong = np.isfinite(ew) & (seen.table["ew_oiii_5007"] > 5)
    assert strong.sum() > 5 and np.median(ew[strong] / seen.table["ew_oiii_5007"][strong]) == pytest.approx(1, abs=0.1)


def test_the_truth_moves_with_the_galaxy(mock):
    "Farther away: fluxes fall with the square of the distance, what a galaxy is stays."
    near = mock[:6]
    far = reobserve(near, z=0.25)
    ratio = (luminosity_distance(near.z) / luminosity_distance(0.25)) ** 2
    np.testing.assert_allclose(far.table["flux_halpha"], near.table["flux_halpha"] * ratio, rtol=1e-9)
    np.testing.assert_allclose(far.table["r"], near.table["r"] - 2.5 * np.log10(ratio), rtol=1e-9)
    for name in ("log_mass", "sfr_100", "d4000", "ew_halpha", "a_v", "class"):
        assert (far.table[name] == near.table[name]).all(), name
    assert (far.z == 0.25).all() and (near.table["z"] == near.z).all(), "the mock itself is as it was"


# ---- the same galaxy again


def test_a_second_look_has_new_noise_and_the_same_galaxy(mock):
    few = mock[:40]
    one, same, two = reobserve(few, seed=1), reobserve(few, seed=1), reobserve(few, seed=2)
    assert_same_rows(one, same)
    assert (one.object_id == few.object_id).all()
    ids = [*few.id, *one.id, *two.id]
    assert len(set(ids)) == 120
    both = ~(one.mask | two.mask)
    sigma = np.sqrt(1 / np.where(both, one.ivar, 1) + 1 / np.where(both, two.ivar, 1))
    pull = np.diff(one.flux - two.flux, axis=1) / np.sqrt(2) / sigma[:, 1:]  # differences of neighbours: no calibration
    assert 0.6 < np.std(pull[both[:, 1:] & both[:, :-1]]) < 1.1
    alone = reobserve(few[7:8], seed=1)
    assert abs(alone.flux - one.flux[7:8]).max() > 0, "the noise is drawn for the request as a whole"


@pytest.mark.parametrize("survey", ["sdss", "boss", "desi"])
def test_signal_to_noise_is_what_was_asked_for(mock, survey):
    wanted = np.array([3.0, 10.0, 30.0] * 8)
    seen = reobserve(mock[:24], survey=survey, z=0.12, sn=wanted)
    assert seen.survey.name == survey and (seen.z == 0.12).all()
    for sn in (3.0, 10.0, 30.0): assert np.median(seen.sn[wanted == sn]) == pytest.approx(sn, rel=0.15)


def test_matched_galaxies_have_the_given_redshift_and_noise():
    z, sn = np.array([0.04, 0.1, 0.3]), np.array([30.0, 12.0, 5.0])
    twins = matched_mock(z, sn, seed=1, per_object=12)
    assert (twins.z == np.repeat(z, 12)).all() and twins.table["match"].tolist() == np.repeat(np.arange(3), 12).tolist()
    for k in range(3): assert np.median(twins.sn[twins.table["match"] == k]) == pytest.approx(sn[k], rel=0.2)
    assert len(set(twins.object_id)) == 36
    for bad in ((np.nan, 5), (0.0, 5), (0.1, 0.0), (0.1, np.inf)):
        with pytest.raises(SpectrumError, match="finite z > 0.001 and S/N > 0"): matched_mock(*np.array(bad)[:, None])


def test_files_written_from_a_mock_are_read_back_unchanged(mock, tmp_path):
    few = mock[:10]
    write_sdss(few, tmp_path)
    back = read_sdss(tmp_path)
    back = back[np.argsort(back.id)]
    few = few[np.argsort(few.id)]
    assert back.survey == SDSS
    for name in ("id", "flux", "ivar", "mask", "z", "flag"):
        np.testing.assert_array_equal(getattr(back, name), getattr(few, name), err_msg=name)
