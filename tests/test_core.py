"""The ground: files that are whole or absent, seeds that stay, settings that are checked."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_core.core import (
    Config,
    ConfigError,
    Flag,
    RunError,
    atomic_write,
    cache_dir,
    generator,
    nearest,
    pick_device,
    run_lock,
    seed_from,
    sha256_of,
    write_json,
)

quiet = settings(derandomize=True, max_examples=60, deadline=None)


# ---- seeds


def test_seeds_are_the_same_on_every_machine_and_in_every_version():
    "Stored numbers: if these change, no seeded result of the past can be had again."
    assert seed_from("mock", 0) == 3_649_407_648_688_840_071
    np.testing.assert_allclose(generator("mock", 0).random(3), [0.75805374, 0.62449307, 0.08868382], atol=1e-8)


keys = st.lists(st.one_of(st.integers(0, 12), st.text("ab1", min_size=1, max_size=3)), min_size=1, max_size=3)


@quiet
@given(keys, keys)
def test_other_keys_other_seeds(a, b):
    assert 0 <= seed_from(*a) < 2**63
    assert (seed_from(*a) == seed_from(*b)) == (list(map(str, a)) == list(map(str, b)))


# ---- settings


@dataclass(frozen=True)
class Inner(Config):
    width: int = 3


@dataclass(frozen=True)
class Toy(Config):
    n: int = 6
    rate: float = 1e-3
    name: str = "a"
    flag: bool = False
    limit: int | None = None
    sizes: tuple[int, ...] = (64, 128)
    more: dict = field(default_factory=dict)


@quiet
@given(st.builds(Toy, n=st.integers(), rate=st.floats(allow_nan=False), name=st.text(max_size=5), flag=st.booleans(),
                 limit=st.none() | st.integers(), sizes=st.lists(st.integers(), max_size=3).map(tuple)))
def test_settings_survive_json_and_equal_ones_have_equal_fingerprints(toy):
    again = Toy.from_dict(json.loads(toy.to_json()))
    assert again == toy and again.fingerprint() == toy.fingerprint() and type(again.sizes) is tuple
    assert (toy.fingerprint() == Toy().fingerprint()) == (toy.to_json() == Toy().to_json())


def test_a_whole_number_is_written_as_the_float_it_stands_for():
    @dataclass(frozen=True)
    class Rates(Config):
        lr: float = 1.0
        limit: float | None = None
        betas: tuple[float, ...] = (1.0, 2.0)
        free: int | float = 1

    assert Rates(1, 3, (1, 2.0)).to_json() == Rates(1.0, 3.0, (1.0, 2)).to_json() == Rates(limit=3.0).to_json()
    assert type(Rates(free=2).free) is int and Rates().limit is None


@pytest.mark.parametrize("values, words", [
    ({"rte": 1.0}, "did you mean 'rate'"), ({"zzzzzz": 1}, "no setting 'zzzzzz'$"), ({"n": 1.0}, "n must be int"),
    ({"n": "1"}, "n must be int"), ({"n": True}, "n must be int"), ({"rate": True}, "rate must be float"),
    ({"rate": None}, "rate must be float"), ({"flag": 1}, "flag must be bool"), ({"limit": 1.5}, "limit must be int"),
    ({"sizes": 64}, "sizes must be tuple"), ({"more": [1]}, "more must be dict"), (["n"], "by name"), (None, "by name"),
])
def test_settings_that_do_not_fit_are_refused(values, words):
    with pytest.raises(ConfigError, match=words): Toy.from_dict(values)
    assert Toy.from_dict({"rate": 1}).rate == 1, "a whole number is a number"


def test_flags_have_reasons_and_a_suggestion_is_near():
    assert Flag.reasons(Flag.FATAL) == "NODATA,BAD_IVAR,NO_NORM,BAD_NORM,BAD_Z" and Flag.reasons(0) == ""
    assert Flag.reasons(np.int32(Flag.CROPPED | Flag.BAD_Z)) == "BAD_Z,CROPPED"
    assert [Flag.reasons(Flag.BAD_Z | Flag.CROPPED, words=True, z=z).partition(",")[0] for z in (np.nan, 3.0)] == \
        ["no redshift", "redshift outside the model's range"]
    both = Flag.reasons(Flag.BAD_Z | Flag.NO_NORM, words=True)
    assert both == "too few pixels to normalise by, no redshift within the model's range"
    assert all(Flag.reasons(bit, words=True).islower() for bit in Flag) and Flag.reasons(0, words=True) == ""
    assert nearest("spctra", ["spectra", "store"]) == "spectra" and nearest("xyz", ["spectra"]) is None


# ---- files


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "deep" / "a.json"
    write_json(path, {"x": 1})
    for error in (ZeroDivisionError, KeyboardInterrupt):
        with pytest.raises(error), atomic_write(path) as temporary:
            temporary.write_text("half of a resu")
            raise error
    assert json.loads(path.read_text()) == {"x": 1} and [p.name for p in path.parent.iterdir()] == ["a.json"]
    with pytest.raises(TypeError): write_json(path, {"x": object()})
    assert json.loads(path.read_text()) == {"x": 1}


def test_fault_24_a_kill_in_the_middle_of_a_write_leaves_the_old_file(tmp_path):
    (tmp_path / "a.json").write_text('{"x": 1}')
    code = "import os, sys; from spectral_core.core import atomic_write\n" \
           "with atomic_write(sys.argv[1]) as t: t.write_text('half'); os.kill(os.getpid(), 9)"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.json"], check=False)
    assert done.returncode == -signal.SIGKILL and json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
    write_json(tmp_path / "a.json", {"x": 2})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 2}


def test_fault_22_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="could not write .*file/a.json"): write_json(tmp_path / "file" / "a.json", {})
    with pytest.raises(RunError, match="cannot use .*file/run as a run folder"), run_lock(tmp_path / "file" / "run"): pass
    if os.geteuid():  # root may write anywhere
        (tmp_path / "closed").mkdir(mode=0o555)
        with pytest.raises(RunError, match="Permission"): write_json(tmp_path / "closed" / "a.json", {})


def test_json_knows_numpy_and_has_no_nan(tmp_path):
    tree = {"e": [np.nan, np.bool_(True)]}
    values = {"a": np.arange(2), "b": np.float32(0.5), "c": np.inf, "d": tree, "f": tmp_path, "g": (1,)}
    write_json(tmp_path / "a.json", values)
    wanted = {"a": [0, 1], "b": 0.5, "c": None, "d": {"e": [None, True]}, "f": str(tmp_path), "g": [1]}
    assert json.loads((tmp_path / "a.json").read_text()) == wanted
    (tmp_path / "b").write_bytes(b"")
    assert sha256_of(tmp_path / "b") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_fault_39_a_lock_is_held_by_one_and_freed_by_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), run_lock(tmp_path):
        with pytest.raises(RunError, match=f"in use by pid {os.getpid()}"), run_lock(tmp_path): pass
        raise ZeroDivisionError
    with run_lock(tmp_path): pass


def test_fault_29_devices(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == "cpu"
    for absent in ("cuda", "cuda:1", "tpu"):
        with pytest.raises(ConfigError, match=r"not available here; use 'auto' or one of \['cpu'\]"): pick_device(absent)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(ConfigError, match="'mps' is not available: it has no float64"): pick_device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert (pick_device("auto"), pick_device("cuda:1")) == ("cuda", "cuda:1")


def test_the_cache_is_where_it_is_said_to_be(monkeypatch, tmp_path):
    monkeypatch.setenv("SPECTRAL_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("SPECTRAL_CACHE")
    assert cache_dir().name == "spectral_core"
