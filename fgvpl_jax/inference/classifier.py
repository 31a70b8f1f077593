"""A trained run as a classifier, which predicts photos' classes and explains its predictions."""

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from fgvpl_jax.clip import load_clip
from fgvpl_jax.data import UnreadableImage
from fgvpl_jax.defaults import TOP_K
from fgvpl_jax.displays.labels import method_label
from fgvpl_jax.errors import UserError
from fgvpl_jax.inference.class_changes import ClassChanges, read_changes
from fgvpl_jax.inference.class_checks import AccuracyChange, trained_class_accuracy
from fgvpl_jax.inference.evidence import ClassEvidence, evidence_map, mean_colour
from fgvpl_jax.inference.final_model import load_final_model, unfinished
from fgvpl_jax.inference.photos import (
    NamedCrop,
    Photo,
    all_readable,
    named_photos,
    one_photo,
    open_photo,
    predict_batches,
)
from fgvpl_jax.inference.predictions import Belonging, ObjectLocation, Prediction, similar_photos
from fgvpl_jax.inference.programs import Inference, Recognition, padded_batch
from fgvpl_jax.inference.regions import Region, regions_of
from fgvpl_jax.recognition import class_text_features
from fgvpl_jax.runs.compiled_programs import keep_compiled_programs
from fgvpl_jax.runs.known_classes import read_known_classes
from fgvpl_jax.runs.results import RunResults
from fgvpl_jax.runs.settings import check_jax_settings
from fgvpl_jax.runs.workdir import Workdir


