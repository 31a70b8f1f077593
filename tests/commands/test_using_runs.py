"""Checks of the modes that use finished runs, before they load one."""

import pytest

from fgvpl_jax.commands.using_runs import read_token
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
