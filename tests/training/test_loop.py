"""In how many parts a batch goes through the model, and that this changes nothing."""

from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
from jax.sharding import Mesh

from fgvpl_jax.methods.clip_lora import ClipLoRA
from fgvpl_jax.methods.fg_vpl import FGVPL
from fgvpl_jax.methods.fvp import FVP
from fgvpl_jax.methods.tip_adapter_f import TipAdapterF
from fgvpl_jax.training import loop
from fgvpl_jax.training.microbatches import default_microbatch
from tests.whole_runs import metrics, run


def devices(platform, number=1):
    return Mock(
        spec=Mesh, size=number, devices=np.array([SimpleNamespace(platform=platform)] * number)
    )


def untrained(method, grid=(14, 14)):
    vision = SimpleNamespace(config=SimpleNamespace(grid=grid))
    return Mock(
        spec=method,
        passes_are_cheap=getattr(method, "passes_are_cheap", None),
        uses_cache=method.uses_cache,
        image_encoder=SimpleNamespace(vision=vision),
    )


@pytest.mark.parametrize("method", [FGVPL, FVP])
@pytest.mark.parametrize(
    ("grid", "images"), [((7, 7), 8), ((14, 14), 2), ((16, 16), 2), ((24, 24), 1)]
)
def test_a_cpu_takes_the_images_that_its_caches_hold(method, grid, images):
    assert default_microbatch(untrained(method, grid), devices("cpu"), 1600) == images


@pytest.mark.parametrize(
    ("method", "platform", "number", "num_support"),
    [
        (FGVPL, "gpu", 1, 160),
        (FGVPL, "cpu", 2, 160),
        (FGVPL, "cpu", 1, 16_000),
        (ClipLoRA, "cpu", 1, 160),
        (TipAdapterF, "cpu", 1, 160),
    ],
)
def test_a_batch_stays_whole_where_parts_would_cost(method, platform, number, num_support):
    assert default_microbatch(untrained(method), devices(platform, number), num_support) == 0


def test_a_method_without_a_cache_takes_any_number_of_photos():
    assert default_microbatch(untrained(FVP), devices("cpu"), 16_000) == 2


@pytest.mark.parametrize("resident_gb", [1.0, 0.0])
def test_parts_that_do_not_divide_the_batch_train_the_same(
    tiny_config, tmp_path, monkeypatch, resident_gb
):
    monkeypatch.setattr(loop, "default_microbatch", lambda *_: 2)
    layouts = []
    layout_of = loop.batch_layout

    def remembered(*arguments):
        layouts.append(layout_of(*arguments))
        return layouts[-1]

    monkeypatch.setattr(loop, "batch_layout", remembered)
    tiny_config.epochs, tiny_config.batch_size = 1, 5
    tiny_config.data.resident_gb = resident_gb
    results = []
    for name, microbatch in (("parts", 0), ("whole", 5)):
        tiny_config.microbatch = microbatch
        run(tiny_config, tmp_path / name)
        results.append(metrics(tmp_path / name))
    assert [(layout.num_rows, layout.num_passes) for layout in layouts] == [(6, 3), (5, 1)]
    for ours, whole in zip(*results, strict=True):
        assert ours["loss"] == pytest.approx(whole["loss"], rel=1e-5)