class Classifier:
    """A trained run that predicts, made by `load_classifier` or `fit`.

    Attributes:
        workdir: Folder of the run.
        trained_names: Names of the trained classes, in label order.
        changes: The classes that can be predicted, with those added, removed and renamed.
        support: The training photos. They are decoded only when needed, so they may be gone.
        results: Results of the run, such as `results.test_accuracy`.
        finds_objects: Whether its predictions have attention maps and object masks.
        connectivity: Connectivity of the object masks; see `object_mask`.
        clip: The backbone.
        uses_cache: Whether its predictions have similar photos, and classes can be added.
        title: The method's name in tables.
        inference: The device programs.
        model: The trained model.
        templates: Templates of the class names.
    """

    def __init__(self, workdir: Workdir, clip: str | Path | None = None):
        check_jax_settings()
        keep_compiled_programs()
        config = workdir.stored_config()
        if not workdir.results_file.exists():
            raise unfinished(workdir)
        self.workdir = workdir.path
        self.results = RunResults.read(workdir)
        self.clip = load_clip(config.clip if clip is None else clip)
        loaded = load_final_model(workdir, self.results, self.clip)
        model, cache, self.support = loaded.model, loaded.cache, loaded.support
        self.model = model
        self.trained_names = loaded.class_names
        self.changes = ClassChanges(self.trained_names)
        if workdir.classes_file.exists():
            self.changes = read_changes(workdir.classes_file)
        known = read_known_classes(workdir, self.results)
        self._known_threshold = None if known is None else float(known.threshold)
        self.inference = Inference(
            model,
            self.clip.image_encoder,
            model.frozen_encoder(self.clip, config),
            cache,
            self.results.choices,
            self.results.temperature,
            known,
        )
        self.finds_objects = model.finds_objects
        self.connectivity = config.connectivity
        self.uses_cache = model.uses_cache
        self.title = method_label(self.results.method)
        self.templates = tuple(config.data.templates)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes that can be predicted, the trained ones first, in label order."""
        return self.changes.class_names

    def add_class(self, name: str, photos: Photo | Iterable[Photo]) -> None:
        """Adds a class by its name and photos, without training.

        The name joins the class names and the photos join the training photos, as on the page.

        Args:
            name: Name of the new class.
            photos: Photos of it that `predict` takes; at most 64 of all added classes.
        Raises:
            UserError: If the method has no visual cache, the name is taken, a photo cannot be
                read, or there are too many classes or photos.
        """
        named = named_photos(photos)
        name = self.checked_class(self.changes, name, len(named))
        crops = [self.crop(photo, file) for file, photo in named]
        _, kept = self.inference.encode(padded_batch(crops), scored=False)
        assert kept is not None
        image, object_ = (None if x is None else np.asarray(x) for x in kept)
        assert image is not None  # every cache has image features
        rows = [
            (file, image[row], None if object_ is None else object_[row])
            for row, (file, _) in enumerate(named)
        ]
        self.changes = self.changes.with_class(name, self.text_features_of(name), rows)

    def checked_class(self, changes: ClassChanges, raw_name: str, num_photos: int) -> str:
        """Returns the name of a class that can be added to changed classes, as it is stored.

        Raises:
            UserError: If the method has no visual cache, the name cannot be used, or there are no
                photos, or too many photos or classes.
        """
        if not self.uses_cache:
            raise UserError(
                f"{self.results.trained_method} has no visual cache, so no class can be added: "
                "train a run with the class, or with the method fg_vpl or tar"
            )
        changes.check_photos(num_photos)
        return changes.checked_name(raw_name)

    def remove_class(self, name: str) -> None:
        """Removes a class, trained or added: it is not predicted any more.

        Raises:
            UserError: If there is no such class, or fewer than two would be left.
        """
        self.changes = self.changes.without_class(name)

    def rename_class(self, name: str, new_name: str) -> None:
        """Changes the name of a class in predictions; its scores stay the same.

        Raises:
            UserError: If there is no such class, or the new name is empty, too long or taken.
        """
        self.changes = self.changes.renamed(name, new_name)

    def trained_class_accuracy(self) -> AccuracyChange:
        """Returns the accuracy on photos of the trained classes before and after all changes.

        Raises:
            UserError: If the run's photos can no longer be read.
        """
        return trained_class_accuracy(self)

    def save(self, workdir: str | Path) -> None:
        """Writes the run, with the changes of its classes, to a new folder.

        `load_classifier`, `predict` and `serve` take the folder like that of any other run. Its
        `results.json` is that of the trained classes.

        Raises:
            UserError: If the folder exists already.
        """
        new = Workdir(workdir)
        if new.path.exists():
            raise UserError(f"the workdir {workdir} exists already: name a new folder")
        Workdir(self.workdir).copy_with_classes(new, self.changes.arrays())

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
        return all_readable(self.predict_each(images, top_k))

    def predict_each(
        self, images: Photo | Iterable[Photo], top_k: int = TOP_K
    ) -> Iterator[Prediction | UnreadableImage]:
        """Like `predict`, but batch by batch; yields the error of a photo that cannot be read."""
        return predict_batches(images, self.clip, partial(self.predict_crops, top_k=top_k))

    def evidence(self, image: Photo, class_name: str | None = None) -> ClassEvidence:
        """Returns where the evidence for a class is in a photo.

        This takes about 50 to 100 predictions: a photo is predicted once for each hidden window.

        Args:
            image: One photo that `predict` takes.
            class_name: The class; None for the most probable one.
        Raises:
            UserError: If the photo cannot be read or is not exactly one, or there is no such class.
        """
        name, photo = one_photo(image, "evidence is")
        crop = self.crop(photo, name)
        if class_name is None:
            class_name = self.predict_crops([(name, crop)], 1)[0].class_names[0]
        return self.evidence_in(crop, class_name)

    def evidence_in(
        self,
        crop: UInt8[np.ndarray, "H W 3"],
        class_name: str,
        changes: ClassChanges | None = None,
    ) -> ClassEvidence:
        """Like `evidence`, for a crop and with the classes that a user of the page changed.

        Raises:
            UserError: If there is no such class.
        """
        changes = changes or self.changes
        return ClassEvidence(
            class_name,
            evidence_map(
                self.inference,
                crop,
                changes.label_of(class_name),
                mean_colour(self.clip.image_encoder),
                self.clip.vision,
                changes.on_device,
            ),
        )

    def regions(self, image: Photo, top_k: int = TOP_K) -> tuple[Region, ...]:
        """Finds the objects in a photo, and returns a box and the classes of each, largest first.

        Each connected area of the map above Otsu's threshold is a region, up to 8. If there are
        several, the square around each is predicted, twice as wide as its box is long. Where no
        object stands out, the whole crop is the only region.

        Args:
            image: One photo that `predict` takes.
            top_k: Number of classes to return, at most all.
        Raises:
            UserError: If the method looks for no object, or this is not one photo that can be read.
        """
        name, photo = one_photo(image, "regions are")
        return regions_of(self, open_photo(photo, name), top_k)

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
        changes: ClassChanges | None = None,
    ) -> Prediction:
        """Returns one row of a recognition as a prediction.

        Args:
            recognition: Recognition of a batch.
            row: Index of the photo in the batch.
            name: Name of the photo.
            top_k: Number of classes to return, at most all.
            changes: The changed classes that the batch was recognised with; None for the
                classifier's own.
        """
        changes = changes or self.changes
        names, probabilities = changes.names, recognition.probabilities[row]
        labels = np.array([label for label, name in enumerate(names) if name is not None])
        best = labels[np.argsort(-probabilities[labels], kind="stable")][:top_k]
        location = None
        if recognition.locations is not None:
            grid = self.clip.vision.grid
            location = ObjectLocation(
                *(np.asarray(rows[row]).reshape(grid) for rows in recognition.locations)
            )
        scores, threshold = recognition.known_score, self._known_threshold
        belonging = None
        if scores is not None and threshold is not None:
            belonging = Belonging(float(scores[row]), threshold)
        return Prediction(
            name=name,
            class_names=tuple(str(names[c]) for c in best),
            probabilities=tuple(float(probabilities[c]) for c in best),
            location=location,
            similar=similar_photos(recognition, row, self.support, changes),
            logits=tuple(float(recognition.logits[row, c]) for c in best),
            contributions={
                part: tuple(float(values[row, c]) for c in best)
                for part, values in recognition.contributions.items()
            },
            belonging=belonging,
        )

    def predict_crops(
        self,
        crops: list[NamedCrop],
        top_k: int,
        changes: ClassChanges | None = None,
    ) -> list[Prediction]:
        """Like `predict`, for one batch of crops with names, and with changed classes."""
        if top_k < 1:
            raise UserError(f"top_k is {top_k}: give 1 or more")
        if not crops:
            return []
        changes = changes or self.changes
        features, _ = self.inference.encode(padded_batch([crop for _, crop in crops]))
        recognition = self.inference.recognise(features, changes.on_device)
        return [
            self.prediction(recognition, row, name, top_k, changes)
            for row, (name, _) in enumerate(crops)
        ]


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
