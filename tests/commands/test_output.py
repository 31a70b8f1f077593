"""A closed, full or unread output ends no run, and loses no result."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Prints far more than a pipe holds, then says on a file of its own that it ended.
PROGRAM = """
import sys
from pathlib import Path
from fgvpl_jax.commands.output import output_error, steady_outputs
outputs = steady_outputs()
for number in range(20_000):
    print("line", number)
    print("line", number, file=sys.stderr)
sys.stdout.flush()
Path(sys.argv[1]).write_text(str(output_error()))
"""


def end_of(tmp_path, redirection):
    """Runs the program in a shell; returns what it wrote to its own file."""
    file = tmp_path / "end"
    command = f"'{sys.executable}' -c '{PROGRAM}' '{file}' {redirection}"
    subprocess.run(command, shell=True, cwd=ROOT, check=True)
    return file.read_text()


@pytest.mark.parametrize("redirection", [">&- 2>/dev/null", "<&- >&- 2>&-", ">/dev/null 2>&-"])
def test_closed_streams_discard_the_output(tmp_path, redirection):
    assert end_of(tmp_path, redirection) == "None"


def test_a_program_continues_without_its_reader(tmp_path):
    assert "Broken pipe" in end_of(tmp_path, "2>/dev/null | head -1")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_kept_as_an_error(tmp_path):
    assert "No space left" in end_of(tmp_path, ">/dev/full 2>/dev/full")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_the_command_says_that_output_was_lost():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "run.py", "--help"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    lost = "some of the output could not be written (No space left on device)"
    assert done.stderr == f"error: {lost}\n"


def test_control_characters_in_the_names_of_files_are_escaped(photos_dir, tmp_path):
    shutil.copytree(photos_dir / "train", tmp_path / "photos")
    (next((tmp_path / "photos").iterdir()) / "x\x1b[31m\nerror: y").touch()
    command = [sys.executable, "run.py", "--mode=data", "--config=configs/folder.py"]
    command += [f"--config.data.root={tmp_path / 'photos'}", f"--workdir={tmp_path / 'W'}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert r"x\x1b[31m\x0aerror: y" in done.stdout
    assert "\x1b" not in done.stdout


def test_control_characters_in_warnings_are_escaped():
    program = """
from absl import logging
from fgvpl_jax.commands.console import quieten_libraries
quieten_libraries()
logging.warning("skipped %s", "x\x1b[31m")
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert done.stderr.endswith("skipped x\\x1b[31m\n")
