"""The methods that a run with the method "auto" may try, and their logits of held-out photos."""

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Bool, Float, Int

from fgvpl_jax import defaults
from fgvpl_jax.data import Split
from fgvpl_jax.errors import SharedError, first_of
from fgvpl_jax.files import read_arrays
from fgvpl_jax.methods import METHODS, Method, method_named
from fgvpl_jax.methods.held_out import LIKELIHOOD
from fgvpl_jax.runs.cross_validation import (
    folds_file,
    folds_of,
    is_intact,
    stratified_folds,
    trained_on,
)
from fgvpl_jax.runs.run import Run
from fgvpl_jax.runs.selection import choose_on_validation
from fgvpl_jax.runs.settings import with_recipe
from fgvpl_jax.training import (
    PixelInputs,
    SharedFeatures,
    batch_size_for,
    initialise,
    is_writer,
    read_metrics,
    slowest,
    wait_for_all,
)

# A training on this many photos for this many epochs measures the speed of a method.
MEASURED_PHOTOS = 8
MEASURED_EPOCHS = 3
# Epochs faster than this many seconds are measured again with a full batch, because a quick device
# takes no longer for it.
QUICK_EPOCH = 0.5
MOST_NAMED = 5


class PhotoFolds(NamedTuple):
    """Folds of the photos that compare methods; -1 for a photo that is never held out.

    Attributes:
        support: Fold of each support image.
        validation: Fold of each validation image.
        can_compare: Whether methods can be compared: photos of at least half of the classes are
            held out, each with another one of its class to train on.
    """

    support: Int[np.ndarray, "s"]
    validation: Int[np.ndarray, "v"]
    can_compare: bool = True

    @property
    def numbers(self) -> list[int]:
        """Numbers of the folds that hold out a photo."""
        return sorted({*self.support.tolist(), *self.validation.tolist()} - {-1})


class HeldOutPhotos(NamedTuple):
    """Logits of every photo that is ever held out, each from a model that has not seen it.

    Attributes:
        logits: Logits of a method.
        zero_shot_logits: Logits of plain CLIP.
        labels: True classes.
        folds: Folds of the photos.
    """

    logits: Float[np.ndarray, "N k"]
    zero_shot_logits: Float[np.ndarray, "N k"]
    labels: Int[np.ndarray, "N"]
    folds: Int[np.ndarray, "N"]


def candidate_run(run: Run, method: str) -> Run:
    """Returns the run of one method within a run with the method "auto".

    Its recipe is the method's own, its values are chosen by likelihood, and its folder is in
    `candidates/`.
    """
    config = run.config.copy_and_resolve_references()
    config.method, config.minutes = method, defaults.MINUTES
    config.selection_rule = LIKELIHOOD
    support = run.few_shot.support
    config = with_recipe(config, len(support), len(run.dataset.class_names))
    return replace(run, config=config, workdir=run.workdir.candidate(method))


def photo_folds(run: Run) -> PhotoFolds:
    """Returns the folds of a run's photos; those of the support images keep copies together.

    A support image is never held out if all images of its class are in its fold, because no model
    could name its class. If that leaves photos of fewer than half of the classes, among which the
    others would hardly be confused, all are held out nevertheless, for an estimate that is too low.
    """
    few_shot, config = run.few_shot, run.config
    labels, folds = few_shot.support.labels, folds_of(run)
    validation = np.empty(0, np.int64)
    if few_shot.validation is not None:
        # As many as those of the support images, which a file holds if they are not `cv_folds`.
        count = int(folds.max()) + 1 if folds_file(run).exists() else config.cv_folds
        validation = stratified_folds(few_shot.validation.labels, count, config.seed)
    held = classes_held_out(run)
    if len(held) < max(2, len(np.unique(labels)) / 2):
        return PhotoFolds(folds, validation, can_compare=False)
    return PhotoFolds(np.where(is_together(labels, folds), -1, folds), validation)


def is_together(labels: Int[np.ndarray, "s"], folds: Int[np.ndarray, "s"]) -> Bool[np.ndarray, "s"]:
    """Returns whether all images of each image's class are in one fold."""
    return np.array([len(np.unique(folds[labels == label])) == 1 for label in labels])


