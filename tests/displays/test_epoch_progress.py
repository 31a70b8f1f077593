"""Progress of a training run, on a terminal and elsewhere."""

import io

import pytest
from rich.console import Console

from fgvpl_jax.displays.epoch_progress import (
    EpochSummary,
    epoch_progress,
    memory_of_fullest_device,
)

MODULE = "fgvpl_jax.displays.epoch_progress"


def line(epoch, seconds=2.0):
    return {
        "epoch": epoch,
        "loss": 1.25,
        "accuracy": 0.5,
        "seconds": seconds,
        "images_per_second": 1234.4,
    }


def test_the_time_left_is_estimated_without_the_epoch_that_compiled():
    summary = EpochSummary(10, lambda: (3_000_000_000, 80_000_000_000))
    text = summary.describe(line(1, seconds=60.0))
    assert text == ("loss 1.2500, accuracy 50.0%, 1,234 images/s, 9 min left, 3.0 of 80.0 GB")
    summary.describe(line(2, seconds=5.0))
    summary.describe(line(3, seconds=7.0))
    assert ", 36 s left" in summary.describe(line(4, seconds=6.0))
    assert ", 0 s left" in summary.describe(line(10, seconds=900.0))


def test_a_device_that_does_not_report_its_memory_is_left_out():
    assert EpochSummary(10, lambda: None).describe(line(10)).endswith(" 0 s left")


def test_the_fullest_device_is_reported(monkeypatch):
    class Device:
        def __init__(self, stats):
            self.memory_stats = lambda: stats

    devices = [
        Device({"bytes_in_use": 1, "bytes_limit": 10}),
        Device({"bytes_in_use": 7, "bytes_limit": 10}),
        Device(None),
        Device({"bytes_in_use": 9}),
    ]
    monkeypatch.setattr(f"{MODULE}.jax.local_devices", lambda: devices)
    assert memory_of_fullest_device() == (7, 10)
    monkeypatch.setattr(f"{MODULE}.jax.local_devices", lambda: devices[2:])
    assert memory_of_fullest_device() is None


def test_plain_lines_are_few_where_there_is_no_terminal(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(f"{MODULE}.time.monotonic", lambda: now[0])
    output = io.StringIO()
    with epoch_progress(100, Console(file=output)) as on_epoch:
        for epoch in range(1, 101):
            now[0] = 10.0 * epoch
            on_epoch(line(epoch))
    lines = output.getvalue().splitlines()
    assert lines[0].startswith("epoch 1 of 100: loss 1.2500, accuracy 50.0%")
    assert lines[1].startswith("epoch 4 of 100: ")
    assert lines[-1].startswith("epoch 100 of 100: ")
    assert len(lines) == 34


@pytest.mark.parametrize("failing", [False, True])
def test_a_terminal_gets_a_live_display(failing):
    output = io.StringIO()
    terminal = Console(file=output, force_terminal=True, width=120)
    try:
        with epoch_progress(3, terminal) as on_epoch:
            on_epoch(line(1))
            on_epoch(line(2))
            if failing:
                raise KeyError
            on_epoch(line(3))
    except KeyError:
        pass
    last = output.getvalue().rpartition("epoch ")[2]
    assert last.startswith("2 of 3" if failing else "3 of 3")
    assert "1,234 images/s" in last
    assert output.getvalue().rpartition("\x1b[?25h")[1]  # the cursor is visible again
