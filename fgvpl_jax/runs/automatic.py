"""The method "auto": tries methods while time allows, and keeps the best one or a mix of them."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from fgvpl_jax import defaults
from fgvpl_jax.errors import UserError
from fgvpl_jax.evaluation import Evaluator
from fgvpl_jax.methods import LabelledLogits, Method
from fgvpl_jax.methods.mixture import Member, mixture
from fgvpl_jax.recognition import VisualCache
from fgvpl_jax.runs.candidates import (
    HeldOutPhotos,
    candidate_run,
    held_out_photos,
    photo_folds,
    rows_of,
    warn_of_classes_left_out,
)
from fgvpl_jax.runs.copies import warn_of_copies, without_copies
from fgvpl_jax.runs.cross_validation import HeldOut, choose_folds, trained_on
from fgvpl_jax.runs.known_classes import known_classes_of, write_known_classes
from fgvpl_jax.runs.measuring import fields_of, fold_scores, test_scores, write_support
from fgvpl_jax.runs.mixing import Mix, choose_mix, out_of_fold_log_probabilities
from fgvpl_jax.runs.prepare import write_settings
from fgvpl_jax.runs.results import RunResults, Tried
from fgvpl_jax.runs.run import Run
from fgvpl_jax.runs.selection import Chosen, calibration, choose_on_validation
from fgvpl_jax.runs.trying import Attempt, Record, try_methods
from fgvpl_jax.training import (
    PixelInputs,
    SharedFeatures,
    gather_rows,
    gather_texts,
    process_share,
    replicate,
    split_model,
    wait_for_all,
)

READING_BATCH_SIZE = 64


def train_auto(run: Run, started: float) -> RunResults:
    """Tries methods, trains the best, evaluates, and writes `results.json`.

    Args:
        run: Run with the method "auto".
        started: `time.monotonic()` when the command began.
    """
    write_settings(run)
    run, unreadable = with_shared_features(run)
    choose_folds(run)
    folds = photo_folds(run)
    warn_of_classes_left_out(run, folds)
    record = Record(run.workdir)
    wait_for_all("record of methods")  # until every process has read it
    try_methods(run, folds, record)
    results = measure_auto(run, record, unreadable, started)
    warn_of_copies(run)
    return results


def evaluate_auto(run: Run, started: float) -> RunResults:
    """Measures a run with the method "auto" again; tries no further method."""
    record = Record(run.workdir)
    if not record.is_complete:
        raise UserError(
            f"{run.workdir.path} has not tried all methods yet: finish its training with the same "
            "config"
        )
    run, unreadable = with_shared_features(run)
    return measure_auto(run, record, unreadable, started)


def with_shared_features(run: Run) -> tuple[Run, tuple[str, ...]]:
    """Returns the run with features for all methods, and with the usable validation images.

    Images that cannot be read, and copies of support images, are left out.

    Returns:
        The run, and "path: reason" of every unreadable validation image.
    """
    validation = run.few_shot.validation
    unreadable: list[str] = []
    readable: list[int] = []
    if validation is not None:
        share = process_share()
        pixels = PixelInputs(run.clip, run.config.seed, run.image_cache, share)
        for batch in pixels.evaluation(validation, READING_BATCH_SIZE * share.count):
            unreadable += batch.unreadable
            readable += batch.indices[batch.weights > 0].tolist()
        unreadable = gather_texts(unreadable)
        readable = gather_rows(np.array(readable, np.int32)).tolist()
        validation = without_copies(run, validation.select(readable)) if readable else None
    few_shot = replace(run.few_shot, validation=validation)
    features = SharedFeatures(
        run.clip,
        run.config.seed,
        run.image_cache,
        run.mesh,
        support=few_shot.support,
        validation=validation,
        max_bytes=int(run.config.data.resident_gb * 1e9),
    )
    return replace(run, few_shot=few_shot, shared_features=features), tuple(unreadable)


class Comparison(NamedTuple):
    """Comparison of the methods that were tried, on held-out photos.

    Attributes:
        photos: Held-out logits of each method.
        logits: The same, of all methods.
        mix: The chosen method, or the chosen mix.
        reason: Reason for the choice.
        estimate: Logits of each photo by what is chosen without its fold.
    """

    photos: dict[str, HeldOutPhotos]
    logits: Float[np.ndarray, "c N k"]
    mix: Mix
    reason: str
    estimate: HeldOut

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each method of the final classifier."""
        weights = zip(self.photos, self.mix.weights.tolist(), strict=True)
        return {name: weight for name, weight in weights if weight}


