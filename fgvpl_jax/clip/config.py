"""What a checkpoint's config.json says of the two towers."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fgvpl_jax.errors import UserError
from fgvpl_jax.files import parse_json

# transformers writes 2 into configs made before its pooling looked for the end-of-text token.
LEGACY_EOS_TOKEN_ID = 2
# Far above every CLIP. Of all that the file says, these two cost time and memory before the weights
# are there to contradict them.
MOST = {"num_layers": 512, "image_size": 2048}


@dataclass(frozen=True)
class TransformerConfig:
    """One stack of pre-norm layers.

    Attributes:
        width: d.
        num_layers: L.
        num_heads: h; must divide `width`.
        mlp_width: Width of the hidden layer between fc1 and fc2.
        activation: transformers' name, a key of `layers.ACTIVATIONS`.
        layer_norm_eps: Epsilon of every LayerNorm of the tower.
    """

    width: int
    num_layers: int
    num_heads: int
    mlp_width: int
    activation: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name.endswith("token_id") else 1
            if field.type is int and not (isinstance(value, int) and value >= least):
                raise UserError(f"{field.name} is {value!r}: it must be a whole number >= {least}")
            if field.name in MOST and value > MOST[field.name]:
                raise UserError(f"{field.name} is {value}: at most {MOST[field.name]} can be built")
        if not isinstance(self.layer_norm_eps, (int, float)) or self.layer_norm_eps <= 0:
            raise UserError(f"layer_norm_eps is {self.layer_norm_eps!r}: it must be positive")
        if self.width % self.num_heads:
            raise UserError(
                f"a width of {self.width} cannot be split into {self.num_heads} attention heads"
            )


@dataclass(frozen=True)
class VisionConfig(TransformerConfig):
    """The image tower; images and patches are square."""

    image_size: int = 224
    patch_size: int = 16
    embed_dim: int = 512

    def __post_init__(self):
        super().__post_init__()
        if self.patch_size > self.image_size:
            raise UserError(
                f"patches of {self.patch_size} do not fit images of {self.image_size} pixels"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Patches per column and per row; a remainder of the image is not seen."""
        side = self.image_size // self.patch_size
        return side, side


@dataclass(frozen=True)
class TextConfig(TransformerConfig):
    """The text tower.

    Attributes:
        context_length: Tokens a text may have, start and end included.
        eos_token_id: Where to pool; `LEGACY_EOS_TOKEN_ID` means the position of the largest id.
    """

    vocab_size: int = 49408
    context_length: int = 77
    eos_token_id: int = 49407
    embed_dim: int = 512


def read_config(directory: Path) -> tuple[VisionConfig, TextConfig]:
    """Both towers' configs, with transformers' defaults for what the file leaves out.

    Raises:
        UserError: If config.json is missing, damaged, or not a CLIP's.
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
    except Exception as error:  # transformers' own checks raise what derives from Exception alone
        raise UserError(
            f"{file} does not describe a CLIP: {' '.join(str(error).split())}"
        ) from error


def _towers(config: Any) -> tuple[VisionConfig, TextConfig]:
    vision, text = config.vision_config, config.text_config
    if vision.num_channels != 3:
        raise UserError(f"it wants {vision.num_channels} image channels; only 3 are supported")
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
    """A square may be written as its two sides; anything else stays, to be refused."""
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
