"""The one error type for mistakes that the user can correct."""


class UserError(ValueError):
    """Says in one line what was wrong, with the value, and what to do about it.

    The command line prints only the message and exits with code 2. In a program it is an ordinary
    `ValueError`.
    """
