"""Labels of galaxies: both sides of every boundary, every S/N combination, real catalogues (fault matrix, rows 15-17)."""

import itertools

import numpy as np
import pytest
from astropy.table import MaskedColumn, Table
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_core.archives.catalogs import join_lines, read_desi_line_ews, read_mpa_jhu, read_portsmouth, read_resolve_eco_nsa
from spectral_core.core import ConfigError, DataError
from spectral_core.spectra.labels import (
    BPT_LINES,
    GAP,
    LABELS,
    PUBLISHED,
    bpt_label,
    bpt_measured,
    confusion,
    curve_agreement,
    curve_distance,
    curve_label,
    has_broadline,
    label_counts,
    label_galaxies,
    line_sn,
    rule_moves,
)
from spectral_core.spectra.lines import bpt_class, kauffmann2003, kewley2001

quiet = settings(derandomize=True, max_examples=100, deadline=None)
STEP = 1e-9


def galaxies(n=1, sn=(10, 10, 10, 10), x=-0.5, y=0.0, ew=20.0, ew_err=1.0, **more):
    "Line tables of galaxies at (x, y) in the BPT plane; `sn` in the order of BPT_LINES."
    flux = {"hbeta": 10.0, "oiii_5007": 10.0 * 10.0 ** np.asarray(y), "halpha": 30.0, "nii_6584": 30.0 * 10.0 ** np.asarray(x)}
    columns = {f"flux_{k}": np.broadcast_to(flux[k], n).astype(float) for k in BPT_LINES}
    columns |= {f"err_{k}": columns[f"flux_{k}"] / s for k, s in zip(BPT_LINES, sn)}
    columns |= {"ew_halpha": np.broadcast_to(ew, n).astype(float), "ew_err_halpha": np.broadcast_to(ew_err, n).astype(float)}
    return Table(columns | more)


# ---- the plane


@pytest.mark.parametrize("curve, below, above", [
    (kauffmann2003, {"star-forming"}, {"composite"}), (kewley2001, {"star-forming", "composite"}, {"narrow-line AGN"}),
])
def test_labels_change_on_the_curves(curve, below, above):
    pole = 0.05 if curve is kauffmann2003 else 0.47
    x = np.linspace(-1.2, pole - 1e-3, 300)  # right of the crossing
    assert set(bpt_label(x, curve(x) - STEP)) <= below and set(bpt_label(x, curve(x) + STEP)) == above
    assert set(bpt_label(x, curve(x))) == {"composite"}  # a point on a curve is neither below nor above


@pytest.mark.parametrize("y", [-30.0, -3.0, 0.0, 3.0])
def test_beyond_the_poles_nothing_is_star_forming(y):
    "The formulas change sign there: a naive comparison calls the most extreme AGN star-forming."
    x = np.array([0.05, 0.05 + STEP, 0.2, 0.47 - STEP, 0.47, 0.47 + STEP, 3.0])
    agn = (x >= 0.47) | (y > kewley2001(x))
    assert (bpt_label(x, y) == np.where(agn, "narrow-line AGN", "composite")).all()
    assert bpt_label(0.04, -70.0) == "star-forming"


def test_left_of_the_crossing_star_forming_wins():
    x = np.linspace(-3, -1.3, 50)
    between = 0.5 * (kauffmann2003(x) + kewley2001(x))
    assert (kauffmann2003(x) > kewley2001(x)).all() and set(bpt_label(x, between)) == {"star-forming"}
    assert set(bpt_label(x, kauffmann2003(x) + STEP)) == {"narrow-line AGN"}


@quiet
@given(st.floats(-3, 2), st.floats(-3, 3))
def test_labels_agree_with_the_four_classes(x, y):
    "Seyfert and LINER are AGN; a point within rounding of a curve may fall to either side."
    kind = str(bpt_class(1.0, 10.0**y, 3.0, 3 * 10.0**x))
    three = {"seyfert": "narrow-line AGN", "liner": "narrow-line AGN"}.get(kind, kind)
    assert bpt_label(x, y) == three or min(abs(y - kauffmann2003(x)), abs(y - kewley2001(x))) < 1e-9


def test_distance_is_to_the_nearer_curve():
    x = np.linspace(-1.1, -0.1, 20)
    for curve in (kauffmann2003, kewley2001): assert curve_distance(x, curve(x)).max() < 0.01
    along = np.linspace(-2.5, 0.04, 4001)
    points = np.stack([np.concatenate([along, along]), np.concatenate([kauffmann2003(along), kewley2001(along)])], 1)
    for point in np.random.default_rng(0).uniform((-1, -1), (0, 1), (20, 2)):
        assert curve_distance(*point) == pytest.approx(np.hypot(*(points - point).T).min(), abs=0.01)
    assert np.isnan(curve_distance([np.nan, np.inf], [0, 0])).all()


# ---- the S/N rule


