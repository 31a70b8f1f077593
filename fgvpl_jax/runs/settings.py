"""What a config may hold: which values are refused, how a recipe fills it in, how it is stored."""

import json
import math
from typing import Any

from ml_collections import ConfigDict

from fgvpl_jax.errors import UserError
from fgvpl_jax.methods import METHODS, method_named

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

# Where things lie may change between two commands on one run; what they are may not: the backbone
# is compared by its hash, the drawn images by their names.
LOCATIONS = (
    "clip",
    "data.root",
    "data.few_shot_file",
    "data.image_cache_dir",
    "data.image_cache_gb",
)
# How much memory a step takes may change too: up to rounding, of photos to bytes, it computes the
# same.
RESOURCES = ("data.resident_gb", "microbatch", "rematerialise")


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


def plain(config: ConfigDict) -> dict[str, Any]:
    """A config as JSON holds it: tuples become lists."""
    return json.loads(json.dumps(config.to_dict()))


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"data": {"root": 1}} to {"data.root": 1}."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
