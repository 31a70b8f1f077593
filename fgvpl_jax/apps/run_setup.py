"""From a config to everything a run needs; the workdir is not written to."""

import math
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from fgvpl_jax.apps.workdir import Workdir, read_json
from fgvpl_jax.clip import CLIP, Identity, load_clip
from fgvpl_jax.data import (
    BENCHMARKS,
    Dataset,
    FewShot,
    ImageCache,
    Split,
    benchmark_named,
    default_cache_folder,
    draw_few_shot,
    few_shot_record,
    load_coop,
    load_folder,
    load_manifest,
    load_shapes,
    load_tfds,
    read_few_shot,
    unreadable_images,
)
from fgvpl_jax.errors import UserError
from fgvpl_jax.evaluation import Evaluator
from fgvpl_jax.methods import METHODS, Method, Task, method_named
from fgvpl_jax.recognition import VisualCache
from fgvpl_jax.reporting.epoch_progress import showing_epochs
from fgvpl_jax.training import (
    CacheBuilder,
    Checkpoints,
    FeatureInputs,
    Inputs,
    Observer,
    PixelInputs,
    Provenance,
    batch_size_for,
    data_mesh,
    gather_texts,
    is_writer,
    kept_text_features,
    process_share,
    replicate,
    same_backbone,
    split_model,
    train,
)

