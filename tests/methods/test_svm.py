"""The SVM against scikit-learn's decision function."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.utils.class_weight import compute_class_weight

from fgvpl_jax.errors import UserError
from fgvpl_jax.methods.svm import SVM
from tests.methods.checks import FewShot, clustered, task_of


def reference(labels):
    """Returns scikit-learn's classifier with classes weighted by the mean of their sizes over it.

    scikit-learn calls these weights balanced.
    """
    weights = compute_class_weight("balanced", classes=np.unique(labels), y=labels)
    by_class = dict(zip(np.unique(labels).tolist(), weights, strict=True))
    return make_pipeline(StandardScaler(), SVC(class_weight=by_class))


def fitted(clip, labels, num_classes):
    text = jnp.eye(num_classes, 16)
    few_shot = FewShot(clustered(labels, spread=1.5), labels)
    model = SVM(clip, task_of(text, few_shot.labels), "accuracy")
    model.initialise(few_shot)
    return model, few_shot


@pytest.mark.parametrize("num_classes", [2, 3, 5])
def test_logits_are_scikit_learns_decision_function(clip, num_classes):
    labels = np.sort(np.arange(7 * num_classes + 1) % num_classes)  # unequal classes
    labels = np.random.default_rng(0).permutation(labels)
    model, few_shot = fitted(clip, labels, num_classes)
    features = few_shot.plain().astype(np.float64)
    queries = clustered(np.arange(200) % num_classes, spread=2.0, seed=1)
    expected = reference(labels).fit(features, labels).decision_function(queries)
    if num_classes == 2:
        expected = np.stack([-expected, expected], axis=1)
    found = np.asarray(model(jnp.asarray(queries), None))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_class_without_an_image_is_never_predicted(clip):
    labels = np.repeat([1, 3, 4], 5)
    model, few_shot = fitted(clip, labels, 6)
    found = np.asarray(model(jnp.asarray(few_shot.plain()), None))
    assert set(found.argmax(axis=1)) <= {1, 3, 4}
    assert (found.argmax(axis=1) == labels).mean() > 0.8
    assert model.held_out_logits().logits.shape == (15, 6)


def test_held_out_logits_come_from_fits_without_the_image(clip):
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3])
    model, few_shot = fitted(clip, labels, 4)
    found = model.held_out_logits()
    np.testing.assert_array_equal(found.labels, labels[:-1])  # class 3 has one image
    features = few_shot.plain().astype(np.float64)
    # The first fold holds the first image of each class with two or more.
    out = np.isin(np.arange(12), [0, 3, 7])
    without = reference(labels).fit(features[~out], labels[~out])
    expected = without.decision_function(features[out])
    np.testing.assert_allclose(found.logits[[0, 3, 7]], expected, rtol=1e-5)


def test_one_class_is_refused(clip):
    with pytest.raises(UserError, match="two classes"):
        fitted(clip, np.zeros(3, int), 2)
