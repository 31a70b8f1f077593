"""Inputs: texts and photos through the checkpoint's tokenizer and image processor."""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fgvpl_jax import load_clip
from fgvpl_jax.clip.config import TextConfig
from fgvpl_jax.clip.text_input import Tokenizer
from fgvpl_jax.errors import UserError
from tests.clip.checkpoints import edit_json


def test_texts_are_padded_and_never_truncated(tiny_clip_dir):
    clip = load_clip(str(tiny_clip_dir))
    ids = clip.tokenize(["a", "bcd"])
    assert ids.shape == (2, 77)
    assert ids.dtype == np.int32
    assert ids[0, 0] == 512
    assert (ids[0, 2:] == 513).all()
    with pytest.raises(UserError, match=r"'a photo of a x+'.*tokens.*reads 77"):
        clip.tokenize(["fine", "a photo of a " + "x" * 80])


def test_tokens_after_the_end_of_a_text_do_not_matter(tiny_clip_dir):
    clip = load_clip(str(tiny_clip_dir))
    ids = clip.tokenize(["dog"])
    other = ids.copy()
    other[0, 10:] = 7
    np.testing.assert_allclose(clip.encode_text(ids), clip.encode_text(other), rtol=1e-5)


@pytest.mark.parametrize("size", [(32, 32), (200, 90), (90, 200), (20, 17), (500, 33), (33, 32)])
def test_preprocessing_is_pillows_resize_and_a_centre_crop(tiny_clip_dir, size):
    clip = load_clip(str(tiny_clip_dir))
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    scale = 32 / min(size)
    width, height = (32 if s == min(size) else int(s * scale) for s in size)
    resized = photo.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - 32) // 2, (height - 32) // 2
    expected = np.asarray(resized.crop((left, top, left + 32, top + 32)))
    ours = clip.resize_and_crop(photo)
    assert ours.dtype == np.uint8
    np.testing.assert_array_equal(ours, expected)
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    np.testing.assert_allclose(clip.preprocess(photo), (expected / 255 - mean) / std, atol=1e-5)


def test_images_of_another_size_are_refused(tiny_clip_dir):
    clip = load_clip(str(tiny_clip_dir))
    with pytest.raises(UserError, match=r"\[1, 40, 32, 3\].*\[b, 32, 32, 3\]"):
        clip.encode_image(np.zeros((1, 40, 32, 3), np.float32))


def test_nothing_here_needs_torch(tiny_clip_dir):
    program = (
        "import sys; sys.modules['torch'] = None; sys.modules['torchvision'] = None\n"
        "from fgvpl_jax import load_clip; from PIL import Image\n"
        f"clip = load_clip({str(tiny_clip_dir)!r})\n"
        "clip.preprocess(Image.new('RGB', (50, 40))); clip.tokenize(['a'])"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root, capture_output=True)


def processor_of(directory):
    from transformers import CLIPImageProcessorPil

    return CLIPImageProcessorPil.from_pretrained(str(directory))


def random_photo(width, height, mode="RGB"):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@given(st.integers(1, 200), st.integers(1, 200), st.sampled_from(["RGB", "L", "P", "CMYK"]))
@settings(max_examples=60, deadline=None)
def test_photos_equal_those_of_transformers_processor(tiny_clip_dir, width, height, mode):
    clip, processor = loaded(tiny_clip_dir)
    photo = random_photo(width, height, mode)
    expected = processor(photo, return_tensors="np").pixel_values[0].transpose(1, 2, 0)
    np.testing.assert_allclose(clip.preprocess(photo), expected, rtol=1e-5, atol=1e-6)


@cache
def loaded(directory):
    return load_clip(directory), processor_of(directory)


def of_old(content):
    """Changes the content to an older format: sizes as numbers, another key for the class."""
    del content["image_processor_type"]
    content.update(feature_extractor_type="CLIPFeatureExtractor", size=32, crop_size=32)


