"""The prediction for one photo, with the object's location and similar training photos."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from fgvpl_jax.data import Split
from fgvpl_jax.inference.class_changes import ClassChanges
from fgvpl_jax.inference.programs import Recognition


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
class Belonging:
    """Fit of a photo to the trained classes together, by frozen CLIP's features.

    Attributes:
        score: 0 at the mean of a class, lower far from all classes.
        threshold: Score that most new photos of the classes reach; `RunResults.none_of_these` says
            how many.
    """

    score: float
    threshold: float

    @property
    def none_of_these(self) -> bool:
        """Whether the score is below the threshold: the photo probably belongs to no class."""
        return self.score < self.threshold

    @property
    def content(self) -> dict[str, bool | float]:
        """Score, threshold and the decision as JSON content."""
        return {
            "none_of_these": self.none_of_these,
            "score": round(self.score, 6),
            "threshold": round(self.threshold, 6),
        }


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
        belonging: How well the photo fits the classes together; None for a run without a threshold
            (see `RunResults.none_of_these`), and with changed classes.
    """

    name: str
    class_names: tuple[str, ...]
    probabilities: tuple[float, ...]
    location: ObjectLocation | None
    similar: tuple[Similar, ...]
    logits: tuple[float, ...]
    contributions: dict[str, tuple[float, ...]]
    belonging: Belonging | None


def similar_photos(
    recognition: Recognition, row: int, support: Split, changes: ClassChanges
) -> tuple[Similar, ...]:
    """Returns the training photos that are most similar to one photo of a batch.

    Args:
        recognition: Recognition of the batch.
        row: Index of the photo in the batch.
        support: The training photos.
        changes: The changed classes.
    """
    if recognition.similar is None:
        return ()
    found = []
    for similarity, index in zip(*(column[row] for column in recognition.similar), strict=True):
        place, number = int(index), int(index) - len(support)
        if not np.isfinite(similarity):
            continue
        if number < 0:
            key, name = support.keys[place], str(changes.names[support.labels[place]])
        else:
            photo = changes.photos[number]
            key, name = photo.name, changes.added_names[photo.label]
        found.append(Similar(place, key, name, float(similarity)))
    return tuple(found)
