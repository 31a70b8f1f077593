"""Plans the cost of a few-shot run by the formulas of `costs.py`; nothing is run or measured.

    python -m benchmarks.plan [--shape=B/16] [--tflops=400] [--side=512]

The default is ImageNet with 16 shots. Prints the work, the memory and the seconds of a device that
achieves the given TFLOP/s, then one JSON line.
"""

import argparse
from typing import Any

from benchmarks import costs
from benchmarks.measuring import SHAPES, show
from fgvpl_jax.recognition.visual_cache import CHUNK
from fgvpl_jax.training.resident import bytes_needed

GIB = 2**30


def main(
    shape: str,
    classes: int,
    shots: int,
    epochs: int,
    batch: int,
    test: int,
    tflops: float,
    side: int,
) -> dict[str, Any]:
    """Returns all figures by name."""
    config, support = SHAPES[shape], classes * shots
    sizes = (config, batch, classes, support)
    steps = epochs * -(-support // batch)
    work = {
        "train": steps * costs.train_step_flops(*sizes),
        "cache": (epochs + 1) * support * costs.cache_refresh_flops(config),
        "evaluation": -(-test // batch) * costs.evaluation_step_flops(*sizes),
    }
    work["together"] = sum(work.values())
    compared = min(support, CHUNK)
    memory = {
        "cache_features": 8 * support * config.embed_dim,
        "affinity_and_labels": 4 * compared * (batch + classes),
        "kept_for_the_backward_pass": costs.kept_bytes(config, batch, classes, compared),
        "attention_weights_of_an_evaluation_batch": costs.attention_bytes(config, batch),
        "photos_of_the_cache": 3 * support * config.image_size**2,
        "resident_photos": bytes_needed(support, side),
    }
    return (
        {"shape": shape, "images": support, "steps": steps}
        | {f"{name}_pflop": flops / 1e15 for name, flops in work.items()}
        | {f"{name}_seconds": flops / (tflops * 1e12) for name, flops in work.items()}
        | {f"{name}_gib": num_bytes / GIB for name, num_bytes in memory.items()}
        | {"photos_decoded_by_the_host": support * epochs}
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="B/16")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--test", type=int, default=50_000)
    parser.add_argument(
        "--tflops", type=float, default=400, help="TFLOP/s that the device achieves"
    )
    parser.add_argument(
        "--side", type=int, default=512, help="side of the largest photo, in pixels"
    )
    show(main(**vars(parser.parse_args())))
