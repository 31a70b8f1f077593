"""A trained run as a classifier, which predicts photos' classes and explains its predictions."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8

from fgvpl_jax.clip import load_clip
from fgvpl_jax.data import UnreadableImage
from fgvpl_jax.defaults import TOP_K
from fgvpl_jax.displays.labels import method_label
from fgvpl_jax.errors import UserError
from fgvpl_jax.inference.added_classes import AddedClasses
from fgvpl_jax.inference.evidence import ClassEvidence, evidence_map, mean_colour
from fgvpl_jax.inference.final_model import load_final_model, unfinished
from fgvpl_jax.inference.photos import Photo, named_photos, open_photo
from fgvpl_jax.inference.programs import Inference, Recognition, padded_batch
from fgvpl_jax.recognition import class_text_features
from fgvpl_jax.runs.results import RunResults
from fgvpl_jax.runs.settings import check_jax_settings
from fgvpl_jax.runs.workdir import Workdir

BATCH_SIZE = 64


@dataclass(frozen=True)
class Similar:
    """A training photo that is similar to the predicted one.

    Attributes:
        place: Its index in the classifier's `support`; photos of added classes come after those.
        key: Its path below the folder of the training photos; for an added photo, its file's name.
        class_name: Its class.
        similarity: Cosine similarity of the adapted image features (Eq. 17).
    """

    place: int
    key: str
    class_name: str
    similarity: float


@dataclass(frozen=True)
class ObjectLocation:
    """Location of the object in a photo, by patch of the centred crop that the model saw.

    Attributes:
        attention_map: Significance of each patch.
        object_mask: True for the patches of the object; True for all patches where no object
            stands out.
    """

    attention_map: Float[np.ndarray, "gh gw"]
    object_mask: Bool[np.ndarray, "gh gw"]

    @property
    def object_found(self) -> bool:
        """Whether an object stands out, so that the mask is a part of the crop."""
        return not self.object_mask.all()


@dataclass(frozen=True)
class Prediction:
    """The classifier's prediction for one photo, best class first.

    Attributes:
        name: The photo's path; its index in the list if it was given without a path.
        class_names: The k most probable classes.
        probabilities: Calibrated probabilities of these classes; over all classes they sum to 1.
        location: Location of the object; None for a method that looks for no object.
        similar: The most similar training photos; empty for a method without a visual cache.
        logits: Logits of these classes, before the temperature.
        contributions: The summands of these logits, one for each feature and pathway, under the
            names of `Method.contributions`.
    """

    name: str
    class_names: tuple[str, ...]
    probabilities: tuple[float, ...]
    location: ObjectLocation | None
    similar: tuple[Similar, ...]
    logits: tuple[float, ...]
    contributions: dict[str, tuple[float, ...]]


class Classifier:
    """A trained run that predicts, made by `load_classifier` or `fit`.

    Attributes:
        workdir: Folder of the run.
        class_names: The classes, in label order.
        support: The training photos. They are decoded only when needed, so they may be gone.
        results: Results of the run, such as `results.test_accuracy`.
        finds_objects: Whether its predictions have attention maps and object masks.
        clip: The backbone.
        uses_cache: Whether its predictions have similar photos, and classes can be added.
        title: The method's name in tables.
        inference: The device programs.
        model: The trained model.
        templates: Templates of the class names.
    """

    def __init__(self, workdir: Workdir, clip: str | Path | None = None):
        check_jax_settings()
        config = workdir.stored_config()
        if not workdir.results_file.exists():
            raise unfinished(workdir)
        self.workdir = workdir.path
        self.results = RunResults.read(workdir)
        self.clip = load_clip(config.clip if clip is None else clip)
        loaded = load_final_model(workdir, self.results, self.clip)
        model, cache, self.class_names = loaded.model, loaded.cache, loaded.class_names
        self.model, self.support = model, loaded.support
        self.inference = Inference(
            model,
            model.frozen_encoder(self.clip, config),
            cache,
            self.results.choices,
            self.results.temperature,
        )
        self.finds_objects = model.finds_objects
        self.uses_cache = model.uses_cache
        self.title = method_label(self.results.method)
        self.templates = tuple(config.data.templates)

    def predict(self, images: Photo | Iterable[Photo], top_k: int = TOP_K) -> list[Prediction]:
        """Classifies photos.

        Args:
            images: Paths, bytes of image files, files opened with "rb", PIL images, or uint8
                arrays [H, W, 3] of NumPy or jax; one or several. A folder stands for all images in
                it.
            top_k: Number of classes to return, at most all.
        Returns:
            One prediction for each photo, in order.
        Raises:
            UserError: If a photo cannot be read, something else is given, or top_k is below 1.
        """
        predictions = []
        for result in self.predict_each(images, top_k):
            if isinstance(result, UnreadableImage):
                raise result
            predictions.append(result)
        return predictions

    def predict_each(
        self, images: Photo | Iterable[Photo], top_k: int = TOP_K
    ) -> Iterator[Prediction | UnreadableImage]:
        """Like `predict`, but batch by batch; yields the error of a photo that cannot be read."""
        if top_k < 1:
            raise UserError(f"top_k is {top_k}: give 1 or more")
        named = named_photos(images)
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

    def evidence(self, image: Photo, class_name: str | None = None) -> ClassEvidence:
        """Returns where the evidence for a class is in a photo.

        This takes about 50 to 100 predictions: a photo is predicted once for each hidden window.

        Args:
            image: One photo that `predict` takes.
            class_name: The class; None for the most probable one.
        Raises:
            UserError: If the photo cannot be read or is not exactly one, or there is no such class.
        """
        named = named_photos(image)
        if len(named) != 1:
            raise UserError(f"evidence is for one photo, not for {len(named)}: give one")
        ((name, photo),) = named
        crop = self.crop(photo, name)
        if class_name is None:
            class_name = self._predict_crops([(name, crop)], 1)[0].class_names[0]
        return self.evidence_in(crop, class_name)

    def evidence_in(
        self,
        crop: UInt8[np.ndarray, "H W 3"],
        class_name: str,
        added: AddedClasses | None = None,
    ) -> ClassEvidence:
        """Like `evidence`, for a crop and with the classes that a user added.

        Raises:
            UserError: If there is no such class.
        """
        names = self.class_names + (added.class_names if added else ())
        if class_name not in names:
            raise UserError(f"there is no class {class_name!r}: choose one of {', '.join(names)}")
        return ClassEvidence(
            class_name,
            evidence_map(
                self.inference,
                crop,
                names.index(class_name),
                mean_colour(self.clip.image_encoder),
                self.clip.vision,
                None if added is None else added.on_device,
            ),
        )

    def crop(self, photo: Photo, name: str) -> UInt8[np.ndarray, "H W 3"]:
        """Returns the centred crop that the model sees of a photo; raises `UnreadableImage`."""
        return self.clip.resize_and_crop(open_photo(photo, name))

    def text_features_of(self, class_name: str) -> Float[np.ndarray, "e"]:
        """Returns the unit vector of a new class's name in the run's templates."""
        return np.asarray(class_text_features(self.clip, [class_name], self.templates)[0])

    def prediction(
        self,
        recognition: Recognition,
        row: int,
        name: str,
        top_k: int,
        added: AddedClasses | None = None,
    ) -> Prediction:
        """Returns one row of a recognition as a prediction.

        Args:
            recognition: Recognition of a batch.
            row: Index of the photo in the batch.
            name: Name of the photo.
            top_k: Number of classes to return, at most all.
            added: The added classes that the batch was recognised with.
        """
        names = self.class_names + (added.class_names if added else ())
        probabilities = recognition.probabilities[row, : len(names)]
        best = np.argsort(-probabilities, kind="stable")[:top_k]
        location = None
        if recognition.locations is not None:
            grid = self.clip.vision.grid
            location = ObjectLocation(
                *(np.asarray(rows[row]).reshape(grid) for rows in recognition.locations)
            )
        similar: tuple[Similar, ...] = ()
        if recognition.similar is not None:
            similarities, places = (column[row] for column in recognition.similar)
            similar = tuple(
                self._similar(int(place), float(similarity), added)
                for place, similarity in zip(places, similarities, strict=True)
            )
        return Prediction(
            name=name,
            class_names=tuple(names[c] for c in best),
            probabilities=tuple(float(probabilities[c]) for c in best),
            location=location,
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
        size = 1 << (len(crops) - 1).bit_length()  # powers of two: few compilations
        features, _ = self.inference.encode(padded_batch([crop for _, crop in crops], size))
        recognition = self.inference.recognise(features)
        return [
            self.prediction(recognition, row, name, top_k) for row, (name, _) in enumerate(crops)
        ]

    def _similar(self, place: int, similarity: float, added: AddedClasses | None) -> Similar:
        number = place - len(self.support)
        if number < 0:
            label = self.support.labels[place]
            return Similar(place, self.support.keys[place], self.class_names[label], similarity)
        assert added is not None
        photo = added.photos[number]
        return Similar(place, photo.name, added.class_names[photo.label], similarity)


def load_classifier(workdir: str | Path, clip: str | Path | None = None) -> Classifier:
    """Loads a finished run as a classifier.

    Args:
        workdir: Folder of the run.
        clip: Folder or hub id where its backbone is now; None if it has not moved.
    Raises:
        UserError: If the folder holds no finished run, or its backbone is missing or differs from
            the one it was trained with.
    """
    return Classifier(Workdir(workdir), clip)
