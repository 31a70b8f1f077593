"""Loads a checkpoint as one object: two frozen towers, tokenizer and image processor."""

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

from fgvpl_jax.clip.convert import build_towers
from fgvpl_jax.clip.downloads import check_small_file
from fgvpl_jax.clip.families import family_of
from fgvpl_jax.clip.family import Family
from fgvpl_jax.clip.hub import find_checkpoint
from fgvpl_jax.clip.image_encoder import ImageEncoder
from fgvpl_jax.clip.image_input import ImageProcessor
from fgvpl_jax.clip.text_input import Tokenizer
from fgvpl_jax.clip.towers import ImageTower, TextTower
from fgvpl_jax.clip.weights import content_hash, read_tensors, weight_files


@dataclass(frozen=True)
class Identity:
    """Identity of a backbone: its name and the hashes of its files.

    Attributes:
        name: The path or hub id it was loaded by.
        revision: The hub's commit; None for a local directory.
        sha256: Hash of the weight files' contents.
        small_files_sha256: Hash of the config, tokenizer and image processor files, on which
            predictions depend too.
    """

    name: str
    revision: str | None
    sha256: str
    small_files_sha256: str


@partial(jax.jit, static_argnums=0)
def _apply(graphdef: nnx.GraphDef, state: nnx.State, inputs: Array) -> Array:
    return nnx.merge(graphdef, state)(inputs)


class CLIP:
    """A frozen two-tower model; features are raw (not normalised), as its own library returns them.

    Attributes:
        vision: The image tower.
        image_encoder: Normalisation and image tower: from uint8 photos to features.
        text: The text tower.
        logit_scale: exp(logit_scale) of the checkpoint; 100 for OpenAI's.
        identity: Name and hashes to record.
        image_size: Side of the images in pixels.
        image_mean: Mean, float32 [3]; pixels are (bytes · rescale_factor - image_mean) / image_std.
        image_std: Standard deviation, float32 [3].
        rescale_factor: Factor of the bytes, usually 1/255.
        image_processor: Resizes, crops and normalises photos.
    """

    def __init__(
        self,
        vision: ImageTower,
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
        # Split once here, because splitting takes host time at every call.
        self._vision_split = nnx.split(vision)
        self._text_split = nnx.split(text)

    def encode_image(self, pixels: Float[Array | np.ndarray, "b H W 3"]) -> Float[Array, "b e"]:
        """Returns image features of normalised pixels."""
        return _apply(*self._vision_split, pixels)

    def encode_text(self, token_ids: Int[Array | np.ndarray, "b c"]) -> Float[Array, "b e"]:
        """Returns text features of token ids."""
        return _apply(*self._text_split, token_ids)

    def tokenize(self, texts: Sequence[str]) -> Int[np.ndarray, "b c"]:
        """Returns token ids padded to the context length; a text that does not fit is an error."""
        return self._tokenizer(texts)

    def preprocess(self, image: Image.Image) -> Float[np.ndarray, "H W 3"]:
        """Returns resized, cropped and normalised pixels of one photo."""
        return self.image_processor(image)

    def resize_and_crop(self, image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
        """Returns the pixels of `preprocess` before normalisation, in a quarter of the memory."""
        return self.image_processor.resize_and_crop(image)


def load_clip(path_or_hub_id: str | os.PathLike[str]) -> CLIP:
    """Loads a two-tower checkpoint from a directory or, by `owner/name`, from the hub.

    Args:
        path_or_hub_id: A hub id, or a directory with the files of one of the `FAMILIES`: a config,
            weights, tokenizer files, and the settings of the preparation of photos.
    Returns:
        The frozen model in float32.
    Raises:
        UserError: If files are missing, damaged, or do not belong together.
    """
    name = os.fspath(path_or_hub_id)
    directory, revision = find_checkpoint(name)
    family, config = family_of(directory)
    for file in small_files(directory, family):
        check_small_file(file)
    architecture = family.read(directory, config)
    tensors = read_tensors(weight_files(directory, family.weight_formats))
    vision, text, logit_scale = build_towers(architecture, tensors)
    return CLIP(
        vision,
        text,
        logit_scale,
        architecture.tokenizer,
        architecture.image_processor,
        _identity(name, directory, revision, family),
    )


def identity_of(path_or_hub_id: str | os.PathLike[str]) -> Identity:
    """Returns the identity of the checkpoint that `load_clip` would load.

    Raises:
        UserError: If there is no checkpoint.
    """
    name = os.fspath(path_or_hub_id)
    directory, revision = find_checkpoint(name)
    family, _ = family_of(directory)
    return _identity(name, directory, revision, family)


def small_files(directory: Path, family: Family) -> list[Path]:
    """Returns the config, tokenizer and image processor files of a checkpoint."""
    return [directory / file for file in family.small_files if (directory / file).is_file()]


def _identity(name: str, directory: Path, revision: str | None, family: Family) -> Identity:
    weights = weight_files(directory, family.weight_formats)
    hashes = content_hash(weights), content_hash(small_files(directory, family))
    return Identity(name, revision, *hashes)
