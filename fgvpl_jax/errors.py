"""The one error type for mistakes that the person at the keyboard can mend."""


class UserError(ValueError):
    """What was wrong, with the value, and what to do about it, in one line.

    The command line prints the message alone and exits with code 2; in a program it is a
    `ValueError` like any other.
    """
