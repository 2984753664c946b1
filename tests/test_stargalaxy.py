"""Evidence of two generative models: laws that hold for any model, and a case with an exact answer."""

from dataclasses import replace
from math import log, pi

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from spectral_core.analysis.outliers import TailCalibration
from spectral_core.analysis.stargalaxy import (
    KINDS,
    Generative,
    StarGalaxy,
    as_stars,
    compare,
    drawn_evidence,
    evidence,
    fisher_information,
    kind_of,
    learned_pixels,
    rebuilt,
    star_survey,
    tolerant_weight,
)
from spectral_core.core import DataError, Flag, SpectrumError
from spectral_core.spectra.container import Batch, Spectra
from spectral_core.spectra.surveys import DESI, Survey
from spectral_core.spectra.wavelength import Grid, resample_rest

SURVEY = Survey("tiny", Grid("log", 3.70, 1e-3, 80), resolution=((5000,), (60,)), z_max=0.1)
REST = Grid("log", 3.65, 1e-3, 140)


class Linear(nn.Module):
    "mean + latents · components, the most probable latents found by least squares."

    def __init__(self, components, mean=1.0, scale=1.0, survey=SURVEY, rest=REST):
        super().__init__()
        self.survey, self.rest, self.n_latent, self.scale = survey, rest, len(components), scale
        self.mean, self.components = torch.full((rest.n,), mean), components / scale

    def decode(self, s): return self.mean + s @ self.components
    def observe(self, x, z): return resample_rest(x, self.rest, self.survey.grid, z)

    def encode(self, flux, weight, z):
        rows = [self.observe(row.expand(len(z), -1), z)[0] for row in (self.mean, *self.components)]
        mean, design = rows[0], torch.stack(rows[1:], 1)
        weighted = design * tolerant_weight(Batch(flux, weight, z))[:, None]
        normal = weighted @ design.mT + torch.eye(self.n_latent) / self.scale**2
        return torch.linalg.solve(normal, (weighted @ (flux - mean)[..., None]))[..., 0]


class Gaussian(nn.Module):
    def __init__(self, n, scale=1.0):
        super().__init__()
        self.n_features, self.scale, self.shift = n, torch.full((n,), scale), torch.zeros(n)

    def log_prob(self, x): return torch.distributions.Normal(self.shift, self.scale).log_prob(x).sum(-1)


class Sampled(Gaussian):
    def sample(self, n, seed=0): return torch.randn(n, self.n_features, generator=torch.Generator().manual_seed(seed))


def components(n, seed, rest=REST):
    return 0.2 * torch.randn(n, rest.n, generator=torch.Generator().manual_seed(seed))


def spectra(n, seed=0, *, ivar=25.0, z=None, flux=None, **fields):
    rng = np.random.default_rng(seed)
    flux = 1 + 0.3 * rng.normal(size=(n, SURVEY.grid.n)) if flux is None else flux
    z = rng.uniform(0, 0.05, n) if z is None else z
    return Spectra(flux, np.full((n, SURVEY.grid.n), ivar), z, SURVEY, id=np.arange(n), **fields)


def maker(seed=1, n=3, scale=1.0): return Generative(Linear(components(n, seed), scale=scale), Gaussian(n, scale))


@pytest.mark.parametrize("ivar", [1e-6, 4.0, 1e4])
def test_laplace_is_exact_where_everything_is_gaussian(ivar):
    "From data that say nothing, where the prior is all, to data that say everything."
    data, model = spectra(6, ivar=ivar), maker()
    batch = data.to("cpu")
    weight = tolerant_weight(batch).double()
    design = torch.stack([model.model.observe(c.expand(6, -1), batch.z)[0] for c in model.model.components], 2).double()
    covariance = torch.diag_embed(1 / weight) + design @ design.mT
    mean = torch.ones_like(batch.flux).double()
    exact = torch.distributions.MultivariateNormal(mean, covariance).log_prob(batch.flux.double())
    constant = 0.5 * torch.log(weight / (2 * pi)).sum(1)
    found = evidence(model, data, worst=np.inf)
    np.testing.assert_allclose(found["log_evidence"], (exact - constant).numpy(), atol=2e-2, rtol=1e-4)


