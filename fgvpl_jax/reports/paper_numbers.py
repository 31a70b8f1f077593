"""The paper's numbers, for comparison; accuracies are in percent.

All are on the full test splits with OpenAI's CLIP. Of Figures 3 and 4 only the numbers that the
text states are here.
"""

from collections.abc import Mapping

from fgvpl_jax.displays.labels import BENCHMARKS, FG_VPL

_B16, _B32 = "clip-vit-base-patch16", "clip-vit-base-patch32"
_RN50 = "resnet50_clip.openai"
_SHOTS = (1, 2, 4, 8, 16)

# Table 2, ImageNet, ViT-B/16.
_TABLE_2 = {
    "zero_shot": (68.7, 68.7, 68.7, 68.7, 68.7),
    "linear_probe": (32.0, 44.6, 54.4, 62.0, 67.7),
    "tip_adapter_f": (69.8, 70.0, 70.8, 71.9, 73.7),
    "fvp": (69.7, 70.7, 71.3, 71.5, 74.5),
    "tar": (70.0, 70.6, 71.7, 72.9, 74.5),
    "fg_vpl": (70.3, 71.1, 72.5, 73.0, 75.5),
}
# Table 2, ImageNet, ResNet-50.
_TABLE_2_RESNET = {
    "zero_shot": (60.3, 60.3, 60.3, 60.3, 60.3),
    "linear_probe": (22.2, 31.9, 41.2, 49.5, 56.1),
    "clip_adapter": (61.2, 61.5, 61.8, 62.7, 63.6),
    "coop": (57.2, 57.8, 60.0, 61.6, 63.0),
    "tip_adapter_f": (61.3, 61.7, 62.5, 64.0, 65.5),
}
# Table 3, ImageNet, 16 shots: ViT-B/32, ViT-B/16.
_TABLE_3 = {
    "zero_shot": (63.8, 68.7),
    "clip_adapter": (66.2, 71.1),
    "coop": (66.9, 71.9),
    "tip_adapter": (65.6, 70.8),
    "tip_adapter_f": (68.7, 73.7),
    "fg_vpl": (70.1, 75.5),
}
# Tables 4 and 5, ImageNet, 16 shots, ViT-B/16, by config field.
_GRIDS: Mapping[str, Mapping[float, float]] = {
    "text_residual_ratio": {0.01: 75.2, 0.05: 75.5, 0.10: 75.3, 0.15: 75.2, 0.20: 75.1},
    "object_logit_weight": {0.1: 75.0, 0.3: 75.4, 0.5: 75.5, 0.7: 75.2, 0.9: 75.0},
}
# Figure 3, 16 shots, ViT-B/16: points of FG-VPL above zero-shot CLIP.
_GAINS: Mapping[str, float] = {"imagenet": 6.8, "sun397": 16.1, "eurosat": 45.7}
# Section 4.3: FG-VPL's average over the eleven benchmarks, and its points above Tip-Adapter-F, by
# shots.
_AVERAGE_AT_16 = 85.6
_AVERAGE_ABOVE_TIP_ADAPTER_F: Mapping[int, float] = dict(
    zip(_SHOTS, (1.8, 1.8, 2.9, 3.1, 4.2), strict=True)
)
# Section 4.2: number of epochs of FG-VPL.
_EPOCHS: Mapping[str, int] = dict.fromkeys(BENCHMARKS, 100) | {"imagenet": 50, "eurosat": 400}


def paper_accuracy(benchmark: str, backbone: str, method: str, shots: int | None) -> float | None:
    """Returns the paper's accuracy in percent; None where the paper has no number.

    Args:
        benchmark: Value of `config.benchmark`.
        backbone: Last part of the hub id or folder.
        method: Value of `config.method`.
        shots: Training images per class; None for all.
    """
    if benchmark != "imagenet":
        return None
    if backbone == _B16 and shots in _SHOTS and method in _TABLE_2:
        return _TABLE_2[method][_SHOTS.index(shots)]
    if backbone == _RN50 and shots in _SHOTS and method in _TABLE_2_RESNET:
        return _TABLE_2_RESNET[method][_SHOTS.index(shots)]
    if backbone in (_B32, _B16) and shots == 16 and method in _TABLE_3:
        return _TABLE_3[method][(_B32, _B16).index(backbone)]
    return None


def paper_setting(
    benchmark: str, backbone: str, method: str, shots: int | None, name: str, value: object
) -> float | None:
    """Returns the paper's accuracy in percent with one setting varied; None for most settings."""
    if (benchmark, backbone, method, shots) != ("imagenet", _B16, FG_VPL, 16):
        return None
    return _GRIDS[name].get(value) if name in _GRIDS and isinstance(value, float) else None


def paper_gain(benchmark: str, backbone: str, method: str, shots: int | None) -> float | None:
    """Returns the paper's points above zero-shot CLIP; None where the paper has no number."""
    if (backbone, method, shots) != (_B16, FG_VPL, 16):
        return None
    return _GAINS.get(benchmark)


def paper_average(
    benchmarks: frozenset[str], backbone: str, method: str, shots: int | None
) -> float | None:
    """Returns the paper's average accuracy in percent; None for other than its 11 benchmarks."""
    if (benchmarks, backbone, method, shots) != (BENCHMARKS.keys(), _B16, FG_VPL, 16):
        return None
    return _AVERAGE_AT_16


def paper_average_lead(
    benchmarks: frozenset[str], backbone: str, shots: int | None
) -> float | None:
    """Returns the paper's average lead of FG-VPL over Tip-Adapter-F, in points.

    None for a backbone or benchmarks that are not the paper's.
    """
    if (benchmarks, backbone) != (BENCHMARKS.keys(), _B16) or shots is None:
        return None
    return _AVERAGE_ABOVE_TIP_ADAPTER_F.get(shots)


def paper_epochs(benchmark: str, method: str) -> int | None:
    """Returns the paper's number of epochs; None where the paper does not state its own."""
    return _EPOCHS.get(benchmark) if method in (FG_VPL, "fvp", "tar") else None
