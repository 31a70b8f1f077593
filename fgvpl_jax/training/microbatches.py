"""Numbers of images that go through a model at once, which suit the caches of a CPU."""

import math
import os
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array

from fgvpl_jax.clip.towers import ImageTower
from fgvpl_jax.methods import Method
from fgvpl_jax.methods.interface import PixelMethod
from fgvpl_jax.methods.prompted import PromptedMethod
from fgvpl_jax.visual_prompt import TokensBelow

Rows = TypeVar("Rows")
Results = TypeVar("Results")

# The fastest size on two cores for B/16, L/14 and images of 64 pixels in patches of 8.
CPU_PATCHES = 512
# The same where only the last layer's class token is trained on, from kept tokens: parts are as
# cheap as their comparison with the support images.
CPU_PATCHES_IN_LAST_LAYER = 2048
# Every part of a batch is compared with all support images, which takes 8·s·e² FLOPs. With many
# more images this costs more than parts save; at this bound parts still take 0.9 of the whole
# batch's time (six layers, width 192).
MOST_KEYS_IN_PARTS = 4096


def default_microbatch(model: Method, mesh: Mesh, num_support: int) -> int:
    """Returns the number of images in one forward and backward pass; 0 stands for the whole batch.

    On a single CPU this is the largest power of two of images that have at most `CPU_PATCHES`
    patches, and at least 1. It is 0 on accelerators, on several devices, and where a part costs
    much more than its share of the images.

    Args:
        model: The model to train.
        mesh: Devices.
        num_support: Number of support images s; a method with a cache compares every part of a
            batch with all of them.
    """
    if mesh.size > 1 or mesh.devices.flat[0].platform != "cpu":
        return 0
    if not isinstance(model, PixelMethod) or not model.passes_are_cheap:
        return 0
    if model.uses_cache and num_support > MOST_KEYS_IN_PARTS:
        return 0
    in_last_layer = (
        isinstance(model, PromptedMethod)
        and model.encoder.layers_below == len(model.encoder.vision.attention_layers) - 1
    )
    most = CPU_PATCHES_IN_LAST_LAYER if in_last_layer else CPU_PATCHES
    return images_with_patches(most, model.image_encoder.vision)


def images_at_once(vision: ImageTower) -> int:
    """Returns how many images should go forward through an image tower at once; 0 for all.

    On a single CPU this is the largest power of two of images that have at most `CPU_PATCHES`
    patches for every two cores, and at least 1. A ResNet takes all: its grid does not say how large
    its layers are, and no part was measured.
    """
    # Not the devices of this process: features must not depend on the number of processes.
    if jax.device_count() > 1 or jax.default_backend() != "cpu" or not vision.attention_layers:
        return 0
    # More cores share the rows of a product. Training does not count them: `microbatch` sets its
    # parts.
    return images_with_patches(CPU_PATCHES * max(1, usable_cores() // 2), vision)


def images_at_once_of(model: Method, inputs: Any) -> int:
    """Returns `images_at_once` for a model that reads pixels; 0 for other inputs."""
    if not isinstance(model, PixelMethod) or isinstance(inputs, TokensBelow):
        return 0
    return images_at_once(model.image_encoder.vision)


def images_with_patches(patches: int, vision: ImageTower) -> int:
    """Returns the largest power of two of images with at most so many patches; at least 1."""
    return 1 << max(1, patches // math.prod(vision.grid)).bit_length() - 1


def usable_cores() -> int:
    """Returns the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # on Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_parts(function: Callable[[Rows], Results], rows: Rows, size: int) -> Results:
    """Computes a function of rows for a part of them at a time; must be called under jit.

    Args:
        function: Maps rows to as many rows of results, each of which depends on its own row.
        rows: Arrays with one row for each image.
        size: Most rows in a part; 0 for all. Parts have equally many, the last one with padding.
    """
    num_rows = jax.tree.leaves(rows)[0].shape[0]
    if not size or num_rows <= size:
        return function(rows)
    num_parts = -(-num_rows // size)
    num_with_padding = num_parts * -(-num_rows // num_parts)

    def part(column: Array) -> Array:
        padding = [(0, num_with_padding - num_rows)] + [(0, 0)] * (column.ndim - 1)
        return jnp.pad(column, padding).reshape(num_parts, -1, *column.shape[1:])

    def join(column: Array) -> Array:
        return column.reshape(num_with_padding, *column.shape[2:])[:num_rows]

    return jax.tree.map(join, jax.lax.map(function, jax.tree.map(part, rows)))
