"""A run: its settings, data and backbone, with methods to train and evaluate its model."""

from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float64, Int
from ml_collections import ConfigDict

from fgvpl_jax.clip import CLIP
from fgvpl_jax.data import Dataset, FewShot, ImageCache, Split
from fgvpl_jax.evaluation import Evaluator
from fgvpl_jax.methods import Method, PromptedMethod, Task, method_named
from fgvpl_jax.methods.fitted_once import unit
from fgvpl_jax.recognition import VisualCache
from fgvpl_jax.runs.workdir import Workdir
from fgvpl_jax.training import (
    FeatureInputs,
    Inputs,
    PixelInputs,
    Provenance,
    SharedFeatures,
    TokenInputs,
    TrainingSetup,
    batch_size_for,
    gather,
    make_cache_builder,
    process_share,
    replicate,
    resident_bytes,
    split_model,
)


@dataclass(frozen=True)
class Run:
    """Everything that a config resolves to.

    Attributes:
        config: Config with the method's recipe filled in.
        workdir: Folder of the run.
        dataset: All splits of the data.
        few_shot: Support images and few-shot validation images.
        clip: Frozen backbone.
        text_features: Unit vectors of the class names in the config's templates.
        mesh: Devices of the run.
        image_cache: Cache of decoded images; None if the config has none.
        shared_features: Features that the methods of "auto" share; None for other runs.
        shared_tokens: Tokens of the run whose folds these are; None for other runs, which compute
            their own.
    """

    config: ConfigDict
    workdir: Workdir
    dataset: Dataset
    few_shot: FewShot
    clip: CLIP
    text_features: Float[Array, "k e"]
    mesh: Mesh
    image_cache: ImageCache | None
    shared_features: SharedFeatures | None = None
    shared_tokens: TokenInputs | None = None

    @property
    def provenance(self) -> Provenance:
        """Identifies the run that a checkpoint must belong to."""
        return Provenance(
            method=self.config.method,
            class_names=list(self.dataset.class_names),
            backbone=asdict(self.clip.identity),
            seed=self.config.seed,
        )

    @cached_property
    def inputs(self) -> Inputs:
        """Images as the method reads them: frozen features or pixels."""
        return self.inputs_of(method_named(self.config.method))

    def inputs_of(self, method: Method | type[Method]) -> Inputs:
        """Returns images as another method reads them."""
        if method.reads_features:
            encoder = method.frozen_encoder(self.clip, self.config)
            if self.shared_features is not None:
                return self.shared_features.by(encoder)
            return FeatureInputs(self.clip, self.config.seed, self.image_cache, self.mesh, encoder)
        return PixelInputs(self.clip, self.config.seed, self.image_cache, process_share())

    @cached_property
    def support_features(self) -> Float64[np.ndarray, "s e"]:
        """Unit vectors of the support images by CLIP's frozen image encoder."""
        return self.frozen_features(self.few_shot.support)[0]

    def frozen_features(
        self, split: Split
    ) -> tuple[Float64[np.ndarray, "n e"], Int[np.ndarray, "n"]]:
        """Returns unit vectors of the readable images by CLIP's frozen image encoder, and places.

        The method may read other inputs.

        Returns:
            The vectors, and the place of each image in the split.
        """
        inputs = self.shared_features or FeatureInputs(
            self.clip, self.config.seed, self.image_cache, self.mesh
        )
        size = batch_size_for(self.mesh, self.config.eval_batch_size, len(split))
        return readable_features(inputs, split, size)

    def new_model(self, support: Split) -> Method:
        """Builds the model before training; all its random numbers come from the run's seed."""
        names, copies = self.dataset.class_names, support.copies
        task = Task(names, self.text_features, support.labels, copies)
        return build_model(self.config, self.clip, task)

    @property
    def training_inputs(self) -> Inputs:
        """Few-shot images as training reads them: with a prompt above layer 1, its tokens."""
        return self.tokens or self.inputs

    @cached_property
    def tokens(self) -> TokenInputs | None:
        """Tokens that enter the prompt's layer; None where training reads all layers or none."""
        config, support = self.config, self.few_shot.support
        if config.prompt_layer == 1 or self.shared_tokens is not None:
            return self.shared_tokens
        model = self.new_model(support)
        if not isinstance(model, PromptedMethod):
            return None
        return TokenInputs(
            model,
            support,
            self.clip,
            config.seed,
            self.image_cache,
            num_passes=config.augmented_passes,
            max_bytes=resident_bytes(config),
            mesh=self.mesh,
        )

    @property
    def training_setup(self) -> TrainingSetup:
        """Settings, inputs and devices for `train`."""
        return TrainingSetup(self.config, self.few_shot.validation, self.training_inputs, self.mesh)

    def evaluator(self, model: Method, support: Split) -> tuple[Evaluator, VisualCache | None]:
        """Returns an evaluator of a trained model, and the visual cache of the support images.

        The cache is None if the method has none.
        """
        graphdef, trainable, frozen = split_model(model)
        trainable, frozen = replicate(self.mesh, (trainable, frozen))
        cache = None
        if model.uses_cache:
            # The images stay on the host, because the cache is built only once.
            build_cache = make_cache_builder(graphdef, support, self.training_setup, max_bytes=0)
            cache = build_cache(trainable, frozen)
        evaluator = Evaluator(
            graphdef,
            trainable,
            frozen,
            cache,
            inputs=self.inputs,
            batch_size=self.config.eval_batch_size,
            mesh=self.mesh,
        )
        return evaluator, cache


def build_model(config: ConfigDict, clip: CLIP, task: Task) -> Method:
    """Builds the model of a config for a task, freshly initialised."""
    method = method_named(config.method)
    return method.build(clip, task, config, rngs=nnx.Rngs(config.seed))


def readable_features(
    inputs: FeatureInputs, split: Split, batch_size: int
) -> tuple[Float64[np.ndarray, "n e"], Int[np.ndarray, "n"]]:
    """Returns unit vectors of the readable images of a split, and their places in it."""
    found = gather(inputs.evaluation(split, batch_size))
    return unit(found.inputs), found.places
