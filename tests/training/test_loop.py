"""The default microbatch of a device, and equal training with and without microbatches."""

from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
from jax.sharding import Mesh

from fgvpl_jax.methods.clip_lora import ClipLoRA
from fgvpl_jax.methods.clip_svd import ClipSVD
from fgvpl_jax.methods.fg_vpl import FGVPL
from fgvpl_jax.methods.fvp import FVP
from fgvpl_jax.methods.tip_adapter_f import TipAdapterF
from fgvpl_jax.methods.two_stage import TwoStage
from fgvpl_jax.runs import experiment
from fgvpl_jax.training import loop
from fgvpl_jax.training.microbatches import default_microbatch
from tests.cases import further
from tests.whole_runs import made_up_results, metrics, run


def mesh_on(platform, number=1):
    """Returns a stand-in for a mesh of devices of a platform."""
    return Mock(
        spec=Mesh, size=number, devices=np.array([SimpleNamespace(platform=platform)] * number)
    )


def model_of(method, grid=(14, 14), layers_below=0):
    """Returns a stand-in for a model, with a grid of patches but without arrays."""
    vision = SimpleNamespace(grid=grid, attention_layers=[None] * 12)
    return Mock(
        spec=method,
        passes_are_cheap=getattr(method, "passes_are_cheap", None),
        uses_cache=method.uses_cache,
        image_encoder=SimpleNamespace(vision=vision),
        encoder=SimpleNamespace(layers_below=layers_below, vision=vision),
    )


@pytest.mark.parametrize("method", [FGVPL, FVP])
@pytest.mark.parametrize(
    ("grid", "images"), [((7, 7), 8), ((14, 14), 2), ((16, 16), 2), ((24, 24), 1)]
)
def test_a_microbatch_on_a_cpu_fits_in_the_processor_caches(method, grid, images):
    assert default_microbatch(model_of(method, grid), mesh_on("cpu"), 1600) == images


@pytest.mark.parametrize(("layers_below", "images"), [(10, 2), (11, 8)])
def test_a_microbatch_of_tokens_is_larger_only_for_the_last_layer(layers_below, images):
    model = model_of(FGVPL, layers_below=layers_below)
    assert default_microbatch(model, mesh_on("cpu"), 1600) == images


@pytest.mark.parametrize(
    ("method", "platform", "number", "num_support"),
    [
        (FGVPL, "gpu", 1, 160),
        (FGVPL, "cpu", 2, 160),
        (FGVPL, "cpu", 1, 16_000),
        (ClipLoRA, "cpu", 1, 160),
        (ClipSVD, "cpu", 1, 160),
        (TwoStage, "cpu", 1, 160),
        (TipAdapterF, "cpu", 1, 160),
    ],
)
def test_a_batch_stays_whole_if_microbatches_would_cost_time(method, platform, number, num_support):
    assert default_microbatch(model_of(method), mesh_on(platform, number), num_support) == 0


def test_without_a_visual_cache_the_number_of_support_images_does_not_matter():
    assert default_microbatch(model_of(FVP), mesh_on("cpu"), 16_000) == 2


@pytest.mark.parametrize("resident_gb", [1.0, *further(0.0)])
def test_microbatches_that_do_not_divide_the_batch_train_equally(
    tiny_config, tmp_path, monkeypatch, resident_gb
):
    monkeypatch.setattr(loop, "default_microbatch", lambda *_: 2)
    layouts = []
    layout_of = loop.batch_layout

    def remembered(*arguments):
        layouts.append(layout_of(*arguments))
        return layouts[-1]

    monkeypatch.setattr(loop, "batch_layout", remembered)
    results = made_up_results()
    monkeypatch.setattr(experiment, "measure", lambda *_: results)  # only training is compared
    tiny_config.epochs, tiny_config.batch_size = 1, 5
    tiny_config.data.resident_gb = resident_gb
    trained = []
    for name, microbatch in (("parts", 0), ("whole", 5)):
        tiny_config.microbatch = microbatch
        run(tiny_config, tmp_path / name)
        trained.append(metrics(tmp_path / name))
    assert [(layout.num_rows, layout.num_passes) for layout in layouts] == [(6, 3), (5, 1)]
    for ours, whole in zip(*trained, strict=True):
        assert ours["loss"] == pytest.approx(whole["loss"], rel=1e-5)
