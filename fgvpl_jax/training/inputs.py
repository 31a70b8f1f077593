"""What a method reads of a split, batch by batch: pixels, or CLIP's frozen features of them.

Frozen features are made once for all methods and runs and kept in the image cache's folder: those
under the evaluation transform, and each augmented epoch's, which derive from (seed, epoch, place)
alone, as the pixels do.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Int, UInt8

from fgvpl_jax.clip import CLIP
from fgvpl_jax.data import (
    ALL,
    CacheEntry,
    ImageCache,
    Share,
    Split,
    Transform,
    eval_batches,
    identify,
    random_crop_and_flip,
    train_batches,
)
from fgvpl_jax.recognition import class_text_features
from fgvpl_jax.training.mesh import batch_size_for, replicate, split_batch

T = TypeVar("T")

FEATURE_FORMAT = 1  # counts up when records, or what is computed, change
EXTRACTION_BATCH_SIZE = 256


class InputBatch(NamedTuple):
    """As `data.Batch`, with whatever the method reads.

    Attributes:
        inputs: uint8 [b, H, W, 3] or float32 [b, e].
        labels: 0 for padding.
        weights: 1 for a real image, 0 for padding and for an unreadable one.
        indices: Position in the split; -1 for padding.
        unreadable: Why an image of this batch has no weight.
    """

    inputs: UInt8[np.ndarray, "b H W 3"] | Float32[np.ndarray, "b e"]
    labels: Int[np.ndarray, "b"]
    weights: Float32[np.ndarray, "b"]
    indices: Int[np.ndarray, "b"]
    unreadable: tuple[str, ...]


@runtime_checkable
class Inputs(Protocol):
    """Where the batches of a run come from."""

    def epoch(
        self,
        split: Split,
        batch_size: int,
        epoch: int,
        *,
        first_batch: int = 0,
        num_rows: int | None = None,
    ) -> Iterator[InputBatch]:
        """One augmented epoch, from 0, as `train_batches` orders, draws, begins and pads it.

        What takes longer than a step is done before the first batch is asked for.
        """

    def evaluation(
        self, split: Split, batch_size: int, *, strict: bool = False
    ) -> Iterator[InputBatch]:
        """All images in order under the evaluation transform, as `eval_batches` gives them."""


class PixelInputs:
    """Pixels as they are.

    Args:
        clip: Whose size and transform the images get.
        seed: The run's.
        image_cache: Where images under the evaluation transform are kept.
        share: What this process reads.
    """

    def __init__(self, clip: CLIP, seed: int, image_cache: ImageCache | None, share: Share = ALL):
        self.transform: Transform = clip.resize_and_crop
        self.augment = random_crop_and_flip(clip.image_size)
        self.seed = seed
        self.image_cache = image_cache
        self.share = share

    def epoch(
        self,
        split: Split,
        batch_size: int,
        epoch: int,
        *,
        first_batch: int = 0,
        num_rows: int | None = None,
    ) -> Iterator[InputBatch]:
        """See `Inputs`."""
        for batch in train_batches(
            split,
            batch_size,
            augment=self.augment,
            seed=self.seed,
            epoch=epoch,
            first_batch=first_batch,
            num_rows=num_rows,
            share=self.share,
        ):
            yield InputBatch(*batch)

    def evaluation(
        self, split: Split, batch_size: int, *, strict: bool = False
    ) -> Iterator[InputBatch]:
        """See `Inputs`."""
        for batch in eval_batches(
            split,
            batch_size,
            transform=self.transform,
            strict=strict,
            cache=self.image_cache,
            share=self.share,
        ):
            yield InputBatch(*batch)


def one_behind(values: Iterable[T]) -> Iterator[T]:
    """Each value when the next has been made, so that the device has work while one is fetched."""
    waiting: list[T] = []
    for value in values:
        yield from waiting
        waiting = [value]
    yield from waiting


@partial(jax.jit, static_argnums=0)
def _encode(
    graphdef: nnx.GraphDef, state: nnx.State, images: UInt8[Array, "b H W 3"]
) -> Float[Array, "b e"]:
    return nnx.merge(graphdef, state)(images)


class FeatureInputs:
    """CLIP's frozen image features, raw; for a job of one process.

    Args:
        clip: The backbone.
        seed: The run's.
        image_cache: In whose folder features are kept, beside the images; None keeps none.
        mesh: Devices.
    """

    def __init__(self, clip: CLIP, seed: int, image_cache: ImageCache | None, mesh: Mesh):
        self.pixels = PixelInputs(clip, seed, image_cache)
        self.seed = seed
        self.image_cache = image_cache
        self.mesh = mesh
        graphdef, state = nnx.split(clip.image_encoder)
        self._encoder = partial(_encode, graphdef, replicate(mesh, state))
        self._augmented_images: dict[Split, list | None] = {}
        dim = clip.vision.config.embed_dim
        self._record = np.dtype([("feature", np.float32, (dim,)), ("readable", np.bool_)])
        # All of the backbone that features depend on: the hash is of the weights alone.
        self._backbone = [
            clip.identity.sha256,
            repr(clip.vision.config),
            *(repr(np.asarray(x).tolist()) for x in (clip.image_mean, clip.image_std)),
            float(clip.rescale_factor),
        ]

    def epoch(
        self,
        split: Split,
        batch_size: int,
        epoch: int,
        *,
        first_batch: int = 0,
        num_rows: int | None = None,
    ) -> Iterator[InputBatch]:
        """See `Inputs`."""
        features = self._augmented(split, epoch)
        order = np.random.default_rng((self.seed, epoch)).permutation(len(split))
        parts = (
            order[start : start + batch_size]
            for start in range(first_batch * batch_size, len(order), batch_size)
        )
        return (
            _padded(features[places], split.labels[places], places, num_rows or batch_size)
            for places in parts
        )

    def evaluation(
        self, split: Split, batch_size: int, *, strict: bool = False
    ) -> Iterator[InputBatch]:
        """See `Inputs`."""
        entry = self._entry(split, self._images(split, self.pixels.transform))
        kept = None if entry is None else entry.read_checked()
        # Images that could not be read are tried again, so that they are named.
        if kept is not None and kept["readable"].all():
            for start in range(0, len(split), batch_size):
                places = np.arange(start, min(start + batch_size, len(split)))
                yield _padded(kept["feature"][places], split.labels[places], places, batch_size)
            return
        batches = self._encoded(self.pixels.evaluation(split, batch_size, strict=strict))
        if entry is None or kept is not None:
            yield from batches
            return
        with entry.recording() as append:
            for batch in batches:
                real = batch.indices >= 0
                append(batch.inputs[real], batch.weights[real] > 0)
                yield batch

    def _augmented(self, split: Split, epoch: int) -> Float32[np.ndarray, "s e"]:
        """Features of one augmented epoch, in the split's order."""
        entry = self._entry(split, self._images_to_augment(split), "augmented", self.seed, epoch)
        kept = None if entry is None else entry.read_checked()
        if kept is not None:
            return np.array(kept["feature"])
        size = batch_size_for(self.mesh, EXTRACTION_BATCH_SIZE, len(split))
        features = np.empty((len(split), *self._record["feature"].shape), np.float32)
        for batch in self._encoded(self.pixels.epoch(split, size, epoch)):
            real = batch.indices >= 0
            features[batch.indices[real]] = batch.inputs[real]
        if entry is not None:
            with entry.recording() as append:
                append(features, np.ones(len(features), np.bool_))
        return features

    def _images_to_augment(self, split: Split) -> list | None:
        """`_images`, found once a run: it looks at every file and transforms probes."""
        if split not in self._augmented_images:

            def augment(image):  # of the cache's probes
                return self.pixels.augment(image, np.random.default_rng(0))

            self._augmented_images[split] = self._images(split, augment)
        return self._augmented_images[split]

    def _images(self, split: Split, transform: Transform) -> list | None:
        return None if self.image_cache is None else identify(split, transform)

    def _entry(self, split: Split, images: list | None, *which: str | int) -> CacheEntry | None:
        if self.image_cache is None or images is None:
            return None
        identity = ["features", FEATURE_FORMAT, *self._backbone, *images, *which]
        return self.image_cache.place(identity, self._record, len(split))

    def _encoded(self, batches: Iterator[InputBatch]) -> Iterator[InputBatch]:
        dispatched = (
            (batch, self._encoder(split_batch(self.mesh, batch.inputs))) for batch in batches
        )
        for batch, features in one_behind(dispatched):
            yield batch._replace(inputs=np.asarray(features))


