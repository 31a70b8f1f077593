"""Few-shot photos that stay on the devices; the host sends only the random draw of crops."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, UInt8
from PIL import Image

from fgvpl_jax.data import (
    PADDING,
    Crop,
    Split,
    epoch_rows,
    image_generator,
    in_threads,
    random_crop,
)
from fgvpl_jax.data.images import UnreadableImage
from fgvpl_jax.training.augmentation import KERNELS, crop_resize_flip
from fgvpl_jax.training.mesh import replicated, split_rows

DECODED_AHEAD = 64
SIDE_STEP = 64  # sides of canvases are multiples of it, so that few draws need a new program
CROPPED_AT_ONCE = 32  # rows, on each device
# Each of these rows copies its canvas once as bytes and once as float32 to resize it.
COPIES = 5
NO_CROP = Crop((0, 0, 1, 1), False)  # crop of a row of padding


class ResidentPhotos(NamedTuple):
    """Decoded photos, each in the upper left corner of a square that fits the largest photo.

    Attributes:
        canvases: The squares, on every device.
        sizes: (width, height) of each photo.
    """

    canvases: UInt8[Array | np.ndarray, "s H H 3"]
    sizes: tuple[tuple[int, int], ...]


class Crops(NamedTuple):
    """The crops that a step reads instead of pixels.

    Attributes:
        places: Places of the photos in the support set; -1 for padding.
        boxes: (left, top, right, bottom) in pixels.
        flips: True if left and right change places.
    """

    places: Int[Array | np.ndarray, "*b"]
    boxes: Int[Array | np.ndarray, "*b 4"]
    flips: Bool[Array | np.ndarray, "*b"]

    def pixels(
        self,
        canvases: UInt8[Array, "s H H 3"],
        size: int,
        mesh: Mesh,
        resample: Image.Resampling,
    ) -> UInt8[Array, "b size size 3"]:
        """Returns the pixels of the crops, size × size; every device crops its rows in parts."""

        def of_device(crops: "Crops", canvases: Array) -> Array:
            def crop(row: Any) -> Array:
                photo = canvases[row.places]
                return crop_resize_flip(photo, row.boxes, row.flips, size=size, resample=resample)

            return jax.lax.map(crop, crops, batch_size=CROPPED_AT_ONCE)

        rows, whole = split_rows(mesh).spec, replicated(mesh).spec
        return jax.shard_map(of_device, mesh=mesh, in_specs=(rows, whole), out_specs=rows)(
            self, canvases
        )


class EpochDraw(NamedTuple):
    """All steps of an epoch, without pixels.

    Attributes:
        crops: Crop of each step and row.
        labels: Class of each step and row; 0 for padding.
        weights: 1 for a real image, 0 for padding.
    """

    crops: Crops
    labels: Int[Array | np.ndarray, "steps b"]
    weights: Float[Array | np.ndarray, "steps b"]


def decode_resident(
    split: Split, max_bytes: int, resample: Image.Resampling
) -> ResidentPhotos | None:
    """Decodes all photos on the host.

    Args:
        split: The few-shot images.
        max_bytes: Most memory for all canvases together and the copies that are cropped at once.
        resample: Pillow's filter for the crops.
    Returns:
        The photos; None as soon as they turn out to need more memory, or if the device does not
        compute the filter.
    Raises:
        UnreadableImage: If a photo cannot be decoded.
    """
    if resample not in KERNELS:
        return None

    def decode(place: int) -> Image.Image | UnreadableImage:
        try:
            return split.image(place)
        except UnreadableImage as error:
            return error

    photos, side = [], 0
    for photo in in_threads(decode, range(len(split)), DECODED_AHEAD):
        if isinstance(photo, UnreadableImage):
            raise photo
        side = max(side, *(length + -length % SIDE_STEP for length in photo.size))
        if bytes_needed(len(split), side) > max_bytes:
            return None
        photos.append(np.asarray(photo, np.uint8))
    canvases = np.zeros((len(photos), side, side, 3), np.uint8)
    for canvas, pixels in zip(canvases, photos, strict=True):
        canvas[: pixels.shape[0], : pixels.shape[1]] = pixels
    return ResidentPhotos(canvases, tuple((p.shape[1], p.shape[0]) for p in photos))


def bytes_needed(num_photos: int, side: int) -> int:
    """Returns the memory of canvases and of copies that are cropped at once, on each device."""
    return 3 * side**2 * (num_photos + COPIES * CROPPED_AT_ONCE)


def draw_epoch(
    sizes: tuple[tuple[int, int], ...],
    labels: Int[np.ndarray, "s"],
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    num_rows: int,
) -> EpochDraw:
    """Returns the order and the crops that `train_batches` draws for the same photos.

    Args:
        sizes: (width, height) of each photo.
        labels: Class of each photo.
        batch_size: Number of images in every step; the last step may have fewer.
        seed: Seed of the run.
        epoch: Number of the epoch, from 0.
        num_rows: Number of rows that every step is padded to.
    """
    rows = epoch_rows(len(sizes), batch_size, seed=seed, epoch=epoch, num_rows=num_rows)

    def crop_of(place: int) -> Crop:
        if place == PADDING:
            return NO_CROP
        width, height = sizes[place]
        return random_crop(width, height, image_generator(seed, epoch, place))

    drawn = [crop_of(place) for place in rows.ravel().tolist()]
    boxes = np.array([crop.box for crop in drawn], np.int32).reshape(*rows.shape, 4)
    flips = np.array([crop.flip for crop in drawn]).reshape(rows.shape)
    real = rows != PADDING
    return EpochDraw(
        Crops(rows.astype(np.int32), boxes, flips),
        np.where(real, labels[rows], 0).astype(np.int32),
        real.astype(np.float32),
    )


def rows_of_step(draw: EpochDraw, step: Int[Array, ""]) -> EpochDraw:
    """Returns the rows of one step of an epoch."""
    return jax.tree.map(lambda rows: jnp.take(rows, step, axis=0), draw)
