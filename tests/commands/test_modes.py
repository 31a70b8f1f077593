"""The table of modes: which flags and arguments each mode accepts, and what the help says."""

import re
from dataclasses import replace

import pytest
from absl import flags
from absl.testing import flagsaver

from fgvpl_jax.commands import command_line
from fgvpl_jax.commands.command_line import MODES
from fgvpl_jax.commands.modes import modes_by_flag

PROCESSES = {"coordinator_address", "num_processes", "process_id"}
# Written out, so that a flag that moves in the table is noticed.
ACCEPTED = {
    "train": {"config", "tensorboard", "wandb", *PROCESSES},
    "evaluate": {"config", *PROCESSES},
    "predict": {"config", "top_k", "json", "overlay_dir", "evidence", "regions", "coco"},
    "serve": {"config", "host", "port", "token_file"},
    "data": {"config"},
    "sweep": {"config"},
    "report": set(),
    "export": {"config", "output", "format", "push_to_hub"},
}
GIVEN = {
    "config": "--config=configs/eurosat.py",
    "tensorboard": "--tensorboard",
    "wandb": "--wandb=project",
    "coordinator_address": "--coordinator_address=127.0.0.1:1234",
    "num_processes": "--num_processes=2",
    "process_id": "--process_id=0",
    "top_k": "--top_k=5",  # the default, but given
    "json": "--nojson",
    "overlay_dir": "--overlay_dir=pictures",
    "evidence": "--evidence=predicted",
    "regions": "--regions",
    "coco": "--coco=regions.json",
    "host": "--host=127.0.0.1",
    "port": "--port=7860",
    "token_file": "--token_file=token",
    "output": "--output=file",
    "format": "--format=hf",
    "push_to_hub": "--push_to_hub=owner/name",
}
PAIRS = [(mode, flag) for mode in ACCEPTED for flag in GIVEN]
NEEDS_CONFIG = {"train", "data", "sweep"}
TAKES_ARGUMENTS = {"predict", "serve", "report"}


@pytest.fixture
def command(monkeypatch):
    """Runs the command with modes that only record their calls; returns exit code and calls."""

    def run(*arguments):
        calls = []
        for name, mode in list(MODES.items()):
            record = replace(mode, run=lambda *call, name=name: calls.append((name, *call)) or 0)
            monkeypatch.setitem(MODES, name, record)
        with flagsaver.flagsaver():
            return command_line.main(command_line.parse_flags(["run.py", *arguments])), calls

    return run


def config_of(mode):
    return [GIVEN["config"]] if mode in NEEDS_CONFIG else []


@pytest.mark.parametrize(("mode", "flag"), [p for p in PAIRS if p[1] not in ACCEPTED[p[0]]])
def test_a_flag_of_another_mode_is_refused(mode, flag, command, capsys):
    code, calls = command(f"--mode={mode}", "--workdir=W", *config_of(mode), GIVEN[flag])
    assert (code, calls) == (2, [])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --{flag} belongs to --mode=")
    assert line.endswith(f", not to --mode={mode}: leave it out")
    named = re.findall(r"--mode=(\w+)", line.split(", not to ")[0])
    assert named == [owner for owner in ACCEPTED if flag in ACCEPTED[owner]]


@pytest.mark.parametrize(("mode", "flag"), [p for p in PAIRS if p[1] in ACCEPTED[p[0]]])
def test_a_flag_of_the_mode_is_accepted(mode, flag, command, capsys):
    given = dict.fromkeys([*config_of(mode), GIVEN[flag]])
    code, calls = command(f"--mode={mode}", "--workdir=W", *given)
    assert (code, calls) == (0, [(mode, "W", [])])
    assert not capsys.readouterr().err


def test_the_words_of_a_refusal(command, capsys):
    command("--mode=train", "--workdir=W", "--output=x", GIVEN["config"])
    assert capsys.readouterr().err == (
        "error: --output belongs to --mode=export, not to --mode=train: leave it out\n"
    )
    command("--mode=sweep", "--workdir=W", "--process_id=0", GIVEN["config"])
    assert capsys.readouterr().err == (
        "error: --process_id belongs to --mode=train and --mode=evaluate, not to --mode=sweep: "
        "leave it out\n"
    )


@pytest.mark.parametrize("mode", ACCEPTED)
def test_which_modes_need_a_config(mode, command, capsys):
    code, _ = command(f"--mode={mode}", "--workdir=W")
    assert code == (2 if mode in NEEDS_CONFIG else 0)
    assert ("no --config" in capsys.readouterr().err) == (mode in NEEDS_CONFIG)


@pytest.mark.parametrize("mode", ACCEPTED)
def test_which_modes_take_arguments(mode, command, capsys):
    code, calls = command(f"--mode={mode}", "--workdir=W", *config_of(mode), "photo.jpg")
    if mode in TAKES_ARGUMENTS:
        assert (code, calls) == (0, [(mode, "W", ["photo.jpg"])])
    else:
        assert code == 2
        assert "'photo.jpg'" in capsys.readouterr().err


def test_every_mode_and_flag_of_the_command_is_in_these_tables():
    assert list(MODES) == list(ACCEPTED)
    assert flags.FLAGS[command_line.MODE.name].parser.enum_values == list(ACCEPTED)
    accepted = {name: {flag.name for flag in mode.flags} for name, mode in MODES.items()}
    assert accepted == ACCEPTED
    ours = flags.FLAGS.flags_by_module_dict()
    names = {
        flag.name
        for module, own in ours.items()
        for flag in own
        if module.startswith("fgvpl_jax.commands.") and "." not in flag.name
    }
    assert names == {"mode", "workdir", *GIVEN}


@pytest.mark.parametrize("flag", [flag for flag in GIVEN if flag != "config"])
def test_the_help_of_a_flag_names_its_modes(flag):
    text = re.sub(r"^<.*>: ", "", flags.FLAGS[flag].help)  # absl lists the values of an enum first
    modes, _, _ = text.partition(": ")
    assert modes.split(", ") == modes_by_flag(MODES)[flag]


def test_help_lists_every_mode_and_flag(capsys):
    with pytest.raises(SystemExit) as end:
        command_line.parse_flags(["run.py", "--help"])
    text = capsys.readouterr().out
    assert not end.value.code
    for name, mode in MODES.items():
        assert f"    {name}: {mode.help}"[:40] in text
    for flag in ("mode", "workdir", *GIVEN):
        assert re.search(rf"^  --(\[no\])?{flag}:", text, re.MULTILINE)
