"""Training on frozen features compiles only the programs that it needs."""

import jax
import pytest

import fgvpl_jax as fg
from tests.cases import further

COMPILATION = "/jax/core/compile/backend_compile_duration"
NEEDED = [
    "jit(_apply)",  # the text tower
    "jit(_encode)",  # the image tower, for the batches of two lengths
    "jit(_encode)",
    "jit(features)",  # of the validation photos
    "jit(logits)",
    "jit(outputs)",  # logits of the test photos
    "jit(stage)",  # a random key, in three programs
    "jit(_threefry_seed)",
    "jit(convert_element_type)",
]


@pytest.fixture
def compiled():
    """Collects the names of the programs that are compiled, or read from JAX's cache."""
    names = []

    def listen(event, _, **facts):
        if event == COMPILATION:
            names.append(facts.get("fun_name"))

    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("method", ["gda", "linear_probe", *further("kernel_ridge", "svm")])
def test_frozen_features_need_few_programs(method, tiny_clip_dir, photos_dir, compiled):
    fg.fit(photos_dir, clip=tiny_clip_dir, method=method, shots=3, data={"image_cache_gb": 0})
    assert sorted(compiled) == sorted(NEEDED)
