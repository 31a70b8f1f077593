"""Right and wrong answers of a trained run, drawn as `predict` draws them."""

from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from fgvpl_jax.errors import UserError
from fgvpl_jax.evaluation import Answers
from fgvpl_jax.inference.classifier import load_classifier
from fgvpl_jax.inference.predict import overlay_of
from fgvpl_jax.reports.document import Picture
from fgvpl_jax.reports.records import RunRecord
from fgvpl_jax.runs.data_loading import load_dataset
from fgvpl_jax.runs.workdir import Workdir

PICTURES_EACH = 3
NAMED_CLASSES = 3


def draw_answers(record: RunRecord, answers: Answers, out: Path) -> tuple[list[Picture], str]:
    """Draws the test images that a run was surest of, right ones and wrong ones.

    Args:
        record: A run.
        answers: What it kept of its answers.
        out: Gets the files.
    Returns:
        The pictures, and a line on them, or on why there are none: the model was not kept, or
        backbone or data are not where they were.
    """
    workdir = Workdir(record.folder)
    if not workdir.checkpoints.is_dir() or not workdir.support_file.exists():
        return [], f"No pictures: the model of {record.folder} was not kept."
    try:
        test = load_dataset(workdir.stored_config()).test
        if test is None or len(test) <= answers.indices.max():
            raise UserError("the test images are not those that the run saw")
        if not np.array_equal(test.labels[answers.indices], answers.labels):
            raise UserError("the test images are not those that the run saw")
        classifier = load_classifier(record.folder)
        pictures = []
        right = answers.predicted == answers.labels
        for kind, which in (("right", right), ("wrong", ~right)):
            for number, place in enumerate(surest(answers, which), start=1):
                index = int(answers.indices[place])
                image = test.image(index)
                (prediction,) = classifier.predict(image, top_k=NAMED_CLASSES)
                file = f"{record.benchmark}_{record.backbone}_{kind}_{number}.jpg".replace("/", "-")
                overlay_of(image, prediction, classifier.support).save(out / file, quality=85)
                true, said = (
                    answers.class_names[labels[place]]
                    for labels in (answers.labels, answers.predicted)
                )
                told = f"{kind}: {said}" if kind == "right" else f"wrong: {true}, taken for {said}"
                pictures.append(Picture(file, f"{told} ({test.keys[index]})"))
    except (UserError, OSError) as error:
        return [], f"No pictures: {error}"
    return pictures, (
        "Answers of highest confidence, right ones and wrong ones, each of another true class: the "
        "part of the photo that the model saw, its attention map, the object's patches, and the "
        "training photos that are most alike."
    )


def surest(answers: Answers, which: Bool[np.ndarray, "N"]) -> Int[np.ndarray, "n"]:
    """Places of the answers of highest confidence, at most one for each true class."""
    order = np.flatnonzero(which)[np.argsort(-answers.confidence[which], kind="stable")]
    _, first = np.unique(answers.labels[order], return_index=True)
    return order[np.sort(first)][:PICTURES_EACH]