CACHE_REFRESH = ("epoch", "once")
COMPUTE_DTYPES = ("float32", "bfloat16")
ENCODER_SETTINGS = {"compute_dtype": "float32", "rematerialise": False}
MOST_SEEDS = 2**63
AMOUNTS = (
    "text_residual_ratio",
    "object_logit_weight",
    "cache_logit_weight",
    "learning_rate",
    "weight_decay",
)
POSITIVE = ("shots", "batch_size", "eval_batch_size", "checkpoint_every_epochs")


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
        observe: Observer | None = None,
    ) -> None:
        """Trains a model in place with the run's settings, and shows how far it is.

        A finished one is only restored.
        """
        display = showing_epochs(self.config.epochs) if is_writer() else nullcontext(None)
        with display as show:

            def tell(line: dict[str, float | int], trainable: nnx.State) -> None:
                assert show is not None
                show(line)
                if observe is not None:
                    observe(line, trainable)

            train(
                model,
                support,
                self.few_shot.validation,
                self.config,
                inputs=self.inputs,
                checkpoints=checkpoints,
                metrics_file=metrics_file,
                mesh=self.mesh,
                observe=tell,
            )

    def evaluator(self, model: Method, support: Split) -> tuple[Evaluator, VisualCache | None]:
        """An evaluator of a trained model, with the cache of these images under it, if any."""
        graphdef, trainable, frozen = split_model(model)
        trainable, frozen = replicate(self.mesh, (trainable, frozen))
        cache = None
        if model.uses_cache:
            size = self.config.microbatch or self.config.batch_size
            cache = CacheBuilder(
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


def prepare(config: ConfigDict, workdir: Workdir) -> Run:
    """Resolves and checks a config: data, draw, backbone.

    Raises:
        UserError: For every mistake in config or data.
    """
    check_config(config)
    if method_named(config.method).reads_features and jax.process_count() > 1:
        raise UserError(
            f"{config.method} reads features that one process makes, and this job has "
            f"{jax.process_count()}: start a single one, which may have several devices"
        )
    dataset = load_dataset(config)
    few_shot = draw(config, dataset)
    config = with_recipe(config, len(few_shot.support), len(dataset.class_names))
    workdir.check_is_free_for(config)
    check_is_same_draw(workdir, config, few_shot_record(few_shot))
    clip, image_cache = load_clip(config.clip), open_image_cache(config)
    check_is_same_backbone(workdir, config.clip, clip.identity)
    check_readable(few_shot.support, clip, image_cache)
    text_features = kept_text_features(
        clip, dataset.class_names, config.data.templates, image_cache
    )
    run = Run(config, workdir, dataset, few_shot, clip, text_features, data_mesh(), image_cache)
    run.new_model(few_shot.support)  # refuses what only the model can judge
    return run


def draw(config: ConfigDict, dataset: Dataset) -> FewShot:
    """The few-shot images of a run: by its seed, or those of another run."""
    if config.data.few_shot_file:
        return read_few_shot(config.data.few_shot_file, dataset, config.shots)
    return draw_few_shot(dataset, config.shots, config.seed, config.allow_fewer)


def check_is_same_draw(workdir: Workdir, config: ConfigDict, record: dict[str, Any]) -> None:
    """Refuses a folder with a run of other few-shot images than `record`, which are drawn now."""
    if workdir.few_shot_file.exists() and read_json(workdir.few_shot_file) != record:
        raise UserError(
            f"the images drawn now are not those of {workdir.few_shot_file}: the data at "
            f"{config.data.root} changed since that run; restore it or choose another --workdir"
        )


def check_is_same_backbone(workdir: Workdir, clip: str, identity: Identity) -> None:
    """Refuses a folder with a run of another backbone than `clip`, whose identity is given."""
    if workdir.config_file.exists() and not same_backbone(
        workdir.stored_backbone(), asdict(identity)
    ):
        raise UserError(
            f"the backbone {clip} is not the one that {workdir.path} was begun with: name "
            "that one with --config.clip, fetch it again if its files changed, or choose another "
            "--workdir"
        )


def build_model(config: ConfigDict, clip: CLIP, task: Task) -> Method:
    """The model of a config for a task, freshly initialised."""
    method = method_named(config.method)
    return method.build(clip, task, config, rngs=nnx.Rngs(config.seed))


def with_recipe(config: ConfigDict, num_images: int, num_classes: int) -> ConfigDict:
    """The config with the method's own recipe where it leaves epochs and the like out.

    A method that trains nothing has 0 epochs whatever the config says.

    Args:
        config: Of a run.
        num_images: Of the support set.
        num_classes: k.
    """
    shots = config.shots or math.ceil(num_images / num_classes)
    recipe = method_named(config.method).recipe(config.benchmark, shots, num_images)
    resolved = config.copy_and_resolve_references()
    for name, value in recipe._asdict().items():
        if resolved[name] is None or not recipe.epochs:
            resolved[name] = value
    return resolved


def check_config(config: ConfigDict) -> None:
    """Refuses values that no run can have."""
    method = method_named(config.method)
    if config.cache_refresh not in CACHE_REFRESH:
        raise UserError(f"cache_refresh is {config.cache_refresh!r}: choose one of {CACHE_REFRESH}")
    if not 0 <= config.seed < MOST_SEEDS:
        raise UserError(f"seed is {config.seed}: give 0 or more, below {MOST_SEEDS}")
    amounts = [(name, config[name]) for name in AMOUNTS if config[name] is not None]
    amounts += [("a value of cache_logit_weight_grid", v) for v in config.cache_logit_weight_grid]
    for name, value in amounts:
        if not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise UserError(f"{name} is {value!r}: give a number, 0 or more")
    if config.compute_dtype not in COMPUTE_DTYPES:
        raise UserError(
            f"compute_dtype is {config.compute_dtype!r}: choose one of {COMPUTE_DTYPES}"
        )
    for name, default in ENCODER_SETTINGS.items():
        if config[name] != default and not method.tunable_encoder:
            heeding = [other for other in METHODS if METHODS[other].tunable_encoder]
            raise UserError(
                f"{name} is {config[name]!r}, which {config.method} does not heed: leave it at "
                f"{default!r}, or choose one of {', '.join(heeding)}"
            )
    if config.microbatch < 0:
        raise UserError(f"microbatch is {config.microbatch}: give 0 or more")
    if config.cv_folds < 2:
        raise UserError(f"cv_folds is {config.cv_folds}: give 2 or more")
    for name in ("image_cache_gb", "resident_gb"):
        if config.data[name] < 0:
            raise UserError(f"data.{name} is {config.data[name]}: give 0 or more")
    # 0 epochs are what `with_recipe` gives a method that trains nothing.
    trains = method.recipe(config.benchmark, 1, 1).epochs > 0
    for name in (*POSITIVE, *(["epochs"] if trains else [])):
        if config[name] is not None and config[name] < 1:
            raise UserError(f"{name} is {config[name]}: give 1 or more")


def check_readable(support: Split, clip: CLIP, image_cache: ImageCache | None) -> None:
    """Reads every image once; of several processes each reads its share.

    Raises:
        UserError: If any cannot be; names them and says how many.
    """
    problems = gather_texts(
        unreadable_images(
            support, transform=clip.resize_and_crop, cache=image_cache, share=process_share()
        )
    )
    if problems:
        raise UserError(
            f"{len(problems)} of the {len(support)} few-shot images cannot be read: "
            f"{'; '.join(problems[:3])}{'; …' if len(problems) > 3 else ''}: replace or remove them"
        )


def open_image_cache(config: ConfigDict) -> ImageCache | None:
    """The cache of decoded images; None where its size is 0."""
    folder, size = config.data.image_cache_dir, config.data.image_cache_gb
    if not size:
        return None
    return ImageCache(
        Path(folder).expanduser() if folder else default_cache_folder(), int(size * 1e9)
    )


def load_dataset(config: ConfigDict) -> Dataset:
    """The data that `config.data` names."""
    data = config.data
    if data.source == "coop":
        benchmark = BENCHMARKS.get(config.benchmark)
        return load_coop(data.root, data.split_file, data.image_dir, benchmark)
    if data.source == "tfds":
        return load_tfds(data.root, data.split_file, benchmark_named(config.benchmark))
    if data.source == "folder":
        is_list = Path(data.root).expanduser().is_file()
        return load_manifest(data.root) if is_list else load_folder(data.root)
    if data.source == "shapes":
        return load_shapes()
    raise UserError(f"data.source is {data.source!r}: choose 'coop', 'tfds', 'folder' or 'shapes'")