@given(st.floats(0.01, 100.0))
@settings(max_examples=8, deadline=None, derandomize=True)
def test_the_units_of_the_latents_do_not_matter(scale):
    data = spectra(3)
    one, other = evidence(maker(), data), evidence(maker(scale=scale), data)
    np.testing.assert_allclose(other["log_evidence"], one["log_evidence"], atol=0.02)
    np.testing.assert_allclose(np.asarray(one["log_prob"] - other["log_prob"]), 3 * log(scale), atol=0.02)


def test_the_information_of_a_bent_decoder_is_that_of_its_derivatives():
    class Bent(Linear):
        def decode(self, s): return super().decode(torch.sin(s) + 0.3 * s**2)

    model, s, z = Bent(components(2, 4)), torch.tensor([[0.3, -0.5], [1.0, 0.2]]), torch.tensor([0.01, 0.03])
    weight = torch.rand(2, SURVEY.grid.n, generator=torch.Generator().manual_seed(0))
    bend = torch.cos(s) + 0.6 * s  # of each latent alone
    rows = torch.stack([model.observe(c.expand(2, -1), z)[0] for c in model.components], 1) * bend[:, :, None]
    expected = torch.einsum("nkm,nlm,nm->nkl", rows, rows, weight)
    found = fisher_information(model, s, z, weight, torch.tensor([0.02, 0.03]))
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-4)


def test_the_floor_is_a_share_of_the_median_and_masked_pixels_stay_out():
    flux, weight = torch.tensor([[2.0, 2.0, 2.0, 50.0]]), torch.tensor([[4.0, 0.0, 1e9, 4.0]])
    out = tolerant_weight(Batch(flux, weight, torch.zeros(1)), 0.1)
    torch.testing.assert_close(out, torch.tensor([[1 / 0.29, 0.0, 1 / 0.04, 1 / 0.29]]), rtol=1e-5, atol=0)
    empty = Batch(flux, torch.zeros(1, 4), torch.zeros(1))
    assert tolerant_weight(empty).eq(0).all()


def test_a_pixel_beyond_the_decoder_costs_one():
    "A model that covers half of the data gets no credit for the half it does not see."
    rest = Grid("log", 3.65, 1e-3, 90)  # ends inside the observed range
    short = Generative(Linear(components(2, 2, rest), rest=rest), Gaussian(2))
    data = spectra(2, z=np.zeros(2))
    batch = data.to("cpu")
    inside = short.model.observe(torch.ones(2, 90), batch.z)[1]
    assert 20 < int((~inside[0]).sum()) < 60
    weight = torch.where(inside, tolerant_weight(batch), 0)
    latents = short.model.encode(*batch)
    seen = short.model.observe(short.model.decode(latents), batch.z)[0]
    part = (weight * (batch.flux - seen).square()).sum(1) + (~inside).sum(1)
    np.testing.assert_allclose(evidence(short, data, worst=np.inf)["log_likelihood"], -0.5 * part.numpy(), rtol=1e-5)


def test_one_pixel_counts_five_sigma_at_most():
    data = spectra(2)
    flux = data.flux.copy()
    flux[:, 40] = 1e4
    wild = data.replace(flux=flux)
    model = Generative(Linear(0 * components(1, 2)), Gaussian(1))  # no latents to bend towards the pixel
    before, after = (evidence(model, part)["log_likelihood"] for part in (data, wild))
    assert (before - after <= 12.5 + 1e-3).all() and (after < before).all()
    np.testing.assert_allclose(wild.flux[:, 40], 1e4)
    assert (evidence(model, wild, worst=np.inf)["log_likelihood"] < -1e6).all()


def test_the_velocity_of_a_star_is_found():
    line = -0.6 * torch.exp(-(torch.arange(REST.n) - 90.0).square() / 50)[None]
    star = Generative(Linear(line), Gaussian(1))
    truth = np.array([-900.0, 0.0, 600.0])
    seen, _ = star.model.observe((1 + line).expand(3, -1), torch.as_tensor(truth / 299792.458))
    data = spectra(3, flux=seen.numpy(), ivar=1e4, z=np.zeros(3))
    found = evidence(star, data, velocities=tuple(np.arange(-1200.0, 1201.0, 300.0)))
    np.testing.assert_allclose(found["velocity"], truth, atol=1.0)
    assert (evidence(star, data)["log_likelihood"] <= found["log_likelihood"] + 1e-3).all()


