"""Marks the cases of parametrised tests that `make test` leaves to `make further`."""

import pytest


def further(*cases: object) -> list:
    """Returns the cases, marked `further`. A tuple holds the values of several parameters.

    Mark cases whose lines and branches the other tests cover, and which take seconds.
    """
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.further)
        for case in cases
    ]
