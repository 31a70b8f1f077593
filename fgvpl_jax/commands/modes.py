"""Modes of the command line, and the check that a command fits its mode."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from absl import flags

from fgvpl_jax.commands.flags import CONFIG, WORKDIR
from fgvpl_jax.errors import UserError


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


def check_usage(modes: Mapping[str, Mode], name: str, arguments: list[str]) -> str:
    """Checks that the flags and arguments given are those of a mode.

    Args:
        modes: All modes, by name.
        name: Name of the mode.
        arguments: Positional arguments.

    Returns:
        The workdir.

    Raises:
        UserError: If one is missing, or belongs to other modes.
    """
    mode = modes[name]
    if arguments and not mode.takes_arguments:
        raise UserError(f"unexpected argument {arguments[0]!r}: settings start with --config.")
    if WORKDIR.value is None:
        raise UserError("no --workdir: name the run's folder, such as --workdir=runs/eurosat")
    for flag, owners in modes_by_flag(modes).items():
        if name not in owners and flags.FLAGS[flag].present:
            *others, last = (f"--mode={owner}" for owner in owners)
            belongs = f"{', '.join(others)} and {last}" if others else last
            raise UserError(f"--{flag} belongs to {belongs}, not to --mode={name}: leave it out")
    if mode.needs_config and CONFIG.value is None:
        raise UserError("no --config: name a file, such as --config=configs/eurosat.py")
    return WORKDIR.value


def modes_by_flag(modes: Mapping[str, Mode]) -> dict[str, list[str]]:
    """Returns the names of the modes that take each flag."""
    owners: dict[str, list[str]] = {}
    for name, mode in modes.items():
        for flag in mode.flags:
            owners.setdefault(flag.name, []).append(name)
    return owners
