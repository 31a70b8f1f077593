"""The main job: from a config to a trained, measured classifier in a workdir."""

import time
from dataclasses import asdict, dataclass
from typing import Any

from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fgvpl_jax.apps.workdir import Workdir, plain, read_json
from fgvpl_jax.clip import CLIP, load_clip
from fgvpl_jax.data import (
    Dataset,
    FewShot,
    check_readable,
    draw_few_shot,
    few_shot_record,
    load_coop,
    load_folder,
)
from fgvpl_jax.errors import UserError
from fgvpl_jax.evaluation import Evaluator, choose_cache_logit_weight, score
from fgvpl_jax.methods import FGVPL
from fgvpl_jax.recognition import class_text_features
from fgvpl_jax.training import (
    CacheBuilder,
    Checkpoints,
    Provenance,
    TrainState,
    batch_size_for,
    data_mesh,
    replicate,
    split_model,
    train,
)

CACHE_REFRESH = ("epoch", "once")
POSITIVE = ("shots", "epochs", "batch_size", "eval_batch_size", "checkpoint_every_epochs")


@dataclass(frozen=True)
class Run:
    """Everything that a config resolves to; nothing has been written yet."""

    config: ConfigDict
    workdir: Workdir
    dataset: Dataset
    few_shot: FewShot
    clip: CLIP
    model: FGVPL
    mesh: Mesh

    @property
    def provenance(self) -> Provenance:
        """What the run's checkpoints must belong to."""
        return Provenance(
            method=FGVPL.name,
            class_names=list(self.dataset.class_names),
            backbone=asdict(self.clip.identity),
            seed=self.config.seed,
        )


def train_and_evaluate(config: ConfigDict, workdir: Workdir) -> dict[str, Any]:
    """Trains where training is unfinished, then evaluates; returns and writes `results.json`.

    Args:
        config: See `configs/common.py`.
        workdir: An empty or new folder, or this very run's, which then goes on.
    Raises:
        UserError: For every mistake in config or data, before anything is written.
    """
    started = time.monotonic()
    run = prepare(config, workdir)
    if not workdir.config_file.exists():
        workdir.write(workdir.few_shot_file, few_shot_record(run.few_shot))
        workdir.write(
            workdir.config_file,
            {"config": plain(config), "backbone": asdict(run.clip.identity)},
        )
    checkpoints = Checkpoints(workdir.checkpoints, run.provenance)
    if checkpoints.latest_epoch != config.epochs:
        train(
            run.model,
            run.few_shot.support,
            config,
            transform=run.clip.resize_and_crop,
            image_size=run.clip.image_size,
            checkpoints=checkpoints,
            metrics_file=workdir.metrics_file,
            mesh=run.mesh,
        )
    checkpoints.close()
    return measure(run, started)


def evaluate(workdir: Workdir, config: ConfigDict | None = None) -> dict[str, Any]:
    """Measures a trained run again from its checkpoint; rewrites `results.json`.

    Args:
        workdir: A run's folder.
        config: Must agree with the run's, the places of backbone and data apart; None takes
            the run's own.
    """
    started = time.monotonic()
    stored = workdir.stored_config()
    return measure(prepare(stored if config is None else config, workdir), started)


def prepare(config: ConfigDict, workdir: Workdir) -> Run:
    """Resolves and checks a config: data, draw, backbone, model. Writes nothing."""
    check_config(config)
    workdir.check_is_free_for(config)
    dataset = load_dataset(config)
    few_shot = draw_few_shot(dataset, config.shots, config.seed, config.allow_fewer)
    if workdir.few_shot_file.exists() and read_json(workdir.few_shot_file) != few_shot_record(
        few_shot
    ):
        raise UserError(
            f"the images drawn now are not those of {workdir.few_shot_file}: the data at "
            f"{config.data.root} changed since that run; restore it or choose another --workdir"
        )
    check_readable(few_shot.support)
    clip = load_clip(config.clip)
    text_features = class_text_features(clip, dataset.class_names, config.data.templates)
    model = FGVPL(
        clip,
        text_features,
        num_prompts=config.num_prompts,
        connectivity=config.connectivity,
        text_residual_ratio=config.text_residual_ratio,
        object_logit_weight=config.object_logit_weight,
        object_query=config.object_query,
        rngs=nnx.Rngs(config.seed),
    )
    return Run(config, workdir, dataset, few_shot, clip, model, data_mesh())


