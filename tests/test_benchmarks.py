"""What the benchmark calls our side of the work is right, and how it measures is fair; nothing here needs spender."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from spectral_core.models.autoencoder import COMPACT, RedshiftAutoencoder
from spectral_core.spectra.store import write_store
from spectral_core.spectra.surveys import SDSS


@pytest.fixture(scope="module")
def bench():
    path = Path(__file__).parents[1] / "benchmarks" / "spender_ratios.py"
    spec = importlib.util.spec_from_file_location("spender_ratios", path)
    module = sys.modules["spender_ratios"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    yield module
    del sys.modules["spender_ratios"]


def naive_similarity(latents, rest, wave, slope=5.0):
    "The published formula, pair by pair with all wavelengths, in float64."
    inner = (wave > 4000) & (wave < 7000)
    window = torch.tensor(np.exp(-((0.5 * (wave - 5000) / 1000) ** 2)))
    rest = rest.double() / rest.double()[:, inner].median(1, keepdim=True).values
    spectra = (window * (rest[None] - rest[:, None]) ** 2).mean(-1)
    apart = ((latents[None] - latents[:, None]).double() ** 2).mean(-1)
    n = len(latents)
    spectra, apart = (d * n * (n - 1) / d.sum() for d in (spectra, apart))
    delta = slope * (apart - spectra)
    cost = torch.sigmoid(delta - 2.5) + torch.sigmoid(-delta - 2.5)
    return (cost.sum() - cost.diagonal().sum()) / n


def test_similarity_is_the_pairwise_formula_and_so_is_its_gradient(bench):
    latents, rest = torch.randn(7, 6), bench.make_rest(7, bench.LINEAR)
    ours = bench.gradient(bench.our_similarity(latents, rest, bench.LINEAR.wave), rest)
    theirs = bench.gradient(naive_similarity(latents, rest, bench.LINEAR.wave), rest)
    assert bench.difference(theirs, ours) < 1e-4


@pytest.mark.parametrize("grid", ["LINEAR", "NATIVE"])
def test_redshifted_spectra_are_those_of_a_plain_interpolation(bench, grid):
    grid = getattr(bench, grid)
    rest, z = bench.make_rest(5, grid), bench.make_batch(5).z
    seen, inside = bench.resample_rest(rest, grid, SDSS.grid, z)
    assert inside.all()  # so that spender has nothing to set to zero
    wave = [grid.wave * (1 + float(x)) for x in z]
    exact = [np.interp(SDSS.grid.wave, w, x) for w, x in zip(wave, rest.detach().double().numpy())]
    # on the lattice of 1e-4 dex we interpolate in log10(wave), np.interp in wave: 3e-5 of a pixel apart at most
    np.testing.assert_allclose(seen.detach(), np.array(exact), atol=2e-5)


def test_an_epoch_holds_every_spectrum_once_with_its_own_pixels(bench, tmp_path):
    store = write_store(tmp_path, bench.blocks(50, size=20))
    sizes, z, flux, weight = bench.summary(store.batches(16), pixel=7)
    order = np.argsort(np.concatenate([s.z for s in bench.blocks(50, size=20)]))
    assert sizes.tolist() == [16, 16, 16, 2] and len(set(z.tolist())) == 50
    for found, name in ((z, "z"), (flux, "flux"), (weight, "weight")):
        whole = np.concatenate([getattr(s, name) for s in bench.blocks(50, size=20)])
        np.testing.assert_array_equal(found, (whole if name == "z" else whole[:, 7])[order].astype("f4"))
    assert not torch.equal(torch.cat([b.z for b in store.batches(16)]).float(), z)
    assert bench.copies(store, 16)() == ()


def test_a_step_returns_the_fidelity_of_its_formula_and_moves_the_weights(bench):
    model = RedshiftAutoencoder(SDSS, 6, replace(COMPACT, family="scale_free", error_floor=0.0))
    batch = bench.make_batch(4)
    with torch.no_grad():
        residual = batch.flux - model.reconstruct(model.encode(batch.flux, batch.weight), batch.z)
        expected = 0.5 * (batch.weight * residual**2).mean()
    step = bench.our_step(model, batch)
    before = model.decoder.mlp[0].weight.clone()
    fidelity, similarity = step()
    torch.testing.assert_close(fidelity, expected)
    assert 2 / (1 + np.exp(2.5)) < similarity < 1 and not torch.equal(before, model.decoder.mlp[0].weight)


def test_sides_that_disagree_are_not_timed(bench):
    one, other = (torch.ones(3),), (torch.ones(3) + 1e-3,)
    assert bench.difference(one, other) == pytest.approx(1e-3, rel=1e-3)
    with pytest.raises(AssertionError, match="shapes"): bench.difference(one, (torch.ones(2),))
    called = []
    sides = {"spender": lambda: one, "ours": lambda: called.append(1) or other}
    case = bench.Case("work", 3, sides, [("spender", "ours", 2)], {"ours": 1e-4})
    with pytest.raises(SystemExit, match="ours is off by 1.0e-03"): bench.measure(case, 2, "cpu")
    assert len(called) == 1


def test_ratios_are_those_of_the_work_and_stand_in_the_table(bench):
    x = torch.rand(200, 200)
    work = lambda n: lambda: (sum((x @ x for _ in range(n)), start=0 * x) * 0,)
    case = bench.Case("products", 200, {"spender": work(20), "ours": work(2)}, [("spender", "ours", 5)], {"ours": 1e-9})
    (row,) = bench.measure(case, 3, "cpu")
    assert 3 < row["ratio"] < 30 and row["low"] <= row["ratio"] <= row["high"] and row["difference"] == 0
    page = bench.as_markdown([row], "machine")
    table = [text for text in page.splitlines() if text.startswith("|")]
    assert len({text.count("|") for text in table}) == 1 and f"**{row['ratio']:.3g}**" in table[2]


def test_without_spender_the_way_out_says_what_to_install(bench, monkeypatch):
    monkeypatch.setitem(sys.modules, "spender", None)
    with pytest.raises(SystemExit, match="pip install 'spender==0.3'"): bench.load_spender()
