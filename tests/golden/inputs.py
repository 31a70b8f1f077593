"""Inputs for the golden files, which the writer and the tests draw from the same seeds."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.tiny_clip import random_tensors, tiny_config

DIRECTORY = Path(__file__).parent
CLIP_FILE, FG_VPL_FILE, BACKBONES_FILE = "clip.npz", "fg_vpl.npz", "backbones.npz"

TEXTS = ["a photo of a dog.", "x", "two words, and more!"]
CLASS_NAMES = ["dog", "table_lamp", "Ferris wheel", "forest"]
TEMPLATES = ("a photo of a {}.", "art of the {}.")
# Unequal counts, in an order in which neighbouring images have different classes.
SUPPORT_LABELS = np.array([2, 0, 1, 0, 3, 0, 2, 3])
QUERY_LABELS = np.array([0, 3, 1, 2, 2])


@dataclass(frozen=True)
class Case:
    """One FG-VPL model: the overrides of `tiny_config` for its backbone, and its settings."""

    clip: dict[str, Any] = field(default_factory=dict)
    num_prompts: int = 1
    connectivity: int = 2
    text_residual_ratio: float = 0.05
    object_logit_weight: float = 0.5
    cache_logit_weight: float = 1.0


# Random attention of narrow towers with many heads is flat enough for areas of several patches.
NARROW = {"hidden_size": 12, "num_attention_heads": 6}
CASES = {
    "paper": Case({"vision_config": NARROW | {"patch_size": 4, "num_hidden_layers": 4}}),
    "other": Case(
        {
            "vision_config": NARROW | {"hidden_act": "gelu", "image_size": 50, "patch_size": 7},
            "text_config": {"eos_token_id": 2},
        },
        num_prompts=3,
        connectivity=1,
        text_residual_ratio=0.3,
        object_logit_weight=0.7,
        cache_logit_weight=2.5,
    ),
}


@dataclass(frozen=True)
class Inputs:
    """Inputs of one case.

    Trainable parts are far from their initial values, so that each changes the outputs.

    Attributes:
        tensors: Tensors of the backbone.
        fine_grained_layer: The last image layer of another backbone, drawn from `OTHER_SEED`, under
            Hugging Face's names of a layer's tensors.
        prompt: Prompt [m, d].
        text_adapter: Adapter p as (kernel [in, out], bias).
        visual_adapter: Adapter q in the same form.
        queries: Query images, uint8 [b, H, W, 3].
        support: Support images, uint8 [s, H, W, 3].
    """

    tensors: dict[str, np.ndarray]
    fine_grained_layer: dict[str, np.ndarray]
    prompt: np.ndarray
    text_adapter: tuple[np.ndarray, np.ndarray]
    visual_adapter: tuple[np.ndarray, np.ndarray]
    queries: np.ndarray
    support: np.ndarray

    def checksum(self) -> str:
        return checksum(
            [
                *self.tensors.values(),
                *self.fine_grained_layer.values(),
                self.prompt,
                *self.text_adapter,
                *self.visual_adapter,
                self.queries,
                self.support,
            ]
        )


SEED, OTHER_SEED = 0, 1


def case_inputs(case: Case) -> Inputs:
    config = tiny_config(**case.clip)
    vision, dim = config["vision_config"], config["projection_dim"]
    last = f"vision_model.encoder.layers.{vision['num_hidden_layers'] - 1}."
    rng = np.random.default_rng(SEED)
    side = vision["image_size"]

    def normal(scale: float, *shape: int) -> np.ndarray:
        return rng.normal(scale=scale, size=shape).astype(np.float32)

    def images(count: int) -> np.ndarray:
        """Draws rectangles on noise, so that masks choose between areas of several patches."""
        drawn = rng.integers(0, 60, (count, side, side, 3), dtype=np.uint8)
        for image in drawn:
            for _ in range(3):
                top, left = rng.integers(0, side // 2, size=2)
                height, width = rng.integers(side // 4, side // 2, size=2)
                image[top : top + height, left : left + width] += rng.integers(
                    0, 60, 3, dtype=np.uint8
                )
        return drawn

    return Inputs(
        tensors=random_tensors(config, SEED),
        fine_grained_layer={
            name.removeprefix(last): value
            for name, value in random_tensors(config, OTHER_SEED).items()
            if name.startswith(last)
        },
        prompt=normal(1.0, case.num_prompts, vision["hidden_size"]),
        text_adapter=(normal(0.3, dim, dim), normal(0.1, dim)),
        visual_adapter=(normal(0.3, dim, dim), normal(0.1, dim)),
        queries=images(len(QUERY_LABELS)),
        support=images(len(SUPPORT_LABELS)),
    )


def clip_pixels(config: dict[str, Any]) -> np.ndarray:
    side = config["vision_config"]["image_size"]
    return np.random.default_rng(SEED).normal(size=(3, side, side, 3)).astype(np.float32)


# The pixels of a prepared photo that are compared; all of them would fill the file.
PHOTO_SAMPLE = np.s_[::7, ::5]


def backbone_inputs(side: int) -> tuple[np.ndarray, Image.Image]:
    """Returns normalised images of a backbone's size, and a photo of an odd shape."""
    rng = np.random.default_rng(SEED)
    pixels = rng.normal(size=(3, side, side, 3)).astype(np.float32)
    return pixels, Image.fromarray(rng.integers(0, 256, (45, 70, 3), np.uint8))


def checksum(arrays: Iterable[np.ndarray]) -> str:
    """Returns a hash that shows whether the inputs, rather than the model, have changed."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
