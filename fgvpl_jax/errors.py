"""The one error type for mistakes that the user can correct, and parts of one-line messages."""

from collections.abc import Sequence


class UserError(ValueError):
    """Says in one line what was wrong, with the value, and what to do about it.

    The command line prints only the message and exits with code 2. In a program it is an ordinary
    `ValueError`.
    """


class SharedError(UserError):
    """A mistake that every process of a job finds at the same point, so all can continue."""


def problem_of(error: Exception) -> str:
    """Describes an error in one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def first_of(names: Sequence[str], most: int) -> str:
    """Returns the first names for a message, separated by commas, with an ellipsis for the rest."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
