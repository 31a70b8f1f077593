"""Fixture for real data that are not in this repository."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with `coop_splits/`, `eurosat.tar` and `tfds_fake/` (TFDS's own example archives)."""
    folder = os.environ.get("FGVPL_TEST_DATA")
    if folder is None:
        pytest.skip("set FGVPL_TEST_DATA to a folder with coop_splits, eurosat.tar and tfds_fake")
    return Path(folder)
