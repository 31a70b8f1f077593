"""Perception Encoder (PE-Core) in OpenCLIP's form, whose image tower is timm's."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from fgvpl_jax.clip.config import TransformerConfig, VisionConfig
from fgvpl_jax.clip.families.open_clip_files import (
    CONFIG_FILE,
    SMALL_FILES,
    VISION_OFF,
    WEIGHT_FORMATS,
    read,
    side,
)
from fgvpl_jax.clip.families.siglip import ProbePooledTower, ProbePooling
from fgvpl_jax.clip.family import AS_IS, LINEAR, PATCHES, Family, Source, stacked
from fgvpl_jax.clip.layers import INIT_STD, Attention, LayerNorm, Linear, TransformerLayer
from fgvpl_jax.clip.towers import embedded_patches, without_weights
from fgvpl_jax.errors import UserError
from fgvpl_jax.variables import Frozen

# timm's name of a tower -> sides of image and patch, width, layers, heads. PE-Core-bigG, which has
# no class token, is not among them.
SIZES = {
    "vit_pe_core_tiny_patch16_384": (384, 16, 192, 12, 3),
    "vit_pe_core_small_patch16_384": (384, 16, 384, 12, 6),
    "vit_pe_core_base_patch16_224": (224, 16, 768, 12, 12),
    "vit_pe_core_large_patch14_336": (336, 14, 1024, 24, 16),
}
POOLING_HEADS = 8
ROTARY_BASE = 10000.0

PE_VISION_NAMES: dict[str, str | Source] = {
    **{
        f"attention.{ours}.{leaf}": Source(f"attn.qkv.{published}", stacked(place, 3, layout))
        for place, ours in enumerate(("query", "key", "value"))
        for leaf, published, layout in (("kernel", "weight", LINEAR), ("bias", "bias", AS_IS))
    },
    **{
        f"pooling.attention.{ours}.{leaf}": Source(
            f"visual.trunk.attn_pool.kv.{published}", stacked(place, 2, layout)
        )
        for place, ours in enumerate(("key", "value"))
        for leaf, published, layout in (("kernel", "weight", LINEAR), ("bias", "bias", AS_IS))
    },
    "attention.out": "attn.proj",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
    "kernel": Source("weight", LINEAR),
    "scale": "weight",
    "class_embedding": "visual.trunk.cls_token",
    "patch_embedding.kernel": Source("visual.trunk.patch_embed.proj.weight", PATCHES),
    "position_embedding": "visual.trunk.pos_embed",
    "pre_norm": "visual.trunk.norm_pre",
    "layers": "visual.trunk.blocks",
    "post_norm": "visual.trunk.norm",
    "pooling.probe": "visual.trunk.attn_pool.latent",
    "pooling.attention.query": "visual.trunk.attn_pool.q",
    "pooling.attention.out": "visual.trunk.attn_pool.proj",
    "pooling.projection": "visual.trunk.head",
    "pooling": "visual.trunk.attn_pool",
}


class RotaryAttention(Attention):
    """Attention whose queries and keys are rotated by each patch's place in the grid.

    The class token, and tokens after the patches, are not rotated.

    Args:
        config: Sizes of the tower.
        rngs: Random streams.
    """

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        super().__init__(config.width, config.num_heads, rngs=rngs)
        self.grid = config.grid

    def _queries(self, tokens: Float[Array, "b t d"]) -> Float[Array, "b h t c"]:
        return self._rotated(super()._queries(tokens))

    def _keys(self, tokens: Float[Array, "b t d"]) -> Float[Array, "b h t c"]:
        return self._rotated(super()._keys(tokens))

    def _rotated(self, x: Float[Array, "b h t c"]) -> Float[Array, "b h t c"]:
        gh, gw = self.grid
        count = min(x.shape[2] - 1, gh * gw)  # of the class token alone, there is no patch
        if not count:
            return x
        # Not in the type of x: bfloat16 rounds an angle of 24 to a multiple of 1/8.
        angles = rotary_angles(self.grid, x.shape[3])[:count]
        cosines, sines = (jnp.asarray(f(angles), x.dtype) for f in (np.cos, np.sin))
        patches = x[:, :, 1 : 1 + count]
        turned = jnp.stack([-patches[..., 1::2], patches[..., ::2]], axis=-1)
        patches = patches * cosines + turned.reshape(patches.shape) * sines
        return jnp.concatenate([x[:, :, :1], patches, x[:, :, 1 + count :]], axis=2)


def rotary_angles(grid: tuple[int, int], head_width: int) -> Float[np.ndarray, "n c"]:
    """Returns the angle by which each number of a patch's query or key is rotated.

    Numbers form pairs of one angle. The first half turns with the column, the second with the row,
    both counted from 1.
    """
    bands = ROTARY_BASE ** -(np.arange(head_width // 4) / (head_width // 4))
    rows, columns = np.meshgrid(*(np.arange(1, size + 1) for size in grid), indexing="ij")
    places = np.stack([columns.ravel(), rows.ravel()], axis=1)
    return np.repeat((places[:, :, None] * bands).reshape(len(places), -1), 2, axis=1)


class RotaryLayer(TransformerLayer):
    """A block with `RotaryAttention`."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.attention = RotaryAttention(config, rngs=rngs)


