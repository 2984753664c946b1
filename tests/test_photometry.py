"""The NASA-Sloan Atlas and mock photometry: states, flags, cuts, masses, errors; a simulator with an exact likelihood."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from astropy.table import Table
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest, norm

from spectral_core.archives.fits import write_fits
from spectral_core.archives.nsa import (
    DETECTED,
    LIMIT,
    MISSING,
    SDSS_BITS,
    clean_photometry,
    from_nanomaggies,
    limit_magnitude,
    mass_steps,
    nsa_mass,
    nsa_photometry,
    quality_cuts,
    read_nsa,
    read_photo_flags,
)
from spectral_core.core import ConfigError, DataError, Flag, RunError, generator
from spectral_core.simulate.photonoise import (
    FLOORS,
    MAX_SIGMA,
    catalogue_r,
    catalogue_redshift,
    make_nsa_noise,
    noisy_magnitudes,
    nsa_noise,
    paper_errors,
    robust_errors,
)
from spectral_core.simulate.photosurvey import PhotometricSample, mock_photometry
from spectral_core.simulate.priors import Prior

rng = generator("test", "photometry")


# ------------------------------------------------------------------ the atlas


def columns(n: int = 6) -> dict[str, np.ndarray]:
    "An atlas in the published layout, made up."
    mags = 17 + rng.normal(0, 1, (n, 7))
    flux = 10 ** (-0.4 * (mags - 22.5))
    names = np.array([f"J{i:04d}" for i in range(n)])
    return {"NSAID": np.arange(n, dtype="i4"), "IAUNAME": names, "RA": 150 + np.arange(n) * 0.1, "DEC": np.zeros(n),
            "Z": np.full(n, 0.03, "f4"), "ZDIST": np.full(n, 0.031, "f4"), "NMGY": flux.astype("f4"),
            "NMGY_IVAR": ((1.0857 / 0.03 / flux) ** 2).astype("f4"), "MASS": np.full(n, 1e9, "f4")}


def test_published_fits_and_npz_give_the_same_table(tmp_path):
    made = columns()
    fits = read_nsa(write_fits(tmp_path / "nsa_v0_1_2.fits", {}, {"NSA": made}))
    np.savez(tmp_path / "nsa.npz", **{name.lower(): value for name, value in made.items()})
    npz = read_nsa(tmp_path / "nsa.npz")
    assert fits.colnames == npz.colnames and len(fits) == 6
    for name in fits.colnames: assert (fits[name] == npz[name]).all()
    assert fits["nmgy"].dtype.isnative  # torch takes no other
    np.testing.assert_allclose(nsa_photometry(fits).sigma, 0.03, rtol=1e-4)


def test_parts_join_and_repeated_galaxies_count_once(tmp_path):
    made = columns()
    parts = [{name: value[rows] for name, value in made.items()} for rows in (slice(0, 4), slice(2, 6))]
    paths = [write_fits(tmp_path / f"{i}.fits", {}, {"NSA": part}) for i, part in enumerate(parts)]
    assert list(read_nsa(paths)["nsaid"]) == list(range(6))


@pytest.mark.parametrize("spoil, message", [
    (lambda c: c.pop("NMGY_IVAR"), "lacks nmgy_ivar"),
    (lambda c: c.pop("NMGY"), "lacks ra, dec, z, nmgy"),  # without fluxes no table is the atlas'
    (lambda c: c.update(NMGY=c["NMGY"][:, :5]), "one column for each of FNugriz"),
])
def test_fault_3_another_layout_is_refused(tmp_path, spoil, message):
    made = columns()
    spoil(made)
    with pytest.raises(DataError, match=message): read_nsa(write_fits(tmp_path / "a.fits", {}, {"NSA": made}))


@pytest.mark.parametrize("name", ["cut.npz", "cut.fits"])
def test_fault_1_truncated_files_are_refused(tmp_path, name):
    whole = write_fits(tmp_path / "a.fits", {}, {"NSA": columns()})
    if name.endswith("npz"):
        np.savez(tmp_path / "a.npz", **{key.lower(): value for key, value in columns().items()})
        whole = tmp_path / "a.npz"
    (tmp_path / name).write_bytes(whole.read_bytes()[:-3000])
    with pytest.raises(DataError, match=name): read_nsa(tmp_path / name)


def test_nothing_to_read():
    with pytest.raises(DataError, match="empty list"): read_nsa([])


# ------------------------------------------------------------------ states and flags


@pytest.mark.parametrize("mags, sigma, z, reasons, state", [
    ([18, 17, 16, 16, 16], [0.1] * 5, 0.03, "", [0, 0, 0, 0, 0]),
    ([18, np.nan, 16, 99, 16], [0.1, np.nan, 0.1, -99, 0.1], 0.03, "", [0, 2, 0, 2, 0]),
    ([18, np.inf, 16, -999, 16], [0.1] * 5, 0.03, "", [0, 2, 0, 2, 0]),
    ([18, 17, 16, 16, 16], [0.1, 0, 0.1, 0.1, 0.1], 0.03, "BAD_IVAR", [0, 2, 0, 0, 0]),
    ([18, 17, 16, 16, 16], [0.1, -1, 0.1, 0.1, 0.1], 0.03, "BAD_IVAR", [0, 2, 0, 0, 0]),
    ([18, 17, 16, 16, 16], [0.1, np.nan, np.inf, 0.1, 0.1], 0.03, "BAD_IVAR", [0, 2, 2, 0, 0]),
    ([18, 17, np.nan, np.nan, np.nan], [0.1] * 5, 0.03, "NODATA", [0, 0, 2, 2, 2]),
    ([np.nan] * 5, [np.nan] * 5, 0.03, "NODATA", [2] * 5),
    *[([18, 17, 16, 16, 16], [0.1] * 5, z, "BAD_Z", [0] * 5) for z in (np.nan, np.inf, -1, 0, 0.7, 1000)],
])
def test_fault_46_bad_photometry_is_flagged_not_dropped(mags, sigma, z, reasons, state):
    row = clean_photometry(mags, sigma, z)
    assert Flag.reasons(row.flag[0]) == reasons and row.good[0] == (not reasons)
    assert row.state[0].tolist() == state
    assert np.isfinite(row.mags).all() and (row.sigma > 0).all() and np.isfinite(row.sigma).all()


def test_limits_alone_are_no_detection():
    row = clean_photometry([20] * 5, [0.6] * 5, 0.03, state=[1] * 5)
    assert Flag.reasons(row.flag[0]) == "NODATA"
    assert clean_photometry([20] * 5, [0.6] * 5, 0.03, state=[1, 1, 0, 2, 2]).good[0]


five_numbers = st.lists(st.floats(width=32), min_size=5, max_size=5)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(five_numbers, five_numbers, st.floats(width=32))
def test_whatever_comes_in_finite_numbers_or_flags_come_out(flux, ivar, z):
    row = from_nanomaggies(flux, ivar, [z])
    assert np.isfinite(row.mags).all() and (row.sigma > 0).all() and np.isfinite(row.sigma).all()
    if row.good[0]: assert (row.state != MISSING).sum() >= 3 and (row.state == DETECTED).any() and 0 < row.z[0] < 1


def test_magnitudes_of_fluxes():
    row = from_nanomaggies([[1, 10, 100, 1000, 1e4]], [[1e4, 100, 1, 0.01, 1e-4]], [0.03])
    np.testing.assert_allclose(row.mags[0], [22.5, 20, 17.5, 15, 12.5], rtol=1e-6)
    np.testing.assert_allclose(row.sigma[0], 2.5 / np.log(10) * 0.01, rtol=1e-5)


def test_weak_flux_becomes_a_limit_and_an_unobserved_one_is_missing():
    row = from_nanomaggies([[100, 100, 100, 1.9, -5], [100, 100, 100, 2.1, 3]], [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]], [0.03, 0.03])
    assert row.state.tolist() == [[0, 0, 0, LIMIT, LIMIT], [0, 0, 0, 0, MISSING]]
    assert row.mags[0, 3] < row.mags[0, 4]  # the more negative the flux, the fainter the galaxy must be


@pytest.mark.parametrize("k", [-2.0, -0.5, 0.0, 1.0, 1.9])
def test_limit_has_the_half_point_and_slope_of_the_exact_likelihood(k):
    limit, softness = limit_magnitude(np.array(k * 3.0), np.array(3.0))
    exact = lambda m: np.exp(-0.5 * ((10 ** (-0.4 * (m - 22.5)) / 3 - k) ** 2 - k**2))
    h = 1e-5
    assert exact(limit) == pytest.approx(0.5, abs=1e-9)
    assert (exact(limit + h) - exact(limit - h)) / (2 * h) == pytest.approx(norm.pdf(0) / softness, rel=1e-6)


# ------------------------------------------------------------------ cuts and masses


def atlas(n: int = 8) -> Table:
    return Table({name.lower(): value for name, value in columns(n).items()})


@pytest.mark.parametrize("names, kept", [
    (["BINNED1"], True), ([], False), (["BINNED1", "CR"], True), (["BINNED1", "INTERP_CENTER"], True),
    (["BINNED1", "INTERP_CENTER", "CR"], False),
    *[(["BINNED1", name], False) for name in ("PEAKCENTER", "NOTCHECKED", "PSF_FLUX_INTERP")],
    *[(["BINNED1", name], False) for name in ("BAD_COUNTS_ERROR", "SATURATED", "NOPROFILE")],
])
def test_each_flag_cuts_as_the_paper_says(names, kept):
    table = atlas()
    flags = np.full(8, 1 << SDSS_BITS["BINNED1"], np.int64)
    flags[3] = sum(1 << SDSS_BITS[name] for name in names)
    rows, counts = quality_cuts(table, Table({"ra": table["ra"], "dec": table["dec"], "flags": flags}))
    assert (3 in rows) == kept and len(rows) == 7 + kept
    assert counts["before"][0] == 8 and counts["left"][-1] == len(rows) and counts["removed"].sum() == 8 - len(rows)


def test_cuts_without_flags_say_so_and_still_ask_for_magnitudes():
    table = atlas()
    table["nmgy"][2, 6] = -1
    table["nmgy"][3, 0] = -1  # F is not one of ugriz
    rows, counts = quality_cuts(table)
    assert "not in these rows" in counts["cut"][0] and counts["removed"].tolist() == [0, 1] and 2 not in rows


def test_unmatched_rows_are_counted(tmp_path):
    table = atlas()
    path = tmp_path / "flags.csv"
    lines = [f"{i},{ra},{1 / 3600},{1 << 28 | 1 << 62}" for i, ra in enumerate(table["ra"][:5])]
    path.write_text("\n".join(["objID,ra,dec,flags", *lines]))
    flags = read_photo_flags(path)
    rows, counts = quality_cuts(table, flags)
    assert rows.tolist() == [0, 1, 2, 3, 4] and counts["removed"][0] == 3
    assert len(quality_cuts(table, flags, radius=0.5)[0]) == 0
    path.write_text("objID,ra,dec,flags\n1,150,0,1.5e18\n")
    with pytest.raises(DataError, match="no integers"): read_photo_flags(path)


def test_mass_steps_take_the_conventions_apart():
    table = atlas()
    table["mass"] = 10 ** rng.normal(9.5, 0.5, 8)
    truth = nsa_mass(table)
    np.testing.assert_allclose(truth, np.log10(table["mass"]) - 2 * np.log10(0.6777) + 2 * np.log10(table["z"] / table["zdist"]))
    steps = mass_steps(table, truth + 0.2, truth)
    assert steps["offset"][-1] == pytest.approx(0, abs=1e-9) and steps["scatter"][-1] == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(np.diff(steps["offset"]), [-0.2, 2 * np.log10(0.6777), 0, -2 * np.log10(0.03 / 0.031)], atol=1e-5)
    table["mass"][0] = 0
    assert np.isnan(nsa_mass(table)[0]) and mass_steps(table, truth, truth)["n"][0] == 7
    with pytest.raises(ConfigError, match="zdist"): nsa_mass(table, distance="cz")


# ------------------------------------------------------------------ errors


def test_errors_respect_floors_rows_and_order():
    r = torch.linspace(11, 21, 3000)
    seeds = torch.arange(3000)
    sigma = robust_errors(r, seeds)
    assert (sigma >= torch.tensor(FLOORS)).all() and (sigma <= MAX_SIGMA).all()
    order = torch.randperm(3000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(robust_errors(r[order], seeds[order]), sigma[order])
    assert not torch.equal(robust_errors(r, seeds + 3000), sigma)
    assert robust_errors(r.double(), seeds).dtype == torch.float64


def test_catalogue_distributions_are_monotone_and_cover():
    u = torch.linspace(0, 0.9999, 2001, dtype=torch.float64)
    for draw, known in ((catalogue_redshift, nsa_noise()["z_quantiles"]), (catalogue_r, nsa_noise()["mags"][:, 2])):
        value = draw(u)
        assert (value[u < 0.85].diff() >= 0).all() and value.min() <= known.min() and value.max() >= known.max()


def test_paper_noise_has_the_flaws_of_the_paper():
    mags = nsa_noise()["mags"]
    sigma = paper_errors(mags, torch.arange(len(mags)))
    assert sigma.isnan().any() and (sigma[~sigma.isnan()] > 0).all() and sigma.nan_to_num().max() > 5
    assert robust_errors(mags[:, 2], torch.arange(len(mags))).max() <= MAX_SIGMA


def test_noise_table_from_too_few_rows(tmp_path):
    few = write_fits(tmp_path / "a.fits", {}, {"NSA": columns(50)})
    with pytest.raises(DataError, match="100 are needed"): make_nsa_noise(few)


def test_noise_table_can_be_made_again(tmp_path):
    made = make_nsa_noise(write_fits(tmp_path / "a.fits", {}, {"NSA": columns(400)}), tmp_path / "out.safetensors")
    assert (tmp_path / "out.safetensors").stat().st_size < 100_000
    assert made["mags"].shape == (400, 5) and (np.diff(made["mags"][:, 2]) >= 0).all() and made["z_quantiles"].shape == (257,)


# ------------------------------------------------------------------ the simulator


class Toy:
    "Magnitudes linear in theta, weakly, so that the prior itself is a fair proposal for the posterior."

    slope = 0.06 * torch.tensor(generator("toy slopes").normal(size=(10, 5)))
    width = torch.tensor([1, 1, 1, 1, 13.3, 2.5, 2.5, 3, 3, 3])  # of the prior
    calls = 0

    def magnitudes(self, theta, z):
        Toy.calls += len(theta)
        level = torch.tensor([18.5, 17.0, 16.2, 15.9, 15.7]) + 5 * torch.log10(z / 0.03)[:, None]
        return (level - 2.5 * (theta[:, :1] - 10) + (theta[:, 1:] / self.width.to(theta)) @ self.slope.to(theta)).to(theta)


def posterior_ranks(sample: PhotometricSample, n: int = 8000, seed: int = 0) -> np.ndarray:
    "(rows, 11) share of the exact posterior below the truth, by brute force: draws from the prior, weighted with the likelihood."
    prior, toy, out = sample.recipe.prior, Toy(), []
    random = torch.Generator().manual_seed(seed)
    for i in range(len(sample)):
        mags, sigma, state, z = (getattr(sample, name)[i].double() for name in ("mags", "sigma", "state", "z"))
        theta = prior.from_unit(torch.rand(n, 11, dtype=torch.float64, generator=random), z.expand(n))
        window = 2 * torch.rand(n, dtype=torch.float64, generator=random) - 1  # a uniform prior is uniform in any window
        theta[:, 0] = 10
        seen = torch.where(state == DETECTED, sigma, torch.inf).argmin()
        centre = 10 + 0.4 * (toy.magnitudes(theta, z.expand(n))[:, seen] - mags[seen])
        theta[:, 0] = centre + 2 * sigma[seen] * window  # beyond five sigma of this band there is nothing
        residual = (toy.magnitudes(theta, z.expand(n)) - mags) / sigma
        of_limit = torch.where(state == LIMIT, torch.special.log_ndtr(residual), 0)
        ln = torch.where(state == DETECTED, -0.5 * residual**2, of_limit).sum(1)
        low, high = prior.log_mstar
        weight = torch.where((theta[:, 0] >= low) & (theta[:, 0] <= high), ln, -torch.inf).softmax(0)
        out.append(((theta < sample.theta[i].double()) * weight[:, None]).sum(0).numpy())
    return np.array(out)


def uniform(ranks: np.ndarray) -> float:
    "The smallest KS p-value over parameters."
    return min(kstest(ranks[:, k], "uniform").pvalue for k in range(ranks.shape[1]))


@pytest.fixture(scope="module")
def hard() -> PhotometricSample:
    "Many gaps and limits, and a prior on the mass that cuts the catalogue."
    return mock_photometry(300, seed=3, model=Toy(), prior=Prior(log_mstar=(9.4, 10.4)), missing=0.2, limits=0.2)


def test_the_simulators_posterior_is_prior_times_likelihood(hard):
    assert (hard.state == LIMIT).any() and (hard.state[:, 2] == MISSING).any()
    assert uniform(posterior_ranks(hard)) > 0.001


def test_it_stays_so_when_observed_again(hard):
    assert uniform(posterior_ranks(hard.renoise(5))) > 0.001


@pytest.mark.parametrize("wrong", ["brighter", "errors", "limits"])
def test_what_is_wrong_would_be_noticed(hard, wrong):
    "The test above has power: against a zero point off by 0.05 mag, errors too small, limits taken for detections."
    detected = hard.state == DETECTED
    changed = {"brighter": {"mags": hard.mags - 0.05}, "errors": {"sigma": torch.where(detected, hard.sigma / 3, hard.sigma)},
               "limits": {"state": torch.where(hard.state == LIMIT, DETECTED, hard.state)}}
    assert uniform(posterior_ranks(replace(hard, **changed[wrong]))) < 0.001


def test_rows_do_not_depend_on_how_many_there_are():
    many, few = (mock_photometry(n, seed=4, model=Toy()) for n in (5000, 70))
    for name in ("theta", "free", "mags", "sigma", "state", "z"):
        torch.testing.assert_close(getattr(many, name)[:70], getattr(few, name), atol=1e-5, rtol=1e-5)
    assert not torch.equal(many.z[:70], many.z[70:140])
    assert not torch.equal(mock_photometry(70, seed=5, model=Toy()).mags, few.mags)


def test_noise_is_what_the_errors_say_and_nothing_leaves_the_prior():
    sample = mock_photometry(4000, seed=6, model=Toy(), prior=Prior("code"))
    true = Toy().magnitudes(sample.theta, sample.z)
    chi = ((sample.mags - true) / sample.sigma)[sample.state == DETECTED]
    assert abs(chi.mean()) < 0.03 and abs(chi.std() - 1) < 0.03
    prior = sample.recipe.prior
    unit = prior.to_unit(sample.theta.double(), sample.z)
    assert (unit > -1e-6).all() and (unit < 1 + 1e-6).all() and sample.free.isfinite().all()
    torch.testing.assert_close(prior.from_free(sample.free.double(), sample.z), sample.theta.double(), atol=2e-5, rtol=1e-4)
    assert ((sample.state == MISSING).double().mean() - 0.05).abs() < 0.006
    missing = sample.state == MISSING
    assert (sample.mags[missing] == 0).all() and (sample.sigma[missing] == 1).all()


def test_observing_again_asks_no_model_and_keeps_shapes():
    sample = mock_photometry(1000, seed=7, model=Toy())
    before = Toy.calls
    again = sample.renoise(1)
    assert Toy.calls == before
    torch.testing.assert_close(again.mags, sample.renoise(1).mags)
    assert not torch.equal(again.sigma, sample.renoise(2).sigma)
    kept = (again.theta[:, 1:] == sample.first.theta[:, 1:]).all(1)
    assert kept.double().mean() > 0.6
    torch.testing.assert_close(again.z[kept], sample.first.z[kept])


def test_given_redshifts_precision_and_slices():
    z = np.linspace(0.01, 0.05, 64)
    sample = mock_photometry(64, model=Toy(), z=z, dtype=torch.float64)
    assert np.array_equal(sample.z, z) and sample.theta.dtype == sample.mags.dtype == torch.float64
    assert len(sample[3]) == 1 and len(sample[10:20]) == 10 and len(sample[-1]) == 1
    assert torch.equal(sample[torch.tensor([5, 2])].theta, sample.theta[[5, 2]])
    assert len(sample[:10].renoise(1)) == 10 and len(sample.to("cpu")) == 64


def test_the_papers_set_is_fixed_and_detected_everywhere():
    sample = mock_photometry(600, seed=8, model=Toy(), noise="paper")
    assert sample.renoise(3) is sample and (sample.state == DETECTED).all()
    assert sample.z.max() > 0.19 and sample.mags.isfinite().all() and (sample.sigma > 0).all()


@pytest.mark.parametrize("wrong, error, message", [
    ({"n": 0}, ConfigError, "n ≥ 1"), ({"noise": "poisson"}, ConfigError, "'robust' or 'paper'"),
    ({"missing": -0.1}, ConfigError, "probabilities"),
    ({"limits": 0.6}, ConfigError, "probabilities"), ({"z": [0.1, 0.2]}, ConfigError, "2 redshifts"),
    ({"prior": Prior(log_mstar=(1.0, 1.5))}, RunError, "widen the prior"),
])
def test_impossible_mocks_are_refused(wrong, error, message):
    with pytest.raises(error, match=message): mock_photometry(**{"n": 5, "model": Toy()} | wrong)


# ------------------------------------------------------------------ real data


@pytest.fixture(scope="module")
def real(mirror) -> Table:
    return read_nsa(mirror / "nsa" / "nsa_lcs_subset.npz")


@pytest.mark.real
def test_real_atlas(real):
    photometry = nsa_photometry(real)
    assert len(real) == len(photometry.z) > 2000 and photometry.good.mean() > 0.995
    detected = photometry.state == DETECTED
    assert (photometry.sigma[detected].max() < 0.545) and detected.all(1).mean() > 0.98
    floor = np.array([photometry.sigma[detected[:, b], b].min() for b in range(5)])
    np.testing.assert_allclose(floor, FLOORS, rtol=0.01)
    assert ((photometry.z > 0.013) & (photometry.z < 0.044)).all()
    rows, counts = quality_cuts(real)
    assert len(real) - 5 < len(rows) < len(real) and "no cut" in counts["cut"][0]


@pytest.mark.real
def test_real_masses_are_plausible(real):
    mass = nsa_mass(real)
    assert np.isfinite(mass).all() and 6.5 < mass.min() and mass.max() < 12.1
    light = nsa_photometry(real).mags[:, 2]
    assert np.corrcoef(mass, light)[0, 1] < -0.8  # bright is massive, at these redshifts


@pytest.mark.real
def test_shipped_table_is_what_the_command_makes(mirror):
    made, shipped = make_nsa_noise(mirror / "nsa" / "nsa_lcs_subset.npz"), nsa_noise()
    assert set(made) == set(shipped)
    for name, values in made.items(): np.testing.assert_allclose(values.astype("f4"), shipped[name].numpy(), rtol=2e-3, atol=2e-3)


@pytest.mark.real
def test_mocks_look_like_the_atlas(real):
    photometry = nsa_photometry(real)
    sample = mock_photometry(4000, seed=9, model=Toy(), missing=0, limits=0)
    near = sample.mags[:, 2] < 18
    for b in range(5):
        drawn, known = (np.quantile(sigma, (0.16, 0.5, 0.84)) for sigma in (sample.sigma[near, b], photometry.sigma[:, b]))
        np.testing.assert_allclose(drawn, known, rtol=0.12)
    assert abs(np.median(sample.mags[:, 2]) - np.median(photometry.mags[:, 2])) < 0.15
    noise = noisy_magnitudes(torch.zeros(4000, 5), sample.sigma, torch.arange(4000)) / sample.sigma
    assert abs(noise.std() - 1) < 0.02