@pytest.mark.parametrize("strong", list(itertools.product([True, False], repeat=4)))
def test_all_sixteen_combinations_of_strong_and_weak_lines(strong):
    "Three lines above 2 and the fourth above 1: allowed for none or one weak line, and not for a lost one."
    sn = np.where(strong, 2.0 + STEP, 1.0 + STEP)
    assert bpt_measured(sn) == (sum(strong) >= 3)
    assert not bpt_measured(np.where(strong, 2.0 + STEP, 1.0)) or all(strong)
    label = label_galaxies(galaxies(sn=sn, ew=2.0, ew_err=0.5))[0]
    assert label == ["star-forming" if sum(strong) >= 3 else "retired"]


def test_equality_is_not_above():
    assert not bpt_measured(np.array([2.0, 2.0, 5.0, 5.0]))
    assert bpt_measured(np.array([2.0, 2.1, 5.0, 5.0])) and not bpt_measured(np.array([1.0, 5.0, 5.0, 5.0]))


@pytest.mark.parametrize("ew, err, label", [
    (0.5, 0.1, "passive"), (0.5 + STEP, 0.1, "retired"), (3 - STEP, 0.1, "retired"), (3.0, 0.1, "gap"), (2.0, 1.0, "passive"),
    (2.0, 1.0 - STEP, "retired"), (-1.0, 0.1, "passive"), (0.0, 0.1, "passive"), (50.0, 40.0, "gap"), (np.nan, 0.1, "passive"),
    (2.0, np.nan, "passive"), (2.0, 0.0, "passive"), (2.0, np.inf, "passive"), (np.inf, 0.1, "gap"),
])
def test_whan_rules_at_their_cuts(ew, err, label):
    rows = galaxies(sn=(0.5, 5, 5, 5), ew=ew, ew_err=err)
    for gap in GAP:
        labels, counts = label_galaxies(rows, gap=gap)
        assert labels == [gap if label == "gap" else label] and counts["n"].sum() == 1
        assert counts.meta["gap"] == (label == "gap")


BAD = st.sampled_from([0.0, -1.0, -1e30, np.nan, np.inf, -np.inf, -9999.0])


@quiet
@given(st.lists(st.one_of(st.floats(5, 50), BAD), min_size=8, max_size=8), st.integers(0, 3))
def test_fault_17_values_that_are_no_measurements(values, line):
    "A flux or error that is none fails its S/N; the galaxy goes on to the EW rules, never to N/A, without a warning."
    rows = galaxies(ew=2.0, ew_err=0.5)
    for k, name in enumerate(BPT_LINES): rows[f"flux_{name}"], rows[f"err_{name}"] = values[k], values[4 + k]
    good = [np.isfinite(values[k]) and np.isfinite(values[4 + k]) and values[k] > 0 and values[4 + k] > 0 for k in range(4)]
    sn = line_sn(values[:4], values[4:])
    assert [s == 0 for s in sn] == [not g for g in good]
    assert label_galaxies(rows)[0][0] in (LABELS[1:4] if all(good) and bpt_measured(sn) else ("retired",))


def test_masked_columns_are_missing_values():
    plain = galaxies(3, sn=(5, 5, 5, 5), ew=2.0, ew_err=0.5)
    rows = plain.copy()
    rows["flux_hbeta"] = MaskedColumn(plain["flux_hbeta"], mask=[True, False, False])
    rows["err_halpha"] = MaskedColumn(plain["err_halpha"], mask=[False, True, False])
    rows["measured"] = MaskedColumn([True, True, True], mask=[False, False, True])
    assert label_galaxies(rows)[0].tolist() == ["retired", "retired", "N/A"]
    assert label_galaxies(plain)[0].tolist() == ["star-forming"] * 3


# ---- precedence, counts


def test_order_of_the_rules():
    rows = galaxies(4, measured=np.array([True, False, True, False]))
    labels, counts = label_galaxies(rows, broad=np.array([True, True, False, False]))
    assert labels.tolist() == ["broad-line", "broad-line", "star-forming", "N/A"]
    assert counts.meta == {"galaxies": 4, "gap": 0, "gap_significant": 0, "no_row": 2, "broad_without_row": 1}


@quiet
@given(st.integers(0, 40), st.integers(0, 2**32 - 1))
def test_every_galaxy_has_one_label_and_every_rule_is_counted(n, seed):
    rng = np.random.default_rng(seed)
    rows = Table({f"{what}_{k}": rng.normal(1, 2, n) for k in BPT_LINES for what in ("flux", "err")}
                 | {"ew_halpha": rng.normal(2, 3, n), "ew_err_halpha": rng.normal(0.5, 0.5, n), "measured": rng.random(n) < 0.8})
    broad = rng.random(n) < 0.1
    labels, counts = label_galaxies(rows, broad=broad)
    assert len(labels) == n == counts["n"].sum() and set(labels) <= set(LABELS)
    assert ((labels == "broad-line") == broad).all() and ((labels == "N/A") == ~np.asarray(rows["measured"]) & ~broad).all()
    order = rng.permutation(n)
    assert (label_galaxies(rows[order], broad=broad[order])[0] == labels[order]).all()
    assert label_counts(labels)["n"].sum() == n == rule_moves(rows)["all"][-1]


