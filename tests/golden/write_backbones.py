"""Writes backbones.npz: features of tiny checkpoints by the library that publishes their family.

With this file, tests check parity without PyTorch. Inputs and weights are drawn from seeds and
only checksummed; the file holds outputs. Run this after changing `tests/tiny_backbones.py`, never
to make a failing comparison pass:

    python -m tests.golden.write_backbones

Needs torch, open-clip-torch and what it imports (`make parity` installs them).
"""

import tempfile
from pathlib import Path

import numpy as np

from fgvpl_jax import load_clip
from tests import backbone_oracles
from tests.golden.inputs import (
    BACKBONES_FILE,
    DIRECTORY,
    PHOTO_SAMPLE,
    SEED,
    TEXTS,
    backbone_inputs,
    checksum,
)
from tests.tiny_backbones import KINDS, random_tensors, write_tiny_backbone


def outputs(kind: str) -> dict[str, np.ndarray]:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_tiny_backbone(directory, kind, SEED)
        clip = load_clip(directory)
        pixels, photo = backbone_inputs(clip.image_size)
        ids = clip.tokenize(TEXTS)
        model, preprocess = backbone_oracles.load(directory)
        image, text = backbone_oracles.features(model.double(), pixels, ids)
        return {
            "checksum": np.array(checksum([*random_tensors(directory, SEED).values(), pixels])),
            "token_ids": ids,
            "image_features": image,
            "text_features": text,
            "logit_scale": np.asarray(model.logit_scale.exp().item()),
            "photo": preprocess(photo)[PHOTO_SAMPLE],
        }


def write(file: Path) -> None:
    arrays = {f"{kind}/{name}": x for kind in KINDS for name, x in outputs(kind).items()}
    np.savez_compressed(file, **arrays)


if __name__ == "__main__":
    write(DIRECTORY / BACKBONES_FILE)
