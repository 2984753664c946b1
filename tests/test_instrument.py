"""The instrument: its random numbers, its errors against the scatter of repeated draws, and SDSS's own sky fibres."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_core.core import DataError, SpectrumError
from spectral_core.simulate.counter import hashed_normals, hashed_uniforms, smooth_modes
from spectral_core.simulate.instrument import (
    add_noise,
    make_noise_template,
    missing_pixels,
    noise_model,
    noise_template,
    quoted_sigma,
    snr,
    telluric_depth,
)
from spectral_core.spectra.surveys import SDSS, get_survey

SURVEYS = ["sdss", "boss", "desi"]


def blank(n, survey="sdss"):
    return torch.zeros(n, get_survey(survey).grid.n)


def pixels(low, high, survey="sdss"):
    wave = get_survey(survey).grid.wave
    return torch.tensor((wave > low) & (wave < high))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 2**63 - 1), min_size=2, max_size=8, unique=True), st.integers(3, 60))
def test_a_deviate_depends_on_seed_and_column_alone(seeds, n):
    seeds = torch.tensor(seeds)
    together = hashed_normals(seeds, n)
    for row in (0, len(seeds) - 1):  # vectorised logarithms may differ in their last bit
        torch.testing.assert_close(hashed_normals(seeds[row : row + 1], n)[0], together[row], rtol=1e-5, atol=1e-5)
    assert torch.isfinite(together).all() and not torch.equal(together[0], together[1])


def test_uniforms_fill_the_unit_interval():
    x = hashed_uniforms(torch.arange(500), 200)
    assert 0 <= x.min() < 1e-4 and 1 - 1e-4 < x.max() < 1
    counts = torch.histc(x.float(), 10, 0, 1)
    assert ((counts - 1e4).square() / 1e4).sum() < 28, "chi2 of 9 degrees of freedom, p = 0.001"


def test_deviates_are_normal_and_independent():
    x = hashed_normals(torch.arange(300), 4001)
    assert abs(x.mean()) < 4e-3 and abs(x.var() - 1) < 6e-3
    assert abs((x.abs() > 3).float().mean() - 0.0027) < 3e-4
    for a, b in ((x[:, 1:], x[:, :-1]), (x[1:], x[:-1]), (x[:, :2000], x[:, 2001:])): assert abs((a * b).mean()) < 5e-3


@pytest.mark.parametrize("scale", [60, 300, 1100])
def test_smooth_modes_have_unit_variance_and_their_scale(scale):
    modes = smooth_modes(3921, scale)
    np.testing.assert_allclose((modes**2).sum(0), 1, rtol=1e-12)
    correlation = (modes[:, : 3921 - 3 * scale] * modes[:, 3 * scale :]).sum(0)
    assert correlation.max() < 0.1 < (modes[:, :-scale] * modes[:, scale:]).sum(0).min()


@pytest.mark.parametrize("survey", SURVEYS)
def test_a_row_does_not_depend_on_its_batch(survey):
    flux = 10 + torch.rand(150, get_survey(survey).grid.n, generator=torch.Generator().manual_seed(0))
    seeds = torch.arange(1000, 1150)
    together, alone = add_noise(flux, survey, seeds), add_noise(flux[140:141], survey, seeds[140:141])
    assert torch.equal(together[2][140], alone[2][0])
    for a, b in zip(together[:2], alone[:2]): torch.testing.assert_close(a[140], b[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("survey", SURVEYS)
def test_output_is_clean(survey):
    flux, ivar, mask = add_noise(blank(20, survey), survey, torch.arange(20))
    assert flux.dtype == ivar.dtype == torch.float32 and mask.dtype == torch.bool
    assert torch.isfinite(flux).all() and torch.isfinite(ivar).all()
    assert (flux[mask] == 0).all() and (ivar[mask] == 0).all() and (ivar[~mask] > 0).all()


@pytest.mark.parametrize("survey, low, high", [("sdss", 0.7, 0.9), ("boss", 0.7, 0.9), ("desi", 0.95, 1.1)])
def test_quoted_chi2_of_a_perfect_model(survey, low, high):
    flux, ivar, mask = add_noise(blank(300, survey), survey, torch.arange(300))
    chi2 = (flux**2 * ivar).sum(1) / (~mask).sum(1)
    assert low < chi2.median() < high


def test_repeated_draws_scatter_as_the_true_variance_says():
    flux = torch.full((1500, 3921), 5.0)
    observed, ivar, mask = add_noise(flux, "sdss", torch.arange(1500))
    observed[mask] = torch.nan
    jump = (observed[:, 2:] - observed[:, :-2])[:, pixels(4500, 5400)[1:-1]]  # takes the smooth errors out
    found = (jump.square().nanmean(0) / 2).sqrt()
    model, quoted = noise_model("sdss"), quoted_sigma(flux[:1], "sdss")[0]
    night = torch.exp(2 * model.level_modes.square().sum(0)) * np.exp(2 * model.chi2_spread**2)  # mean of a lognormal
    true = (model.scatter * model.sigma).square() + 0.75 * model.gain * 5 + (0.3 * model.floor * 5).square()
    expected = (true * night).sqrt()[pixels(4500, 5400)]
    ratio = found.mean() / expected.mean()
    assert 0.95 < ratio < 1.03, "lag-2 correlation is 0.6 %: the jump sees 99.7 % of the scatter"
    assert 0.8 < found.mean() / quoted[pixels(4500, 5400)].mean() < 0.95, "smaller than quoted, as in SDSS"


def test_neighbours_are_correlated_in_the_blue_only():
    flux, ivar, mask = add_noise(blank(400), "sdss", torch.arange(400))
    x = flux * ivar.sqrt()
    def lag(low, high, k):
        y = x[:, pixels(low, high)]
        y = y - y.mean(1, keepdim=True)
        return ((y[:, k:] * y[:, :-k]).mean() / y.square().mean()).item()
    assert 0.12 < lag(4600, 4700, 1) < 0.22 and abs(lag(4600, 4700, 2)) < 0.06
    assert abs(lag(8085, 8125, 1)) < 0.08


def test_signal_to_noise_is_predicted_and_scaled():
    flux = torch.linspace(2, 40, 200)[:, None].expand(-1, 3921).contiguous()
    scale = torch.linspace(0.5, 2, 200)
    observed, ivar, mask = add_noise(flux, "sdss", torch.arange(200), noise_scale=scale)
    drawn = (observed * ivar.sqrt()).masked_fill(mask, torch.nan).nanmedian(1).values
    ratio = drawn / (snr(flux, "sdss") / scale)
    assert abs(ratio.median() - 1) < 0.03 and ratio.std() < 0.2


def test_missing_pixels_as_counted():
    mask = missing_pixels(torch.arange(4000), 3921, noise_model("sdss").ends)
    assert 0.020 < mask.float().mean() < 0.028
    assert 0.0010 < mask[:, 60:3845].float().mean() < 0.0023
    first = (~mask).int().argmax(1)
    assert first.min() >= 4 and 25 < first.float().mean() < 36


def test_object_noise_and_floor_grow_with_flux():
    sigma = quoted_sigma(torch.tensor([0.0, 10.0, 1000.0])[:, None].expand(3, 3921), "sdss")
    assert (sigma[0] <= sigma[1]).all() and (sigma[1] < sigma[2]).all()
    assert 1000 / sigma[2, pixels(6000, 8000)].max() < 70, "the error floor caps the S/N near 60"


def test_boss_keeps_sdss_inside_its_range():
    start = round((SDSS.grid.first - get_survey("boss").grid.first) * 1e4)
    inside = slice(start, start + SDSS.grid.n)
    torch.testing.assert_close(noise_model("boss").sigma[inside], noise_model("sdss").sigma)


def test_desi_arms_merge_by_inverse_variance():
    sigma, wave = noise_model("desi").sigma.numpy(), get_survey("desi").grid.wave
    for low, high, level in ((4600, 5300, 1.1), (6300, 7400, 0.6), (8000, 9200, 0.4)):
        arm = (wave > low) & (wave < high)
        assert 0.7 < np.percentile(sigma[arm], 20) / level < 1.3
    assert sigma[(wave > 5761) & (wave < 5779)].mean() < sigma[(wave > 5801) & (wave < 5820)].mean()  # two arms


def test_telluric_bands_lie_between_zero_and_one():
    wave = SDSS.grid.wave
    depth = telluric_depth(wave)
    assert depth.min() == 0 and depth.max() <= 1
    assert depth[0, abs(wave - 7610) < 5].min() > 0.3 and depth[:, (wave > 5000) & (wave < 6800)].max() == 0


def test_wrong_shapes_and_missing_fibres_are_refused(tmp_path):
    with pytest.raises(SpectrumError, match="3921"): add_noise(torch.zeros(2, 100), "sdss", torch.arange(2))
    with pytest.raises(SpectrumError, match="seeds"): add_noise(blank(2), "sdss", torch.arange(3))
    with pytest.raises(DataError, match="0 spectra"): make_noise_template(tmp_path)
    flux, ivar, mask = add_noise(blank(0), "sdss", torch.arange(0))
    assert flux.shape == ivar.shape == mask.shape == (0, 3921)


@pytest.mark.real
def test_template_is_made_again_from_the_sky_fibres(mirror):
    made, shipped = make_noise_template(mirror), noise_template()
    for name, values in made.items():  # a mode may come with either sign
        np.testing.assert_allclose(abs(values.astype(np.float64)), abs(shipped[name]), rtol=2e-3, atol=1e-4)


@pytest.mark.real
def test_mock_sky_looks_like_real_sky(mirror):
    from astropy.io import fits

    real = np.full((102, 2, SDSS.grid.n), np.nan)
    files = sorted((mirror / "sdss_sky_fibers").glob("spec-*.fits"))
    for out, path in zip(real, files):
        rows = fits.getdata(path, 1)
        pixel = np.rint((rows["loglam"].astype(float) - 3.578) * 1e4).astype(int)
        good = (pixel >= 0) & (pixel < SDSS.grid.n) & (rows["ivar"] > 0)
        out[:, pixel[good]] = np.stack([rows["flux"], rows["ivar"]])[:, good]
    flux, ivar, mask = (x.numpy() for x in add_noise(blank(102), "sdss", torch.arange(102)))
    mock = np.stack([np.where(mask, np.nan, flux), np.where(mask, np.nan, ivar)], axis=1)
    for low, high in ((3850, 4200), (4300, 5500), (5650, 6200), (6300, 7500), (7700, 8600), (8650, 9150)):
        band = pixels(low, high).numpy()
        (rf, ri), (mf, mi) = (x[:, :, band].transpose(1, 0, 2) for x in (real, mock))
        sigma = [np.nanmedian(1 / np.sqrt(x)) for x in (ri, mi)]
        spread = [np.nanstd(f * np.sqrt(i)) for f, i in ((rf, ri), (mf, mi))]
        assert abs(np.log(sigma[1] / sigma[0])) < 0.06 and abs(spread[1] - spread[0]) < 0.07, (low, sigma, spread)
    chi2 = [np.nanpercentile(np.nanmean(x[:, 0] ** 2 * x[:, 1], 1), [5, 50, 95]) for x in (real, mock)]
    np.testing.assert_allclose(chi2[1], chi2[0], atol=0.1)
