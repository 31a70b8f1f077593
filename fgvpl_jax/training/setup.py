"""What a training run is given, and what is built from it: the batches, the visual cache."""

from dataclasses import dataclass

import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fgvpl_jax.data import Split
from fgvpl_jax.methods import Method
from fgvpl_jax.methods.interface import PixelMethod
from fgvpl_jax.training.batch_sources import BatchSource, HostBatches, ResidentBatches
from fgvpl_jax.training.inputs import Inputs
from fgvpl_jax.training.mesh import batch_layout, batch_size_for
from fgvpl_jax.training.microbatches import default_microbatch
from fgvpl_jax.training.resident import decode_resident
from fgvpl_jax.training.train_step import make_resident_train_step, make_train_step
from fgvpl_jax.training.visual_cache_builder import VisualCacheBuilder


@dataclass(frozen=True)
class TrainingSetup:
    """What the training of a run needs in addition to the model and its support images.

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
    model: Method, graphdef: nnx.GraphDef, support: Split, setup: TrainingSetup
) -> VisualCacheBuilder | None:
    """Returns the builder of the cache that training uses; None for a method without a cache."""
    if not model.uses_cache:
        return None
    config = setup.config
    return VisualCacheBuilder(
        graphdef,
        support,
        inputs=setup.inputs,
        batch_size=batch_size_for(setup.mesh, config.microbatch or config.batch_size, len(support)),
        max_bytes=resident_bytes(config),
        mesh=setup.mesh,
    )


def batch_source(
    model: Method,
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    support: Split,
    setup: TrainingSetup,
) -> BatchSource:
    """Keeps photos on the devices if the method reads pixels and they fit `data.resident_gb`."""
    config, mesh = setup.config, setup.mesh
    batch_size = min(config.batch_size, len(support))
    microbatch = config.microbatch or default_microbatch(model, mesh, len(support))
    layout = batch_layout(mesh, batch_size, microbatch)
    if isinstance(model, PixelMethod):
        photos = decode_resident(support, resident_bytes(config))
        if photos is not None:
            size = model.image_encoder.vision.config.image_size
            program = make_resident_train_step(graphdef, optimizer, mesh, layout.num_passes, size)
            return ResidentBatches(
                program, photos, support.labels, batch_size, layout, config.seed, mesh
            )
    step = make_train_step(graphdef, optimizer, mesh, layout.num_passes)
    return HostBatches(step, setup.inputs, support, batch_size, layout, mesh)


def resident_bytes(config: ConfigDict) -> int:
    """Returns the bytes that photos may take on each device, and the cache's photos on all."""
    return int(config.data.resident_gb * 1e9)
