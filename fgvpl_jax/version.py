"""The version of the package. Modules read it here instead of from the package root."""

__version__ = "0.2.0.dev0"
