"""Trains, measures and uses FG-VPL: `--config=configs/eurosat.py --workdir=W`.

Override fields of the config with `--config.FIELD=VALUE`, such as `--config.shots=8`. The command
is `python run.py` in a checkout, and `fgvpl` where the package is installed.
"""

import os
import sys
from contextlib import nullcontext
from logging import LogRecord, getLogger

from absl import app, flags, logging

from fgvpl_jax.commands import modes
from fgvpl_jax.commands.console import INTERRUPTED, MISTAKE, complain, printable
from fgvpl_jax.commands.flags import CONFIG
from fgvpl_jax.commands.modes import MODE, MODES, check_usage
from fgvpl_jax.errors import UserError
from fgvpl_jax.interruption import handling_signals

__all__ = [
    "CONFIG",
    "INTERRUPTED",
    "MISTAKE",
    "MODE",
    "complain",
    "main",
    "parse_flags",
    "printable",
    "run",
]


def run() -> None:
    """Runs the command; ends the process with its exit code."""
    for stream in (sys.stdout, sys.stderr):  # a file's name may hold bytes that are not text
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    app.run(main, flags_parser=parse_flags)


def parse_flags(argv: list[str]) -> list[str]:
    """Parses like absl, but reports a mistake in one line and exits with code 2."""
    if {"--help", "-help", "-h", "-?"} & set(argv):  # absl's own lists the flags of run.py alone
        print(__doc__, flags.FLAGS.module_help(modes.__name__), sep="\n")
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
    _quieten_libraries()
    mode = MODES[MODE.value]
    try:
        workdir = check_usage(MODE.value, argv[1:])
        with handling_signals() if mode.resumes else nullcontext():
            return mode.run(workdir, argv[1:])
    except UserError as error:
        return complain(error)
    except OSError as error:  # a full disk, a folder that cannot be written
        return complain(f"{error.filename or 'a file'}: {error.strerror or error}")
    except KeyboardInterrupt as interruption:
        hint = "; the same command resumes from the last checkpoint" if mode.resumes else ""
        print(f"interrupted{hint}", file=sys.stderr)
        return getattr(interruption, "exit_code", INTERRUPTED)


def _quieten_libraries() -> None:
    """Hides what libraries print about things that are no news to a user of the command."""
    logging.set_verbosity(logging.WARNING)  # orbax logs every file at INFO
    for logger in (logging.get_absl_logger(), getLogger("asyncio")):
        logger.addFilter(_is_not_from_orbax)
    sys.unraisablehook = _hide_late_writes
    # transformers warns when PyTorch is absent.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def _is_not_from_orbax(record: LogRecord) -> bool:
    """Orbax logs errors with their stacks, then raises them; `main` reports them in one line."""
    reason = str(record.exc_info[1]) if record.exc_info else ""
    return "orbax" not in record.pathname and "tensorstore" not in reason


def _hide_late_writes(unraisable: "sys.UnraisableHookArgs") -> None:
    """Hides the writes that were pending when a save failed: orbax has closed their event loop."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)
