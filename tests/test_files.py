"""The content of a file during and after writes, successful or failed."""

import pytest

from fgvpl_jax.files import written_whole


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
