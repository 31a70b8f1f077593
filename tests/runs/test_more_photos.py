"""The learning curve of a run: from the support images alone, whatever the method."""

from dataclasses import replace

import numpy as np
import pytest

from fgvpl_jax.runs.more_photos import learning_curve_of
from fgvpl_jax.runs.prepare import prepare
from fgvpl_jax.runs.summary import more_photos_lines
from fgvpl_jax.runs.workdir import Workdir
from tests.conftest import make_tiny_config
from tests.whole_runs import made_up_results


@pytest.fixture(scope="module")
def prepared(tiny_clip_dir, photos_dir, tmp_path_factory):
    config = make_tiny_config(tiny_clip_dir, photos_dir)
    config.shots = 6
    runs = []
    for method in ("fg_vpl", "gda", "gda_pool"):
        config.method = method
        runs.append(prepare(config, Workdir(tmp_path_factory.mktemp("run") / method)))
    return runs


def test_methods_that_read_pixels_and_features_have_the_same_curve(prepared):
    pixels, features, several_kinds = (learning_curve_of(run) for run in prepared)
    assert pixels == features == several_kinds
    assert pixels.photos_per_class == (1.0, 2.0, 4.0, 5.0)


def test_neither_test_nor_validation_images_are_used(prepared):
    run = prepared[1]
    alone = replace(
        run,
        dataset=replace(run.dataset, test=None, validation=None),
        few_shot=replace(run.few_shot, validation=None),
    )
    assert learning_curve_of(alone) == learning_curve_of(run)


def test_copies_count_once(prepared):
    run = prepared[1]
    doubled = run.few_shot.support.select(np.repeat(np.arange(18), 2).tolist())
    doubled = replace(doubled, copies=np.arange(36) // 2)
    twice = replace(run, few_shot=replace(run.few_shot, support=doubled))
    assert learning_curve_of(twice) == learning_curve_of(run)


def test_one_line_says_whether_more_photos_would_help(prepared):
    curve = learning_curve_of(prepared[1])._replace(now=0.7, twice=0.74, twice_interval=(0.7, 0.78))
    results = made_up_results(learning_curve=curve)
    assert more_photos_lines(results) == [
        "with twice as many photos, about 74% (70% to 78%) instead of 70%, by a quick classifier "
        "on held-out photos"
    ]
    (line,) = more_photos_lines(replace(results, learning_curve=curve._replace(twice=0.705)))
    assert line.startswith("more photos would hardly help: with twice as many, about 70% ")
    assert more_photos_lines(made_up_results()) == []
