"""The input benchmark ends even if one of its processes dies."""

import time
from threading import BrokenBarrierError

import pytest

from benchmarks import input_pipeline
from fgvpl_jax.data.splits import make_split


def test_a_process_that_dies_does_not_leave_the_others_waiting(tmp_path):
    gone = make_split(tmp_path, [("gone.jpg", 0), ("gone too.jpg", 0)])
    started = time.monotonic()
    with pytest.raises(BrokenBarrierError):
        input_pipeline.time_processes(gone)
    assert time.monotonic() - started < input_pipeline.TIMEOUT / 2
