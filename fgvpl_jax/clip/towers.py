"""The image tower and the text tower."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, ClassVar, TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from fgvpl_jax.clip.config import ImageConfig, TextConfig, VisionConfig
from fgvpl_jax.clip.layers import INIT_STD, LayerNorm, Linear, TransformerLayer
from fgvpl_jax.errors import UserError
from fgvpl_jax.variables import Frozen

Tower = TypeVar("Tower", bound=nnx.Module)

# Tracing a tower's initialisation takes longer than reading the weights of a small one.
STRUCTURES_KEPT = 16


def without_weights(tower: Callable[..., Tower], config: Any) -> Tower:
    """Returns a tower whose variables have shapes but no values.

    Args:
        tower: Class of the tower.
        config: Sizes of the tower. Equal configs return the same object, which callers must not
            change.
    """
    return _structure(tower, config)  # typed here, because `lru_cache` hides the types


@lru_cache(maxsize=STRUCTURES_KEPT)
def _structure(tower: Callable[..., Any], config: Any) -> Any:
    return nnx.eval_shape(lambda: tower(config, rngs=nnx.Rngs(0)))


def _embedding(rngs: nnx.Rngs, *shape: int) -> Frozen:
    return Frozen(nnx.initializers.normal(INIT_STD)(rngs.params(), shape))


class ImageTower(nnx.Module):
    """An image tower of any family; every variable is `Frozen`.

    Attributes:
        kind: What the tower is, for messages.
        config: Sizes of the tower.
    """

    kind: ClassVar[str]
    config: ImageConfig

    @property
    def grid(self) -> tuple[int, int]:
        """Number of patches per column and per row, (gh, gw)."""
        return self.config.grid

    @property
    def attention_layers(self) -> Sequence[TransformerLayer]:
        """Returns the tower's transformer layers; empty without any."""
        return ()

    def check(self, pixels: Array) -> None:
        """Refuses images that the tower does not take.

        Raises:
            UserError: If the images are of another shape or not floating point.
        """
        side = self.config.image_size
        if pixels.shape[1:] != (side, side, 3) or not jnp.issubdtype(pixels.dtype, jnp.floating):
            raise UserError(
                f"images are {pixels.dtype} {list(pixels.shape)}, but this backbone takes float "
                f"[b, {side}, {side}, 3]: pass them through clip.preprocess"
            )

    def __call__(self, pixels: Float[Array, "b H W 3"]) -> Float[Array, "b e"]:
        """Returns raw features of normalised images of the tower's size."""
        raise NotImplementedError


def embedded_patches(
    pixels: Float[Array, "b H W 3"], embedding: Linear, config: ImageConfig
) -> Float[Array, "b n d"]:
    """Returns each patch's embedding, row-major, in the parameters' type.

    A strided convolution is one matrix product per patch; it ignores the remaining pixels.
    """
    gh, gw = config.grid
    patch = config.patch_size
    pixels = pixels[:, : gh * patch, : gw * patch].astype(embedding.kernel[...].dtype)
    b = pixels.shape[0]
    patches = pixels.reshape(b, gh, patch, gw, patch, 3).transpose(0, 1, 3, 2, 4, 5)
    return embedding(patches.reshape(b, gh * gw, patch * patch * 3))


