"""Tests that every method passes that is fitted in one go."""

import jax.numpy as jnp
import numpy as np
import pytest

from fgvpl_jax.methods import METHODS, kernel_ridge
from fgvpl_jax.methods.fitted_once import FittedOnce, copies_within_classes, folds_of
from tests.methods.checks import FewShot, task_of
from tests.methods.test_gda_pool import packed

CLOSED_FORMS = [name for name, method in METHODS.items() if issubclass(method, FittedOnce)]


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_a_copy_in_the_support_images_reveals_no_label(name, clip, monkeypatch):
    """Classes that no feature tells apart are guessed right only of photos that were trained on."""
    monkeypatch.setattr(kernel_ridge, "SHARPNESS_STEPS", (0,))  # fewer candidates are enough
    noise = np.random.default_rng(0).normal(size=(12, 16)).astype(np.float32)
    features = np.concatenate([noise, noise])
    if name == "gda_pool":  # three kinds of features, and the rest
        features = np.concatenate([np.tile(features, 3), packed(np.zeros(24, int))[:, 48:]], axis=1)
    labels, copies = np.arange(24) % 2, np.arange(24) % 12
    right = {}
    for told, numbers in ((True, copies), (False, None)):
        task = task_of(jnp.eye(2, 16), labels, numbers)
        model = METHODS[name](clip, task, "likelihood")
        model.initialise(FewShot(features, labels))
        held_out = model.held_out_logits()
        assert len(held_out.labels) == (12 if told else 24)
        right[told] = (held_out.logits.argmax(axis=1) == held_out.labels).mean()
    assert right[True] < 0.7 < 0.8 < right[False]


def test_copies_of_one_class_share_a_fold():
    labels = np.repeat(np.arange(3), 5)
    copies = np.array([0, 1, 0, 3, 4, 5, 5, 5, 5, 5, 10, 11, 11, 13, 0])
    groups = copies_within_classes(labels, copies)
    assert groups[0] == groups[2] != groups[14]  # the last one is of another class
    folds = folds_of(labels, groups)
    assert folds[:5].tolist() == [0, 1, 0, 2, 3]
    assert folds[5:10].tolist() == [-1] * 5  # the class has copies of one image alone
    assert folds[10:].tolist() == [1, 2, 2, 3, 0]
    assert folds_of(labels, np.arange(15)).tolist() == [*range(5)] * 3
    assert copies_within_classes(labels, None).tolist() == [*range(15)]
