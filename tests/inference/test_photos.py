"""A classifier takes photos in every form that programs have them, and says so of anything else."""

import io
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fgvpl_jax.data import UnreadableImage
from fgvpl_jax.errors import UserError
from fgvpl_jax.inference.photos import named_photos, open_photo


@pytest.fixture
def photo(photos_dir) -> Path:
    return photos_dir / "test" / "red_square" / "000.png"


def uploaded(photo):
    """Returns a file as web frameworks have it, read to its end."""
    file = tempfile.SpooledTemporaryFile()  # noqa: SIM115
    file.write(photo.read_bytes())
    return file


FORMS = {
    "path": lambda photo: photo,
    "text": str,
    "bytes": lambda photo: photo.read_bytes(),
    "bytearray": lambda photo: bytearray(photo.read_bytes()),
    "memoryview": lambda photo: memoryview(photo.read_bytes()),
    "BytesIO": lambda photo: io.BytesIO(photo.read_bytes()),
    "open file": lambda photo: photo.open("rb"),
    "upload": uploaded,
    "PIL": Image.open,
    "NumPy": lambda photo: np.asarray(Image.open(photo)),
    "a view": lambda photo: np.asarray(Image.open(photo))[:, ::-1][:, ::-1],
    "jax": lambda photo: jnp.asarray(Image.open(photo)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("several", [lambda x: x, lambda x: [x], lambda x: iter((x,))])
def test_every_form_of_a_photo_is_the_same_image(photo, form, several):
    ((name, given),) = named_photos(several(FORMS[form](photo)))
    assert name == (str(photo) if form in ("path", "text") else "image 0")
    np.testing.assert_array_equal(np.asarray(open_photo(given, name)), Image.open(photo))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (None, "image 0 is None: give paths, bytes"),
        (3, "image 0 is of type int"),
        ({"photo": 1}, "image 0 is of type dict"),
        ([np.zeros((2, 2, 3), np.uint8), None], "image 1 is None"),
        ([[1, 2], [3, 4]], "image 0 is of type list"),
        ("", "an empty path"),
        ("/no/such/photo.jpg", "there is no file or folder /no/such/photo.jpg"),
        ("https://x.org/photo.jpg", "there is no file or folder https://x.org/photo.jpg"),
        ("aGVsbG8" * 1000, "there is no file or folder aGVsbG8"),
        ("~nobody_here/photo.jpg", "~nobody_here has no home folder"),
        (np.zeros((4, 4, 3)), r"float64 \[4, 4, 3\]: give"),
        (np.zeros((4, 4), np.uint8), r"uint8 \[4, 4\]: give"),
        (np.zeros((4, 4, 4), np.uint8), r"uint8 \[4, 4, 4\]"),
        (np.zeros((2, 4, 4, 3), np.uint8), r"uint8 \[2, 4, 4, 3\]"),
        (np.zeros((0, 4, 3), np.uint8), r"uint8 \[0, 4, 3\]"),
        (jnp.zeros((4, 4, 3)), r"float32 \[4, 4, 3\]"),
        (np.uint8(3), r"uint8 \[\]"),
    ],
)
def test_anything_else_is_refused_by_what_may_be_given(images, message):
    with pytest.raises(UserError, match=message):
        named_photos(images)


def closed_file():
    file = io.BytesIO(b"x")
    file.close()
    return file


@pytest.mark.parametrize(
    ("photo", "message"),
    [
        (b"", "x: the file is empty"),
        (b"no image", "x: not an image"),
        (io.StringIO("text"), "x is a file of str, not of bytes: open it with 'rb'"),
        (closed_file(), r"x cannot be read \(I/O operation on closed file"),
    ],
)
def test_a_photo_that_cannot_be_read_is_named(photo, message):
    with pytest.raises(UnreadableImage, match=message):
        open_photo(photo, "x")
