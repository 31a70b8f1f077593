"""Signals raise at once if nothing can be lost, and are deferred elsewhere."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fgvpl_jax import interruption
from fgvpl_jax.interruption import Interrupted, at_once, deferred, handling_signals


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_outside_a_deferred_block_raises(signum, code):
    with pytest.raises(Interrupted) as raised, handling_signals():
        signal.raise_signal(signum)
    assert raised.value.exit_code == code
    assert not isinstance(raised.value, Exception)


def test_a_deferred_signal_raises_at_the_end_of_the_block():
    reached = []
    with pytest.raises(Interrupted), handling_signals(), deferred():
        assert interruption.requested() is None
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # batch systems send several
        reached.append(interruption.requested())
    assert reached == [signal.SIGTERM]
    assert interruption.requested() is None


def test_signals_raise_at_once_in_part_of_a_deferred_block():
    with pytest.raises(Interrupted), handling_signals(), deferred(), at_once():
        signal.raise_signal(signal.SIGTERM)
    with handling_signals(), pytest.raises(Interrupted), deferred():
        signal.raise_signal(signal.SIGTERM)
        with at_once():
            pytest.fail("the signal had been recorded before")


def test_previous_handlers_are_restored():
    before = [signal.getsignal(signum) for signum in interruption.SIGNALS]
    with handling_signals():
        assert [signal.getsignal(signum) for signum in interruption.SIGNALS] != before
    assert [signal.getsignal(signum) for signum in interruption.SIGNALS] == before


def test_a_second_ctrl_c_exits_at_once():
    program = (
        "import signal\n"
        "from fgvpl_jax.interruption import deferred, handling_signals\n"
        "with handling_signals(), deferred():\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "    print('noted', flush=True)\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "    print('not reached', flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert (done.returncode, done.stdout) == (130, "noted\n")
    assert "exits at once" in done.stderr
