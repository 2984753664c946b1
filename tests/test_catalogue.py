"""The released catalogue: complete, described, the same after FITS and Parquet; links; the published list and where it stands."""

import bz2
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from astropy import units
from astropy.io import fits
from astropy.table import Table
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_core.analysis.catalogue import COLUMNS, check_described, cutout_url, describe_catalogue
from spectral_core.analysis.outliers import rank_outliers
from spectral_core.analysis.published import compare_with_published, published_outliers, read_log_prob
from spectral_core.analysis.stargalaxy import Generative, StarGalaxy, star_survey
from spectral_core.archives.redrock import read_redrock
from spectral_core.archives.sdss import sdss_id
from spectral_core.core import ConfigError, DataError, Flag, generator
from spectral_core.models.autoencoder import COMPACT, RedshiftAutoencoder
from spectral_core.models.flows import MaskedAutoregressiveFlow
from spectral_core.results import write_table
from spectral_core.simulate.oddities import GROUPS
from spectral_core.spectra.container import Spectra
from spectral_core.spectra.surveys import Survey
from spectral_core.spectra.wavelength import Grid

SURVEY = Survey("tiny", Grid("log", 3.70, 2.5e-4, 384), resolution=((5000,), (60,)), z_max=0.08)
FIRST = 39627794417718000  # as long as a TARGETID: 56 bits
rng = generator("test")


def spectra(n=9, dark=2, **facts):
    "Spectra of TARGETIDs, the last `dark` of them without data."
    ivar = np.where(np.arange(n) < n - dark, 25.0, 0.0)[:, None] * np.ones(SURVEY.grid.n)
    table = Table({"norm": np.ones(n)} | facts)
    flux, z = 1 + 0.1 * rng.normal(size=(n, SURVEY.grid.n)), rng.uniform(0, 0.05, n)
    return Spectra(flux, ivar, z, SURVEY, id=FIRST + rng.permutation(n), table=table)


def verdict_of(data):
    names = [name for name in COLUMNS if name.endswith(("_galaxy", "_star", "_ratio"))]
    table = Table({name: np.where(data.good, rng.normal(size=len(data)), np.nan) for name in names})
    table["kind"] = np.where(data.good, "neither", "flagged")
    return table


@pytest.fixture
def tables():
    data = spectra(ra=np.linspace(0, 350, 9), dec=np.r_[np.linspace(-80, 80, 8), np.nan], flux_r=np.r_[0.0, 10.0 ** np.arange(8)])
    verdict = verdict_of(data)
    return rank_outliers(data, log_prob=np.asarray(verdict["log_prob_galaxy"])), verdict, data.table, data


# ------------------------------------------------------------------ catalogue


def test_every_object_once_with_its_own_numbers(tables):
    ranking, verdict, facts, data = tables
    catalogue = describe_catalogue(ranking, verdict, facts)
    assert catalogue.colnames == list(COLUMNS) and sorted(catalogue["targetid"]) == sorted(data.id)
    assert catalogue["targetid"].dtype == np.int64
    at = {t: i for i, t in enumerate(data.id.tolist())}
    row = np.array([at[t] for t in catalogue["targetid"].tolist()])
    for name in verdict.colnames: np.testing.assert_array_equal(catalogue[name], verdict[name][row])
    for name in ("ra", "dec"): np.testing.assert_array_equal(catalogue[name], facts[name][row])
    np.testing.assert_array_equal(catalogue["z"], data.z[row])
    flux = np.asarray(facts["flux_r"])[row]
    np.testing.assert_allclose(10 ** (0.4 * (22.5 - catalogue["mag_r"])), np.where(flux > 0, flux, np.nan))


def test_objects_that_a_flag_stopped_stay_with_the_reason(tables):
    ranking, verdict, facts, data = tables
    catalogue = describe_catalogue(ranking, verdict, facts)
    stopped = catalogue["rank"] < 0
    assert stopped.sum() == 2 and set(catalogue["targetid"][stopped]) == set(data.id[~data.good])
    assert all(Flag.reasons(row["flag"], words=True) in row["reason"] and row["reason"] for row in catalogue[stopped])
    assert sorted(catalogue["rank"][~stopped]) == list(range(1, 8))