def _padded(
    features: Float32[np.ndarray, "r e"],
    labels: Int[np.ndarray, "r"],
    places: Int[np.ndarray, "r"],
    batch_size: int,
) -> InputBatch:
    padding = batch_size - len(features)
    return InputBatch(
        np.pad(features, ((0, padding), (0, 0))),
        np.pad(labels, (0, padding)).astype(np.int32),
        np.pad(np.ones(len(features), np.float32), (0, padding)),
        np.pad(places, (0, padding), constant_values=-1).astype(np.int32),
        (),
    )


def kept_text_features(
    clip: CLIP,
    class_names: Sequence[str],
    templates: Sequence[str],
    image_cache: ImageCache | None,
) -> Float[Array, "k e"]:
    """`class_text_features`, kept beside the images under a name made of backbone and texts."""
    if image_cache is None:
        return class_text_features(clip, class_names, templates)
    backbone = [clip.identity.sha256, clip.identity.small_files_sha256]
    record = np.dtype([("feature", np.float32, (clip.text.config.embed_dim,))])
    entry = image_cache.place(
        ["texts", FEATURE_FORMAT, *backbone, list(class_names), list(templates)],
        record,
        len(class_names),
    )
    kept = entry.read_checked()
    if kept is not None:
        return jnp.asarray(kept["feature"])
    features = class_text_features(clip, class_names, templates)
    with entry.recording() as append:
        append(np.asarray(features))
    return features


class FewShotInputs:
    """The few-shot images as whole arrays, for what is computed from them before training.

    Attributes:
        labels: Classes of the support images.
    """

    def __init__(self, inputs: Inputs, support: Split, validation: Split | None, batch_size: int):
        self.labels = support.labels
        self._inputs = inputs
        self._support = support
        self._validation = validation
        self._batch_size = batch_size

    def augmented(self, epoch: int) -> np.ndarray:
        """Inputs of the support images as epoch `epoch`, from 0, sees them."""
        return _gather(self._inputs.epoch(self._support, self._batch_size, epoch))[0]

    def plain(self) -> np.ndarray:
        """Inputs of the support images under the evaluation transform."""
        return _gather(self._inputs.evaluation(self._support, self._batch_size, strict=True))[0]

    def validation(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Inputs and labels of the readable validation images, if there are any."""
        if self._validation is None:
            return None
        inputs, labels = _gather(self._inputs.evaluation(self._validation, self._batch_size))
        return (inputs, labels) if len(labels) else None


def _gather(batches: Iterator[InputBatch]) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and labels of the real images, in the split's order."""
    rows, labels, places = [], [], []
    for batch in batches:
        real = batch.weights > 0
        rows.append(batch.inputs[real])
        labels.append(batch.labels[real])
        places.append(batch.indices[real])
    order = np.argsort(np.concatenate(places))
    return np.concatenate(rows)[order], np.concatenate(labels)[order]
