"""One finished run, which tests of the same module share."""

import pytest

from tests.conftest import make_tiny_config
from tests.whole_runs import run


@pytest.fixture(scope="module")
def finished(module_config, tmp_path_factory):
    """Returns config, folder and results of a finished run, which tests must not change."""
    path = tmp_path_factory.mktemp("finished") / "W"
    return module_config, path, run(module_config, path)


@pytest.fixture(scope="module")
def module_config(tiny_clip_dir, photos_dir):
    return make_tiny_config(tiny_clip_dir, photos_dir)
