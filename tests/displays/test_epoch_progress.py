import io

import pytest
from rich.console import Console

from fgvpl_jax.displays import epoch_progress
from fgvpl_jax.displays.epoch_progress import EpochWords, showing_epochs


def line(epoch, seconds=2.0):
    return {
        "epoch": epoch,
        "loss": 1.25,
        "accuracy": 0.5,
        "seconds": seconds,
        "images_per_second": 1234.4,
    }


def test_what_is_left_takes_as_long_as_epochs_after_the_one_that_compiled():
    words = EpochWords(10, lambda: (3_000_000_000, 80_000_000_000))
    said = words.of(line(1, seconds=60.0))
    assert said == ("loss 1.2500, accuracy 50.0%, 1,234 images/s, 9 min left, 3.0 of 80.0 GB")
    words.of(line(2, seconds=5.0))
    words.of(line(3, seconds=7.0))
    assert ", 36 s left" in words.of(line(4, seconds=6.0))
    assert ", 0 s left" in words.of(line(10, seconds=900.0))


def test_a_device_that_does_not_tell_its_memory_is_passed_over():
    assert EpochWords(10, lambda: None).of(line(10)).endswith(" 0 s left")


def test_the_fullest_device_is_told(monkeypatch):
    class Device:
        def __init__(self, stats):
            self.memory_stats = lambda: stats

    devices = [
        Device({"bytes_in_use": 1, "bytes_limit": 10}),
        Device({"bytes_in_use": 7, "bytes_limit": 10}),
        Device(None),
        Device({"bytes_in_use": 9}),
    ]
    monkeypatch.setattr(epoch_progress.jax, "local_devices", lambda: devices)
    assert epoch_progress.memory_of_fullest_device() == (7, 10)
    monkeypatch.setattr(epoch_progress.jax, "local_devices", lambda: devices[2:])
    assert epoch_progress.memory_of_fullest_device() is None


def test_plain_lines_are_few_where_there_is_no_terminal(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(epoch_progress.time, "monotonic", lambda: now[0])
    output = io.StringIO()
    with showing_epochs(100, Console(file=output)) as tell:
        for epoch in range(1, 101):
            now[0] = 10.0 * epoch
            tell(line(epoch))
    lines = output.getvalue().splitlines()
    assert lines[0].startswith("epoch 1 of 100: loss 1.2500, accuracy 50.0%")
    assert lines[1].startswith("epoch 4 of 100: ")
    assert lines[-1].startswith("epoch 100 of 100: ")
    assert len(lines) == 34


@pytest.mark.parametrize("failing", [False, True])
def test_a_terminal_gets_a_display_that_renews_itself(failing):
    output = io.StringIO()
    terminal = Console(file=output, force_terminal=True, width=120)
    try:
        with showing_epochs(3, terminal) as tell:
            tell(line(1))
            tell(line(2))
            if failing:
                raise KeyError
            tell(line(3))
    except KeyError:
        pass
    last = output.getvalue().rpartition("epoch ")[2]
    assert last.startswith("2 of 3" if failing else "3 of 3")
    assert "1,234 images/s" in last
    assert output.getvalue().rpartition("\x1b[?25h")[1]  # the cursor is back
