"""The queue between users and device: responses, batch sizes, overload and shutdown."""

import threading
from concurrent.futures import wait

import pytest

from fgvpl_jax.serving.micro_batches import MicroBatcher, Overloaded


class Device:
    """Doubles numbers; waits for `gate` before each batch and remembers its sizes."""

    def __init__(self):
        self.gate, self.started = threading.Event(), threading.Event()
        self.sizes = []

    def __call__(self, numbers):
        self.started.set()
        assert self.gate.wait(20)
        self.sizes.append(len(numbers))
        if None in numbers:
            raise RuntimeError("no number")
        return [2 * number for number in numbers]


@pytest.fixture
def device():
    return Device()


def made(device, *, wait_seconds=0.001, num_incoming=lambda: 1, **settings):
    return MicroBatcher(device, wait_seconds=wait_seconds, num_incoming=num_incoming, **settings)


@pytest.fixture
def batcher(device):
    batcher = made(device, max_batch_size=4, wait_seconds=0.005, max_waiting=8)
    yield batcher
    device.gate.set()
    batcher.close()


def test_requests_that_arrive_during_a_batch_fill_the_next_ones(batcher, device):
    first = batcher.submit(100)
    assert device.started.wait(20)
    others = [batcher.submit(number) for number in range(8)]
    device.gate.set()
    assert first.result(20) == 200
    assert [future.result(20) for future in others] == [2 * number for number in range(8)]
    assert device.sizes == [1, 4, 4]


def test_each_of_many_threads_gets_its_own_responses(device):
    device.gate.set()
    batcher = made(device, max_batch_size=4, max_waiting=1000)
    found = {}

    def ask(start):
        futures = {number: batcher.submit(number) for number in range(start, start + 50)}
        found.update({number: future.result(20) for number, future in futures.items()})

    threads = [threading.Thread(target=ask, args=(1000 * i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    batcher.close()
    assert len(found) == 400
    assert all(response == 2 * number for number, response in found.items())
    assert max(device.sizes) <= 4


def test_only_requests_beyond_the_limit_are_refused(batcher, device):
    first = batcher.submit(0)
    assert device.started.wait(20)
    futures = [batcher.submit(number) for number in range(8)]
    with pytest.raises(Overloaded, match="too many"):
        batcher.submit(9)
    device.gate.set()
    assert [f.result(20) for f in (first, *futures)] == [0, *(2 * n for n in range(8))]


def test_a_failure_affects_only_its_batch(batcher, device):
    device.gate.set()
    with pytest.raises(RuntimeError, match="no number"):
        batcher.submit(None).result(20)
    assert batcher.submit(3).result(20) == 6


def test_a_cancelled_request_is_left_out(batcher, device):
    batcher.submit(0)
    assert device.started.wait(20)
    gone, there = batcher.submit(1), batcher.submit(2)
    assert gone.cancel()
    device.gate.set()
    assert there.result(20) == 4
    assert device.sizes == [1, 1]


def test_only_incoming_requests_are_waited_for(device):
    device.gate.set()
    coming = 0
    batcher = made(
        device, max_batch_size=4, wait_seconds=600.0, max_waiting=8, num_incoming=lambda: coming
    )
    assert batcher.submit(1).result(20) == 2
    coming = 1
    first = batcher.submit(1)
    assert not wait([first], 0.1).done
    coming = 0
    assert [batcher.submit(2).result(20), first.result(20)] == [4, 2]
    assert device.sizes == [1, 2]
    batcher.close()


def test_closing_processes_waiting_requests_and_refuses_new_ones(device):
    batcher = made(device, max_batch_size=2, max_waiting=8)
    futures = [batcher.submit(number) for number in range(5)]
    device.gate.set()
    batcher.close()
    batcher.close()
    assert not wait(futures, 20).not_done
    assert [future.result() for future in futures] == [0, 2, 4, 6, 8]
    with pytest.raises(Overloaded, match="shutting down"):
        batcher.submit(1)
