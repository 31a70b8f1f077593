"""The score of belonging to the known classes, computed by NumPy and on the device."""

import jax
import numpy as np
import pytest

from fgvpl_jax.recognition import KnownClasses, known_score


@pytest.fixture
def known():
    rng = np.random.default_rng(0)
    return KnownClasses(
        centre=rng.normal(size=5),
        whitening=rng.normal(size=(5, 5)),
        class_means=rng.normal(size=(3, 5)),
        other=rng.normal(size=(4, 5)),
        threshold=np.array(-1.0),
    )


def by_hand(known, feature):
    point = (feature - known.centre) @ known.whitening
    nearest_class = min(float(((point - mean) ** 2).sum()) for mean in known.class_means)
    nearest_other = min((float(((point - x) ** 2).sum()) for x in known.other), default=np.inf)
    return -nearest_class - 2 * max(0.0, nearest_class - nearest_other / 2)


@pytest.mark.parametrize("num_other", [0, 4])
def test_the_score_is_the_distance_to_the_closest_class_and_other_photo(known, num_other):
    known = known._replace(other=known.other[:num_other])
    features = np.random.default_rng(1).normal(size=(20, 5))
    expected = [by_hand(known, feature) for feature in features]
    np.testing.assert_allclose(known_score(known, features), expected, rtol=1e-10)
    single = jax.tree.map(np.float32, known)
    on_device = jax.jit(known_score)(single, features.astype(np.float32))
    np.testing.assert_allclose(on_device, expected, rtol=1e-4)


def test_a_class_mean_has_the_score_0_and_another_photo_a_low_one(known):
    at_mean = known.centre + np.linalg.solve(known.whitening.T, known.class_means[1])
    at_other = known.centre + np.linalg.solve(known.whitening.T, known.other[0])
    without = known_score(known._replace(other=known.other[:0]), np.stack([at_mean, at_other]))
    assert without[0] == pytest.approx(0, abs=1e-9)
    assert known_score(known, at_other[None])[0] == pytest.approx(3 * without[1])
