"""Eight simulated devices give what one gives."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

PROGRAM = """
import json, sys
from ml_collections import ConfigDict
from fgvpl_jax.apps.experiment import train_and_evaluate
from fgvpl_jax.apps.workdir import Workdir
import jax
config = ConfigDict(json.loads(sys.argv[1]))
results = train_and_evaluate(config, Workdir(sys.argv[2]))
print(json.dumps({"devices": jax.device_count(), **results}))
"""


def run(config, workdir: Path, devices: int) -> tuple[dict, list[dict]]:
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(config.to_dict()), str(workdir)],
        env=environment,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return json.loads(done.stdout.splitlines()[-1]), [json.loads(line) for line in lines]


@pytest.mark.slow
def test_eight_devices_equal_one(tiny_config, tmp_path):
    tiny_config.batch_size = 8
    one, one_metrics = run(tiny_config, tmp_path / "one", 1)
    eight, eight_metrics = run(tiny_config, tmp_path / "eight", 8)
    assert (one["devices"], eight["devices"]) == (1, 8)
    np.testing.assert_allclose(
        [m["loss"] for m in one_metrics], [m["loss"] for m in eight_metrics], rtol=1e-4
    )
    assert one["test_accuracy"] == pytest.approx(eight["test_accuracy"], abs=0.1)
