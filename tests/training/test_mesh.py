"""How a batch is laid out on devices and in passes."""

from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import Mesh

from fgvpl_jax.methods.clip_lora import ClipLoRA
from fgvpl_jax.methods.fg_vpl import FGVPL
from fgvpl_jax.methods.fvp import FVP
from fgvpl_jax.methods.tip_adapter_f import TipAdapterF
from fgvpl_jax.training import batch_layout, gather_texts, microbatch_for


def mesh_of(num_devices):
    return Mock(spec=Mesh, size=num_devices)


@pytest.mark.parametrize(
    ("num_devices", "batch_size", "microbatch", "layout"),
    [
        (1, 256, 0, (256, 1)),
        (8, 100, 0, (104, 1)),
        (1, 160, 48, (160, 4)),
        (8, 160, 48, (160, 4)),
        (8, 100, 16, (112, 7)),
        (1, 100, 512, (100, 1)),
        (1, 7, 3, (9, 3)),
        (8, 5, 1, (40, 5)),
    ],
)
def test_layouts(num_devices, batch_size, microbatch, layout):
    assert batch_layout(mesh_of(num_devices), batch_size, microbatch) == layout


@given(st.integers(1, 16), st.integers(1, 300), st.integers(0, 400))
def test_no_pass_is_larger_than_asked_for(num_devices, batch_size, microbatch):
    num_rows, num_passes = batch_layout(mesh_of(num_devices), batch_size, microbatch)
    assert num_rows >= batch_size
    assert num_rows % (num_passes * num_devices) == 0
    most = microbatch or batch_size
    assert num_rows // num_passes <= most + -most % num_devices


def devices(platform, number=1):
    return Mock(
        spec=Mesh, size=number, devices=np.array([SimpleNamespace(platform=platform)] * number)
    )


def untrained(method, grid):
    vision = SimpleNamespace(config=SimpleNamespace(grid=grid))
    cheap = getattr(method, "passes_are_cheap", None)
    return Mock(spec=method, passes_are_cheap=cheap, image_encoder=SimpleNamespace(vision=vision))


@pytest.mark.parametrize(
    ("grid", "images"), [((7, 7), 8), ((14, 14), 2), ((16, 16), 2), ((24, 24), 1)]
)
def test_a_cpu_takes_the_images_that_its_caches_hold(grid, images):
    for method in (FGVPL, FVP):
        model = untrained(method, grid)
        assert microbatch_for(model, devices("cpu"), 0) == images
        assert microbatch_for(model, devices("cpu", 2), 0) == 2 * images


def test_the_batch_is_whole_elsewhere_and_in_parts_where_that_is_asked_for():
    model = untrained(FGVPL, (14, 14))
    assert microbatch_for(model, devices("gpu"), 0) == 0
    assert microbatch_for(model, devices("cpu"), 32) == 32
    # Each pass of these would have the text tower's work, or next to none, to do.
    for method in (ClipLoRA, TipAdapterF):
        assert microbatch_for(untrained(method, (14, 14)), devices("cpu"), 0) == 0


def test_texts_of_one_process_come_back():
    assert gather_texts(["Übung.jpg: empty", ""]) == ["Übung.jpg: empty", ""]
    assert gather_texts([]) == []
