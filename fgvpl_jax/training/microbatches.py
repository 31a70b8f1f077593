"""Default number of images that go through the model at once, see `microbatch` in the config."""

import math

from jax.sharding import Mesh

from fgvpl_jax.methods import Method
from fgvpl_jax.methods.interface import PixelMethod
from fgvpl_jax.methods.prompted import PromptedMethod

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
    return 1 << max(1, most // math.prod(model.image_encoder.vision.grid)).bit_length() - 1
