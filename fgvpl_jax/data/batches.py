"""Batches of fixed shape: grain decodes and augments images in threads."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float32, Int, Int32
from PIL import Image

from fgvpl_jax.data.image_cache import CHECKSUM, CacheEntry, ImageCache, checksum
from fgvpl_jax.data.images import UnreadableImage
from fgvpl_jax.data.splits import Split
from fgvpl_jax.data.transforms import Augmentation, Transform

# Pillow releases the interpreter lock while it decodes and resizes, so threads suffice.
NUM_THREADS = os.cpu_count() or 1
CHECK_BATCH_SIZE = 64
PADDING = -1  # index of a row that holds no image
# Transformed once to learn the shape that a transform returns.
BLANK = Image.new("RGB", (1, 1))

T = TypeVar("T")


class Batch(NamedTuple):
    """Images of one step, or CLIP's features of them, padded to the batch size.

    Attributes:
        inputs: Pixels as bytes, which the device normalises, [b, H, W, 3], or what was computed
            from them: features, [b, e], or a tuple of arrays with b rows; whichever the method
            reads.
        labels: Class of each image; 0 for padding.
        weights: 1 for a real image, 0 for padding and for an unreadable image.
        indices: Position of each image in the split; -1 for padding.
        unreadable: A line for each image of the batch that cannot be decoded: "path: reason".
    """

    inputs: Any
    labels: Int32[np.ndarray, "b"]
    weights: Float32[np.ndarray, "b"]
    indices: Int32[np.ndarray, "b"]
    unreadable: tuple[str, ...]


@dataclass(frozen=True)
class Share:
    """Part `number` of `count` of the data, which one of several processes reads."""

    number: int = 0
    count: int = 1

    def of(self, size: int) -> slice:
        """Returns the contiguous part of `size` items; the last parts may be short or empty."""
        part = self.largest_of(size)
        return slice(min(self.number * part, size), min((self.number + 1) * part, size))

    def largest_of(self, size: int) -> int:
        """Returns the number of items in the largest part."""
        return -(-size // self.count)


ALL = Share()


class _Example(NamedTuple):
    place: int
    label: int
    image: np.ndarray | UnreadableImage


def train_batches(
    split: Split,
    batch_size: int,
    *,
    augment: Augmentation,
    seed: int,
    epoch: int,
    first_batch: int = 0,
    num_rows: int | None = None,
    share: Share = ALL,
) -> Iterator[Batch]:
    """Returns one epoch of augmented images, each once, in the order of `epoch_rows`.

    The augmentation of an image is drawn from (seed, epoch, its place in the split): batch size,
    order and number of threads do not change it.

    Args:
        split: The few-shot images.
        batch_size: Number of images in every batch; the last batch may have fewer.
        augment: Function from photo and random generator to bytes.
        seed: Seed of the run.
        epoch: Number of the epoch, from 0.
        first_batch: Number of batches to skip, for an epoch that is resumed.
        num_rows: Number of rows that every batch is padded to; None for the batch size.
        share: Part of every batch's rows to return; other rows are not decoded.
    Raises:
        UnreadableImage: If an image cannot be decoded.
    """
    rows = epoch_rows(len(split), batch_size, seed=seed, epoch=epoch, num_rows=num_rows)
    ours = rows[first_batch:, share.of(rows.shape[1])]
    return augmented_batches(split, ours, augment=augment, seed=seed, epoch=epoch)


def augmented_batches(
    split: Split,
    rows: Int[np.ndarray, "steps rows"],
    *,
    augment: Augmentation,
    seed: int,
    epoch: int,
) -> Iterator[Batch]:
    """Returns images at these places as augmented in an epoch; see `train_batches`."""
    blank = augment(BLANK, np.random.default_rng(0))
    load = partial(_augmented_example, split, blank, augment, seed, epoch)
    examples = in_threads(load, rows.ravel().tolist(), rows.shape[1])
    return _batches(examples, rows.shape[1], blank=blank, strict=True)


def epoch_rows(
    num_images: int, batch_size: int, *, seed: int, epoch: int, num_rows: int | None = None
) -> Int[np.ndarray, "steps rows"]:
    """Returns the places of the images of each step of an epoch; `PADDING` in rows without one.

    This is the only place that draws the order of an epoch, from (seed, epoch) alone.

    Args:
        num_images: Number of images; each appears once.
        batch_size: Number of images in every step; the last step may have fewer.
        seed: Seed of the run.
        epoch: Number of the epoch, from 0.
        num_rows: Number of rows that every step is padded to; None for the batch size.
    """
    order = np.random.default_rng((seed, epoch)).permutation(num_images)
    padding = (num_rows or batch_size) - batch_size
    return np.pad(in_rows(order, batch_size), ((0, 0), (0, padding)), constant_values=PADDING)


def in_rows(places: Int[np.ndarray, "n"], batch_size: int) -> Int[np.ndarray, "steps rows"]:
    """Returns places in rows of the batch size, the last of which is filled with `PADDING`."""
    padded = np.pad(places, (0, -len(places) % batch_size), constant_values=PADDING)
    return padded.reshape(-1, batch_size)


def image_generator(seed: int, epoch: int, place: int) -> np.random.Generator:
    """Returns the generator of an image's augmentation in an epoch."""
    return np.random.default_rng((seed, epoch, place))


