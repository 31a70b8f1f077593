"""Finds photos that are copies of one another, though resized, compressed or brightened.

Accuracy on a copy of a training photo says nothing about new photos.
"""

import zlib
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float32, Int
from PIL import Image

from fgvpl_jax.data.batches import ALL, Share, eval_batches
from fgvpl_jax.data.image_cache import ImageCache
from fgvpl_jax.data.splits import Split
from fgvpl_jax.data.transforms import Transform

SIDE = 8  # photos are compared by the brightness and colour of 8 × 8 squares
SQUARES = SIDE * SIDE
COLOURS = slice(SQUARES, 3 * SQUARES)  # where a signature has the colour
SIGNATURE = 3 * SQUARES + 2  # length of a signature; the last two numbers are a checksum
# Two photos are copies if the correlation of their brightness is so many standard deviations above
# that of the photos' other pairs: pairs of smooth pictures correlate more by chance than pairs of
# detailed ones, and aligned letters more than landscapes. Measured: of 4.5 million pairs of
# different EuroSAT tiles, 3 count as copies; of 41 photographs at half their size (JPEG, quality
# 75), all do.
DEVIATIONS = 7.0
LIGHT_LIMITS = (0.7, 0.98)
FEWEST = 6  # with fewer photos, the deviation is unknown, and this correlation is required:
FEW_LIGHT = 0.95
SAMPLE = 1000  # photos whose pairs are considered
OTHER_COLOUR = 16.0  # largest root mean square difference of the colour (Cb and Cr) in levels
PLAIN = 1.0  # levels; the squares of a plainer photo differ by noise alone
MOST_PHOTOS = 20_000  # comparing these takes seconds, but the time grows with the square
BLOCK = 1024
BATCH_SIZE = 64


def signature(photo: Image.Image) -> Float32[np.ndarray, "194"]:
    """Returns the numbers by which `are_alike` compares a photo.

    A photo with hardly any pattern is a copy of equal photos alone.
    """
    squares = photo.convert("YCbCr").resize((SIDE, SIDE), Image.Resampling.BOX)
    light, *colour = np.asarray(squares, np.float32).reshape(SQUARES, 3).T
    light = light - light.mean()
    is_plain = light.std() < PLAIN
    unit = np.zeros_like(light) if is_plain else light / np.float32(np.linalg.norm(light))
    scale = np.float32(OTHER_COLOUR * (2 * SQUARES) ** 0.5)
    checksum = 1 + np.array(divmod(zlib.crc32(photo.tobytes()), 1 << 16), np.float32)
    return np.concatenate([unit, (np.concatenate(colour) - 128) / scale, checksum])


