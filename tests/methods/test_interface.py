"""Refusal of method classes without logits, and sharing of schedules and optimizers."""

import pytest

from fgvpl_jax.methods.interface import FeatureMethod, Method, PixelMethod
from fgvpl_jax.methods.optimizers import adamw, coop_cosine, coop_sgd, cosine


@pytest.mark.parametrize("base", [Method, FeatureMethod, PixelMethod])
def test_a_named_method_without_logits_is_refused_as_its_class_is_created(base):
    with pytest.raises(TypeError, match=r"Empty defines neither `logits` nor `contributions`"):
        type("Empty", (base,), {"name": "empty"})


def logits(self, features, support):
    return features


@pytest.mark.parametrize("defined", ["logits", "contributions"])
def test_one_of_the_two_is_enough_also_if_inherited(defined):
    base = type("Loop", (FeatureMethod,), {})  # an abstract class between, without a name
    method = type("Defined", (base,), {"name": "defined", defined: logits})
    assert getattr(type("Inherited", (method,), {"name": "inherited"}), defined) is logits


def test_equal_arguments_return_the_same_schedule_and_optimizer():
    assert cosine(0.1, 5) is cosine(0.1, 5)
    assert cosine(0.1, 5) is not cosine(0.1, 6)
    assert coop_cosine(0.1, 3, 2) is coop_cosine(0.1, 3, 2)
    for optimizer in (adamw, coop_sgd):
        assert optimizer(cosine(0.1, 5), 0.01) is optimizer(cosine(0.1, 5), 0.01)
        assert optimizer(cosine(0.1, 5), 0.01) is not optimizer(cosine(0.1, 5), 0.02)
