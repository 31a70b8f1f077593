"""Checks the settings of a run, completes them with the method's recipe, and stores them."""

import json
import math
from typing import Any

import jax
from ml_collections import ConfigDict

from fgvpl_jax import defaults
from fgvpl_jax.errors import UserError
from fgvpl_jax.methods import AUTO, METHODS, SELECTION_RULES, method_named
from fgvpl_jax.recognition import VOTE_RULES
from fgvpl_jax.runs.default_config import get_config
from fgvpl_jax.visual_prompt import ATTENTION_MAPS

CACHE_REFRESH = ("epoch", "once")
COMPUTE_DTYPES = ("float32", "bfloat16")
# Fields that only methods with a tunable image encoder use.
ENCODER_SETTINGS = ("compute_dtype", "rematerialise", "prompt_layer", "augmented_passes")
MOST_SEEDS = 2**63
AMOUNTS = (
    "text_residual_ratio",
    "object_logit_weight",
    "cache_logit_weight",
    "learning_rate",
    "weight_decay",
)
POSITIVE = (
    *("shots", "batch_size", "eval_batch_size", "checkpoint_every_epochs"),
    *("prompt_layer", "augmented_passes"),
)

# Locations may change between two commands on one run. Their content may not: the backbone is
# compared by its hash, the drawn images by their names.
LOCATIONS = (
    "clip",
    "data.root",
    "data.few_shot_file",
    "data.image_cache_dir",
    "data.image_cache_gb",
)
# These change the memory that a step takes and not its result, apart from the rounding of photos to
# bytes.
RESOURCES = ("data.resident_gb", "microbatch", "rematerialise")

JAX_SETTINGS = {
    "jax_enable_x64": False,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
}


def check_config(config: ConfigDict) -> None:
    """Checks the values that do not depend on the data.

    Raises:
        UserError: If a value is one that no run can have; names the field.
    """
    if config.method != AUTO:
        method_named(config.method)
    _check_minutes(config)
    _check_choice("cache_refresh", config.cache_refresh, CACHE_REFRESH)
    _check_choice("cache_votes", config.cache_votes, VOTE_RULES)
    _check_choice("compute_dtype", config.compute_dtype, COMPUTE_DTYPES)
    _check_choice("attention_map", config.attention_map, ATTENTION_MAPS)
    _check_choice("selection_rule", config.selection_rule, SELECTION_RULES)
    _check_encoder_settings(config)
    if not 0 <= config.seed < MOST_SEEDS:
        raise UserError(f"seed is {config.seed}: give 0 or more, below {MOST_SEEDS}")
    for name in AMOUNTS:
        if config[name] is not None:
            _check_amount(name, config[name])
    for value in config.cache_logit_weight_grid:
        _check_amount("a value of cache_logit_weight_grid", value)
    for name in POSITIVE:
        _check_at_least(1, name, config[name])
    _check_at_least(2, "cv_folds", config.cv_folds)
    _check_at_least(0, "microbatch", config.microbatch)
    _check_at_least(0, "data.image_cache_gb", config.data.image_cache_gb)
    _check_at_least(0, "data.resident_gb", config.data.resident_gb)
    # The recipe of a method that trains nothing has 0 epochs, whatever the config says.
    if config.method == AUTO or method_named(config.method).recipe(config.benchmark, 1, 1).epochs:
        _check_at_least(1, "epochs", config.epochs)


def check_jax_settings() -> None:
    """Refuses settings of jax under which arrays would have other types than checkpoints.

    The command line uses jax's defaults; a Python program may have others.

    Raises:
        UserError: If a setting differs from jax's default.
    """
    for name, needed in JAX_SETTINGS.items():
        value = getattr(jax.config, name)
        if value != needed:
            raise UserError(
                f"{name} is {value!r} in this program: call jax.config.update({name!r}, "
                f"{needed!r}) first, or unset the variable {name.upper()}"
            )


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{name} is {value!r}: choose one of {choices}")


def _check_amount(name: str, value: object) -> None:
    if not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise UserError(f"{name} is {value!r}: give a number, 0 or more")


def _check_at_least(least: int, name: str, value: int | float | None) -> None:
    if value is not None and value < least:
        raise UserError(f"{name} is {value}: give {least} or more")


def _check_minutes(config: ConfigDict) -> None:
    """Refuses minutes that are no time, or that the method would ignore."""
    if not 0 < config.minutes < math.inf:
        raise UserError(f"minutes is {config.minutes}: give a number above 0")
    if config.method != AUTO and config.minutes != defaults.MINUTES:
        raise UserError(
            f"minutes is {config.minutes}, which {config.method} does not use: leave it at "
            f"{defaults.MINUTES}, or set method to {AUTO!r}"
        )


def _check_encoder_settings(config: ConfigDict) -> None:
    """Refuses settings that the method would ignore."""
    tunable = config.method == AUTO or method_named(config.method).tunable_encoder
    stock = get_config()
    for name in () if tunable else ENCODER_SETTINGS:
        default = stock[name]
        if config[name] != default:
            others = [other for other in METHODS if METHODS[other].tunable_encoder]
            raise UserError(
                f"{name} is {config[name]!r}, which {config.method} does not use: leave it at "
                f"{default!r}, or choose one of {', '.join(others)}"
            )
    if config.prompt_layer == 1 and config.augmented_passes != defaults.AUGMENTED_PASSES:
        raise UserError(
            f"augmented_passes is {config.augmented_passes}, which a prompt in layer 1 does not "
            f"use: leave it at {defaults.AUGMENTED_PASSES}, or set prompt_layer above 1"
        )


def with_recipe(config: ConfigDict, num_images: int, num_classes: int) -> ConfigDict:
    """Returns the config with the method's own recipe for the fields that it leaves at None.

    A method that trains nothing has 0 epochs, whatever the config says. The fields of "auto" stay,
    because each method that it tries has its own recipe.

    Args:
        config: Config of a run.
        num_images: Number of support images.
        num_classes: Number of classes.
    """
    shots = config.shots or math.ceil(num_images / num_classes)
    resolved = config.copy_and_resolve_references()
    if config.method == AUTO:
        return resolved
    recipe = method_named(config.method).recipe(config.benchmark, shots, num_images)
    for name, value in recipe._asdict().items():
        if resolved[name] is None or not recipe.epochs:
            resolved[name] = value
    return resolved


def plain(config: ConfigDict) -> dict[str, Any]:
    """Returns a config as JSON stores it: tuples become lists."""
    return json.loads(json.dumps(config.to_dict()))


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turns {"data": {"root": 1}} into {"data.root": 1}."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
