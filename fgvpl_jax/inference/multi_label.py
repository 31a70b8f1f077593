"""A trained run with several labels a photo, which says which labels photos have."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from fgvpl_jax.clip import load_clip
from fgvpl_jax.data import UnreadableImage
from fgvpl_jax.defaults import LABEL_METHOD, TOP_K
from fgvpl_jax.errors import UserError
from fgvpl_jax.inference.final_model import unfinished
from fgvpl_jax.inference.fit import config_for, run_folder
from fgvpl_jax.inference.photos import NamedCrop, Photo, all_readable, predict_batches
from fgvpl_jax.inference.programs import padded_batch
from fgvpl_jax.runs.compiled_programs import keep_compiled_programs
from fgvpl_jax.runs.label_results import LabelResults
from fgvpl_jax.runs.multi_label import read_trained, train_labels
from fgvpl_jax.runs.prepare import check_is_same_backbone
from fgvpl_jax.runs.settings import check_jax_settings
from fgvpl_jax.runs.workdir import Workdir


@dataclass(frozen=True)
class LabelPrediction:
    """The prediction for one photo that may have several labels, or none.

    Attributes:
        name: The photo's path; its index in the list if it was given without a path.
        labels: The labels that reach their thresholds, most probable first.
        class_names: The k most probable labels, and all that reach their thresholds.
        probabilities: Calibrated probabilities of these labels, each between 0 and 1.
        thresholds: Probability from which each of these labels is assigned.
    """

    name: str
    labels: tuple[str, ...]
    class_names: tuple[str, ...]
    probabilities: tuple[float, ...]
    thresholds: tuple[float, ...]


class MultiLabelClassifier:
    """A trained run with several labels a photo, made by `load_multi_label` or `fit_multi_label`.

    Attributes:
        workdir: Folder of the run.
        results: Results of the run, such as `results.cv_mean_average_precision`.
        class_names: All labels.
        thresholds: Probability from which each label is assigned.
    """

    def __init__(self, workdir: Workdir, clip: str | Path | None = None):
        check_jax_settings()
        keep_compiled_programs()
        config = workdir.stored_config()
        if not workdir.results_file.exists():
            raise unfinished(workdir)
        self.workdir = workdir.path
        self.results = LabelResults.read(workdir)
        self._model = read_trained(workdir).model
        self.class_names = self._model.class_names
        names = zip(self.class_names, self._model.thresholds.tolist(), strict=True)
        self.thresholds: dict[str, float] = dict(names)
        place = config.clip if clip is None else str(clip)
        self._clip = load_clip(place)
        check_is_same_backbone(workdir, place, self._clip.identity)

    def predict(self, images: Photo | Iterable[Photo], top_k: int = TOP_K) -> list[LabelPrediction]:
        """Returns the labels of photos.

        Args:
            images: Photos, as `Classifier.predict` takes them.
            top_k: Number of labels whose probabilities are returned, in addition to the assigned.
        Returns:
            One prediction for each photo, in order.
        Raises:
            UserError: If a photo cannot be read, something else is given, or top_k is below 1.
        """
        return all_readable(self.predict_each(images, top_k))

    def predict_each(
        self, images: Photo | Iterable[Photo], top_k: int = TOP_K
    ) -> Iterator[LabelPrediction | UnreadableImage]:
        """Like `predict`, but batch by batch; yields the error of a photo that cannot be read."""
        return predict_batches(images, self._clip, partial(self._predict_crops, top_k=top_k))

    def _predict_crops(self, crops: list[NamedCrop], top_k: int) -> list[LabelPrediction]:
        if top_k < 1:
            raise UserError(f"top_k is {top_k}: give 1 or more")
        if not crops:
            return []
        batch = padded_batch([crop for _, crop in crops])
        pixels = self._clip.image_encoder.normalize_pixels(jnp.asarray(batch))
        features = np.asarray(self._clip.encode_image(pixels))[: len(crops)]
        rows = self._model.probabilities(features)
        return [
            self._prediction(name, row, top_k) for (name, _), row in zip(crops, rows, strict=True)
        ]

    def _prediction(self, name: str, probabilities: np.ndarray, top_k: int) -> LabelPrediction:
        thresholds = self._model.thresholds
        order = np.argsort(-probabilities, kind="stable")
        assigned = probabilities >= thresholds
        shown = [c for rank, c in enumerate(order) if rank < top_k or assigned[c]]
        return LabelPrediction(
            name=name,
            labels=tuple(self.class_names[c] for c in order if assigned[c]),
            class_names=tuple(self.class_names[c] for c in shown),
            probabilities=tuple(probabilities[shown].tolist()),
            thresholds=tuple(thresholds[shown].tolist()),
        )


def fit_multi_label(
    data: str | Path, /, *, workdir: str | Path | None = None, **settings: Any
) -> MultiLabelClassifier:
    """Trains on photos with several labels each and measures the result.

    Args:
        data: A .csv or .jsonl list with the columns `path` and `labels` and, optionally, `split`.
        workdir: Folder that keeps the run; None makes a new temporary folder that only the user
            can read.
        **settings: Fields of the config, as `fit` takes them. `method` is "kernel_ridge_plain"
            (the default), "linear_probe" or "svm".
    Returns:
        The classifier; its `results` hold the estimated mean average precision.
    Raises:
        UserError: For every mistake in data or settings.
    """
    config = config_for(data, {"method": LABEL_METHOD, **settings})
    with run_folder(workdir) as run:
        train_labels(config, run)
    return MultiLabelClassifier(run)


def load_multi_label(workdir: str | Path, clip: str | Path | None = None) -> MultiLabelClassifier:
    """Loads a finished run with several labels a photo.

    Args:
        workdir: Folder of the run.
        clip: Folder or hub id where its backbone is now; None if it has not moved.
    Raises:
        UserError: If the folder holds no such finished run, or its backbone is missing or differs
            from the one it was trained with.
    """
    return MultiLabelClassifier(Workdir(workdir), clip)


def label_text(prediction: LabelPrediction) -> str:
    """Returns the prediction as lines of text: the assigned labels, or that there are none."""
    rows = zip(prediction.class_names, prediction.probabilities, strict=True)
    lines = [f"  {p:6.1%}  {name}" for name, p in rows if name in prediction.labels]
    if not lines:
        best, probability = prediction.class_names[0], prediction.probabilities[0]
        lines = [f"  no label; the most probable would be {best} ({probability:.1%})"]
    return "\n".join([prediction.name, *lines])


def label_json(photo: Path, result: LabelPrediction | UnreadableImage) -> str:
    """Returns one JSON line, in ASCII whatever the encoding of the output."""
    if isinstance(result, UnreadableImage):
        return json.dumps({"image": str(photo), "error": str(result)})
    rows = zip(result.class_names, result.probabilities, result.thresholds, strict=True)
    classes = [
        {"name": name, "probability": round(probability, 6), "threshold": round(threshold, 6)}
        for name, probability, threshold in rows
    ]
    return json.dumps({"image": str(photo), "labels": result.labels, "classes": classes})
