"""The scenes of the multi-label benchmark show the objects that their labels say."""

import numpy as np

from benchmarks.multi_label import MOST_OBJECTS, labelled_scene, write_scenes
from fgvpl_jax.data.label_list import load_label_list


def test_scenes_have_up_to_three_labels_and_the_seed_determines_them(tmp_path):
    scenes = [labelled_scene(np.random.default_rng(seed)) for seed in range(12)]
    assert {len(classes) for _, classes in scenes} >= {1, 2, MOST_OBJECTS}
    again, classes = labelled_scene(np.random.default_rng(3))
    assert classes == scenes[3][1]
    np.testing.assert_array_equal(again, scenes[3][0])
    write_scenes(tmp_path / "scenes", {"train": 40, "test": 2}, seed=1)
    dataset = load_label_list(str(tmp_path / "scenes" / "list.csv"))
    assert len(dataset.train.photos) == 40
    assert dataset.test is not None
