"""The table of modes: the function of each, its flags, and what else it takes."""

from collections.abc import Callable
from dataclasses import dataclass

from absl import flags

from fgvpl_jax.commands import flags as command_flags
from fgvpl_jax.commands import making_runs, using_runs
from fgvpl_jax.commands.flags import (
    CONFIG,
    COORDINATOR,
    HOST,
    JSON,
    NUM_PROCESSES,
    OUTPUT,
    OVERLAY_DIR,
    PORT,
    PROCESS_ID,
    TENSORBOARD,
    TOP_K,
    WANDB,
    WORKDIR,
)
from fgvpl_jax.errors import UserError

PROCESSES = (COORDINATOR, NUM_PROCESSES, PROCESS_ID)


@dataclass(frozen=True)
class Mode:
    """One thing that the command does.

    Attributes:
        run: Function called with the workdir and the positional arguments; returns the exit code.
        help: Line of the help text.
        flags: Flags that the mode takes in addition to --mode and --workdir.
        needs_config: Whether --config must be given.
        takes_arguments: Whether positional arguments may follow the flags.
        resumes: Whether the same command resumes after an interruption.
    """

    run: Callable[[str, list[str]], int]
    help: str
    flags: tuple[flags.FlagHolder, ...]
    needs_config: bool = False
    takes_arguments: bool = False
    resumes: bool = False


MODES = {
    "train": Mode(
        making_runs.train,
        "trains and evaluates a run",
        (CONFIG, TENSORBOARD, WANDB, *PROCESSES),
        needs_config=True,
        resumes=True,
    ),
    "evaluate": Mode(
        making_runs.evaluate,
        "evaluates a trained run again",
        (CONFIG, *PROCESSES),
    ),
    "predict": Mode(
        using_runs.predict,
        "names the classes of photos (files or folders after the flags) with a trained run",
        (CONFIG, TOP_K, JSON, OVERLAY_DIR),
        takes_arguments=True,
    ),
    "serve": Mode(
        using_runs.serve,
        "serves a web page for a trained run; photos after the flags are its examples",
        (CONFIG, HOST, PORT),
        takes_arguments=True,
    ),
    "data": Mode(
        making_runs.check_data,
        "checks the data and trains nothing; has TFDS prepare the data first if necessary",
        (CONFIG,),
        needs_config=True,
    ),
    "sweep": Mode(
        making_runs.sweep,
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
        "writes a trained run to one file that runs without this package",
        (CONFIG, OUTPUT),
    ),
}

flags.adopt_module_key_flags(command_flags)  # the help text lists all of them together
MODE = flags.DEFINE_enum(
    "mode",
    "train",
    list(MODES),
    "\n".join(["what to do.", *(f"{name}: {mode.help}." for name, mode in MODES.items())]),
)


def check_usage(name: str, arguments: list[str]) -> str:
    """Checks that the flags and arguments given are those of a mode.

    Args:
        name: Mode.
        arguments: Positional arguments.

    Returns:
        The workdir.

    Raises:
        UserError: If one is missing, or belongs to other modes.
    """
    mode = MODES[name]
    if arguments and not mode.takes_arguments:
        raise UserError(f"unexpected argument {arguments[0]!r}: settings start with --config.")
    if WORKDIR.value is None:
        raise UserError("no --workdir: name the run's folder, such as --workdir=runs/eurosat")
    for flag, owners in modes_by_flag().items():
        if name not in owners and flags.FLAGS[flag].present:
            *others, last = (f"--mode={owner}" for owner in owners)
            belongs = f"{', '.join(others)} and {last}" if others else last
            raise UserError(f"--{flag} belongs to {belongs}, not to --mode={name}: leave it out")
    if mode.needs_config and CONFIG.value is None:
        raise UserError("no --config: name a file, such as --config=configs/eurosat.py")
    return WORKDIR.value


def modes_by_flag() -> dict[str, list[str]]:
    """Returns the names of the modes that take each flag."""
    modes: dict[str, list[str]] = {}
    for name, mode in MODES.items():
        for flag in mode.flags:
            modes.setdefault(flag.name, []).append(name)
    return modes
