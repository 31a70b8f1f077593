"""What people call methods and benchmarks, and in which order the paper has them."""

from fgvpl_jax.methods import METHODS

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
    """The name of a method in a table; its own where this program has none of it."""
    return METHODS[method].title if method in METHODS else method


def benchmark_label(benchmark: str) -> str:
    """The name of a benchmark in a table; its own where it is none of the paper's."""
    return BENCHMARKS.get(benchmark, benchmark)


def method_order(method: str) -> tuple[int, str]:
    """Sorts methods as `METHODS` does, which is the tables' order, and others behind them."""
    return (list(METHODS).index(method) if method in METHODS else len(METHODS), method)


def benchmark_order(benchmark: str) -> tuple[int, str]:
    """Sorts benchmarks as the paper's tables do, and others behind them."""
    names = list(BENCHMARKS)
    return (names.index(benchmark) if benchmark in names else len(names), benchmark)


def shots_order(shots: int | None) -> float:
    """Sorts shots; all images come last."""
    return float("inf") if shots is None else float(shots)


def shots_label(shots: int | None) -> str:
    """Shots in words."""
    return "all images" if shots is None else f"{shots} shot{'s' * (shots != 1)}"
