"""A checkpoint as one object: two frozen towers, tokenizer and image processor."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8
from PIL import Image

from fgvpl_jax.clip.config import read_config
from fgvpl_jax.clip.convert import build_towers
from fgvpl_jax.clip.hub import SMALL_FILES, find_checkpoint
from fgvpl_jax.clip.image_encoder import ImageEncoder
from fgvpl_jax.clip.image_input import ImageProcessor
from fgvpl_jax.clip.text_input import Tokenizer
from fgvpl_jax.clip.towers import TextTower, VisionTower
from fgvpl_jax.clip.weights import content_hash, read_tensors, weight_files


@dataclass(frozen=True)
class Identity:
    """What names a backbone for good.

    Attributes:
        name: The path or hub id it was asked for by.
        revision: The hub's commit; None for a local directory.
        sha256: Of the weight files' contents.
        small_files_sha256: Of config, tokenizer and image processor, on which answers depend too.
    """

    name: str
    revision: str | None
    sha256: str
    small_files_sha256: str


@partial(jax.jit, static_argnums=0)
def _apply(graphdef: nnx.GraphDef, state: nnx.State, inputs: Array) -> Array:
    return nnx.merge(graphdef, state)(inputs)


class CLIP:
    """A frozen CLIP; features are raw (not normalised), as transformers returns them.

    Attributes:
        vision: The image tower.
        image_encoder: The same behind the normalisation: uint8 photos in, features out.
        text: The text tower.
        logit_scale: exp(logit_scale) of the checkpoint; 100 for OpenAI's.
        identity: What to record of it.
        image_size: Side of the images in pixels.
        image_mean: float32 [3]; pixels are (bytes · rescale_factor - image_mean) / image_std.
        image_std: float32 [3].
        rescale_factor: Usually 1/255.
        image_processor: What makes a photo fit.
    """

    def __init__(
        self,
        vision: VisionTower,
        text: TextTower,
        logit_scale: float,
        tokenizer: Tokenizer,
        image_processor: ImageProcessor,
        identity: Identity,
    ):
        self.vision = vision
        self.text = text
        self.logit_scale = np.float32(logit_scale)
        self.identity = identity
        self.image_size = vision.config.image_size
        self.image_mean = image_processor.mean
        self.image_std = image_processor.std
        self.rescale_factor = image_processor.rescale_factor
        self.image_encoder = ImageEncoder(
            vision,
            mean=self.image_mean,
            std=self.image_std,
            rescale_factor=self.rescale_factor,
        )
        self._tokenizer = tokenizer
        self.image_processor = image_processor
        # Splitting once saves its host time at every call.
        self._vision_split = nnx.split(vision)
        self._text_split = nnx.split(text)

    def encode_image(self, pixels: Float[Array | np.ndarray, "b H W 3"]) -> Float[Array, "b e"]:
        """Image features of normalised pixels."""
        return _apply(*self._vision_split, pixels)

    def encode_text(self, token_ids: Int[Array | np.ndarray, "b c"]) -> Float[Array, "b e"]:
        """Text features of token ids."""
        return _apply(*self._text_split, token_ids)

    def tokenize(self, texts: Sequence[str]) -> Int[np.ndarray, "b c"]:
        """Token ids padded to the context length; a text that does not fit is an error."""
        return self._tokenizer(texts)

    def preprocess(self, image: Image.Image) -> Float[np.ndarray, "H W 3"]:
        """Resized, cropped and normalised pixels of one photo."""
        return self.image_processor(image)

    def resize_and_crop(self, image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
        """The same before normalisation, a quarter of the bytes."""
        return self.image_processor.resize_and_crop(image)


def load_clip(path_or_hub_id: str | os.PathLike[str]) -> CLIP:
    """Loads a Hugging Face CLIP from a directory or, by `owner/name`, from the hub.

    Args:
        path_or_hub_id: A directory with config.json, weights (safetensors, sharded safetensors,
            flax_model.msgpack or, with torch installed, pytorch_model.bin), tokenizer files and
            preprocessor_config.json (or processor_config.json); or a hub id.
    Returns:
        The frozen model in float32.
    Raises:
        UserError: If anything is missing, damaged, or does not belong together.
    """
    name = os.fspath(path_or_hub_id)
    directory, revision = find_checkpoint(name)
    vision_config, text_config = read_config(directory)
    tokenizer = Tokenizer(directory, text_config)
    image_processor = ImageProcessor(directory, vision_config)
    tensors = read_tensors(weight_files(directory))
    vision, text, logit_scale = build_towers(vision_config, text_config, tensors)
    identity = _identity(name, directory, revision)
    return CLIP(vision, text, logit_scale, tokenizer, image_processor, identity)


def identity_of(path_or_hub_id: str | os.PathLike[str]) -> Identity:
    """The identity that `load_clip` would find.

    Raises:
        UserError: If there is no checkpoint.
    """
    name = os.fspath(path_or_hub_id)
    return _identity(name, *find_checkpoint(name))


def _identity(name: str, directory: Path, revision: str | None) -> Identity:
    small_files = [directory / file for file in SMALL_FILES if (directory / file).is_file()]
    hashes = content_hash(weight_files(directory)), content_hash(small_files)
    return Identity(name, revision, *hashes)
