"""Display names of methods and benchmarks, and their order in the paper."""

from fgvpl_jax.methods import AUTO, METHODS

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
    """Returns a method's name in tables; for an unknown method, the name itself."""
    if method == AUTO:
        return "Auto"
    return METHODS[method].title if method in METHODS else method


def benchmark_label(benchmark: str) -> str:
    """Returns a benchmark's name in tables; the name itself if it is not one of the paper's."""
    return BENCHMARKS.get(benchmark, benchmark)


def method_order(method: str) -> tuple[int, str]:
    """Returns a sort key: methods in the order of `METHODS`, as in the tables, then others."""
    return (list(METHODS).index(method) if method in METHODS else len(METHODS), method)


def benchmark_order(benchmark: str) -> tuple[int, str]:
    """Returns a sort key: benchmarks in the order of the paper's tables, then others."""
    names = list(BENCHMARKS)
    return (names.index(benchmark) if benchmark in names else len(names), benchmark)


def shots_order(shots: int | None) -> float:
    """Returns a sort key for shots; all images come last."""
    return float("inf") if shots is None else float(shots)


def shots_label(shots: int | None) -> str:
    """Returns shots in words."""
    return "all images" if shots is None else f"{shots} shot{'s' * (shots != 1)}"
