"""Variable types that separate every model's trained variables from its fixed ones.

Models are split by type, never by matching names: `nnx.split(model, Trainable, ...)`.
"""

from collections.abc import Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike, DTypeLike

ModuleT = TypeVar("ModuleT", bound=nnx.Module)


class Frozen(nnx.Variable):
    """A variable of the pre-trained backbone or a fixed constant; bit-identical after training."""


class Trainable(nnx.Param):
    """A variable that the optimizer updates."""


def to_device(
    values: ArrayLike | Sequence[ArrayLike], dtype: DTypeLike | None = np.float32
) -> jax.Array:
    """Returns values of the host as an array on the device, without compiling a program.

    `jnp.asarray` and `jnp.zeros` compile one for each shape. On a CPU, the result may share memory
    with a NumPy array, which must not change afterwards.

    Args:
        values: A number, a sequence of them, or an array of NumPy's.
        dtype: Type of the result; None for the type of the values.
    """
    return jax.device_put(np.asarray(values, dtype))


def trainable_copy(module: ModuleT) -> ModuleT:
    """Clones a frozen module and makes every variable of the clone trainable.

    Args:
        module: A module whose variables are `Frozen`.
    Returns:
        A module of the same structure and values that shares no storage with the original, so
        that donating the buffers of one never touches those of the other.
    """
    clone = nnx.clone(module)
    for _, node in nnx.iter_graph(clone):
        if isinstance(node, nnx.Module):
            for name, value in list(vars(node).items()):
                if isinstance(value, Frozen):
                    setattr(node, name, Trainable(jnp.array(value[...], copy=True)))
    return clone
