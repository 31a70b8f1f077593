"""Places arrays on devices: batches are split over all devices, everything else is copied."""

from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fgvpl_jax.errors import UserError

Tree = TypeVar("Tree")


def data_mesh() -> Mesh:
    """Returns all devices of all processes along one axis `data`, in the order of processes.

    `jax.make_mesh` may order them differently on TPUs, so that a process's rows would not be
    contiguous.

    Raises:
        UserError: If processes have different numbers of devices.
    """
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    if len(devices) != jax.process_count() * jax.local_device_count():
        raise UserError(
            f"process {jax.process_index()} has {jax.local_device_count()} of {len(devices)} "
            f"devices: give each of the {jax.process_count()} processes the same number"
        )
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that puts the whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_rows(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Returns the sharding that splits axis `axis` over the devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def replicate(mesh: Mesh, tree: Tree) -> Tree:
    """Puts a copy of every array on every device; all processes must hold equal arrays."""
    sharding = replicated(mesh)
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    # device_put would first compare the arrays of all processes, which sends each of them around.
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x), x.shape), tree
    )


def split_batch(mesh: Mesh, tree: Any) -> Any:
    """Splits each process's rows over its devices, which must divide them; returns all rows."""
    return jax.make_array_from_process_local_data(split_rows(mesh), tree)


def to_host(tree: Tree) -> Tree:
    """Returns all rows of split arrays as NumPy arrays; every process must call this function."""
    return multihost_utils.process_allgather(tree, tiled=True)


def batch_size_for(mesh: Mesh, wanted: int, num_images: int) -> int:
    """Returns min(wanted, num_images), rounded up to a multiple of the number of devices."""
    size = min(wanted, num_images)
    return size + -size % mesh.size


class BatchLayout(NamedTuple):
    """Arrangement of the images of a step on the devices.

    Attributes:
        num_rows: Number of images and padding rows; a multiple of num_passes and of the number of
            devices.
        num_passes: Number of forward and backward passes whose gradients are summed.
    """

    num_rows: int
    num_passes: int


def batch_layout(mesh: Mesh, batch_size: int, microbatch: int) -> BatchLayout:
    """Returns the layout of batches of `batch_size` images; padding does not change the step.

    Args:
        mesh: Devices.
        batch_size: Number of images in a step.
        microbatch: Most images in one pass, rounded up to the number of devices; 0 for all.
    """
    num_passes = -(-batch_size // (microbatch or batch_size))
    return BatchLayout(batch_size + -batch_size % (num_passes * mesh.size), num_passes)
