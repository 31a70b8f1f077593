"""The content of a file during and after writes, successful or failed."""

from pathlib import Path

import pytest

from fgvpl_jax.errors import UserError
from fgvpl_jax.files import expand_user, written_whole


def test_a_file_is_replaced_only_at_the_end_of_a_successful_write(tmp_path):
    file = tmp_path / "a.json"
    with written_whole(file) as stream:
        stream.write(b"old")
    with pytest.raises(RuntimeError), written_whole(file) as stream:
        stream.write(b"ne")
        assert file.read_bytes() == b"old"
        raise RuntimeError
    assert file.read_bytes() == b"old"
    with written_whole(file) as stream:
        stream.write(b"new")
    assert file.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [file]


def test_a_home_folder_that_does_not_exist_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand_user("~/photos") == tmp_path / "photos"
    assert expand_user("a~b") == Path("a~b")
    with pytest.raises(UserError, match="~nobody_here has no home folder here: write the whole"):
        expand_user("~nobody_here/photos")
