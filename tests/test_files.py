"""The state of a file after a failed write."""

import pytest

from fgvpl_jax.files import written_whole


def test_a_file_is_replaced_at_the_end_and_not_by_an_error(tmp_path):
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
