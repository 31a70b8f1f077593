"""Pictures of a trained run's right and wrong predictions, drawn as `predict` draws them."""

import numpy as np
from jaxtyping import Bool, Int

from fgvpl_jax.errors import UserError
from fgvpl_jax.evaluation import SavedPredictions
from fgvpl_jax.inference.classifier import load_classifier
from fgvpl_jax.inference.predict import overlay_of
from fgvpl_jax.reports.document import Picture
from fgvpl_jax.reports.records import RunRecord
from fgvpl_jax.runs.data_loading import load_dataset
from fgvpl_jax.runs.workdir import Workdir

PICTURES_EACH = 3
NAMED_CLASSES = 3


def draw_examples(record: RunRecord, saved: SavedPredictions) -> tuple[list[Picture], str]:
    """Draws the test images with the most confident predictions, right and wrong ones.

    Args:
        record: Run whose predictions are drawn.
        saved: Predictions that the run saved.
    Returns:
        The pictures and a line about them. Without pictures the line gives the reason: the model
        was not kept, or the backbone or the data are no longer at their place.
    """
    workdir = Workdir(record.folder)
    if not workdir.checkpoints.is_dir() or not workdir.support_file.exists():
        return [], f"No pictures: the model of {record.folder} was not kept."
    try:
        test = load_dataset(workdir.stored_config()).test
        if test is None or len(test) <= saved.indices.max():
            raise UserError("the test images are not those that the run used")
        if not np.array_equal(test.labels[saved.indices], saved.labels):
            raise UserError("the test images are not those that the run used")
        classifier = load_classifier(record.folder)
        pictures = []
        right = saved.predicted == saved.labels
        for kind, which in (("right", right), ("wrong", ~right)):
            for number, place in enumerate(most_confident(saved, which), start=1):
                index = int(saved.indices[place])
                image = test.image(index)
                (prediction,) = classifier.predict(image, top_k=NAMED_CLASSES)
                file = f"{record.benchmark}_{record.backbone}_{kind}_{number}.jpg".replace("/", "-")
                true, predicted = (
                    saved.class_names[labels[place]] for labels in (saved.labels, saved.predicted)
                )
                caption = (
                    f"right: {predicted}"
                    if kind == "right"
                    else f"wrong: {true}, mistaken for {predicted}"
                )
                overlay = overlay_of(classifier, image, prediction)
                pictures.append(Picture(file, f"{caption} ({test.keys[index]})", overlay))
    except (UserError, OSError) as error:
        return [], f"No pictures: {error}"
    return pictures, (
        "The most confident predictions, right and wrong ones, each of another true class: the "
        "part of the photo that the model saw, its attention map, the object's patches, and the "
        "most similar training photos."
    )


def most_confident(saved: SavedPredictions, which: Bool[np.ndarray, "N"]) -> Int[np.ndarray, "n"]:
    """Returns positions of the most confident predictions, at most one for each true class."""
    order = np.flatnonzero(which)[np.argsort(-saved.confidence[which], kind="stable")]
    _, first = np.unique(saved.labels[order], return_index=True)
    return order[np.sort(first)][:PICTURES_EACH]