class ProjectedProbePooling(ProbePooling):
    """SigLIP's pooling with other heads than the layers', and a projection."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        sizes: TransformerConfig = replace(config, num_heads=POOLING_HEADS)
        super().__init__(sizes, rngs=rngs)
        self.projection = Linear(config.width, config.embed_dim, rngs=rngs)

    def __call__(
        self, tokens: Float[Array, "b t d"], key_mask: Bool[Array, "b t"] | None = None
    ) -> tuple[Float[Array, "b e"], Float[Array, "b h t"]]:
        """Pools the tokens by the probe; see `Pooling`."""
        pooled, weights = super().__call__(tokens, key_mask)
        return self.projection(pooled), weights

    def each(self, tokens: Float[Array, "b t d"]) -> Float[Array, "b t e"]:
        """Returns each token's own feature; see `Pooling`."""
        return self.projection(super().each(tokens))


class PEVisionTower(ProbePooledTower):
    """PE-Core's ViT: a class token, positions that are added and rotary ones, and a pooling."""

    kind = "Perception Encoder"
    num_readers = 1

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        gh, gw = config.grid
        self.config = config
        init = nnx.initializers.normal(INIT_STD)
        self.class_embedding = Frozen(init(rngs.params(), (1, 1, config.width)))
        self.patch_embedding = Linear(
            config.patch_size**2 * 3, config.width, use_bias=False, rngs=rngs
        )
        self.position_embedding = Frozen(init(rngs.params(), (1, 1 + gh * gw, config.width)))
        self.pre_norm = LayerNorm(config.width, config.layer_norm_eps)
        self.layers = nnx.List(RotaryLayer(config, rngs=rngs) for _ in range(config.num_layers))
        self.post_norm = LayerNorm(config.width, config.layer_norm_eps)
        self.pooling = ProjectedProbePooling(config, rngs=rngs)

    def embed(
        self, pixels: Float[Array, "b H W 3"], dtype: str | None = None
    ) -> Float[Array, "b t d"]:
        """Returns class token and patches with positions; see `PooledTower.embed`."""
        self.check(pixels)
        patches = embedded_patches(pixels, self.patch_embedding, self.config)
        size = (patches.shape[0], 1, self.config.width)
        class_token = jnp.broadcast_to(self.class_embedding[...], size)
        tokens = jnp.concatenate([class_token, patches], axis=1) + self.position_embedding[...]
        return self.pre_norm(tokens).astype(dtype or tokens.dtype)


def build(model: dict[str, Any], vision: dict[str, Any]) -> PEVisionTower:
    """Returns the image tower without weights; timm's name of it determines its sizes."""
    image_size, patch_size, width, layers, heads = SIZES[vision["timm_model_name"]]
    given = side(vision.get("image_size", 224))
    if given != image_size:
        raise UserError(f"image_size is {given}, but {vision['timm_model_name']} has {image_size}")
    # OpenCLIP's defaults are other values.
    if vision.get("timm_pool") != "map" or vision.get("timm_proj", "linear"):
        raise UserError("timm_pool and timm_proj must be 'map' and null for Perception Encoder")
    config = VisionConfig(
        width=width,
        num_layers=layers,
        num_heads=heads,
        mlp_width=4 * width,
        activation="gelu",
        image_size=image_size,
        patch_size=patch_size,
        embed_dim=model["embed_dim"],
    )
    return without_weights(PEVisionTower, config)


def matches(raw: dict[str, Any]) -> bool:
    """Returns whether the config names a tower of PE-Core; see `Family.matches`."""
    model = raw.get("model_cfg")
    vision = model.get("vision_cfg") if isinstance(model, dict) else None
    return isinstance(vision, dict) and str(vision.get("timm_model_name")) in SIZES


PE_CORE = Family(
    name="Perception Encoder in OpenCLIP's form",
    config_file=CONFIG_FILE,
    matches=matches,
    weight_formats=WEIGHT_FORMATS,
    small_files=SMALL_FILES,
    read=partial(
        read,
        build=build,
        vision_names=PE_VISION_NAMES,
        vision_off=VISION_OFF | {"timm_model_name": tuple(SIZES)},
    ),
)
