"""CoOp: learnt word vectors before the class name, read by the frozen text tower."""

import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from fgvpl_jax.clip import CLIP
from fgvpl_jax.errors import SharedError
from fgvpl_jax.methods.interface import FeatureMethod, Recipe, Task
from fgvpl_jax.methods.optimizers import coop_cosine, coop_sgd
from fgvpl_jax.recognition import normalize
from fgvpl_jax.variables import Frozen, Trainable

NUM_CONTEXT = 16
CONTEXT_STD = 0.02


class CoOpLoop(FeatureMethod):
    """A method that is trained with CoOp's recipe; the parameters of the last step are used."""

    @classmethod
    def recipe(cls, benchmark: str, shots: int, num_images: int) -> Recipe:
        """Returns the recipe of CoOp's paper."""
        return Recipe(
            epochs=coop_epochs(benchmark, shots),
            batch_size=32,
            learning_rate=2e-3,
            weight_decay=5e-4,
        )

    @staticmethod
    def schedule(learning_rate: float, epochs: int, steps_per_epoch: int) -> optax.Schedule:
        """Returns CoOp's schedule."""
        return coop_cosine(learning_rate, epochs, steps_per_epoch)

    @staticmethod
    def optimizer(schedule: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
        """Returns SGD with momentum."""
        return coop_sgd(schedule, weight_decay)


class CoOp(CoOpLoop):
    """Scaled cosines of image features with the texts "[v1] … [v16] <class name>.".

    Attributes:
        context: Learnt vectors [16, d], shared by all classes; d is the text tower's width.
        text: The frozen text tower.
        start: Embeddings of the tokens that begin every text.
        names: Embeddings [k, c, d] of class name, full stop and end of text, padded.
        ends: Position [k] of each text's end-of-text token.
    """

    name = "coop"
    title = "CoOp"

    def __init__(
        self,
        clip: CLIP,
        class_names: tuple[str, ...],
        text_features: Float[Array, "k e"],
        *,
        rngs: nnx.Rngs,
    ):
        super().__init__(clip, text_features)
        width = clip.text.config.width
        self.context = Trainable(
            CONTEXT_STD * nnx.initializers.normal(1.0)(rngs.params(), (NUM_CONTEXT, width))
        )
        self.text = clip.text
        # CoOp's code ends the sentence with a full stop.
        token_ids = clip.tokenize([name.replace("_", " ") + "." for name in class_names])
        room = clip.text.config.context_length - NUM_CONTEXT
        fits = clip.text.fits(token_ids, room)
        if not fits.all():
            raise SharedError(
                f"{NUM_CONTEXT} context vectors and the class name "
                f"{class_names[int(fits.argmin())]!r} exceed this backbone's "
                f"{clip.text.config.context_length} tokens: shorten the name"
            )
        kept = jnp.asarray(clip.text.without_padding(token_ids, room))
        embeddings = clip.text.token_embedding[...][kept]
        num_start = clip.text.num_start_tokens
        self.start = Frozen(embeddings[0, :num_start])
        self.names = Frozen(embeddings[:, num_start:])
        self.ends = Frozen(jnp.asarray(clip.text.ends(kept) + NUM_CONTEXT, jnp.int32))

    @classmethod
    def build(cls, clip: CLIP, task: Task, config: ConfigDict, *, rngs: nnx.Rngs) -> "CoOp":
        """Builds the model; see `Method.build`."""
        return cls(clip, task.class_names, task.text_features, rngs=rngs)

    def class_weights(self) -> Float[Array, "k e"]:
        """Returns the features of the learnt texts as unit vectors."""
        names = self.names[...]
        beginning = jnp.concatenate([self.start[...], self.context[...]])
        beginning = jnp.broadcast_to(beginning, (len(names), *beginning.shape))
        embeddings = jnp.concatenate([beginning, names], axis=1)
        return normalize(self.text.encode(embeddings, self.ends[...]))

    def logits(self, features: Float[Array, "b e"], support: None) -> Float[Array, "b k"]:
        """Returns scaled cosines with the learnt texts."""
        return self.cosine_logits(features, self.class_weights())


def coop_epochs(benchmark: str, shots: int) -> int:
    """Returns CoOp's epochs: 200 for 8 shots and more, 100 for 2 and 4, 50 for 1 and ImageNet."""
    if benchmark == "imagenet" or shots < 2:
        return 50
    return 100 if shots < 8 else 200