def test_flagged_rows_are_nan_and_other_grids_are_refused():
    data = spectra(4, flag=np.array([0, int(Flag.NO_NORM), 0, int(Flag.NODATA)], np.int32))
    found = evidence(maker(), data)
    assert np.isfinite(found["log_evidence"]).tolist() == [True, False, True, False]
    assert len(evidence(maker(), data[:0])) == 0
    other = Spectra(np.ones((1, 81)), np.ones((1, 81)), np.zeros(1), replace(SURVEY, grid=Grid("log", 3.70, 1e-3, 81)))
    with pytest.raises(SpectrumError, match="rebin them"): evidence(maker(), other)


def test_as_stars_judges_redshift_and_window_anew_and_keeps_other_doubts():
    flag = np.array([int(Flag.BAD_Z), int(Flag.NO_NORM | Flag.BAD_NORM), int(Flag.NODATA), 0], np.int32)
    z, id = np.array([1.4, 0.2, 0.3, -0.0005]), np.arange(4)
    wide = Spectra(np.full((4, 7781), 3.0), np.ones((4, 7781)), z, DESI, flag=flag, id=id)
    star = as_stars(wide)
    assert star.good.tolist() == [True, True, False, True] and (star.z == 0).all()
    np.testing.assert_allclose(star.flux[star.good], 1.0)
    np.testing.assert_allclose(star.ivar[star.good], 9.0)
    assert (star.survey.z_max, star.survey.grid) == (0.005, DESI.grid) and star_survey("desi") == star.survey
    red = wide.replace(mask=np.tile(DESI.grid.wave < 6000, (4, 1)), flag=np.zeros(4, np.int32), z=np.full(4, 0.2))
    assert not as_stars(red).good.any(), "without data in rest 5300-5850 Å a star cannot be normalised"


def test_drawn_evidence_is_the_integral_over_amplitude_and_latents():
    "One latent and the amplitude, integrated on a fine grid."
    model, data = maker(n=1), spectra(2, ivar=9.0, z=np.array([0.0, 0.03]))
    batch = data.to("cpu")
    weight = tolerant_weight(batch).double()
    s, ln_a = torch.linspace(-5, 5, 401), torch.linspace(-3, 3, 1201).double()
    total = []
    for i in range(2):
        seen = model.model.observe(model.model.decode(s[:, None]), batch.z[i].expand(401))[0].double()
        scaled = ln_a.exp()[:, None, None] * seen
        chi2 = (weight[i] * (batch.flux[i].double() - scaled).square()).sum(-1)
        prior = torch.distributions.Normal(0.0, 1.0).log_prob(s).double()
        total.append((-0.5 * chi2 + prior).flatten().logsumexp(0) + log(10 / 400) + log(6 / 1200))
    exact = torch.stack(total).numpy() - 0.5 * log(2 * pi)  # the constant of the integral over the amplitude
    found = drawn_evidence(model._replace(flow=Sampled(1)), data, n_draw=4000)
    np.testing.assert_allclose(found, exact, atol=0.15)


def test_drawn_evidence_knows_no_units_and_needs_no_whole_spectrum():
    model = maker()._replace(flow=Sampled(3))
    data = spectra(3, ivar=9.0)
    part = data.replace(mask=np.tile(np.arange(80) > 30, (3, 1)), flag=np.full(3, int(Flag.NO_NORM), np.int32))
    whole, cut = drawn_evidence(model, data), drawn_evidence(model, part)
    assert np.isfinite(cut).all() and (cut > whole).all(), "fewer pixels, less χ²"
    scaled = data.replace(flux=7 * data.flux, ivar=data.ivar / 49)
    np.testing.assert_allclose(drawn_evidence(model, scaled), whole, rtol=1e-4)
    assert np.isnan(drawn_evidence(model, data.replace(mask=np.ones((3, 80), bool)))).all()
    moving = drawn_evidence(model, data, velocities=(-300.0, 0.0, 300.0))
    assert (moving >= whole - 1e-9).all()


def narrow(n, seed):
    "A generative model whose window of normalisation lies inside its grid."
    return Generative(Linear(components(n, seed), survey=LINEAR), Gaussian(n))


LINEAR = replace(SURVEY, norm_window=(5100.0, 5600.0))


