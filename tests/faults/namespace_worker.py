"""Runs commands, one per line of JSON, in the mount namespace that this process was started in.

One process runs all commands, so that a run takes a second and does not import jax again.
"""

import json
import os
import subprocess
import sys
import traceback

from absl import flags, logging

from fgvpl_jax.commands import command_line


def run_command(arguments: list[str], log: str) -> int:
    """Runs `run.py` with all output sent to a file; returns the exit code."""
    kept = [os.dup(number) for number in (1, 2)]
    with open(log, "wb") as stream:
        for number in (1, 2):
            os.dup2(stream.fileno(), number)
    sys.argv = ["run.py", *arguments]  # ml_collections reads sys.argv too
    try:
        return command_line.main(command_line.parse_flags(sys.argv))
    except Exception:
        traceback.print_exc()
        return 1
    finally:
        for setting in [name for name in flags.FLAGS if name.startswith("config.")]:
            delattr(flags.FLAGS, setting)  # otherwise the next run would define it twice
        sys.stdout.flush()
        for number, descriptor in zip((1, 2), kept, strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)


def main() -> None:
    logging.use_absl_handler()  # as the command does
    for line in sys.stdin:
        program, *arguments = json.loads(line)
        if program == "run.py":
            code = run_command(arguments[1:], arguments[0])
        else:
            code = subprocess.run([program, *arguments], check=False, stdout=sys.stderr).returncode
        print(code, flush=True)


if __name__ == "__main__":
    main()