def test_every_column_has_words_and_quantities_have_units(tables):
    catalogue = describe_catalogue(*tables[:3], also={"norm": "median flux"})
    assert all(column.info.description for column in catalogue.itercols())
    assert {name: str(catalogue[name].unit) for name in catalogue.colnames if catalogue[name].unit} == {
        "ra": "deg", "dec": "deg", "mag_r": "mag", "velocity_star": "km / s"}
    assert all(units.Unit(unit) and text.isascii() for unit, text in COLUMNS.values() if unit)


def test_a_mock_has_no_positions_and_no_links():
    data = spectra(mag_r=np.arange(9.0))
    verdict = verdict_of(data)
    ranking = rank_outliers(data, log_prob=np.asarray(verdict["log_prob_galaxy"]))
    catalogue = describe_catalogue(ranking, verdict, data.table)
    assert np.isnan(catalogue["ra"]).all() and {*catalogue["image_desi"], *catalogue["image_sdss"]} == {""}
    assert sorted(catalogue["mag_r"]) == list(range(9))


def test_masked_values_become_nan_not_what_lies_below_the_mask(tables):
    ranking, verdict, facts, _ = tables
    facts = Table(facts, masked=True)
    facts["ra"].mask[:] = True
    catalogue = describe_catalogue(ranking, verdict, facts)
    assert np.isnan(catalogue["ra"]).all() and (catalogue["image_desi"] == "").all()


def test_what_would_make_a_catalogue_wrong_is_refused(tables):
    ranking, verdict, facts, _ = tables
    with pytest.raises(DataError, match="same objects"): describe_catalogue(ranking[:-1], verdict, facts)
    with pytest.raises(DataError, match="same objects"): describe_catalogue(ranking, verdict[:-1], facts)
    twice, silent = ranking.copy(), ranking.copy()
    twice["id"][3] = twice["id"][0]
    with pytest.raises(DataError, match=f"{twice['id'][0]} stands 2 times"): describe_catalogue(twice, verdict, facts)
    silent["reason"][silent["rank"] < 0] = ""
    with pytest.raises(DataError, match="2 objects are not ranked"): describe_catalogue(silent, verdict, facts)
    for also, word in (({"group": "planted"}, "no column group"), ({"norm": ""}, "without a description: norm")):
        with pytest.raises(DataError, match=word): describe_catalogue(ranking, verdict, facts, also=also)
    with pytest.raises(DataError, match="ra, dec"): check_described(facts)
    verdict.remove_columns(["tail_star", "log_prob_star"])
    with pytest.raises(DataError, match="tail_star, log_prob_star"): describe_catalogue(ranking, verdict, facts)


def test_the_verdict_of_two_real_models_fits_in():
    torch.manual_seed(0)
    networks = [RedshiftAutoencoder(survey, n_latent=2, config=COMPACT) for survey in (SURVEY, star_survey(SURVEY))]
    pair = [Generative(network, MaskedAutoregressiveFlow(2)) for network in networks]
    for part in pair: part.flow.standardise(torch.randn(50, 2))
    data = spectra(30, dark=3)
    judge = StarGalaxy.fit(*pair, spectra(40, 0), spectra(40, 0), k=10)
    verdict = judge(data)
    log_prob, tail = (np.asarray(verdict[name]) for name in ("log_prob_galaxy", "tail_galaxy"))
    ranking = rank_outliers(data, log_prob=log_prob, tail=tail, by="tail_probability")
    catalogue = describe_catalogue(ranking, verdict, data.table)
    left_out = set(verdict.colnames) - set(catalogue.colnames)
    assert left_out == {"log_likelihood_galaxy", "log_likelihood_star"} and (catalogue["rank"] < 0).sum() == 3


# ------------------------------------------------------------------ files


