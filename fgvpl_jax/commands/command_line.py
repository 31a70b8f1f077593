"""Trains, measures and uses FG-VPL: `--config=configs/eurosat.py --workdir=W`.

Override fields of the config with `--config.FIELD=VALUE`, such as `--config.shots=8`. The command
is `python run.py` in a checkout, and `fgvpl` where the package is installed.
"""

import errno
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING

from absl import app, flags, logging

from fgvpl_jax.commands import flags as command_flags
from fgvpl_jax.commands import using_runs
from fgvpl_jax.commands.console import (
    INTERRUPTED,
    LOST_PROCESS,
    MISTAKE,
    complain,
    printable,
    quieten_libraries,
)
from fgvpl_jax.commands.environment import check_devices, import_jax
from fgvpl_jax.commands.flags import (
    COCO,
    CONFIG,
    COORDINATOR,
    EVIDENCE,
    FORMAT,
    HOST,
    JSON,
    NUM_PROCESSES,
    OUTPUT,
    OVERLAY_DIR,
    PORT,
    PROCESS_ID,
    PUSH_TO_HUB,
    REGIONS,
    TENSORBOARD,
    TOKEN_FILE,
    TOP_K,
    WANDB,
)
from fgvpl_jax.commands.modes import Mode, check_usage
from fgvpl_jax.commands.output import steady_outputs
from fgvpl_jax.commands.shipped_configs import config_named
from fgvpl_jax.errors import UserError
from fgvpl_jax.files import expand_user
from fgvpl_jax.interruption import handling_signals

if TYPE_CHECKING:
    from fgvpl_jax.runs.workdir import Workdir

PROCESSES = (COORDINATOR, NUM_PROCESSES, PROCESS_ID)

__all__ = [
    "CONFIG",
    "INTERRUPTED",
    "MISTAKE",
    "MODE",
    "MODES",
    "complain",
    "main",
    "parse_flags",
    "printable",
    "run",
]


def run() -> None:
    """Runs the command; ends the process with its exit code."""
    outputs = steady_outputs()
    logging.get_absl_handler().python_handler.stream = sys.stderr
    try:
        app.run(main, flags_parser=parse_flags)
    finally:
        sys.stdout.flush()
        for output in outputs:
            if output.lost is not None and output.lost.errno != errno.EPIPE:
                complain(f"some of the output could not be written ({output.lost.strerror})")


def parse_flags(argv: list[str]) -> list[str]:
    """Parses like absl, but reports a mistake in one line and exits with code 2."""
    if {"--help", "-help", "-h", "-?"} & set(argv):  # absl's own lists the flags of run.py alone
        print(__doc__, flags.FLAGS.module_help(__name__), sep="\n")
        sys.exit()
    try:
        arguments = flags.FLAGS(argv)
        if CONFIG.value is not None:
            CONFIG.value.lock()  # ml_collections reports a file that it could not load only here
        return arguments
    except AttributeError as error:  # ml_collections: an override of a field that does not exist
        reason = error.args[0]
        if isinstance(reason, KeyError):  # str() of it would add another pair of quotes
            reason = reason.args[0]
        problem = f"unknown config field {reason} The fields: fgvpl_jax/runs/default_config.py"
    except OSError as error:
        problem = f"no config ({error.__cause__ or error}): name a file, as in configs/"
    except (flags.Error, LookupError, TypeError, ValueError, RecursionError, MemoryError) as error:
        problem = str(error) or f"{type(error).__name__} in the settings: simplify them"
    sys.exit(complain(problem))


def main(argv: list[str]) -> int:
    """Runs one mode; returns the exit code."""
    quieten_libraries()
    mode = MODES[MODE.value]
    try:
        workdir = check_usage(MODES, MODE.value, argv[1:])
        import_jax()
        with handling_signals() if mode.resumes else nullcontext():
            return mode.run(workdir, argv[1:])
    except UserError as error:
        return complain(error)
    except OSError as error:  # a full disk, a folder that cannot be written
        return complain(f"{error.filename or 'a file'}: {error.strerror or error}")
    except KeyboardInterrupt as interruption:
        return _interrupted(interruption, mode)


def _interrupted(interruption: KeyboardInterrupt, mode: Mode) -> int:
    hint = "; the same command resumes from the last checkpoint" if mode.resumes else ""
    print(f"interrupted{hint}", file=sys.stderr)
    return getattr(interruption, "exit_code", INTERRUPTED)


# The functions of modes import what they need when they are called, so that `--help` and mistakes
# do not wait for jax.


def train(workdir: str, arguments: list[str]) -> int:
    """Trains and evaluates; resumes a run that was interrupted."""

    def call() -> list[str]:
        from fgvpl_jax.runs import experiment
        from fgvpl_jax.runs.label_results import label_summary
        from fgvpl_jax.runs.label_run import has_label_list
        from fgvpl_jax.runs.multi_label import train_labels
        from fgvpl_jax.runs.summary import summary_lines
        from fgvpl_jax.runs.training_monitor import LogTargets
        from fgvpl_jax.runs.workdir import Workdir

        targets = LogTargets(TENSORBOARD.value, WANDB.value)
        if has_label_list(CONFIG.value):
            if targets != LogTargets():
                raise UserError(
                    "a run with several labels a photo has no epochs to log: leave --tensorboard "
                    "and --wandb out"
                )
            return label_summary(train_labels(CONFIG.value, Workdir(workdir)))
        return summary_lines(experiment.train_and_evaluate(CONFIG.value, Workdir(workdir), targets))

    return _run_and_print(call)


