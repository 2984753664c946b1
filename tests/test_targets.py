"""Target bits of every phase of DESI, and the samples cut from them: each cut removes exactly its rows."""

import numpy as np
import pytest
from astropy.table import MaskedColumn, Table
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_core.archives.desi import read_desi
from spectral_core.archives.redrock import read_redrock
from spectral_core.archives.targets import (
    FIBER_RULES,
    TARGET_BITS,
    bgs_cuts,
    bgs_selection,
    fates,
    fibre_works,
    mws_cuts,
    mws_selection,
    phases,
    target_bit,
)
from spectral_core.core import ConfigError, DataError
from spectral_core.spectra.container import Spectra
from spectral_core.spectra.surveys import DESI

SOUND = {"survey": "sv3", "program": "bright", "sv3_desi_target": 2**60, "coadd_fiberstatus": 0, "zwarn": 0, "spectype": "GALAXY",
         "z": 0.2, "deltachi2": 100.0, "zerr": 1e-5}
FAULTS = {"survey sv3": [{"survey": "sv1"}, {"survey": "main"}], "program bright": [{"program": "dark"}, {"program": ""}],
          "BGS_ANY": [{"sv3_desi_target": 2**61}, {"sv3_desi_target": 0}, {"sv3_desi_target": 2**59 - 1}],
          "fibre (functioning)": [{"coadd_fiberstatus": bit} for bit in (1, 1 << 2, 1 << 9, 513, -1)],
          "ZWARN = 0": [{"zwarn": 4}, {"zwarn": 518}, {"zwarn": -1}],
          "SPECTYPE = GALAXY": [{"spectype": "QSO"}, {"spectype": "STAR"}, {"spectype": ""}],
          "0 ≤ z < 0.8": [{"z": -1e-4}, {"z": 0.8}, {"z": 1.4}, {"z": np.nan}],
          "DELTACHI2 > 40": [{"deltachi2": 40.0}, {"deltachi2": 9.0}, {"deltachi2": np.nan}],
          "ZERR < 0.0005 (1 + z)": [{"zerr": 0.0006}, {"zerr": 3.6}, {"zerr": np.nan}]}


def catalogue(faults=FAULTS, sound=SOUND, n_sound=3):
    "Rows without fault, then the faulty ones; the bits stay integers."
    rows = [sound] * n_sound + [sound | fault for group in faults.values() for fault in group]
    return Table({name: np.array([row[name] for row in rows]) for name in sound} | {"targeting": np.full(len(rows), "sv3")})


def test_each_cut_removes_exactly_its_rows():
    table = catalogue()
    rows, counts = bgs_selection(table)
    assert rows.tolist() == [0, 1, 2]
    assert counts["cut"].tolist() == list(FAULTS)
    assert counts["removed"].tolist() == [len(group) for group in FAULTS.values()]
    assert fates(bgs_cuts(table)).tolist() == [""] * 3 + [name for name, group in FAULTS.items() for _ in group]


@settings(max_examples=30, derandomize=True, deadline=None)
@given(st.permutations(range(len(catalogue()))))
def test_the_order_of_rows_changes_nothing(order):
    table = catalogue()
    rows, counts = bgs_selection(table[list(order)])
    assert sorted(np.array(order)[rows]) == [0, 1, 2]
    assert counts["removed"].tolist() == bgs_selection(table)[1]["removed"].tolist()


def test_stars_have_their_own_cuts():
    faults = {"MWS_ANY": [{"sv3_desi_target": 2**60}], "fibre (functioning)": [{"coadd_fiberstatus": 512}]}
    faults |= {"ZWARN = 0": [{"zwarn": 1}],
              "SPECTYPE = STAR": [{"spectype": "GALAXY"}, {"spectype": "QSO"}]}
    star = SOUND | {"sv3_desi_target": 2**61, "spectype": "STAR", "z": -2e-4}
    table = catalogue(faults, star, 2)
    rows, counts = mws_selection(table)
    assert rows.tolist() == [0, 1]
    assert counts["removed"].tolist() == [0, 0, 1, 1, 1, 2]
    assert fates(mws_cuts(table)).tolist()[2:] == [name for name, group in faults.items() for _ in group]


def test_the_numbers_are_parameters():
    table = catalogue()
    assert len(bgs_selection(table, survey=None, program=None)[0]) == 3 + 4
    assert len(bgs_selection(table, z_max=1.5)[0]) == 3 + 2
    assert len(bgs_selection(table, deltachi2=8)[0]) == 3 + 2
    assert len(bgs_selection(table, zerr=None)[0]) == 3 + 3
    assert bgs_selection(table, survey="SV3", program="BRIGHT")[0].tolist() == [0, 1, 2]
    assert not len(bgs_selection(table, survey="sv2")[0])


