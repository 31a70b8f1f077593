"""Builds a run from a config, and finds every mistake before anything is written."""

from dataclasses import asdict, replace
from typing import Any

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from fgvpl_jax.clip import Identity, load_clip
from fgvpl_jax.data import Dataset, few_shot_record
from fgvpl_jax.data.entries import warn_of_skipped
from fgvpl_jax.errors import UserError, first_of
from fgvpl_jax.files import expand_user, read_json
from fgvpl_jax.methods import AUTO
from fgvpl_jax.runs.compiled_programs import keep_compiled_programs
from fgvpl_jax.runs.copies import MOST_NAMED, with_copies
from fgvpl_jax.runs.data_loading import check_readable, draw, load_dataset, open_image_cache
from fgvpl_jax.runs.run import Run
from fgvpl_jax.runs.settings import check_config, check_jax_settings, with_recipe
from fgvpl_jax.runs.workdir import Workdir
from fgvpl_jax.training import data_mesh, is_writer, kept_text_features, same_backbone


def prepare(config: ConfigDict, workdir: Workdir) -> Run:
    """Resolves and checks a config: its data, its draw, its backbone.

    Raises:
        UserError: For every mistake in config or data.
    """
    check_jax_settings()
    keep_compiled_programs()
    check_config(config)
    dataset = load_dataset(config)
    warn_of_skipped(dataset.skipped, config.data.root)
    warn_of_missing_classes(dataset)
    few_shot = draw(config, dataset)
    config = with_recipe(config, len(few_shot.support), len(dataset.class_names))
    workdir.check_is_free_for(config)
    check_is_same_draw(workdir, config, few_shot_record(few_shot))
    clip, image_cache = load_clip(config.clip), open_image_cache(config)
    check_is_same_backbone(workdir, config.clip, clip.identity)
    check_readable(few_shot.support, clip, image_cache)
    if config.data.source == "folder":  # benchmarks are left as they were published
        few_shot = replace(
            few_shot, support=with_copies(few_shot.support, clip, image_cache, "support")
        )
    text_features = kept_text_features(
        clip, dataset.class_names, config.data.templates, image_cache
    )
    run = Run(config, workdir, dataset, few_shot, clip, text_features, data_mesh(), image_cache)
    if config.method != AUTO:
        run.new_model(few_shot.support)  # refuses values that only the model can check
    return run


def warn_of_missing_classes(dataset: Dataset) -> None:
    """Logs a warning if no photo of a class is for testing, though there are test photos."""
    if dataset.test is not None:
        missing = np.setdiff1d(np.arange(len(dataset.class_names)), dataset.test.labels)
        if missing.size and is_writer():
            logging.warning(
                "the test split has no photo of %d of the %d classes, which its scores leave out: "
                "%s",
                missing.size,
                len(dataset.class_names),
                first_of([dataset.class_names[label] for label in missing], MOST_NAMED),
            )


def write_settings(run: Run) -> None:
    """Writes the config and the draw of a run that begins; a run that resumes has them."""
    if not run.workdir.config_file.exists():
        run.workdir.write(run.workdir.few_shot_file, few_shot_record(run.few_shot))
        run.workdir.write_config(run.config, asdict(run.clip.identity))


def check_is_outside_photos(workdir: Workdir, config: ConfigDict) -> None:
    """Refuses a new workdir in the user's folder of photos, where its files would be a class."""
    if config.data.source != "folder" or workdir.config_file.exists():
        return
    photos = expand_user(config.data.root).resolve()
    place = workdir.path.resolve()
    if not photos.is_dir() or not place.is_relative_to(photos):
        return
    # Photos in hidden folders are not read.
    if not any(name.startswith(".") for name in place.relative_to(photos).parts):
        raise UserError(
            f"the workdir {workdir.path} is in the folder of the photos, {photos}, where "
            "its files would be taken for a class: choose a workdir outside it"
        )


def check_is_same_draw(workdir: Workdir, config: ConfigDict, record: dict[str, Any]) -> None:
    """Refuses a folder whose run has other few-shot images than `record`, which are drawn now."""
    if workdir.few_shot_file.exists() and read_json(workdir.few_shot_file) != record:
        raise UserError(
            f"the images drawn now are not those of {workdir.few_shot_file}: the data in "
            f"{config.data.root} changed since that run; restore it or choose another workdir"
        )


def check_is_same_backbone(workdir: Workdir, clip: str, identity: Identity) -> None:
    """Refuses a folder whose run has another backbone than `clip`, which has this identity."""
    if workdir.config_file.exists() and not same_backbone(
        workdir.stored_backbone(), asdict(identity)
    ):
        raise UserError(
            f"the backbone {clip} is not the one that {workdir.path} was begun with: set `clip` to "
            "that one, fetch it again if its files changed, or choose another workdir"
        )
