"""Conversion of published tensors to our modules, by an architecture's tables of names."""

import math

import numpy as np
from flax import nnx

from fgvpl_jax.clip.family import Architecture, Names, source_of
from fgvpl_jax.clip.towers import ImageTower, TextTower
from fgvpl_jax.clip.weights import Tensors
from fgvpl_jax.errors import UserError, first_of
from fgvpl_jax.variables import to_device

LOGIT_SCALE = "logit_scale"
MOST_NAMED = 5


def build_towers(
    architecture: Architecture, tensors: Tensors
) -> tuple[ImageTower, TextTower, float]:
    """Builds both towers from a checkpoint's tensors; also returns exp(logit_scale).

    Raises:
        UserError: If a tensor is missing, unknown or of another shape; the message names the
            tensors.
    """
    used, missing, misshaped = set(), set(), set()
    towers = []
    for tower, names in (
        (architecture.vision, architecture.vision_names),
        (architecture.text, architecture.text_names),
    ):
        graphdef, state = nnx.split(tower)
        filled = []
        for path, variable in nnx.to_flat_state(state):
            name, layout = source_of(path, names)
            used.add(name)
            if name not in tensors:
                missing.add(name)
                continue
            # Compared before any transposition, which could make a wrong layout fit.
            tensor, expected = tensors[name], layout.published_shape(variable.shape)
            if tensor.shape != expected:
                misshaped.add(f"{name} {tensor.shape}, expected {expected}")
                continue
            # `replace` copies; the tower without weights is shared.
            filled.append((path, variable.replace(to_device(layout.ours(tensor), None))))
        towers.append((graphdef, filled))
    for name in (LOGIT_SCALE, *architecture.unused):
        used.add(name)
        if name not in tensors:
            missing.add(name)
        elif tensors[name].size != 1:  # checkpoints have shape () or (1,)
            misshaped.add(f"{name} {tensors[name].shape}, expected ()")
    for problem, found in (
        ("lacks tensors", missing),
        ("has tensors that this config has no place for", tensors.keys() - used),
        ("has tensors of shapes that do not fit the config", misshaped),
    ):
        if found:
            raise UserError(
                f"the checkpoint {problem} ({len(found)}): {first_of(sorted(found), MOST_NAMED)}; "
                "check that its config and the weights belong together"
            )
    vision, text = (nnx.merge(graphdef, nnx.from_flat_state(filled)) for graphdef, filled in towers)
    assert isinstance(vision, ImageTower)
    assert isinstance(text, TextTower)
    return vision, text, float(np.exp(tensors[LOGIT_SCALE].astype(np.float64).reshape(())))


def published_tensors(*towers: tuple[nnx.Module, Names]) -> Tensors:
    """Returns the variables of towers as they are published.

    Args:
        towers: Each tower with the published names of its tensors.
    """
    tensors: Tensors = {}
    for tower, names in towers:
        for path, variable in nnx.to_flat_state(nnx.state(tower)):
            value = np.asarray(variable[...])
            name, layout = source_of(path, names)
            shape = layout.published_shape(value.shape)
            # Layouts only move values, so they also say from where each value came.
            places = layout.ours(np.arange(math.prod(shape)).reshape(shape))
            tensor = tensors.setdefault(name, np.empty(shape, value.dtype))
            tensor.reshape(-1)[places] = value
    return tensors
