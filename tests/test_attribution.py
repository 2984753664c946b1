"""DeepLIFT attribution: what shap's DeepExplainer gives, laws that need no reference, and networks that are refused."""

import warnings
from itertools import combinations
from math import comb

import numpy as np
import pytest
import torch
from torch import nn

from spectral_core.analysis import attribution
from spectral_core.analysis.attribution import Attribution, attribute, group_by_window, mean_absolute, rotate
from spectral_core.core import ConfigError, DataError, RunError
from spectral_core.models.vae import VAEConfig, VariationalAutoencoder, mean_network
from spectral_core.spectra.container import Spectra
from spectral_core.spectra.surveys import Survey
from spectral_core.spectra.wavelength import Grid

ACTIVATIONS = [nn.LeakyReLU(), nn.ReLU(), nn.ELU(), nn.Tanh(), nn.Softplus(), nn.GELU(), nn.Sigmoid()]


def settled(model, m, seed=0):
    "The model in evaluation mode, with batch statistics from random spectra and affine parameters that are not 1 and 0."
    random = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d):
            nn.init.uniform_(layer.weight, 0.5, 1.5, generator=random)
            nn.init.uniform_(layer.bias, -0.3, 0.3, generator=random)
    with torch.no_grad():
        for _ in range(20): model.train()(torch.rand(16, m, generator=random))
    return model.eval()


def encoder(m=200, n_output=3, activation=nn.LeakyReLU, pool=nn.MaxPool1d, seed=0):
    "Four stages as in Iwasaki+23 figure 7, narrower: convolution, normalisation, activation, pooling; then two dense layers."
    torch.manual_seed(seed)
    layers, length, channels = [nn.Unflatten(1, (1, m))], m, (1, 3, 4, 5, 6)
    for a, b in zip(channels, channels[1:]):
        layers += [nn.Conv1d(a, b, 5, padding=1), nn.BatchNorm1d(b), activation(), nn.Dropout(0.1), pool(2)]
        length = (length - 2) // 2
    dense = [nn.Flatten(), nn.Linear(length * channels[-1], 32), activation(), nn.Linear(32, n_output)]
    return settled(nn.Sequential(*layers, *dense), m)


def spectra(n, m=200, seed=0):
    "Positive rows (n, m), smooth and with noise, float32."
    random = np.random.default_rng(seed)
    x = np.linspace(0, 1, m)
    smooth = 1 + random.normal(size=(n, 1)) * 0.3 * np.sin(7 * x) + random.normal(size=(n, 1)) * 0.3 * x
    return torch.tensor(smooth + 0.1 * random.normal(size=(n, m)), dtype=torch.float32)


# ---- the reference


@pytest.fixture(scope="module")
def by_shap():
    "shap's values (n, o, m), with its own additivity check; it warns of Unflatten, which it treats as the identity that it is."
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The set_.* function will be deprecated", PendingDeprecationWarning)  # its colour maps
        shap = pytest.importorskip("shap")

    def values(model, x, background):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "unrecognized nn.Module: Unflatten", UserWarning)
            warnings.filterwarnings("ignore", "__array_wrap__ must accept", DeprecationWarning)  # its tensor minus its array
            return shap.DeepExplainer(model, background).shap_values(x, check_additivity=True).transpose(0, 2, 1)

    return values


def apart(a, b):
    return np.abs(a - b).max() / np.abs(b).max()


