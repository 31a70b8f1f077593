"""Writes synthetic photos in ImageNet's shape and a random CLIP, to time `run.py` itself.

    python -m benchmarks.synthetic_imagenet FOLDER [--shape=B/16] [--side=256]
    python run.py --config=configs/imagenet.py --workdir=FOLDER/run --config.clip=FOLDER/clip \
      --config.data.root=FOLDER/data --config.compute_dtype=bfloat16

The photos are smooth noise and the weights random, so accuracies mean nothing. 16 shots need 20
training photos of each class, four of them for validation.
"""

import argparse
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from benchmarks.measuring import SHAPES, smooth_photo
from fgvpl_jax.clip.config import VisionConfig
from fgvpl_jax.clip.convert import LOGIT_SCALE, published_tensors
from fgvpl_jax.clip.families.hugging_face_clip import read_sizes
from fgvpl_jax.clip.families.transformers_files import TEXT_NAMES, VISION_NAMES
from fgvpl_jax.clip.towers import TextTower, VisionTower
from fgvpl_jax.data import benchmark_named

DEMO_CLIP = Path(__file__).parents[1] / "demo" / "clip"
CONTEXT = 77


def main(folder: Path, shape: str, side: int, train: int, test: int) -> None:
    """Writes `folder/clip` and `folder/data`."""
    write_clip(folder / "clip", SHAPES[shape])
    write_photos(folder / "data" / "imagenet", side, {"train": train, "val": test})


def write_photos(folder: Path, side: int, counts: dict[str, int]) -> None:
    """Writes ImageNet's layout: `images/{train,val}/<code>/*.JPEG` and `classnames.txt`.

    Args:
        folder: Folder of the benchmark.
        side: Side of the square photos, in pixels.
        counts: Number of photos per class in each split.
    """
    names = benchmark_named("imagenet").class_names
    codes = [f"n{label:08}" for label in range(len(names))]
    folder.mkdir(parents=True)
    lines = [f"{code} {name}\n" for code, name in zip(codes, names, strict=True)]
    (folder / "classnames.txt").write_text("".join(lines), encoding="utf-8")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for split, count in counts.items():
            places = [folder / "images" / split / code for code in codes]
            list(pool.map(partial(_write_class, side=side, count=count), places))


def _write_class(folder: Path, *, side: int, count: int) -> None:
    rng = np.random.default_rng(list(str(folder).encode()))
    folder.mkdir(parents=True)
    for number in range(count):
        smooth_photo(rng, side).save(folder / f"{number}.JPEG")


def write_clip(folder: Path, vision_config: VisionConfig) -> None:
    """Writes a checkpoint with random weights and the demonstration's tokenizer."""
    shutil.copytree(DEMO_CLIP, folder)
    config = json.loads((folder / "config.json").read_text())
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    size = vision_config.image_size
    processor |= {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    config["projection_dim"] = vision_config.embed_dim
    config["vision_config"] |= {
        "num_attention_heads": vision_config.num_heads,
        "hidden_size": vision_config.width,
        "intermediate_size": vision_config.mlp_width,
        "num_hidden_layers": vision_config.num_layers,
        "image_size": size,
        "patch_size": vision_config.patch_size,
    }
    config["text_config"]["max_position_embeddings"] = CONTEXT
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=1))
    _, text_config = read_sizes(folder / "config.json", config)
    tensors = published_tensors(
        (VisionTower(vision_config, rngs=nnx.Rngs(0)), VISION_NAMES),
        (TextTower(text_config, rngs=nnx.Rngs(1)), TEXT_NAMES),
    )
    tensors[LOGIT_SCALE] = np.array(np.log(100), np.float32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder to create")
    parser.add_argument("--shape", choices=SHAPES, default="B/16")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--train", type=int, default=20)
    parser.add_argument("--test", type=int, default=5)
    options = parser.parse_args()
    main(options.folder, options.shape, options.side, options.train, options.test)