def check_config(config: ConfigDict) -> None:
    """Refuses values that no run can have."""
    if config.method != FGVPL.name:
        raise UserError(f"method is {config.method!r}: this version has {FGVPL.name!r}")
    if config.cache_refresh not in CACHE_REFRESH:
        raise UserError(f"cache_refresh is {config.cache_refresh!r}: choose one of {CACHE_REFRESH}")
    if config.seed < 0:
        raise UserError(f"seed is {config.seed}: give 0 or more")
    for name in POSITIVE:
        if config[name] < 1:
            raise UserError(f"{name} is {config[name]}: give 1 or more")


def load_dataset(config: ConfigDict) -> Dataset:
    """The data that `config.data` names."""
    data = config.data
    if data.source == "coop":
        return load_coop(data.root, data.split_file, data.image_dir)
    if data.source == "folder":
        return load_folder(data.root)
    raise UserError(f"data.source is {data.source!r}: choose 'coop' or 'folder'")


def measure(run: Run, started: float) -> dict[str, Any]:
    """Restores the final checkpoint, selects λ on validation, then reads the test split once."""
    config, mesh, few_shot = run.config, run.mesh, run.few_shot
    graphdef, trainable, frozen = split_model(run.model)
    trainable, frozen = replicate(mesh, (trainable, frozen))
    checkpoints = Checkpoints(run.workdir.checkpoints, run.provenance)
    epoch = checkpoints.latest_epoch
    trainable = checkpoints.restore(TrainState(trainable, None)).trainable
    checkpoints.close()
    if epoch != config.epochs:
        raise UserError(
            f"{run.workdir.path} is trained for {epoch} of {config.epochs} epochs: "
            "finish it with --mode=train and the same config"
        )
    transform = run.clip.resize_and_crop
    build_cache = CacheBuilder(
        graphdef,
        few_shot.support,
        transform=transform,
        batch_size=batch_size_for(mesh, config.batch_size, len(few_shot.support)),
        mesh=mesh,
    )
    evaluator = Evaluator(
        graphdef,
        trainable,
        frozen,
        build_cache(trainable, frozen),
        transform=transform,
        batch_size=config.eval_batch_size,
        mesh=mesh,
    )
    selection = select_cache_logit_weight(evaluator, run)
    results = {
        "method": FGVPL.name,
        "benchmark": config.benchmark,
        "backbone": asdict(run.clip.identity),
        "shots": config.shots,
        "seed": config.seed,
        "epochs": config.epochs,
        "num_classes": len(run.dataset.class_names),
        "counts": {
            "train": len(few_shot.support),
            "validation": len(few_shot.validation or ()),
            "test": len(run.dataset.test or ()),
        },
        **selection,
        **test_scores(evaluator, run, selection["cache_logit_weight"]),
        "wall_seconds": round(time.monotonic() - started, 1),
    }
    run.workdir.write(run.workdir.results_file, results)
    return results


def select_cache_logit_weight(evaluator: Evaluator, run: Run) -> dict[str, Any]:
    """λ by validation accuracy over the config's grid; the config's own λ where it cannot be."""
    config, validation = run.config, run.few_shot.validation
    grid = tuple(float(weight) for weight in config.cache_logit_weight_grid)
    if not grid or validation is None:
        return {"cache_logit_weight": float(config.cache_logit_weight), "validation_accuracy": {}}
    accuracies = evaluator.accuracy_by_cache_weight(validation, grid)
    return {
        "cache_logit_weight": choose_cache_logit_weight(accuracies),
        "validation_accuracy": {str(weight): value for weight, value in accuracies.items()},
    }


def test_scores(evaluator: Evaluator, run: Run, cache_logit_weight: float) -> dict[str, Any]:
    """The final figures beside zero-shot CLIP's; null where the data has no test split."""
    if run.dataset.test is None:
        return {"test_accuracy": None, "zero_shot_accuracy": None}
    predictions = evaluator.predict(run.dataset.test, cache_logit_weight, name="test")
    ours = score(predictions.logits, predictions.labels)
    zero_shot = score(predictions.zero_shot_logits, predictions.labels)
    return {
        "test_accuracy": ours.accuracy,
        "test_mean_class_accuracy": ours.mean_class_accuracy,
        "test_nll": ours.nll,
        "test_ece": ours.ece,
        "zero_shot_accuracy": zero_shot.accuracy,
        "zero_shot_mean_class_accuracy": zero_shot.mean_class_accuracy,
        "zero_shot_nll": zero_shot.nll,
        "zero_shot_ece": zero_shot.ece,
        "test_images_read": len(predictions.labels),
        "unreadable": list(predictions.unreadable),
    }
