"""The results of a run: what is in `results.json`, with the unit of every number."""

import types
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from fgvpl_jax.clip import Identity
from fgvpl_jax.errors import UserError
from fgvpl_jax.evaluation import LearningCurve, MaskIoU, NoneOfThese
from fgvpl_jax.files import read_json
from fgvpl_jax.methods import METHODS, Choices
from fgvpl_jax.runs.default_config import get_config
from fgvpl_jax.runs.workdir import Workdir

# Fields whose keys are at the top level of the JSON object, in this order after `counts`.
SPREAD = ("facts", "choices")
# Fields that are null in the JSON object where they have no value; all others are left out there.
NULLABLE = ("shots", "test_accuracy")
SEVERAL_LABELS = "several labels"  # `task` in the results of runs with several labels a photo
SCORES = ("accuracy", "mean_class_accuracy", "nll", "ece")
ONLY_WITH_TEST_SPLIT = (
    *(f"test_{score}" for score in SCORES),
    "test_nll_tempered",
    "test_ece_tempered",
    "test_images_read",
)
ONLY_WITHOUT_TEST_SPLIT = (*(f"cv_{score}" for score in SCORES), "cv_interval")


@dataclass(frozen=True)
class ImageCounts:
    """Number of images in each split of a run.

    Attributes:
        train: Number of support images.
        validation: Number of few-shot validation images; 0 without a validation split.
        test: Number of test images, unreadable ones included; 0 without a test split.
    """

    train: int
    validation: int
    test: int


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One method that a run with the method "auto" tried, or did not try.

    Attributes:
        method: Name of the method.
        predicted_seconds: Predicted time for its folds and its final training; None for a method
            that is fitted in one go.
        seconds: Time that it took; 0 if it was not tried.
        nll: NLL of the held-out photos at the temperature that suits the method best, with smoothed
            targets, in nats.
        accuracy: Share of the held-out photos that are classified correctly.
        weight: Weight of its probabilities in the final classifier; 0 for a method that lost.
        temperature: Divisor of its logits in a mix.
        choices: Its values chosen on validation, if it is part of the final classifier.
        note: Reason why it was not tried, or why it failed.
    """

    method: str
    predicted_seconds: float | None = None
    seconds: float = 0.0
    nll: float | None = None
    accuracy: float | None = None
    weight: float = 0.0
    temperature: float | None = None
    choices: Choices = field(default_factory=dict)
    note: str = ""


# Types of the objects within the JSON object.
PARTS = (Identity, ImageCounts, MaskIoU, LearningCurve, NoneOfThese, Tried)


@dataclass(frozen=True, kw_only=True)
class RunResults:
    """The results of a run, in the order of `results.json`.

    Accuracies and calibration errors (ECE, 15 bins) are fractions from 0 to 1; NLL, the negative
    log-likelihood per image, is in nats. A run without a test split has the `cv_` scores of
    cross-validation instead of the `test_` scores; a run with the method "auto" has both.

    Attributes:
        method: Name of the method, a key of `fgvpl_jax.methods.METHODS`, or "auto".
        benchmark: Name of the benchmark, from the config.
        backbone: Name and content hashes of the CLIP backbone.
        shots: Training images per class; None if the run takes all images.
        seed: Seed of the draw and of training.
        epochs: Number of training epochs; 0 for a method that trains nothing.
        num_classes: Number of classes.
        split_protocol: Sentence that says who made the splits and how.
        counts: Number of images in each split.
        facts: Values that the method reports about its trained model, such as
            `gradient_norm`. Top-level keys in the JSON object.
        choices: Values chosen on validation, such as `cache_logit_weight` (λ), by name. Top-level
            keys in the JSON object.
        validation_accuracy: Validation accuracy of each candidate, as a fraction; empty if there is
            no readable validation image.
        validation_unreadable: "path: reason" of every validation image that cannot be read.
        temperature: Divisor of the logits that calibrates the probabilities; 1 if none helps.
        temperature_fitted_on: Names of the photos, joined by " and ": "held-out support",
            "validation" or "folds"; None if there were too few.
        fitted_ece_before: ECE of the images that the temperature was fitted on, at temperature 1,
            as a fraction.
        fitted_ece_after: ECE of the same images at the fitted temperature, as a fraction.
        test_accuracy: Share of the test images that are classified correctly; None without a test
            split.
        test_mean_class_accuracy: Mean over classes of the test accuracy, as a fraction.
        test_nll: NLL of the test images at temperature 1, in nats.
        test_ece: ECE of the test images at temperature 1, as a fraction.
        cv_accuracy: Share of the support images that are classified correctly when held out.
        cv_mean_class_accuracy: Mean over classes of the cross-validated accuracy, as a fraction.
        cv_nll: NLL of the held-out images, in nats.
        cv_ece: ECE of the held-out images, as a fraction.
        zero_shot_accuracy: Accuracy of zero-shot CLIP on the same images, as a fraction.
        zero_shot_mean_class_accuracy: Mean over classes of zero-shot CLIP's accuracy, as a
            fraction.
        zero_shot_nll: NLL of zero-shot CLIP, in nats.
        zero_shot_ece: ECE of zero-shot CLIP, as a fraction.
        test_nll_tempered: NLL of the test images at `temperature`, in nats.
        test_ece_tempered: ECE of the test images at `temperature`, as a fraction.
        test_images_read: Number of test images that could be read and were classified.
        cv_interval: Lower and upper end of the 95% Wilson interval of `cv_accuracy`, as fractions;
            copies count as one image.
        unreadable: "path: reason" of every test image that cannot be read.
        mask_iou: Mean IoU of the object masks with the true masks, from 0 to 1; None if the method
            has no masks or the data has no true ones.
        learning_curve: Held-out accuracy of a quick classifier by the number of photos, and what
            twice as many would bring; None if each class has fewer than four photos, and with more
            than 20,000 photos.
        none_of_these: Threshold of the score below which a photo belongs to none of the classes,
            and the rates at which held-out photos are below it; None with fewer than ten held-out
            photos, and with more than 20,000 photos.
        tried: The methods that "auto" tried, in order; None for other methods.
        reason: Reason why these methods make up the final classifier of "auto".
        train_seconds: Duration of all epochs, in seconds, including those before an interruption.
            Of a method that trains for no epoch, duration of its fit, including the choices that
            belong to it. Encoding photos into frozen features or kept tokens is not counted. For
            "auto", duration of everything that was tried.
        wall_seconds: Duration of the last command, in seconds.
    """

    method: str
    benchmark: str
    backbone: Identity
    shots: int | None
    seed: int
    epochs: int
    num_classes: int
    split_protocol: str
    counts: ImageCounts
    facts: dict[str, Any] = field(default_factory=dict)
    choices: Choices = field(default_factory=dict)
    validation_accuracy: dict[str, float]
    validation_unreadable: tuple[str, ...]
    temperature: float
    temperature_fitted_on: str | None = None
    fitted_ece_before: float | None = None
    fitted_ece_after: float | None = None
    test_accuracy: float | None
    test_mean_class_accuracy: float | None = None
    test_nll: float | None = None
    test_ece: float | None = None
    cv_accuracy: float | None = None
    cv_mean_class_accuracy: float | None = None
    cv_nll: float | None = None
    cv_ece: float | None = None
    zero_shot_accuracy: float
    zero_shot_mean_class_accuracy: float
    zero_shot_nll: float
    zero_shot_ece: float
    test_nll_tempered: float | None = None
    test_ece_tempered: float | None = None
    test_images_read: int | None = None
    cv_interval: tuple[float, float] | None = None
    unreadable: tuple[str, ...]
    mask_iou: MaskIoU | None = None
    learning_curve: LearningCurve | None = None
    none_of_these: NoneOfThese | None = None
    tried: tuple[Tried, ...] | None = None
    reason: str | None = None
    train_seconds: float
    wall_seconds: float

    @property
    def trained_method(self) -> str:
        """Name of the method that predicts; of a mix that "auto" made, the names of all members."""
        return " + ".join(one.method for one in self.members) or self.method

    @property
    def members(self) -> tuple[Tried, ...]:
        """The methods that make up the final classifier of "auto"; empty for other methods."""
        return tuple(one for one in self.tried or () if one.weight)

    def to_json(self) -> dict[str, Any]:
        """Returns the JSON object of `results.json`."""
        content: dict[str, Any] = {}
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name in SPREAD:
                content |= value
            elif value is not None or one.name in NULLABLE:
                content[one.name] = _to_json(value)
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any], file: Path) -> "RunResults":
        """Returns the results that a JSON object holds.

        A key that is no field is one of `choices` if the run's method chooses a value of that name
        on validation; otherwise it is one of `facts`.

        Args:
            content: The JSON object.
            file: File that held it, for the message of an error.
        Raises:
            UserError: If a field is missing or of another type.
        """
        try:
            return cls(**_from_json(content))
        except ValueError as error:
            raise UserError(
                f"{file} is damaged ({error}): restore it, or evaluate the run again"
            ) from error

    def write(self, workdir: Workdir) -> None:
        """Writes `results.json`, whole or not at all; only process 0 writes."""
        workdir.write(workdir.results_file, self.to_json())

    @classmethod
    def read(cls, workdir: Workdir) -> "RunResults":
        """Reads `results.json`.

        Raises:
            UserError: If the file is damaged, and names the field; if the run has several labels a
                photo.
        """
        content = read_json(workdir.results_file)
        if content.get("task") == SEVERAL_LABELS:
            raise UserError(
                f"{workdir.path} holds a run with several labels a photo, which only training, "
                "--mode=evaluate and --mode=predict take (in Python, load_multi_label)"
            )
        return cls.from_json(content, workdir.results_file)


def _to_json(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, MaskIoU | LearningCurve | NoneOfThese):
        return {name: _to_json(one) for name, one in value._asdict().items()}
    return list(map(_to_json, value)) if isinstance(value, tuple) else value


def _from_json(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `RunResults`; raises `ValueError`, which names the field."""
    hints = {n: hint for n, hint in get_type_hints(RunResults).items() if n not in SPREAD}
    required = {f.name for f in fields(RunResults) if f.default is MISSING} - {*SPREAD}
    if content.get("test_accuracy") is not None:
        required |= {*ONLY_WITH_TEST_SPLIT}
    else:
        required |= {*ONLY_WITHOUT_TEST_SPLIT}
    method = METHODS.get(_chosen_method(content))
    chosen = {} if method is None else method.starting_choices(get_config())
    for name in (*hints, *chosen):
        if name in {*required, *chosen} and name not in content:
            raise ValueError(f"the field {name} is missing")
    arguments = {n: converted(content[n], hints[n], n) for n in hints if n in content}
    arguments["choices"] = {n: converted(content[n], float, n) for n in chosen}
    arguments["facts"] = {
        n: value for n, value in content.items() if n not in hints and n not in chosen
    }
    return arguments


