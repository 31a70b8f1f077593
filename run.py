"""Trains and measures FG-VPL: `python run.py --config=configs/eurosat.py --workdir=W`."""

import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from fgvpl_jax.errors import UserError

CONFIG = config_flags.DEFINE_config_file("config", None, "File with get_config().")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "evaluate"], "Train and evaluate, or evaluate a trained run."
)

MISTAKE = 2
INTERRUPTED = 130


def main(argv: list[str]) -> int:
    """Runs one mode; returns the exit code."""
    logging.set_verbosity(logging.WARNING)  # orbax tells of every file at INFO
    try:
        if argv[1:]:
            raise UserError(f"unexpected argument {argv[1]!r}: settings start with --config.")
        results = run_mode()
    except UserError as error:
        return complain(error)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return INTERRUPTED
    print_results(results)
    return 0


def run_mode() -> dict:
    """Calls what the flags name."""
    if WORKDIR.value is None:
        raise UserError("no --workdir: name a folder for the run, such as --workdir=runs/eurosat")
    from fgvpl_jax.apps import experiment
    from fgvpl_jax.apps.workdir import Workdir

    workdir = Workdir(WORKDIR.value)
    if MODE.value == "evaluate":
        return experiment.evaluate(workdir, CONFIG.value)
    if CONFIG.value is None:
        raise UserError("no --config: name a file, such as --config=configs/eurosat.py")
    return experiment.train_and_evaluate(CONFIG.value, workdir)


def print_results(results: dict) -> None:
    """The figures a person wants first; all of them are in results.json."""
    for weight, accuracy in results["validation_accuracy"].items():
        print(f"validation accuracy at cache_logit_weight {weight}: {accuracy:.2%}")
    print(f"cache_logit_weight: {results['cache_logit_weight']}")
    for line in results["unreadable"] if results["test_accuracy"] is not None else ():
        print(f"not read: {line}")
    if results["test_accuracy"] is None:
        print("no test split: nothing to measure on")
        return
    for name, prefix in (("zero-shot CLIP", "zero_shot"), ("FG-VPL", "test")):
        print(
            f"{name}: {results[f'{prefix}_accuracy']:.2%} of {results['test_images_read']} test "
            f"images (mean over classes {results[f'{prefix}_mean_class_accuracy']:.2%}, "
            f"NLL {results[f'{prefix}_nll']:.3f}, ECE {results[f'{prefix}_ece']:.3f})"
        )


def parse_flags(argv: list[str]) -> list[str]:
    """Parses as absl does, with one line and exit code 2 for what it cannot read."""
    for argument in argv[1:]:
        name, _, value = argument.partition("=")
        if name.lstrip("-") == "config" and value and not Path(value.split(":")[0]).is_file():
            sys.exit(complain(f"no config file {value}: see the files in configs/"))
    try:
        return flags.FLAGS(argv)
    except AttributeError as error:  # ml_collections: an override of a field that is not there
        sys.exit(complain(f"unknown config field {error}; the fields are in configs/common.py"))
    except (flags.Error, TypeError, ValueError) as error:
        sys.exit(complain(error))


def complain(message: object) -> int:
    """Prints one line; returns the exit code of a mistake."""
    print("error:", " ".join(str(message).split()), file=sys.stderr)
    return MISTAKE


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