def classes_held_out(run: Run) -> set[int]:
    """Returns the classes with an image to hold out and another one to train on."""
    labels = run.few_shot.support.labels
    held = {*labels[~is_together(labels, folds_of(run))].tolist()}
    if run.few_shot.validation is not None:
        held |= {*run.few_shot.validation.labels.tolist()}
    return held


def warn_of_classes_left_out(run: Run, folds: PhotoFolds) -> None:
    """Warns of classes of which no photo is held out, or none with another one to train on."""
    held = classes_held_out(run)
    left_out = [
        run.dataset.class_names[label]
        for label in np.unique(run.few_shot.support.labels)
        if label not in held
    ]
    if left_out:
        logging.warning(
            "%d classes have a single photo, or copies of one, and no validation photo: %s; %s",
            len(left_out),
            first_of(left_out, MOST_NAMED),
            "the comparison of methods and the estimate leave them out, add photos"
            if folds.can_compare
            else "methods cannot be compared and the estimate is too low, add photos",
        )


def candidate_runs(run: Run, folds: PhotoFolds) -> list[Run]:
    """Returns the runs of all methods: those without training first, those on pixels last.

    The first is the one that was most accurate on development data (docs/auto.md), so that a short
    time suffices for it. It is the only one if the photos cannot compare methods.
    """
    if not folds.can_compare:
        return [candidate_run(run, defaults.FAVOURITE)]

    def cost(candidate: Run) -> tuple[bool, bool, bool, int]:
        config = candidate.config
        on_pixels = not method_named(config.method).reads_features
        return config.epochs > 0, on_pixels, config.method != defaults.FAVOURITE, config.epochs

    return sorted((candidate_run(run, name) for name in METHODS), key=cost)


def is_closed_form(run: Run) -> bool:
    """Returns whether a method is fitted in one go on shared features, within seconds.

    Such methods compute held-out logits themselves, which takes many fits.
    """
    method = method_named(run.config.method)
    knows_held_out = method.held_out_logits is not Method.held_out_logits
    return not run.config.epochs and method.reads_features and knows_held_out


def held_out_photos(run: Run, folds: PhotoFolds) -> HeldOutPhotos:
    """Returns a candidate's logits of held-out photos; keeps them in its folder.

    Each fold is predicted by a model that is trained on the other folds, and whose values are
    chosen on the validation images of the other folds. Finished folds are kept, and an interrupted
    training resumes.
    """
    file = run.workdir.path / "held_out.npz"
    if not is_intact(file):
        run.new_model(run.few_shot.support)  # refuses what the final training would refuse
        parts = [held_out_fold(run, folds, number) for number in folds.numbers]
        run.workdir.path.mkdir(parents=True, exist_ok=True)
        whole = HeldOutPhotos(*(np.concatenate(rows) for rows in zip(*parts, strict=True)))
        if not np.isfinite(whole.logits).all():
            raise SharedError("its logits of held-out photos are not finite")
        wait_for_all("held-out photos")  # until every process has read the folds
        run.workdir.write_arrays(file, **whole._asdict())
        remove_folder(run.workdir.folds)  # no longer needed
    return HeldOutPhotos(**read_arrays(file))


def held_out_fold(run: Run, folds: PhotoFolds, number: int) -> HeldOutPhotos:
    """Returns the part of `held_out_photos` that belongs to one fold."""
    folder = run.workdir.folds / f"fold_{number + 1}"
    file = folder / "held_out.npz"
    if is_intact(file):
        return HeldOutPhotos(**read_arrays(file))
    few_shot = run.few_shot
    held = {"support": folds.support == number, "validation": folds.validation == number}
    kept = None
    if few_shot.validation is not None and not held["validation"].all():
        kept = rows_of(few_shot.validation, ~held["validation"])
    without = replace(run, few_shot=replace(few_shot, validation=kept))
    rest = rows_of(few_shot.support, ~held["support"])
    if run.config.epochs and not held["support"].any():  # the final model has not seen the fold
        model = fitted(run, rest, run.workdir.path)
    else:
        model = fitted(without, rest, folder)
    evaluator, _ = without.evaluator(model, rest)
    choices = choose_on_validation(evaluator, without).choices
    parts = []
    for name, split in (("support", few_shot.support), ("validation", few_shot.validation)):
        if split is not None and held[name].any():
            found = evaluator.predict(rows_of(split, held[name]), choices, name="held out")
            parts.append((found.logits, found.zero_shot_logits, found.labels))
    logits, zero_shot_logits, labels = map(np.concatenate, zip(*parts, strict=True))
    result = HeldOutPhotos(logits, zero_shot_logits, labels, np.full(len(labels), number))
    if run.config.epochs:
        folder.mkdir(parents=True, exist_ok=True)
        run.workdir.write_arrays(file, **result._asdict())
        remove_folder(folder / "checkpoints")  # no longer needed
    return result


