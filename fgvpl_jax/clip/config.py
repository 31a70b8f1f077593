"""The sizes of the two towers."""

from dataclasses import dataclass, fields
from typing import Protocol, runtime_checkable

from fgvpl_jax.errors import UserError

# Limits far above any CLIP: these two numbers allocate memory before the weights can show that they
# are wrong.
UPPER_LIMITS = {"num_layers": 512, "image_size": 2048}


@runtime_checkable
class ImageConfig(Protocol):
    """Sizes that every image tower's config has; images, patches and grids are square.

    Attributes:
        image_size: Side of an image in pixels.
        patch_size: Side in pixels of the part of an image that one cell of the grid stands for.
        embed_dim: Width e of the features.
        grid: Number of cells per column and per row.
    """

    @property
    def image_size(self) -> int: ...  # noqa: D102

    @property
    def patch_size(self) -> int: ...  # noqa: D102

    @property
    def embed_dim(self) -> int: ...  # noqa: D102

    @property
    def grid(self) -> tuple[int, int]: ...  # noqa: D102


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of one stack of pre-norm layers.

    Attributes:
        width: Width d of the tokens.
        num_layers: Number of layers L.
        num_heads: Number of attention heads h; must divide `width`.
        mlp_width: Width of the hidden layer between fc1 and fc2.
        activation: transformers' name of the activation, a key of `layers.ACTIVATIONS`.
        layer_norm_eps: Epsilon of every LayerNorm of the tower.
    """

    width: int
    num_layers: int
    num_heads: int
    mlp_width: int
    activation: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name.endswith("token_id") else 1
            is_count = field.type is int or (field.type == int | None and value is not None)
            if is_count and not (isinstance(value, int) and value >= least):
                raise UserError(f"{field.name} is {value!r}: it must be a whole number >= {least}")
            limit = UPPER_LIMITS.get(field.name)
            if limit is not None and value > limit:
                raise UserError(f"{field.name} is {value}: it must be at most {limit}")
        if not isinstance(self.layer_norm_eps, (int, float)) or self.layer_norm_eps <= 0:
            raise UserError(f"layer_norm_eps is {self.layer_norm_eps!r}: it must be positive")
        if self.width % self.num_heads:
            raise UserError(
                f"a width of {self.width} cannot be split into {self.num_heads} attention heads"
            )


@dataclass(frozen=True)
class VisionConfig(TransformerConfig):
    """Sizes of the image tower; images and patches are square.

    Attributes:
        image_size: Side of an image in pixels.
        patch_size: Side of a patch in pixels.
        embed_dim: Width e of the projected features.
    """

    image_size: int = 224
    patch_size: int = 16
    embed_dim: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patch_size > self.image_size:
            raise UserError(
                f"patches of {self.patch_size} do not fit images of {self.image_size} pixels"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Number of patches per column and per row; pixels beyond whole patches are ignored."""
        side = self.image_size // self.patch_size
        return side, side


@dataclass(frozen=True)
class TextConfig(TransformerConfig):
    """Sizes of the text tower.

    Attributes:
        vocab_size: Number of tokens in the vocabulary.
        context_length: Largest number of tokens in a text, start and end included.
        eos_token_id: Id of the end-of-text token, where features are pooled; None for the position
            of the largest id.
        embed_dim: Width e of the projected features.
    """

    vocab_size: int = 49408
    context_length: int = 77
    eos_token_id: int | None = 49407
    embed_dim: int = 512
