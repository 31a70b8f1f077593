import pytest

from tests.conftest import tiny_config
from tests.whole_runs import run


@pytest.fixture(scope="module")
def finished(request, tmp_path_factory):
    """One finished run that several tests look at."""
    config = request.getfixturevalue("module_config")
    path = tmp_path_factory.mktemp("finished") / "W"
    return config, path, run(config, path)


@pytest.fixture(scope="module")
def module_config(tiny_clip_dir, photos_dir):
    return tiny_config.__wrapped__(tiny_clip_dir, photos_dir)