def remove_folder(folder: Path) -> None:
    """Removes a folder if it exists; every process must call this function.

    Returns once process 0 has removed it, and has thus written its files from before.
    """
    if is_writer():
        shutil.rmtree(folder, ignore_errors=True)
    wait_for_all(folder.name)


def fitted(run: Run, support: Split, folder: Path) -> Method:
    """Returns a model trained on some support images; one that trains nothing is not saved."""
    if run.config.epochs:
        return trained_on(run, support, folder)
    model = run.new_model(support)
    size = batch_size_for(run.mesh, run.config.batch_size, len(support))
    initialise(model, run.inputs, support, run.few_shot.validation, size)
    return model


def rows_of(split: Split, chosen: np.ndarray) -> Split:
    """Returns the images of a split where `chosen` is True."""
    return split.select(np.flatnonzero(chosen).tolist())


class PredictedSeconds(NamedTuple):
    """Predicted seconds of a candidate's trainings.

    Attributes:
        folds: All folds.
        final: The final training on all support images.
    """

    folds: float
    final: float


def least_seconds(run: Run, folds: PhotoFolds) -> float:
    """Returns about how long a candidate's trainings take at least; 0 if that is not known.

    A method that trains on pixels encodes every photo in every epoch. How long that takes is known
    from the augmented passes of the frozen features, unless files of an earlier run had them all.
    Tokens below a higher `prompt_layer` are kept, so nothing is known of those methods.
    """
    shared = run.shared_features
    if shared is None or not isinstance(run.inputs, PixelInputs) or run.config.prompt_layer > 1:
        return 0.0
    numbers = {*folds.support.tolist()} - {-1}  # other folds use the final model
    trainings = 1 + sum((folds.support != number).mean() for number in numbers)
    return float(run.config.epochs * trainings * shared.pass_seconds)


def predict_seconds(run: Run, folds: PhotoFolds) -> PredictedSeconds:
    """Trains a candidate on a few photos, and predicts the time of its trainings from that."""
    support = run.few_shot.support
    batch = min(run.config.batch_size, len(support))
    for count in sorted({min(MEASURED_PHOTOS, batch), batch}):
        compiling, epoch = measured_seconds(run, count)
        if epoch > QUICK_EPOCH:
            break
    epochs = max(run.config.epochs, 1)  # fitting in one go counts as one epoch
    per_photo = epoch * epochs / count
    final = compiling + per_photo * len(support)
    sizes = [int((folds.support != number).sum()) for number in folds.numbers]
    sizes = [size for size in sizes if size < len(support)]  # the others use the final model
    total = sum(compiling + per_photo * size for size in sizes)
    inputs = run.inputs
    if isinstance(inputs, SharedFeatures):
        total += inputs.encoding_seconds(epochs)
    return PredictedSeconds(total, final)


def measured_seconds(run: Run, count: int) -> tuple[float, float]:
    """Returns the seconds of a short training on `count` photos: compilation, and one epoch.

    All processes return the times of the slowest one.
    """
    support = run.few_shot.support
    few = support.select(np.linspace(0, len(support) - 1, count).round().astype(int).tolist())
    epochs = min(run.config.epochs, MEASURED_EPOCHS)
    config = run.config.copy_and_resolve_references()
    config.epochs = epochs
    short, folder = replace(run, config=config), run.workdir.path / "measured"
    remove_folder(folder)
    seconds = []
    for _ in range(1 if epochs else 2):  # what is fitted at once compiles the first time
        started = time.monotonic()
        fitted(short, few, folder)
        seconds.append(slowest(time.monotonic() - started))
    if epochs:
        lines = read_metrics(folder / "metrics.jsonl", epochs)
        epoch = min(float(line["seconds"]) for line in lines)
        seconds.append(slowest(epoch))
    remove_folder(folder)
    return max(seconds[0] - max(epochs, 1) * seconds[-1], 0.0), seconds[-1]
