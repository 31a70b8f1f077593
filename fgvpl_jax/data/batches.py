"""Batches of fixed shape through grain: decoding and augmenting in threads."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import grain
import numpy as np
from jaxtyping import Float32, Int32, UInt8

from fgvpl_jax.data.images import UnreadableImage
from fgvpl_jax.data.splits import Split
from fgvpl_jax.data.transforms import Augmentation, Transform
from fgvpl_jax.errors import UserError

# Pillow lets go of the interpreter lock while it decodes and resizes, so threads suffice.
NUM_THREADS = os.cpu_count() or 1


class Batch(NamedTuple):
    """Images of one step, padded to the batch size.

    Attributes:
        images: Bytes; the device normalises them.
        labels: 0 for padding.
        weights: 1 for a real image, 0 for padding and for an unreadable one.
        indices: Position in the split; -1 for padding.
        unreadable: Why an image of this batch has no weight.
    """

    images: UInt8[np.ndarray, "b H W 3"]
    labels: Int32[np.ndarray, "b"]
    weights: Float32[np.ndarray, "b"]
    indices: Int32[np.ndarray, "b"]
    unreadable: tuple[str, ...]


class _Example(NamedTuple):
    place: int
    label: int
    pixels: np.ndarray | UnreadableImage


def train_batches(
    split: Split, batch_size: int, *, augment: Augmentation, seed: int, epoch: int
) -> Iterator[Batch]:
    """One epoch of augmented images, each once, in an order drawn from (seed, epoch) alone.

    The randomness belongs to the image's place in the epoch, not in its batch: neither batch size
    nor the number of threads changes what an image looks like.

    Args:
        split: The few-shot images.
        batch_size: Every batch's size; the last is padded.
        augment: From photo and random generator to bytes.
        seed: The run's.
        epoch: Counting from 0.
    Raises:
        UnreadableImage: At the image that cannot be decoded.
    """
    entropy = int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])

    def load(index: int, rng: np.random.Generator) -> _Example:
        try:
            pixels = augment(split.image(index), rng)
        except UnreadableImage as error:
            pixels = error
        return _Example(index, int(split.labels[index]), pixels)

    examples = grain.MapDataset.range(len(split)).seed(entropy).shuffle().random_map(load)
    return _batches(examples, batch_size, strict=True)


def eval_batches(
    split: Split, batch_size: int, *, transform: Transform, strict: bool = False
) -> Iterator[Batch]:
    """All images in the split's order under the evaluation transform.

    Args:
        split: Any split.
        batch_size: Every batch's size; the last is padded.
        transform: From photo to bytes.
        strict: Raise at an unreadable image, rather than giving it weight 0 and naming it.
    """

    def load(index: int) -> _Example:
        try:
            pixels = transform(split.image(index))
        except UnreadableImage as error:
            pixels = error
        return _Example(index, int(split.labels[index]), pixels)

    return _batches(grain.MapDataset.range(len(split)).map(load), batch_size, strict=strict)


def _batches(examples: grain.MapDataset, batch_size: int, *, strict: bool) -> Iterator[Batch]:
    options = grain.ReadOptions(num_threads=NUM_THREADS, prefetch_buffer_size=2 * batch_size)
    pending: list[_Example] = []
    for example in examples.to_iter_dataset(options):
        if strict and isinstance(example.pixels, UnreadableImage):
            raise example.pixels
        pending.append(example)
        if len(pending) == batch_size:
            yield _stack(pending, batch_size)
            pending = []
    if pending:
        yield _stack(pending, batch_size)


def _stack(examples: list[_Example], batch_size: int) -> Batch:
    readable = [e for e in examples if not isinstance(e.pixels, UnreadableImage)]
    shape = readable[0].pixels.shape if readable else (1, 1, 3)
    batch = Batch(
        np.zeros((batch_size, *shape), np.uint8),
        np.zeros(batch_size, np.int32),
        np.zeros(batch_size, np.float32),
        np.full(batch_size, -1, np.int32),
        tuple(str(e.pixels) for e in examples if isinstance(e.pixels, UnreadableImage)),
    )
    for row, example in enumerate(examples):
        batch.indices[row] = example.index
        batch.labels[row] = example.label
        if not isinstance(example.pixels, UnreadableImage):
            batch.images[row] = example.pixels
            batch.weights[row] = 1
    return batch


def check_readable(split: Split) -> None:
    """Decodes every image once.

    Raises:
        UserError: If any cannot be; names them and says how many.
    """

    def problem(index: int) -> str | None:
        try:
            split.image(index)
        except UnreadableImage as error:
            return str(error)
        return None

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        problems = [p for p in pool.map(problem, range(len(split))) if p is not None]
    if problems:
        raise UserError(
            f"{len(problems)} of the {len(split)} few-shot images cannot be read: "
            f"{'; '.join(problems[:3])}{'; …' if len(problems) > 3 else ''}: replace or remove them"
        )
