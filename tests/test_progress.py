"""Bars: seen when something takes long, never twice, never in what is read later."""

import os
import subprocess
import sys

import numpy as np
import pytest

from spectral_core import progress
from spectral_core.predict import in_batches

SLOW = "import time\nfrom spectral_core import progress\nprogress.DELAY = {delay}\n" \
       "for _ in progress.slow_bar(range(4), 'work'): time.sleep(0.2)"


@pytest.mark.parametrize("delay, quiet, seen", [(0.1, False, True), (60, False, False), (0.1, True, False)])
def test_a_bar_is_seen_when_it_takes_long_and_is_wanted(delay, quiet, seen):
    "In a process of its own: after the delay; not before; and not where the environment says no."
    env = {name: value for name, value in os.environ.items() if not name.startswith("TQDM")}
    if quiet: env["TQDM_DISABLE"] = "1"
    done = subprocess.run([sys.executable, "-c", SLOW.format(delay=delay)], env=env, capture_output=True, text=True, check=True)
    assert ("work" in done.stderr) == seen and done.stdout == ""


def test_a_bar_moves_with_the_rows_also_where_memory_runs_out(monkeypatch):
    moved, sizes = [], []
    real = progress.slow_bar

    def watched(*given, **named):
        bar = real(*given, progress=True, **named)
        update = bar.update
        bar.update = lambda n=1: (moved.append(n), update(n))[1]
        return bar

    def work(rows: slice) -> np.ndarray:
        sizes.append(rows.stop - rows.start)
        if sizes[-1] > 4: raise MemoryError
        return np.arange(rows.start, rows.stop)

    monkeypatch.setattr("spectral_core.predict.slow_bar", watched)
    assert np.concatenate(in_batches(work, 11, 8)).tolist() == list(range(11))
    assert sum(moved) == 11 and max(sizes[1:]) <= 4


def test_one_bar_at_a_time():
    with progress.slow_bar(total=3, progress=True): assert progress.slow_bar(range(3)).disable
    assert not progress.slow_bar(range(3)).disable