def compare(run: Run, record: Record) -> Comparison:
    """Chooses one of the methods that were tried, or a mix of them.

    Raises:
        UserError: If all methods failed.
    """
    folds = photo_folds(run)
    photos = {
        name: held_out_photos(candidate_run(run, name), folds)
        for name, attempt in record.attempts.items()
        if attempt.finished
    }
    if not photos:
        notes = [f"{one.method} {one.note}" for one in record.attempts.values()]
        raise UserError(f"none of the methods could be trained: {'; '.join(notes)}")
    first = next(iter(photos.values()))
    for one in photos.values():
        if not (
            np.array_equal(one.labels, first.labels) and np.array_equal(one.folds, first.folds)
        ):
            raise UserError(
                f"methods in {run.workdir.candidates} were tried on different validation images, "
                "because some became readable or unreadable, or by a version that did not leave "
                "out copies: choose another workdir"
            )
    logits = np.stack([one.logits for one in photos.values()])
    names = [*photos]
    favourite = names.index(defaults.FAVOURITE) if defaults.FAVOURITE in names else None
    mix = choose_mix(logits, first.labels, first.folds, favourite)
    if folds.can_compare or len(names) > 1:  # an earlier version compared photos of fewer classes
        reason = reason_for(mix, names)
        own = out_of_fold_log_probabilities(logits, first.labels, first.folds, favourite)
    else:  # only one method was tried
        (name,) = names
        reason = (
            f"{name} is taken because fewer than half of the classes have a photo to compare "
            "methods with, and another one to train on"
        )
        own = first.logits
    estimate = HeldOut(own, first.zero_shot_logits, first.labels, choices=None)
    return Comparison(photos, logits, mix, reason, estimate)


def reason_for(mix: Mix, names: list[str]) -> str:
    """Returns the reason for a choice in one sentence."""
    if len(names) == 1:
        return f"{names[0]} is the only method that could be compared"
    best = int(mix.losses.argmin())
    gain = f"{mix.gain:+.3f} ± {mix.gain_error:.3f} nats per photo"
    lowest = f"{names[best]} has the lowest held-out NLL, {mix.losses[best]:.3f}"
    if mix.weights[best] == 1:
        if mix.is_worse_than_best:
            return f"{lowest}; no mix is as good ({gain})"
        return f"{lowest}; the likeliest mix is this method alone"
    parts = [f"{w:.2f} {name}" for name, w in zip(names, mix.weights, strict=True) if w]
    return f"{lowest}; the mix {' + '.join(parts)} is at least as good ({gain})"


class Final(NamedTuple):
    """A method of the final classifier, trained on all support images.

    Attributes:
        run: Its run.
        model: Its model.
        evaluator: Its evaluator.
        cache: Its visual cache; None without one.
        chosen: Its values chosen on validation.
    """

    run: Run
    model: Method
    evaluator: Evaluator
    cache: VisualCache | None
    chosen: Chosen


def trained_on_all(run: Run) -> Final:
    """Trains a candidate on all support images, or restores it; keeps what predictions need."""
    support = run.few_shot.support
    if not run.workdir.config_file.exists():
        run.workdir.write_config(run.config, asdict(run.clip.identity))
    model = trained_on(run, support, run.workdir.path)
    evaluator, cache = run.evaluator(model, support)
    write_support(run, cache)
    return Final(run, model, evaluator, cache, choose_on_validation(evaluator, run))


