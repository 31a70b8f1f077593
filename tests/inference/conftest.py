"""Trained runs of several kinds of methods, and their exports for jax."""

import pytest

import fgvpl_jax as fg
from fgvpl_jax.inference.export import export_classifier
from fgvpl_jax.runs import experiment
from fgvpl_jax.runs.workdir import Workdir
from tests.cases import further
from tests.conftest import make_tiny_config


@pytest.fixture(scope="session")
def workdir(tiny_clip_dir, photos_dir, tmp_path_factory):
    """Returns the folder of a run of FG-VPL, which no test may change."""
    path = tmp_path_factory.mktemp("inference") / "W"
    experiment.train_and_evaluate(make_tiny_config(tiny_clip_dir, photos_dir), Workdir(path))
    return path


# A method that looks for objects in pixels, and one that reads frozen features and has its own
# cache; further, one that looks for objects in frozen features, one whose logits have the shape of
# its classes, one that needs a part of the text tower, and two with towers of their own.
@pytest.fixture(
    scope="session",
    params=[
        *("fg_vpl", "tip_adapter_f"),
        *further("gda_pool", "svm", "coop", "clip_svd", "two_stage"),
    ],
)
def exported(request, tiny_clip_dir, photos_dir, tmp_path_factory):
    config = make_tiny_config(tiny_clip_dir, photos_dir)
    config.method = request.param
    place = tmp_path_factory.mktemp(request.param)
    experiment.train_and_evaluate(config, Workdir(place / "W"))
    classifier = fg.load_classifier(place / "W")
    return classifier, export_classifier(classifier, place / "a" / "W.fgvpl")


@pytest.fixture(scope="session")
def photos(photos_dir):
    return sorted((photos_dir / "test").rglob("*.png"))
