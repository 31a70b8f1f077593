"""CLIP's ResNets in OpenCLIP's form: RN50, RN101, RN50x4, RN50x16 and RN50x64."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from fgvpl_jax.clip.config import UPPER_LIMITS
from fgvpl_jax.clip.families.open_clip_files import (
    CONFIG_FILE,
    SMALL_FILES,
    WEIGHT_FORMATS,
    read,
    side,
)
from fgvpl_jax.clip.family import LINEAR, Family, Layout, Source
from fgvpl_jax.clip.layers import INIT_STD, Attention
from fgvpl_jax.clip.towers import PooledTower, Pooling, without_weights
from fgvpl_jax.errors import UserError
from fgvpl_jax.variables import Frozen

# Side in pixels that one cell of the last stage stands for: the stem halves twice, each of three
# stages once.
CELL = 32
EXPANSION = 4
BATCH_NORM_EPS = 1e-5

# A convolution's kernel, [out, in, h, w], which is [h, w, in, out] here.
CONVOLUTION = Layout(
    lambda shape: (shape[3], shape[2], shape[0], shape[1]),
    lambda tensor: tensor.transpose(2, 3, 1, 0),
)
RESNET_NAMES: dict[str, str | Source] = {
    "stem": "visual",
    **{f"layer{number}": f"visual.layer{number}" for number in range(1, 5)},
    "shortcut.conv": "downsample.0",
    "shortcut.norm": "downsample.1",
    "filters": Source("weight", CONVOLUTION),
    "scale": "weight",
    "mean": "running_mean",
    "variance": "running_var",
    "position_embedding": "visual.attnpool.positional_embedding",
    "pooling.attention": "visual.attnpool",
    "query": "q_proj",
    "key": "k_proj",
    "value": "v_proj",
    "out": "c_proj",
    "kernel": Source("weight", LINEAR),
}


@dataclass(frozen=True)
class ResNetConfig:
    """Sizes of a ResNet.

    Attributes:
        blocks: Number of blocks of each of the four stages.
        width: Number of channels after the stem.
        num_heads: Number of heads of the attention that pools the cells.
        image_size: Side of an image in pixels.
        embed_dim: Width e of the features.
    """

    blocks: tuple[int, int, int, int]
    width: int
    num_heads: int
    image_size: int
    embed_dim: int

    def __post_init__(self) -> None:
        numbers = (*self.blocks, self.width, self.num_heads, self.image_size, self.embed_dim)
        if len(self.blocks) != 4 or not all(isinstance(x, int) and x > 0 for x in numbers):
            raise UserError(f"{self} must have four stages, and whole numbers >= 1")
        if sum(self.blocks) > UPPER_LIMITS["num_layers"]:
            raise UserError(f"layers has {sum(self.blocks)} blocks, far more than any CLIP")
        if self.image_size % CELL or self.image_size > UPPER_LIMITS["image_size"]:
            raise UserError(
                f"image_size is {self.image_size}: a ResNet takes a multiple of {CELL}, at most "
                f"{UPPER_LIMITS['image_size']}"
            )
        if self.channels % self.num_heads:
            raise UserError(
                f"{self.channels} channels cannot be split into {self.num_heads} attention heads"
            )

    @property
    def channels(self) -> int:
        """Number of channels after the last stage."""
        return self.width * 8 * EXPANSION

    @property
    def patch_size(self) -> int:
        """Side in pixels that one cell stands for; it depends on more of the image than that."""
        return CELL

    @property
    def grid(self) -> tuple[int, int]:
        """Number of cells per column and per row."""
        return self.image_size // CELL, self.image_size // CELL


class Convolution(nnx.Module):
    """A square convolution without bias that keeps the size, or halves it with stride 2."""

    def __init__(self, size: int, dim_in: int, dim_out: int, stride: int = 1, *, rngs: nnx.Rngs):
        shape = (size, size, dim_in, dim_out)
        self.filters = Frozen(nnx.initializers.normal(INIT_STD)(rngs.params(), shape))
        self.stride = stride

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        """Convolves an image."""
        filters = self.filters[...].astype(x.dtype)
        return jax.lax.conv_general_dilated(
            x,
            filters,
            window_strides=(self.stride, self.stride),
            padding=[(filters.shape[0] // 2,) * 2] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


class BatchNorm(nnx.Module):
    """BatchNorm with the statistics of the pre-training, in training too."""

    def __init__(self, dim: int):
        self.scale, self.bias = Frozen(jnp.ones((dim,))), Frozen(jnp.zeros((dim,)))
        self.mean, self.variance = Frozen(jnp.zeros((dim,))), Frozen(jnp.ones((dim,)))

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """Returns (x - mean) / sqrt(variance + eps) · scale + bias."""
        scale = self.scale[...] * jax.lax.rsqrt(self.variance[...] + BATCH_NORM_EPS)
        return ((x - self.mean[...]) * scale + self.bias[...]).astype(x.dtype)


def average_pool(x: Float[Array, "b h w d"], stride: int) -> Float[Array, "b h2 w2 d"]:
    """Returns the means of squares of `stride` by `stride` cells."""
    if stride == 1:
        return x
    b, h, w, d = x.shape
    return x.reshape(b, h // stride, stride, w // stride, stride, d).mean(axis=(2, 4))


class Stem(nnx.Module):
    """Three convolutions and a pooling, which reduce an image to a quarter of its side."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        half = width // 2
        self.conv1 = Convolution(3, 3, half, stride=2, rngs=rngs)
        self.conv2 = Convolution(3, half, half, rngs=rngs)
        self.conv3 = Convolution(3, half, width, rngs=rngs)
        self.bn1, self.bn2, self.bn3 = BatchNorm(half), BatchNorm(half), BatchNorm(width)

    def __call__(self, pixels: Float[Array, "b H W 3"]) -> Float[Array, "b h w d"]:
        """Returns the cells that the first stage takes."""
        x = jax.nn.relu(self.bn1(self.conv1(pixels)))
        x = jax.nn.relu(self.bn2(self.conv2(x)))
        return average_pool(jax.nn.relu(self.bn3(self.conv3(x))), 2)


