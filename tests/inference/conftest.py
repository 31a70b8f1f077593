"""A trained run that several modules use."""

import pytest

from fgvpl_jax.runs import experiment
from fgvpl_jax.runs.workdir import Workdir
from tests.conftest import make_tiny_config


@pytest.fixture(scope="session")
def workdir(tiny_clip_dir, photos_dir, tmp_path_factory):
    """Returns the folder of a run of FG-VPL, which no test may change."""
    path = tmp_path_factory.mktemp("inference") / "W"
    experiment.train_and_evaluate(make_tiny_config(tiny_clip_dir, photos_dir), Workdir(path))
    return path
