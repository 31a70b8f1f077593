"""The compilation benchmark runs and leaves the settings of JAX unchanged."""

import jax

from benchmarks import compile_time
from benchmarks.measuring import SHAPES
from fgvpl_jax.clip.config import VisionConfig


def test_every_stage_of_compilation_is_timed(monkeypatch):
    tiny = VisionConfig(32, 2, 2, 64, image_size=32, embed_dim=16)
    monkeypatch.setitem(SHAPES, "tiny", tiny)
    before = jax.config.jax_compilation_cache_dir
    result = compile_time.main(["tiny"], batch=2, rematerialise=False, rounds=1)
    assert jax.config.jax_compilation_cache_dir == before
    for program in compile_time.NAMES:
        for figure in ("lowered", "compiled", "again", "temporary_mib"):
            assert result[f"tiny_{program}_{figure}"] > 0
    assert result["tiny_train_step_over_plain_clip"] > 0