@pytest.mark.parametrize(
    "change",
    [
        of_old,
        lambda c: c.update(do_normalize=False),
        lambda c: c.update(do_rescale=False),
        lambda c: c.update(image_mean=0.5, image_std=0.25),
        lambda c: c.update(resample=2),
        lambda c: c.update(size={"height": 32, "width": 32}),
        lambda c: c.update(size={"shortest_edge": 36}),
        lambda c: c.update(size={"shortest_edge": 28}),
        lambda c: c.update(do_resize=False),
    ],
    ids=["old", "raw", "bytes", "scalars", "bilinear", "squash", "larger", "smaller", "as_is"],
)
@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
def test_every_setting_of_the_processor_counts(checkpoint, change, file):
    place = checkpoint / "preprocessor_config.json"
    edit_json(place, change)
    if file != place.name:  # transformers 5 saves a whole CLIPProcessor like this
        content = {"image_processor": json.loads(place.read_text())}
        (checkpoint / file).write_text(json.dumps(content))
        place.unlink()
    clip, processor = load_clip(checkpoint), processor_of(checkpoint)
    assert clip.image_mean.shape == clip.image_std.shape == (3,)
    for size in ((50, 40), (33, 71)):
        photo = random_photo(*size)
        expected = processor(photo, return_tensors="np").pixel_values[0].transpose(1, 2, 0)
        np.testing.assert_allclose(clip.preprocess(photo), expected, rtol=1e-5, atol=1e-6)
        by_hand = clip.resize_and_crop(photo) * clip.rescale_factor - clip.image_mean
        np.testing.assert_allclose(by_hand / clip.image_std, expected, rtol=1e-5, atol=1e-6)


def test_both_layouts_of_the_tokenizer(checkpoint, tiny_clip_dir):
    """Checks that tokenizer.json alone, with merges, equals vocab.json and merges.txt."""
    from transformers import CLIPTokenizer

    with_merges = json.loads((checkpoint / "vocab.json").read_text())
    merged = ["d o", "do g</w>", "a n"]
    size = len(with_merges)
    # Merged tokens push start and end back: they stay the last two ids.
    tokens = [t for t in sorted(with_merges, key=with_merges.get) if not t.startswith("<|")]
    tokens += [m.replace(" ", "") for m in merged] + ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    assert len(vocabulary) == size + len(merged)
    (checkpoint / "vocab.json").write_text(json.dumps(vocabulary))
    (checkpoint / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merged) + "\n")
    changed = {"vocab_size": len(vocabulary), "eos_token_id": len(vocabulary) - 1}
    sizes = TextConfig(8, 1, 1, 8, context_length=77, **changed)
    texts = ["a Dog and a do", "", "caf\u00e9  \U0001f431!", "dog's 12"]
    first = Tokenizer(checkpoint, sizes)(texts)
    assert vocabulary["dog</w>"] in first[0]
    CLIPTokenizer.from_pretrained(str(checkpoint)).save_pretrained(checkpoint)
    for name in ("vocab.json", "merges.txt"):
        (checkpoint / name).unlink(missing_ok=True)
    assert (checkpoint / "tokenizer.json").is_file()
    np.testing.assert_array_equal(Tokenizer(checkpoint, sizes)(texts), first)


def test_no_texts_and_one_bare_text(tiny_clip_dir):
    clip = load_clip(tiny_clip_dir)
    assert clip.tokenize([]).shape == (0, 77)
    with pytest.raises(TypeError, match="list of texts"):
        clip.tokenize("a photo")


def test_wrong_inputs_without_shape_checks():
    """Runs in a plain process, because the test session checks shape annotations."""
    program = (
        "import numpy as np; from flax import nnx\n"
        "from fgvpl_jax.clip import VisionTower; from fgvpl_jax.clip.config import VisionConfig\n"
        "config = VisionConfig(8, 1, 1, 8, image_size=32, patch_size=8, embed_dim=8)\n"
        "tower = nnx.eval_shape(lambda: VisionTower(config, rngs=nnx.Rngs(0)))\n"
        "for pixels in (np.zeros((2, 3, 32, 32), np.float32), np.zeros((2, 32, 32, 3), np.uint8),\n"
        "               np.zeros((32, 32, 3), np.float32)):\n"
        "    try: tower.embed(pixels)\n"
        "    except ValueError as error: print(error)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, cwd=root, capture_output=True, text=True
    )
    starts = ["float32 [2, 3, 32, 32]", "uint8 [2, 32, 32, 3]", "float32 [32, 32, 3]"]
    for line, start in zip(done.stdout.splitlines(), starts, strict=True):
        assert line.startswith(f"images are {start}, but this backbone takes float [b, 32, 32, 3]")