@pytest.mark.parametrize("rule", FIBER_RULES)
def test_fibre_rules(rule):
    bits = np.arange(31)
    passed = {"functioning": set(range(31)) - {0, 2, 8, 9, 11, 16, 17, 18, 19, 21}, "catalogue": {3, 20}, "zero": set()}[rule]
    assert set(bits[fibre_works(1 << bits, rule)]) == passed
    assert fibre_works(np.array([0, -1], "i4"), rule).tolist() == [True, False]
    table = catalogue({rule: [{"coadd_fiberstatus": 1 << int(bit)} for bit in bits]})
    assert len(bgs_selection(table, fiberstatus=rule)[0]) == 3 + len(passed)
    with pytest.raises(ConfigError, match="functioning, catalogue, zero"): bgs_selection(table, fiberstatus="good")


@pytest.mark.parametrize("phase", ["sv1", "sv2", "sv3", "main"])
def test_the_column_of_each_phase(phase):
    prefix = "" if phase == "main" else f"{phase}_"
    columns = {f"{what}_target": [0] * 4 for what in ("desi", "bgs", "mws")}  # survey validation carries zeros without prefix
    columns |= {f"{prefix}desi_target": [2**60, 2**61, 2**60 | 2**61, 1], f"{prefix}bgs_target": [2, 0, 1, 0]}
    columns |= {f"{prefix}mws_target": [0, 1, 2, 0]}
    for table in (Table(columns), Table({k.upper(): v for k, v in columns.items()})):
        assert set(phases(table)) == {phase}
        assert target_bit(table, "BGS_ANY").tolist() == [True, False, True, False]
        assert target_bit(table, "MWS_ANY").tolist() == [False, True, True, False]
        assert target_bit(table, "BGS_BRIGHT").tolist() == [True, False, False, False]
        assert target_bit(table, "MWS_WD").tolist() == [False, False, True, False]
        assert target_bit(table, "LRG").tolist() == [False, False, False, True]


def test_commissioning_has_one_column():
    table = Table({"CMX_TARGET": [2**8, 2**9, 2**32], "DESI_TARGET": [0, 0, 0]})
    assert target_bit(table, "BGS_ANY").tolist() == [True, False, False]
    assert target_bit(table, "MWS_ANY").tolist() == [False, True, False]
    assert target_bit(table, "SKY").tolist() == [False, False, True]


def test_a_catalogue_of_all_surveys_is_read_row_by_row():
    table = Table({"SURVEY": ["sv1", "sv3", "main", "special"], "SV1_BGS_TARGET": [4, 4, 4, 4], "SV3_BGS_TARGET": [4, 4, 0, 0],
                   "BGS_TARGET": [0, 0, 4, 0], "SV1_DESI_TARGET": [2**60, 0, 0, 0], "SV3_DESI_TARGET": [0, 2**60, 0, 0],
                   "DESI_TARGET": [0, 0, 2**60, 0]})
    assert target_bit(table, "BGS_ANY").tolist() == [True, True, True, False]
    assert target_bit(table, "BGS_WISE").tolist() == [False, True, True, False]  # bit 2 of SV1 is another sample
    assert target_bit(table, "BGS_FAINT_EXT").tolist() == [True, False, False, False]


def test_bits_survive_and_floats_are_refused():
    table = Table({"sv3_desi_target": np.array([2**60 + 1, 2**60], "i8")})
    assert target_bit(table, "LRG").tolist() == [True, False]
    assert target_bit(Table({"sv3_desi_target": np.array([2**60 + 1], "u8")}), "BGS_ANY").all()
    with pytest.raises(DataError, match="float64: bits above 52"): target_bit(Table({"sv3_desi_target": [2.0**60]}), "BGS_ANY")


def test_unknown_names():
    with pytest.raises(ConfigError, match="did you mean 'BGS_BRIGHT'"): target_bit(catalogue(), "BGS_BRIHT")
    with pytest.raises(DataError, match="unknown survey: sv7_desi_target"): target_bit(Table({"sv7_desi_target": [1]}), "BGS_ANY")
    strange = Table({"targeting": ["sv8"], "desi_target": [1]})
    with pytest.raises(DataError, match="unknown survey 'sv8'"): target_bit(strange, "BGS_ANY")
    with pytest.raises(DataError, match="no column zwarn; it has z"): bgs_selection(Table({"z": [0.1], "desi_target": [2**60]}))
    assert not target_bit(Table({"targetid": [1, 2]}), "BGS_ANY").any()  # a stripped file: in no sample


