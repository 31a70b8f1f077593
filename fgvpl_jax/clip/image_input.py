"""From photos to pixels, with the settings of the checkpoint's image processor."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from fgvpl_jax.clip.config import UPPER_LIMITS, VisionConfig
from fgvpl_jax.errors import UserError

# transformers 5 writes the second when it saves a whole CLIPProcessor.
FILES = ("preprocessor_config.json", "processor_config.json")


class ImageProcessor:
    """Resizes the shortest side (bicubic, antialiased), crops the centre and normalises.

    Attributes:
        mean: Mean of the normalisation, float32 [3]; 0 if the checkpoint does not normalise.
        std: Standard deviation of the normalisation, float32 [3]; 1 if the checkpoint does not
            normalise.
        rescale_factor: Factor that bytes are multiplied by first; 1 if the checkpoint does not
            rescale.
        is_plain: Whether its geometry is that of every published CLIP: resize the shortest side to
            the tower's, then crop the centre.
        resample: Pillow's filter for the resize.

    Args:
        directory: Folder that holds preprocessor_config.json, or processor_config.json.
        config: Config of the image tower that takes the pixels.
    Raises:
        UserError: If the file is missing, damaged, or its crop does not fit the tower.
    """

    def __init__(self, directory: Path, config: VisionConfig):
        file = next((directory / name for name in FILES if (directory / name).is_file()), None)
        if file is None:
            raise UserError(
                f"{directory} has no preprocessor_config.json: download the checkpoint's small "
                "files too"
            )
        from transformers import CLIPImageProcessorPil

        self._side = config.image_size
        try:
            processor: Any = CLIPImageProcessorPil.from_pretrained(str(directory))
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
            # Pillow computes the same bytes without the processor's array copies, in a thirtieth
            # of the time for a photo of the tower's own size.
            self.is_plain = (
                processor.do_resize
                and processor.do_center_crop
                and dict(processor.size) == {"shortest_edge": self._side}
                and dict(processor.crop_size) == {"height": self._side, "width": self._side}
                and not getattr(processor, "do_pad", None)
            )
            shape = self.resize_and_crop(Image.new("RGB", (2 * self._side, self._side))).shape
        except Exception as error:  # each unusable setting raises a different error
            raise UserError(f"{file} cannot be used: {' '.join(str(error).split())}") from error
        if shape != (self._side, self._side, 3):
            raise UserError(
                f"{file} makes images of {shape[0]} x {shape[1]}, but config.json says "
                f"image_size {self._side}: the files do not belong together"
            )
        numbers = np.array([*self.mean, *self.std, self.rescale_factor])
        if not np.isfinite(numbers).all() or not self.std.all():
            raise UserError(
                f"{file} normalises with mean {self.mean}, std {self.std} and rescale_factor "
                f"{self.rescale_factor}: download it again"
            )

    def resize_and_crop(self, image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
        """Returns bytes after the processor's geometry alone; the device normalises them."""
        if image.mode != "RGB":
            image = image.convert("RGB")
        if self.is_plain:
            return self._plain(image)
        pixels = self._processor(
            image, do_rescale=False, do_normalize=False, return_tensors="np"
        ).pixel_values[0]
        return np.ascontiguousarray(pixels.transpose(1, 2, 0).astype(np.uint8))

    def _plain(self, image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
        side, short = self._side, min(image.size)
        width, height = (int(side * length / short) for length in image.size)
        left, top = (width - side) // 2, (height - side) // 2
        resized = image.resize((width, height), self.resample)
        return np.array(resized.crop((left, top, left + side, top + side)))

    def __call__(self, image: Image.Image) -> Float[np.ndarray, "H W 3"]:
        """Returns the float32 pixels that the tower takes."""
        pixels = self.resize_and_crop(image).astype(np.float32)
        return (pixels * self.rescale_factor - self.mean) / self.std


def _check_sizes(processor: Any) -> None:
    """Refuses sizes that would make every photo huge, before the first photo is resized."""
    limit = UPPER_LIMITS["image_size"]
    for name in ("size", "crop_size"):
        for side, pixels in dict(getattr(processor, name) or {}).items():
            if pixels is not None and not 1 <= pixels <= limit:
                raise ValueError(f"{name} has {side} {pixels}, not 1 to {limit}")
