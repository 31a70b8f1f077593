"""Variables of the environment change no result: they are not used, or refused in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cases import further
from tests.conftest import FAST_PROCESS
from tests.whole_runs import stored_results, without_times

ROOT = Path(__file__).parents[2]
# Settings of jax that would stop a run, or change its numbers or its checkpoints.
CHANGING = {
    "JAX_ENABLE_X64": "1",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_DEFAULT_PRNG_IMPL": "rbg",
    "JAX_RANDOM_SEED_OFFSET": "7",
    "JAX_DEBUG_INFS": "1",
    "JAX_TRANSFER_GUARD": "disallow",
    "JAX_DISABLE_JIT": "maybe",
}
HARMLESS = {
    "JAX_ROOT": "/opt/jax",
    "JAX_COMPILATION_CACHE_DIR": "/proc/no/such/folder",
    "JAX_LOGGING_LEVEL": "ERROR",
    "MPLBACKEND": "unknown",
    "ALL_PROXY": "socks4://127.0.0.1:9",
    "http_proxy": "unknown://127.0.0.1:9",
    "no_proxy": "[::1",
    "HOME": "/proc/no/such/home",
    "TMPDIR": "/proc/no/such/folder",
    "TERM": "dumb",
}


def train(tiny_clip_dir, photos_dir, workdir, variables, *arguments):
    return subprocess.run(
        [
            *(sys.executable, "run.py", "--config=configs/folder.py", f"--workdir={workdir}"),
            *(f"--config.clip={tiny_clip_dir}", f"--config.data.root={photos_dir}"),
            *("--config.method=fg_vpl", "--config.shots=2", "--config.epochs=1"),
            "--config.data.image_cache_gb=0",
            *arguments,
        ],
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | variables,
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )


@pytest.mark.slow  # trains in several processes
def test_no_variable_changes_a_result(tiny_clip_dir, photos_dir, tmp_path):
    plain = train(tiny_clip_dir, photos_dir, tmp_path / "plain", {})
    assert plain.returncode == 0, plain.stderr
    changed = train(tiny_clip_dir, photos_dir, tmp_path / "changed", CHANGING | HARMLESS)
    assert changed.returncode == 0, changed.stderr
    (note,) = [line for line in changed.stderr.splitlines() if line.startswith("note: ")]
    assert all(f"{name}={value}" in note for name, value in CHANGING.items())
    assert not any(name in note for name in HARMLESS)
    assert "note: " not in plain.stderr
    ours, theirs = (stored_results(tmp_path / name) for name in ("changed", "plain"))
    assert without_times(ours) == without_times(theirs)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"JAX_PLATFORMS": "garbage"}, "JAX_PLATFORMS=garbage cannot be used"),
        ({"JAX_DEFAULT_MATMUL_PRECISION": "some"}, "correct the variable or unset it"),
        (
            {
                "SLURM_JOB_ID": "array 7",
                "SLURM_NTASKS": "2",
                "SLURM_PROCID": "0",
                "SLURM_LOCALID": "0",
                "SLURM_STEP_NODELIST": "localhost",
            },
            "correct the variables of Slurm",
        ),
        *further(
            ({"JAX_PLATFORMS": "rocm"}, "JAX_PLATFORMS=rocm cannot be used"),
            (
                {"JAX_PLATFORMS": "", "JAX_PLATFORM_NAME": "garbage"},
                "JAX_PLATFORM_NAME=garbage cannot be used",
            ),
            ({"JAX_NUM_CPU_DEVICES": "0"}, "JAX_NUM_CPU_DEVICES=0 cannot be used"),
            ({"JAX_NUM_CPU_DEVICES": "two"}, "correct the variable or unset it"),
            ({"OMPI_MCA_orte_hnp_uri": "1.0;tcp://127.0.0.1:9"}, "OMPI_COMM_WORLD_SIZE"),
        ),
    ],
)
def test_a_wrong_variable_is_refused_in_one_line(
    tiny_clip_dir, photos_dir, tmp_path, variables, message
):
    done = train(tiny_clip_dir, photos_dir, tmp_path / "W", variables)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("note: ")]
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "W").exists()


def test_settings_that_change_numbers_are_used_and_reported(tiny_clip_dir, photos_dir, tmp_path):
    fast = f"{FAST_PROCESS['XLA_FLAGS']} --xla_cpu_enable_fast_math=true"
    variables = {"JAX_DEFAULT_MATMUL_PRECISION": "highest", "XLA_FLAGS": fast}
    method = "--config.method=gda"  # needs the fewest programs
    done = train(tiny_clip_dir, photos_dir, tmp_path / "W", variables, method)
    assert done.returncode == 0, done.stderr
    assert "note: JAX_DEFAULT_MATMUL_PRECISION=highest may change numbers" in done.stderr
    assert f"note: XLA_FLAGS={fast} may change numbers" in done.stderr
