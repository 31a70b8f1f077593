"""CoOp: learnt words before the class name, through the frozen text tower."""

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from fgvpl_jax.clip import CLIP
from fgvpl_jax.errors import UserError
from fgvpl_jax.methods.interface import FeatureMethod, Recipe, Task
from fgvpl_jax.methods.optimizers import coop_cosine, coop_sgd
from fgvpl_jax.recognition import normalize
from fgvpl_jax.variables import Frozen, Trainable

NUM_CONTEXT = 16
CONTEXT_STD = 0.02


class CoOpLoop(FeatureMethod):
    """A method that is trained as CoOp is; the last step is used."""

    @classmethod
    def recipe(cls, benchmark: str, shots: int, num_images: int) -> Recipe:
        """Of CoOp's paper."""
        return Recipe(
            epochs=coop_epochs(benchmark, shots),
            batch_size=32,
            learning_rate=2e-3,
            weight_decay=5e-4,
        )

    @staticmethod
    def schedule(learning_rate: float, epochs: int, steps_per_epoch: int) -> optax.Schedule:
        """CoOp's."""
        return coop_cosine(learning_rate, epochs, steps_per_epoch)

    @staticmethod
    def optimizer(schedule: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
        """SGD with momentum."""
        return coop_sgd(schedule, weight_decay)


class CoOp(CoOpLoop):
    """Cosines of image features with the texts "[v1] … [v16] <class name>.".

    Attributes:
        context: [16, d of the text tower], shared by all classes.
        text: The frozen text tower.
        start: [d], embedding of the start of text.
        names: [k, c, d], embeddings of name, full stop and end of text, padded.
        ends: [k], place of the end of text.
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
        # A full stop ends the sentence, as in CoOp's code.
        token_ids = clip.tokenize([name.replace("_", " ") + "." for name in class_names])
        ends = np.asarray(clip.text.ends(jnp.asarray(token_ids)))
        longest = int(ends.max()) + 1
        if NUM_CONTEXT + longest > clip.text.config.context_length:
            raise UserError(
                f"{NUM_CONTEXT} context vectors and the class name "
                f"{class_names[int(ends.argmax())]!r} exceed this backbone's "
                f"{clip.text.config.context_length} tokens: shorten the name"
            )
        # What follows the longest text is seen by nothing that is read.
        embeddings = clip.text.token_embedding[...][jnp.asarray(token_ids[:, :longest])]
        self.start = Frozen(embeddings[0, 0])
        self.names = Frozen(embeddings[:, 1:])
        self.ends = Frozen(jnp.asarray(ends + NUM_CONTEXT, jnp.int32))

    @classmethod
    def build(cls, clip: CLIP, task: Task, config: ConfigDict, *, rngs: nnx.Rngs) -> "CoOp":
        """The model; see `Method.build`."""
        return cls(clip, task.class_names, task.text_features, rngs=rngs)

    def class_weights(self) -> Float[Array, "k e"]:
        """Features of the learnt texts, unit vectors."""
        names = self.names[...]
        beginning = jnp.concatenate([self.start[...][None], self.context[...]])
        beginning = jnp.broadcast_to(beginning, (len(names), *beginning.shape))
        embeddings = jnp.concatenate([beginning, names], axis=1)
        return normalize(self.text.encode(embeddings, self.ends[...]))

    def logits(self, features: Float[Array, "b e"], support: None) -> Float[Array, "b k"]:
        """Scaled cosines with the learnt texts."""
        return self.cosine_logits(features, self.class_weights())


def coop_epochs(benchmark: str, shots: int) -> int:
    """CoOp's: 200 for 8 shots and more, 100 for 2 and 4, 50 for 1 and on ImageNet."""
    if benchmark == "imagenet" or shots < 2:
        return 50
    return 100 if shots < 8 else 200
