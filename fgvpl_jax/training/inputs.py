"""Reads a split batch by batch: its pixels, or CLIP's frozen features of them.

Frozen features are computed once for all methods and runs and kept in the image cache's folder:
features under the evaluation transform, and features of each augmented epoch. These derive from
(seed, epoch, place) alone, as the pixels do.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Int, UInt8

from fgvpl_jax.clip import CLIP, FrozenEncoder
from fgvpl_jax.data import (
    ALL,
    PADDING,
    Batch,
    CacheEntry,
    ImageCache,
    Share,
    Split,
    Transform,
    augmented_batches,
    epoch_rows,
    eval_batches,
    identify,
    in_rows,
    random_crop_and_flip,
    share_batches,
    train_batches,
)
from fgvpl_jax.recognition import class_text_features
from fgvpl_jax.training.mesh import batch_size_for, replicate, split_batch
from fgvpl_jax.training.microbatches import images_at_once, in_parts
from fgvpl_jax.training.processes import gather_rows, process_share

T = TypeVar("T")

FEATURE_FORMAT = 1  # increases when records, or the computation of features, change
EXTRACTION_BATCH_SIZE = 256


@runtime_checkable
class Inputs(Protocol):
    """Supplies the batches of a run."""

    def epoch(
        self,
        split: Split,
        batch_size: int,
        epoch: int,
        *,
        first_batch: int = 0,
        num_rows: int | None = None,
    ) -> Iterator[Batch]:
        """Returns one augmented epoch; see `train_batches` for order, draw and padding.

        Work that takes longer than a step is done before the first batch is asked for.
        """

    def evaluation(self, split: Split, batch_size: int, *, strict: bool = False) -> Iterator[Batch]:
        """Returns all images in order under the evaluation transform; see `eval_batches`."""


class PixelInputs:
    """Supplies pixels.

    Args:
        clip: Backbone whose image size, transform and filter the images get.
        seed: Seed of the run.
        image_cache: Cache of images under the evaluation transform.
        share: Part of the data that this process reads.
    """

    def __init__(self, clip: CLIP, seed: int, image_cache: ImageCache | None, share: Share = ALL):
        self.transform: Transform = clip.resize_and_crop
        self.resample = clip.image_processor.resample
        self.augment = random_crop_and_flip(size=clip.image_size, resample=self.resample)
        self.seed = seed
        self.image_cache = image_cache
        self.share = share
        self._augmented: dict[Split, list[Any] | None] = {}

    def epoch(
        self,
        split: Split,
        batch_size: int,
        epoch: int,
        *,
        first_batch: int = 0,
        num_rows: int | None = None,
    ) -> Iterator[Batch]:
        """Returns one augmented epoch; see `Inputs.epoch`."""
        return train_batches(
            split,
            batch_size,
            augment=self.augment,
            seed=self.seed,
            epoch=epoch,
            first_batch=first_batch,
            num_rows=num_rows,
            share=self.share,
        )

    def evaluation(self, split: Split, batch_size: int, *, strict: bool = False) -> Iterator[Batch]:
        """Returns all images in order; see `Inputs.evaluation`."""
        return eval_batches(
            split,
            batch_size,
            transform=self.transform,
            strict=strict,
            cache=self.image_cache,
            share=self.share,
        )

    def augmented(
        self, split: Split, rows: Int[np.ndarray, "steps rows"], epoch: int
    ) -> Iterator[Batch]:
        """Returns images at these places as augmented in an epoch; see `train_batches`."""
        return augmented_batches(split, rows, augment=self.augment, seed=self.seed, epoch=epoch)

    def plain_identity(self, split: Split) -> list[Any] | None:
        """Returns the identity of images under the evaluation transform; see `identify`."""
        return None if self.image_cache is None else identify(split, self.transform)

    def augmented_identity(self, split: Split) -> list[Any] | None:
        """Returns the identity of images as they are augmented; see `identify`.

        Computed once for each split: this reads every file's status.
        """
        if self.image_cache is None:
            return None
        if split not in self._augmented:
            self._augmented[split] = identify(
                split, lambda image: self.augment(image, np.random.default_rng(0))
            )
        return self._augmented[split]


def one_behind(values: Iterable[T]) -> Iterator[T]:
    """Yields each value once the next one exists, so the device computes while one is fetched."""
    waiting: list[T] = []
    for value in values:
        yield from waiting
        waiting = [value]
    yield from waiting


@partial(jax.jit, static_argnums=(0, 1))
def _encode(
    graphdef: nnx.GraphDef, size: int, state: nnx.State, images: UInt8[Array, "b H W 3"]
) -> Float[Array, "b c"]:
    return in_parts(nnx.merge(graphdef, state), images, size)


def backbone_identity(clip: CLIP) -> list[Any]:
    """Returns everything in the backbone that features depend on, as JSON data.

    Its hash covers the weights alone.
    """
    return [
        clip.identity.sha256,
        repr(clip.vision.config),
        *(repr(np.asarray(x).tolist()) for x in (clip.image_mean, clip.image_std)),
        float(clip.rescale_factor),
    ]


class FeatureInputs:
    """Supplies frozen features, raw.

    Each of several processes computes those of its share of the images, on its own devices.

    Args:
        clip: The backbone.
        seed: Seed of the run.
        image_cache: Cache whose folder keeps the features as well; None keeps no features.
        mesh: Devices.
        encoder: Encoder of the features; None for CLIP's image encoder.

    Attributes:
        pass_seconds: Time of the latest augmented pass that was encoded, not read from a file; 0
            before the first.
    """

    def __init__(
        self,
        clip: CLIP,
        seed: int,
        image_cache: ImageCache | None,
        mesh: Mesh,
        encoder: FrozenEncoder | None = None,
    ):
        self.share = process_share()
        self.pixels = PixelInputs(clip, seed, image_cache, self.share)
        self.seed = seed
        self.image_cache = image_cache
        self.mesh = mesh
        encoder = encoder or clip.image_encoder
        graphdef, state = nnx.split(encoder)
        size = images_at_once(clip.vision)
        self._encoder = partial(_encode, graphdef, size, replicate(mesh.local_mesh, state))
        feature = ("feature", np.float32, (encoder.feature_dim,))
        self._record = np.dtype([feature, ("readable", np.bool_)])
        self._encoding = [*backbone_identity(clip), *encoder.settings]
        self.pass_seconds = 0.0

    def epoch(
        self,
        split: Split,
        batch_size: int,
        epoch: int,
        *,
        first_batch: int = 0,
        num_rows: int | None = None,
    ) -> Iterator[Batch]:
        """Returns one augmented epoch; see `Inputs.epoch`."""
        features = self._augmented(split, epoch)
        rows = epoch_rows(len(split), batch_size, seed=self.seed, epoch=epoch, num_rows=num_rows)
        ours = rows[first_batch:, self.share.of(rows.shape[1])]
        return (feature_batch(features, split.labels, places) for places in ours)

    def evaluation(self, split: Split, batch_size: int, *, strict: bool = False) -> Iterator[Batch]:
        """Returns all images in order; see `Inputs.evaluation`."""
        batches_of = partial(self._evaluation, strict=strict)
        return share_batches(split, batch_size, self.share, batches_of, padding=self._padding)

    def _padding(self, size: int) -> Batch:
        blank = np.zeros((1, *self._record["feature"].shape), np.float32)
        return feature_batch(blank, np.zeros(1, np.int32), np.full(size, PADDING))

    def _evaluation(self, split: Split, batch_size: int, *, strict: bool) -> Iterator[Batch]:
        """Returns the images of this process."""
        entry = self._entry(self.pixels.plain_identity(split), len(split))
        kept = None if entry is None else entry.read_checked()
        # Images that could not be read are tried again, so that they are named.
        if kept is not None and kept["readable"].all():
            for places in in_rows(np.arange(len(split)), batch_size):
                yield feature_batch(kept["feature"], split.labels, places)
            return
        pixels = eval_batches(
            split,
            batch_size,
            transform=self.pixels.transform,
            strict=strict,
            cache=self.image_cache,
        )
        batches = self._encoded(pixels)
        if entry is None or kept is not None:
            yield from batches
            return
        with entry.recording() as append:
            for batch in batches:
                real = batch.indices != PADDING
                append(batch.inputs[real], batch.weights[real] > 0)
                yield batch

    def _augmented(self, split: Split, epoch: int) -> Float32[np.ndarray, "s e"]:
        """Returns the features of one augmented epoch, in the split's order."""
        size = batch_size_for(self.mesh, EXTRACTION_BATCH_SIZE, len(split))
        rows = epoch_rows(len(split), size, seed=self.seed, epoch=epoch)[:, self.share.of(size)]
        ours = np.sort(rows[rows != PADDING])
        which = () if self.share.count == 1 else (size, self.share.count, self.share.number)
        identity = self.pixels.augmented_identity(split)
        entry = self._entry(identity, len(ours), "augmented", self.seed, epoch, *which)
        kept = None if entry is None else entry.read_checked()
        features = np.empty((len(split), *self._record["feature"].shape), np.float32)
        if kept is not None:
            features[ours] = kept["feature"]
        else:
            started = time.monotonic()
            for batch in self._encoded(self.pixels.epoch(split, size, epoch)):
                real = batch.indices != PADDING
                features[batch.indices[real]] = batch.inputs[real]
            self.pass_seconds = time.monotonic() - started
            if entry is not None:
                with entry.recording() as append:
                    append(features[ours], np.ones(len(ours), np.bool_))
        if self.share.count > 1:
            features[gather_rows(ours.astype(np.int32))] = gather_rows(features[ours])
        return features

    def _entry(self, images: list[Any] | None, length: int, *which: str | int) -> CacheEntry | None:
        if self.image_cache is None or images is None or not length:
            return None
        identity = ["features", FEATURE_FORMAT, *self._encoding, *images, *which]
        return self.image_cache.place(identity, self._record, length)

    def _encoded(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        dispatched = (
            (batch, self._encoder(split_batch(self.mesh.local_mesh, batch.inputs)))
            for batch in batches
        )
        for batch, features in one_behind(dispatched):
            yield batch._replace(inputs=np.asarray(features))


def feature_batch(
    features: Float32[np.ndarray, "s e"],
    labels: Int[np.ndarray, "s"],
    places: Int[np.ndarray, "b"],
) -> Batch:
    """Returns the rows at these places; rows of `PADDING` are 0."""
    real = places != PADDING
    return Batch(
        np.where(real[:, None], features[places], np.float32(0)),
        np.where(real, labels[places], 0).astype(np.int32),
        real.astype(np.float32),
        places.astype(np.int32),
        (),
    )


def kept_text_features(
    clip: CLIP,
    class_names: Sequence[str],
    templates: Sequence[str],
    image_cache: ImageCache | None,
) -> Float[Array, "k e"]:
    """Returns `class_text_features`, kept in the image cache's folder by backbone and texts."""
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
