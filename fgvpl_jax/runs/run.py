"""A run: its settings, data and backbone, and how its model is trained and evaluated."""

from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from fgvpl_jax.clip import CLIP
from fgvpl_jax.data import Dataset, FewShot, ImageCache, Split
from fgvpl_jax.displays.epoch_progress import epoch_progress
from fgvpl_jax.evaluation import Evaluator
from fgvpl_jax.methods import Method, Task, method_named
from fgvpl_jax.recognition import VisualCache
from fgvpl_jax.runs.workdir import Workdir
from fgvpl_jax.training import (
    Checkpoints,
    EpochCallback,
    EpochMetrics,
    FeatureInputs,
    Inputs,
    PixelInputs,
    Provenance,
    TrainingSetup,
    VisualCacheBuilder,
    batch_size_for,
    is_writer,
    process_share,
    replicate,
    split_model,
    train,
)


@dataclass(frozen=True)
class Run:
    """Everything that a config resolves to; the config's own recipe is filled in."""

    config: ConfigDict
    workdir: Workdir
    dataset: Dataset
    few_shot: FewShot
    clip: CLIP
    text_features: Float[Array, "k e"]
    mesh: Mesh
    image_cache: ImageCache | None

    @property
    def provenance(self) -> Provenance:
        """What the run's checkpoints must belong to."""
        return Provenance(
            method=self.config.method,
            class_names=list(self.dataset.class_names),
            backbone=asdict(self.clip.identity),
            seed=self.config.seed,
        )

    @cached_property
    def inputs(self) -> Inputs:
        """What the method reads of the images."""
        if method_named(self.config.method).reads_features:
            return FeatureInputs(self.clip, self.config.seed, self.image_cache, self.mesh)
        return PixelInputs(self.clip, self.config.seed, self.image_cache, process_share())

    def new_model(self, support: Split) -> Method:
        """The model as it is before training on these images, by the seed alone."""
        task = Task(self.dataset.class_names, self.text_features, support.labels)
        return build_model(self.config, self.clip, task)

    def train(
        self,
        model: Method,
        support: Split,
        checkpoints: Checkpoints,
        metrics_file: Path,
        on_epoch: EpochCallback | None = None,
    ) -> None:
        """Trains a model in place with the run's settings, and shows how far it is.

        A finished one is only restored.
        """
        display = epoch_progress(self.config.epochs) if is_writer() else nullcontext(None)
        with display as show:

            def show_epoch(line: EpochMetrics, trainable: nnx.State) -> None:
                assert show is not None
                show(line)

            train(
                model,
                support,
                TrainingSetup(self.config, self.few_shot.validation, self.inputs, self.mesh),
                checkpoints=checkpoints,
                metrics_file=metrics_file,
                on_epoch=[show_epoch] if on_epoch is None else [show_epoch, on_epoch],
            )

    def evaluator(self, model: Method, support: Split) -> tuple[Evaluator, VisualCache | None]:
        """An evaluator of a trained model, with the cache of these images under it, if any."""
        graphdef, trainable, frozen = split_model(model)
        trainable, frozen = replicate(self.mesh, (trainable, frozen))
        cache = None
        if model.uses_cache:
            size = self.config.microbatch or self.config.batch_size
            cache = VisualCacheBuilder(
                graphdef,
                support,
                inputs=self.inputs,
                batch_size=batch_size_for(self.mesh, size, len(support)),
                max_bytes=0,  # built once
                mesh=self.mesh,
            )(trainable, frozen)
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
    """The model of a config for a task, freshly initialised."""
    method = method_named(config.method)
    return method.build(clip, task, config, rngs=nnx.Rngs(config.seed))
