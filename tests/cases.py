"""Marks the cases of parametrised tests that `make test` leaves to `make thorough`."""

import pytest
from _pytest.mark import ParameterSet


def thorough(*cases: object) -> list[ParameterSet]:
    """Marks cases `thorough`; a tuple holds the values of several parameters."""
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.thorough)
        for case in cases
    ]