@pytest.mark.parametrize("suffix", ["fits", "parquet", "ecsv"])
def test_catalogue_comes_back_from_a_file(tables, tmp_path, suffix):
    catalogue = describe_catalogue(*tables[:3])
    back = Table.read(write_table(catalogue, tmp_path / f"c.{suffix}"))
    assert back.colnames == catalogue.colnames
    for name in catalogue.colnames:
        assert back[name].description == catalogue[name].description and back[name].unit == catalogue[name].unit, name
        blank = {"f": np.nan, "S": "", "U": ""}.get(back[name].dtype.kind)  # astropy masks NaN and empty texts of FITS
        kind = str if catalogue[name].dtype.kind == "U" else catalogue[name].dtype
        np.testing.assert_array_equal(np.asarray(np.ma.filled(back[name], blank)).astype(kind), catalogue[name], err_msg=name)
    assert back["strong_line"].dtype == bool and back["targetid"].dtype.kind == "i" and back["targetid"].dtype.itemsize == 8


def test_readers_other_than_astropy_find_the_descriptions(tables, tmp_path):
    catalogue = describe_catalogue(*tables[:3])
    header = fits.getheader(write_table(catalogue, tmp_path / "c.fits"), 1)
    for i, name in enumerate(catalogue.colnames, 1):
        assert (header[f"TTYPE{i}"], header[f"TCOMM{i}"]) == (name, COLUMNS[name][1])
    unit = {name: header.get(f"TUNIT{i}") for i, name in enumerate(catalogue.colnames, 1)}
    assert unit["ra"] == "deg" and unit["velocity_star"] == "km s-1"
    said = pq.read_schema(write_table(catalogue, tmp_path / "c.parquet")).metadata[b"table_meta_yaml"].decode()
    assert all(f"name: {name}" in said for name in COLUMNS) and "radial velocity at which" in said


def test_descriptions_in_fits_are_ascii_long_and_never_of_another_table(tmp_path):
    table = Table({"id": [2**60 + 1], "text": ["Å"], "x": [1.0]}, meta={"TCOMM3": "of another table", "TCOMM9": "too"})
    table["text"].description = "χ² of all pixels, " + 12 * "a long description "
    back = Table.read(write_table(table, tmp_path / "t.fits"))
    said = back["text"].description
    assert said == back.meta["TCOMM2"] and said.startswith("chi2 of all") and len(said) > 200
    assert set(back.meta) == {"TCOMM2", "ESCAPED"} and back["id"][0] == 2**60 + 1
    assert table["text"].description.startswith("χ²") and "TCOMM9" in table.meta, "the table itself was changed"


# ------------------------------------------------------------------ links


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.floats(0, 360), st.floats(-90, 90), st.sampled_from(["desi", "sdss"]), st.floats(1, 3600), st.integers(16, 2048))
def test_a_link_says_where_and_how_large(ra, dec, survey, size, n_pixel):
    [link] = cutout_url(ra, dec, survey, size_arcsec=size, n_pixel=n_pixel)
    parts = urlsplit(link)
    query = {k: v for k, [v] in parse_qs(parts.query, strict_parsing=True).items()}
    assert parts.scheme == "https" and abs(float(query["ra"]) - ra) < 1e-6 and abs(float(query["dec"]) - dec) < 1e-6
    scale, sides = ("pixscale", ["size"]) if survey == "desi" else ("scale", ["width", "height"])
    assert all(int(query[side]) == n_pixel for side in sides)
    assert float(query[scale]) * n_pixel == pytest.approx(size, rel=1e-4)


def test_links_have_the_addresses_of_the_archives():
    ra, dec = [202.4696, 10.0], [47.1952, -0.5]
    assert cutout_url(ra, dec, size_arcsec=64).tolist() == [
        "https://www.legacysurvey.org/viewer/cutout.jpg?ra=202.469600&dec=47.195200&layer=ls-dr9&pixscale=0.25&size=256",
        "https://www.legacysurvey.org/viewer/cutout.jpg?ra=10.000000&dec=-0.500000&layer=ls-dr9&pixscale=0.25&size=256"]
    assert cutout_url(ra, dec, "sdss", size_arcsec=64)[1] == (
        "https://skyserver.sdss.org/dr17/SkyServerWS/ImgCutout/getjpeg?ra=10.000000&dec=-0.500000&scale=0.25&width=256&height=256")