@pytest.fixture(scope="module")
def judge():
    galaxy, star = narrow(3, 11), narrow(3, 12)

    def drawn(source, n, seed):
        latents = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))
        rng = np.random.default_rng(seed)
        z = rng.uniform(0, 0.05, n)
        place = z if source is galaxy else np.zeros(n)
        clean = source.model.observe(source.model.decode(latents), torch.as_tensor(place))[0].numpy()
        flux = clean + 0.2 * rng.normal(size=clean.shape)
        return Spectra(flux, np.full(flux.shape, 25.0), z, LINEAR, id=np.arange(n) + 1000 * seed)

    return StarGalaxy.fit(galaxy, star, drawn(galaxy, 400, 1), drawn(star, 400, 2), k=100), drawn


def test_what_a_model_made_is_recognised(judge):
    judge, drawn = judge
    stars, galaxies = judge(drawn(judge.star, 200, 3)), judge(drawn(judge.galaxy, 400, 4))
    assert (stars["kind"] == "star").mean() > 0.95
    assert (galaxies["tail_ratio"] < 0.01).mean() < 0.03 and (galaxies["kind"] == "galaxy").mean() > 0.95
    np.testing.assert_allclose(stars["log_ratio"], stars["log_evidence_star"] - stars["log_evidence_galaxy"])
    assert set(compare(judge.galaxy, judge.star, drawn(judge.star, 2, 5)).colnames) < set(stars.colnames)


def test_what_no_model_made_is_neither(judge):
    judge, drawn = judge
    odd = drawn(judge.galaxy, 50, 6)
    odd = odd.replace(flux=odd.flux + 2 * (np.arange(80) % 8 < 4))
    verdict = judge(odd)
    assert (verdict["kind"] == "neither").mean() > 0.9
    dead = judge(odd[:2].replace(flag=np.full(2, int(Flag.NODATA), np.int32)))
    assert set(dead["kind"]) == {"flagged"} and np.isnan(dead["log_ratio"]).all()


def test_the_kinds_exclude_each_other():
    low, high, nan = 0.001, 0.5, np.nan
    galaxy, star, ratio = np.array([[high, high, high], [high, low, low], [low, high, low], [low, low, low], [nan, high, nan]]).T
    assert kind_of(galaxy, star, ratio).tolist() == ["galaxy", "star", "star", "neither", "flagged"]
    assert kind_of(galaxy, star, ratio, level=0.0001).tolist() == ["galaxy"] * 4 + ["flagged"]
    assert len(KINDS) == 4


def test_too_few_ordinary_spectra_cannot_calibrate(judge):
    judge, drawn = judge
    galaxies, stars = drawn(judge.galaxy, 30, 7), drawn(judge.star, 30, 8)
    with pytest.raises(DataError, match="too few"): StarGalaxy.fit(judge.galaxy, judge.star, galaxies, stars)
    assert all(isinstance(tail, TailCalibration) for tail in judge.tails.values())


WIDE = Survey("wide", Grid("linear", 5000.0, 4.0, 1500), resolution=((5000,), (60,)), z_max=0.1)  # 37.5 blocks of 40 pixels


def one_wide(learned=None, first=4000.0):
    "A model that knows one spectrum, flat at 1, between 4000 and 12,000 Å at rest."
    rest = Grid("linear", first, 4.0, 2000)
    return Generative(Linear(torch.zeros(1, 2000), survey=WIDE, rest=rest), Gaussian(1), learned)


def seen_wide(flux, ivar=25.0):
    return Spectra(flux, np.full(flux.shape, ivar), np.zeros(len(flux)), WIDE, id=np.arange(len(flux)))


def test_a_broad_misfit_shows_where_single_pixels_hide_it():
    "White noise gives 1 in blocks as in pixels; half of the noise over 160 Å raises only the blocks."
    noise = 1 + np.random.default_rng(3).normal(size=(400, 1500)) / 5
    bump = noise + np.where(np.abs(np.arange(1500) - 700) < 20, 0.5 / 5, 0)
    plain, wrong = (evidence(one_wide(), seen_wide(flux), floor=0.0) for flux in (noise, bump))
    assert np.mean(plain["chi2_broad"]) == pytest.approx(36 / 38, abs=0.05)  # two of the blocks' freedoms are fitted
    assert np.mean(plain["chi2_shape"]) == pytest.approx(1498 / 1500, abs=0.01)
    sigma = [(np.mean(wrong[c]) - np.mean(plain[c])) / np.std(plain[c]) for c in ("chi2_broad", "chi2_shape")]
    assert sigma[0] > 4 * sigma[1] > 0
    bright = evidence(one_wide(), seen_wide(bump, 1e8), floor=0.04)
    assert np.max(bright["chi2_broad"]) < 10  # a percent of calibration is forgiven, whatever the S/N