def eval_batches(
    split: Split,
    batch_size: int,
    *,
    transform: Transform,
    strict: bool = False,
    cache: ImageCache | None = None,
    share: Share = ALL,
) -> Iterator[Batch]:
    """Returns all images in the split's order under the evaluation transform.

    Each of several processes reads a contiguous part of the split, so that its part of the cache
    does not depend on the batch size. All processes return equally many batches.

    Args:
        split: Any split.
        batch_size: Size of every batch, over all processes; the last batch is padded.
        transform: Function from photo to bytes.
        strict: Raise an error at an unreadable image instead of giving it weight 0 and naming it.
        cache: Cache that images are read from, or written to if it does not have them; an image
            that could not be read is tried again each time.
        share: Part of the split to read.
    """
    blank = transform(BLANK)
    batches_of = partial(
        _eval_batches, transform=transform, blank=blank, strict=strict, cache=cache
    )
    padding = partial(_stack, [], blank=blank)
    return share_batches(split, batch_size, share, batches_of, padding=padding)


def share_batches(
    split: Split,
    batch_size: int,
    share: Share,
    batches_of: Callable[[Split, int], Iterator[Batch]],
    *,
    padding: Callable[[int], Batch],
) -> Iterator[Batch]:
    """Returns the batches of a contiguous part of a split; all processes return equally many.

    Args:
        split: Any split.
        batch_size: Size of every batch, over all processes.
        share: Part of the split to read.
        batches_of: Returns the batches of a split that is not empty, of a given size.
        padding: Returns a batch of a given size without any image.
    """
    if share.count == 1:
        return batches_of(split, batch_size) if len(split) else iter(())
    part = share.of(len(split))
    ours = split.select(range(len(split))[part])
    size = batch_size // share.count
    batches = batches_of(ours, size) if len(ours) else iter(())
    num_batches = -(-share.largest_of(len(split)) // size)
    return _placed(batches, part.start, num_batches, padding(size))


def _eval_batches(
    split: Split,
    batch_size: int,
    transform: Transform,
    blank: np.ndarray,
    strict: bool,
    cache: ImageCache | None,
) -> Iterator[Batch]:
    entry = None if cache is None else cache.entry(split, transform)
    if entry is not None and (kept := entry.read()) is not None:
        # No threads: handing an image from thread to thread costs more than copying it.
        kept_examples = _kept_examples(split, entry, kept, transform)
        return _batches(kept_examples, batch_size, blank=blank, strict=strict)
    examples = in_threads(lambda i: _example(split, i, transform), range(len(split)), batch_size)
    batches = _batches(examples, batch_size, blank=blank, strict=strict)
    return batches if entry is None else _recorded(batches, entry)


def _placed(
    batches: Iterator[Batch], first: int, num_batches: int, padding: Batch
) -> Iterator[Batch]:
    """Shifts indices to the whole split, and pads to the number of batches of other processes."""
    given = 0
    for batch in batches:
        places = np.where(batch.indices == PADDING, PADDING, batch.indices + np.int32(first))
        yield batch._replace(indices=places)
        given += 1
    yield from repeat(padding, num_batches - given)


def _example(split: Split, index: int, transform: Transform) -> _Example:
    """Decodes in a thread; an error is returned as a value, for the consumer to report."""
    label = int(split.labels[index])
    try:
        return _Example(index, label, transform(split.image(index)))
    except UnreadableImage as error:
        return _Example(index, label, error)


def _augmented_example(
    split: Split, blank: np.ndarray, augment: Augmentation, seed: int, epoch: int, index: int
) -> _Example:
    if index == PADDING:
        return _Example(PADDING, 0, blank)
    rng = image_generator(seed, epoch, index)
    return _example(split, index, lambda image: augment(image, rng))


def _kept_examples(
    split: Split, entry: CacheEntry, kept: np.ndarray, transform: Transform
) -> Iterator[_Example]:
    damaged = False
    for index, record in enumerate(kept):
        intact = checksum(record) == record[CHECKSUM]
        if not intact and not damaged:
            damaged = True
            entry.remove_damaged()
        if intact and record["readable"]:
            yield _Example(index, int(split.labels[index]), record["image"])
        else:
            yield _example(split, index, transform)


def in_threads(work: Callable[[int], T], places: Sequence[int], ahead: int) -> Iterable[T]:
    """Calls `work` with each place in threads; returns the results in order.

    Args:
        work: Function that must not raise.
        places: Its arguments.
        ahead: Number of results to prepare in advance. grain checks all of them for each result
            that it returns, so one batch, enough to be ready when the device is, costs the least.
    """
    import grain  # takes a second and imports JAX, which reading a config should not wait for

    options = grain.ReadOptions(num_threads=NUM_THREADS, prefetch_buffer_size=ahead)
    return grain.MapDataset.source(places).map(work).to_iter_dataset(options)


def _batches(
    examples: Iterable[_Example], batch_size: int, *, blank: np.ndarray, strict: bool
) -> Iterator[Batch]:
    pending: list[_Example] = []
    for example in examples:
        if strict and isinstance(example.image, UnreadableImage):
            raise example.image
        pending.append(example)
        if len(pending) == batch_size:
            yield _stack(pending, batch_size, blank)
            pending = []
    if pending:
        yield _stack(pending, batch_size, blank)


def _stack(examples: list[_Example], batch_size: int, blank: np.ndarray) -> Batch:
    batch = Batch(
        np.zeros((batch_size, *blank.shape), np.uint8),
        np.zeros(batch_size, np.int32),
        np.zeros(batch_size, np.float32),
        np.full(batch_size, PADDING, np.int32),
        tuple(str(e.image) for e in examples if isinstance(e.image, UnreadableImage)),
    )
    for row, (place, label, image) in enumerate(examples):
        batch.indices[row] = place
        batch.labels[row] = label
        if place != PADDING and not isinstance(image, UnreadableImage):
            batch.inputs[row] = image
            batch.weights[row] = 1
    return batch


def _recorded(batches: Iterator[Batch], entry: CacheEntry) -> Iterator[Batch]:
    with entry.recording() as append:
        for batch in batches:
            real = batch.indices != PADDING
            append(batch.inputs[real], batch.weights[real] > 0)
            yield batch


def unreadable_images(
    split: Split, *, transform: Transform, cache: ImageCache | None, share: Share = ALL
) -> list[str]:
    """Reads every image once, as evaluation will; returns "path: reason" of unreadable ones."""
    size = CHECK_BATCH_SIZE * share.count
    batches = eval_batches(split, size, transform=transform, cache=cache, share=share)
    return [problem for batch in batches for problem in batch.unreadable]
