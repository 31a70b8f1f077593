"""Variable types that part every model into what is trained and what is not.

The partition is by type, never by a pattern over names: `nnx.split(model, Trainable, ...)`.
"""

from typing import TypeVar

import jax.numpy as jnp
from flax import nnx

ModuleT = TypeVar("ModuleT", bound=nnx.Module)


class Frozen(nnx.Variable):
    """Part of the pre-trained backbone or a fixed constant; bit-identical after training."""


class Trainable(nnx.Param):
    """Updated by the optimizer."""


def trainable_copy(module: ModuleT) -> ModuleT:
    """Clones a frozen module into one whose every variable is trainable.

    Args:
        module: A module whose variables are `Frozen`.
    Returns:
        A module of the same structure and values that shares no storage with the original, so
        that donating one's buffers never touches the other's.
    """
    clone = nnx.clone(module)
    for _, node in nnx.iter_graph(clone):
        if isinstance(node, nnx.Module):
            for name, value in list(vars(node).items()):
                if isinstance(value, Frozen):
                    setattr(node, name, Trainable(jnp.array(value[...], copy=True)))
    return clone