class VisionTower(ImageTower):
    """CLIP's ViT, whose class token attends to patches.

    Attributes:
        layers: The L blocks.
        config: Sizes of the tower.
    """

    kind = "ViT with a class token"
    config: VisionConfig

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        gh, gw = config.grid
        self.config = config
        self.class_embedding = _embedding(rngs, config.width)
        self.patch_embedding = Linear(
            config.patch_size**2 * 3, config.width, use_bias=False, rngs=rngs
        )
        self.position_embedding = _embedding(rngs, 1 + gh * gw, config.width)
        self.pre_norm = LayerNorm(config.width, config.layer_norm_eps)
        self.layers = nnx.List(
            TransformerLayer(config, rngs=rngs) for _ in range(config.num_layers)
        )
        self.post_norm = LayerNorm(config.width, config.layer_norm_eps)
        self.projection = Linear(config.width, config.embed_dim, use_bias=False, rngs=rngs)

    @property
    def attention_layers(self) -> Sequence[TransformerLayer]:
        """Returns the L blocks."""
        return self.layers

    def embed(
        self, pixels: Float[Array, "b H W 3"], dtype: str | None = None
    ) -> Float[Array, "b t d"]:
        """Returns class token and patches with positions, after CLIP's pre-LayerNorm.

        Args:
            pixels: Normalised images of the tower's size.
            dtype: Type of the tokens, and so of all that the layers compute from them; None for the
                parameters' type, in which the patches are always embedded.
        Returns:
            t = 1 + n tokens, patches in row-major order.
        Raises:
            UserError: If the images are of another shape or not floating point.
        """
        self.check(pixels)
        patches = embedded_patches(pixels, self.patch_embedding, self.config)
        b = pixels.shape[0]
        class_token = jnp.broadcast_to(self.class_embedding[...], (b, 1, patches.shape[2]))
        tokens = jnp.concatenate([class_token, patches], axis=1) + self.position_embedding[...]
        return self.pre_norm(tokens).astype(dtype or tokens.dtype)

    def project(self, tokens: Float[Array, "*b d"]) -> Float[Array, "*b e"]:
        """Returns raw features: post-LayerNorm and projection into the shared space."""
        return self.projection(self.post_norm(tokens))

    def __call__(
        self, pixels: Float[Array, "b H W 3"], dtype: str | None = None
    ) -> Float[Array, "b e"]:
        """Returns raw image features, equal to transformers'; `embed` documents `dtype`."""
        tokens = self.embed(pixels, dtype)
        *layers, last_layer = self.layers
        for layer in layers:
            tokens, _ = layer(tokens)
        class_token, _ = last_layer(tokens, num_queries=1)  # the only token that is used
        return self.project(class_token[:, 0])


class Pooling(nnx.Module):
    """The attention of one query to all tokens, as the last block of a tower."""

    def __call__(
        self, tokens: Float[Array, "b t d"], key_mask: Bool[Array, "b t"] | None = None
    ) -> tuple[Float[Array, "b e"], Float[Array, "b h t"]]:
        """Pools the tokens.

        Args:
            tokens: All tokens; each can be a key.
            key_mask: False for tokens that the query may not attend to; None for no such token.
        Returns:
            Features, and the query's attention weights.
        """
        raise NotImplementedError

    def each(self, tokens: Float[Array, "b t d"]) -> Float[Array, "b t e"]:
        """Returns each token's own feature: that of a query that attends to it alone."""
        raise NotImplementedError


