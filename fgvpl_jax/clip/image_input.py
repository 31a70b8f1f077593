"""Photos to pixels, by the checkpoint's own image processor."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from fgvpl_jax.clip.config import VisionConfig
from fgvpl_jax.errors import UserError


class ImageProcessor:
    """Resize of the shortest side (bicubic, antialiased), centre crop, normalisation.

    Attributes:
        mean: float32 [3], of the normalisation.
        std: float32 [3].
        rescale_factor: What a byte is multiplied with before.

    Args:
        directory: Holds preprocessor_config.json.
        config: Of the image tower that will see the pixels.
    Raises:
        UserError: If the file is missing or its crop does not fit the tower.
    """

    def __init__(self, directory: Path, config: VisionConfig):
        if not (directory / "preprocessor_config.json").is_file():
            raise UserError(
                f"{directory} has no preprocessor_config.json: download the checkpoint's small "
                "files too"
            )
        from transformers import CLIPImageProcessorPil

        try:
            self._processor: Any = CLIPImageProcessorPil.from_pretrained(str(directory))
        except (OSError, ValueError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{directory}/preprocessor_config.json cannot be used: {reason}"
            ) from error
        self._side = config.image_size
        self.mean = np.asarray(self._processor.image_mean, np.float32)
        self.std = np.asarray(self._processor.image_std, np.float32)
        self.rescale_factor = np.float32(self._processor.rescale_factor)
        shape = self.resize_and_crop(Image.new("RGB", (2 * self._side, self._side))).shape
        if shape != (self._side, self._side, 3):
            raise UserError(
                f"{directory}/preprocessor_config.json makes images of {shape[0]} x {shape[1]}, "
                f"but config.json says image_size {self._side}: the files do not belong together"
            )

    def resize_and_crop(self, image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
        """The processor's geometry alone; bytes, to be normalised on the device."""
        pixels = self._processor(
            image, do_rescale=False, do_normalize=False, return_tensors="np"
        ).pixel_values[0]
        return np.ascontiguousarray(pixels.transpose(1, 2, 0).astype(np.uint8))

    def __call__(self, image: Image.Image) -> Float[np.ndarray, "H W 3"]:
        """Float32 pixels as the tower wants them."""
        pixels = self.resize_and_crop(image).astype(np.float32)
        return (pixels * self.rescale_factor - self.mean) / self.std
