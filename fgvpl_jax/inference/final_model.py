"""Loads the trained model of a finished run; for the method "auto", the chosen one or the mix."""

from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fgvpl_jax.clip import CLIP
from fgvpl_jax.data import ShapesSplit, Split
from fgvpl_jax.errors import UserError
from fgvpl_jax.files import read_arrays
from fgvpl_jax.methods import Method, Task
from fgvpl_jax.methods.mixture import Member, mixture
from fgvpl_jax.recognition import VisualCache, class_text_features
from fgvpl_jax.runs.results import RunResults
from fgvpl_jax.runs.run import build_model
from fgvpl_jax.runs.workdir import Workdir
from fgvpl_jax.training import Checkpoints, Provenance, data_mesh, restore_model
from fgvpl_jax.variables import to_device


class FinalModel(NamedTuple):
    """A trained model with what it needs to predict.

    Attributes:
        model: The model.
        cache: Its visual cache; None for a model without one.
        class_names: The classes, in label order.
        support: The training photos, which may be gone.
    """

    model: Method
    cache: VisualCache | None
    class_names: tuple[str, ...]
    support: Split


def unfinished(workdir: Workdir) -> UserError:
    """Returns the error for a run that cannot be used yet."""
    return UserError(f"the run in {workdir.path} is not finished: train it to its last epoch first")


def load_final_model(workdir: Workdir, results: RunResults, clip: CLIP) -> FinalModel:
    """Loads the model of a finished run.

    Args:
        workdir: Folder of the run.
        results: Its results.
        clip: Its backbone.
    Raises:
        UserError: If a file is missing or damaged, or belongs to another backbone.
    """
    if not results.members:
        return load_trained(workdir, clip)
    loaded = [load_trained(workdir.candidate(one.method), clip) for one in results.members]
    if len(loaded) == 1:
        return loaded[0]
    members = []
    for one, found in zip(results.members, loaded, strict=True):
        assert one.temperature is not None
        model, config = found.model, workdir.candidate(one.method).stored_config()
        encoder = model.frozen_encoder(clip, config) if model.reads_features else None
        numbers = (one.choices, one.temperature, one.weight)
        members.append(Member(model, encoder, found.cache, *numbers))
    mix = mixture(clip, loaded[0].model.text_features[...], members)
    return loaded[0]._replace(model=mix, cache=None)


def load_trained(workdir: Workdir, clip: CLIP) -> FinalModel:
    """Loads the model of one method; see `load_final_model`."""
    config = workdir.stored_config()
    saved = Checkpoints.read_provenance(workdir.checkpoints)
    class_names = tuple(saved.class_names)
    text_features = class_text_features(clip, class_names, config.data.templates)
    support = read_arrays(workdir.support_file)
    model = build_model(config, clip, Task(class_names, text_features, support["labels"]))
    backbone = asdict(clip.identity)
    provenance = Provenance(saved.method, saved.class_names, backbone, saved.seed)
    with Checkpoints(workdir.checkpoints, provenance) as checkpoints:
        epoch = restore_model(model, checkpoints, data_mesh()).epoch
    if epoch != config.epochs:  # the last checkpoint was damaged, and must be trained again
        raise unfinished(workdir)
    kind = ShapesSplit if config.data.source == "shapes" else Split
    keys = tuple(str(key) for key in support["keys"])
    photos = kind(Path(str(support["root"])), keys, support["labels"])
    cache = None
    if model.uses_cache:
        cache = VisualCache(
            to_device(support["image"], None),
            to_device(support["object"], None) if "object" in support else None,
            to_device(support["labels"], None),
            to_device(np.ones(len(keys), bool), None),
        )
    return FinalModel(model, cache, class_names, photos)