@pytest.mark.parametrize("n_output", [2, 4])
def test_values_are_those_of_deep_explainer(by_shap, n_output):
    model, x, background = encoder(n_output=n_output), spectra(4), spectra(11, seed=1)
    found = attribute(model, x, background, chunk=8)
    assert found.values.shape == (4, n_output, 200) and found.additivity_error <= 1e-6
    assert apart(found.values, by_shap(model, x, background)) < 1e-5
    with torch.no_grad(): assert np.allclose(found.expected, model(background).mean(0), atol=1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("pool", [nn.MaxPool1d, nn.AvgPool1d])
def test_every_activation_and_pooling_has_the_rule_of_deep_explainer(by_shap, activation, pool):
    model = encoder(activation=type(activation), pool=pool).double()
    x, background = spectra(2).double(), spectra(5, seed=1).double()
    found = attribute(model, x, background)
    assert found.additivity_error < 1e-7 and apart(found.values, by_shap(model, x, background)) < 1e-5  # a pair 8e-8 apart


def test_a_decoder_is_a_chain_too(by_shap):
    torch.manual_seed(0)
    layers = [nn.Linear(4, 30), nn.ELU(), nn.Unflatten(1, (3, 10)), nn.ConvTranspose1d(3, 2, 5, stride=2, output_padding=1)]
    model = settled(nn.Sequential(*layers, nn.BatchNorm1d(2), nn.LeakyReLU(), nn.Flatten(), nn.Linear(48, 6)), 4).double()
    x, background = torch.randn(5, 4).double(), torch.randn(7, 4).double()
    found = attribute(model, x, background)
    assert found.additivity_error < 1e-12 and apart(found.values, by_shap(model, x, background)) < 1e-5


# ---- laws


@pytest.mark.parametrize("chunk", [1, 3, 7, 1000])
def test_chunks_change_nothing(chunk):
    model, x, background = encoder().double(), spectra(5), spectra(7, seed=1)
    whole = attribute(model, x, background)
    parts = attribute(model, x, background, chunk=chunk)
    assert np.abs(parts.values - whole.values).max() < 1e-12 * whole.scale and whole.additivity_error < 1e-8


def test_a_linear_network_has_its_matrix():
    torch.manual_seed(0)
    layers = [nn.Unflatten(1, (1, 60)), nn.Conv1d(1, 4, 5, stride=2), nn.BatchNorm1d(4), nn.AvgPool1d(3, stride=2), nn.Flatten()]
    model = settled(nn.Sequential(*layers, nn.Linear(52, 3)), 60).double()
    x, background = spectra(6, 60).double(), spectra(20, 60, seed=1).double()
    matrix = torch.func.jacrev(lambda row: model(row[None])[0])(x[0]).detach()
    truth = matrix * (x - background.mean(0))[:, None]
    found = attribute(model, x, background)
    assert np.abs(found.values - truth.numpy()).max() < 1e-8 * truth.abs().max() and found.additivity_error < 1e-12


def test_rotated_values_are_those_of_the_rotated_output():
    model, x, background = encoder().double(), spectra(3), spectra(6, seed=1)
    axes, center = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0][:2], np.array([0.3, -0.1, 0.2])
    head = nn.Linear(3, 2).double()
    head.load_state_dict({"weight": torch.tensor(axes), "bias": torch.tensor(-axes @ center)})
    direct = attribute(nn.Sequential(model, head), x, background)
    rotated = rotate(attribute(model, x, background), axes, center)
    for a, b in zip(direct[:3], rotated[:3]): np.testing.assert_allclose(a, b, atol=1e-12)
    assert rotated.additivity_error < 1e-12
    with pytest.raises(DataError, match=r"axes must be \(k, 3\)"): rotate(direct._replace(expected=np.zeros(3)), np.eye(4))