def evaluate(workdir: str, arguments: list[str]) -> int:
    """Evaluates a trained run again."""

    def call() -> list[str]:
        from fgvpl_jax.runs import experiment
        from fgvpl_jax.runs.label_results import label_summary
        from fgvpl_jax.runs.multi_label import evaluate_labels
        from fgvpl_jax.runs.summary import summary_lines
        from fgvpl_jax.runs.workdir import Workdir

        run = Workdir(workdir)
        if run.label_model_file.exists():
            return label_summary(evaluate_labels(run, CONFIG.value))
        return summary_lines(experiment.evaluate(run, CONFIG.value))

    return _run_and_print(call)


def _run_and_print(call: Callable[[], list[str]]) -> int:
    """Joins the processes of the job, runs, and prints the lines of the results on process 0."""
    import jax

    from fgvpl_jax.training import LostProcesses, is_writer, join_processes

    try:
        join_processes(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    except LostProcesses as error:
        sys.stdout.flush()
        os._exit(complain(error))  # an ordinary exit would wait for jax, which still waits
    except KeyboardInterrupt as interruption:
        os._exit(_interrupted(interruption, MODES[MODE.value]))  # see above
    check_devices()
    try:
        lines = call()
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        # If jax notices first, it ends the process itself and says that another task died.
        reason = str(error).splitlines()[0]
        complain(
            f"another process of this job died or cannot be reached ({reason}): start all of them "
            "again with the same commands, to resume from the last checkpoint"
        )
        os._exit(LOST_PROCESS)  # an ordinary exit would wait for the lost process
    if is_writer():
        for line in lines:
            print(line)
    return 0


def check_data(workdir: str, arguments: list[str]) -> int:
    """Prints what the data holds; returns exit code 2 if something is wrong with it."""
    from fgvpl_jax.runs import check_data as checking
    from fgvpl_jax.runs.workdir import Workdir

    expand_user(CONFIG.value.data.root or "")  # refuses the home folder of an unknown user
    lines, problems = checking.check_data(CONFIG.value, Workdir(workdir))
    for line in lines:
        print(printable(line).replace("\n", r"\x0a"))
    for problem in problems:
        complain(problem)
    _look_at_data(Workdir(workdir))
    return MISTAKE if problems else 0


def _look_at_data(workdir: "Workdir") -> None:
    """Writes the page of photos to look at, if the data are a user's own and the backbone loads."""
    if CONFIG.value.data.source != "folder":
        return
    from fgvpl_jax.reports.data_page import FOLDER, write_data_page
    from fgvpl_jax.runs.data_look import look_at_data
    from fgvpl_jax.runs.prepare import check_is_outside_photos

    try:
        check_is_outside_photos(workdir, CONFIG.value)
        check_devices()
        look = look_at_data(CONFIG.value, workdir)
    except UserError as error:
        print(printable(f"labels and outliers were not looked at: {error}"))
        return
    if look is not None:
        page = write_data_page(look, workdir.path / FOLDER)
        found = (
            f"{len(look.mislabelled)} photos are probably mislabelled, {len(look.copies)} groups "
            f"of copies are in several classes or splits, {len(look.outliers)} photos are outliers"
        )
        print(printable(f"to look at: {found}; see {page}"))


def sweep(workdir: str, arguments: list[str]) -> int:
    """Runs the cells of a sweep that have no results yet; returns exit code 2 if a cell failed."""
    from fgvpl_jax.sweeps.worker import run_sweep

    config = CONFIG.value
    if "grid" not in config:
        raise UserError(
            "--config names a single run: name a sweep's config, such as configs/sweep.py"
        )
    check_devices()
    cells = run_sweep(config, workdir, config_named)
    failed = [cell for cell in cells if cell.problem is not None]
    if failed:
        return complain(
            f"{len(failed)} of {len(cells)} cells failed. The first is {failed[0].name}: "
            f"{failed[0].problem}; {workdir}/errors lists all of them, and the same command tries "
            "them again"
        )
    return 0


MODES = {
    "train": Mode(
        train,
        "trains and evaluates a run",
        (CONFIG, TENSORBOARD, WANDB, *PROCESSES),
        needs_config=True,
        resumes=True,
    ),
    "evaluate": Mode(
        evaluate,
        "evaluates a trained run again",
        (CONFIG, *PROCESSES),
    ),
    "predict": Mode(
        using_runs.predict,
        "names the classes of photos (files or folders after the flags) with a trained run",
        (CONFIG, TOP_K, JSON, OVERLAY_DIR, EVIDENCE, REGIONS, COCO),
        takes_arguments=True,
    ),
    "serve": Mode(
        using_runs.serve,
        "serves a web page for a trained run; photos after the flags are its examples",
        (CONFIG, HOST, PORT, TOKEN_FILE),
        takes_arguments=True,
    ),
    "data": Mode(
        check_data,
        "checks the data and trains nothing; has TFDS prepare the data first if necessary",
        (CONFIG,),
        needs_config=True,
    ),
    "sweep": Mode(
        sweep,
        "makes many runs",
        (CONFIG,),
        needs_config=True,
        resumes=True,
    ),
    "report": Mode(
        using_runs.report,
        "writes tables and figures of all runs in the workdir, or in the folders after the flags",
        (),
        takes_arguments=True,
    ),
    "export": Mode(
        using_runs.export,
        "writes a trained run for use without this package",
        (CONFIG, OUTPUT, FORMAT, PUSH_TO_HUB),
    ),
}

flags.adopt_module_key_flags(command_flags)  # the help text lists all of them together
MODE = flags.DEFINE_enum(
    "mode",
    "train",
    list(MODES),
    "\n".join(["what to do.", *(f"{name}: {mode.help}." for name, mode in MODES.items())]),
)
