"""Classes that a person adds to a trained classifier: a name and photos, no training."""

from dataclasses import dataclass, field
from functools import cached_property

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from fgvpl_jax.data.splits import class_name, same_name
from fgvpl_jax.errors import UserError
from fgvpl_jax.inference.programs import AddedClasses
from fgvpl_jax.recognition import VisualCache

# Arrays have these sizes however many there are, so that no addition compiles anything.
MOST_CLASSES = 8
MOST_PHOTOS = 64
LONGEST_NAME = 60


@dataclass(frozen=True)
class AddedPhoto:
    """One photo of an added class: what the cache keeps of it, raw.

    Attributes:
        name: Of its file.
        label: Of its class, counted from the first added one.
        image: f(x).
        object: Mean of its object patches; None for a method without objects.
    """

    name: str
    label: int
    image: Float[np.ndarray, "e"]
    object: Float[np.ndarray, "e"] | None


@dataclass(frozen=True)
class Extension:
    """What was added to a classifier; itself never changed.

    Attributes:
        trained_names: The classifier's classes.
        class_names: The added ones.
        text_features: A unit vector of each.
        photos: Of all of them.
    """

    trained_names: tuple[str, ...]
    class_names: tuple[str, ...] = ()
    text_features: tuple[Float[np.ndarray, "e"], ...] = ()
    photos: tuple[AddedPhoto, ...] = field(default=(), repr=False)

    def check(self, raw_name: str, num_photos: int) -> str:
        """The name as the class will have it.

        Raises:
            UserError: If it is none, too long or taken, or photos are missing or too many.
        """
        name = class_name(raw_name)
        if len(name) > LONGEST_NAME:
            raise UserError(f"the name has {len(name)} letters: give it at most {LONGEST_NAME}")
        for taken in (*self.trained_names, *self.class_names):
            if same_name(taken) == same_name(name):
                raise UserError(f"there is a class {taken!r} already: choose another name")
        if len(self.class_names) == MOST_CLASSES:
            raise UserError(f"{MOST_CLASSES} classes are added already: remove them, or train")
        if not num_photos:
            raise UserError("no photo of the new class: add at least one")
        if len(self.photos) + num_photos > MOST_PHOTOS:
            raise UserError(
                f"{num_photos} photos beside {len(self.photos)} added before: at most "
                f"{MOST_PHOTOS} fit, so train with them instead"
            )
        return name

    def with_class(
        self,
        name: str,
        text_features: Float[np.ndarray, "e"],
        photos: list[tuple[str, Float[np.ndarray, "e"], Float[np.ndarray, "e"] | None]],
    ) -> "Extension":
        """One class more.

        Args:
            name: From `check`.
            text_features: Of the name in the run's templates.
            photos: Name, image feature and object feature of each.
        """
        label = len(self.class_names)
        added = [AddedPhoto(file, label, image, object_) for file, image, object_ in photos]
        return Extension(
            self.trained_names,
            (*self.class_names, name),
            (*self.text_features, text_features),
            (*self.photos, *added),
        )

    @cached_property
    def on_device(self) -> AddedClasses:
        """As the model takes it; there is at least one class."""
        trained = len(self.trained_names)
        has_objects = self.photos[0].object is not None
        return AddedClasses(
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
    """Labels among all classes, the trained ones first."""
    return np.array([trained + photo.label for photo in photos], np.int32)


def padded(rows, size: int):
    """The rows on the device, with zeros up to `size`."""
    array = np.asarray(rows)
    return jnp.asarray(np.pad(array, [(0, size - len(array)), *[(0, 0)] * (array.ndim - 1)]))
