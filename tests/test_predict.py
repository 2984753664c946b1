"""Many spectra through one model: the same rows in any batch, whatever memory there is, and errors that are the scatter."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from astropy.table import Table

from spectral_core.core import DataError, RunError
from spectral_core.models.autoencoder import AutoencoderConfig, RedshiftAutoencoder
from spectral_core.models.flows import FlowConfig, MaskedAutoregressiveFlow
from spectral_core.models.vae import SMALL, VariationalAutoencoder, active_units, iwae
from spectral_core.predict import chi2, encode, in_batches, latent_covariance, log_prob, reconstruct, rest_spectrum
from spectral_core.spectra.conditions import ConditionedSpectra
from spectral_core.spectra.container import Spectra, concatenate
from spectral_core.spectra.surveys import SDSS

M = SDSS.grid.n


def sample(n=9, seed=0, **changes):
    "n normalised spectra, row 4 without a good pixel, row 6 without a redshift."
    rng = np.random.default_rng(seed)
    values = {"flux": 1 + 0.2 * rng.standard_normal((n, M)), "ivar": rng.uniform(10, 40, (n, M)), "z": rng.uniform(0.01, 0.4, n)}
    values["ivar"][4:5], values["z"][6:7] = 0, np.nan
    return Spectra(**values | changes, survey=SDSS, mask=rng.random((n, M)) < 0.1)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return RedshiftAutoencoder(SDSS, 3, AutoencoderConfig(hidden=(8, 16)))


CALLS = {
    "encode": encode,
    "reconstruct": reconstruct,
    "chi2": lambda model, spectra, **k: np.stack(list(chi2(model, spectra, **k).values()), 1),
    "latent_covariance": latent_covariance,
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@every_call
def test_a_row_depends_on_nothing_but_itself(call, model):
    spectra = sample()
    together, order = call(model, spectra), np.array([8, 0, 4, 3, 6])
    assert np.isfinite(together).reshape(9, -1).all(1).tolist() == spectra.good.tolist()
    for rows in (call(model, spectra, batch_size=2), call(model, spectra, batch_size=1000)):
        np.testing.assert_allclose(rows, together, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(call(model, spectra[order]), together[order], rtol=1e-3, atol=1e-4)


@every_call
def test_nothing_is_changed_on_the_way(call, model):
    spectra, before = sample(), [p.detach().clone() for p in model.parameters()]
    flux, state = spectra.flux.copy(), torch.random.get_rng_state()
    call(model.train(), spectra)
    assert not model.training, "dropout and its like must be off"
    assert np.array_equal(spectra.flux, flux) and torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) and a.grad is None for a, b in zip(model.parameters(), before))


# ---- memory

MEMORY = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7 GiB"),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"),
    "numpy": MemoryError("Unable to allocate 7 GiB"),
}


@pytest.mark.parametrize("error", MEMORY.values(), ids=MEMORY)
def test_fault_31_batches_are_halved_until_they_fit(error, model, monkeypatch):
    spectra, plain, sizes = sample(12), type(model).encode, []
    expected = encode(model, spectra)

    def hungry(self, flux, *rest):
        sizes.append(len(flux))
        if len(flux) > 3: raise error
        return plain(self, flux, *rest)

    monkeypatch.setattr(type(model), "encode", hungry)
    np.testing.assert_allclose(encode(model, spectra, batch_size=12), expected, atol=1e-4)
    assert sizes[:3] == [10, 5, 3] and max(sizes[2:]) <= 3, "and never grows again"
    monkeypatch.setattr(type(model), "encode", lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(RunError, match="one spectrum alone"): encode(model, spectra)


def test_fault_31_other_errors_are_not_taken_for_a_lack_of_memory():
    def broken(rows): raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"): in_batches(broken, 8, 4)


# ---- what the numbers are


def test_reconstruction_is_the_rest_spectrum_at_its_redshift(model):
    spectra = sample(4)
    latents = encode(model, spectra)
    rest = torch.as_tensor(rest_spectrum(model, latents), dtype=torch.float32)
    seen, _ = model.observe(rest, torch.as_tensor(spectra.z))
    np.testing.assert_allclose(reconstruct(model, spectra), seen, atol=1e-5)
    latents[2] = np.nan
    assert np.isnan(rest_spectrum(model, latents)).all(1).tolist() == [False, False, True, False]


def test_chi2_counts_what_is_observed_and_modelled(model):
    spectra = sample(3)
    found, model_flux = chi2(model, spectra), reconstruct(model, spectra)
    _, inside = model.observe(torch.zeros(3, model.rest.n), torch.as_tensor(spectra.z))
    weight = np.where(inside, spectra.weight, 0).astype(float)
    total = (weight * (spectra.flux - model_flux) ** 2).sum(1)
    np.testing.assert_allclose(found["chi2_all"], total / M, rtol=1e-4)
    np.testing.assert_allclose(found["chi2_valid"], total / (weight > 0).sum(1), rtol=1e-4)
    hidden = np.where(spectra.mask, 1e6, spectra.flux)
    for name, value in chi2(model, Spectra(hidden, spectra.ivar, spectra.z, SDSS, mask=spectra.mask)).items():
        np.testing.assert_array_equal(value, found[name])


def test_fault_33_log_prob_of_what_is_not_finite_is_nan():
    latents = np.random.default_rng(0).standard_normal((50, 3))
    flow = MaskedAutoregressiveFlow(3, FlowConfig(n_layer=2)).standardise(torch.as_tensor(latents))
    expected = flow.log_prob(torch.as_tensor(latents, dtype=torch.float32)).detach()
    latents[7], latents[9, 1], latents[11, 0] = np.nan, np.inf, -np.inf
    for size in (8192, 7):
        found = log_prob(flow, latents, batch_size=size)
        assert np.flatnonzero(np.isnan(found)).tolist() == [7, 9, 11]
        keep = np.isfinite(found)
        np.testing.assert_allclose(found[keep], expected[keep], atol=1e-4)


# ---- models that are told conditions


@pytest.fixture(scope="module")
def told():
    "Row 4 has no good pixel and no mass."
    mass = np.where(np.arange(9) == 4, np.nan, np.linspace(9, 11, 9))
    return ConditionedSpectra(sample(table=Table({"mass": mass, "dust": np.arange(9.0) % 4})), ["mass", "dust"])


@pytest.fixture(scope="module")
def conditional(told):
    "Untrained, and with conditions so loud that one left out would be seen."
    torch.manual_seed(0)
    model = VariationalAutoencoder(SDSS, 3, replace(SMALL, conditions=told.names, likelihood="ivar"))
    return model.standardise(told[told.good].to("cpu")).eval()


@every_call
def test_a_row_of_a_conditional_model_depends_on_nothing_but_itself(call, conditional, told):
    together, order = call(conditional, told), np.array([8, 0, 4, 3, 6])
    assert np.isfinite(together).reshape(9, -1).all(1).tolist() == told.good.tolist()
    np.testing.assert_allclose(call(conditional, told, batch_size=2), together, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(call(conditional, told[order]), together[order], rtol=1e-3, atol=1e-4)


def test_encoder_and_decoder_are_both_told(conditional, told):
    "Everything equals the direct computation with the conditions; with others it is something else."
    part = told[told.good]
    batch = part.to("cpu")
    with torch.no_grad():
        latents = conditional.encode(*batch)
        model_flux = conditional.decode(latents, batch.context)
        other = conditional.decode(latents, batch.context.flip(0))
    np.testing.assert_allclose(encode(conditional, part), latents, atol=1e-5)
    np.testing.assert_allclose(reconstruct(conditional, part), model_flux, atol=1e-5)
    np.testing.assert_allclose(rest_spectrum(conditional, latents, part.context), model_flux, atol=1e-5)
    total = (part.weight * (part.flux - model_flux.numpy()) ** 2).sum(1)
    np.testing.assert_allclose(chi2(conditional, part)["chi2_all"], total / M, rtol=1e-4)
    assert (model_flux - other).abs().max() > 0.01
    covariance = latent_covariance(conditional, part[:1])
    assert covariance.shape == (1, 3, 3) and (np.linalg.eigvalsh(covariance) > 0).all()


def test_rest_spectra_of_latents_that_are_not_finite_need_no_conditions(conditional, told):
    latents = encode(conditional, told)
    found = rest_spectrum(conditional, latents, told.context)
    assert np.array_equal(np.isfinite(found).all(1), told.good) and np.array_equal(np.isnan(found).all(1), ~told.good)
    one = rest_spectrum(conditional, latents[:2], told.context[0])
    np.testing.assert_allclose(one[0], found[0], atol=1e-5)
    with pytest.raises(DataError, match="9 rows of conditions for 2 of latents"):
        rest_spectrum(conditional, latents[:2], told.context)
    with pytest.raises(DataError, match=r"conditions \(mass, dust\), but context has 0 columns"):
        rest_spectrum(conditional, latents)
    with pytest.raises(DataError, match="'mass' is not finite in 1 of 2 rows"):
        rest_spectrum(conditional, np.zeros((2, 3)), [[np.nan, 1.0], [10.0, 1.0]])


TOLD = CALLS | {"iwae": lambda model, spectra: iwae(model, spectra, 2), "active_units": active_units}


@pytest.mark.parametrize("call", TOLD.values(), ids=TOLD)
def test_a_model_that_is_told_other_things_than_the_spectra_hold_is_refused(call, conditional, told):
    "Plain spectra, too few conditions, and the right ones in the wrong order, which no width would betray."
    for wrong in (told.spectra, ConditionedSpectra(told.spectra, ["mass"]), ConditionedSpectra(told.spectra, ["dust", "mass"])):
        with pytest.raises(DataError, match=r"give it ConditionedSpectra\(spectra, \['mass', 'dust'\]\)"):
            call(conditional, wrong)
    with pytest.raises(DataError, match="give it the spectra without conditions"):
        call(VariationalAutoencoder(SDSS, 3, SMALL).eval(), told)


def test_an_autoencoder_that_knows_no_conditions_refuses_them(model, told):
    with pytest.raises(DataError, match="told \\(\\)"): encode(model, told)


# ---- errors of latents


def test_covariance_follows_the_inverse_variance(model):
    "Symmetric, positive; four times the inverse variance, a quarter of it; a shared error adds and never takes away."
    spectra = sample(4)
    c = latent_covariance(model, spectra)
    np.testing.assert_allclose(c, c.transpose(0, 2, 1), rtol=1e-4, atol=1e-5 * np.abs(c).max())
    assert (np.linalg.eigvalsh(c) > -1e-6 * np.trace(c, axis1=1, axis2=2)[:, None]).all()
    sharper = latent_covariance(model, spectra.replace(ivar=4 * spectra.ivar))
    np.testing.assert_allclose(sharper, c / 4, rtol=1e-3, atol=1e-5 * np.abs(c).max())
    modes = np.random.default_rng(1).normal(0, 0.01, (2, M))
    extra = latent_covariance(model, spectra, modes=modes) - c
    assert (np.linalg.eigvalsh(extra) > -1e-6 * np.trace(c, axis1=1, axis2=2)[:, None]).all()
    assert (np.trace(extra, axis1=1, axis2=2) > 0).all()


def test_an_error_that_the_norm_divides_out_is_none(model):
    "A grey error, the same fraction of the flux in every pixel, is gone after normalisation."
    spectra = sample(4)
    grey = latent_covariance(model, spectra, modes=np.full((1, M), 0.5))
    np.testing.assert_allclose(grey, latent_covariance(model, spectra), rtol=1e-4, atol=1e-9)


def test_errors_are_the_scatter_of_repeated_mock_observations():
    """Twelve galaxies, sixteen looks at each, every look with noise, sky and calibration of its own.

    Pixel noise alone would promise errors many times too small; the calibration's modes make them right.
    """
    from spectral_core.analysis.invariance import repeat_distances
    from spectral_core.pretrained import load
    from spectral_core.simulate.instrument import noise_model
    from spectral_core.simulate.mock import mock_survey, reobserve
    from spectral_core.spectra.preprocessing import preprocess

    model, galaxies = load("sdss"), mock_survey("sdss", n=12, seed=11)
    looks = concatenate([preprocess(reobserve(galaxies, sn=15.0, seed=k)) for k in range(16)])
    latents = encode(model, looks)
    seen = np.stack([np.cov(latents[looks.object_id == i].T) for i in galaxies.object_id])
    size = lambda c: np.sqrt(np.trace(c, axis1=1, axis2=2))
    first, distance = {}, {}
    for name, modes in (("pixels", None), ("all", noise_model("sdss").calibration_modes)):
        covariance = latent_covariance(model, looks, modes=modes)
        first[name] = size(seen) / size(covariance[:12])
        distance[name] = np.median(repeat_distances(latents, looks.object_id, covariance)["mahalanobis"])
    assert 0.75 < np.median(first["all"]) < 1.3 and ((first["all"] > 0.4) & (first["all"] < 2.5)).all(), first
    assert 0.6 < distance["all"] < 1.6, "half of all pairs within 0.9 for normal errors of the right size"
    assert np.median(first["pixels"]) > 2 and distance["pixels"] > 4


@pytest.mark.real
def test_real_galaxies_seen_twice_are_apart_by_their_errors(mirror):
    "The 56 repeat pairs of the mirror's bright galaxies: by pixel noise alone they would be different galaxies."
    from spectral_core.analysis.invariance import repeat_distances, repeat_pairs
    from spectral_core.archives.sdss import read_sdss
    from spectral_core.pretrained import load
    from spectral_core.simulate.instrument import noise_model
    from spectral_core.spectra.preprocessing import preprocess

    spectra, model = preprocess(read_sdss(mirror / "sdss_galaxy_bright")), load("sdss")
    twice = spectra[np.isin(spectra.object_id, spectra.object_id[repeat_pairs(spectra.object_id)[:, 0]]) & spectra.good]
    latents, distance = encode(model, twice), {}
    for name, modes in (("pixels", None), ("all", noise_model("sdss").calibration_modes)):
        repeats = repeat_distances(latents, twice.object_id, latent_covariance(model, twice, modes=modes))
        distance[name] = np.median(repeats["mahalanobis"])
    assert len(repeats) >= 50 and distance["pixels"] > 20 and 0.1 < distance["all"] < 3, distance
