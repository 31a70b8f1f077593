"""Sweeps of many runs: their cells, and the workers that run them."""