@pytest.mark.parametrize("ra, dec", [(np.nan, 1.0), (1.0, np.nan), (np.inf, 0.0), (-9999.0, -9999.0), (10.0, 91.0), (361.0, 0.0)])
def test_no_link_without_a_position_on_the_sky(ra, dec):
    assert cutout_url([5.0, ra], [5.0, dec])[1] == "" and cutout_url([5.0, ra], [5.0, dec])[0] != ""


def test_links_of_nothing_and_bad_requests():
    assert cutout_url([], []).shape == (0,)
    with pytest.raises(ConfigError, match="did you mean 'desi'"): cutout_url(1.0, 1.0, "dessi")
    with pytest.raises(ConfigError, match="shows nothing"): cutout_url(1.0, 1.0, size_arcsec=0)


# ------------------------------------------------------------------ the published list


def test_the_published_list_holds_each_footnote_once():
    table = published_outliers()
    notes = sorted(int(note) for text in table["footnote"] for note in text.split())
    assert notes == list(range(2, 39)), "footnotes 2-38 of the paper"
    assert len(np.unique(table["targetid"])) == len(np.unique(table["number"])) == len(table) == 35
    assert table["targetid"].dtype == np.int64 and (np.diff(table["number"]) > 0).all()
    count = {group: (table["group"] == group).sum() for group in ("double_peaked", "misclassified_star", "star_pair", "quasar")}
    assert count == {"double_peaked": 9, "misclassified_star": 2, "star_pair": 4, "quasar": 3}


def test_only_possible_targetids_with_one_explanation_serve_as_truth():
    "A TARGETID holds the release of the imaging in bits 42-57: 9010 (south) or 9011 (north) of Legacy Surveys DR9."
    table = published_outliers()
    possible = np.isin(table["targetid"] >> 42, [9010, 9011])
    assert (possible == (table["status"] != "misprinted")).all() and (~possible).sum() == 1
    assert table["targetid"][table["status"] == "ambiguous"].tolist() == [39633149726034475]
    assert (np.char.count(table["footnote"], " ") > 0).sum() == 2  # the ambiguous one, and number 60


def test_groups_that_we_plant_are_named_alike():
    others = set(published_outliers()["group"].tolist()) - set(GROUPS["group"].tolist())
    assert others == {"irregular_lines", "merger", "active_nucleus", "quasar", "bl_lac", "calibration"}


@settings(max_examples=30, derandomize=True, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 35))
def test_ranks_follow_the_objects_in_whatever_order(seed, n_there):
    draw, published = generator("published", seed), published_outliers()
    there = draw.permutation(35)[:n_there]
    ids = np.r_[published["targetid"][there], FIRST - 1 - np.arange(50)]
    order = draw.permutation(len(ids))
    found = compare_with_published(Table({"targetid": ids, "rank": np.arange(1, len(ids) + 1)})[order])
    assert np.flatnonzero(found["at_hand"]).tolist() == sorted(there)
    assert found["rank"][there].tolist() == list(range(1, n_there + 1)) and (found["rank"][~found["at_hand"]] == -1).all()
    np.testing.assert_allclose(found["percentile"][there], 100 * np.arange(1, n_there + 1) / len(ids))
    assert np.isnan(found["percentile"][~found["at_hand"]]).all()


def test_an_object_at_hand_that_was_not_scored_says_why(tables):
    ranking, verdict, facts, _ = tables
    ranking = ranking.copy()
    ranking["id"][[0, -1]] = published_outliers()["targetid"][[2, 7]]
    found = compare_with_published(describe_catalogue(ranking, verdict, facts))
    assert found["at_hand"].sum() == 2 and found["rank"][2] == 1 and found["percentile"][2] == pytest.approx(100 / 7)
    assert found["rank"][7] == -1 and found["reason"][7] and found["kind"][7] == "flagged"


