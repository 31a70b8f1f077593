"""Times the input of evaluation: decoding compared with plain Pillow loops, and the image cache.

    python -m benchmarks.input_pipeline [number of photos]

Draws photos of 500 x 375 pixels and more, as JPEG files, into a temporary folder; the target size
is CLIP's, 224. Ratios are medians over rounds in which all take turns, so that other work on the
machine slows all of them alike. If TensorFlow is installed, tf.data takes part too. Prints text,
then one JSON line.
"""

import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from importlib.util import find_spec
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from benchmarks.measuring import report
from fgvpl_jax.clip.config import VisionConfig
from fgvpl_jax.clip.image_input import TransformersProcessor
from fgvpl_jax.data import ImageCache, Split, Transform, batches, eval_batches
from fgvpl_jax.data.splits import make_split

SIDE, BATCH_SIZE, WORKERS, ROUNDS = 224, 64, 2, 5
# Seconds that a round of the processes may take; without it, one that dies would leave the others
# waiting for ever.
TIMEOUT = 600.0
# The speed of the first is divided by that of the second.
PAIRS = (
    ("threads", "pillow_processes"),
    ("threads", "tf_data"),
    ("first_evaluation", "threads"),
    ("second_evaluation", "first_evaluation"),
)
SIZES = ((500, 375), (640, 480), (512, 683), (800, 600))
PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": SIDE},
    "crop_size": {"height": SIDE, "width": SIDE},
    "resample": 3,
}


def main(num_photos: int) -> dict[str, float]:
    """Times all ways of reading and returns medians and ratios."""
    batches.NUM_THREADS = WORKERS
    with tempfile.TemporaryDirectory() as folder:
        split = draw_photos(Path(folder), num_photos)
        (Path(folder) / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
        vit_b_16 = VisionConfig(width=768, num_layers=12, num_heads=12, mlp_width=3072)
        transform = TransformersProcessor(Path(folder), vit_b_16.image_size).resize_and_crop
        seconds = defaultdict(list)
        for number in range(-1, ROUNDS):
            cache = ImageCache(Path(folder) / f"cache_{number}", 10**10)
            this_round = {
                "threads": timed(split, transform, None),
                "pillow_processes": time_processes(split),
                "first_evaluation": timed(split, transform, cache),
                "second_evaluation": timed(split, transform, cache),
            }
            if find_spec("tensorflow"):
                this_round["tf_data"] = time_tf_data(split)
            if number < 0:
                continue  # a warm-up
            for name, value in this_round.items():
                seconds[name].append(value)
    result = {
        f"{name}_photos_per_second": round(num_photos / statistics.median(values), 1)
        for name, values in seconds.items()
    }
    for one, other in PAIRS:
        if other in seconds:
            in_turns = zip(seconds[other], seconds[one], strict=True)
            speed_ratio = statistics.median(slow / fast for slow, fast in in_turns)
            result[f"{one}_over_{other}"] = round(speed_ratio, 3)
    return result


def draw_photos(folder: Path, count: int) -> Split:
    """Draws JPEG files with a spectrum like photos: noise at every scale, most at coarse ones."""
    rng = np.random.default_rng(0)
    for number in range(count):
        width, height = SIZES[number % len(SIZES)]
        canvas = np.full((height, width, 3), 128.0)
        for cells, contrast in ((4, 60), (16, 35), (64, 18), (256, 9)):
            noise = rng.normal(0, 1, (cells * height // width + 1, cells, 3))
            layer = Image.fromarray(np.clip(128 + 40 * noise, 0, 255).astype(np.uint8))
            grown = layer.resize((width, height), Image.Resampling.BICUBIC)
            canvas += (np.asarray(grown, float) - 128) * contrast / 40
        photo = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
        photo.save(folder / f"{number:05}.jpg", quality=90)
    return make_split(folder, [(f"{number:05}.jpg", 0) for number in range(count)])


def timed(split: Split, transform: Transform, cache: ImageCache | None) -> float:
    """Returns the seconds to read all images for one evaluation."""
    started = time.perf_counter()
    for _ in eval_batches(split, BATCH_SIZE, transform=transform, cache=cache):
        pass
    return time.perf_counter() - started


def time_processes(split: Split) -> float:
    """Returns the seconds of independent Pillow loops, one per process, that share the photos.

    Raises:
        BrokenBarrierError: If a process died.
    """
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(WORKERS + 1, timeout=TIMEOUT)
    files = [str(split.path(index)) for index in range(len(split))]
    processes = [
        context.Process(target=pillow_loop, args=(files[worker::WORKERS], barrier))
        for worker in range(WORKERS)
    ]
    for process in processes:
        process.start()
    barrier.wait()  # all processes have started and finished their imports
    started = time.perf_counter()
    barrier.wait()
    seconds = time.perf_counter() - started
    for process in processes:
        process.join()
    return seconds


def pillow_loop(files: list[str], barrier: Barrier) -> None:
    """Runs `prepare_with_pillow` between two waits at the barrier, which an error breaks."""
    barrier.wait()
    try:
        prepare_with_pillow(files)
    except BaseException:
        barrier.abort()  # so that the others need not wait for the timeout
        raise
    barrier.wait()


def prepare_with_pillow(files: list[str]) -> None:
    """Applies CLIP's transform, written out with Pillow."""
    for file in files:
        with Image.open(file) as opened:
            image = opened.convert("RGB")
        short = min(image.size)
        width, height = (SIDE * length // short for length in image.size)
        left, top = (width - SIDE) // 2, (height - SIDE) // 2
        resized = image.resize((width, height), Image.Resampling.BICUBIC)
        np.asarray(resized.crop((left, top, left + SIDE, top + SIDE)))


def time_tf_data(split: Split) -> float:
    """Returns the seconds of the same in tf.data; its bicubic resize is not quite CLIP's."""
    import tensorflow as tf

    def load(file: Any) -> Any:
        image = tf.io.decode_jpeg(tf.io.read_file(file), channels=3)
        size = tf.cast(tf.shape(image)[:2], tf.float32)
        size = tf.cast(size * SIDE / tf.reduce_min(size), tf.int32)
        image = tf.image.resize(image, size, "bicubic", antialias=True)
        image = tf.image.resize_with_crop_or_pad(image, SIDE, SIDE)
        return tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)

    files = [str(split.path(index)) for index in range(len(split))]
    dataset = tf.data.Dataset.from_tensor_slices(files).map(load, num_parallel_calls=WORKERS)
    started = time.perf_counter()
    for _ in dataset.batch(BATCH_SIZE).as_numpy_iterator():
        pass
    return time.perf_counter() - started


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # only the host is measured
    report(main(int(sys.argv[1]) if len(sys.argv) > 1 else 200))
