"""The cache returns exactly the images that decoding would, whatever happened to it before."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fgvpl_jax.data import ImageCache, Split, UnreadableImage, eval_batches, load_shapes
from fgvpl_jax.data import image_cache as image_cache_module
from fgvpl_jax.data.image_cache import ABANDONED_SECONDS, PARTIAL, WHOLE, default_cache_folder
from fgvpl_jax.data.splits import make_split

SIZE = 16
RECORD = SIZE * SIZE * 3 + 1 + 4
COUNT = 10


def shrink(image):
    return np.asarray(image.resize((SIZE, SIZE)), np.uint8)


def write_photo(path, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="BMP")  # all files have the same size


@pytest.fixture
def split(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(COUNT):
        write_photo(folder / f"{i}.bmp", i)
    return make_split(folder, [(f"{i}.bmp", i % 3) for i in range(COUNT)])


@pytest.fixture
def cache(tmp_path):
    return ImageCache(tmp_path / "cache", 10**9)


@pytest.fixture
def decoded(monkeypatch):
    """Returns a list that collects the keys of decoded images."""
    keys = []
    original = Split.image

    def spy(split, index):
        keys.append(split.keys[index])
        return original(split, index)

    monkeypatch.setattr(Split, "image", spy)
    return keys


def read(split, cache, batch_size=4, transform=shrink):
    batches = list(eval_batches(split, batch_size, transform=transform, cache=cache))
    real = [b.indices >= 0 for b in batches]
    return {
        name: np.concatenate([getattr(b, name)[r] for b, r in zip(batches, real, strict=True)])
        for name in ("inputs", "labels", "weights", "indices")
    }


def assert_equal(a, b):
    for name, column in a.items():
        np.testing.assert_array_equal(column, b[name])


def files(cache, ending=WHOLE):
    return sorted(cache.folder.glob(f"*{ending}"))


@pytest.mark.parametrize("batch_size", [1, 4, 10, 16])
def test_the_second_reading_is_the_first_without_decoding(split, cache, decoded, batch_size):
    first = read(split, cache)
    assert sorted(decoded) == sorted(split.keys)
    assert_equal(read(split, cache, batch_size), first)
    assert len(decoded) == COUNT
    assert_equal(read(split, None), first)
    assert [file.stat().st_size for file in files(cache)] == [COUNT * RECORD]


def test_a_changed_photo_is_decoded_again_even_with_size_and_time_restored(split, cache):
    read(split, cache)
    path = split.path(3)
    before = path.stat()
    write_photo(path, 77)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert_equal(read(split, cache), read(split, None))


@pytest.mark.parametrize(
    "transform",
    [
        lambda image: np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR), np.uint8),
        lambda image: np.asarray(image.resize((SIZE, 2 * SIZE)), np.uint8),
    ],
)
def test_another_transform_has_its_own_images(split, cache, transform):
    read(split, cache)
    got = read(split, cache, transform=transform)
    assert_equal(got, read(split, None, transform=transform))
    assert len(files(cache)) == 2


def test_other_choices_of_the_same_photos_are_not_mixed_up(split, cache):
    read(split, cache)
    for indices in ([3, 1], [1, 3], list(range(COUNT))[::-1]):
        chosen = split.select(indices)
        assert_equal(read(chosen, cache), read(chosen, None))


def test_labels_are_the_splits_own(split, cache, decoded):
    read(split, cache)
    relabelled = make_split(split.root, [(key, 5) for key in split.keys])
    assert set(read(relabelled, cache)["labels"]) == {5}
    assert len(decoded) == COUNT


def test_unreadable_images_are_tried_again(split, cache, decoded, monkeypatch):
    original = Split.image

    def fails(split, index):
        if index == 5:
            raise UnreadableImage("5.bmp: the network drive is away")
        return original(split, index)

    with monkeypatch.context() as patch:
        patch.setattr(Split, "image", fails)
        assert read(split, cache)["weights"].sum() == COUNT - 1
    decoded.clear()
    assert_equal(read(split, cache), read(split, None))
    assert decoded[0] == "5.bmp"
    assert len(decoded) == 1 + COUNT


def test_a_damaged_photo_is_named_each_time(split, cache):
    split.path(5).write_bytes(b"")
    for _ in range(2):
        batches = list(eval_batches(split, 4, transform=shrink, cache=cache))
        (problem,) = (p for batch in batches for p in batch.unreadable)
        assert "5.bmp: the file is empty" in problem


def test_two_runs_may_build_at_once(split, cache):
    a, b = (eval_batches(split, 4, transform=shrink, cache=cache) for _ in range(2))
    for _ in zip(a, b, strict=True):
        assert not files(cache)
    assert len(files(cache)) == 1
    assert not files(cache, PARTIAL)
    assert_equal(read(split, cache), read(split, None))


def test_a_run_that_stops_in_the_middle_leaves_nothing(split, cache):
    batches = eval_batches(split, 4, transform=shrink, cache=cache)
    next(batches)
    next(batches)
    assert files(cache, PARTIAL)
    batches.close()
    assert not list(cache.folder.iterdir())


KILLED = """
import os, signal, sys
from pathlib import Path
from fgvpl_jax.data import ImageCache, eval_batches
from tests.data.test_image_cache import COUNT, shrink
from fgvpl_jax.data.splits import make_split
split = make_split(Path(sys.argv[1]), [(f"{i}.bmp", i % 3) for i in range(COUNT)])
cache = ImageCache(Path(sys.argv[2]), 10**9)
for number, _ in enumerate(eval_batches(split, 4, transform=shrink, cache=cache)):
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_does_no_harm_and_is_cleared_away(split, cache):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(split.root), str(cache.folder)],
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    (left,) = files(cache, PARTIAL)
    assert not files(cache)
    assert_equal(read(split, cache), read(split, None))
    assert left.exists()  # another run might still be writing it
    long_ago = time.time() - ABANDONED_SECONDS - 1
    os.utime(left, (long_ago, long_ago))
    read(split.select([1, 2]), cache)
    assert not left.exists()