def test_pixels_that_the_network_and_the_spectra_treat_alike_get_alike():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 20), nn.Tanh(), nn.Linear(20, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    x, background = torch.randn(4, 8).double(), torch.randn(9, 8).double()
    with torch.no_grad():
        for a in (model[0].weight, x, background): a[:, 5] = a[:, 2]
    values = attribute(model, x, background).values
    assert np.abs(values[..., 5] - values[..., 2]).max() < 1e-14 and np.abs(values[..., 5] - values[..., 3]).max() > 1e-3


def test_an_output_alone_has_the_values_it_has_among_others():
    model, x, background = encoder(n_output=4), spectra(2), spectra(5, seed=1)
    every, some = attribute(model, x, background), attribute(model, x, background, outputs=[2, 0])
    assert np.abs(every.values[:, [2, 0]] - some.values).max() < 1e-6 * every.scale
    assert some.output.tolist() == every.output[:, [2, 0]].tolist() and some.scale == every.scale


@pytest.mark.parametrize("pool", [nn.MaxPool1d(3, 2), nn.MaxPool1d(4, 1, padding=2), nn.MaxPool1d(2, 3, dilation=2),
                                  nn.MaxPool1d(3, ceil_mode=True)], ids=str)
def test_maxima_over_any_windows_add_up(pool):
    "Where windows overlap, shap's rule loses contributions; ours collects them."
    torch.manual_seed(0)
    size = pool(torch.zeros(1, 2, 20)).numel()
    model = nn.Sequential(nn.Unflatten(1, (2, 20)), pool, nn.Flatten(), nn.Linear(size, 3)).double()
    x, background = torch.randn(6, 40).double(), torch.randn(5, 40).double()
    assert attribute(model, x, background).additivity_error < 1e-13


def test_the_spectrum_itself_as_background_contributes_nothing():
    x = spectra(3)
    found = attribute(encoder(), x[:1], x[:1])
    assert (found.values == 0).all()
    near = attribute(encoder(), x[:1] * (1 + 1e-6), x[:1])
    assert np.isfinite(near.values).all() and np.abs(near.values).max() < 1e-5


# ---- Shapley values


def shapley(f, x, background, n_group):
    "Exact Shapley values (n_group,) of equal groups of neighbouring pixels: others are the background's; mean over backgrounds."
    size = x.shape[-1] // n_group

    def value(coalition):
        mixed = background.clone()
        for k in coalition: mixed[:, k * size : (k + 1) * size] = x[k * size : (k + 1) * size]
        with torch.no_grad(): return float(f(mixed).mean())

    groups, found = range(n_group), np.zeros(n_group)
    known = {c: value(c) for r in range(n_group + 1) for c in combinations(groups, r)}
    for k in groups:
        for c, v in known.items():
            if k not in c: found[k] += (known[tuple(sorted((*c, k)))] - v) / (n_group * comb(n_group - 1, len(c)))
    return found


class Sum(nn.Module):
    "Linear in all pixels (a unit far above its kink), plus 2 ReLU(sum of pixels − threshold), where they interact."

    def __init__(self, m, threshold):
        super().__init__()
        self.units, self.kink, self.end = nn.Linear(m, 2).double(), nn.ReLU(), nn.Linear(2, 1).double()
        with torch.no_grad():
            self.units.weight.copy_(torch.stack([torch.linspace(-1, 1, m), torch.ones(m)]))
            self.units.bias.copy_(torch.tensor([100.0, -threshold]))
            self.end.weight.copy_(torch.tensor([[1.0, 2.0]]))

    def forward(self, x): return self.end(self.kink(self.units(x)))


def test_grouped_values_are_shapley_values_where_groups_do_not_interact():
    torch.manual_seed(0)
    x, background, model = torch.rand(1, 24).double(), torch.rand(9, 24).double(), Sum(24, threshold=-1.0)
    deep = group_by_window(attribute(model, x, background).values, np.arange(24), np.arange(0, 25, 3))[0, 0]
    np.testing.assert_allclose(deep, shapley(model, x[0], background, 8), atol=1e-10)


def test_with_an_interaction_equal_steps_still_agree_and_unequal_ones_differ_by_a_known_amount():
    background, model = torch.zeros(1, 24).double(), Sum(24, threshold=12.0)
    values = lambda x: group_by_window(attribute(model, x, background).values, np.arange(24), np.arange(0, 25, 3))[0, 0]
    equal = torch.full((1, 24), 0.7).double()
    np.testing.assert_allclose(values(equal), shapley(model, equal[0], background, 8), atol=1e-10)
    steps = torch.linspace(0.3, 1.1, 24).double()[None]
    deep, exact = values(steps), shapley(model, steps[0], background, 8)
    assert deep.sum() == pytest.approx(exact.sum(), abs=1e-10)
    # the rescale rule shares 2 (16.8 − 12) in proportion to the steps; in Shapley's orders the kink cuts large ones more often
    proportional = 9.6 * steps.reshape(8, 3).sum(1).numpy() / 16.8
    linear = (torch.linspace(-1, 1, 24) * steps[0]).reshape(8, 3).sum(1).numpy()
    np.testing.assert_allclose(deep, proportional + linear, atol=1e-6)
    more = exact - deep
    assert 0.01 < np.abs(more).max() < 0.5 and more[-1] < 0 < more[0]


# ---- our own encoder, masks, and what stays as it was


@pytest.mark.parametrize("conditions", [(), ("mass",)])
def test_latents_of_the_variational_autoencoder_are_explained_given_its_conditions(conditions):
    torch.manual_seed(0)
    survey = Survey("rest120", Grid("log", 3.53, 0.003, 120), resolution=((3000.0, 9000.0), (70.0, 70.0)))
    model = VariationalAutoencoder(survey, 3, VAEConfig(channels=(3, 4), hidden=(20,), dropout=0.1, conditions=conditions)).eval()
    context, x, background = torch.tensor([0.7])[: len(conditions)], spectra(4, 120), spectra(6, 120, seed=1)
    found = attribute(mean_network(model, context if conditions else None), x, background, dtype=torch.float64)
    with torch.no_grad():
        latents = model.encode(x, torch.ones_like(x), context=context.expand(4, -1) if conditions else None)
    assert np.allclose(found.output, latents, atol=1e-6) and found.additivity_error < 1e-7
    assert found.values.shape == (4, 3, 120) and np.abs(found.values).max() > 1e-3 * found.scale


def test_pixels_masked_in_both_contribute_nothing_and_one_masked_here_alone_counts_as_zero_flux():
    survey = Survey("rest40", Grid("log", 3.53, 0.01, 40), resolution=((3000.0, 9000.0), (70.0, 70.0)))
    random = np.random.default_rng(0)
    mask = np.zeros((7, 40), bool)
    mask[:, :5], mask[0, 20] = True, True
    seen = Spectra(np.where(mask, np.nan, random.uniform(1, 2, (7, 40))), np.ones((7, 40)), np.zeros(7), survey, mask=mask)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 10), nn.Tanh(), nn.Linear(10, 2))
    found = attribute(model, seen.flux[:1], seen.flux[1:])
    assert (found.values[..., :5] == 0).all() and np.abs(found.values[..., 20]).min() > 1e-3
    dark = seen.flux.copy()
    dark[0, 20] = 0
    assert np.array_equal(found.values, attribute(model, dark[:1], dark[1:]).values)
    with pytest.raises(DataError, match="background row 2 holds NaN"):
        attribute(model, dark, np.where(np.arange(7)[:, None] == 2, np.nan, dark))


