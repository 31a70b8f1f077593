"""Tools shared by the benchmarks: timing in turns, real model shapes, FLOP counts, reports."""

import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import distributions
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Int
from PIL import Image

from fgvpl_jax import defaults
from fgvpl_jax.clip import CLIP, Identity
from fgvpl_jax.clip.config import TextConfig, VisionConfig
from fgvpl_jax.clip.image_input import ImageProcessor
from fgvpl_jax.clip.text_input import Tokenizer
from fgvpl_jax.clip.towers import ImageTower, TextTower, VisionTower
from fgvpl_jax.methods import FGVPL
from fgvpl_jax.training.microbatches import usable_cores

# Packages whose version can change a figure, the references included.
PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "numpy",
    "pillow",
    "onnx",
    "onnxruntime",
    "scikit-image",
    "transformers",
    "torch",
    "tensorflow",
)
SHAPES = {
    "B/32": VisionConfig(width=768, num_layers=12, num_heads=12, mlp_width=3072, patch_size=32),
    "B/16": VisionConfig(width=768, num_layers=12, num_heads=12, mlp_width=3072),
    "L/14": VisionConfig(
        width=1024, num_layers=24, num_heads=16, mlp_width=4096, patch_size=14, embed_dim=768
    ),
    "L/14@336": VisionConfig(
        width=1024,
        num_layers=24,
        num_heads=16,
        mlp_width=4096,
        image_size=336,
        patch_size=14,
        embed_dim=768,
    ),
}

# The paper's values of the arguments that FGVPL takes.
FG_VPL_SETTINGS: dict[str, Any] = {
    "num_prompts": defaults.NUM_PROMPTS,
    "prompt_layer": defaults.PROMPT_LAYER,
    "attention_map": defaults.ATTENTION_MAP,
    "connectivity": defaults.CONNECTIVITY,
    "text_residual_ratio": defaults.TEXT_RESIDUAL_RATIO,
    "object_logit_weight": defaults.OBJECT_LOGIT_WEIGHT,
    "object_query": defaults.OBJECT_QUERY,
    "cache_votes": defaults.CACHE_VOTES,
    "leave_one_out": False,
    "compute_dtype": None,
    "rematerialise": False,
}


def random_model(shape: str, num_classes: int, **settings: Any) -> tuple[FGVPL, CLIP]:
    """Returns `model_of` for the shape of a real model, a key of `SHAPES`."""
    return model_of(SHAPES[shape], num_classes, **settings)


def model_of(vision_config: VisionConfig, num_classes: int, **settings: Any) -> tuple[FGVPL, CLIP]:
    """Returns FG-VPL over a random backbone with a stub of a text tower, and the backbone.

    Args:
        vision_config: Shape of the image tower.
        num_classes: Number of classes, k.
        **settings: Arguments of `FGVPL` that differ from `FG_VPL_SETTINGS`.
    """
    clip = random_clip(vision_config)
    return model_on(clip, num_classes, **settings), clip


def model_on(clip: CLIP, num_classes: int, **settings: Any) -> FGVPL:
    """Returns FG-VPL over a backbone, with random text features; see `model_of`."""
    text = np.random.default_rng(0).normal(size=(num_classes, clip.vision.config.embed_dim))
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    settings = FG_VPL_SETTINGS | settings
    return FGVPL(clip, jnp.asarray(text, jnp.float32), rngs=nnx.Rngs(2), **settings)


class NoTokenizer(Tokenizer):
    """Stands in for a checkpoint's tokenizer; benchmarks of random models read no text."""

    def __init__(self) -> None:
        pass

    def __call__(self, texts: Sequence[str]) -> Int[np.ndarray, "b c"]:
        """Refuses all texts."""
        raise NotImplementedError("a random CLIP has no tokenizer")


class RandomClipProcessor(ImageProcessor):
    """The normalisation of CLIP's photos without a checkpoint's files; has no geometry."""

    def __init__(self) -> None:
        self.mean = np.array([0.48, 0.46, 0.41], np.float32)
        self.std = np.array([0.27, 0.26, 0.28], np.float32)
        self.rescale_factor = np.float32(1 / 255)


def random_clip(vision_config: VisionConfig) -> CLIP:
    """Builds a CLIP with random weights, an image tower of a given shape and a tiny text tower."""
    return clip_on(VisionTower(vision_config, rngs=nnx.Rngs(0)))


def clip_on(vision: ImageTower) -> CLIP:
    """Builds a CLIP of an image tower of any family and a tiny random text tower."""
    text_config = TextConfig(
        width=64,
        num_layers=1,
        num_heads=1,
        mlp_width=64,
        embed_dim=vision.config.embed_dim,
        vocab_size=64,
        context_length=8,
    )
    return CLIP(
        vision,
        TextTower(text_config, rngs=nnx.Rngs(1)),
        100.0,
        NoTokenizer(),
        RandomClipProcessor(),
        Identity(name="random", revision=None, sha256="", small_files_sha256=""),
    )


def smooth_photo(rng: np.random.Generator, side: int) -> Image.Image:
    """Returns a square of smoothed noise, a JPEG of which decodes as fast as a photo."""
    coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8))
    return coarse.resize((side, side), Image.Resampling.BICUBIC)


def take_turns(
    contestants: dict[str, Callable[[], Any]], rounds: int = 7
) -> dict[str, list[float]]:
    """Times each call once per round, so that other work on the machine slows all of them alike.

    Args:
        contestants: Calls by name. Each must return only when its work is done, unless it returns
            JAX arrays, which are waited for.
        rounds: Number of timed rounds, after one that warms up.

    Returns:
        The seconds of each call, in the order of the rounds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(-1, rounds):
        for name, call in contestants.items():
            started = time.perf_counter()
            jax.block_until_ready(call())
            if number >= 0:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(seconds: dict[str, list[float]], ours: str, reference: str) -> float:
    """Returns the median over the rounds of our time divided by the reference's."""
    pairs = zip(seconds[ours], seconds[reference], strict=True)
    return statistics.median(one / other for one, other in pairs)


def layer_flops(tokens: int, queries: int, width: int, mlp_width: int) -> int:
    """Counts the FLOPs of a transformer layer's matrix products for one image.

    A multiply and add is 2 FLOPs. Keys and values are computed for all tokens, everything else for
    the queries only.
    """
    keys_and_values = 4 * tokens * width**2
    query_and_out = 4 * queries * width**2
    attention = 4 * queries * tokens * width
    return keys_and_values + query_and_out + attention + 4 * queries * width * mlp_width


def embedding_flops(config: VisionConfig) -> int:
    """Counts the FLOPs that embed the patches of one image."""
    gh, gw = config.grid
    return 2 * gh * gw * config.patch_size**2 * 3 * config.width


def report(result: dict[str, Any]) -> None:
    """Adds date, device, machine and versions to a result, then prints it like `show`."""
    device = jax.devices()[0]
    result |= {
        "date": date.today().isoformat(),
        "device": f"{device.platform} {device.device_kind} x{jax.device_count()}",
        "machine": f"{platform.machine()}, {usable_cores()} cores",
        "versions": {one.name: one.version for one in distributions() if one.name in PACKAGES},
    }
    show(result)


def show(result: dict[str, Any]) -> None:
    """Prints a result as text and as one JSON line."""
    for name, value in result.items():
        print(f"{name:44} {f'{value:.4g}' if isinstance(value, float) else value}")
    print(json.dumps(result))
