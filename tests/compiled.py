"""Runs modules in tests as one compiled program each, instead of one program for each operation.

A small program takes about as long to compile as a single operation of one shape, and an encoder
that is called outside `jax.jit` has a hundred of these.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from flax import nnx


@partial(jax.jit, static_argnums=(0, 1))
def _apply(graphdef: Any, function: Callable, state: Any, arguments: tuple, settings: dict) -> Any:
    return function(nnx.merge(graphdef, state), *arguments, **settings)


def run(function: Callable, module: Any, *arguments: Any, **settings: Any) -> Any:
    """Returns `function(module, *arguments, **settings)`, computed by one compiled program.

    Modules of the same structure share the program if the function is the same object, such as one
    that is defined at the top of a file.

    Args:
        function: A function of the module and of arrays; it must not change the module.
        module: A module, or a tree of modules.
        *arguments: Trees of arrays.
        **settings: More trees of arrays, by name.
    """
    graphdef, state = nnx.split(module)
    return _apply(graphdef, function, state, arguments, settings)


def call(module: Callable, *arguments: Any, **settings: Any) -> Any:
    """Returns `module(*arguments, **settings)`, computed by one compiled program."""
    return run(_call, module, *arguments, **settings)


def _call(module: Callable, *arguments: Any, **settings: Any) -> Any:
    return module(*arguments, **settings)
