"""Runs an exported classifier with only jax, numpy and pillow.

python run_exported.py photos.fgvpl photo.jpg other.jpg
"""

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np
from PIL import Image, ImageOps


def prepare(file: str | Path, preparation: dict[str, Any]) -> np.ndarray:
    """Returns a photo in the form that the program expects: uint8 [side, side, 3]."""
    photo = ImageOps.exif_transpose(Image.open(file))
    if photo.has_transparency_data:  # transparency becomes white
        white = Image.new("RGBA", photo.size, "white")
        photo = Image.alpha_composite(white, photo.convert("RGBA"))
    resample = Image.Resampling[preparation["filter"].upper()]
    if "both_sides" in preparation:
        side = preparation["both_sides"]
        return np.asarray(photo.convert("RGB").resize((side, side), resample))
    side = preparation["centre_crop"]
    width, height = (int(side * length / min(photo.size)) for length in photo.size)
    half = round if preparation.get("half_pixels") == "to even" else int
    left, top = half((width - side) / 2), half((height - side) / 2)
    resized = photo.convert("RGB").resize((width, height), resample)
    return np.asarray(resized.crop((left, top, left + side, top + side)))


def main(export: str, *photos: str) -> None:
    """Prints the most probable class of each photo, or that it belongs to none of them."""
    sys.path.append(export)  # holds flatbuffers, which jax needs to read the program
    with zipfile.ZipFile(export) as archive:
        manifest = json.loads(archive.read("manifest.json"))
        program = jax.export.deserialize(bytearray(archive.read("program.stablehlo")))
        names = [f"weights/{number:04}.npy" for number in range(manifest["num_weights"])]
        weights = jax.device_put([np.load(archive.open(name)) for name in names])
    images = np.stack([prepare(photo, manifest["preparation"]) for photo in photos])
    outputs = {name: np.asarray(x) for name, x in program.call(weights, images).items()}
    unknown = outputs.get("none_of_these", np.zeros(len(photos), bool))
    for photo, row, is_none in zip(photos, outputs["probabilities"], unknown, strict=True):
        best = f"{manifest['class_names'][row.argmax()]} ({row.max():.1%})"
        print(
            f"{photo}: none of these; the most probable would be {best}"
            if is_none
            else f"{photo}: {best}"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