def test_the_model_stays_as_it_was():
    model = encoder().train()
    model[3].eval()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    attribute(model, spectra(2), spectra(3, seed=1))
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert model.training and not model[3].training and all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(layer._forward_hooks for layer in model.modules())


# ---- wrappers that pass, networks that do not


class View(nn.Module):
    def forward(self, x): return x.view(len(x), 2, -1)


class Free(nn.Module):
    "A model with a forward of its own, whose layers form a chain all the same: views between them, an unused head."

    def __init__(self):
        super().__init__()
        self.end, self.first, self.act, self.unused = nn.Linear(16, 2), nn.Conv1d(1, 2, 3, padding=1), nn.Tanh(), nn.Linear(8, 2)

    def forward(self, x): return self.end(self.act(self.first(x[:, None])).flatten(1))


def test_a_forward_of_ones_own_and_views_are_chains_if_they_keep_the_numbers():
    torch.manual_seed(0)
    x, background = torch.randn(3, 8), torch.randn(4, 8)
    free = Free()
    plain = nn.Sequential(nn.Unflatten(1, (1, 8)), free.first, free.act, View(), nn.Flatten(), nn.Identity(), free.end)
    assert np.array_equal(attribute(free, x, background).values, attribute(plain, x, background).values)


class Residual(Free):
    def forward(self, x): return self.end((x[:, None] + self.act(self.first(x[:, None]))).flatten(1))


class Two(Free):
    def forward(self, x): return torch.cat([self.unused(x), self.end(self.act(self.first(x[:, None])).flatten(1))], 1)


class Functional(Free):
    def forward(self, x): return self.end(nn.functional.elu_(self.first(x[:, None])).flatten(1))


class Permute(nn.Module):
    def forward(self, x): return x.flip(-1)


def shared():
    act = nn.Tanh()
    return nn.Sequential(nn.Linear(8, 8), act, nn.Linear(8, 8), act, nn.Linear(8, 2))


