"""Times exported files in ONNX Runtime, in float32 and INT8, against `predict` and the jax export.

    python -m benchmarks.onnx_runtime [--shape=B/16] [--batches 1 16] [--rounds=7]

The model is FG-VPL with 10 classes, 160 photos in its cache and random weights. Each runtime is a
fresh process, which loads its file, waits for its turns and reports its peak of resident memory;
`predict` builds its random weights instead, and its peak is taken after that. A turn is one batch
of prepared photos. Ratios are medians over the rounds. Prints each batch size when it is measured,
then all as text and one JSON line.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

# Other imports are in the functions: a process that runs ONNX Runtime must not load jax.

if TYPE_CHECKING:
    from fgvpl_jax.inference.classifier import Classifier

CLASSES, SHOTS = 10, 16
CALIBRATION_PHOTOS = 8
ROOT = Path(__file__).parents[1]
CONFIG, IMAGES = "config.json", "images.npy"
PROGRAM, WEIGHTS = "program.stablehlo", "weights.npz"
Call = Callable[[np.ndarray], Any]


def main(shape: str, batches: Sequence[int], rounds: int) -> dict[str, Any]:
    """Writes the files of a model, then measures one batch size after the other."""
    from benchmarks.measuring import SHAPES, ratio, take_turns

    result: dict[str, Any] = {"shape": shape, "rounds": rounds}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / CONFIG).write_text(json.dumps(asdict(SHAPES[shape])))
        # In a process that ends, so that its memory is free again.
        if (writer := _start("write", folder, max(batches))).wait():
            raise SystemExit(writer.returncode)
        for runtime, files in FILES.items():
            size = sum((folder / file).stat().st_size for file in files)
            result[f"{runtime}_file_mb"] = size / 1e6
        for batch in batches:
            with ExitStack() as stack:
                processes = {
                    runtime: stack.enter_context(RuntimeProcess(runtime, folder, batch))
                    for runtime in RUNTIMES
                }
                seconds = take_turns({**processes}, rounds)
            for runtime, values in seconds.items():
                figures = {
                    "ms": 1000 * statistics.median(values),
                    "over_predict": ratio(seconds, runtime, "predict"),
                    "peak_mib": processes[runtime].peak_mib,
                }
                print(batch, runtime, {key: round(x, 3) for key, x in figures.items()}, flush=True)
                result |= {f"batch_{batch}_{runtime}_{key}": x for key, x in figures.items()}
    return result


def write(folder: Path, num_images: int) -> None:
    """Writes the exports of a random model and photos for it."""
    import onnx

    from fgvpl_jax.clip import class_token_tower
    from fgvpl_jax.inference.export import trace
    from fgvpl_jax.inference.onnx_export import onnx_model
    from fgvpl_jax.inference.onnx_int8 import quantise

    classifier = random_classifier(folder)
    side = classifier.clip.image_size
    images = np.random.default_rng(1).integers(0, 256, (num_images, side, side, 3), np.uint8)
    np.save(folder / IMAGES, images)
    program, weights = trace(classifier)
    (folder / PROGRAM).write_bytes(program)
    np.savez(folder / WEIGHTS, *weights)
    model = onnx_model(classifier)
    onnx.save(model, folder / "onnx.onnx")
    config = class_token_tower(classifier.clip.vision, "this benchmark").config
    int8 = quantise(model, config, images[:CALIBRATION_PHOTOS])
    onnx.save(int8, folder / "onnx_int8.onnx")


def random_classifier(folder: Path) -> "Classifier":
    """Returns a classifier with random weights and only what exports read."""
    import jax.numpy as jnp

    from benchmarks.measuring import model_of
    from fgvpl_jax.clip.config import VisionConfig
    from fgvpl_jax.inference.classifier import Classifier
    from fgvpl_jax.inference.programs import Inference
    from fgvpl_jax.recognition import VisualCache
    from fgvpl_jax.runs.default_config import get_config

    config = VisionConfig(**json.loads((folder / CONFIG).read_text()))
    model, clip = model_of(config, CLASSES)
    support = CLASSES * SHOTS
    keys = np.random.default_rng(0).normal(size=(2, support, config.embed_dim))
    labels = jnp.arange(support, dtype=jnp.int32) % CLASSES
    image_keys, object_keys = jnp.asarray(keys, jnp.float32)
    cache = VisualCache(image_keys, object_keys, labels, jnp.ones(support, bool))
    encoder = model.frozen_encoder(clip, get_config())
    choices = {"cache_logit_weight": 1.0}
    inference = Inference(model, clip.image_encoder, encoder, cache, choices, 1.0, None)
    classifier = Classifier.__new__(Classifier)  # there is no run to read
    classifier.inference, classifier.clip = inference, clip
    return classifier


def _predict(folder: Path) -> Call:
    classifier = random_classifier(folder)
    inference = classifier.inference
    return lambda images: inference.recognise(inference.encode(images)[0])


def _jax_export(folder: Path) -> Call:
    import jax
    import jax.export

    exported = jax.export.deserialize(bytearray((folder / PROGRAM).read_bytes()))
    with np.load(folder / WEIGHTS) as arrays:
        weights = [jax.device_put(arrays[name]) for name in arrays.files]
    program = jax.jit(exported.call)
    return lambda images: jax.device_get(program(weights, images))


def _onnx(folder: Path, name: str) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    session = onnxruntime.InferenceSession(folder / name, options)
    return lambda images: session.run(None, {"images": images})


RUNTIMES: dict[str, Callable[[Path], Call]] = {
    "predict": _predict,
    "jax_export": _jax_export,
    "onnx": lambda folder: _onnx(folder, "onnx.onnx"),
    "onnx_int8": lambda folder: _onnx(folder, "onnx_int8.onnx"),
}
FILES = {
    "jax_export": (PROGRAM, WEIGHTS),
    "onnx": ("onnx.onnx",),
    "onnx_int8": ("onnx_int8.onnx",),
}


def serve(runtime: str, folder: Path, batch: int) -> None:
    """Runs one batch for each line of the input, and answers with the peak memory in MiB."""
    images = np.load(folder / IMAGES)[:batch]
    call = RUNTIMES[runtime](folder)
    if runtime == "predict":
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    for _ in sys.stdin:
        call(images)
        print(_peak_mib(), flush=True)


def _peak_mib() -> float:
    """Returns the peak of resident memory; `ru_maxrss` would include the parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def _start(task: str, folder: Path, batch: int) -> "subprocess.Popen[str]":
    arguments = [f"--task={task}", f"--folder={folder}", "--batches", str(batch)]
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.onnx_runtime", *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


class RuntimeProcess:
    """A process that serves; each call runs one batch in it.

    Attributes:
        peak_mib: Its peak of resident memory after the last call.
    """

    def __init__(self, runtime: str, folder: Path, batch: int):
        self._process = _start(runtime, folder, batch)
        self.peak_mib = 0.0

    def __call__(self) -> None:
        """Runs one batch."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self.peak_mib = float(self._process.stdout.readline())

    def __enter__(self) -> "RuntimeProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # closes its input, at which it ends


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="B/16")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task == "write":
        write(options.folder, options.batches[0])
    elif options.task is not None:
        serve(options.task, options.folder, options.batches[0])
    else:
        from benchmarks.measuring import report

        report(main(options.shape, options.batches, options.rounds))