def test_published_counts():
    "The numbers of the paper add up, the split is fair, and N/A is the 0.14 % of the text."
    train, valid = (np.array(PUBLISHED[k]) for k in ("train", "valid"))
    assert (train.sum(), valid.sum()) == (209462, 69822) and tuple(PUBLISHED["label"]) == LABELS
    assert np.abs(train / train.sum() - valid / valid.sum()).max() < 0.01
    assert 100 * (train + valid)[0] / 279284 == pytest.approx(0.14, abs=0.005)


def test_confusion_adds_up():
    rng = np.random.default_rng(1)
    rows, columns = rng.choice(LABELS, 500), rng.choice([*LABELS, "other"], 500)
    table = confusion(rows, columns)
    assert table["label"].tolist() == [*LABELS, "all"] and table.colnames[1:] == [*LABELS, "other", "all"]
    inner = np.array([table[name] for name in table.colnames[1:]]).T
    assert (inner[:-1].sum(0) == inner[-1]).all() and (inner[:, :-1].sum(1) == inner[:, -1]).all() and inner[-1, -1] == 500
    assert inner[2, 3] == ((rows == LABELS[2]) & (columns == LABELS[3])).sum()
    with pytest.raises(DataError, match="can't be compared"): confusion(["a"], ["a", "b"])


def test_errors_name_what_is_wrong():
    rows = galaxies()
    rows.remove_columns(["err_hbeta", "ew_halpha"])
    with pytest.raises(DataError, match="lacks err_hbeta, ew_halpha"): label_galaxies(rows)
    with pytest.raises(ConfigError, match="did you mean 'passive'"): label_galaxies(galaxies(), gap="pasive")
    with pytest.raises(ConfigError, match="no gap '¤¤'; did you mean '[a-z]+, "): label_galaxies(galaxies(), gap="¤¤")
    with pytest.raises(DataError, match=r"shape \(2,\) for 1"): label_galaxies(galaxies(), broad=np.zeros(2, bool))
    assert has_broadline(["STARFORMING BROADLINE", "broadline", "AGN"]).tolist() == [True, True, False]


# ---- real catalogues


@pytest.mark.real
def test_curves_agree_with_the_portsmouth_classes(mirror):
    lines = read_portsmouth(mirror / "catalog_portsmouth_lines" / "dr14_emissionLinesPort_subset.csv")
    agreement = curve_agreement(lines, lines["catalog_label"])
    far = agreement[agreement["margin"] == 0.2][0]
    assert far["n"] > 1000 and far["fraction"] >= 0.99
    assert (np.diff(agreement["fraction"]) >= 0).all() and agreement["fraction"][0] > 0.93
    labels, counts = label_galaxies(lines)
    matrix = confusion(lines["catalog_label"], labels, (*LABELS, "unknown"))
    assert matrix["all"][-1] == len(lines) == counts["n"].sum()
    moved = rule_moves(lines)
    for word in LABELS[1:4]:  # the S/N rule never changes a class, it only takes galaxies out of the plane
        row = moved[moved["label"] == word][0]
        assert row[word] + row["retired"] + row["passive"] == row["all"] and row["passive"] > 0


@pytest.mark.real
def test_curves_agree_with_mpa_jhu(mirror):
    "MPA-JHU's classes against NSA's fluxes of the same spectra: two codes, two fits."
    classes = read_mpa_jhu(mirror / "catalog_sdss_emission_lines" / "emission_lines_candidates.csv.gz")
    nsa = read_resolve_eco_nsa(mirror / "catalog_resolve_eco_nsa" / "NSA_RESOLVE_crossmatched.csv")
    joined, counts = join_lines(nsa, classes["id"])
    assert dict(zip(counts["step"], counts["n"]))["matched spectra"] > 500
    agreement = curve_agreement(joined, classes["catalog_label"])
    assert agreement["n"][0] > 450 and agreement["fraction"][0] > 0.93 and agreement["fraction"][-1] > 0.97


@pytest.mark.real
def test_labels_of_desi_galaxies(mirror):
    lines = read_desi_line_ews(mirror / "desi_sv3_bgs_line_ews" / "line_ews.npz")
    labels, counts = label_galaxies(lines)
    assert len(labels) == 108459 and (labels != "N/A").sum() == 53647
    share = dict(zip(*label_counts(labels[labels != "N/A"])["label", "fraction"].columns.values()))
    assert 0.4 < share["star-forming"] < 0.65 and 0.02 < share["narrow-line AGN"] < 0.2
    assert counts.meta["gap"] > 5000  # strong Hα with a weak partner: the published rule calls them passive


@pytest.mark.real
def test_two_catalogues_of_resolve_give_the_same_classes(mirror):
    path = mirror / "catalog_resolve_eco_nsa" / "RESOLVE_full_raw.csv"
    mpa, portsmouth = read_resolve_eco_nsa(path), read_resolve_eco_nsa(path, portsmouth=True)
    agreement = curve_agreement(mpa, curve_label(portsmouth))
    assert agreement["n"][0] > 1500 and agreement["fraction"][0] > 0.9 and agreement["fraction"][-1] > 0.95
