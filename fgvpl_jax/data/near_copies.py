"""Finds photos that are copies of one another, though resized, compressed or brightened.

Accuracy on a copy of a training photo says nothing about new photos.
"""

from collections import defaultdict

import numpy as np
from jaxtyping import Bool, Float32, Int
from PIL import Image

from fgvpl_jax.data.batches import eval_batches
from fgvpl_jax.data.image_cache import ImageCache
from fgvpl_jax.data.splits import Split
from fgvpl_jax.data.transforms import Transform

SIDE = 8  # photos are compared by the brightness and colour of 8 × 8 squares
SQUARES = SIDE * SIDE
SIGNATURE = 3 * SQUARES  # length of a signature
# Least correlation of the brightness of two copies, and largest root mean square difference of
# their colour (Cb and Cr), in levels. Of 0.5 million pairs of different EuroSAT tiles, none counts
# as copies, and of 41 photographs at half their size (JPEG, quality 75), all do.
SAME_LIGHT, OTHER_COLOUR = 0.95, 16.0
PLAIN = 1.0  # levels; the squares of a plainer photo differ by noise alone
MOST_PHOTOS = 20_000  # comparing these takes seconds, but the time grows with the square
BLOCK = 1024
BATCH_SIZE = 64


def signature(photo: Image.Image) -> Float32[np.ndarray, "192"]:
    """Returns the numbers by which `are_alike` compares a photo.

    The signature of a photo with hardly any pattern is such that it is a copy of no photo.
    """
    squares = photo.convert("YCbCr").resize((SIDE, SIDE), Image.Resampling.BOX)
    light, *colour = np.asarray(squares, np.float32).reshape(SQUARES, 3).T
    light = light - light.mean()
    is_plain = light.std() < PLAIN
    unit = np.zeros_like(light) if is_plain else light / np.float32(np.linalg.norm(light))
    scale = np.float32(OTHER_COLOUR * (2 * SQUARES) ** 0.5)
    return np.concatenate([unit, (np.concatenate(colour) - 128) / scale])


def are_alike(
    found: Float32[np.ndarray, "N 192"], others: Float32[np.ndarray, "M 192"]
) -> Bool[np.ndarray, "N M"]:
    """Returns whether each photo is a copy of each of the others."""
    light = found[:, :SQUARES] @ others[:, :SQUARES].T
    ours, theirs = found[:, SQUARES:], others[:, SQUARES:]
    squared = (ours**2).sum(1)[:, None] + (theirs**2).sum(1) - 2 * ours @ theirs.T
    return (light >= SAME_LIGHT) & (squared <= 1)


def signatures(
    split: Split, transform: Transform, cache: ImageCache | None
) -> Float32[np.ndarray, "N 192"]:
    """Returns the signature of each photo under the evaluation transform; 0 if it is unreadable."""
    rows = [np.zeros((0, SIGNATURE), np.float32)]
    for batch in eval_batches(split, BATCH_SIZE, transform=transform, cache=cache):
        readable = batch.weights[batch.indices >= 0] > 0
        rows += [
            signature(Image.fromarray(pixels))[None] * np.float32(is_readable)
            for pixels, is_readable in zip(batch.inputs, readable, strict=False)
        ]
    return np.concatenate(rows)


def first_copies(found: Float32[np.ndarray, "N 192"]) -> Int[np.ndarray, "N"]:
    """Returns for each photo the place of the first photo that it is a copy of; its own if none.

    A photo is compared with first photos alone: in a chain of photos that each resemble the next,
    the ends need not resemble each other.
    """
    first = np.arange(len(found))
    for start in range(0, len(found), BLOCK):
        stop = start + BLOCK
        alike = are_alike(found[start:stop], found[:stop])
        for place in start + np.flatnonzero(alike.sum(axis=1) > 1):
            earlier = np.flatnonzero(alike[place - start, :place])
            earlier = earlier[first[earlier] == earlier]
            if earlier.size:
                first[place] = earlier[0]
    return first


def groups_of_copies(first: Int[np.ndarray, "N"]) -> list[list[int]]:
    """Returns the places of the photos of each group of copies, without single photos."""
    groups = defaultdict(list)
    for place, leader in enumerate(first.tolist()):
        groups[leader].append(place)
    return [places for places in groups.values() if len(places) > 1]


def copied_from(
    found: Float32[np.ndarray, "N 192"], others: Float32[np.ndarray, "M 192"]
) -> Bool[np.ndarray, "N"]:
    """Returns whether each photo is a copy of one of the others."""
    starts = range(0, len(found), BLOCK)
    parts = [are_alike(found[at : at + BLOCK], others).any(axis=1) for at in starts]
    return np.concatenate([np.zeros(0, np.bool_), *parts])
