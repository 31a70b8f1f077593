"""The configs of the two towers, read from a checkpoint's config.json."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fgvpl_jax.errors import UserError
from fgvpl_jax.files import parse_json

# Configs from before transformers pooled at the end-of-text token have this id.
LEGACY_EOS_TOKEN_ID = 2
# Limits far above any CLIP: these two numbers allocate memory before the weights can show that they
# are wrong.
UPPER_LIMITS = {"num_layers": 512, "image_size": 2048}


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
            if field.type is int and not (isinstance(value, int) and value >= least):
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
        eos_token_id: Id of the end-of-text token, where features are pooled;
            `LEGACY_EOS_TOKEN_ID` means the position of the largest id.
        embed_dim: Width e of the projected features.
    """

    vocab_size: int = 49408
    context_length: int = 77
    eos_token_id: int = 49407
    embed_dim: int = 512


def read_config(directory: Path) -> tuple[VisionConfig, TextConfig]:
    """Returns both towers' configs, with transformers' defaults for values that the file omits.

    Raises:
        UserError: If config.json is missing or damaged, or does not describe a CLIP.
    """
    file = directory / "config.json"
    if not file.is_file():
        raise UserError(f"{directory} has no config.json: name a Hugging Face CLIP directory")
    try:
        raw = parse_json(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error}): download it again") from error
    if not isinstance(raw, dict) or raw.get("model_type") != "clip":
        found = raw.get("model_type") if isinstance(raw, dict) else type(raw).__name__
        raise UserError(f"{file} has model_type {found!r}: only 'clip' checkpoints are supported")
    from transformers import CLIPConfig

    try:
        return _towers(CLIPConfig.from_dict(raw))
    except Exception as error:  # transformers' checks raise errors of no narrower common class
        raise UserError(
            f"{file} does not describe a CLIP: {' '.join(str(error).split())}"
        ) from error


def _towers(config: Any) -> tuple[VisionConfig, TextConfig]:
    vision, text = config.vision_config, config.text_config
    if vision.num_channels != 3:
        raise UserError(f"it has {vision.num_channels} image channels; only 3 are supported")
    return (
        VisionConfig(
            **_transformer(vision),
            image_size=_side(vision.image_size),
            patch_size=_side(vision.patch_size),
            embed_dim=config.projection_dim,
        ),
        TextConfig(
            **_transformer(text),
            vocab_size=text.vocab_size,
            context_length=text.max_position_embeddings,
            eos_token_id=text.eos_token_id,
            embed_dim=config.projection_dim,
        ),
    )


def _side(size: Any) -> Any:
    """Returns the side of a square written as two sides, and any other value unchanged.

    `TransformerConfig` then refuses values that are no whole number.
    """
    if isinstance(size, (list, tuple)) and len(size) == 2 and size[0] == size[1]:
        return size[0]
    return size


def _transformer(config: Any) -> dict[str, Any]:
    return {
        "width": config.hidden_size,
        "num_layers": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_width": config.intermediate_size,
        "activation": config.hidden_act,
        "layer_norm_eps": config.layer_norm_eps,
    }