class Shortcut(nnx.Module):
    """The way around a block that changes the number of channels or cells."""

    def __init__(self, dim_in: int, dim_out: int, stride: int, *, rngs: nnx.Rngs):
        self.conv = Convolution(1, dim_in, dim_out, rngs=rngs)
        self.norm = BatchNorm(dim_out)
        self.stride = stride

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        """Pools before the convolution, whose stride is 1."""
        return self.norm(self.conv(average_pool(x, self.stride)))


class Bottleneck(nnx.Module):
    """A residual block whose convolutions have stride 1; it pools after the second one."""

    def __init__(self, dim_in: int, width: int, stride: int, *, rngs: nnx.Rngs):
        dim_out = width * EXPANSION
        self.conv1 = Convolution(1, dim_in, width, rngs=rngs)
        self.conv2 = Convolution(3, width, width, rngs=rngs)
        self.conv3 = Convolution(1, width, dim_out, rngs=rngs)
        self.bn1, self.bn2, self.bn3 = BatchNorm(width), BatchNorm(width), BatchNorm(dim_out)
        changes = stride > 1 or dim_in != dim_out
        self.shortcut = Shortcut(dim_in, dim_out, stride, rngs=rngs) if changes else None
        self.stride = stride

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        """Runs the block."""
        around = x if self.shortcut is None else self.shortcut(x)
        x = jax.nn.relu(self.bn1(self.conv1(x)))
        x = average_pool(jax.nn.relu(self.bn2(self.conv2(x))), self.stride)
        return jax.nn.relu(self.bn3(self.conv3(x)) + around)


