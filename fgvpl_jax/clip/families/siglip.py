"""transformers' `SiglipModel`: SigLIP, and SigLIP 2 at a fixed resolution.

SigLIP was trained with a sigmoid for each pair of image and text: sigmoid(scale · cosine + bias).
Here its logits are scale · cosine, of which a softmax over the classes is taken, as for every other
backbone: the bias is the same for all classes, so that a softmax does not change with it.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from fgvpl_jax.clip.config import TransformerConfig, VisionConfig
from fgvpl_jax.clip.families.transformers_files import (
    CONFIG_FILE,
    LAYER_NAMES,
    SMALL_FILES,
    TEXT_NAMES,
    VISION_NAMES,
    not_described,
    parse_config,
    text_config,
    vision_config,
)
from fgvpl_jax.clip.family import AS_IS, LINEAR, Architecture, Family, Source, stacked
from fgvpl_jax.clip.image_input import TransformersProcessor
from fgvpl_jax.clip.layers import (
    ACTIVATIONS,
    INIT_STD,
    Attention,
    LayerNorm,
    Linear,
    TransformerLayer,
)
from fgvpl_jax.clip.text_input import AutoTokenizer
from fgvpl_jax.clip.towers import (
    PooledTower,
    Pooling,
    TextTower,
    embedded_patches,
    without_weights,
)
from fgvpl_jax.clip.weights import TRANSFORMERS_FORMATS
from fgvpl_jax.errors import UserError
from fgvpl_jax.variables import Frozen

CLASS_NAME = "SiglipConfig"
SENTENCEPIECE = "spiece.model"
HEAD = "vision_model.head"

SIGLIP_VISION_NAMES: dict[str, str | Source] = {
    **LAYER_NAMES,
    **{
        f"pooling.attention.{ours}.{leaf}": Source(
            f"{HEAD}.attention.in_proj_{published}", stacked(place, 3, layout)
        )
        for place, ours in enumerate(("query", "key", "value"))
        for leaf, published, layout in (("kernel", "weight", LINEAR), ("bias", "bias", AS_IS))
    },
    "pooling.attention.out": f"{HEAD}.attention.out_proj",
    "pooling.norm": f"{HEAD}.layernorm",
    "pooling": HEAD,
    "patch_embedding.bias": "vision_model.embeddings.patch_embedding.bias",
    **{
        name: VISION_NAMES[name]
        for name in ("patch_embedding.kernel", "position_embedding", "layers", "post_norm")
    },
}
SIGLIP_TEXT_NAMES: dict[str, str | Source] = TEXT_NAMES | {"projection": "text_model.head"}


class ProbePooling(Pooling):
    """A learnt query, the probe, that attends to the patches, and an MLP.

    Attributes:
        probe: The query [1, 1, d].
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.probe = Frozen(nnx.initializers.normal(INIT_STD)(rngs.params(), (1, 1, config.width)))
        self.attention = Attention(config.width, config.num_heads, rngs=rngs)
        self.norm = LayerNorm(config.width, config.layer_norm_eps)
        self.fc1 = Linear(config.width, config.mlp_width, rngs=rngs)
        self.fc2 = Linear(config.mlp_width, config.width, rngs=rngs)
        self.activation = config.activation

    def __call__(
        self, tokens: Float[Array, "b t d"], key_mask: Bool[Array, "b t"] | None = None
    ) -> tuple[Float[Array, "b d"], Float[Array, "b h t"]]:
        """Pools the tokens by the probe; see `Pooling`."""
        probe = jnp.broadcast_to(
            self.probe[...].astype(tokens.dtype), (tokens.shape[0], 1, tokens.shape[-1])
        )
        mask = None if key_mask is None else key_mask[:, None, :]
        pooled, weights = self.attention.attend(probe, tokens, mask)
        return self._through_mlp(pooled)[:, 0], weights[:, :, 0]

    def each(self, tokens: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """Returns each token's own feature; see `Pooling`."""
        return self._through_mlp(self.attention.out(self.attention.value(tokens)))

    def _through_mlp(self, pooled: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        return pooled + self.fc2(ACTIVATIONS[self.activation](self.fc1(self.norm(pooled))))


class ProbePooledTower(PooledTower):
    """A ViT whose tokens are pooled by a probe after a last LayerNorm.

    Attributes:
        layers: The blocks below the pooling.
        post_norm: The last LayerNorm.
    """

    config: VisionConfig
    layers: nnx.List
    post_norm: LayerNorm

    @property
    def attention_layers(self) -> list[TransformerLayer]:
        """Returns the blocks below the pooling."""
        return list(self.layers)

    @property
    def token_width(self) -> int:
        """Width d of the tokens."""
        return self.config.width

    def before_pooling(self, tokens: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """Returns the tokens after the last LayerNorm."""
        return self.post_norm(tokens)


class SiglipVisionTower(ProbePooledTower):
    """SigLIP's ViT: patches alone, pooled by a probe."""

    kind = "SigLIP ViT, which has no class token"
    num_readers = 0

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        gh, gw = config.grid
        self.config = config
        self.patch_embedding = Linear(config.patch_size**2 * 3, config.width, rngs=rngs)
        self.position_embedding = Frozen(
            nnx.initializers.normal(INIT_STD)(rngs.params(), (gh * gw, config.width))
        )
        self.layers = nnx.List(
            TransformerLayer(config, rngs=rngs) for _ in range(config.num_layers)
        )
        self.post_norm = LayerNorm(config.width, config.layer_norm_eps)
        self.pooling = ProbePooling(config, rngs=rngs)

    def embed(
        self, pixels: Float[Array, "b H W 3"], dtype: str | None = None
    ) -> Float[Array, "b n d"]:
        """Returns the patches with positions; see `PooledTower.embed`."""
        self.check(pixels)
        tokens = embedded_patches(pixels, self.patch_embedding, self.config)
        tokens = tokens + self.position_embedding[...]
        return tokens.astype(dtype or tokens.dtype)


class SiglipTextTower(TextTower):
    """SigLIP's text transformer: every token attends to all, and the last one is pooled.

    The last token is padding, except in the longest texts. Padding is attended to.
    """

    num_start_tokens = 0
    is_causal = False
    has_projection_bias = True

    def ends(self, token_ids: Int[Array, "b c"]) -> Int[Array, "b"]:
        """Returns the last position of each text."""
        return jnp.full(token_ids.shape[0], token_ids.shape[1] - 1)

    def fits(self, token_ids: Int[np.ndarray, "b c"], length: int) -> Bool[np.ndarray, "b"]:
        """Returns whether every token that is left out is padding, as the last one kept is."""
        return (token_ids[:, length - 1 :] == token_ids[:, -1:]).all(axis=1)

    def without_padding(
        self, token_ids: Int[np.ndarray, "b c"], length: int | None = None
    ) -> Int[np.ndarray, "b t"]:
        """Returns the first `length` tokens, because features depend on every token."""
        return token_ids[:, :length]


class SiglipTokenizer(AutoTokenizer):
    """SigLIP's sentencepiece tokenizer, or SigLIP 2's; both were trained on lower-case texts.

    Padding follows the text, as in their training, whatever transformers' class does by default.
    """

    file_sets = ((SENTENCEPIECE,), ("tokenizer.json",))

    def _load(self, directory: Path) -> Any:
        if not (directory / SENTENCEPIECE).is_file():
            return super()._load(directory)
        if find_spec("sentencepiece") is None:
            raise UserError(
                f"{directory / SENTENCEPIECE} needs sentencepiece: pip install 'fgvpl_jax[siglip]'"
            )
        import transformers

        return transformers.SiglipTokenizer.from_pretrained(str(directory))

    def _canonical(self, text: str) -> str:
        return text.lower()


def read(directory: Path, raw: dict[str, Any]) -> Architecture:
    """Reads the architecture; see `Family.read`."""
    file = directory / CONFIG_FILE
    config = parse_config(file, raw, CLASS_NAME)
    embed_dim = config.text_config.projection_size
    try:
        vision = vision_config(config.vision_config, config.vision_config.hidden_size)
        text = text_config(config.text_config, embed_dim, eos_token_id=None)
        if vision.embed_dim != embed_dim:
            raise UserError(
                f"image features have width {vision.embed_dim}, text features {embed_dim}"
            )
        if not config.vision_config.vision_use_head:
            raise UserError("vision_use_head is False: only image towers with a head are supported")
    except Exception as error:  # values of unusable types raise different errors
        raise not_described(file, CLASS_NAME, error) from error
    return Architecture(
        vision=without_weights(SiglipVisionTower, vision),
        text=without_weights(SiglipTextTower, text),
        vision_names=SIGLIP_VISION_NAMES,
        text_names=SIGLIP_TEXT_NAMES,
        tokenizer=SiglipTokenizer(directory, text),
        image_processor=TransformersProcessor(
            directory, vision.image_size, "SiglipImageProcessorPil"
        ),
        unused=("logit_bias",),
    )


SIGLIP = Family(
    name="transformers' SiglipModel (model_type 'siglip')",
    config_file=CONFIG_FILE,
    matches=lambda raw: raw.get("model_type") == "siglip",
    weight_formats=TRANSFORMERS_FORMATS,
    small_files=(*SMALL_FILES, SENTENCEPIECE),
    read=read,
)