def test_numbers_of_the_masks_agree_with_the_survey():
    assert TARGET_BITS["sv1"]["BGS_FIBMAG"] == ("sv1_bgs_target", 4)
    assert 4112 == 1 << TARGET_BITS["sv1"]["BGS_FIBMAG"][1] | 1 << 12  # the staged SV1 galaxy: FIBMAG and its northern copy
    assert TARGET_BITS["sv2"] == {k: (v[0].replace("sv3", "sv2"), v[1]) for k, v in TARGET_BITS["sv3"].items()}
    assert "MWS_FAINT_BLUE" in TARGET_BITS["main"] and "MWS_FAINT_BLUE" not in TARGET_BITS["sv3"]


def test_values_that_are_not_known_pass_no_cut():
    table = Table(catalogue(n_sound=4), masked=True)
    table["z"].mask[0], table["zwarn"].mask[1], table["spectype"].mask[2] = True, True, True
    assert bgs_selection(table)[0].tolist() == [3]
    table["sv3_desi_target"] = MaskedColumn(table["sv3_desi_target"], mask=np.arange(len(table)) == 3)
    assert bgs_selection(table)[0].tolist() == []


@pytest.mark.parametrize("n", [0, 1])
def test_fault_15_none_or_one(n):
    rows, counts = bgs_selection(catalogue()[:n])
    assert len(rows) == n and counts["before"][0] == n
    assert fates(bgs_cuts(catalogue()[:n])).tolist() == [""] * n


def test_spectra_must_be_normalisable():
    table = catalogue({}, n_sound=3)
    flux, ivar = np.ones((3, DESI.grid.n)), np.ones((3, DESI.grid.n))
    ivar[1] = 0
    flag = np.array([0, 0, 4], "i4")  # NO_NORM
    rows, counts = bgs_selection(Spectra(flux, ivar, table["z"], DESI, flag=flag, table=table))
    assert rows.tolist() == [0] and counts["cut"][-1] == "normalisation window" and counts["removed"][-1] == 2


@pytest.mark.real
def test_the_real_targets_of_the_one_percent_survey(mirror):
    spectra = read_desi(mirror / "desi_spectra/coadd-sv3-bright-10145.fits")
    assert np.flatnonzero(target_bit(spectra.table, "BGS_ANY")).tolist() == [0, 2, 4]
    assert np.flatnonzero(target_bit(spectra.table, "MWS_ANY")).tolist() == [1]
    assert np.flatnonzero(target_bit(spectra.table, "SKY")).tolist() == []  # its bit stands in the main survey's column
    early = lambda cuts: {name: cuts[name] for name in list(cuts)[:4]}  # survey, program, bit, fibre: what needs no redshift
    assert fates(early(bgs_cuts(spectra))).tolist() == ["", "BGS_ANY", "", "BGS_ANY", ""]
    assert fates(early(mws_cuts(spectra))).tolist() == ["MWS_ANY", "", *["MWS_ANY"] * 3]
    assert fates(bgs_cuts(spectra)).tolist() == ["ZWARN = 0", "BGS_ANY", "ZWARN = 0", "BGS_ANY", "ZWARN = 0"]  # no redrock file


@pytest.mark.real
def test_real_files_of_other_surveys(mirror):
    spectra = read_desi(mirror / "desi_spectra")
    [row] = np.flatnonzero(spectra.id == 39633345008634465)
    assert target_bit(spectra.table, "BGS_FIBMAG")[row] and target_bit(spectra.table, "BGS_ANY")[row]
    assert bgs_selection(spectra, survey=None, program=None)[0].tolist() == [row]
    assert fates(bgs_cuts(spectra))[row] == "survey sv3"


@pytest.mark.real
def test_a_real_catalogue_of_43_targets(mirror):
    table = read_redrock(mirror / "redrock_output_example/redrock-sv3-bright-10016.fits")
    assert target_bit(table, "BGS_ANY").sum() == 26 and target_bit(table, "MWS_ANY").sum() == 7
    rows, counts = bgs_selection(table)
    assert counts["left"][2] == 26 and 15 <= len(rows) <= 26
    assert len(mws_selection(table)[0]) == 4
    assert (table["zwarn"][rows] == 0).all() and (table["spectype"][rows] == "GALAXY").all()
