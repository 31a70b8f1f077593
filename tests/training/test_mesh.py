"""The layout of a batch on devices and in passes."""

from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import Mesh

from fgvpl_jax.training import batch_layout, gather_texts


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
def test_a_batch_is_padded_to_whole_passes(num_devices, batch_size, microbatch, layout):
    assert batch_layout(mesh_of(num_devices), batch_size, microbatch) == layout


@given(st.integers(1, 16), st.integers(1, 300), st.integers(0, 400))
def test_no_pass_is_larger_than_requested(num_devices, batch_size, microbatch):
    num_rows, num_passes = batch_layout(mesh_of(num_devices), batch_size, microbatch)
    assert num_rows >= batch_size
    assert num_rows % (num_passes * num_devices) == 0
    most = microbatch or batch_size
    assert num_rows // num_passes <= most + -most % num_devices


def test_one_process_gathers_its_own_texts_unchanged():
    assert gather_texts(["Übung.jpg: empty", ""]) == ["Übung.jpg: empty", ""]
    assert gather_texts([]) == []
