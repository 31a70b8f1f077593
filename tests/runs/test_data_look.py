"""A look at a user's own photos, with planted copies and a damaged photo."""

import json
import shutil

import pytest
from PIL import Image

from fgvpl_jax.errors import UserError
from fgvpl_jax.runs.data_look import look_at_data
from fgvpl_jax.runs.workdir import Workdir
from tests.conftest import make_tiny_config, write_photo_folders


@pytest.fixture(scope="module")
def planted(tiny_clip_dir, tmp_path_factory):
    """Photos with a copy in another class and one in another split, and what a look finds."""
    root, folder = tmp_path_factory.mktemp("photos"), tmp_path_factory.mktemp("W")
    write_photo_folders(root / "train", 8)
    write_photo_folders(root / "test", 3, seed=9)
    train = root / "train"
    shutil.copy(train / "red_square" / "000.png", train / "blue_square" / "copy.png")
    Image.open(train / "green square" / "000.png").resize((60, 72)).save(
        root / "test" / "green square" / "copy.jpg"
    )
    (train / "red_square" / "damaged.png").write_bytes(b"no photo")
    config = make_tiny_config(tiny_clip_dir, root)
    return look_at_data(config, Workdir(folder)), folder


def test_copies_in_several_classes_or_splits_are_found(planted):
    look, _ = planted
    found = {tuple(sorted(one.key for one in group)): group[0].reason for group in look.copies}
    assert found == {
        ("train/blue_square/copy.png", "train/red_square/000.png"): (
            "2 copies of one photo in several classes"
        ),
        ("test/green square/copy.jpg", "train/green square/000.png"): (
            "2 copies of one photo in several splits"
        ),
    }
    for group in look.copies:
        for one in group:
            assert look.splits[one.split].keys[one.place] == one.key


def test_the_file_holds_what_was_found(planted):
    look, folder = planted
    stored = json.loads((folder / "data_look.json").read_text())
    assert stored["accuracy"] == look.accuracy
    assert [[one["photo"] for one in group] for group in stored["copies"]] == [
        [one.key for one in group] for group in look.copies
    ]
    for kind in ("mislabelled", "outliers"):
        suspects = getattr(look, kind)
        assert [one["reason"] for one in stored[kind]] == [one.reason for one in suspects]
        for one in suspects:
            assert one.key.startswith("train/")
            assert "damaged" not in one.key
    assert sum(pair["photos"] for pair in stored["confused"]) == round(25 * (1 - look.accuracy))


def test_a_backbone_that_is_missing_is_named(tiny_config, tmp_path):
    tiny_config.clip = str(tmp_path / "nothing")
    with pytest.raises(UserError, match="nothing"):
        look_at_data(tiny_config, Workdir(tmp_path / "W"))
    assert not (tmp_path / "W").exists()
