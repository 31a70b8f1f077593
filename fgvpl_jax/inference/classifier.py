"""A trained run, ready to use: photos in, class names and reasons out."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8
from ml_collections.config_dict import placeholder
from PIL import Image

from fgvpl_jax.clip import load_clip
from fgvpl_jax.data import (
    BENCHMARKS,
    ShapesSplit,
    Split,
    UnreadableImage,
    as_photo,
    decode_image,
    photos_at,
)
from fgvpl_jax.errors import UserError
from fgvpl_jax.files import read_arrays
from fgvpl_jax.inference.added_classes import Extension
from fgvpl_jax.inference.programs import Inference, Recognition, padded_batch
from fgvpl_jax.methods import Task
from fgvpl_jax.recognition import VisualCache, class_text_features
from fgvpl_jax.runs.default_config import benchmark_config, get_config
from fgvpl_jax.runs.experiment import train_and_evaluate
from fgvpl_jax.runs.results import RunResults
from fgvpl_jax.runs.run import build_model
from fgvpl_jax.runs.settings import flatten
from fgvpl_jax.runs.workdir import Workdir
from fgvpl_jax.training import Checkpoints, Provenance, data_mesh, restore_model

Photo = str | Path | Image.Image | np.ndarray

BATCH_SIZE = 64


@dataclass(frozen=True)
class Similar:
    """A training photo that the cache finds close.

    Attributes:
        place: Its place in the classifier's `support`; photos added to it come after those.
        key: Its path below the folder of the training photos; an added one's name.
        class_name: Its class.
        similarity: Cosine of the adapted image features (Eq. 17).
    """

    place: int
    key: str
    class_name: str
    similarity: float


@dataclass(frozen=True)
class Prediction:
    """What the classifier says of one photo, best class first.

    Attributes:
        name: The photo's path; its place in the list if it came without one.
        class_names: The k best.
        probabilities: Of those, tempered as the run was calibrated; over all classes they sum to 1.
        attention_map: Significance of each patch of the centred crop that the model saw; None for
            a method that looks for no object, as is the mask.
        object_mask: The patches of the object.
        similar: The closest training photos; none for a method without a visual cache.
        logits: Of the classes named, before the temperature.
        contributions: What each feature and pathway adds to these logits, which are the sum; by
            the names of `Method.contributions`.
    """

    name: str
    class_names: tuple[str, ...]
    probabilities: tuple[float, ...]
    attention_map: Float[np.ndarray, "gh gw"] | None
    object_mask: Bool[np.ndarray, "gh gw"] | None
    similar: tuple[Similar, ...]
    logits: tuple[float, ...]
    contributions: dict[str, tuple[float, ...]]


class Classifier:
    """Made by `load_classifier` or `fit`.

    Attributes:
        workdir: Where the run lies.
        class_names: In label order.
        support: The training photos; decoded only when asked for, so they may be gone.
        results: Results of the run, such as `results.test_accuracy`.
        finds_objects: Whether its predictions have attention maps and object masks.
        clip: The backbone.
        uses_cache: Whether they have similar photos, and classes can be added.
        title: The method's, in tables.
        inference: The device programs.
    """

    def __init__(self, workdir: Workdir, clip: str | Path | None = None):
        config = workdir.stored_config()
        if not workdir.results_file.exists():
            raise UserError(f"{workdir.path} is not finished: go on with --mode=train")
        self.workdir = workdir.path
        self.results = RunResults.read(workdir)
        self.clip = load_clip(config.clip if clip is None else clip)
        saved = Checkpoints.read_provenance(workdir.checkpoints)
        self.class_names = tuple(saved.class_names)
        text_features = class_text_features(self.clip, self.class_names, config.data.templates)
        support = read_arrays(workdir.support_file)
        task = Task(self.class_names, text_features, support["labels"])
        model = build_model(config, self.clip, task)
        backbone = asdict(self.clip.identity)
        provenance = Provenance(saved.method, saved.class_names, backbone, saved.seed)
        with Checkpoints(workdir.checkpoints, provenance) as checkpoints:
            epoch = restore_model(model, checkpoints, data_mesh())
        if epoch != config.epochs:  # the final one was damaged, and is trained anew
            raise UserError(f"{workdir.path} is not finished: go on with --mode=train")
        kind = ShapesSplit if config.data.source == "shapes" else Split
        keys = tuple(str(key) for key in support["keys"])
        self.support = kind(Path(str(support["root"])), keys, support["labels"])
        cache = None
        if model.uses_cache:
            cache = VisualCache(
                jnp.asarray(support["image"]),
                jnp.asarray(support["object"]) if "object" in support else None,
                jnp.asarray(support["labels"]),
                jnp.ones(len(keys), bool),
            )
        self.inference = Inference(
            model, self.clip.image_encoder, cache, self.results.choices, self.results.temperature
        )
        self.finds_objects = model.finds_objects
        self.uses_cache = model.uses_cache
        self.title = model.title
        self._templates = config.data.templates

    def predict(self, images: Photo | Sequence[Photo], top_k: int = 5) -> list[Prediction]:
        """Classifies photos.

        Args:
            images: Paths, PIL images or uint8 arrays [H, W, 3]; one or several. A folder stands
                for all images in it.
            top_k: Classes to name, at most all.
        Returns:
            One prediction a photo, in order.
        Raises:
            UserError: If a photo cannot be read, or top_k is below 1.
        """
        predictions = []
        for result in self.predict_each(images, top_k):
            if isinstance(result, UnreadableImage):
                raise result
            predictions.append(result)
        return predictions

    def predict_each(
        self, images: Photo | Sequence[Photo], top_k: int = 5
    ) -> Iterator[Prediction | UnreadableImage]:
        """As `predict`, but batch by batch, and a photo that cannot be read yields its error."""
        if top_k < 1:
            raise UserError(f"top_k is {top_k}: give 1 or more")
        named: list[tuple[str, Photo]] = []
        for image in [images] if isinstance(images, Photo) else images:
            if isinstance(image, str | Path):
                named += [(str(file), file) for file in photos_at(image)]
            else:
                named.append((f"image {len(named)}", image))
        for start in range(0, len(named), BATCH_SIZE):
            batch = named[start : start + BATCH_SIZE]
            crops = [self._crop_or_error(photo, name) for name, photo in batch]
            predictions = iter(
                self._predict_crops(
                    [
                        (name, crop)
                        for (name, _), crop in zip(batch, crops, strict=True)
                        if isinstance(crop, np.ndarray)
                    ],
                    top_k,
                )
            )
            for crop in crops:
                yield next(predictions) if isinstance(crop, np.ndarray) else crop

    def crop(self, photo: Photo, name: str) -> UInt8[np.ndarray, "H W 3"]:
        """What the model sees of a photo; raises `UnreadableImage`."""
        return self.clip.resize_and_crop(open_photo(photo, name))

    def text_features_of(self, class_name: str) -> Float[np.ndarray, "e"]:
        """The unit vector of a new class's name in the run's templates."""
        return np.asarray(class_text_features(self.clip, [class_name], self._templates)[0])

    def prediction(
        self,
        recognition: Recognition,
        row: int,
        name: str,
        top_k: int,
        extension: Extension | None = None,
    ) -> Prediction:
        """One row of what the model says, in words.

        Args:
            recognition: Of a batch.
            row: Of the photo in it.
            name: The photo's.
            top_k: Classes to name, at most all.
            extension: The one that it was recognised with.
        """
        names = self.class_names + (extension.class_names if extension else ())
        grid = self.clip.vision.grid
        probabilities = recognition.probabilities[row, : len(names)]
        best = np.argsort(-probabilities, kind="stable")[:top_k]
        maps, masks = recognition.attention_map, recognition.object_mask
        similar: tuple[Similar, ...] = ()
        if recognition.similar is not None:
            similarities, places = (column[row] for column in recognition.similar)
            similar = tuple(
                self._similar(int(place), float(similarity), extension)
                for place, similarity in zip(places, similarities, strict=True)
            )
        return Prediction(
            name=name,
            class_names=tuple(names[c] for c in best),
            probabilities=tuple(float(probabilities[c]) for c in best),
            attention_map=None if maps is None else np.asarray(maps[row]).reshape(grid),
            object_mask=None if masks is None else np.asarray(masks[row]).reshape(grid),
            similar=similar,
            logits=tuple(float(recognition.logits[row, c]) for c in best),
            contributions={
                part: tuple(float(values[row, c]) for c in best)
                for part, values in recognition.contributions.items()
            },
        )

    def _crop_or_error(
        self, photo: Photo, name: str
    ) -> UInt8[np.ndarray, "H W 3"] | UnreadableImage:
        try:
            return self.crop(photo, name)
        except UnreadableImage as error:
            return error

    def _predict_crops(
        self, crops: list[tuple[str, UInt8[np.ndarray, "H W 3"]]], top_k: int
    ) -> list[Prediction]:
        if not crops:
            return []
        size = 1 << (len(crops) - 1).bit_length()  # few shapes, few compilations
        features, _ = self.inference.encode(padded_batch([crop for _, crop in crops], size))
        recognition = self.inference.recognise(features)
        return [
            self.prediction(recognition, row, name, top_k) for row, (name, _) in enumerate(crops)
        ]

    def _similar(self, place: int, similarity: float, extension: Extension | None) -> Similar:
        added = place - len(self.support)
        if added < 0:
            label = self.support.labels[place]
            return Similar(place, self.support.keys[place], self.class_names[label], similarity)
        assert extension is not None
        photo = extension.photos[added]
        return Similar(place, photo.name, extension.class_names[photo.label], similarity)


def open_photo(photo: Photo, name: str) -> Image.Image:
    """A path, array or PIL image as an RGB image, the same for the same photo."""
    if isinstance(photo, str | Path):
        return decode_image(Path(photo), name)
    if isinstance(photo, Image.Image):
        return as_photo(photo, name)
    if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3:
        raise UserError(
            f"an array must be uint8 of shape [H, W, 3], found {photo.dtype} {list(photo.shape)}"
        )
    return as_photo(Image.fromarray(photo), name)


def load_classifier(workdir: str | Path, clip: str | Path | None = None) -> Classifier:
    """A finished run as a classifier.

    Args:
        workdir: The run's folder.
        clip: Where its backbone is now, a folder or hub id; None for where it was.
    Raises:
        UserError: If no finished run is there, or its backbone is gone or another.
    """
    return Classifier(Workdir(workdir), clip)


def fit(data: str | Path, /, *, workdir: str | Path | None = None, **settings: Any) -> Classifier:
    """Trains on photos and measures: `fit("~/photos").predict("new.jpg")`.

    Args:
        data: A folder of class folders, of train/val/test folders, or a .csv or .jsonl list; or a
            benchmark's name, such as "eurosat" (a folder of that name is "./eurosat").
        workdir: Where the run is kept; None makes a new temporary folder, private to the user.
        **settings: Fields of the config, such as `clip`, `shots`, `seed`, `epochs` or
            `data={"templates": ("a photo of a {}.",)}`. A benchmark lies where
            `data={"root": …, "source": …}` says. `shots` is 16 by default for a benchmark, for
            photos of one's own None, which takes all.
    Returns:
        The classifier; `results` holds the estimate of its accuracy.
    Raises:
        UserError: For every mistake in data or settings.
    """
    if data in BENCHMARKS:
        config = benchmark_config(str(data))
    else:
        config = get_config()
        config.benchmark = "folder"
        config.shots = placeholder(int)  # all there are
    fields = flatten(config.to_dict())
    unknown = flatten(settings).keys() - fields.keys()
    if unknown:
        raise UserError(f"unknown setting {sorted(unknown)}: choose from {sorted(fields)}")
    try:
        if "clip" in settings:
            settings["clip"] = os.fspath(settings["clip"])
        config.update(settings)
    except TypeError as error:
        raise UserError(str(error)) from error
    optional = {"shots", *(name for name, value in fields.items() if value is None)}
    empty = [n for n, v in flatten(config.to_dict()).items() if v is None and n not in optional]
    if empty:  # which a config takes for any field
        raise UserError(f"the setting {empty[0]} is None: give it a value or leave it out")
    if data not in BENCHMARKS:
        config.data.source = "folder"
        config.data.root = str(data)
    place = Workdir(workdir or tempfile.mkdtemp(prefix="fgvpl_"))
    try:
        train_and_evaluate(config, place)
    except BaseException:
        if workdir is None:
            with suppress(OSError):  # what was trained stays
                place.path.rmdir()
        raise
    return Classifier(place)
