"""Requests of many clients, processed together in batches of at most a fixed size."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

Request = TypeVar("Request")
Response = TypeVar("Response")


class Overloaded(RuntimeError):
    """Raised when no further request can be queued."""


class MicroBatcher(Generic[Request, Response]):
    """A thread that processes all queued requests together, as soon as there are any.

    While it processes a batch further requests gather, so a higher load makes larger batches. It
    waits for more requests only while some are known to be coming.

    Args:
        process_batch: Returns the responses to a batch in its order; called by this thread only.
        max_batch_size: Largest number of requests in a batch.
        wait_seconds: Longest time for which the first request of a batch waits for those that are
            coming.
        max_waiting: Number of requests that may wait, in addition to the batch being processed.
        num_incoming: Returns the number of requests that will be submitted soon.
    """

    def __init__(
        self,
        process_batch: Callable[[Sequence[Request]], Sequence[Response]],
        *,
        max_batch_size: int,
        wait_seconds: float,
        max_waiting: int,
        num_incoming: Callable[[], int],
    ):
        self._process_batch = process_batch
        self._max_batch_size = max_batch_size
        self._wait_seconds = wait_seconds
        self._num_incoming = num_incoming
        self._waiting: queue.Queue[tuple[Request, Future[Response]] | None] = queue.Queue(
            max_waiting
        )
        self._closing = threading.Lock()
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="micro-batches", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> Future[Response]:
        """Queues a request; a client that gives up may cancel the future.

        Raises:
            Overloaded: If too many requests wait, or the batcher is closed.
        """
        future: Future[Response] = Future()
        with self._closing:  # no request may follow the end marker
            if self._is_closed:
                raise Overloaded("the server is shutting down")
            try:
                self._waiting.put_nowait((request, future))
            except queue.Full:
                raise Overloaded("too many requests wait: try again in a moment") from None
        return future

    def close(self) -> None:
        """Processes the requests that wait, then ends the thread."""
        with self._closing:
            if self._is_closed:
                return
            self._is_closed = True
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        is_last = False
        while not is_last:
            batch, is_last = self._collect()
            claimed = [(r, f) for r, f in batch if f.set_running_or_notify_cancel()]
            if not claimed:
                continue
            try:
                responses = self._process_batch([request for request, _ in claimed])
            except Exception as error:  # only this batch fails; the next one may succeed
                for _, future in claimed:
                    future.set_exception(error)
                continue
            for (_, future), response in zip(claimed, responses, strict=True):
                future.set_result(response)

    def _collect(self) -> tuple[list[tuple[Request, Future[Response]]], bool]:
        """Waits for the next batch; returns it, and whether it is the last."""
        batch: list[tuple[Request, Future[Response]]] = []
        deadline = None
        while len(batch) < self._max_batch_size:
            try:
                if deadline is None:
                    found = self._waiting.get()
                    deadline = time.monotonic() + self._wait_seconds
                else:
                    patience = deadline - time.monotonic()
                    if not self._num_incoming():
                        patience = 0.0
                    found = self._waiting.get(timeout=max(0.0, patience))
            except queue.Empty:
                break
            if found is None:
                return batch, True
            batch.append(found)
        return batch, False
