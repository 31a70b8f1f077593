"""Trains, measures and uses FG-VPL: `--config=configs/eurosat.py --workdir=W`.

The settings of a config: `--config.shots=8`. In a checkout the command is `python run.py`, where
the package is installed `fgvpl`.
"""

import os
import re
import sys
from contextlib import nullcontext
from logging import LogRecord, getLogger
from typing import TYPE_CHECKING

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from fgvpl_jax.commands.shipped_configs import ConfigFileParser
from fgvpl_jax.errors import UserError
from fgvpl_jax.interruption import handling_signals

if TYPE_CHECKING:
    from fgvpl_jax.inference.classifier import Classifier
    from fgvpl_jax.runs.results import RunResults

CONFIG = config_flags.DEFINE_config_file("config", None, "File with get_config().")
flags.FLAGS["config"].parser = ConfigFileParser("config")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "evaluate", "predict", "serve", "data", "sweep", "report", "export"],
    "train: train and evaluate; evaluate: a trained run again; predict: photos named after the "
    "flags, files or folders, by a trained run; serve: a web page for it, with photos named after "
    "the flags as examples; data: check the data, which TFDS prepares first "
    "where it has not, and train nothing; sweep: many runs; report: tables and figures of all runs "
    "in the workdir, or in folders named after the flags; export: a trained run as one file that "
    "needs this package no longer.",
)
TOP_K = flags.DEFINE_integer("top_k", 5, "predict: classes to name.")
JSON = flags.DEFINE_bool("json", False, "predict: JSON lines instead of text.")
OVERLAY_DIR = flags.DEFINE_string("overlay_dir", None, "predict: folder for a picture per photo.")
TENSORBOARD = flags.DEFINE_bool("tensorboard", False, "train: event files in the workdir too.")
WANDB = flags.DEFINE_string("wandb", None, "train: project of Weights & Biases to log to as well.")
HOST = flags.DEFINE_string("host", "127.0.0.1", "serve: address to listen at.")
PORT = flags.DEFINE_integer("port", 7860, "serve: of the address.")
OUTPUT = flags.DEFINE_string("output", None, "export: the new file.")

# For several processes where neither a TPU VM nor Slurm tells; see docs/multi_gpu.md.
COORDINATOR = flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of this job.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Number of this process, from 0.")

RESUMING = ("train", "sweep")

MISTAKE = 2
LOST_PROCESS = 3
INTERRUPTED = 130  # by Ctrl-C; 143 by SIGTERM


def main(argv: list[str]) -> int:
    """Runs one mode; returns the exit code."""
    logging.set_verbosity(logging.WARNING)  # orbax tells of every file at INFO
    for logger in (logging.get_absl_logger(), getLogger("asyncio")):
        logger.addFilter(is_not_of_orbax)
    sys.unraisablehook = hide_late_writes
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it would miss PyTorch aloud
    try:
        if argv[1:] and MODE.value not in ("predict", "serve", "report"):
            raise UserError(f"unexpected argument {argv[1]!r}: settings start with --config.")
        if WORKDIR.value is None:
            raise UserError("no --workdir: name the run's folder, such as --workdir=runs/eurosat")
        if MODE.value == "predict":
            return predict(WORKDIR.value, argv[1:])
        if MODE.value == "serve":
            return serve(WORKDIR.value, argv[1:])
        if MODE.value == "data":
            return check_data(WORKDIR.value)
        if MODE.value == "export":
            return export(WORKDIR.value)
        with handling_signals() if MODE.value in RESUMING else nullcontext():
            if MODE.value == "sweep":
                return sweep(WORKDIR.value)
            if MODE.value == "report":
                return report(WORKDIR.value, argv[1:])
            train_or_evaluate(WORKDIR.value)
    except UserError as error:
        return complain(error)
    except OSError as error:  # a full disk, a folder that cannot be written
        return complain(f"{error.filename or 'a file'}: {error.strerror or error}")
    except KeyboardInterrupt as interruption:
        goes_on = "; the same command goes on from the last checkpoint"
        print("interrupted" + goes_on * (MODE.value in RESUMING), file=sys.stderr)
        return getattr(interruption, "exit_code", INTERRUPTED)
    return 0


