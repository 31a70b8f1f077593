"""A run with several labels a photo: its settings, data and backbone."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Float64
from ml_collections import ConfigDict

from fgvpl_jax.clip import CLIP, load_clip
from fgvpl_jax.data import ImageCache
from fgvpl_jax.data.label_list import LabelledPhotos, LabelListDataset, load_label_list
from fgvpl_jax.data.manifest import has_several_labels
from fgvpl_jax.defaults import LABEL_METHOD
from fgvpl_jax.errors import UserError
from fgvpl_jax.files import expand_user
from fgvpl_jax.methods import AUTO
from fgvpl_jax.methods.fitted_once import unit
from fgvpl_jax.methods.multi_label import label_method
from fgvpl_jax.runs.compiled_programs import keep_compiled_programs
from fgvpl_jax.runs.data_loading import check_readable, open_image_cache
from fgvpl_jax.runs.prepare import check_is_same_backbone, check_is_same_draw
from fgvpl_jax.runs.settings import check_config, check_jax_settings, flatten, with_recipe
from fgvpl_jax.runs.workdir import Workdir
from fgvpl_jax.training import FeatureInputs, batch_size_for, data_mesh, kept_text_features

FEWEST_PHOTOS = 10
# Settings that such a run does not use, with the only value that is accepted.
UNUSED = {
    "shots": None,
    "data.few_shot_file": "",
    "selection_rule": "likelihood",
    "calibrate": True,
}


@dataclass(frozen=True)
class LabelRun:
    """Everything that the config of a run with several labels a photo resolves to.

    Attributes:
        config: Config of the run.
        workdir: Folder of the run.
        dataset: Photos and labels.
        clip: Frozen backbone.
        text_features: Unit vectors of the labels in the config's templates.
        image_cache: Cache of decoded images and features; None if the config has none.
    """

    config: ConfigDict
    workdir: Workdir
    dataset: LabelListDataset
    clip: CLIP
    text_features: Float[Array, "k e"]
    image_cache: ImageCache | None

    @cached_property
    def inputs(self) -> FeatureInputs:
        """Frozen features of photos."""
        return FeatureInputs(self.clip, self.config.seed, self.image_cache, data_mesh())

    def features(self, photos: LabelledPhotos) -> "Features":
        """Encodes the photos that can be read."""
        inputs, size = self.inputs, self.config.eval_batch_size
        size = batch_size_for(inputs.mesh, size, len(photos.photos))
        rows, places = [], []
        unreadable: list[str] = []
        for batch in inputs.evaluation(photos.photos, size):
            rows.append(batch.inputs[batch.weights > 0])
            places.append(batch.indices[batch.weights > 0])
            unreadable += batch.unreadable
        truth = photos.truth[np.concatenate(places)]
        return Features(unit(np.concatenate(rows)), truth, tuple(unreadable))

    def cosines(self, features: Float64[np.ndarray, "N e"]) -> Float64[np.ndarray, "N k"]:
        """Returns zero-shot CLIP's cosines of unit features."""
        return features @ np.asarray(self.text_features, np.float64).T


class Features(NamedTuple):
    """Features of the photos that can be read.

    Attributes:
        features: Unit vectors.
        truth: Whether each of these photos has each label.
        unreadable: "path: reason" of every other photo.
    """

    features: Float64[np.ndarray, "N e"]
    truth: Bool[np.ndarray, "N k"]
    unreadable: tuple[str, ...]


def has_label_list(config: ConfigDict) -> bool:
    """Returns whether a config names a list with several labels a photo."""
    root = expand_user(config.data.root or "")
    return config.data.source == "folder" and root.is_file() and has_several_labels(root)


def prepare_labels(config: ConfigDict, workdir: Workdir) -> LabelRun:
    """Resolves and checks a config: its data and its backbone.

    Raises:
        UserError: For every mistake in config or data.
    """
    check_jax_settings()
    keep_compiled_programs()
    if config.method == AUTO:
        config = config.copy_and_resolve_references()
        config.method = LABEL_METHOD
    label_method(config.method)
    check_config(config)
    fields = flatten(config.to_dict())
    for name, only in UNUSED.items():
        if fields[name] != only:
            raise UserError(
                f"{name} is {fields[name]!r}, which a run with several labels a photo does not "
                f"use: set it to {only!r}"
            )
    if jax.process_count() > 1:
        raise UserError(
            f"several labels a photo are learned by one process, and this job has "
            f"{jax.process_count()}: start a single one, which may use several devices"
        )
    dataset = load_label_list(config.data.root)
    photos = dataset.train.photos
    if len(photos) < FEWEST_PHOTOS:
        raise UserError(
            f"{config.data.root} has {len(photos)} photos for training: add some, because the "
            f"thresholds of the labels need at least {FEWEST_PHOTOS}"
        )
    config = with_recipe(config, len(photos), len(dataset.class_names))
    workdir.check_is_free_for(config)
    check_is_same_draw(workdir, config, training_record(dataset))
    clip, image_cache = load_clip(config.clip), open_image_cache(config)
    check_is_same_backbone(workdir, config.clip, clip.identity)
    check_readable(photos, clip, image_cache)
    texts = kept_text_features(clip, dataset.class_names, config.data.templates, image_cache)
    return LabelRun(config, workdir, dataset, clip, texts, image_cache)


def training_record(dataset: LabelListDataset) -> dict[str, Any]:
    """Returns the content of `few_shot.json`: the training photos with their labels."""
    photos, names = dataset.train.photos, dataset.class_names
    rows = zip(photos.keys, dataset.train.truth, strict=True)
    return {"train": {key: [names[label] for label in np.flatnonzero(row)] for key, row in rows}}
