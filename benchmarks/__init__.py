"""Benchmarks of speed and memory, each compared with a reference in the same run."""
