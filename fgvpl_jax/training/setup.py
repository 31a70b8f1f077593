"""Inputs of a training run, and the builder of the visual cache made from them."""

from dataclasses import dataclass

from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fgvpl_jax.data import Split
from fgvpl_jax.training.inputs import Inputs
from fgvpl_jax.training.mesh import batch_size_for
from fgvpl_jax.training.visual_cache_builder import VisualCacheBuilder


@dataclass(frozen=True)
class TrainingSetup:
    """Everything that training needs in addition to the model and its support images.

    Attributes:
        config: Settings of the run, see `fgvpl_jax/runs/default_config.py`; the recipe is filled
            in.
        validation: Images for what a method chooses before training; None without any.
        inputs: Supplies what the method reads of the images.
        mesh: Devices.
    """

    config: ConfigDict
    validation: Split | None
    inputs: Inputs
    mesh: Mesh


def make_cache_builder(
    graphdef: nnx.GraphDef, support: Split, setup: TrainingSetup, *, max_bytes: int
) -> VisualCacheBuilder:
    """Returns the builder of the visual cache of a model structure; see `VisualCacheBuilder`."""
    config, mesh = setup.config, setup.mesh
    return VisualCacheBuilder(
        graphdef,
        support,
        inputs=setup.inputs,
        batch_size=batch_size_for(mesh, config.microbatch or config.batch_size, len(support)),
        max_bytes=max_bytes,
        mesh=mesh,
    )


def resident_bytes(config: ConfigDict) -> int:
    """Returns the bytes that photos may take on each device, and the cache's photos on all."""
    return int(config.data.resident_gb * 1e9)
