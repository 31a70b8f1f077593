"""Runs commands, one per line of JSON, in the mount namespace that it was started in.

One process runs all of them, so that each run takes a second and does not start jax again.
"""

import json
import os
import subprocess
import sys
import traceback

from absl import flags, logging

from fgvpl_jax.commands import command_line


def run_command(arguments: list[str], log: str) -> int:
    """Returns the exit code of `run.py`; its output and that of its libraries goes to a file."""
    kept = [os.dup(number) for number in (1, 2)]
    with open(log, "wb") as stream:
        for number in (1, 2):
            os.dup2(stream.fileno(), number)
    sys.argv = ["run.py", *arguments]  # ml_collections looks there too
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
    logging.use_absl_handler()  # like the command
    for line in sys.stdin:
        program, *arguments = json.loads(line)
        if program == "run.py":
            code = run_command(arguments[1:], arguments[0])
        else:
            code = subprocess.run([program, *arguments], check=False, stdout=sys.stderr).returncode
        print(code, flush=True)


if __name__ == "__main__":
    main()
