"""Tip-Adapter's formulas in float64, its keys and its search."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fgvpl_jax.methods import METHODS, Task
from fgvpl_jax.runs import default_config
from tests.methods.checks import unit

LABELS = np.array([0, 0, 1, 2, 2])


class FewShot:
    """Support images whose features differ from pass to pass."""

    labels = LABELS

    def augmented(self, epoch):
        noise = np.random.default_rng(epoch).normal(size=(5, 16))
        return (noise + 3 * np.eye(5, 16)).astype(np.float32)

    def plain(self):
        pytest.fail("keys are computed from augmented images")

    def validation(self):
        pytest.fail("keys are computed from training images")


@pytest.fixture(params=["tip_adapter", "tip_adapter_f"])
def model(request, clip, text_features):
    task = Task(("a", "b", "c"), text_features, LABELS)
    method = METHODS[request.param]
    return method.build(clip, task, default_config.get_config(), rngs=nnx.Rngs(0))


def test_keys_are_the_mean_of_ten_passes_then_unit(model):
    model.initialise(FewShot())
    passes = [FewShot().augmented(epoch).astype(np.float64) for epoch in range(10)]
    np.testing.assert_allclose(model.keys[...], unit(sum(passes) / 10), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("alpha", "beta"), [(1.17, 1.0), (3.5, 20.0), (0.0, 5.0)])
def test_logits_are_the_formula(model, text_features, alpha, beta):
    rng = np.random.default_rng(0)
    # Not unit vectors: the trained keys of Tip-Adapter-F are not normalised again.
    model.keys.set_value(jnp.asarray(rng.normal(size=(5, 16)), jnp.float32) * 0.3)
    features = rng.normal(size=(7, 16)).astype(np.float32)
    query = unit(features)
    expected = float(model.logit_scale[...]) * query @ np.asarray(text_features, np.float64).T
    for i, label in enumerate(LABELS):
        affinity = query @ np.asarray(model.keys[...], np.float64)[i]
        expected[:, label] += alpha * np.exp(-beta * (1 - affinity))
    found = model(jnp.asarray(features), None, alpha=alpha, beta=beta)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("benchmark", "beta", "alpha", "first_alpha"),
    [
        ("imagenet", 7, 3, 1.17),
        ("caltech101", 12, 5, 3),
        ("oxford_pets", 7, 3, 1.17),
        ("stanford_cars", 20, 10, 3),
        ("oxford_flowers", 50, 50, 10),
        ("food101", 10, 10, 1.17),
        ("fgvc_aircraft", 30, 30, 5),
        ("sun397", 12, 10, 1.17),
        ("dtd", 13, 13, 2),
        ("eurosat", 12, 10, 2),
        ("ucf101", 7, 3, 3),
    ],
)
def test_limits_and_first_values_are_tip_adapters(benchmark, beta, alpha, first_alpha):
    config = default_config.benchmark_config(benchmark)
    method = METHODS["tip_adapter_f"]
    last = {"beta": 0.1 + (beta - 0.1) * 199 / 200, "alpha": 0.1 + (alpha - 0.1) * 19 / 20}
    assert method.candidates(config)[-1] == pytest.approx(last)
    assert method.starting_choices(config) == {"alpha": first_alpha, "beta": 1.0}


def test_the_search_is_the_papers():
    config = default_config.benchmark_config("eurosat")
    method = METHODS["tip_adapter_f"]
    grid = method.candidates(config)
    assert len(grid) == 200 * 20
    assert grid[0] == pytest.approx({"beta": 0.1, "alpha": 0.1})
    assert grid[1] == pytest.approx({"beta": 0.1, "alpha": 0.1 + 9.9 / 20})
    assert grid[-1] == pytest.approx({"beta": 12 - 11.9 / 200, "alpha": 10 - 9.9 / 20})
    assert method.starting_choices(config) == {"alpha": 2.0, "beta": 1.0}
    config.benchmark = "your own"
    assert method.starting_choices(config) == {"alpha": 1.17, "beta": 1.0}
    assert method.candidates(config)[-1] == pytest.approx(
        {"beta": 7 - 6.9 / 200, "alpha": 3 - 2.9 / 20}
    )