class MeanPooling(Pooling):
    """The attention of the first token, the cells' mean, to all tokens.

    Args:
        dim: Width of the tokens.
        config: Sizes of the tower.
        rngs: Random streams.
    """

    def __init__(self, dim: int, config: ResNetConfig, *, rngs: nnx.Rngs):
        self.attention = Attention(dim, config.num_heads, dim_out=config.embed_dim, rngs=rngs)

    def __call__(
        self, tokens: Float[Array, "b t d"], key_mask: Bool[Array, "b t"] | None = None
    ) -> tuple[Float[Array, "b e"], Float[Array, "b h t"]]:
        """Pools the tokens by the first one; see `Pooling`."""
        mask = None if key_mask is None else key_mask[:, None, :]
        pooled, weights = self.attention(tokens, mask, num_queries=1)
        return pooled[:, 0], weights[:, :, 0]

    def each(self, tokens: Float[Array, "b t d"]) -> Float[Array, "b t e"]:
        """Returns each token's own feature; see `Pooling`."""
        return self.attention.out(self.attention.value(tokens))


class ResNetTower(PooledTower):
    """CLIP's ResNet, whose cells are pooled by the attention of their mean.

    Attributes:
        position_embedding: Positions [1 + n, d] of the mean and of the cells.
    """

    kind = "ResNet"
    num_readers = 1
    config: ResNetConfig

    def __init__(self, config: ResNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.stem = Stem(config.width, rngs=rngs)
        dim = config.width
        for number, count in enumerate(config.blocks):
            width = config.width * 2**number
            blocks = []
            for place in range(count):
                stride = 2 if number and not place else 1
                blocks.append(Bottleneck(dim, width, stride, rngs=rngs))
                dim = width * EXPANSION
            setattr(self, f"layer{number + 1}", nnx.List(blocks))
        gh, gw = config.grid
        self.position_embedding = Frozen(
            nnx.initializers.normal(INIT_STD)(rngs.params(), (1 + gh * gw, dim))
        )
        self.pooling = MeanPooling(dim, config, rngs=rngs)

    @property
    def token_width(self) -> int:
        """Width d of the tokens."""
        return self.config.channels

    def embed(
        self, pixels: Float[Array, "b H W 3"], dtype: str | None = None
    ) -> Float[Array, "b t d"]:
        """Returns the mean and the cells with positions; see `PooledTower.embed`."""
        self.check(pixels)
        x = self.stem(pixels.astype(dtype or self.position_embedding[...].dtype))
        for number in range(1, 5):
            for block in getattr(self, f"layer{number}"):
                x = block(x)
        cells = x.reshape(x.shape[0], -1, x.shape[-1])
        tokens = jnp.concatenate([cells.mean(axis=1, keepdims=True), cells], axis=1)
        return tokens + self.position_embedding[...].astype(tokens.dtype)


def build(model: dict[str, Any], vision: dict[str, Any]) -> ResNetTower:
    """Returns the image tower without weights, with OpenCLIP's defaults for omitted values."""
    width = vision.get("width", 64)
    config = ResNetConfig(
        blocks=tuple(vision["layers"]),
        width=width,
        num_heads=width * 32 // vision.get("head_width", 64),
        image_size=side(vision.get("image_size", 224)),
        embed_dim=model["embed_dim"],
    )
    return without_weights(ResNetTower, config)


def matches(raw: dict[str, Any]) -> bool:
    """Returns whether the config gives the number of blocks per stage; see `Family.matches`."""
    model = raw.get("model_cfg")
    vision = model.get("vision_cfg") if isinstance(model, dict) else None
    return isinstance(vision, dict) and isinstance(vision.get("layers"), list)


OPEN_CLIP_RESNET = Family(
    name="OpenCLIP's ResNets",
    config_file=CONFIG_FILE,
    matches=matches,
    weight_formats=WEIGHT_FORMATS,
    small_files=SMALL_FILES,
    read=partial(read, build=build, vision_names=RESNET_NAMES),
)
