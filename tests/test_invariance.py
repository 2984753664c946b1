"""Latent distances under augments, re-observation and repeats."""

import numpy as np
import pytest
import torch

from spectral_core.analysis.invariance import (
    invariance_table,
    latent_distance,
    observation_distances,
    random_pairs,
    redshift_invariance,
    repeat_distances,
    repeat_pairs,
)
from spectral_core.core import DataError
from spectral_core.models.similarity import consistency_loss, similarity_loss
from spectral_core.train import Stage, fit

rng = np.random.default_rng(0)
LATENTS = rng.standard_normal((800, 6))
MOVED = LATENTS + 0.1 * rng.standard_normal((800, 6))


def test_ratio_has_no_units_and_no_favourite_axes():
    "Scaling, shifting or rotating latent space changes nothing."
    base = redshift_invariance(LATENTS, MOVED)
    turn = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    for f in (lambda s: 7.0 * s, lambda s: s + 3.0, lambda s: s @ turn):
        assert redshift_invariance(f(LATENTS), f(MOVED)).ratio == pytest.approx(base.ratio, rel=1e-9)


def test_ratio_of_known_scatter():
    "Two independent views with scatter f of the population have the ratio f."
    for f in (0.03, 0.3):
        views = LATENTS + f * np.sqrt(2) * rng.standard_normal((5, *LATENTS.shape))
        result = redshift_invariance(LATENTS, views)
        assert result.ratio == pytest.approx(f, rel=0.03) and result.n == 800
        assert 0 < result.ratio_error < 0.05 * f


def test_rows_that_could_not_be_encoded_take_no_part():
    augmented = np.stack([MOVED, MOVED])
    augmented[0, 1], augmented[:, 2] = np.nan, np.nan
    result = redshift_invariance(LATENTS, augmented)
    assert result.n == 799 and np.isfinite(result).all()


def test_fault_34_collapsed_latents_are_announced():
    with pytest.warns(UserWarning, match="collapsed"): redshift_invariance(1e-6 * LATENTS, 1e-6 * MOVED)


def test_fault_34_consistency_alone_lets_the_latents_collapse():
    "Trained on L_c and nothing else, an encoder gives every spectrum the same latents; with L_sim beside it, it does not."
    x = torch.randn(240, 10, generator=torch.Generator().manual_seed(0))

    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.linear = torch.nn.Linear(10, 3)

        def forward(self, batch, *, similarity=0.0, **_):
            latents = self.linear(batch)
            moved = self.linear(batch + 0.5 * torch.randn_like(batch))
            return consistency_loss(latents, moved) + similarity * similarity_loss(latents, batch)

    def measure(**terms):
        model = Encoder()
        fit(model, x[:200], x[200:], stages=[Stage("only", 40, terms)], batch_size=20, lr=0.03, progress=False, device="cpu")
        again = x + 0.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad(): return redshift_invariance(model.linear(x), model.linear(again))

    with pytest.warns(UserWarning, match="collapsed"): alone = measure()
    both = measure(similarity=1.0)  # would be an error here if it warned
    assert alone.rand < 1e-3 < 0.1 < both.rand


def test_shapes_that_do_not_fit():
    with pytest.raises(DataError, match="do not go with"): redshift_invariance(LATENTS, MOVED[:5])
    with pytest.raises(DataError, match="views"): observation_distances(LATENTS, [0.1])
    for n in (0, 1):
        with pytest.raises(DataError, match="two"): random_pairs(n, 10)


def test_random_pairs_are_uniform_over_ordered_pairs():
    pairs = random_pairs(5, 50_000)
    counts = np.zeros((5, 5))
    np.add.at(counts, tuple(pairs.T), 1)
    assert (np.diag(counts) == 0).all()
    assert counts[~np.eye(5, dtype=bool)] == pytest.approx(2500, rel=0.1)


def test_table_has_a_row_per_objective():
    table = invariance_table({"fid": redshift_invariance(LATENTS, MOVED), "all": redshift_invariance(LATENTS, LATENTS)})
    assert list(table["objective"]) == ["fid", "all"] and table["ratio"][1] == 0


def test_views_of_one_galaxy_at_several_redshifts():
    z = np.array([0.05, 0.1, 0.3])
    views = LATENTS + z[:, None, None] * np.eye(6)[0]  # an encoder that drifts with redshift
    views[1, 0] = np.nan
    table = observation_distances(views, z)
    assert len(table) == 3 * 800 - 2
    assert np.allclose(table["distance"], table["delta_z"])
    own_z = np.tile(z[:, None], (1, 800)) + np.linspace(0, 0.01, 800)
    assert np.allclose(observation_distances(views, own_z)["delta_z"], table["delta_z"])


def test_repeat_pairs_are_all_pairs_within_groups():
    group = rng.integers(-1, 40, 300)
    expected = {(i, j) for i in range(300) for j in range(i + 1, 300) if group[i] == group[j] >= 0}
    assert {tuple(p) for p in repeat_pairs(group).tolist()} == expected
    assert repeat_pairs(np.array([], dtype=int)).shape == repeat_pairs(np.array([3])).shape == (0, 2)


def test_mahalanobis_distance_of_repeats_is_one_for_right_errors():
    mix = 0.1 * rng.standard_normal((400, 6, 6))
    covariance = mix @ mix.transpose(0, 2, 1) + 1e-3 * np.eye(6)
    noise = np.linalg.cholesky(covariance) @ rng.standard_normal((400, 6, 1))
    seen = np.repeat(LATENTS[:200], 2, axis=0) + noise[..., 0]
    seen[7] = np.nan
    repeats = repeat_distances(seen, np.repeat(np.arange(200), 2), covariance)
    assert len(repeats) == 199 and repeats["mahalanobis"].mean() == pytest.approx(1, abs=0.12)
    assert np.allclose(repeats["distance"] / repeats.meta["rand"], repeats["ratio"])
    assert np.allclose(repeats["distance"], latent_distance(seen[repeats["first"]], seen[repeats["second"]]))
    assert len(repeat_distances(LATENTS, np.arange(800))) == 0