def least_correlation(found: Float32[np.ndarray, "N 194"]) -> float:
    """Returns the correlation of brightness from which two of these photos are copies.

    Median and median deviation of Fisher's z stand for its mean and standard deviation, because a
    minority of copies does not change them.
    """
    light = found[:, :SQUARES]
    light = light[light.any(axis=1)]
    light = light[:: -(-len(light) // SAMPLE) or 1]
    if len(light) < FEWEST:
        return FEW_LIGHT
    pairs = (light @ light.T)[np.triu_indices(len(light), 1)].astype(np.float64)
    z = np.arctanh(np.clip(pairs, -0.999, 0.999))
    middle = np.median(z)
    deviation = 1.4826 * np.median(np.abs(z - middle))
    return float(np.clip(np.tanh(middle + DEVIATIONS * deviation), *LIGHT_LIMITS))


def are_alike(
    found: Float32[np.ndarray, "N 194"], others: Float32[np.ndarray, "M 194"], least: float
) -> Bool[np.ndarray, "N M"]:
    """Returns whether each photo is a copy of each of the others."""
    light = found[:, :SQUARES] @ others[:, :SQUARES].T
    ours, theirs = found[:, COLOURS], others[:, COLOURS]
    squared = (ours**2).sum(1)[:, None] + (theirs**2).sum(1) - 2 * ours @ theirs.T
    checksums, other_checksums = checksums_of(found), checksums_of(others)
    plain = (found[:, :SQUARES] == 0).all(axis=1) & (checksums > 0)
    equal = plain[:, None] & (checksums[:, None] == other_checksums)
    return ((light >= least) | equal) & (squared <= 1)


def checksums_of(found: Float32[np.ndarray, "N 194"]) -> Int[np.ndarray, "N"]:
    """Returns a number above 0 for the pixels of each photo; 0 if it is unreadable."""
    high, low = found[:, COLOURS.stop :].T.astype(np.int64)
    return (high << 17) + low


def signatures(
    split: Split, transform: Transform, cache: ImageCache | None, share: Share = ALL
) -> Float32[np.ndarray, "N 194"]:
    """Returns the signature of each photo under the evaluation transform; 0 if it is unreadable.

    Args:
        split: The photos.
        transform: The evaluation transform.
        cache: Cache of decoded images.
        share: Part of the photos that is read.
    """
    rows = [np.zeros((0, SIGNATURE), np.float32)]
    size = BATCH_SIZE * share.count
    for batch in eval_batches(split, size, transform=transform, cache=cache, share=share):
        readable = batch.weights[batch.indices >= 0] > 0
        rows += [
            signature(Image.fromarray(pixels))[None] * np.float32(is_readable)
            for pixels, is_readable in zip(batch.inputs, readable, strict=False)
        ]
    return np.concatenate(rows)


def first_copies(found: Float32[np.ndarray, "N 194"]) -> Int[np.ndarray, "N"]:
    """Returns for each photo the place of the first photo that it is a copy of; its own if none.

    A photo is compared with first photos alone: in a chain of photos that each resemble the next,
    the ends need not resemble each other.
    """
    first = np.arange(len(found))
    for place, earlier in earlier_copies(found):
        leaders = earlier[first[earlier] == earlier]
        if leaders.size:
            first[place] = leaders[0]
    return first


def linked_copies(found: Float32[np.ndarray, "N 194"]) -> Int[np.ndarray, "N"]:
    """Returns for each photo the first photo that a chain of copies links it to; its own if none.

    The frames of a film are such a chain: each is a copy of the next, though the ends differ.
    """
    first = np.arange(len(found))
    for place, earlier in earlier_copies(found):
        chains = np.unique(first[earlier])
        first[place] = chains[0]
        first[np.isin(first, chains[1:])] = chains[0]
    return first


def earlier_copies(
    found: Float32[np.ndarray, "N 194"],
) -> Iterator[tuple[int, Int[np.ndarray, "m"]]]:
    """Yields the place of each photo that is a copy of earlier ones, and the places of these."""
    least = least_correlation(found)
    for start in range(0, len(found), BLOCK):
        stop = start + BLOCK
        alike = are_alike(found[start:stop], found[:stop], least)
        for place in start + np.flatnonzero(alike.sum(axis=1) > 1):
            earlier = np.flatnonzero(alike[place - start, :place])
            if earlier.size:
                yield int(place), earlier


def groups_of_copies(first: Int[np.ndarray, "N"]) -> list[list[int]]:
    """Returns the places of the photos of each group of copies, without single photos."""
    groups = defaultdict(list)
    for place, leader in enumerate(first.tolist()):
        groups[leader].append(place)
    return [places for places in groups.values() if len(places) > 1]


def copied_from(
    found: Float32[np.ndarray, "N 194"], others: Float32[np.ndarray, "M 194"]
) -> Bool[np.ndarray, "N"]:
    """Returns whether each photo is a copy of one of the others."""
    least = least_correlation(np.concatenate([found, others]))
    starts = range(0, len(found), BLOCK)
    parts = [are_alike(found[at : at + BLOCK], others, least).any(axis=1) for at in starts]
    return np.concatenate([np.zeros(0, np.bool_), *parts])
