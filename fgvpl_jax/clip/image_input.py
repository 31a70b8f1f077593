"""From photos to pixels, with the settings of the checkpoint."""

from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from fgvpl_jax.clip.config import UPPER_LIMITS
from fgvpl_jax.errors import UserError

# transformers 5 writes the second when it saves a whole CLIPProcessor.
FILES = ("preprocessor_config.json", "processor_config.json")


class Geometry(Enum):
    """Turns a photo into a square of the tower's side.

    Attributes:
        CROP: Resizes the shortest side and crops the centre; half a pixel is rounded down.
        CROP_TO_EVEN: The same, but half a pixel is rounded to an even number, as torchvision does.
        SQUASH: Resizes both sides, whatever the photo's shape.
    """

    CROP = "crop"
    CROP_TO_EVEN = "crop to even"
    SQUASH = "squash"


class ImageProcessor:
    """Resizes and crops photos (antialiased), and normalises their pixels.

    Attributes:
        side: Side of the tower's images in pixels.
        geometry: How photos become squares; None for a geometry that only `_other` computes.
        mean: Mean of the normalisation, float32 [3]; 0 if the checkpoint does not normalise.
        std: Standard deviation of the normalisation, float32 [3]; 1 if the checkpoint does not
            normalise.
        rescale_factor: Factor that bytes are multiplied by first; 1 if the checkpoint does not
            rescale.
        resample: Pillow's filter for the resize, also of training crops.
    """

    side: int
    geometry: Geometry | None
    mean: Float[np.ndarray, "3"]
    std: Float[np.ndarray, "3"]
    rescale_factor: np.floating
    resample: Image.Resampling

    def resize_and_crop(self, image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
        """Returns bytes after the processor's geometry alone; the device normalises them."""
        if image.mode != "RGB":
            image = image.convert("RGB")
        if self.geometry is None:
            return self._other(image)
        side = self.side
        if self.geometry is Geometry.SQUASH:
            return np.array(image.resize((side, side), self.resample))
        (left, width), (top, height) = (self._offset(n, image.size) for n in image.size)
        resized = image.resize((width, height), self.resample)
        return np.array(resized.crop((left, top, left + side, top + side)))

    def seen_box(self, width: int, height: int) -> tuple[float, float, float, float] | None:
        """Returns left, top, right and bottom of the part of a photo that `resize_and_crop` keeps.

        Args:
            width: Width of the photo in pixels, in which the box is measured too.
            height: Its height.
        Returns:
            The box; None if the checkpoint's geometry is none of `Geometry`.
        """
        if self.geometry is None:
            return None
        if self.geometry is Geometry.SQUASH:
            return 0.0, 0.0, float(width), float(height)
        (left, across), (top, down) = (self._offset(n, (width, height)) for n in (width, height))
        x, y = width / across, height / down
        return left * x, top * y, (left + self.side) * x, (top + self.side) * y

    def _offset(self, length: int, size: tuple[int, int]) -> tuple[int, int]:
        """Returns where the crop begins along an axis of the resized photo, and its length."""
        resized = int(self.side * length / min(size))
        half = round if self.geometry is Geometry.CROP_TO_EVEN else int
        return half((resized - self.side) / 2), resized

    def _other(self, image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
        raise NotImplementedError

    def __call__(self, image: Image.Image) -> Float[np.ndarray, "H W 3"]:
        """Returns the float32 pixels that the tower takes."""
        pixels = self.resize_and_crop(image).astype(np.float32)
        return (pixels * self.rescale_factor - self.mean) / self.std

    def _check(self, file: Path) -> None:
        numbers = np.array([*self.mean, *self.std, self.rescale_factor])
        if not np.isfinite(numbers).all() or not self.std.all():
            raise UserError(
                f"{file} normalises with mean {self.mean}, std {self.std} and rescale_factor "
                f"{self.rescale_factor}: download it again"
            )


class TransformersProcessor(ImageProcessor):
    """The preparation that preprocessor_config.json describes.

    Args:
        directory: Folder that holds preprocessor_config.json, or processor_config.json.
        side: Side of the tower's images.
        class_name: Name of the processor's class in transformers, whose defaults hold for values
            that the file omits.
    Raises:
        UserError: If the file is missing, damaged, or its crop does not fit the tower.
    """

    def __init__(self, directory: Path, side: int, class_name: str = "CLIPImageProcessorPil"):
        file = next((directory / name for name in FILES if (directory / name).is_file()), None)
        if file is None:
            raise UserError(
                f"{directory} has no preprocessor_config.json: download the checkpoint's small "
                "files too"
            )
        import transformers

        self.side = side
        try:
            processor: Any = getattr(transformers, class_name).from_pretrained(str(directory))
            self._processor = processor
            _check_sizes(processor)
            given = (processor.image_mean, processor.image_std)
            mean, std = given if processor.do_normalize else (0, 1)
            self.mean = np.broadcast_to(np.asarray(mean, np.float32), 3)
            self.std = np.broadcast_to(np.asarray(std, np.float32), 3)
            self.rescale_factor = np.float32(
                processor.rescale_factor if processor.do_rescale else 1
            )
            self.resample = Image.Resampling(processor.resample)
            self.geometry = _plain_geometry(processor, side)
            shape = self.resize_and_crop(Image.new("RGB", (2 * side, side))).shape
        except Exception as error:  # each unusable setting raises a different error
            raise UserError(f"{file} cannot be used: {' '.join(str(error).split())}") from error
        if shape != (side, side, 3):
            raise UserError(
                f"{file} makes images of {shape[0]} x {shape[1]}, but config.json says "
                f"image_size {side}: the files do not belong together"
            )
        self._check(file)

    def _other(self, image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
        pixels = self._processor(
            image, do_rescale=False, do_normalize=False, return_tensors="np"
        ).pixel_values[0]
        return np.ascontiguousarray(pixels.transpose(1, 2, 0).astype(np.uint8))


def _plain_geometry(processor: Any, side: int) -> Geometry | None:
    """Returns the geometry of every published checkpoint; None for any other.

    Pillow computes the same bytes without the processor's array copies, in a thirtieth of the time
    for a photo of the tower's own size.
    """
    square = {"height": side, "width": side}
    crops = getattr(processor, "do_center_crop", None)
    if not processor.do_resize or getattr(processor, "do_pad", None):
        return None
    if crops and dict(processor.crop_size) != square:
        return None
    if dict(processor.size) == square:
        return Geometry.SQUASH
    return Geometry.CROP if crops and dict(processor.size) == {"shortest_edge": side} else None


def _check_sizes(processor: Any) -> None:
    """Refuses sizes that would make every photo huge, before the first photo is resized."""
    limit = UPPER_LIMITS["image_size"]
    for name in ("size", "crop_size"):
        for side, pixels in dict(getattr(processor, name, None) or {}).items():
            if pixels is not None and not 1 <= pixels <= limit:
                raise ValueError(f"{name} has {side} {pixels}, not 1 to {limit}")
