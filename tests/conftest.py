"""A tiny random CLIP and a tiny data set, written once for the tests of all rooms."""

import gc
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

# Tests compile the same small programs many times, some in separate processes. JAX reads these
# variables when it is imported.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "xla")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# OpenMP's threads spin while they wait for one another. Where other processes use the cores, such
# as the tests' own workers, 1,600 fits of scikit-learn took 72 CPU seconds instead of 4.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The marks that `make test`, `make further`, and a person who runs a further case alone select.
FAST_TESTS = (
    "not further and not slow and not browser",
    "further and not slow and not browser",
    "further",
)
# XLA's emitters of fused loops take more than half of the time to compile a small program. XLA ends
# the process if it does not know a flag; constraints.txt pins the release that knows these.
FAST_COMPILATION = (
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)
# The same for a process that a test starts, to which JAX's settings of optimisation are not given.
FAST_PROCESS = {
    "XLA_FLAGS": " ".join(
        [
            *FAST_COMPILATION,
            "--xla_backend_optimization_level=0",
            "--xla_llvm_disable_expensive_passes=true",
        ]
    )
}

COLOURS = {"red_square": (200, 40, 40), "green square": (40, 180, 60), "blue_square": (50, 60, 210)}


def write_photo_folders(root: Path, per_class: int, seed: int = 0) -> None:
    """Writes `root/<class>/<i>.png`, each a coloured square at a random place on noise."""
    rng = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(per_class):
            pixels = rng.integers(0, 120, (48, 40, 3), dtype=np.uint8)
            top, left = rng.integers(0, 24, size=2)
            pixels[top : top + 16, left : left + 16] = colour
            Image.fromarray(pixels).save(root / name / f"{i:03}.png")


def pytest_configure(config: pytest.Config) -> None:
    """Compiles the small programs of `FAST_TESTS` fast rather than well.

    Slow tests, comparisons with PyTorch, and processes that a test starts compile as users do,
    unless the test gives the process `FAST_PROCESS`.
    """
    starts_workers = config.getoption("numprocesses", None) and not hasattr(config, "workerinput")
    if config.getoption("markexpr") not in FAST_TESTS or starts_workers:
        return
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", " ".join([*FAST_COMPILATION, os.environ.get("XLA_FLAGS", "")]))
        jax.devices()  # XLA reads the variable once, when it finds the devices


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest test first, so that no worker waits for it at the end."""
    items.sort(key=lambda item: "test_kill.py" not in item.nodeid)


def pytest_collection_finish() -> None:
    """Collects garbage less often, which took a sixth of the tests' time.

    Tracing a program makes many objects. Modules and tests live to the end and are never visited.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 20, 20)


def pytest_sessionfinish() -> None:
    """Collects garbage once, so that the five times after which pytest ends take no time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory):
    """Keeps tests, and the processes they start, out of the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache_home")))
        yield


@pytest.fixture(scope="session")
def tiny_clip_dir(tmp_path_factory) -> Path:
    from tests.tiny_clip import write_tiny_clip

    directory = tmp_path_factory.mktemp("tiny_clip")
    write_tiny_clip(directory)
    return directory


@pytest.fixture(scope="session")
def photos_dir(tmp_path_factory) -> Path:
    """Writes train, val and test folders of three classes; returns their parent."""
    root = tmp_path_factory.mktemp("photos")
    for seed, (split, count) in enumerate({"train": 6, "val": 3, "test": 5}.items()):
        write_photo_folders(root / split, count, seed)
    return root


@pytest.fixture(scope="session")
def demo_clip_dir() -> Path:
    """Returns the folder of the demonstration's trained CLIP."""
    return Path(__file__).parents[1] / "demo" / "clip"


@pytest.fixture(scope="module")
def browser():
    """Yields an installed Chromium, which the variable CHROMIUM may name."""
    sync_api = pytest.importorskip("playwright.sync_api")
    names = (os.environ.get("CHROMIUM"), shutil.which("chromium"), shutil.which("google-chrome"))
    chromium = next(filter(None, names), None)
    if chromium is None:
        pytest.skip("no Chromium is installed")
    with sync_api.sync_playwright() as playwright:
        # The sandbox needs privileges that containers lack; only our own pages are opened.
        launched = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield launched
        launched.close()


def make_tiny_config(tiny_clip_dir: Path, photos_dir: Path) -> ConfigDict:
    """Returns the config of a whole run that takes a few seconds."""
    from fgvpl_jax.runs import default_config

    config = default_config.get_config()
    config.benchmark = "squares"
    config.clip = str(tiny_clip_dir)
    config.data.source = "folder"
    config.data.root = str(photos_dir)
    config.data.image_cache_gb = 0  # tests share photos, but must not share cached images
    config.shots = 3
    config.epochs = 4
    config.batch_size = 4
    config.eval_batch_size = 8
    config.checkpoint_every_epochs = 2
    config.cache_logit_weight_grid = (0.0, 1.0, 4.0)
    return config


@pytest.fixture
def tiny_config(tiny_clip_dir, photos_dir) -> ConfigDict:
    """Returns the config of a whole run that takes a few seconds; a test may change it."""
    return make_tiny_config(tiny_clip_dir, photos_dir)