def test_a_shortened_file_is_built_again(split, cache, decoded):
    read(split, cache)
    (file,) = files(cache)
    os.truncate(file, RECORD * 3)
    assert_equal(read(split, cache), read(split, None))
    decoded.clear()
    read(split, cache)
    assert not decoded


@pytest.mark.parametrize("place", [0, 5 * RECORD + 100, 9 * RECORD + SIZE * SIZE * 3, -1])
def test_a_changed_bit_is_noticed_and_that_image_decoded(split, cache, decoded, caplog, place):
    fresh = read(split, cache)
    (file,) = files(cache)
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    decoded.clear()
    assert_equal(read(split, cache), fresh)
    assert decoded == [f"{place // RECORD % COUNT}.bmp"]
    assert "is damaged" in caplog.text
    assert not files(cache)
    assert_equal(read(split, cache), fresh)
    assert files(cache) == [file]


def test_the_least_recently_used_makes_room(split, tmp_path, decoded):
    cache = ImageCache(tmp_path / "cache", 8 * RECORD)
    parts = [split.select(range(i, i + 3)) for i in (0, 3, 6)]
    for age, part in ((200, parts[0]), (100, parts[1])):
        read(part, cache)
        file = max(files(cache), key=lambda f: f.stat().st_mtime)
        os.utime(file, (time.time() - age,) * 2)
    for name in ("mine.npy", "mine.txt"):
        (cache.folder / name).write_bytes(b"x" * 1000)
    read(parts[0], cache)  # now the second part is the least recently used
    read(parts[2], cache)
    assert sum(file.stat().st_size for file in files(cache)) == 6 * RECORD
    decoded.clear()
    read(parts[0], cache)
    read(parts[2], cache)
    assert not decoded
    read(parts[1], cache)
    assert len(decoded) == 3
    assert (cache.folder / "mine.npy").exists()
    assert (cache.folder / "mine.txt").exists()


def full(*_):
    raise OSError(28, "No space left on device")


def full_after(appends):
    original = image_cache_module._append
    calls = iter([original] * appends)
    return lambda *arguments: next(calls, full)(*arguments)


def test_runs_side_by_side_keep_to_the_limit_together(split, tmp_path):
    cache = ImageCache(tmp_path / "cache", 15 * RECORD)
    readers = [
        eval_batches(s, 4, transform=shrink, cache=cache)
        for s in (split, split.select(range(COUNT - 1)))
    ]
    for _ in range(3):  # alternately; each file fits alone, but not both
        for reader in readers:
            next(reader)
    assert [next(reader, None) for reader in readers] == [None, None]
    assert len(list(cache.folder.iterdir())) == 1


def test_images_beyond_the_limit_are_decoded_each_time(split, tmp_path, caplog):
    cache = ImageCache(tmp_path / "cache", 5 * RECORD)
    read(split.select([0, 1]), cache)
    assert_equal(read(split, cache), read(split, None))
    assert len(files(cache)) == 1
    (line,) = caplog.messages
    assert "cannot keep 10 images" in line
    assert "image_cache_gb" in line


@pytest.mark.parametrize(
    "where", ["known before", "at the second batch", "at the end", "no folder"]
)
def test_a_full_or_forbidden_disk_costs_only_time(split, cache, caplog, monkeypatch, where):
    if where == "known before":
        usage = shutil.disk_usage(split.root)._replace(free=RECORD)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    elif where == "at the second batch":
        monkeypatch.setattr(image_cache_module, "_append", full_after(1))
    elif where == "at the end":
        monkeypatch.setattr(os, "replace", full)
    else:
        cache.folder.write_text("a file")
    assert_equal(read(split, cache), read(split, None))
    (line,) = caplog.messages
    assert "cannot keep 10 images" in line
    assert cache.folder.is_file() or not list(cache.folder.iterdir())


def test_drawn_scenes_are_not_kept(cache):
    scenes = load_shapes().validation.select(range(4))
    assert cache.entry(scenes, shrink) is None
    assert_equal(read(scenes, cache), read(scenes, None))
    assert not cache.folder.exists()


def test_the_default_place_is_the_users_cache_folder(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_cache_folder() == Path("/somewhere/fgvpl_jax/images")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert default_cache_folder() == Path("/home/me/.cache/fgvpl_jax/images")
