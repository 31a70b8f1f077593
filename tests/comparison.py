"""How close to an oracle float32 has to come."""

import numpy as np

BOUND = 1e-5


def relative_error(ours, expected) -> float:
    """Largest difference, in units of the largest expected value."""
    expected = np.asarray(expected)
    return float(np.abs(np.asarray(ours) - expected).max() / np.abs(expected).max())
