"""The photos that a classifier takes, and the image of each."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fgvpl_jax.clip import CLIP
from fgvpl_jax.data import UnreadableImage, as_photo, decode_image, photos_at
from fgvpl_jax.errors import UserError

Photo = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | BinaryIO
    | Image.Image
    | np.ndarray
    | jax.Array
)

T = TypeVar("T")  # a prediction
NamedCrop = tuple[str, UInt8[np.ndarray, "H W 3"]]
BATCH_SIZE = 64

TAKEN = (
    "give paths, bytes of image files, files opened with 'rb', PIL images, or uint8 arrays of "
    "shape [H, W, 3]; one or a list of them"
)


def named_photos(images: object) -> list[tuple[str, Any]]:
    """Returns every photo with its name: its path, or its index if it has none.

    Args:
        images: One photo or several; a folder stands for all images in it.
    Raises:
        UserError: If something is no photo; says what may be given.
    """
    if _is_photo(images):
        several: Iterable[object] = [images]
    elif isinstance(images, Iterable) and not isinstance(images, Mapping):
        several = images
    else:
        several = [images]  # refused below
    named: list[tuple[str, Any]] = []
    for image in several:
        name = f"image {len(named)}"
        if isinstance(image, str | os.PathLike) and not isinstance(image, Image.Image):
            if image == "":
                raise UserError(f"{name} is an empty path: {TAKEN}")
            named += [(str(file), file) for file in photos_at(os.fspath(image))]
        elif _is_array(image):
            named.append((name, _checked_array(image, name)))
        elif _is_photo(image):
            named.append((name, image))
        else:
            kind = "None" if image is None else f"of type {type(image).__name__}"
            raise UserError(f"{name} is {kind}: {TAKEN}")
    return named


def predict_batches(
    images: object, clip: CLIP, predict: Callable[[list[NamedCrop]], list[T]]
) -> Iterator[T | UnreadableImage]:
    """Yields the prediction of each photo, in order, or the error of one that cannot be read.

    Args:
        images: Photos, see `named_photos`.
        clip: Backbone whose crops are predicted.
        predict: Returns the predictions of a batch of crops, each with the name of its photo; the
            batch is empty if no photo of it can be read.
    Raises:
        UserError: If something is no photo.
    """
    named = named_photos(images)
    for start in range(0, len(named), BATCH_SIZE):
        crops: list[NamedCrop | UnreadableImage] = []
        for name, photo in named[start : start + BATCH_SIZE]:
            try:
                crops.append((name, clip.resize_and_crop(open_photo(photo, name))))
            except UnreadableImage as error:
                crops.append(error)
        readable = [crop for crop in crops if not isinstance(crop, UnreadableImage)]
        predictions = iter(predict(readable))
        for crop in crops:
            yield crop if isinstance(crop, UnreadableImage) else next(predictions)


def all_readable(results: Iterable[T | UnreadableImage]) -> list[T]:
    """Returns the predictions of photos; raises the error of the first that cannot be read."""
    predictions = []
    for result in results:
        if isinstance(result, UnreadableImage):
            raise result
        predictions.append(result)
    return predictions


def one_photo(image: object, what: str) -> tuple[str, Any]:
    """Returns the one photo with its name; see `named_photos`.

    Args:
        image: The photo.
        what: The result and its verb, for the error message, such as "evidence is".
    Raises:
        UserError: If it is no photo or several.
    """
    named = named_photos(image)
    if len(named) != 1:
        raise UserError(f"{what} for one photo, not for {len(named)}: give one")
    return named[0]


def open_photo(photo: Any, name: str) -> Image.Image:
    """Returns a photo as an RGB image, the same one in whatever form it is given.

    Raises:
        UnreadableImage: If it cannot be read or decoded.
    """
    if isinstance(photo, str | os.PathLike):
        return decode_image(Path(photo), name)
    if isinstance(photo, Image.Image):
        return as_photo(photo, name)
    if isinstance(photo, bytes | bytearray | memoryview):
        return decode_image(bytes(photo), name)
    if _is_array(photo):
        return as_photo(Image.fromarray(_checked_array(photo, name)), name)
    return decode_image(_content(photo, name), name)


def _is_photo(image: object) -> bool:
    known = str | os.PathLike | bytes | bytearray | memoryview | Image.Image
    return isinstance(image, known) or _is_array(image) or hasattr(image, "read")


def _is_array(image: object) -> bool:
    """Returns whether this is an array of NumPy, jax or another library."""
    return hasattr(image, "__array__") and hasattr(image, "dtype")


def _checked_array(image: Any, name: str) -> np.ndarray:
    try:
        array = np.asarray(image)
    except Exception as error:  # such as a tensor on another device
        reason = " ".join(str(error).split())
        raise UserError(f"{name} cannot be read as an array ({reason}): {TAKEN}") from error
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise UserError(f"{name} is an array of {array.dtype} {list(array.shape)}: {TAKEN}")
    return np.ascontiguousarray(array)


def _content(file: Any, name: str) -> bytes:
    """Reads an open file from its beginning, wherever its position is."""
    try:
        if getattr(file, "seekable", bool)():
            file.seek(0)
        data = file.read()
    except Exception as error:  # closed, or an error of the library that opened it
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImage(f"{name} cannot be read ({reason})") from error
    if not isinstance(data, bytes | bytearray):
        if hasattr(data, "close"):
            data.close()  # a coroutine, which would warn that nobody awaited it
        raise UnreadableImage(
            f"{name} is a file of {type(data).__name__}, not of bytes: open it with 'rb'"
        )
    return bytes(data)
