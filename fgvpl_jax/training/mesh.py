"""Where arrays live: batches split over all devices, everything else on each of them."""

from typing import TypeVar

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

Tree = TypeVar("Tree")


def data_mesh() -> Mesh:
    """All devices along one axis named `data`."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicate(mesh: Mesh, tree: Tree) -> Tree:
    """Puts a copy of every array on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def split_batch(mesh: Mesh, tree: Tree) -> Tree:
    """Splits the leading axis of every array over the devices, which must divide it."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec("data")))


def batch_size_for(mesh: Mesh, wanted: int, num_images: int) -> int:
    """min(wanted, num_images), rounded up to a multiple of the number of devices."""
    size = min(wanted, num_images)
    return size + -size % mesh.size
