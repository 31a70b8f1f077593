"""The methods of the paper's tables."""

from fgvpl_jax.methods.fg_vpl import FGVPL

__all__ = ["FGVPL"]
