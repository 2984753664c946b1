"""Shared fixtures. Tests that need the mirror of real data skip without SPECTRAL_MIRROR."""

import os
import shutil
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


@pytest.fixture(scope="module")
def browser():
    "Chromium, headless, through playwright; the test is skipped without either."
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None: pytest.skip("Chromium is not installed")
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser):
    "One page in a context of its own: no cookies or storage of another test."
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    yield context.new_page()
    context.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "A running JupyterLab (tests/lab_server.py: `root`, `add`, `open`, `run_all`, `save`, `restart`); skipped without it."
    pytest.importorskip("jupyterlab")
    from lab_server import Lab

    server = Lab(tmp_path_factory.mktemp("lab"))
    try: yield server.start()
    finally: server.stop()
