"""The version of the package, which rooms may read without importing the package root."""

__version__ = "0.1.0"
