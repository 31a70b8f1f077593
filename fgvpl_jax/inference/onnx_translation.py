"""Translates a traced jax program to ONNX.

Equations that do not depend on the images are computed here and become constants.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from onnx import TensorProto, helper

from fgvpl_jax.errors import UserError
from fgvpl_jax.inference.onnx_graph import BATCH, Graph, Value
from fgvpl_jax.inference.onnx_operators import OPERATORS

# Primitives that call another jaxpr, which is translated where it is called.
CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "checkpoint", "remat")


def translate(graph: Graph, closed: ClosedJaxpr, arguments: Sequence[Value]) -> list[Value]:
    """Adds a jaxpr to the graph.

    Args:
        graph: Graph to add to.
        closed: The jaxpr.
        arguments: Values of its arguments.
    Returns:
        Values of its outputs.
    Raises:
        UserError: If there is no translation of an operation.
    """
    jaxpr = closed.jaxpr
    values: dict[Any, Value] = dict(
        zip(jaxpr.constvars, map(np.asarray, closed.consts), strict=True)
    )
    values.update(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Value:
        if isinstance(atom, Literal):
            aval: Any = atom.aval
            return np.asarray(atom.val, aval.dtype)
        return values[atom]

    for equation in jaxpr.eqns:
        outputs = _translate_equation(graph, equation, [read(atom) for atom in equation.invars])
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def closed_jaxpr(jaxpr: Jaxpr | ClosedJaxpr) -> ClosedJaxpr:
    """Returns a closed jaxpr; a bare `Jaxpr` has no constants."""
    return jaxpr if isinstance(jaxpr, ClosedJaxpr) else ClosedJaxpr(jaxpr, ())


def _translate_equation(
    graph: Graph, equation: JaxprEqn, inputs: Sequence[Value]
) -> Sequence[Value]:
    primitive, params = equation.primitive, equation.params
    avals: list[Any] = [atom.aval for atom in equation.outvars]
    sizes = [size for aval in avals for size in aval.shape if not isinstance(size, int)]
    if primitive.name == "dim_as_value":
        sizes.append(params["dim"])
    for size in sizes:
        if str(size) != BATCH:
            raise UserError(
                f"this method computes {primitive.name} of the size {size} on {BATCH} photos, and "
                f"the ONNX export has operators only for sizes that are {BATCH} or do not depend "
                "on it: export with --format=fgvpl"
            )
    if primitive.name in CALLS:
        inner = params["jaxpr"] if "jaxpr" in params else params["call_jaxpr"]
        return translate(graph, closed_jaxpr(inner), inputs)
    is_constant = not any(isinstance(value, str) for value in inputs)
    if is_constant and not sizes:
        found = primitive.bind(*inputs, **params)
        return jax.tree.map(np.asarray, found if primitive.multiple_results else [found])
    if any(aval.dtype == jnp.bfloat16 for aval in avals):
        raise UserError(
            "this run computes in bfloat16, for which onnxruntime has no CPU operators: export "
            "with --format=fgvpl"
        )
    if primitive.name == "while":
        return _while(graph, equation, inputs)
    if primitive.name not in OPERATORS:
        raise UserError(
            f"this method computes {primitive.name} on photos, for which the ONNX export has no "
            "operator: export with --format=fgvpl"
        )
    output = OPERATORS[primitive.name](graph, equation, *inputs)
    return output if isinstance(output, list) else [output]


def _while(graph: Graph, equation: JaxprEqn, inputs: Sequence[Value]) -> list[Value]:
    params = equation.params
    tests, steps = params["cond_nconsts"], params["body_nconsts"]
    # Constants get their names here, in the outer graph, which the body can read.
    names: list[Value] = [graph.named(value) for value in inputs]
    test_constants, step_constants = names[:tests], names[tests : tests + steps]
    carried = names[tests + steps :]

    def continues(carried: Sequence[Value]) -> Value:
        test = closed_jaxpr(params["cond_jaxpr"])
        return translate(graph, test, [*test_constants, *carried])[0]

    arguments: list[str] = [graph.name() for _ in range(2 + len(carried))]

    def body() -> list[Value]:
        step = closed_jaxpr(params["body_jaxpr"])
        found = translate(graph, step, [*step_constants, *arguments[2:]])
        return [continues(found), *found]

    nodes, outputs = graph.body(body)
    avals: list[Any] = [atom.aval for atom in equation.outvars]
    types = [helper.np_dtype_to_tensor_dtype(np.dtype(aval.dtype)) for aval in avals]
    counter = [TensorProto.INT64, TensorProto.BOOL]
    loop = helper.make_graph(
        nodes,
        "loop",
        [
            helper.make_tensor_value_info(name, kind, [] if place < 2 else None)
            for place, (name, kind) in enumerate(zip(arguments, [*counter, *types], strict=True))
        ],
        [
            helper.make_tensor_value_info(name, kind, None if place else [])
            for place, (name, kind) in enumerate(zip(outputs, [counter[1], *types], strict=True))
        ],
    )
    return [*graph.add_all("Loop", len(carried), "", continues(carried), *carried, body=loop)]