def _chosen_method(content: Mapping[str, Any]) -> str:
    """Returns the method whose choices are the run's: its own, or the only one of "auto"."""
    tried = content.get("tried") or ()
    members = [one["method"] for one in tried if isinstance(one, dict) and one.get("weight")]
    return str(members[0] if len(members) == 1 else content.get("method"))


def converted(value: Any, kind: Any, name: str) -> Any:
    """Returns a value of JSON as a field's type; raises `ValueError`, which names the field."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is types.UnionType:  # all of these are `... | None`
        return None if value is None else converted(value, arguments[0], name)
    if origin is dict and isinstance(value, dict):
        return {key: converted(one, arguments[1], f"{name}.{key}") for key, one in value.items()}
    if origin is tuple and isinstance(value, list):
        kinds = [arguments[0]] * len(value) if arguments[-1] is ... else [*arguments]
        if len(kinds) == len(value):
            pairs = zip(value, kinds, strict=True)
            return tuple(converted(one, kind, name) for one, kind in pairs)
    if origin is None and kind in PARTS and isinstance(value, dict):
        hints = get_type_hints(kind)
        if kind is Identity:  # runs before small files had a hash are known by their weights alone
            value = {"small_files_sha256": "", **value}
        differing = sorted(hints.keys() ^ value.keys())
        if differing:
            state = "missing" if differing[0] in hints else "unknown"
            raise ValueError(f"the field {name}.{differing[0]} is {state}")
        return kind(**{n: converted(value[n], hint, f"{name}.{n}") for n, hint in hints.items()})
    if kind is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    if origin is None and type(value) is kind:
        return value
    raise ValueError(f"the field {name} is {value!r:.50}")