REFUSED = {
    "in place": (lambda: nn.Sequential(nn.Linear(8, 2), nn.LeakyReLU(inplace=True)), r"1 \(LeakyReLU\) works in place"),
    "twice": (shared, r"1 \(Tanh\) is used twice"),
    "unknown": (lambda: nn.Sequential(nn.Linear(8, 2), nn.SiLU()), r"1 \(SiLU\) is no layer that attribution knows"),
    "unknown parameters": (lambda: nn.Sequential(nn.Linear(8, 2), nn.LayerNorm(2)), r"1 \(LayerNorm\)"),
    "other order": (lambda: nn.Sequential(Permute(), nn.Linear(8, 2)), r"0 \(Permute\)"),
    "functional": (Functional, r"what end \(Linear\) gets is not what first \(Conv1d\) gives"),
    "skip": (Residual, r"what end \(Linear\) gets is not what act \(Tanh\) gives"),
    "two ways": (Two, r"what first \(Conv1d\) gets is not what unused \(Linear\) gives"),
    "at the end": (lambda: nn.Sequential(Free(), nn.Softmax(1)), r"1 \(Softmax\)"),
    "batch": (lambda: nn.Sequential(nn.Linear(8, 2), nn.BatchNorm1d(2, track_running_stats=False)), "no running statistics"),
    "shape": (lambda: nn.Sequential(nn.Linear(8, 2), nn.Unflatten(1, (1, 2))), r"must give \(n, o\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_networks_that_are_no_chain_of_known_layers_are_refused_by_name(case):
    build, message = REFUSED[case]
    torch.manual_seed(0)
    with pytest.raises(ConfigError, match=message): attribute(build(), torch.randn(3, 8), torch.randn(4, 8))


def test_what_the_walk_cannot_see_the_sum_does():
    class Sometimes(Free):
        "A hidden clamp beyond what the first spectra reach."

        def forward(self, x): return super().forward(x.clamp(max=2))

    torch.manual_seed(0)
    x = torch.rand(3, 8)
    attribute(Sometimes(), x, torch.rand(4, 8))
    x[2] += 5
    with pytest.raises(RunError, match="miss the output by .* in a network of Conv1d, Tanh, Linear"):
        attribute(Sometimes(), x, torch.rand(4, 8))


@pytest.mark.parametrize("wrong, error, message", [
    ({"x": torch.zeros(0, 8)}, DataError, r"x must be \(n, m\) with n > 0"),
    ({"x": torch.zeros(8)}, DataError, r"not \(8,\)"),
    ({"background": torch.zeros(4, 9)}, DataError, "8 pixels, the background 9"),
    ({"outputs": [2]}, ConfigError, "some of 0 to 1"),
    ({"chunk": 0}, ConfigError, "chunk must be at least 1"),
])
def test_wrong_arguments_are_refused(wrong, error, message):
    given = {"x": torch.rand(3, 8), "background": torch.rand(4, 8)} | wrong
    with pytest.raises(error, match=message): attribute(Free(), **given)


# ---- windows


def test_windows_side_by_side_hold_everything_and_separate_ones_their_own_pixels():
    values, wave = np.random.default_rng(0).normal(size=(3, 2, 50)), np.linspace(3400, 8400, 50)
    np.testing.assert_allclose(group_by_window(values, wave, [0, 5000, 6500, 9000]).sum(-1), values.sum(-1))
    (two,) = np.moveaxis(group_by_window(values, wave, [[5000, 6500]]), -1, 0)
    np.testing.assert_allclose(two, values[..., (wave >= 5000) & (wave < 6500)].sum(-1))
    np.testing.assert_allclose(mean_absolute(values)[1], np.abs(values[:, 1]).mean(0))
    with pytest.raises(DataError, match="window 1, 9000 to 9100, holds no pixel"):
        group_by_window(values, wave, [[5000, 6500], [9000, 9100]])
    with pytest.raises(DataError, match="50 pixels at 49"): group_by_window(values, wave[1:], [0, 9000])


def test_the_error_is_what_is_missing_relative_to_the_scale():
    found = Attribution(np.array([[[1.0, 2.0]]]), np.array([0.5]), np.array([[3.6]]), 10.0)
    assert found.additivity_error == pytest.approx(0.01)


# ---- memory, and degenerate input


def test_memory_does_not_grow_with_the_number_of_pairs(monkeypatch):
    "The tables between pairs hold a chunk of them and no more, however many spectra and backgrounds there are."
    model, chunk, sizes = encoder(m=100), 2, []
    for name in ("_slopes", "_unpool", "_multipliers"):
        plain = getattr(attribution, name)

        def watched(*given, plain=plain):
            sizes.append(len(out := plain(*given)))
            return out

        monkeypatch.setattr(attribution, name, watched)
    for n, n_background in ((2, 2), (12, 13)):
        sizes.clear()
        attribute(model, spectra(n, 100), spectra(n_background, 100, seed=1), chunk=chunk)
        assert max(sizes) == chunk and len(sizes) >= n * n_background / chunk


def test_degenerate_input_gives_zeros_or_a_clear_error():
    "A constant pixel says nothing, a latent that collapsed has nothing to explain; NaN weights and no background are refused."
    torch.manual_seed(0)
    net, x, background = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2)), torch.rand(3, 8), torch.rand(4, 8)
    x[:, 3] = background[:, 3] = 0.5
    assert (attribute(net, x, background).values[..., 3] == 0).all()
    assert attribute(net, x[:1], background[:1]).additivity_error < 1e-6
    for wrong in (background[:0], np.empty((0, 8))):
        with pytest.raises(DataError, match=r"background must be \(n, m\) with n > 0"): attribute(net, x, wrong)
    with torch.no_grad(): net[2].weight[1] = net[2].bias[1] = 0
    found = attribute(net, x, background)
    assert (found.values[:, 1] == 0).all() and np.abs(found.values[:, 0]).max() > 0
    with torch.no_grad(): net[2].weight[0, 0] = torch.nan
    with pytest.raises(RunError, match="the model itself gives NaN"): attribute(net, x, background)
