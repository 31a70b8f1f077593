"""A run's results in a few lines."""

from typing import Any

from fgvpl_jax.methods import method_named

MOST_NAMED = 5
# Whatever any method chooses on validation.
CHOSEN = ("cache_logit_weight", "alpha", "beta", "inverse_regularisation")


def summary_lines(results: dict[str, Any]) -> list[str]:
    """What a person wants to see first of `results.json`.

    Args:
        results: As `train_and_evaluate` returns them.
    """
    title = method_named(results["method"]).title
    lines = [f"splits: {results['split_protocol']}"]
    lines += [
        f"validation accuracy at {candidate}: {accuracy:.2%}"
        for candidate, accuracy in results["validation_accuracy"].items()
    ]
    lines += [f"{name}: {results[name]:.6g}" for name in CHOSEN if name in results]
    for split, unreadable in (
        ("validation", results["validation_unreadable"]),
        ("test", results["unreadable"]),
    ):
        lines += [f"not read: {line}" for line in unreadable[:MOST_NAMED]]
        if unreadable:
            lines.append(f"{len(unreadable)} {split} images could not be read")
    if "temperature_fitted_on" in results:
        lines.append(
            f"temperature {results['temperature']:.3f}, fitted on "
            f"{results['temperature_fitted_on']}: calibration error there "
            f"{results['fitted_ece_before']:.3f} before, {results['fitted_ece_after']:.3f} after"
        )
    if "mask_iou" in results:
        iou = results["mask_iou"]
        lines.append(
            f"object masks: mean IoU {iou['object_mask']:.3f} with the truth (everything "
            f"{iou['everything']:.3f}, centred box of equal area {iou['centred_box']:.3f}, random "
            f"patches of equal area {iou['random']:.3f})"
        )
    if results["test_accuracy"] is None:
        low, high = results["cv_interval"]
        lines.append(_scores(results, "zero_shot", "zero-shot CLIP", "held-out photos"))
        lines.append(
            _scores(results, "cv", title, "held-out photos")
            + f"; 95% interval of the accuracy {low:.1%} to {high:.1%}"
        )
        lines.append(
            "there is no test split: each photo was predicted by a model trained on the other "
            "folds; the classifier itself was then trained on all"
        )
    else:
        images = f"{results['test_images_read']} test images"
        lines.append(_scores(results, "zero_shot", "zero-shot CLIP", images))
        line = _scores(results, "test", title, images)
        if "temperature_fitted_on" in results:
            line += (
                f"; with the temperature NLL {results['test_nll_tempered']:.3f}, ECE "
                f"{results['test_ece_tempered']:.3f}"
            )
        lines.append(line)
    return lines


def _scores(results: dict[str, Any], prefix: str, name: str, images: str) -> str:
    return (
        f"{name}: {results[f'{prefix}_accuracy']:.2%} of {images} (mean over classes "
        f"{results[f'{prefix}_mean_class_accuracy']:.2%}, NLL {results[f'{prefix}_nll']:.3f}, "
        f"ECE {results[f'{prefix}_ece']:.3f})"
    )