def test_comparison_with_nothing_and_with_doubles():
    assert not compare_with_published(Table({"targetid": np.array([], "i8"), "rank": np.array([], "i8")}))["at_hand"].any()
    with pytest.raises(DataError, match="stand twice"): compare_with_published(Table({"id": [1, 1], "rank": [1, 2]}))
    with pytest.raises(DataError, match="neither rank nor log_prob"): compare_with_published(Table({"id": [1], "z": [0.1]}))


def test_log_probabilities_are_read_to_the_last_bit(tmp_path):
    published = published_outliers()
    ids = np.r_[published["targetid"], FIRST + 1 + np.arange(100)]
    value = rng.normal(size=len(ids))
    text = "".join(f"{i} {v!r}\n" for i, v in zip(ids.tolist(), value.tolist())).encode()
    (tmp_path / "desi.txt.bz2").write_bytes(bz2.compress(text))
    table = read_log_prob(tmp_path / "desi.txt.bz2")
    assert table["id"].tolist() == ids.tolist() and table["log_prob"].tolist() == value.tolist()
    found = compare_with_published(table)
    assert found["at_hand"].all() and found["rank"][np.argmin(value[:35])] == 1 + (value < value[:35].min()).sum()
    (tmp_path / "cut.txt.bz2").write_bytes(bz2.compress(text)[:-20])
    (tmp_path / "three.txt").write_text("1 2 -3.5\n")
    (tmp_path / "words.txt").write_text("one -3.5\n")
    (tmp_path / "sdss.txt").write_text("# plate mjd fiber logp\n412 52254 308 -3.5\n412 52250 129 nan\n")
    for name in ("cut.txt.bz2", "three.txt", "words.txt", "absent.txt"):
        with pytest.raises(DataError, match=name): read_log_prob(tmp_path / name)
    sdss = read_log_prob(tmp_path / "sdss.txt")
    assert sdss["id"].tolist() == sdss_id([412, 412], [52254, 52250], [308, 129]).tolist()
    assert not compare_with_published(sdss)["at_hand"].any(), "another survey"


@pytest.mark.real
def test_no_published_outlier_is_among_the_real_spectra_at_hand(mirror):
    from spectral_core.archives.desi import read_desi

    spectra = read_desi(mirror / "desi_spectra", on_error="skip", dedupe="first")
    files = [*(mirror / "redrock_output_example").glob("redrock-*.fits"), *(mirror / "desi_spectra").glob("redrock-*.fits")]
    ids = [spectra.id, *(np.asarray(read_redrock(path)["targetid"]) for path in files)]
    ids = np.unique(np.concatenate(ids))
    assert len(files) == 3 and (ids > 0).sum() == 55
    found = compare_with_published(Table({"targetid": ids, "rank": np.arange(1, len(ids) + 1)}))
    assert found["at_hand"].sum() == 0, "the comparison of chapter 4 has found something to compare"


@pytest.mark.real
def test_twelve_of_the_published_outliers_are_in_the_catalogue_of_lines_at_their_redshifts(mirror):
    "Their TARGETIDs are thus real, and the galaxy behind the M star stands where the paper says, at z = 0.13."
    with np.load(mirror / "desi_sv3_bgs_line_ews" / "line_ews.npz") as file: ids, z = file["targetid"], file["z"]
    found = compare_with_published(Table({"targetid": ids, "rank": np.arange(1, len(ids) + 1)}))
    there = found[found["at_hand"]]
    assert len(there) == 12 and set(there["status"].tolist()) == {"ok"}
    assert set(there["group"].tolist()) == {"merger", "m_star_and_galaxy", "active_nucleus", "double_peaked"}
    [row] = found["rank"][found["number"] == 34]
    assert z[row - 1] == pytest.approx(0.13, abs=0.01)
