"""Summarises the results of a run in a few lines."""

import math
from collections.abc import Sequence

from fgvpl_jax.displays.labels import method_label
from fgvpl_jax.displays.live_table import duration
from fgvpl_jax.runs.results import RunResults, Tried

MOST_NAMED = 5
TRIED_COLUMNS = ("method", "held-out NLL", "accuracy", "time", "weight")
# Everything that some method chooses on validation; the linear probe reports its own as a fact.
CHOSEN = ("cache_logit_weight", "alpha", "beta", "inverse_regularisation")

LEAST_GAIN = 0.01  # a smaller gain from twice as many photos hardly helps


def summary_lines(results: RunResults) -> list[str]:
    """Returns the most important results as lines of text."""
    lines = [f"splits: {results.split_protocol}"]
    photos = results.counts.validation - len(results.validation_unreadable)
    lines += [
        f"validation accuracy at {candidate}: {accuracy:.2%} of {photos} photos"
        for candidate, accuracy in results.validation_accuracy.items()
    ]
    values = {**results.facts, **results.choices}
    lines += [f"{name}: {values[name]:.6g}" for name in CHOSEN if name in values]
    for split, unreadable in (
        ("validation", results.validation_unreadable),
        ("test", results.unreadable),
    ):
        lines += [f"not read: {line}" for line in unreadable[:MOST_NAMED]]
        if unreadable:
            lines.append(f"{len(unreadable)} {split} images could not be read")
    if results.temperature_fitted_on is not None:
        lines.append(
            f"temperature {results.temperature:.3f}, fitted on "
            f"{results.temperature_fitted_on}: calibration error there "
            f"{results.fitted_ece_before:.3f} before, {results.fitted_ece_after:.3f} after"
            if results.temperature != 1
            else f"temperature 1: no other one clearly helps on {results.temperature_fitted_on}"
        )
    if results.mask_iou is not None:
        iou = results.mask_iou
        lines.append(
            f"object masks: mean IoU {iou.object_mask:.3f} with the truth (everything "
            f"{iou.everything:.3f}, centred box of equal area {iou.centred_box:.3f}, random "
            f"patches of equal area {iou.random:.3f})"
        )
    lines += more_photos_lines(results)
    lines += none_of_these_lines(results)
    lines += tried_lines(results)
    return lines + (_fold_lines(results) if results.test_accuracy is None else _test_lines(results))


def more_photos_lines(results: RunResults) -> list[str]:
    """Returns a line that says what twice as many photos would bring; empty if it is not known."""
    curve = results.learning_curve
    if curve is None:
        return []
    low, high = curve.twice_interval
    expected = (
        f"about {curve.twice:.0%} ({low:.0%} to {high:.0%}) instead of {curve.now:.0%}, by a quick "
        "classifier on held-out photos"
    )
    if curve.twice - curve.now < LEAST_GAIN:
        return [f"more photos would hardly help: with twice as many, {expected}"]
    return [f"with twice as many photos, {expected}"]


def none_of_these_lines(results: RunResults) -> list[str]:
    """Returns what the threshold of "none of these" does; empty for a run without one."""
    rates = results.none_of_these
    if rates is None:
        return []
    low, high = rates.false_rejection_interval
    lines = [
        f'photos that score below {rates.threshold:.2f} count as "none of these": about '
        f"{rates.false_rejection:.0%} of new photos of the classes ({low:.0%} to {high:.0%}, by "
        f"{rates.held_out_photos} held-out photos)"
    ]
    if rates.left_out_caught is not None:
        lines[0] += f", and {rates.left_out_caught:.0%} of photos of a class that is not known"
    if rates.other_caught is not None and rates.other_caught_interval is not None:
        low, high = rates.other_caught_interval
        lines.append(
            f"of the {rates.other_photos} photos of other things, each scored without its fold, "
            f"{rates.other_caught:.0%} are below it ({low:.0%} to {high:.0%})"
        )
    return lines


def tried_lines(results: RunResults) -> list[str]:
    """Returns the table of the methods that "auto" tried, best first, and why it chose the winner.

    Empty for other methods.
    """
    if results.tried is None:
        return []
    rows = [TRIED_COLUMNS]
    rows += [tried_cells(one) for one in best_first(results.tried)]
    lines = ["methods tried, compared on held-out photos:"]
    lines += [f"  {a:20}{b:>12}  {c:>9}  {d:>10}  {e}" for a, b, c, d, e in rows]
    lines.append(f"chosen: {results.reason}")
    if results.cv_interval is not None and results.test_accuracy is not None:
        low, high = results.cv_interval
        lines.append(
            "estimate from held-out photos, for each of which the choice is repeated without its "
            f"fold: {results.cv_accuracy:.2%}; 95% interval {low:.1%} to {high:.1%}"
        )
    return lines


def best_first(tried: Sequence[Tried]) -> list[Tried]:
    """Returns the methods by their held-out NLL; those without one come last."""
    return sorted(tried, key=lambda one: math.inf if one.nll is None else one.nll)


def tried_cells(one: Tried) -> tuple[str, str, str, str, str]:
    """Returns a method, its held-out NLL and accuracy, its time, and its weight or the note."""
    if one.nll is None or one.accuracy is None:
        return one.method, "", "", duration(one.seconds) if one.seconds else "", one.note
    weight = f"{one.weight:.2f}" if one.weight else ""
    return one.method, f"{one.nll:.3f}", f"{one.accuracy:.1%}", duration(one.seconds), weight


def _fold_lines(results: RunResults) -> list[str]:
    assert results.cv_interval is not None
    low, high = results.cv_interval
    title = method_label(results.method)
    return [
        _scores(results, "zero_shot", "zero-shot CLIP", "held-out photos"),
        _scores(results, "cv", title, "held-out photos")
        + f"; 95% interval of the accuracy {low:.1%} to {high:.1%}",
        "there is no test split: each photo was predicted by a model trained on the other "
        "folds; the classifier itself was then trained on all"
        + ("" if results.tried is None else "; the choice of methods is repeated for each fold"),
    ]


def _test_lines(results: RunResults) -> list[str]:
    images = f"{results.test_images_read} test images"
    line = _scores(results, "test", method_label(results.method), images)
    if results.temperature_fitted_on is not None:
        line += (
            f"; with the temperature NLL {results.test_nll_tempered:.3f}, ECE "
            f"{results.test_ece_tempered:.3f}"
        )
    return [_scores(results, "zero_shot", "zero-shot CLIP", images), line]


def _scores(results: RunResults, prefix: str, name: str, images: str) -> str:
    accuracy, per_class, nll, ece = (
        getattr(results, f"{prefix}_{score}")
        for score in ("accuracy", "mean_class_accuracy", "nll", "ece")
    )
    return (
        f"{name}: {accuracy:.2%} of {images} (mean over classes {per_class:.2%}, NLL {nll:.3f}, "
        f"ECE {ece:.3f})"
    )
