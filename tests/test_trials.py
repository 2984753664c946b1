"""Trials: rows that can be compared, from networks that differ in nothing else."""

import numpy as np
import pytest
from astropy.table import Table

from spectral_core.analysis.dimension import COLUMNS, choose_dimension, synthetic_manifold
from spectral_core.analysis.trials import judge, trial
from spectral_core.core import DataError
from spectral_core.models.vae import VAEConfig
from spectral_core.predict import chi2
from spectral_core.spectra.conditions import ConditionedSpectra
from spectral_core.spectra.container import Spectra
from spectral_core.spectra.restframe import rest_survey

CONFIG = VAEConfig(channels=(), hidden=(24,), positive=False, sigma=0.5)
FIT = {"n_epoch": 6, "batch_size": 32, "lr": 3e-3, "device": "cpu"}


@pytest.fixture(scope="module")
def parts():
    "Train, valid and test parts of a manifold of two dimensions, its coordinates in the table."
    made = synthetic_manifold(500, 2, 48, seed=3)
    table = Table({"first": made.latents[:, 0], "second": made.latents[:, 1]})
    return Spectra(made.flux, made.ivar, np.zeros(500), rest_survey("manifold", 4000.0, 8000.0, 48), table=table).split(seed=0)


def test_a_table_of_trials_is_what_the_choice_reads(parts):
    table = Table(rows=[trial(parts, n, config=CONFIG, **FIT).row for n in (1, 2)])
    assert set(COLUMNS) <= set(table.colnames)
    assert choose_dimension(table).dimension == 2
    assert table["bounds"].shape == (2, len(parts[2]))
    np.testing.assert_allclose(table["iwae_error"], np.std(table["bounds"], axis=1) / np.sqrt(table["n"]))


def test_the_same_trial_twice_is_the_same(parts):
    first, second = (trial(parts, 2, config=CONFIG, **FIT).row for _ in range(2))
    np.testing.assert_array_equal(first.pop("bounds"), second.pop("bounds"))
    assert first == second


def test_an_unfinished_trial_goes_on(parts, tmp_path):
    "The folder holds the fit: a second call reads it and gives the same row."
    first, second = (trial(parts, 1, config=CONFIG, run=tmp_path / "one", **FIT).row for _ in range(2))
    np.testing.assert_allclose(first["bounds"], second["bounds"], rtol=1e-6)


def test_a_true_coordinate_as_condition_saves_a_latent(parts):
    plain, told = (trial(parts, 1, conditions, config=CONFIG, **(FIT | {"n_epoch": 15})).row for conditions in ("none", "first"))
    assert told["conditions"] == "first"
    assert told["iwae"] > plain["iwae"] + 3 * plain["iwae_error"]
    assert told["chi2"] < plain["chi2"]


def test_chi2_is_in_units_of_the_likelihood(parts):
    "With the spectra's own inverse variances it is the χ² of `predict`, summed over the pixels."
    fitted = trial(parts, 2, config=VAEConfig(channels=(), hidden=(24,), positive=False, likelihood="ivar"), **FIT)
    expected = np.mean(chi2(fitted.model, parts[2], device="cpu")["chi2_all"]) * 48
    assert fitted.row["chi2"] == pytest.approx(expected, rel=1e-5)


def test_flagged_spectra_have_no_say(parts):
    fitted = trial(parts, 2, config=CONFIG, **FIT)
    test, flag = parts[2], parts[2].flag.copy()
    flag[:5] |= 1
    row = judge(fitted.model, test.replace(flag=flag), device="cpu")
    assert row["n"] == len(test) - 5
    assert np.isnan(row["bounds"][:5]).all()
    assert np.isfinite([row["iwae"], row["chi2"], row["elbo"]]).all()


def test_nan_conditions_are_refused(parts):
    train = parts[0].replace(table=Table({"first": np.where(np.arange(len(parts[0])) == 7, np.nan, 1.0)}))
    with pytest.raises(DataError, match="first.*not finite.*row 7"): trial((train, *parts[1:]), 1, "first", config=CONFIG, **FIT)
    assert isinstance(ConditionedSpectra(parts[1], ["first"]), ConditionedSpectra)
