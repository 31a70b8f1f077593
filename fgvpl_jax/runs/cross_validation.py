"""Estimates the accuracy by cross-validation where there is no test split."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Bool, Float, Int

from fgvpl_jax.data import Split
from fgvpl_jax.displays.epoch_progress import epoch_progress
from fgvpl_jax.errors import UserError, first_of
from fgvpl_jax.files import read_arrays
from fgvpl_jax.methods import Choices, Method, method_named
from fgvpl_jax.methods.held_out import LIKELIHOOD, HeldOutLogits, SelectionRule
from fgvpl_jax.runs.run import Run
from fgvpl_jax.runs.selection import MOST_REPORTED, choose_on_validation, nearest_first
from fgvpl_jax.training import Checkpoints, is_writer, train, wait_for_all

MOST_NAMED = 5


class HeldOut(NamedTuple):
    """Logits of every support image, from a model that was not trained on it.

    Attributes:
        logits: Logits of the trained models, with the choices of the other folds.
        zero_shot_logits: Logits of plain CLIP.
        labels: True classes.
        choices: Choices by all folds together; None where validation images choose.
    """

    logits: Float[np.ndarray, "N k"]
    zero_shot_logits: Float[np.ndarray, "N k"]
    labels: Int[np.ndarray, "N"]
    choices: Choices | None


class FoldLogits(NamedTuple):
    """Logits of the images of one fold, as its file holds them.

    Attributes:
        logits: Logits with each of the candidates that the folds choose from; a file of an earlier
            version has no first axis.
        zero_shot_logits: Logits of plain CLIP.
        labels: True classes.
    """

    logits: Float[np.ndarray, "c n k"]
    zero_shot_logits: Float[np.ndarray, "n k"]
    labels: Int[np.ndarray, "n"]


def cross_validate(run: Run) -> None:
    """Trains once per fold on the images of the other folds, and predicts those of the fold.

    Each fold has its own folder in `cv/`, so that an interrupted estimate resumes where it stopped.

    Args:
        run: Run whose support images are split into folds, each class evenly.
    """
    choose_folds(run)
    # A fold's predictions are kept, its images not needed; all folds train on the same tokens.
    run = replace(run, image_cache=None, shared_tokens=run.tokens)
    folds = folds_of(run)
    support = run.few_shot.support
    counts = np.bincount(support.labels[np.unique(support.first_copies)])
    warn_of_single_photos(counts, run.dataset.class_names, "classes")
    for file in held_out_files(run):
        if not is_intact(file) and is_writer():
            file.unlink(missing_ok=True)
    wait_for_all("damaged folds")  # until process 0 has removed the last one
    for number, file in enumerate(held_out_files(run)):
        if not file.exists():
            print(f"fold {number + 1} of {folds.max() + 1}")
            file.parent.mkdir(parents=True, exist_ok=True)
            run.workdir.write_arrays(
                file, **predict_fold(run, folds == number, file.parent)._asdict()
            )
        if is_writer():
            shutil.rmtree(file.parent / "checkpoints", ignore_errors=True)  # no longer needed
    wait_for_all("folds")  # until process 0 has written the last file


def is_intact(file: Path) -> bool:
    """Returns whether a file of arrays exists and is intact; warns if it is damaged."""
    if not file.exists():
        return False
    try:
        read_arrays(file)
    except UserError as error:
        logging.warning("%s", error)
        return False
    return True


def warn_of_single_photos(counts: Int[np.ndarray, "k"], names: tuple[str, ...], kind: str) -> None:
    """Warns of classes for which the estimate is too low, as they have a single photo.

    Args:
        counts: Number of photos of each class.
        names: Names of the classes.
        kind: Noun for them in the message: "classes" or "labels".
    """
    single = [names[label] for label in np.flatnonzero(counts == 1)]
    if single:
        logging.warning(
            "%d %s have a single photo, or copies of one, held out without one to train on: %s; "
            "the estimate is too low for them, add photos",
            len(single),
            kind,
            first_of(single, MOST_NAMED),
        )


def read_held_out(run: Run) -> HeldOut:
    """Reads the predictions that `cross_validate` wrote, of all folds.

    Raises:
        UserError: If a fold is missing.
    """
    parts = []
    for file in held_out_files(run):
        if not file.exists():
            raise UserError(f"{file} is missing: train again with the same config and workdir")
        parts.append(FoldLogits(**read_arrays(file)))
    return chosen_by_folds(parts, candidates_of_folds(run), run.config.selection_rule)


def chosen_by_folds(
    parts: Sequence[FoldLogits], candidates: Sequence[Choices], rule: str
) -> HeldOut:
    """Chooses each fold's candidate by the photos of the other folds, and one by all photos.

    No photo of a fold chooses the candidate that predicts it, so the choice does not flatter the
    estimate.

    Args:
        parts: Logits of all folds.
        candidates: The candidates of their logits; a single one leaves no choice.
        rule: Value of `config.selection_rule`.
    """
    labels = np.concatenate([part.labels for part in parts])
    zero_shot_logits = np.concatenate([part.zero_shot_logits for part in parts])
    if len(candidates) == 1:
        logits = [part.logits.reshape(part.zero_shot_logits.shape) for part in parts]
        return HeldOut(np.concatenate(logits), zero_shot_logits, labels, None)

    def best(chosen_from: Sequence[FoldLogits]) -> int:
        truth = np.concatenate([part.labels for part in chosen_from])
        nobody = np.empty(0, np.int64)
        selection = SelectionRule(rule, nobody, nobody, truth)
        columns = np.concatenate([part.logits for part in chosen_from], axis=1)
        nothing = np.empty((0, columns.shape[2]))
        return selection.choose([selection.losses(HeldOutLogits(nothing, c)) for c in columns])

    logits = [part.logits[best([other for other in parts if other is not part])] for part in parts]
    return HeldOut(np.concatenate(logits), zero_shot_logits, labels, candidates[best(parts)])


def candidates_of_folds(run: Run) -> Sequence[Choices]:
    """Returns the candidates that the folds choose from: one where validation images choose.

    It is also one for a method with very many candidates, whose logits would take too much space,
    and for folds of an earlier version.
    """
    method, config = method_named(run.config.method), run.config
    start, candidates = method.starting_choices(config), method.candidates(config)
    if run.few_shot.validation is not None or len(candidates) > MOST_REPORTED:
        return [start]
    files = [file for file in held_out_files(run) if file.exists()]
    if any(read_arrays(file)["logits"].ndim == 2 for file in files):
        return [start]
    return nearest_first(candidates, start) if config.selection_rule == LIKELIHOOD else candidates


def choose_folds(run: Run) -> None:
    """Writes the folds to a file, if there are few photos per class or near-copies among them.

    Copies are in one fold: the accuracy on a copy of a training image would be too high. Runs that
    earlier versions began keep their folds.
    """
    file = folds_file(run)
    support, config = run.few_shot.support, run.config
    is_begun = any(run.workdir.folds.glob("fold_*/*")) or run.workdir.candidates.exists()
    if not is_intact(file) and (file.exists() or not is_begun):
        different = support.labels[np.unique(support.first_copies)]
        count = number_of_folds(different, config.cv_folds)
        if support.copies is not None or count < config.cv_folds:
            folds = stratified_folds(support.labels, count, config.seed, support.first_copies)
            file.parent.mkdir(parents=True, exist_ok=True)
            run.workdir.write_arrays(file, folds=folds)
    wait_for_all("choice of folds")


def number_of_folds(labels: Int[np.ndarray, "n"], most: int) -> int:
    """Returns the number of folds: `most`, or fewer if most classes have fewer photos.

    With four folds and two photos of each class, half of the classes would have one photo left to
    train on, and all held-out photos would be of these, which are at a disadvantage. With two
    folds, all classes have one left. Classes of one photo lose all of it in any case.

    Args:
        labels: Class of each different photo.
        most: Value of `config.cv_folds`.
    """
    counts = np.bincount(labels)
    typical = int(np.median(counts[counts > 0]))
    return min(most, typical) if typical > 1 else most


def folds_file(run: Run) -> Path:
    """Returns the file of the folds; without it, `cv_folds` and the labels determine them."""
    return run.workdir.folds / "folds.npz"


def folds_of(run: Run) -> Int[np.ndarray, "s"]:
    """Returns the fold of each support image."""
    if folds_file(run).exists():
        return read_arrays(folds_file(run))["folds"]
    return stratified_folds(run.few_shot.support.labels, run.config.cv_folds, run.config.seed)


def held_out_files(run: Run) -> list[Path]:
    """Returns the files that hold the predictions, one per fold."""
    count = folds_of(run).max() + 1
    return [run.workdir.folds / f"fold_{i + 1}" / "held_out.npz" for i in range(count)]


def predict_fold(run: Run, held_out: Bool[np.ndarray, "s"], folder: Path) -> FoldLogits:
    """Trains on the support images outside the fold and predicts those inside.

    Values such as λ are chosen for each fold as for the final model: on the validation images,
    which are in no fold. Without validation images, the fold is predicted with all candidates.
    """
    support = run.few_shot.support
    rest = support.select(np.flatnonzero(~held_out).tolist())
    evaluator, _ = run.evaluator(trained_on(run, rest, folder), rest)
    candidates = candidates_of_folds(run)
    if len(candidates) == 1:
        candidates = [choose_on_validation(evaluator, run).choices]
    fold = support.select(np.flatnonzero(held_out).tolist())
    found = [evaluator.predict(fold, choices, name="held out") for choices in candidates]
    logits = np.stack([predictions.logits for predictions in found])
    return FoldLogits(logits, found[0].zero_shot_logits, found[0].labels)


def trained_on(run: Run, support: Split, folder: Path) -> Method:
    """Returns the model of a run, trained on some of its support images.

    Args:
        run: The run.
        support: Images to train on.
        folder: Folder of the checkpoints, from which an interrupted training resumes.
    """
    model = run.new_model(support)
    with (
        Checkpoints(folder / "checkpoints", run.provenance, to_train=True) as checkpoints,
        epoch_progress(run.config.epochs) as show_epoch,
    ):
        train(
            model,
            support,
            run.training_setup,
            checkpoints=checkpoints,
            metrics_file=folder / "metrics.jsonl",
            on_epoch=(show_epoch,),
        )
    return model


def stratified_folds(
    labels: Int[np.ndarray, "N"],
    num_folds: int,
    seed: int,
    first: Int[np.ndarray, "N"] | None = None,
) -> Int[np.ndarray, "N"]:
    """Returns the fold of each image: every class is spread evenly; fold sizes differ by at most 1.

    A class of one image is held out once, and then has no image to train on.

    Args:
        labels: Class of each image.
        num_folds: Largest number of folds.
        seed: Seed of the run.
        first: Place of the first copy of each image (see `Split.first_copies`), whose fold the
            image shares; the first copies are spread evenly. None if no image is a copy.
    """
    rng = np.random.default_rng((seed, len(labels)))
    first = np.arange(len(labels)) if first is None else first
    is_first = first == np.arange(len(labels))
    order = np.concatenate(
        [rng.permutation(np.flatnonzero((labels == c) & is_first)) for c in np.unique(labels)]
    )
    folds = np.empty(len(labels), np.int64)
    # The count runs on from class to class: each begins where the one before it ended.
    folds[order] = np.arange(len(order)) % min(num_folds, len(order))
    return folds[first]
