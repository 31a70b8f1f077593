"""Formulas for the cost of FG-VPL: FLOPs of the matrix products (2 per multiply and add) and bytes.

`docs/benchmarks.md` defines the letters. `train_step.py` counts the FLOPs of the towers.
"""

from benchmarks.measuring import embedding_flops, layer_flops
from benchmarks.train_step import evaluation_flops, train_flops
from fgvpl_jax.clip.config import VisionConfig
from fgvpl_jax.defaults import NUM_PROMPTS
from fgvpl_jax.recognition.visual_cache import CHUNK


def train_step_flops(config: VisionConfig, batch: int, classes: int, support: int) -> int:
    """Counts the FLOPs of one step: forward, backward, the two pathways and the roll-out."""
    d, e = config.width, config.embed_dim
    t = num_tokens(config)
    roll_out = 2 * (config.num_layers - 2) * config.num_heads * t**2
    images = batch * (train_flops(config) + roll_out + 8 * d * e)
    return images + heads_flops(config, batch, classes, support)


def heads_flops(config: VisionConfig, batch: int, classes: int, support: int) -> int:
    """Counts the FLOPs of a train step that do not depend on the tower: adapters and pathways."""
    b, k, s, e = batch, classes, support, config.embed_dim
    adapters = 4 * k * e**2 + 8 * s * e**2 + 12 * b * e**2
    paths = 12 * b * k * e + 12 * b * s * e + 8 * b * s * k
    recomputed = 4 * s * e**2 + 4 * b * s * e if support > CHUNK else 0
    return adapters + paths + recomputed


def evaluation_step_flops(config: VisionConfig, batch: int, classes: int, support: int) -> int:
    """Counts the FLOPs of an evaluation batch with its zero-shot logits, without the roll-out."""
    b, k, s, d, e = batch, classes, support, config.width, config.embed_dim
    adapters = 2 * k * e**2 + 4 * s * e**2 + 4 * b * e**2
    paths = 6 * b * k * e + 4 * b * s * e + 4 * b * s * k
    # XLA embeds the patches once for both passes.
    towers = evaluation_flops(config) - embedding_flops(config) + 6 * d * e
    return b * towers + adapters + paths


def cache_refresh_flops(config: VisionConfig) -> int:
    """Counts the FLOPs of one support image without the roll-out.

    All tokens go through the last layer, because its patches are read.
    """
    d, t = config.width, num_tokens(config)
    layers = config.num_layers * layer_flops(t, t, d, config.mlp_width)
    class_query = layer_flops(t, 1, d, config.mlp_width) - 4 * t * d**2
    projections = 2 * (t - 1) * d * config.embed_dim
    return embedding_flops(config) + layers + class_query + projections


def kept_bytes(config: VisionConfig, batch: int, classes: int, support: int) -> int:
    """Returns the bytes that a float32 train step keeps for its backward pass.

    A shared layer keeps two arrays of each LayerNorm, query, key, value, GELU's slope and the
    attention weights. The last two layers keep a LayerNorm, key and value of all tokens. Keys are
    counted as if all were compared at once, which is true for up to `CHUNK` of them.
    """
    d, t, s, e = config.width, num_tokens(config), support, config.embed_dim
    shared = t * (7 * d + config.mlp_width) + config.num_heads * t**2
    heads = 10 * s * e + 2 * s * classes
    return 4 * (batch * ((config.num_layers - 1) * shared + 8 * t * d) + heads)


def attention_bytes(config: VisionConfig, batch: int) -> int:
    """Returns the bytes of the shared layers' float32 attention weights, kept for the roll-out."""
    return 4 * batch * (config.num_layers - 1) * config.num_heads * num_tokens(config) ** 2


def trainable_parameters(config: VisionConfig, num_prompts: int = NUM_PROMPTS) -> int:
    """Counts the parameters of the prompt, the fine-grained layer, p and q."""
    d, m, e = config.width, config.mlp_width, config.embed_dim
    layer = 4 * (d**2 + d) + 2 * d * m + m + d + 4 * d
    return num_prompts * d + layer + 2 * (e**2 + e)


def num_tokens(config: VisionConfig, num_prompts: int = NUM_PROMPTS) -> int:
    """Returns the number of tokens of an image: class, patches and prompt."""
    gh, gw = config.grid
    return gh * gw + 1 + num_prompts
