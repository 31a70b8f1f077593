"""Classes that a user adds to a trained classifier by a name and photos, without training."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped
from numpy.typing import ArrayLike

from fgvpl_jax.data.splits import class_name, same_name
from fgvpl_jax.errors import UserError
from fgvpl_jax.inference.programs import AddedClassArrays
from fgvpl_jax.recognition import VisualCache

# Arrays always have these sizes, so that adding a class or a photo compiles nothing.
MOST_CLASSES = 8
MOST_PHOTOS = 64
LONGEST_NAME = 60


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
class AddedClasses:
    """The classes added to a classifier, which itself stays unchanged.

    Attributes:
        trained_names: Names of the classifier's own classes.
        class_names: Names of the added classes.
        text_features: One unit vector for each added class.
        photos: Photos of all added classes.
    """

    trained_names: tuple[str, ...]
    class_names: tuple[str, ...] = ()
    text_features: tuple[Float[np.ndarray, "e"], ...] = ()
    photos: tuple[AddedPhoto, ...] = field(default=(), repr=False)

    def check(self, raw_name: str, num_photos: int) -> str:
        """Checks a new class and returns its name as it will be stored.

        Raises:
            UserError: If the name is empty, too long or taken, or if there are no photos or too
                many.
        """
        name = class_name(raw_name)
        if len(name) > LONGEST_NAME:
            raise UserError(f"the name has {len(name)} letters: give it at most {LONGEST_NAME}")
        for taken in (*self.trained_names, *self.class_names):
            if same_name(taken) == same_name(name):
                raise UserError(f"there is a class {taken!r} already: choose another name")
        if len(self.class_names) == MOST_CLASSES:
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
        return name

    def with_class(
        self,
        name: str,
        text_features: Float[np.ndarray, "e"],
        photos: list[tuple[str, Float[np.ndarray, "e"], Float[np.ndarray, "e"] | None]],
    ) -> "AddedClasses":
        """Returns a copy with one more class.

        Args:
            name: Name that `check` returned.
            text_features: Unit vector of the name in the run's templates.
            photos: Name, image feature and object feature of each photo.
        """
        label = len(self.class_names)
        added = [AddedPhoto(file, label, image, object_) for file, image, object_ in photos]
        return AddedClasses(
            self.trained_names,
            (*self.class_names, name),
            (*self.text_features, text_features),
            (*self.photos, *added),
        )

    @cached_property
    def on_device(self) -> AddedClassArrays:
        """The padded arrays that the model takes; needs at least one added class."""
        trained = len(self.trained_names)
        has_objects = self.photos[0].object is not None
        return AddedClassArrays(
            padded(self.text_features, MOST_CLASSES),
            jnp.int32(len(self.class_names)),
            VisualCache(
                padded([photo.image for photo in self.photos], MOST_PHOTOS),
                padded([photo.object for photo in self.photos], MOST_PHOTOS)
                if has_objects
                else None,
                padded(labels_after(trained, self.photos), MOST_PHOTOS),
                jnp.arange(MOST_PHOTOS) < len(self.photos),
            ),
        )


def labels_after(trained: int, photos: tuple[AddedPhoto, ...]) -> Int[np.ndarray, "a"]:
    """Returns the photos' labels among all classes, the trained classes first."""
    return np.array([trained + photo.label for photo in photos], np.int32)


def padded(rows: Sequence[ArrayLike | None] | np.ndarray, size: int) -> Shaped[Array, "size ..."]:
    """Puts the rows on the device, with zeros up to `size` rows."""
    array = np.asarray(rows)
    return jnp.asarray(np.pad(array, [(0, size - len(array)), *[(0, 0)] * (array.ndim - 1)]))
