"""FG-VPL: one traceable function from uint8 images to logits."""

from collections.abc import Sequence
from typing import NamedTuple

from flax import nnx
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from fgvpl_jax.clip import CLIP
from fgvpl_jax.methods.interface import Choices, Recipe, Task
from fgvpl_jax.methods.prompted import PromptedMethod
from fgvpl_jax.recognition import TwoPathwayHead, VisualCache
from fgvpl_jax.visual_prompt import ImageFeatures, fine_grained_encoder

# Section 4.2. "shapes" is this project's own benchmark; few epochs keep its demonstration to
# minutes.
EPOCHS = {"imagenet": 50, "eurosat": 400, "shapes": 40}
OTHER_EPOCHS = 100


class SupportFeatures(NamedTuple):
    """Raw features that the cache keeps of the support images.

    Attributes:
        image: Image features f(x_set).
        object: Object-patch means; None for a method without objects.
    """

    image: Float[Array, "b e"]
    object: Float[Array, "b e"] | None


class FGVPL(PromptedMethod):
    """The fine-grained image encoder and the two-pathway head over one set of classes.

    Attributes:
        head: Head of section 3.2; its adapters p and q are trained.
    """

    name = "fg_vpl"
    title = "FG-VPL"
    uses_cache = True

    def __init__(
        self,
        clip: CLIP,
        text_features: Float[Array, "k e"],
        *,
        num_prompts: int,
        prompt_layer: int,
        attention_map: str,
        connectivity: int,
        text_residual_ratio: float,
        object_logit_weight: float,
        object_query: str,
        cache_votes: str,
        leave_one_out: bool,
        compute_dtype: str | None,
        rematerialise: bool,
        rngs: nnx.Rngs,
    ):
        super().__init__(clip, text_features)
        self.encoder = fine_grained_encoder(
            clip.vision,
            num_prompts,
            prompt_layer=prompt_layer,
            attention_map=attention_map,
            connectivity=connectivity,
            compute_dtype=compute_dtype,
            rematerialise=rematerialise,
            rngs=rngs,
        )
        self.head = TwoPathwayHead(
            text_features.shape[1],
            text_residual_ratio,
            object_logit_weight,
            object_query=object_query,
            cache_votes=cache_votes,
            rngs=rngs,
        )
        self.leave_one_out = leave_one_out

    @classmethod
    def build(cls, clip: CLIP, task: Task, config: ConfigDict, *, rngs: nnx.Rngs) -> "FGVPL":
        """Builds the model; see `Method.build`."""
        return cls(
            clip,
            task.text_features,
            num_prompts=config.num_prompts,
            prompt_layer=config.prompt_layer,
            attention_map=config.attention_map,
            connectivity=config.connectivity,
            text_residual_ratio=config.text_residual_ratio,
            object_logit_weight=config.object_logit_weight,
            object_query=config.object_query,
            cache_votes=config.cache_votes,
            compute_dtype=config.compute_dtype,
            rematerialise=config.rematerialise,
            leave_one_out=config.cache_leave_one_out,
            rngs=rngs,
        )

    @classmethod
    def recipe(cls, benchmark: str, shots: int, num_images: int) -> Recipe:
        """Returns the recipe of section 4.2."""
        return fg_vpl_recipe(benchmark)

    @classmethod
    def starting_choices(cls, config: ConfigDict) -> Choices:
        """Returns the config's λ."""
        return cache_weight(config)

    @classmethod
    def candidates(cls, config: ConfigDict) -> Sequence[Choices]:
        """Returns the λ of the config's grid."""
        return cache_weight_grid(config)

    def kept_features(self, features: ImageFeatures) -> SupportFeatures:
        """Returns the features that a cache keeps of its images."""
        return SupportFeatures(features.image, features.object_patches)

    def contributions(
        self,
        features: ImageFeatures,
        support: VisualCache,
        cache_logit_weight: Float[Array, ""] | float,
        own_places: Int[Array, "b"] | None = None,
    ) -> dict[str, Float[Array, "b k"]]:
        """Returns the four terms of Eq. 19."""
        return self.head.contributions(
            features,
            self.text_features[...],
            support,
            logit_scale=self.logit_scale[...],
            cache_logit_weight=cache_logit_weight,
            own_places=own_places,
        )

    def affinity(self, features: ImageFeatures, support: VisualCache) -> Float[Array, "b s"]:
        """Returns cosines of adapted image features, each query with each cached image (Eq. 17)."""
        return self.head.affinity(features.image, support.image)


def fg_vpl_recipe(benchmark: str) -> Recipe:
    """Returns the recipe of section 4.2, which FG-VPL's parts alone use too."""
    return Recipe(
        epochs=EPOCHS.get(benchmark, OTHER_EPOCHS),
        batch_size=256,
        learning_rate=1e-3,
        weight_decay=0.01,
    )


def cache_weight(config: ConfigDict) -> Choices:
    """Returns the λ used in training."""
    return {"cache_logit_weight": float(config.cache_logit_weight)}


def cache_weight_grid(config: ConfigDict) -> Sequence[Choices]:
    """Returns the config's grid of λ, nearest to 1 first, or the λ of training without a grid."""
    grid = sorted(map(float, config.cache_logit_weight_grid), key=lambda weight: abs(weight - 1))
    return [{"cache_logit_weight": weight} for weight in grid] or [cache_weight(config)]
