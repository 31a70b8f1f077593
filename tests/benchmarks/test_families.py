"""The benchmark of the families has towers of the published sizes, and measures time and memory."""

from dataclasses import replace

import pytest
from flax import nnx

from benchmarks import families

TINY = {"width": 32, "num_layers": 2, "num_heads": 2, "mlp_width": 64, "embed_dim": 32}
# Millions of parameters of the image towers, from OpenCLIP's table docs/model_profile.csv.
PUBLISHED = {"ViT-B/32": 87.85, "ViT-B/16": 86.19, "RN50": 38.32, "SigLIP-B/16": 92.88}


def test_time_and_memory_are_measured(monkeypatch):
    tiny = replace(families.SIGLIP_B16, **TINY, image_size=32, patch_size=16)
    monkeypatch.setattr(families, "SIGLIP_B16", tiny)
    result = families.main(["SigLIP-B/16"], batch=2, rounds=1)
    assert result["SigLIP-B/16 plain_pass_over_plain_pass"] == 1
    memory = {}
    for program in families.PROGRAMS.values():
        assert result[f"SigLIP-B/16 {program}_seconds_per_image"] > 0
        memory[program] = result[f"SigLIP-B/16 {program}_arguments_mib"]
    # The step adds the trainable parts and their optimizer state to the tower's weights.
    assert memory["train_step"] > memory["features"] > memory["plain_pass"] > 0


@pytest.mark.parametrize("family", PUBLISHED)
def test_towers_have_the_published_number_of_parameters(family):
    state = nnx.to_flat_state(nnx.state(nnx.eval_shape(families.TOWERS[family])))
    statistics = ("mean", "variance")  # BatchNorm's, which are no parameters
    count = sum(leaf.size for path, leaf in state if path[-1] not in statistics)
    assert count / 1e6 == pytest.approx(PUBLISHED[family], abs=0.01)
