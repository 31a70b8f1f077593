"""The results of a run with several labels a photo, and their summary in a few lines."""

from dataclasses import asdict, dataclass, field
from typing import Any, get_type_hints

from fgvpl_jax.clip import Identity
from fgvpl_jax.displays.labels import method_label
from fgvpl_jax.errors import UserError
from fgvpl_jax.files import read_json
from fgvpl_jax.methods import Choices
from fgvpl_jax.runs.results import SEVERAL_LABELS, ImageCounts, converted
from fgvpl_jax.runs.workdir import Workdir

MOST_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class LabelResults:
    """The results of a run with several labels a photo, in the order of `results.json`.

    All scores are fractions. `cv_` scores are of training photos, each predicted without its fold,
    with values and thresholds that the other folds chose. `test_` scores are None without a test
    split. Means over labels leave out labels that none of the photos has.

    Attributes:
        task: "several labels"; results of runs with one label a photo have no such field.
        method: Name of the method.
        backbone: Name and content hashes of the CLIP backbone.
        seed: Seed of the folds and of the bootstrap.
        num_classes: Number of labels.
        split_protocol: Sentence that says who made the splits and how.
        counts: Number of photos; those for validation count as training photos.
        photos_without_label: Number of training photos without a label.
        choices: Values that the out-of-fold predictions chose, such as C, by name.
        thresholds: Probability from which each label is assigned.
        chance: Mean average precision of a random order of the test photos, or of the training
            photos without a test split.
        zero_shot_mean_average_precision: Mean average precision of zero-shot CLIP's cosines on the
            test photos, or on the training photos without a test split.
        cv_mean_average_precision: Mean over labels of the average precision.
        cv_interval: Its 95% interval, by a bootstrap over photos.
        cv_average_precision: Average precision of each label.
        cv_macro_f1: Mean over labels of F1.
        cv_micro_f1: F1 of all pairs of photo and label.
        test_mean_average_precision: Mean over labels of the average precision on the test photos.
        test_interval: Its 95% interval, by a bootstrap over photos.
        test_average_precision: Average precision of each label on the test photos.
        test_macro_f1: Mean over labels of F1 on the test photos.
        test_micro_f1: F1 of all pairs of test photo and label.
        test_images_read: Number of test photos that could be read.
        unreadable: "path: reason" of every test photo that cannot be read.
        train_seconds: Duration of all fits, without decoding and encoding photos.
        wall_seconds: Duration of the last command.
    """

    task: str = SEVERAL_LABELS
    method: str
    backbone: Identity
    seed: int
    num_classes: int
    split_protocol: str
    counts: ImageCounts
    photos_without_label: int
    choices: Choices
    thresholds: dict[str, float]
    chance: float
    zero_shot_mean_average_precision: float
    cv_mean_average_precision: float
    cv_interval: tuple[float, float]
    cv_average_precision: dict[str, float]
    cv_macro_f1: float
    cv_micro_f1: float
    test_mean_average_precision: float | None = None
    test_interval: tuple[float, float] | None = None
    test_average_precision: dict[str, float] | None = None
    test_macro_f1: float | None = None
    test_micro_f1: float | None = None
    test_images_read: int | None = None
    unreadable: tuple[str, ...] = field(default_factory=tuple)
    train_seconds: float
    wall_seconds: float

    def write(self, workdir: Workdir) -> None:
        """Writes `results.json`, whole or not at all; leaves out fields without a value."""
        content = {name: value for name, value in asdict(self).items() if value is not None}
        workdir.write(workdir.results_file, content)

    @classmethod
    def read(cls, workdir: Workdir) -> "LabelResults":
        """Reads `results.json`.

        Raises:
            UserError: If the file is damaged, and names the field; if the run has one label a
                photo.
        """
        content: dict[str, Any] = read_json(workdir.results_file)
        if content.get("task") != SEVERAL_LABELS:
            raise UserError(
                f"{workdir.path} holds a run with one label a photo: load it with load_classifier"
            )
        hints = get_type_hints(cls)
        try:
            unknown = sorted(content.keys() - hints.keys())
            if unknown:
                raise ValueError(f"the field {unknown[0]} is unknown")
            return cls(**{n: converted(x, hints[n], n) for n, x in content.items()})
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{workdir.results_file} is damaged ({error}): restore it, or evaluate the run "
                "again"
            ) from error


def label_summary(results: LabelResults) -> list[str]:
    """Returns the most important results as lines of text."""
    counts, title = results.counts, method_label(results.method)
    lines = [
        f"splits: {results.split_protocol}",
        f"{counts.train} training photos with {results.num_classes} labels; "
        f"{results.photos_without_label} have none",
    ]
    lines += [f"{name}: {value:.6g}" for name, value in results.choices.items()]
    lines += [f"not read: {line}" for line in results.unreadable[:MOST_NAMED]]
    if results.unreadable:
        lines.append(f"{len(results.unreadable)} test images could not be read")
    plain_clip = (
        f"zero-shot CLIP: mean average precision {results.zero_shot_mean_average_precision:.1%} "
        f"(chance {results.chance:.1%})"
    )
    low, high = results.cv_interval
    held_out = (
        f"{title}: mean average precision {results.cv_mean_average_precision:.1%} of held-out "
        f"photos; 95% interval {low:.1%} to {high:.1%}; F1 with each label's threshold "
        f"{results.cv_macro_f1:.1%} (mean over labels), {results.cv_micro_f1:.1%} (all together)"
    )
    if results.test_mean_average_precision is None or results.test_interval is None:
        return [
            *lines,
            plain_clip,
            held_out,
            "there is no test split: each photo was predicted by a model trained on the other "
            "folds, whose photos also chose the thresholds",
        ]
    low, high = results.test_interval
    return [
        *lines,
        held_out,
        plain_clip,
        f"{title}: mean average precision {results.test_mean_average_precision:.1%} of "
        f"{results.test_images_read} test images; 95% interval {low:.1%} to {high:.1%}; F1 "
        f"{results.test_macro_f1:.1%} (mean over labels), {results.test_micro_f1:.1%} (all "
        "together)",
    ]
