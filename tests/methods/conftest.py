import pytest

from fgvpl_jax import load_clip
from fgvpl_jax.recognition import class_text_features
from tests.methods.checks import CLASSES


@pytest.fixture(scope="session")
def clip(tiny_clip_dir):
    return load_clip(str(tiny_clip_dir))


@pytest.fixture(scope="session")
def text_features(clip):
    return class_text_features(clip, CLASSES, ("a photo of a {}.",))
