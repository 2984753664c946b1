"""The PROVABGS model: laws that any source obeys, and the published networks where the mirror has them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from spectral_core.core import ConfigError, SpectrumError
from spectral_core.simulate.emulators import SpectrumNetwork, SurvivingMass, provabgs_file
from spectral_core.simulate.histories import THETA, star_formation, t_age
from spectral_core.simulate.mixtures import remnants
from spectral_core.simulate.priors import Prior
from spectral_core.simulate.provabgs import load_provabgs

N = 600


@pytest.fixture(scope="module")
def model():
    return load_provabgs("ssp")


@pytest.fixture(scope="module")
def draws():
    z = 0.01 + 0.05 * torch.rand(N, generator=torch.Generator().manual_seed(0))
    return Prior().sample(N, z, seed=0).float(), z


def changed(theta: torch.Tensor, **values: float) -> torch.Tensor:
    theta = theta.clone()
    for name, value in values.items(): theta[..., THETA.index(name)] = value
    return theta


# ------------------------------------------------------------------ laws


def test_magnitudes_follow_the_mass(model, draws):
    theta, z = draws
    light, heavy = (model.magnitudes(changed(theta, log_mstar=m), z) for m in (8.0, 11.0))
    assert torch.allclose(light - heavy, torch.tensor(7.5), atol=2e-5)


def test_magnitudes_do_not_depend_on_company(model, draws):
    "A row alone, in a block of 512 or beyond it; leading dimensions; one z for all."
    theta, z = draws
    together = model.magnitudes(theta, z)
    for row in (0, 511, 512, 599):
        assert torch.allclose(model.magnitudes(theta[row], z[row]), together[row], atol=1e-4)
    assert torch.equal(model.magnitudes(theta.reshape(2, 300, 11), z.reshape(2, 300)), together.reshape(2, 300, 5))
    assert torch.equal(model.magnitudes(theta[:5], 0.03), model.magnitudes(theta[:5], torch.full((5,), 0.03)))


def test_precision_follows_theta(model, draws):
    theta, z = draws
    double = model.magnitudes(theta.double(), z.double())
    assert double.dtype == torch.float64
    assert torch.isfinite(double).all()
    assert (model.magnitudes(theta, z) - double).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["dust1", "dust2"])
def test_dust_only_dims(model, draws, name):
    theta, z = draws
    dim = model.magnitudes(changed(theta, **{name: 2.5}), z) - model.magnitudes(changed(theta, **{name: 0.5}), z)
    assert (dim > -1e-4).all() and dim.mean() > 0.01


def test_gradients_are_those_of_finite_differences(model):
    theta = torch.tensor([[10.0, 0.6, 0.7, 0.4, 0.2, 0.83, -2.11, -2.43, 0.8, 0.5, -0.6]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda t: model.magnitudes(t, 0.053), theta.requires_grad_(), eps=1e-6, atol=1e-5)


@pytest.mark.parametrize("cloud, sees_dust", [(10.0, False), (100.0, True)])
def test_birth_clouds_end(draws, cloud, sees_dust):
    "A burst of 50 Myr alone: inside its cloud by the text, outside by the code."
    theta = changed(draws[0][:4], fburst=1.0, tburst=0.05)
    model = load_provabgs("ssp", birth_cloud_myr=cloud)
    dim = model.magnitudes(changed(theta, dust1=2.0), 0.03) - model.magnitudes(changed(theta, dust1=0.0), 0.03)
    assert (dim > 0.5).all() == sees_dust and (dim.abs() < 1e-5).all() != sees_dust


def test_a_burst_before_the_beginning(model):
    "Conditional: as if there was none. The published code takes its share of the light away."
    theta = torch.tensor([[10.0, 0.6, 0.7, 0.4, 0.5, 13.2, -2, -2, 0.3, 0.3, -0.7]])
    z = torch.tensor([0.2])
    assert t_age(z) < 13.2
    code = load_provabgs("ssp", burst="code")
    without = model.magnitudes(changed(theta, fburst=0.0), z)
    assert torch.allclose(model.magnitudes(theta, z), without, atol=1e-5)
    assert torch.allclose(code.magnitudes(theta, z) - without, torch.tensor(2.5 * np.log10(2), dtype=torch.float32), atol=1e-4)


def test_weights_are_spread_without_loss(model, draws):
    "Every solar mass formed lands in the table; its mean log age and log Z stay."
    theta, z = (x[:50].double() for x in draws)
    stars = star_formation(model.bases, theta, z)
    bins = model._coarse._stars[0].to(theta)
    rows, parts = bins.nodes(stars.age, stars.metallicity.clamp(10 ** bins.log_z[0], 10 ** bins.log_z[-1]))
    assert torch.allclose((parts.sum(-1) * stars.weights).sum(1) + stars.burst, torch.ones(50, dtype=torch.float64), atol=1e-9)
    metals = (bins.log_z[rows % len(bins.log_z)] * parts).sum(-1)
    assert torch.allclose(metals, stars.metallicity.log10().clamp(bins.log_z[0], bins.log_z[-1]), atol=1e-9)


def test_surviving_mass(model, draws):
    theta, z = draws
    derived = model.derived(theta, z)
    left = derived["log_mstar_surviving"] - theta[:, 0]
    assert ((left < -0.05) & (left > -0.4)).all()
    old, young = (model.derived(changed(theta[:1], fburst=1.0, tburst=t), 0.02)["log_mstar_surviving"] for t in (10.0, 0.02))
    assert old < young
    assert set(derived) == {"log_sfr_1gyr", "log_z_mw", "age_mw", "log_mstar_surviving"}


def test_remnants_against_a_sum_over_stars():
    "A million stars by Kroupa's function: kill all above a mass, add up what they leave."
    mass = np.exp(np.random.default_rng(0).uniform(np.log(0.1), np.log(100), 10**6))
    number = np.where(mass < 0.5, mass**-0.3, 0.5 * mass**-1.3)  # weight of a draw that is uniform in ln mass
    left = np.where(mass < 8.5, 0.077 * mass + 0.48, np.where(mass < 40, 1.4, 0.5 * mass))
    total = np.sum(number * mass)
    for turn_off in (1.0, 3.0, 20.0):
        alive, dead = np.sum((number * mass)[mass < turn_off]), np.sum((number * left)[mass >= turn_off])
        assert remnants(alive / total) == pytest.approx(dead / total, rel=0.02)


def test_observed_spectrum_is_the_spectrum_moved(model, draws):
    "Integrated through r, the spectrum on SDSS's pixels has the model's magnitude."
    from spectral_core.simulate.filters import load_filters
    from spectral_core.spectra.surveys import SDSS

    theta, r = draws[0][:5], load_filters("sdss2010-r")
    flux = model.observed(theta, 0.08).double().numpy() * 1e-17
    mags = -2.5 * np.log10(flux @ r.weights(SDSS.grid.edges)[0])
    assert mags == pytest.approx(model.magnitudes(theta, 0.08)[:, 2].numpy(), abs=2e-3)


@pytest.mark.parametrize("z, match", [(0.0, "0 < z"), (float("nan"), "."), (0.9, "leave")])
def test_absurd_redshifts_are_refused(model, draws, z, match):
    with pytest.raises(Exception, match=match) as caught: model.magnitudes(draws[0][:2], torch.tensor([0.02, z]))
    assert type(caught.value).__module__ == "spectral_core.core"


def test_impossible_requests_are_refused(model, monkeypatch):
    monkeypatch.delenv("SPS_HOME", raising=False)
    with pytest.raises(ConfigError, match="matrix"): load_provabgs("matrices")
    with pytest.raises(ConfigError, match="SPS_HOME"): load_provabgs("fsps")
    with pytest.raises(ConfigError, match="11 columns"): model.magnitudes(torch.zeros(2, 12), 0.02)
    with pytest.raises(ConfigError, match="emulator"): load_provabgs("emulator", bases="own")
    with pytest.raises(SpectrumError, match="z_max"): load_provabgs("matrix", z_max=0.5)


def test_fsps_counts_remnants_itself_and_has_another_sun(monkeypatch):
    "With BC03's table in its place: living mass as it comes, metals on PROVABGS's scale."
    from spectral_core.simulate import mixtures

    bare = mixtures.load_ssp("bc03")
    monkeypatch.setattr(mixtures, "load_ssp", lambda name: bare)
    published, own = (mixtures.library_light(name, slice(700, 720))._stars[1] for name in ("fsps", "bc03"))
    assert torch.equal(published.living, bare.living.T) and (own.living > bare.living.T).all()
    assert torch.allclose(own.log_z - published.log_z, torch.tensor(np.log10(0.02 / 0.019), dtype=torch.float32), atol=1e-6)


# ------------------------------------------------------------------ the published networks


def by_the_recipe(path: Path, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    "ln L (n, L) and wavelengths by the formula of the data set's provenance, plain numpy in double precision."
    out, waves, arrays = [], [], np.load(path)
    names = sorted({key.split("/")[0] for key in arrays.files}, key=lambda name: arrays[f"{name}/wave"][0])
    for name in names:
        a = {key.split("/")[1]: arrays[key].astype(float) for key in arrays.files if key.split("/")[0] == name}
        h = (x - a["param_shift"]) / a["param_scale"]
        for i in range(8):
            u = h @ a[f"W{i}"] + a[f"b{i}"]
            h = (a[f"beta{i}"] + (1 - a[f"beta{i}"]) / (1 + np.exp(-a[f"alpha{i}"] * u))) * u
        c = (h @ a["W8"] + a["b8"]) * a["pca_scale"] + a["pca_shift"]
        out.append((c @ a["pca_components"]) * a["spec_scale"] + a["spec_shift"])
        waves.append(a["wave"])
    return np.concatenate(out, 1), np.concatenate(waves)


def inputs_of(theta: torch.Tensor, z: torch.Tensor) -> np.ndarray:
    t = theta.double().numpy()
    return np.column_stack([t[:, 1:4], 10 ** t[:, 6:8], t[:, 8:11], t_age(z.double()).numpy()])


@pytest.mark.real
@pytest.mark.filterwarnings("ignore:overflow")
def test_networks_against_the_recipe(mirror, draws):
    "Both published networks in single precision: 1e-4 of the luminosity, at every wavelength."
    theta, z = (x[:200] for x in draws)
    burst = np.column_stack([theta[:, 5].log10(), -2 - torch.rand(200), theta[:, 9], theta[:, 10]]).astype(float)
    for part, x in (("nmf_emulator", inputs_of(theta, z)), ("burst_emulator", burst)):
        expected, wave = by_the_recipe(provabgs_file(part), x)
        for dtype, error in ((torch.float32, 1e-4), (torch.float64, 1e-5)):
            network = SpectrumNetwork(provabgs_file(part)).to(dtype)
            apart = network(torch.tensor(x, dtype=dtype)).double().numpy() - expected
            assert np.abs(apart).max() < error, (part, dtype)
        assert np.array_equal(network.wave, wave)


@pytest.mark.real
def test_emulator_magnitudes_are_those_of_its_spectra(mirror, draws):
    "Components averaged over pixels: below 0.001 mag rms in every band, 0.01 at worst."
    from spectral_core.simulate.filters import maggies, pixel_means

    theta, z = (x[:200] for x in draws)
    model, edges = load_provabgs("emulator"), np.arange(2310, 11300, 1.0)
    wave, light = model.spectrum(theta, z)
    narrow = pixel_means(wave, light.double().numpy(), edges)
    exact = -2.5 * np.log10(maggies(narrow, edges, z.double().numpy(), model.filters))
    apart = model.magnitudes(theta, z).numpy() - exact
    assert np.sqrt((apart**2).mean(0)).max() < 1e-3 and np.abs(apart).max() < 0.01


@pytest.mark.real
def test_matrix_is_the_emulator_without_a_network(mirror, draws):
    "Within 0.006 mag for 95 % of prior draws in every band, without bias."
    theta, z = draws
    apart = load_provabgs("matrix").magnitudes(theta, z) - load_provabgs("emulator").magnitudes(theta, z)
    assert (apart.abs().quantile(0.95, dim=0) < 0.006).all()
    assert (apart.median(0).values.abs() < 0.002).all()


@pytest.mark.real
def test_eleven_bins_are_in_their_birth_clouds(mirror, draws):
    "With 8 or 12 Myr the matrix leaves the emulator: this is how the published code's 10 Myr is known."
    theta, z = (x[:200] for x in draws)
    theta = changed(theta, fburst=0.0, dust1=2.0)
    emulator = load_provabgs("emulator").magnitudes(theta, z)[:, 0]
    models = [load_provabgs("matrix", birth_cloud_myr=age) for age in (8, 10, 12)]
    worst = [(model.magnitudes(theta, z)[:, 0] - emulator).abs().quantile(0.95) for model in models]
    assert worst[1] < 0.006 and min(worst[0], worst[2]) > 0.02


@pytest.mark.real
def test_surviving_mass_by_hand(mirror, draws):
    "The published networks against the recipe of the provenance, galaxy by galaxy."
    theta, z = (x[:20] for x in draws)
    model, arrays = load_provabgs("matrix"), np.load(provabgs_file("msurv_emulator"))
    stars = star_formation(model.bases, theta, z)

    def fraction(part, x):
        h = (np.array(x) - arrays[f"{part}/theta_shift"]) / arrays[f"{part}/theta_scale"]
        for i in range(0, 16, 3):
            h = arrays[f"{part}/{i}.weight"] @ h + arrays[f"{part}/{i}.bias"]
            h = np.where(h > 0, h, 0.01 * h)
        return h[0] * arrays[f"{part}/msurv_scale"] + arrays[f"{part}/msurv_shift"]

    expected = []
    for t, age, burst in zip(theta.tolist(), t_age(z).tolist(), stars.burst.tolist(), strict=True):
        smooth, sudden = fraction("nmf", [*t[1:4], *t[6:8], age]), fraction("burst", [np.log10(t[5]), *t[6:8], age])
        expected.append((1 - burst) * smooth + burst * sudden)
    assert SurvivingMass()(theta, z, stars).numpy() == pytest.approx(np.array(expected), abs=1e-4)
    left = model.derived(theta, z)["log_mstar_surviving"] - theta[:, 0]
    assert 10 ** left.numpy() == pytest.approx(np.array(expected), abs=1e-4)


@pytest.mark.real
def test_own_populations_resemble_the_published_ones(mirror, draws):
    "Chapter 1's libraries, published histories: colours within 0.1 mag and mass-to-light within 0.2 mag for most galaxies."
    theta, z = draws
    ours, published = load_provabgs("ssp", bases="provabgs"), load_provabgs("matrix")
    apart = ours.magnitudes(theta, z) - published.magnitudes(theta, z)
    assert apart[:, 2].abs().quantile(0.84) < 0.2
    assert ((apart[:, :-1] - apart[:, 1:]).abs().quantile(0.84, dim=0) < 0.1).all()
