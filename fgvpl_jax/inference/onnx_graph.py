"""An ONNX graph under construction, whose only open dimension is the batch."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

OPSET = 18
BATCH = "b"
IMAGES = "images"
# Small constants are shared by their value, large ones by their identity.
SHARED_BYTES = 1024
# A constant, or the name of a tensor in the graph.
Value = np.ndarray | str


class Graph:
    """An ONNX graph under construction.

    Attributes:
        nodes: The nodes so far; within a loop, those of its body.
        batch: Name of the number of images, int64 [1].
    """

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._constants: dict[Any, tuple[str, np.ndarray]] = {}
        self._num_names = 0
        self.batch = self.add("Shape", IMAGES, start=0, end=1)

    def name(self) -> str:
        """Returns a new name."""
        self._num_names += 1
        return f"t{self._num_names}"

    def named(self, value: Value) -> str:
        """Returns the name of a value, which becomes an initializer if it is a constant."""
        if isinstance(value, str):
            return value
        small = value.nbytes <= SHARED_BYTES
        key = (value.dtype.str, value.shape, value.tobytes()) if small else id(value)
        if key not in self._constants:
            self._constants[key] = (self.name(), value)
        return self._constants[key][0]

    def add(self, operator: str, *inputs: Value, **attributes: Any) -> str:
        """Adds a node with one output; returns the output's name."""
        return self.add_all(operator, 1, *inputs, **attributes)[0]

    def add_all(
        self, operator: str, num_outputs: int, *inputs: Value, **attributes: Any
    ) -> list[str]:
        """Adds a node; returns the names of its outputs."""
        outputs = [self.name() for _ in range(num_outputs)]
        names = [self.named(value) for value in inputs]
        # The node's name lets a quantiser be given a list of nodes.
        node = helper.make_node(operator, names, outputs, name=outputs[0], **attributes)
        self.nodes.append(node)
        return outputs

    def cast(self, value: Value, dtype: Any) -> str:
        """Returns a value in another type."""
        return self.add("Cast", value, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def reshape(self, value: Value, shape: Sequence[Any]) -> str:
        """Returns a value in another shape, of which one dimension may be open."""
        sizes = [size if isinstance(size, int) else -1 for size in shape]
        return self.add("Reshape", value, np.array(sizes, np.int64))

    def expand(self, value: Value, shape: Sequence[Any]) -> str:
        """Returns a value broadcast to a shape."""
        sizes: list[Value] = [
            np.array([size], np.int64) if isinstance(size, int) else self.batch for size in shape
        ]
        return self.add("Expand", value, self.add("Concat", *sizes, axis=0))

    def body(self, translate: Callable[[], Sequence[Value]]) -> tuple[list[Any], list[str]]:
        """Returns the nodes and the outputs of a loop's body, from a function that adds them."""
        outer, self.nodes = self.nodes, []
        outputs = [self.add("Identity", value) for value in translate()]
        nodes, self.nodes = self.nodes, outer
        return nodes, outputs

    def model(self, image_side: int, outputs: dict[str, tuple[Value, Any]]) -> onnx.ModelProto:
        """Returns the model.

        Args:
            image_side: Side of the images in pixels.
            outputs: Value and aval of each output, by its name.
        """
        for name, (value, _) in outputs.items():
            self.nodes.append(helper.make_node("Identity", [self.named(value)], [name]))
        nodes, used = _needed(self.nodes, set(outputs))
        graph = helper.make_graph(
            nodes,
            "fgvpl",
            [_info(IMAGES, np.uint8, (BATCH, image_side, image_side, 3))],
            [_info(name, aval.dtype, aval.shape) for name, (_, aval) in outputs.items()],
            [
                numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
                for name, array in self._constants.values()
                if name in used
            ],
        )
        opset = helper.make_opsetid("", OPSET)
        return helper.make_model(
            graph, opset_imports=[opset], ir_version=helper.find_min_ir_version_for([opset])
        )


def _info(name: str, dtype: Any, shape: Sequence[Any]) -> onnx.ValueInfoProto:
    sizes = [size if isinstance(size, int) else BATCH for size in shape]
    return helper.make_tensor_value_info(
        name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), sizes
    )


def _needed(
    nodes: Sequence[onnx.NodeProto], outputs: set[str]
) -> tuple[list[onnx.NodeProto], set[str]]:
    """Returns the nodes that the outputs depend on, and the names that they read."""
    used, kept = set(outputs), []
    for node in reversed(nodes):
        if used.isdisjoint(node.output):
            continue
        kept.append(node)
        used.update(node.input)
        for attribute in node.attribute:
            used.update(name for inner in attribute.g.node for name in inner.input)
    return kept[::-1], used
