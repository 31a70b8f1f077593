"""Runs commands in the test's process, which has imported jax and keeps compiled programs."""

import sys
from typing import NamedTuple

import jax
import pytest
from absl.flags import FLAGS
from absl.testing import flagsaver

from fgvpl_jax.commands import command_line


class Done(NamedTuple):
    """A command that has ended, with the names of `subprocess.CompletedProcess`."""

    returncode: int
    stdout: str
    stderr: str


def run_command(capsys: pytest.CaptureFixture[str], *arguments: object) -> Done:
    """Runs the command with these arguments; returns its exit code and output."""
    capsys.readouterr()
    command = ["run.py", *map(str, arguments)]
    with flagsaver.flagsaver(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", command)  # where ml_collections finds the fields to override
        patch.setattr(jax.distributed, "initialize", find_no_job)
        try:
            code = command_line.main(command_line.parse_flags(command))
        except SystemExit as end:  # of a mistake in the flags
            code = end.code or 0
        found = {name: FLAGS[name] for name in FLAGS if not name.startswith("config.")}
    # flagsaver removes the flags of libraries that the command was the first to import.
    for name in found.keys() - set(FLAGS):
        FLAGS[name] = found[name]
    return Done(code, *capsys.readouterr())


def find_no_job(*arguments: object, **options: object) -> None:
    """Fails like jax outside of a job; jax itself refuses to look once it has found its devices."""
    raise ValueError("coordinator_address should be defined.")
