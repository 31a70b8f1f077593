"""The tiny CLIP and a batch of random images for it."""

import numpy as np
import pytest

from fgvpl_jax import load_clip
from fgvpl_jax.variables import to_device


@pytest.fixture(scope="module")
def clip(tiny_clip_dir):
    return load_clip(str(tiny_clip_dir))


@pytest.fixture(scope="module")
def pixels(clip):
    size = clip.image_size
    return to_device(np.random.default_rng(0).normal(size=(6, size, size, 3)))