def evaluator_of_mix(run: Run, members: Sequence[Member]) -> Evaluator:
    """Returns the evaluator of a mix of trained methods."""
    model = mixture(run.clip, run.text_features, members)
    graphdef, trainable, frozen = split_model(model)
    trainable, frozen = replicate(run.mesh, (trainable, frozen))
    return Evaluator(
        graphdef,
        trainable,
        frozen,
        None,
        inputs=run.inputs_of(model),
        batch_size=run.config.eval_batch_size,
        mesh=run.mesh,
    )


def measure_auto(
    run: Run, record: Record, unreadable: tuple[str, ...], started: float
) -> RunResults:
    """Chooses among the methods that were tried, then reads the test split once.

    Args:
        run: Run with shared features.
        record: The methods that were tried.
        unreadable: "path: reason" of every unreadable validation image.
        started: `time.monotonic()` when the command began.
    """
    found = compare(run, record)
    finals = {name: trained_on_all(candidate_run(run, name)) for name in found.weights}
    tried = tuple(
        tried_method(attempt, found, finals.get(name)) for name, attempt in record.attempts.items()
    )
    only = next(iter(finals.values())) if len(finals) == 1 else None
    own = found.mix.log_probabilities(found.logits)
    selection: dict[str, Any] = {"choices": {}, "validation_accuracy": {}, "temperature": 1.0}
    facts: dict[str, Any] = {}
    if only is not None:
        own = found.photos[only.run.config.method].logits
        selection["choices"] = only.chosen.choices
        selection["validation_accuracy"] = only.chosen.accuracies
        facts = only.model.facts()
    folds = photo_folds(run)
    if run.config.calibrate and folds.can_compare:
        selection |= calibration({"folds": LabelledLogits(own, found.estimate.labels)})
    different = rows_of(run.few_shot.support, folds.support >= 0).num_different
    different += len(folds.validation)
    scores = fold_scores(found.estimate, min(different, len(found.estimate.labels)))
    if run.dataset.test is not None:
        members = [member_of(one, finals[one.method]) for one in tried if one.weight]
        evaluator = only.evaluator if only else evaluator_of_mix(run, members)
        scores |= test_scores(evaluator, run, selection["choices"], selection["temperature"])
    known = known_classes_of(run)
    results = RunResults(
        **fields_of(run, len(run.few_shot.validation or ()) + len(unreadable)),
        epochs=max(final.run.config.epochs for final in finals.values()),
        facts=facts,
        **selection,
        validation_unreadable=unreadable,
        **scores,
        none_of_these=None if known is None else known.rates,
        tried=tried,
        reason=found.reason,
        train_seconds=round(math.fsum(one.seconds for one in tried), 1),
        wall_seconds=round(time.monotonic() - started, 1),
    )
    write_known_classes(run, known)
    results.write(run.workdir)
    return results


def tried_method(attempt: Attempt, found: Comparison, final: Final | None) -> Tried:
    """Returns the row of a method in the results.

    Args:
        attempt: What was recorded.
        found: The comparison.
        final: The trained method if it is part of the final classifier.
    """
    row = Tried(
        method=attempt.method,
        predicted_seconds=attempt.predicted_seconds,
        seconds=round(attempt.measuring_seconds + attempt.seconds, 1),
        note=attempt.note,
    )
    if not attempt.finished:
        return row
    photos, place = found.photos[attempt.method], [*found.photos].index(attempt.method)
    row = replace(
        row,
        nll=float(found.mix.losses[place]),
        accuracy=float((photos.logits.argmax(axis=1) == photos.labels).mean()),
    )
    if final is None:
        return row
    return replace(
        row,
        weight=float(found.mix.weights[place]),
        temperature=float(found.mix.temperatures[place]),
        choices=final.chosen.choices,
    )


def member_of(row: Tried, final: Final) -> Member:
    """Returns a trained method as a member of the mix."""
    assert row.temperature is not None
    model, run = final.model, final.run
    encoder = model.frozen_encoder(run.clip, run.config) if model.reads_features else None
    return Member(model, encoder, final.cache, row.choices, row.temperature, row.weight)
