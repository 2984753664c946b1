"""Real spectra for a chapter: the mirror's sets, or anybody's files."""

import shutil

import numpy as np
import pytest

from spectral_core.archives.sets import SDSS_SETS, find_sets, read_sets
from spectral_core.core import DataError


def test_a_folder_without_spectra_is_refused_by_name(tmp_path):
    (tmp_path / "readme.txt").write_text("no spectra")
    with pytest.raises(DataError, match=str(tmp_path)): find_sets(tmp_path)


def test_a_single_file_is_a_set_of_one(tmp_path):
    path = tmp_path / "spec.fits"
    path.touch()
    assert find_sets(path) == {path: "yours"}


@pytest.mark.real
def test_the_mirrors_sets_and_copies_of_its_files_read_alike(mirror, tmp_path):
    name = SDSS_SETS[0]
    files = sorted((mirror / name).rglob("*.fits*"))[:6]
    for folder in (tmp_path / "plain", tmp_path / "named" / name):
        folder.mkdir(parents=True)
        for path in files: shutil.copy(path, folder / path.name)
    plain, named = read_sets(tmp_path / "plain"), read_sets(tmp_path / "named")
    assert set(plain.table["set"]) == {"yours"} and set(named.table["set"]) == {name}
    assert np.array_equal(np.sort(plain.id), np.sort(named.id)) and len(plain) == len(files)
