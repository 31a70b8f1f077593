"""A copy of a checkpoint, which a test may damage."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def checkpoint(tiny_clip_dir, tmp_path) -> Path:
    directory = tmp_path / "clip"
    shutil.copytree(tiny_clip_dir, directory)
    return directory
