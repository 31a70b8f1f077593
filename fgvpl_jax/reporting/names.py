"""What people call methods and benchmarks, and in which order the paper has them."""

METHODS = {
    "zero_shot": "Zero-shot CLIP",
    "linear_probe": "Linear probe",
    "clip_adapter": "CLIP-Adapter",
    "coop": "CoOp",
    "tip_adapter": "Tip-Adapter",
    "tip_adapter_f": "Tip-Adapter-F",
    "clip_lora": "CLIP-LoRA",
    "fvp": "FVP alone",
    "tar": "TAR alone",
    "fg_vpl": "FG-VPL",
}
ZERO_SHOT, FG_VPL = "zero_shot", "fg_vpl"

BENCHMARKS = {
    "imagenet": "ImageNet",
    "caltech101": "Caltech101",
    "oxford_pets": "OxfordPets",
    "stanford_cars": "StanfordCars",
    "oxford_flowers": "Flowers102",
    "food101": "Food101",
    "fgvc_aircraft": "FGVCAircraft",
    "sun397": "SUN397",
    "dtd": "DTD",
    "eurosat": "EuroSAT",
    "ucf101": "UCF101",
}


def method_label(method: str) -> str:
    """The name of a method in a table; its own where it is none of the paper's."""
    return METHODS.get(method, method)


def benchmark_label(benchmark: str) -> str:
    """The name of a benchmark in a table; its own where it is none of the paper's."""
    return BENCHMARKS.get(benchmark, benchmark)


def method_order(method: str) -> tuple[int, str]:
    """Sorts methods as the paper's tables do, and others behind them."""
    return (list(METHODS).index(method) if method in METHODS else len(METHODS), method)


def benchmark_order(benchmark: str) -> tuple[int, str]:
    """Sorts benchmarks as the paper's tables do, and others behind them."""
    names = list(BENCHMARKS)
    return (names.index(benchmark) if benchmark in names else len(names), benchmark)