class PooledTower(ImageTower):
    """A tower whose last block pools cells by the attention of one query.

    Attributes:
        pooling: The last block.
        num_readers: Number of tokens before the cells.
        token_width: Width d of the tokens.
    """

    num_readers: ClassVar[int]
    pooling: Pooling

    @property
    def token_width(self) -> int:
        """Width d of the tokens."""
        raise NotImplementedError

    def embed(
        self, pixels: Float[Array, "b H W 3"], dtype: str | None = None
    ) -> Float[Array, "b t d"]:
        """Returns the tokens that enter the first attention layer, or the pooling without any.

        Args:
            pixels: Normalised images of the tower's size.
            dtype: Type of the tokens, and so of all that is computed from them; None for the
                parameters' type.
        """
        raise NotImplementedError

    def before_pooling(self, tokens: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """Returns the tokens of the last attention layer as the pooling takes them."""
        return tokens

    def __call__(
        self, pixels: Float[Array, "b H W 3"], dtype: str | None = None
    ) -> Float[Array, "b e"]:
        """Returns raw image features, equal to its own library's; `embed` documents `dtype`."""
        tokens = self.embed(pixels, dtype)
        for layer in self.attention_layers:
            tokens, _ = layer(tokens)
        return self.pooling(self.before_pooling(tokens))[0]


def class_token_tower(
    vision: ImageTower, needed_by: str, backbone: str = "this backbone"
) -> VisionTower:
    """Returns the tower if it is one whose class token attends to patches.

    Args:
        vision: The image tower.
        needed_by: Name of what needs such a tower, for the message.
        backbone: Name of the backbone, for the message.
    Raises:
        UserError: If it is another tower.
    """
    if not isinstance(vision, VisionTower):
        raise UserError(
            f"{needed_by} needs a tower whose class token attends to patches; {backbone} is a "
            f"{vision.kind}: choose a ViT with a class token, or another method"
        )
    return vision


class TextTower(nnx.Module):
    """CLIP's text transformer; every variable is `Frozen`.

    Attributes:
        num_start_tokens: Number of tokens with which the tokenizer begins every text.
        is_causal: Whether a token attends only to itself and earlier tokens.
        has_projection_bias: Whether the projection adds a bias.
    """

    num_start_tokens: ClassVar[int] = 1
    is_causal: ClassVar[bool] = True
    has_projection_bias: ClassVar[bool] = False

    def __init__(self, config: TextConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.token_embedding = _embedding(rngs, config.vocab_size, config.width)
        self.position_embedding = _embedding(rngs, config.context_length, config.width)
        self.layers = nnx.List(
            TransformerLayer(config, rngs=rngs) for _ in range(config.num_layers)
        )
        self.final_norm = LayerNorm(config.width, config.layer_norm_eps)
        self.projection = Linear(
            config.width, config.embed_dim, use_bias=self.has_projection_bias, rngs=rngs
        )

    def __call__(self, token_ids: Int[Array, "b c"]) -> Float[Array, "b e"]:
        """Returns raw text features: causal attention, pooled at the end of the text.

        Args:
            token_ids: At most as many tokens as the context length; those after the end-of-text
                token do not affect the features.
        """
        if token_ids.ndim != 2:
            raise UserError(
                f"token ids have shape {list(token_ids.shape)}: they must be [texts, tokens]"
            )
        return self.encode(self.token_embedding[...][token_ids], self.ends(token_ids))

    def ends(self, token_ids: Int[Array, "b c"]) -> Int[Array, "b"]:
        """Returns the position of each text's end token, by the checkpoint's convention."""
        if self.config.eos_token_id is None:
            return token_ids.argmax(axis=1)  # in that vocabulary end-of-text has the largest id
        return (token_ids == self.config.eos_token_id).argmax(axis=1)

    def fits(self, token_ids: Int[np.ndarray, "b c"], length: int) -> Bool[np.ndarray, "b"]:
        """Returns whether `length` tokens hold each text, without padding."""
        return np.asarray(self.ends(jnp.asarray(token_ids))) < length

    def without_padding(
        self, token_ids: Int[np.ndarray, "b c"], length: int | None = None
    ) -> Int[np.ndarray, "b t"]:
        """Returns the tokens that the features of the texts depend on.

        Args:
            token_ids: Texts that fit into `length` tokens.
            length: Number of tokens to leave at most; None for the context length.
        Returns:
            The texts up to the end of the longest one: under causal attention, later tokens affect
            no feature.
        """
        return token_ids[:, : int(np.asarray(self.ends(jnp.asarray(token_ids))).max()) + 1]

    def encode(
        self, embeddings: Float[Array, "b c d"], ends: Int[Array, "b"]
    ) -> Float[Array, "b e"]:
        """Returns raw text features of token embeddings, to which it adds the positions.

        Args:
            embeddings: Embeddings of at most as many tokens as the context length; some may be
                learnt.
            ends: Position of the token to pool in each text.
        """
        length = embeddings.shape[1]
        if length > self.config.context_length:
            raise UserError(
                f"texts of {length} tokens exceed this backbone's {self.config.context_length}"
            )
        tokens = embeddings + self.position_embedding[...][:length]
        for layer in self.layers:
            tokens, _ = layer(tokens, causal=self.is_causal)
        pooled = jnp.take_along_axis(tokens, ends[:, None, None], axis=1)[:, 0]
        return self.projection(self.final_norm(pooled))
