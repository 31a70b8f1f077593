"""Batches of fixed shape through grain: decoding and augmenting in threads."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float32, Int32, UInt8
from PIL import Image

from fgvpl_jax.data.image_cache import CacheEntry, ImageCache
from fgvpl_jax.data.images import UnreadableImage
from fgvpl_jax.data.splits import Split
from fgvpl_jax.data.transforms import Augmentation, Transform
from fgvpl_jax.errors import UserError

# Pillow lets go of the interpreter lock while it decodes and resizes, so threads suffice.
NUM_THREADS = os.cpu_count() or 1
CHECK_BATCH_SIZE = 64

T = TypeVar("T")


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
    image: np.ndarray | UnreadableImage


def train_batches(
    split: Split, batch_size: int, *, augment: Augmentation, seed: int, epoch: int
) -> Iterator[Batch]:
    """One epoch of augmented images, each once, in an order drawn from (seed, epoch) alone.

    What an image looks like is drawn from (seed, epoch, its place in the split): neither batch
    size, nor order, nor the number of threads changes it.

    Args:
        split: The few-shot images.
        batch_size: Every batch's size; the last is padded.
        augment: From photo and random generator to bytes.
        seed: The run's.
        epoch: Counting from 0.
    Raises:
        UnreadableImage: At the image that cannot be decoded.
    """

    def load(index: int) -> _Example:
        rng = np.random.default_rng((seed, epoch, index))
        return _example(split, index, lambda image: augment(image, rng))

    order = np.random.default_rng((seed, epoch)).permutation(len(split)).tolist()
    examples = in_threads(load, order, batch_size)
    return _batches(examples, batch_size, blank=None)


def eval_batches(
    split: Split,
    batch_size: int,
    *,
    transform: Transform,
    strict: bool = False,
    cache: ImageCache | None = None,
) -> Iterator[Batch]:
    """All images in the split's order under the evaluation transform.

    Args:
        split: Any split.
        batch_size: Every batch's size; the last is padded.
        transform: From photo to bytes.
        strict: Raise at an unreadable image, rather than giving it weight 0 and naming it.
        cache: Where images are taken from if they are there, and kept if not; an image that could
            not be read is tried again each time.
    """
    # What an unreadable image is replaced with, so that the compiled program sees one shape.
    blank = None if strict else transform(Image.new("RGB", (1, 1)))
    entry = None if cache is None else cache.entry(split, transform)
    kept = None if entry is None else entry.read()
    if kept is not None:
        # Without threads: handing an image over costs more than copying it.
        return _batches(_kept_examples(split, kept, transform), batch_size, blank=blank)
    examples = in_threads(lambda i: _example(split, i, transform), range(len(split)), batch_size)
    batches = _batches(examples, batch_size, blank=blank)
    return batches if entry is None else _recorded(batches, entry)


def _example(split: Split, index: int, transform: Transform) -> _Example:
    """Decodes in a thread; what went wrong travels on as a value, to be told by the consumer."""
    label = int(split.labels[index])
    try:
        return _Example(index, label, transform(split.image(index)))
    except UnreadableImage as error:
        return _Example(index, label, error)


def _kept_examples(split: Split, kept: np.ndarray, transform: Transform) -> Iterator[_Example]:
    for index, (image, readable) in enumerate(zip(kept["image"], kept["readable"], strict=True)):
        if readable:
            yield _Example(index, int(split.labels[index]), image)
        else:
            yield _example(split, index, transform)


def in_threads(work: Callable[[int], T], places: Sequence[int], ahead: int) -> Iterable[T]:
    """What `work` makes of each place, in order, made in threads.

    Args:
        work: Must not raise.
        places: What it is called with.
        ahead: Results made before they are asked for. grain looks at all of them for each it
            hands over, so that one batch, enough to be ready when the device is, costs the least.
    """
    import grain  # brings JAX and more: a second, which reading a config need not wait for

    options = grain.ReadOptions(num_threads=NUM_THREADS, prefetch_buffer_size=ahead)
    return grain.MapDataset.source(places).map(work).to_iter_dataset(options)


def _batches(
    examples: Iterable[_Example], batch_size: int, *, blank: np.ndarray | None
) -> Iterator[Batch]:
    pending: list[_Example] = []
    for example in examples:
        if blank is None and isinstance(example.image, UnreadableImage):
            raise example.image
        pending.append(example)
        if len(pending) == batch_size:
            yield _stack(pending, batch_size, blank)
            pending = []
    if pending:
        yield _stack(pending, batch_size, blank)


def _stack(examples: list[_Example], batch_size: int, blank: np.ndarray | None) -> Batch:
    shape = np.asarray(examples[0].image if blank is None else blank).shape
    batch = Batch(
        np.zeros((batch_size, *shape), np.uint8),
        np.zeros(batch_size, np.int32),
        np.zeros(batch_size, np.float32),
        np.full(batch_size, -1, np.int32),
        tuple(str(e.image) for e in examples if isinstance(e.image, UnreadableImage)),
    )
    for row, (place, label, image) in enumerate(examples):
        batch.indices[row] = place
        batch.labels[row] = label
        if not isinstance(image, UnreadableImage):
            batch.images[row] = image
            batch.weights[row] = 1
    return batch


def _recorded(batches: Iterator[Batch], entry: CacheEntry) -> Iterator[Batch]:
    with entry.recording() as append:
        for batch in batches:
            real = batch.indices >= 0
            append(batch.images[real], batch.weights[real] > 0)
            yield batch


def check_readable(split: Split, *, transform: Transform, cache: ImageCache | None) -> None:
    """Reads every image once, as evaluation will.

    Raises:
        UserError: If any cannot be; names them and says how many.
    """
    batches = eval_batches(split, CHECK_BATCH_SIZE, transform=transform, cache=cache)
    problems = [problem for batch in batches for problem in batch.unreadable]
    if problems:
        raise UserError(
            f"{len(problems)} of the {len(split)} few-shot images cannot be read: "
            f"{'; '.join(problems[:3])}{'; …' if len(problems) > 3 else ''}: replace or remove them"
        )
