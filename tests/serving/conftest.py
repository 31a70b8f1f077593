"""Classifiers that train in seconds."""

import pytest

import fgvpl_jax as fg
from fgvpl_jax.runs import experiment
from fgvpl_jax.runs.workdir import Workdir

pytest.importorskip("gradio", reason="the extra `serve` is not installed")


def trained(config, folder):
    path = folder / config.method
    experiment.train_and_evaluate(config, Workdir(path))
    return fg.load_classifier(path)


@pytest.fixture(scope="session")
def make_classifier(tiny_clip_dir, photos_dir, tmp_path_factory):
    """Returns a function that trains a classifier by a method."""
    from tests.conftest import make_tiny_config

    folder = tmp_path_factory.mktemp("serving")

    def make(method):
        config = make_tiny_config(tiny_clip_dir, photos_dir)
        config.method = method
        return trained(config, folder)

    return make


@pytest.fixture(scope="session")
def classifier(make_classifier):
    return make_classifier("fg_vpl")