def train_or_evaluate(place: str) -> None:
    """Calls what the flags name; of several processes the first prints the results."""
    import jax

    from fgvpl_jax.runs import experiment
    from fgvpl_jax.runs.training_monitor import LogTargets
    from fgvpl_jax.runs.workdir import Workdir
    from fgvpl_jax.training import is_writer, join_processes

    join_processes(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    workdir = Workdir(place)
    try:
        if MODE.value == "evaluate":
            results = experiment.evaluate(workdir, CONFIG.value)
        else:
            targets = LogTargets(TENSORBOARD.value, WANDB.value)
            results = experiment.train_and_evaluate(named_config(), workdir, targets)
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        # Where jax notices first, it ends the process itself, and says that another task died.
        reason = str(error).splitlines()[0]
        complain(
            f"another process of this job died or cannot be reached ({reason}): start all again by "
            "the same commands, to go on from the last checkpoint"
        )
        os._exit(LOST_PROCESS)  # an ordinary exit would wait for the one that is lost
    if is_writer():
        print_results(results)


def named_config() -> ConfigDict:
    """The config, where a mode cannot do without."""
    if CONFIG.value is None:
        raise UserError("no --config: name a file, such as --config=configs/eurosat.py")
    return CONFIG.value


def check_data(place: str) -> int:
    """Prints what is in the data; exit code 2 if something is wrong with it."""
    from fgvpl_jax.runs import check_data as checking
    from fgvpl_jax.runs.workdir import Workdir

    lines, problems = checking.check_data(named_config(), Workdir(place))
    print("\n".join(lines))
    for problem in problems:
        complain(problem)
    return MISTAKE if problems else 0


def sweep(place: str) -> int:
    """Runs what is left of a sweep; exit code 2 if a cell failed."""
    from fgvpl_jax.commands.shipped_configs import config_named
    from fgvpl_jax.sweeps.worker import run_sweep

    config = named_config()
    if "grid" not in config:
        raise UserError("--config names a single run: sweep with one such as configs/sweep.py")
    cells = run_sweep(config, place, config_named)
    failed = [cell for cell in cells if cell.problem is not None]
    if failed:
        return complain(
            f"{len(failed)} of {len(cells)} cells failed, the first, {failed[0].name}, because of "
            f"{failed[0].problem}; all are in {place}/errors, and the same command tries them again"
        )
    return 0


def report(place: str, folders: list[str]) -> int:
    """Writes the report, and tells where it is."""
    from fgvpl_jax.reports.report import write_report

    for line in write_report(place, folders or [place]):
        print(line)
    return 0


def predict(place: str, arguments: list[str]) -> int:
    """Prints a prediction a photo; exit code 2 if a photo could not be read."""
    from fgvpl_jax.inference import predict as prediction

    photos = prediction.find_photos(arguments)
    classifier = trained(place)
    unreadable = 0
    for answer in prediction.predict_files(classifier, photos, TOP_K.value, OVERLAY_DIR.value):
        if isinstance(answer.result, UserError):
            unreadable += 1
            complain(answer.result)
        if JSON.value:
            print(prediction.as_json(answer), flush=True)  # for who reads along
        elif not isinstance(answer.result, UserError):
            print(printable(prediction.as_text(answer.result)), flush=True)
    if unreadable:
        complain(f"{unreadable} of {len(photos)} photos could not be read")
    return MISTAKE if unreadable else 0


def serve(place: str, arguments: list[str]) -> int:
    """Serves a trained run until it is interrupted."""
    try:
        from fgvpl_jax.serving import server
        from fgvpl_jax.serving.service import Limits
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in ("gradio", "fastapi", "uvicorn"):
            raise
        raise UserError(
            "--mode=serve needs Gradio: pip install -c constraints.txt -e '.[serve]' in a "
            "checkout, otherwise pip install 'gradio>=6.20,<7'"
        ) from error
    from fgvpl_jax.inference import predict as prediction

    examples = prediction.find_photos(arguments) if arguments else []
    classifier = trained(place)
    if not server.is_loopback(HOST.value):
        print(
            f"whoever reaches {HOST.value} can use this page and see the training photos most like "
            "theirs; there is no password and no encryption: see docs/serve.md",
            file=sys.stderr,
        )
    server.serve(classifier, HOST.value, PORT.value, Limits(), examples)
    return 0


def export(place: str) -> int:
    """Writes a trained run into one file."""
    if OUTPUT.value is None:
        raise UserError("no --output: name the new file, such as --output=eurosat.fgvpl")
    from fgvpl_jax.inference.export import export_classifier

    file = export_classifier(trained(place), OUTPUT.value)
    print(f"{file}: {file.stat().st_size / 1e6:,.1f} MB; docs/export.md says how to run it")
    return 0


def trained(place: str) -> "Classifier":
    """The run in a folder; as in evaluation the config may say where the backbone is now."""
    from fgvpl_jax.inference.classifier import load_classifier

    return load_classifier(place, None if CONFIG.value is None else CONFIG.value.clip)


def print_results(results: "RunResults") -> None:
    """Prints the most important results; all of them are in results.json."""
    from fgvpl_jax.runs.summary import summary_lines

    for line in summary_lines(results):
        print(line)


def parse_flags(argv: list[str]) -> list[str]:
    """Parses as absl does, with one line and exit code 2 for what it cannot read."""
    if {"--help", "-help", "-h", "-?"} & set(argv):  # absl's own lists the flags of a script alone
        print(__doc__, flags.FLAGS.module_help(__name__), sep="\n")
        sys.exit()
    try:
        arguments = flags.FLAGS(argv)
        if CONFIG.value is not None:
            CONFIG.value.lock()  # ml_collections tells of a file that it could not load only now
        return arguments
    except AttributeError as error:  # ml_collections: an override of a field that is not there
        reason = error.args[0]
        if isinstance(reason, KeyError):  # whose text would be quoted once more
            reason = reason.args[0]
        problem = f"unknown config field {reason} The fields: fgvpl_jax/runs/default_config.py"
    except OSError as error:
        problem = f"no config ({error.__cause__ or error}): name a file, as in configs/"
    except (flags.Error, LookupError, TypeError, ValueError, RecursionError, MemoryError) as error:
        problem = str(error) or f"{type(error).__name__} at the settings: simplify them"
    sys.exit(complain(problem))


def is_not_of_orbax(record: LogRecord) -> bool:
    """Orbax logs errors, with their stacks, which it then raises for us to tell in one line."""
    reason = str(record.exc_info[1]) if record.exc_info else ""
    return "orbax" not in record.pathname and "tensorstore" not in reason


def hide_late_writes(unraisable: "sys.UnraisableHookArgs") -> None:
    """What was still being written when a save failed reports to a loop that orbax has closed."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def complain(message: object) -> int:
    """Prints one line; returns the exit code of a mistake."""
    print("error:", printable(" ".join(str(message).split())), file=sys.stderr)
    return MISTAKE


def printable(text: str) -> str:
    """Lines in which no file's name holds what a terminal would obey."""
    return re.sub(r"[^\n\x20-\x7e\xa0-\U0010ffff]", lambda c: f"\\x{ord(c[0]):02x}", text)


def run() -> None:
    """The command; ends the process with the exit code."""
    for stream in (sys.stdout, sys.stderr):  # a file's name may hold bytes that are no text
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    app.run(main, flags_parser=parse_flags)
