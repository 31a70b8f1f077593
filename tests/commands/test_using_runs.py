"""Checks of the modes that use finished runs, before they load one."""

import pytest
from absl.testing import flagsaver

from fgvpl_jax.commands import flags
from fgvpl_jax.commands.using_runs import coco_file, make_folder_of, read_token
from fgvpl_jax.errors import UserError


def test_a_token_is_the_text_of_its_file(tmp_path):
    file = tmp_path / "token"
    file.write_text("0123456789abcdef\n")
    assert read_token(str(file)) == "0123456789abcdef"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"short\n", "holds 5 characters"),
        (b"\xff" * 20, "cannot be read"),
    ],
)
def test_a_token_that_cannot_be_used_is_refused(tmp_path, content, message):
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_token(str(file))


@pytest.mark.parametrize(
    ("name", "regions", "message"),
    [
        ("regions.json", False, "is a file of regions: add --regions"),
        ("photo.jpg", True, "is not the name of a .json file"),
        ("folder.json", True, "is not the name of a .json file"),
        ("old.json", True, "exists already: name a new file, or remove it first"),
    ],
)
def test_a_coco_file_that_cannot_be_written_is_refused(tmp_path, name, regions, message):
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "old.json").touch()
    with flagsaver.flagsaver((flags.COCO, str(tmp_path / name)), (flags.REGIONS, regions)):  # noqa: SIM117
        with pytest.raises(UserError, match=message):
            coco_file()


def test_the_folder_of_a_coco_file_is_made_later(tmp_path):
    file = tmp_path / "a" / "regions.json"
    with flagsaver.flagsaver((flags.COCO, str(file)), (flags.REGIONS, True)):
        assert coco_file() == file
    assert not file.parent.exists()
    make_folder_of(file)
    assert list(file.parent.iterdir()) == []
    file.touch()
    with pytest.raises(UserError, match=r"b\.json cannot be written \(.*name a file in another"):
        make_folder_of(file / "b.json")
    with flagsaver.flagsaver((flags.COCO, None), (flags.REGIONS, True)):
        assert coco_file() is None
