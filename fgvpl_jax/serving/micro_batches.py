"""Requests of many clients, answered together: the device sees batches of a few fixed sizes."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

Question = TypeVar("Question")
Answer = TypeVar("Answer")


class Overloaded(RuntimeError):
    """More requests wait than may."""


class MicroBatcher(Generic[Question, Answer]):
    """A thread that answers at once what questions there are.

    While it is at work further questions gather, so that load makes larger batches by itself. It
    waits for others only where some are known to be on their way.

    Args:
        answer_all: Answers a batch in its order; called from the one thread only.
        largest: Questions in a batch.
        wait_seconds: How long the first question of a batch waits for those on their way.
        most_waiting: Questions that may wait beside the batch at work.
        on_their_way: Counts the questions that will be submitted soon.
    """

    def __init__(
        self,
        answer_all: Callable[[Sequence[Question]], Sequence[Answer]],
        *,
        largest: int,
        wait_seconds: float,
        most_waiting: int,
        on_their_way: Callable[[], int],
    ):
        self._answer_all = answer_all
        self._largest = largest
        self._wait_seconds = wait_seconds
        self._on_their_way = on_their_way
        self._waiting: queue.Queue[tuple[Question, Future[Answer]] | None] = queue.Queue(
            most_waiting
        )
        self._closing = threading.Lock()
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="micro-batches", daemon=True)
        self._thread.start()

    def submit(self, question: Question) -> Future[Answer]:
        """Puts a question in the queue; whoever gives up may cancel the future.

        Raises:
            Overloaded: If too many wait, or the batcher is closed.
        """
        future: Future[Answer] = Future()
        with self._closing:  # nothing may come after the last
            if self._is_closed:
                raise Overloaded("the server is ending")
            try:
                self._waiting.put_nowait((question, future))
            except queue.Full:
                raise Overloaded("too many requests wait: try again in a moment") from None
        return future

    def close(self) -> None:
        """Answers what waits, then ends the thread."""
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
            claimed = [(q, f) for q, f in batch if f.set_running_or_notify_cancel()]
            if not claimed:
                continue
            try:
                answers = self._answer_all([question for question, _ in claimed])
            except Exception as error:  # of this batch alone: the next one may do
                for _, future in claimed:
                    future.set_exception(error)
                continue
            for (_, future), answer in zip(claimed, answers, strict=True):
                future.set_result(answer)

    def _collect(self) -> tuple[list[tuple[Question, Future[Answer]]], bool]:
        """A batch, and whether it is the last."""
        batch: list[tuple[Question, Future[Answer]]] = []
        deadline = None
        while len(batch) < self._largest:
            try:
                if deadline is None:
                    found = self._waiting.get()
                    deadline = time.monotonic() + self._wait_seconds
                else:
                    patience = deadline - time.monotonic()
                    if not self._on_their_way():
                        patience = 0.0
                    found = self._waiting.get(timeout=max(0.0, patience))
            except queue.Empty:
                break
            if found is None:
                return batch, True
            batch.append(found)
        return batch, False
