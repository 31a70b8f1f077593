"""The benchmark of ONNX Runtime starts each runtime in a process, and they agree."""

import numpy as np
import pytest

from fgvpl_jax.clip.config import VisionConfig

pytest.importorskip("onnx", reason="needs the extra `onnx`")
pytest.importorskip("onnxruntime", reason="needs the extra `onnx`")

from benchmarks import measuring, onnx_runtime

SIZES = {"image_size": 32, "patch_size": 8, "embed_dim": 32}
TINY = VisionConfig(width=64, num_layers=3, num_heads=2, mlp_width=256, **SIZES)


@pytest.mark.slow
def test_time_memory_and_sizes_are_measured(monkeypatch):
    monkeypatch.setitem(measuring.SHAPES, "tiny", TINY)
    result = onnx_runtime.main("tiny", [1, 3], rounds=1)
    assert 0 < result["onnx_int8_file_mb"] < result["onnx_file_mb"]
    for batch in (1, 3):
        assert result[f"batch_{batch}_predict_over_predict"] == 1
        for runtime in onnx_runtime.RUNTIMES:
            assert result[f"batch_{batch}_{runtime}_ms"] > 0
            assert result[f"batch_{batch}_{runtime}_peak_mib"] > 10
        # Onnxruntime's processes do not load jax.
        peaks = [result[f"batch_{batch}_{name}_peak_mib"] for name in ("onnx", "jax_export")]
        assert peaks[0] < 0.7 * peaks[1]


def test_the_runtimes_compute_the_same_logits(monkeypatch, tmp_path):
    (tmp_path / onnx_runtime.CONFIG).write_text(onnx_runtime.json.dumps(vars(TINY)))
    onnx_runtime.write(tmp_path, 3)
    images = np.load(tmp_path / onnx_runtime.IMAGES)
    expected = onnx_runtime.RUNTIMES["predict"](tmp_path)(images).logits
    exported = onnx_runtime.RUNTIMES["jax_export"](tmp_path)(images)["logits"]
    np.testing.assert_allclose(exported, expected, rtol=1e-4, atol=1e-4)
    _, found, *_ = onnx_runtime.RUNTIMES["onnx"](tmp_path)(images)  # outputs are sorted by name
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
