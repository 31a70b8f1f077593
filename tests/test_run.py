"""Runs the command line and checks its exit codes, output and one-line errors."""

import json
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from absl.testing import flagsaver
from flax import nnx

from fgvpl_jax.commands import command_line
from fgvpl_jax.commands.command_line import MODES
from tests.commands_in_process import run_command
from tests.label_lists import write_label_list
from tests.whole_runs import stored_results

ROOT = Path(__file__).parents[1]


def run(*arguments):
    """Runs run.py in a process of its own; returns the completed process."""
    return subprocess.run(
        [sys.executable, "run.py", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture
def command(capsys, monkeypatch):
    """Returns a function that runs a command in this process, in the folder of run.py."""
    monkeypatch.chdir(ROOT)
    return partial(run_command, capsys)


def imported_by(program, *modules):
    """Returns which of these modules a program imports, in a process of its own."""
    program += f"; import sys; print(*({set(modules)} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return done.stdout.split()


def test_a_config_is_read_without_importing_jax():
    """Importing jax takes a second, which help and error messages do not need to wait for."""
    program = "from configs import eurosat; assert eurosat.get_config().benchmark == 'eurosat'"
    slow = ("jax", "grain", "transformers", "tensorflow_datasets")
    assert imported_by(program, *slow) == []


def test_load_classifier_is_imported_without_statistics_and_optimisers():
    """These alone took a fifth of the time of all imports."""
    program = "from fgvpl_jax import load_classifier"
    assert imported_by(program, "scipy.stats", "scipy.optimize", "sklearn") == []


def test_help_lists_the_flags_and_exits_with_0():
    done = run("--help")
    assert done.returncode == 0
    for flag in ("--config", "--workdir", "--mode", "--top_k", "--output"):
        assert flag in done.stdout


def test_the_shipped_configs_are_found_from_any_folder(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "run.py", "--config=configs/eurosat.py"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert "no --workdir" in done.stderr
    (tmp_path / "configs").mkdir()
    own = "def get_config():\n    raise ValueError('my own')\n"
    (tmp_path / "configs" / "eurosat.py").write_text(own)
    done = subprocess.run(
        [sys.executable, ROOT / "run.py", "--config=configs/eurosat.py"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert "my own" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/none.py", "--workdir=W"], "configs/none.py"),
        (["--config", "configs/none.py", "--workdir=W"], "configs/none.py"),
        (["--config=configs/none.py", "--config.shots=3"], "configs/none.py"),
        (["--config=configs/eurosat.py", f"--workdir={__file__}/W"], "is a file"),
        (["--config=configs/eurosat.py", "--workdir=W", f"--config.seed={10**20}"], "seed is 1"),
        (["--config=configs/eurosat.py", "--workdir=W", "--config.learning_rate=nan"], "nan"),
        (
            [
                "--config=configs/eurosat.py",
                "--workdir=W",
                "--config.cache_logit_weight_grid=('a',)",
            ],
            "'a'",
        ),
        (["--config=configs/eurosat.py", "--config.shotz=3"], "unknown config field"),
        (["--config=configs/eurosat.py", "--config.data.rot=3"], '"root" instead of "rot"'),
        (["--config=configs/eurosat.py", "--config.shots=many"], "many"),
        (
            ["--config=configs/eurosat.py", "--mode=fly"],
            "<train|evaluate|predict|serve|data|sweep|report|export>",
        ),
        (["--config=configs/eurosat.py", "--mode=sweep", "--workdir=W"], "names a single run"),
        (["--config=configs/sweep.py", "--mode=sweep", "--wandb=P"], "--workdir"),
        (
            ["--config=configs/sweep.py", "--mode=sweep", "--workdir=W", "--wandb=P"],
            "--wandb belongs to --mode=train, not to --mode=sweep",
        ),
        (
            ["--config=configs/eurosat.py", "--workdir=W", "--output=x"],
            "--output belongs to --mode=export, not to --mode=train",
        ),
        (
            ["--config=configs/eurosat.py", "--mode=report", "--workdir=W"],
            "--mode=export, not to --mode=report",
        ),
        (
            [
                *("--config=configs/sweep.py", "--mode=sweep", "--workdir=W"),
                "--config.benchmarks=('eurosad',)",
            ],
            "no benchmark 'eurosad'",
        ),
        (["--mode=report", "--workdir=/no/such/run"], "no folder '/no/such/run'"),
        (["--config=configs/eurosat.py", "--confg=x"], "confg"),
        (["--config=configs/eurosat.py", "eight"], "'eight'"),
        (["--config=configs/eurosat.py"], "--workdir"),
        (["--workdir=/no/such/run"], "--config"),
        (["--workdir=/no/such/run", "--mode=evaluate"], "holds no run"),
        (["--workdir=/no/such/run", "--mode=export"], "--output=eurosat.fgvpl"),
        (["--workdir=/no/such/run", "--mode=export", "--format=onnx"], "--output=eurosat.onnx"),
        (
            ["--workdir=/no/such/run", "--mode=export", "--format=onnx_int8"],
            "--output=eurosat.onnx",
        ),
        (
            ["--workdir=/no/such/run", "--mode=export", "--format=hf"],
            "no --output: name the folder",
        ),
        (["--workdir=/no/such/run", "--mode=export", "--output=W.fgvpl"], "holds no run"),
        (
            ["--workdir=W", "--mode=export", "--output=W.fgvpl", "--push_to_hub=owner/name"],
            "add --format=hf",
        ),
        (
            [
                *("--workdir=W", "--mode=export", "--output=W", "--format=hf"),
                "--push_to_hub=name",
            ],
            "such as owner/name",
        ),
        (["--workdir=/no/such/run", "--mode=predict", __file__], "holds no run"),
        (["--workdir=/no/such/run", "--mode=serve", "/no/example.png"], "/no/example.png"),
        (
            ["--config=configs/food101.py", "--workdir=/no/such/run", "--config.data.root=/nodata"],
            "/nodata",
        ),
        (
            [
                "--config=configs/food101.py",
                "--workdir=/no/such/run",
                "--config.data.source=tfds",
                "--config.data.root=/nodata",
            ],
            "python -m fgvpl_jax.data.tfds_prepare food101 /nodata",
        ),
    ],
)
def test_mistakes_print_one_line_and_exit_with_2(arguments, message, command):
    check_mistake(command(*arguments), message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=", "--workdir=W"], "no config"),
        (["--workdir=/no/such/run", "--mode=evaluate"], "holds no run"),
    ],
)
def test_the_process_ends_with_the_exit_code_of_a_mistake(arguments, message):
    check_mistake(run(*arguments), message)


def check_mistake(done, message):
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert message in lines[0]


def test_serving_without_gradio_says_how_to_install_it(monkeypatch, capsys):
    for name in list(sys.modules):
        if name.startswith("fgvpl_jax.serving"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gradio", None)
    with flagsaver.flagsaver():
        command_line.parse_flags(["run.py", "--workdir=/no/such/run", "--mode=serve"])
        assert command_line.main(["run.py"]) == command_line.MISTAKE
    assert "pip install -c constraints.txt -e '.[serve]'" in capsys.readouterr().err


def test_an_export_without_onnx_says_how_to_install_it(monkeypatch, capsys):
    for name in list(sys.modules):
        if name.startswith(("onnx", "fgvpl_jax.inference.onnx")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnx", None)
    arguments = ["--workdir=/no/such/run", "--mode=export", "--output=W.onnx", "--format=onnx"]
    with flagsaver.flagsaver():
        command_line.parse_flags(["run.py", *arguments])
        assert command_line.main(["run.py"]) == command_line.MISTAKE
    assert "pip install -c constraints.txt -e '.[onnx]'" in capsys.readouterr().err


def test_the_command_checks_a_data_set(photos_dir, tmp_path, command):
    copy = tmp_path / "photos"
    shutil.copytree(photos_dir, copy)
    arguments = ["--config=configs/folder.py", f"--config.data.root={copy}", "--mode=data"]
    done = command(*arguments, f"--workdir={tmp_path / 'W'}")
    assert done.returncode == 0, done.stderr
    *_, verdict, look = done.stdout.splitlines()
    assert verdict.startswith("nothing is wrong")
    assert look.startswith("labels and outliers were not looked at: there is no directory openai")
    (copy / "test" / "red_square" / "002.png").write_bytes(b"")
    done = command(*arguments, f"--workdir={tmp_path / 'W'}")
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "red_square/002.png: the file is empty" in line
    assert command("--mode=data", f"--workdir={tmp_path / 'W'}").returncode == 2


def test_the_command_trains_evaluates_and_predicts(tiny_clip_dir, photos_dir, tmp_path, command):
    overrides = [f"--config.clip={tiny_clip_dir}", f"--config.data.root={photos_dir}"]
    overrides.append("--config.method=fg_vpl")
    workdir = f"--workdir={tmp_path / 'W'}"
    settings = ["shots=3", "epochs=4", "batch_size=4", "eval_batch_size=8"]
    settings = [f"--config.{setting}" for setting in settings]
    done = command("--config=configs/folder.py", workdir, *overrides, *settings)
    assert done.returncode == 0, done.stderr
    results = stored_results(tmp_path / "W")
    assert f"FG-VPL: {results['test_accuracy']:.2%} of 15 test images" in done.stdout
    again = command(workdir, "--mode=evaluate")
    assert again.returncode == 0, again.stderr
    assert done.stdout.splitlines()[-1] == again.stdout.splitlines()[-1]
    (tmp_path / "broken.png").write_bytes(b"")
    photos = [str(tmp_path / "broken.png"), str(photos_dir / "test" / "red_square")]
    moved = ["--config=configs/folder.py", f"--config.clip={tiny_clip_dir}"]
    done = command(workdir, "--mode=predict", "--json", *moved, *photos)
    assert done.returncode == 2
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["image"] for line in lines] == [photos[0]] + [
        f"{photos[1]}/{i:03}.png" for i in range(5)
    ]
    assert ["error" in line for line in lines] == [True] + 5 * [False]
    assert "broken.png: the file is empty" in done.stderr


@pytest.mark.parametrize(
    ("mode", "promise"),
    [
        ("train", "; the same command resumes from the last checkpoint"),
        ("sweep", "; the same command resumes from the last checkpoint"),
        ("predict", ""),
    ],
)
def test_only_modes_that_resume_promise_it_when_interrupted(mode, promise, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setitem(MODES, mode, replace(MODES[mode], run=interrupted))
    config = f"--config={ROOT}/configs/eurosat.py"
    with flagsaver.flagsaver():
        command_line.parse_flags(["run.py", "--workdir=W", f"--mode={mode}", config])
        assert command_line.main(["run.py"]) == command_line.INTERRUPTED
    assert capsys.readouterr().err == f"interrupted{promise}\n"


def test_the_command_trains_on_a_list_with_several_labels(demo_clip_dir, tmp_path, command):
    arguments = [
        f"--config.data.root={write_label_list(tmp_path / 'list')}",
        f"--config.clip={demo_clip_dir}",
        f"--workdir={tmp_path / 'W'}",
    ]
    done = command("--config=configs/folder.py", *arguments, "--config.method=fg_vpl")
    assert done.returncode == command_line.MISTAKE
    assert "fg_vpl cannot learn several labels a photo" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    done = command("--config=configs/folder.py", *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("Kernel ridge, plain: mean average precision")


def test_a_full_disk_is_reported_without_a_stack(monkeypatch, capsys, caplog, tmp_path):
    from fgvpl_jax.training import Checkpoints, Progress, Provenance, TrainState

    def save(*_):
        with Checkpoints(tmp_path / "checkpoints", Provenance("tar", [], {}, 1)) as checkpoints:
            checkpoints.save(1, Progress(TrainState(nnx.State({}), None), 1))

    monkeypatch.setitem(MODES, "train", replace(MODES["train"], run=save))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with flagsaver.flagsaver():
        command_line.parse_flags(["run.py", "--workdir=W", f"--config={ROOT}/configs/eurosat.py"])
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
        try:
            assert command_line.main(["run.py"]) == command_line.MISTAKE
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (line,) = capsys.readouterr().err.splitlines()
    assert "checkpoint cannot be written" in line and len(line) < 1000
    assert not caplog.records