def test_amplitude_and_slope_are_no_misfit_but_a_wave_is():
    x = np.linspace(-1, 1, 1500)
    noise = np.random.default_rng(5).normal(size=(50, 1500)) / 5
    found = {k: evidence(one_wide(), seen_wide(shape + noise), floor=0.0) for k, shape in
             {"flat": 1 + 0 * x, "tilted": 1.3 + 0.5 * x, "wave": 1 + 0.3 * np.sin(12 * x)}.items()}
    for column in ("chi2_shape", "chi2_broad"):
        mean = {k: float(np.mean(t[column])) for k, t in found.items()}
        assert mean["tilted"] == pytest.approx(mean["flat"], rel=0.1) and mean["wave"] > 1.5 * mean["flat"]
    assert np.mean(found["tilted"]["chi2_valid"]) > 3, "the reconstruction itself is wrong, and chi2_valid says so"


def test_what_was_not_learned_is_no_part_of_any_verdict():
    "A spike of the decoder in a pixel that training never showed: the pixel costs 1, whatever the spike."
    learned = torch.ones(2000, dtype=torch.bool)
    learned[1000:1100] = False
    data = seen_wide(1 + np.random.default_rng(7).normal(size=(5, 1500)) / 5)
    spiked, plain = (one_wide(learned, 4002.0) for _ in range(2))  # observed pixels fall between two at rest
    spiked.model.mean[1000:1100] = 50.0
    known, smooth, wild = evidence(spiked, data), evidence(plain, data), evidence(spiked._replace(learned=None), data)
    for column in ("log_likelihood", "log_evidence", "chi2_valid", "chi2_shape", "chi2_broad"):
        np.testing.assert_allclose(known[column], smooth[column], rtol=1e-6)
    assert (wild["chi2_shape"] > 10 * known["chi2_shape"]).all()
    inside = (WIDE.grid.wave > 7998) & (WIDE.grid.wave < 8402)
    model = rebuilt(spiked, data.replace(flag=np.array([0, 0, 0, 0, int(Flag.NODATA)], np.int32)))
    assert np.isnan(model[:4, inside]).all() and np.allclose(model[:4, ~inside], 1) and np.isnan(model[4]).all()
    weight = tolerant_weight(data.to("cpu")).numpy()
    cost = (weight * (data.flux - 1) ** 2)[:, ~inside].sum(1) + inside.sum()
    np.testing.assert_allclose(evidence(spiked, data, worst=np.inf)["log_likelihood"], -0.5 * cost, rtol=1e-4)


def test_drawn_evidence_leaves_out_what_was_not_learned():
    learned = torch.ones(2000, dtype=torch.bool)
    learned[1000:1100] = False
    data, spiked = seen_wide(1 + np.random.default_rng(7).normal(size=(3, 1500)) / 5), one_wide(learned)
    spiked.model.mean[1000:1100] = 50.0
    known, smooth = (drawn_evidence(m._replace(flow=Sampled(1)), data, n_draw=8) for m in (spiked, one_wide(learned)))
    np.testing.assert_allclose(known, smooth, rtol=1e-6)
    assert (known > drawn_evidence(spiked._replace(flow=Sampled(1), learned=None), data, n_draw=8) + 100).all()


def test_a_rest_pixel_is_learned_from_enough_spectra():
    "Counted by hand at redshift 0, where rest and observed pixels agree; a moved spectrum shows others."
    mask = np.zeros((6, 1500), bool)
    mask[:4, 100] = True  # shown by two
    mask[:, 200] = True  # by none
    data = Spectra(np.ones((6, 1500)), np.ones((6, 1500)), np.zeros(6), WIDE, mask=mask, id=np.arange(6))
    model, first = one_wide().model, 250  # rest pixel of 5000 Å
    count = lambda part, least: learned_pixels(model, part, least, batch_size=4).numpy()
    assert count(data, 1).sum() == 1499 and count(data, 3).sum() == 1498 and not count(data, 7).any()
    assert not count(data, 3)[first + 100] and count(data, 2)[first + 100] and not count(data, 1)[first + 200]
    moved = count(data.replace(z=np.full(6, 0.05)), 1)
    assert moved.nonzero()[0][0] == np.ceil((5000 / 1.05 - 4000) / 4)
    assert not learned_pixels(model, data[:0], 1).any()
