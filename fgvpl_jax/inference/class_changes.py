"""Classes that are added to a trained classifier, removed or renamed, without training."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Array, Float, Shaped
from numpy.typing import ArrayLike

from fgvpl_jax.data.splits import class_name, same_name
from fgvpl_jax.errors import UserError
from fgvpl_jax.files import read_arrays
from fgvpl_jax.inference.programs import AddedClassArrays, ChangedClassArrays
from fgvpl_jax.recognition import VisualCache
from fgvpl_jax.variables import to_device

# Arrays always have these sizes, so that adding a class or a photo compiles nothing.
MOST_CLASSES = 8
MOST_PHOTOS = 64
LONGEST_NAME = 60
LEAST_CLASSES = 2


@dataclass(frozen=True)
class AddedPhoto:
    """One photo of an added class, with the raw features that the cache stores.

    Attributes:
        name: Name of the photo's file.
        label: Label of its class, counted from the first added class.
        image: f(x).
        object: Mean of its object patches; None for a method without objects.
    """

    name: str
    label: int
    image: Float[np.ndarray, "e"]
    object: Float[np.ndarray, "e"] | None


@dataclass(frozen=True)
class ClassChanges:
    """Changes of a classifier's classes; the trained model itself stays unchanged.

    Attributes:
        trained_names: Name of each trained class, in label order; None for one that was removed.
        added_names: Names of the added classes, whose labels follow those of the trained classes.
        text_features: One unit vector for each added class.
        photos: Photos of all added classes.
    """

    trained_names: tuple[str | None, ...]
    added_names: tuple[str, ...] = ()
    text_features: tuple[Float[np.ndarray, "e"], ...] = ()
    photos: tuple[AddedPhoto, ...] = field(default=(), repr=False)

    @property
    def names(self) -> tuple[str | None, ...]:
        """Name of each class, in label order; None for one that was removed."""
        return self.trained_names + self.added_names

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes that can be predicted."""
        return tuple(name for name in self.names if name is not None)

    def label_of(self, name: str) -> int:
        """Returns the label of a class.

        Raises:
            UserError: If there is no such class.
        """
        if name not in self.class_names:
            raise UserError(
                f"there is no class {name!r}: choose one of {', '.join(self.class_names)}"
            )
        return self.names.index(name)

    def check_photos(self, num_photos: int) -> None:
        """Checks that a class with this number of photos can be added.

        Raises:
            UserError: If there are no photos, or too many photos or classes.
        """
        if len(self.added_names) == MOST_CLASSES:
            raise UserError(
                f"{MOST_CLASSES} classes are added already: remove them, or train a run with them"
            )
        if not num_photos:
            raise UserError("the new class has no photo: add at least one")
        if len(self.photos) + num_photos > MOST_PHOTOS:
            raise UserError(
                f"{num_photos} photos in addition to the {len(self.photos)} added before: at most "
                f"{MOST_PHOTOS} fit, so add fewer, or train a run with them"
            )

    def checked_name(self, raw_name: str) -> str:
        """Returns the name of a new class as it is stored.

        Raises:
            UserError: If the name is empty, too long or taken.
        """
        name = class_name(raw_name)
        if len(name) > LONGEST_NAME:
            raise UserError(f"the name has {len(name)} letters: give it at most {LONGEST_NAME}")
        for taken in self.class_names:
            if same_name(taken) == same_name(name):
                raise UserError(f"there is a class {taken!r} already: choose another name")
        return name

    def with_class(
        self,
        name: str,
        text_features: Float[np.ndarray, "e"],
        photos: Sequence[tuple[str, Float[np.ndarray, "e"], Float[np.ndarray, "e"] | None]],
    ) -> "ClassChanges":
        """Returns a copy with one more class.

        Args:
            name: Name that `checked_name` returned.
            text_features: Unit vector of the name in the run's templates.
            photos: Name, image feature and object feature of each photo.
        """
        label = len(self.added_names)
        added = [AddedPhoto(file, label, image, object_) for file, image, object_ in photos]
        return replace(
            self,
            added_names=(*self.added_names, name),
            text_features=(*self.text_features, text_features),
            photos=(*self.photos, *added),
        )

    def without_class(self, name: str) -> "ClassChanges":
        """Returns a copy that cannot predict a class.

        Raises:
            UserError: If there is no such class, or fewer than two would be left.
        """
        label = self.label_of(name)
        if len(self.class_names) <= LEAST_CLASSES:
            raise UserError(
                f"without {name!r} fewer than {LEAST_CLASSES} classes would be left: add one first"
            )
        trained = len(self.trained_names)
        if label < trained:
            names = self.trained_names
            return replace(self, trained_names=(*names[:label], None, *names[label + 1 :]))
        number = label - trained
        return replace(
            self,
            added_names=self.added_names[:number] + self.added_names[number + 1 :],
            text_features=self.text_features[:number] + self.text_features[number + 1 :],
            photos=tuple(
                replace(photo, label=photo.label - (photo.label > number))
                for photo in self.photos
                if photo.label != number
            ),
        )

    def renamed(self, name: str, new_name: str) -> "ClassChanges":
        """Returns a copy in which a class has another name; its scores stay the same.

        Raises:
            UserError: If there is no such class, or the new name is empty, too long or taken.
        """
        label = self.label_of(name)
        others = replace(
            self,
            trained_names=tuple(None if n == name else n for n in self.trained_names),
            added_names=tuple(n for n in self.added_names if n != name),
        )
        names = list(self.names)
        names[label] = others.checked_name(new_name)
        trained = len(self.trained_names)
        return replace(
            self,
            trained_names=tuple(names[:trained]),
            added_names=tuple(n for n in names[trained:] if n is not None),
        )

    @cached_property
    def on_device(self) -> ChangedClassArrays | None:
        """The arrays that the device programs take; None where only names have changed."""
        trained = len(self.trained_names)
        is_predicted = np.array([name is not None for name in self.names])
        if not self.added_names:
            arrays = ChangedClassArrays(to_device(is_predicted, None), None)
            return None if is_predicted.all() else arrays
        has_objects = self.photos[0].object is not None
        labels = np.array([trained + photo.label for photo in self.photos], np.int32)
        added = AddedClassArrays(
            padded(self.text_features, MOST_CLASSES),
            VisualCache(
                padded([photo.image for photo in self.photos], MOST_PHOTOS),
                padded([photo.object for photo in self.photos], MOST_PHOTOS)
                if has_objects
                else None,
                padded(labels, MOST_PHOTOS),
                to_device(np.arange(MOST_PHOTOS) < len(self.photos), None),
            ),
        )
        return ChangedClassArrays(padded(is_predicted, trained + MOST_CLASSES), added)

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the changes as arrays, which `read_changes` reads from a file."""
        arrays = {
            "trained_names": np.array([name or "" for name in self.trained_names]),
            "added_names": np.array(self.added_names, np.str_),
        }
        if self.added_names:
            arrays |= {
                "text_features": np.stack(self.text_features),
                "names": np.array([photo.name for photo in self.photos]),
                "labels": np.array([photo.label for photo in self.photos]),
                "image": np.stack([photo.image for photo in self.photos]),
            }
            objects = [photo.object for photo in self.photos if photo.object is not None]
            if objects:
                arrays["object"] = np.stack(objects)
        return arrays


def read_changes(file: Path) -> ClassChanges:
    """Reads the changes that `Classifier.save` wrote.

    Raises:
        UserError: If the file is damaged.
    """
    try:
        arrays = read_arrays(file)
    except UserError as error:
        raise UserError(
            f"{file} is damaged: save the classifier again, or remove the file to return to the "
            "trained classes"
        ) from error
    trained = tuple(str(name) or None for name in arrays["trained_names"])
    changes = ClassChanges(trained)
    for label, name in enumerate(arrays["added_names"]):
        rows = np.flatnonzero(arrays["labels"] == label)
        photos = [
            (
                str(arrays["names"][row]),
                arrays["image"][row],
                arrays["object"][row] if "object" in arrays else None,
            )
            for row in rows
        ]
        changes = changes.with_class(str(name), arrays["text_features"][label], photos)
    return changes


def padded(rows: Sequence[ArrayLike | None] | np.ndarray, size: int) -> Shaped[Array, "size ..."]:
    """Puts the rows on the device, with zeros up to `size` rows."""
    array = np.asarray(rows)
    padding = [(0, size - len(array)), *[(0, 0)] * (array.ndim - 1)]
    return to_device(np.pad(array, padding), None)
