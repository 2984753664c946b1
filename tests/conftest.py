"""Shared fixtures. Tests that need the mirror of real data skip without SPECTRAL_MIRROR."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def mirror() -> Path:
    "Folder of real data; the test is skipped where there is none."
    folder = os.environ.get("SPECTRAL_MIRROR", "")
    if not folder or not Path(folder).is_dir(): pytest.skip("SPECTRAL_MIRROR is not a folder")
    return Path(folder)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    "Two threads on two loaded cores can be five times slower than one."
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_numbers(request):
    "A module's `rng` starts anew for every test: no draw depends on which tests ran before, or in which process."
    from spectral_core.core import generator

    if hasattr(request.module, "rng"): request.module.rng = generator("test", request.node.name)
