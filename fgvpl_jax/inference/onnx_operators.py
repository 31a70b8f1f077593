"""ONNX operators of jax's primitives, for the shapes that our programs have."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from jax.extend.core import JaxprEqn

from fgvpl_jax.errors import UserError
from fgvpl_jax.inference.onnx_graph import Graph, Value

Operator = Callable[..., "Value | list[Value]"]
TO_THE_END = np.iinfo(np.int64).max


def _unsupported(equation: JaxprEqn) -> UserError:
    shapes = ", ".join(str(atom.aval) for atom in equation.invars)
    return UserError(
        f"the ONNX export has no operator for {equation.primitive.name} of {shapes}: export with "
        "--format=fgvpl"
    )


def _shape_of(atom: Any) -> tuple[Any, ...]:
    return tuple(atom.aval.shape)


def _dtype_of(atom: Any) -> Any:
    return atom.aval.dtype


def _int64(values: Sequence[Any]) -> np.ndarray:
    return np.array(values, np.int64)


def _same(operator: str) -> Operator:
    return lambda graph, equation, *inputs: graph.add(operator, *inputs)


def _unchanged(graph: Graph, equation: JaxprEqn, *inputs: Value) -> list[Value]:
    return list(inputs)


def _square(graph: Graph, equation: JaxprEqn, x: Value) -> Value:
    return graph.add("Mul", x, x)


def _integer_pow(graph: Graph, equation: JaxprEqn, x: Value) -> Value:
    return graph.add("Pow", x, np.asarray(equation.params["y"], _dtype_of(equation.invars[0])))


def _rsqrt(graph: Graph, equation: JaxprEqn, x: Value) -> Value:
    return graph.add("Reciprocal", graph.add("Sqrt", x))


def _log1p(graph: Graph, equation: JaxprEqn, x: Value) -> Value:
    return graph.add("Log", graph.add("Add", x, np.ones((), _dtype_of(equation.invars[0]))))


def _erfc(graph: Graph, equation: JaxprEqn, x: Value) -> Value:
    one = np.ones((), _dtype_of(equation.invars[0]))
    return graph.add("Sub", one, graph.add("Erf", x))


def _not_equal(graph: Graph, equation: JaxprEqn, x: Value, y: Value) -> Value:
    return graph.add("Not", graph.add("Equal", x, y))


def _is_finite(graph: Graph, equation: JaxprEqn, x: Value) -> Value:
    return graph.add("Not", graph.add("Or", graph.add("IsInf", x), graph.add("IsNaN", x)))


def _clamp(graph: Graph, equation: JaxprEqn, low: Value, x: Value, high: Value) -> Value:
    return graph.add("Min", graph.add("Max", x, low), high)


def _select(graph: Graph, equation: JaxprEqn, which: Value, *cases: Value) -> Value:
    if len(cases) != 2 or _dtype_of(equation.invars[0]).kind != "b":
        raise _unsupported(equation)
    if _dtype_of(equation.invars[1]).kind != "b":
        return graph.add("Where", which, cases[1], cases[0])
    # onnxruntime's Where takes no booleans.
    where, elsewhere = graph.add("And", which, cases[1]), graph.add("Not", which)
    return graph.add("Or", where, graph.add("And", elsewhere, cases[0]))


def _convert(graph: Graph, equation: JaxprEqn, x: Value) -> Value:
    return graph.cast(x, equation.params["new_dtype"])


def _reshape(graph: Graph, equation: JaxprEqn, x: Value, *sizes: Value) -> Value:
    return graph.reshape(x, _shape_of(equation.outvars[0]))


def _broadcast(graph: Graph, equation: JaxprEqn, x: Value, *sizes: Value) -> Value:
    shape, places = _shape_of(equation.outvars[0]), equation.params["broadcast_dimensions"]
    given = dict(zip(places, _shape_of(equation.invars[0]), strict=True))
    aligned = tuple(given.get(axis, 1) for axis in range(len(shape)))
    x = graph.reshape(x, aligned)
    return x if aligned == shape else graph.expand(x, shape)


def _transpose(graph: Graph, equation: JaxprEqn, x: Value) -> Value:
    return graph.add("Transpose", x, perm=equation.params["permutation"])


def _concatenate(graph: Graph, equation: JaxprEqn, *inputs: Value) -> Value:
    axis = equation.params["dimension"]
    # Without empty inputs, such as no prompt: to Reshape, a size of 0 means the input's size.
    pairs = zip(inputs, equation.invars, strict=True)
    return graph.add("Concat", *(x for x, atom in pairs if _shape_of(atom)[axis] != 0), axis=axis)


def _split(graph: Graph, equation: JaxprEqn, x: Value) -> list[Value]:
    sizes, axis = equation.params["sizes"], equation.params["axis"]
    return [*graph.add_all("Split", len(sizes), x, _int64(sizes), axis=axis)]


def _slice(graph: Graph, equation: JaxprEqn, x: Value) -> Value:
    params = equation.params
    bounds = params["start_indices"], params["limit_indices"]
    return _part(graph, equation, x, *bounds, params["strides"])


def _part(
    graph: Graph,
    equation: JaxprEqn,
    x: Value,
    starts: Sequence[Any],
    ends: Sequence[Any],
    steps: Sequence[int] | None = None,
) -> str:
    """Returns a slice of the equation's first input; an open end must be the end of an axis."""
    for start, end, size in zip(starts, ends, _shape_of(equation.invars[0]), strict=True):
        is_whole = isinstance(end, int) or str(end) == str(size)
        if not isinstance(start, int) or not is_whole:
            raise _unsupported(equation)
    bounds = [_int64(starts), _int64([e if isinstance(e, int) else TO_THE_END for e in ends])]
    return graph.add(
        "Slice", x, *bounds, _int64(range(len(starts))), _int64(steps or [1] * len(starts))
    )


def _pad(graph: Graph, equation: JaxprEqn, x: Value, value: Value) -> Value:
    low, high, inner = zip(*equation.params["padding_config"], strict=True)
    if any(inner) or min(*low, *high) < 0:
        raise _unsupported(equation)
    return graph.add("Pad", x, _int64([*low, *high]), value)


def _iota(graph: Graph, equation: JaxprEqn, *sizes: Value) -> Value:
    shape, axis = _shape_of(equation.outvars[0]), equation.params["dimension"]
    zero, one = np.zeros((), np.int64), np.ones((), np.int64)
    size = shape[axis]
    end = np.array(size, np.int64) if isinstance(size, int) else graph.reshape(graph.batch, ())
    counted = graph.cast(graph.add("Range", zero, end, one), equation.params["dtype"])
    aligned = [size if place == axis else 1 for place in range(len(shape))]
    return graph.expand(graph.reshape(counted, aligned), shape)


def _batch_size(graph: Graph, equation: JaxprEqn) -> Value:
    return graph.cast(graph.reshape(graph.batch, ()), _dtype_of(equation.outvars[0]))


def _reduce(operator: str, graph: Graph, equation: JaxprEqn, x: Value) -> Value:
    is_bool = _dtype_of(equation.invars[0]).kind == "b"
    if is_bool:
        x = graph.cast(x, np.int32)
    reduced = graph.add(operator, x, _int64(equation.params["axes"]), keepdims=0)
    return graph.cast(reduced, bool) if is_bool else reduced


def _arg(operator: str, graph: Graph, equation: JaxprEqn, x: Value) -> Value:
    (axis,) = equation.params["axes"]
    place = graph.add(operator, x, axis=axis, keepdims=0)
    return graph.cast(place, equation.params["index_dtype"])


def _cumsum(graph: Graph, equation: JaxprEqn, x: Value) -> Value:
    params = equation.params
    return graph.add("CumSum", x, np.array(params["axis"]), reverse=int(params["reverse"]))


def _top_k(graph: Graph, equation: JaxprEqn, x: Value) -> list[Value]:
    values, places = graph.add_all(
        "TopK", 2, x, _int64([equation.params["k"]]), axis=equation.params["axis"]
    )
    return [values, graph.cast(places, _dtype_of(equation.outvars[1]))]


def _dot(graph: Graph, equation: JaxprEqn, left: Value, right: Value) -> Value:
    """Returns a product: MatMul where both sides have one axis of their own, otherwise Einsum."""
    (contracted, batched) = equation.params["dimension_numbers"]
    ranks = [len(_shape_of(atom)) for atom in equation.invars]
    is_plain = not batched[0] and ranks[1] == 2 and len(contracted[1]) == 1
    if is_plain and contracted[0] == (ranks[0] - 1,):  # a linear layer
        if contracted[1] == (1,):
            right = right.T if isinstance(right, np.ndarray) else graph.add("Transpose", right)
        return graph.add("MatMul", left, right)
    free = [
        [axis for axis in range(rank) if axis not in contracted[side] and axis not in batched[side]]
        for side, rank in enumerate(ranks)
    ]
    if len(contracted[0]) == len(free[0]) == len(free[1]) == 1:
        orders = ([*batched[0], *free[0], *contracted[0]], [*batched[1], *contracted[1], *free[1]])
        sides = [
            side if order == sorted(order) else graph.add("Transpose", side, perm=order)
            for side, order in zip((left, right), orders, strict=True)
        ]
        return graph.add("MatMul", *sides)
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    names: list[dict[int, str]] = [{}, {}]
    for pair in (*zip(*batched, strict=True), *zip(*contracted, strict=True)):
        letter = next(letters)
        for side, axis in enumerate(pair):
            names[side][axis] = letter
    for side, axes in enumerate(free):
        names[side] |= {axis: next(letters) for axis in axes}
    terms = ["".join(names[side][axis] for axis in range(ranks[side])) for side in (0, 1)]
    kept = [names[0][axis] for axis in (*batched[0], *free[0])] + [names[1][a] for a in free[1]]
    return graph.add("Einsum", left, right, equation=f"{terms[0]},{terms[1]}->{''.join(kept)}")


def _gather(graph: Graph, equation: JaxprEqn, x: Value, indices: Value) -> Value:
    """Returns a slice at constant places, elements along one axis, or slices of one axis.

    Indices must be within bounds; those of our programs are.
    """
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    shape, index_shape = (_shape_of(atom) for atom in equation.invars)
    output = _shape_of(equation.outvars[0])
    axes, collapsed = numbers.start_index_map, numbers.collapsed_slice_dims
    batched = numbers.operand_batching_dims
    if isinstance(indices, np.ndarray) and indices.ndim == 1 and not batched:
        starts = dict(zip(axes, indices.tolist(), strict=True))
        first = [starts.get(axis, 0) for axis in range(len(shape))]
        ends = [start + size for start, size in zip(first, sizes, strict=True)]
        return graph.reshape(_part(graph, equation, x, first, ends), output)
    if len(axes) != 1 or collapsed != axes or index_shape[-1] != 1:
        raise _unsupported(equation)
    (axis,) = axes
    whole = tuple(place for place in range(len(shape)) if place not in (axis, *batched))
    if any(sizes[place] != shape[place] for place in whole):
        raise _unsupported(equation)
    others = (*range(axis), *range(axis + len(index_shape) - 1, len(output)))
    if not batched and numbers.offset_dims == others:
        return graph.add("Gather", x, graph.reshape(indices, index_shape[:-1]), axis=axis)
    indexed = [place for place in range(len(output)) if place not in whole]
    batches = [indexed[place] for place in numbers.start_indices_batching_dims]
    if len(output) != len(shape) or numbers.offset_dims != whole or batches != [*batched]:
        raise _unsupported(equation)
    aligned = [1 if place in whole else size for place, size in enumerate(output)]
    places = graph.reshape(indices, aligned)
    return graph.add(
        "GatherElements", x, graph.expand(places, output) if whole else places, axis=axis
    )


def _scatter(graph: Graph, equation: JaxprEqn, x: Value, indices: Value, updates: Value) -> Value:
    """Returns a table with new columns; indices must be within bounds."""
    numbers = equation.params["dimension_numbers"]
    index_shape, updated = (_shape_of(atom) for atom in equation.invars[1:])
    if (
        len(_shape_of(equation.invars[0])) != 2
        or len(index_shape) != 2
        or numbers.operand_batching_dims
        or numbers.update_window_dims != (0,)
        or numbers.scatter_dims_to_operand_dims != (1,)
    ):
        raise _unsupported(equation)
    places = graph.expand(graph.reshape(indices, (1, index_shape[0])), updated)
    return graph.add("ScatterElements", x, places, updates, axis=1)


def _scatter_add(
    graph: Graph, equation: JaxprEqn, x: Value, indices: Value, updates: Value
) -> Value:
    """Returns the sum of the updates of each row's elements; indices must be within bounds."""
    numbers = equation.params["dimension_numbers"]
    shape, index_shape = (_shape_of(atom) for atom in equation.invars[:2])
    if (
        len(shape) != 2
        or numbers.operand_batching_dims != (0,)
        or numbers.scatter_indices_batching_dims != (0,)
        or numbers.scatter_dims_to_operand_dims != (1,)
    ):
        raise _unsupported(equation)
    places = graph.reshape(indices, index_shape[:-1])
    return graph.add("ScatterElements", x, places, updates, axis=1, reduction="add")


OPERATORS: dict[str, Operator] = {
    **{name: _same(name.capitalize()) for name in ("add", "sub", "mul", "div", "max", "min")},
    **{name: _same(name.capitalize()) for name in ("exp", "log", "neg", "sqrt", "tanh", "erf")},
    **{name: _same(name.capitalize()) for name in ("abs", "sign", "floor", "ceil", "pow")},
    **{name: _same(name.capitalize()) for name in ("not", "and", "or")},
    "logistic": _same("Sigmoid"),
    "eq": _same("Equal"),
    "lt": _same("Less"),
    "le": _same("LessOrEqual"),
    "gt": _same("Greater"),
    "ge": _same("GreaterOrEqual"),
    "stop_gradient": _unchanged,
    "optimization_barrier": _unchanged,
    "copy": _unchanged,
    "square": _square,
    "integer_pow": _integer_pow,
    "rsqrt": _rsqrt,
    "log1p": _log1p,
    "erfc": _erfc,
    "ne": _not_equal,
    "is_finite": _is_finite,
    "clamp": _clamp,
    "select_n": _select,
    "convert_element_type": _convert,
    "reshape": _reshape,
    "squeeze": _reshape,
    "expand_dims": _reshape,
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "concatenate": _concatenate,
    "split": _split,
    "slice": _slice,
    "pad": _pad,
    "iota": _iota,
    "dim_as_value": _batch_size,
    "reduce_sum": partial(_reduce, "ReduceSum"),
    "reduce_max": partial(_reduce, "ReduceMax"),
    "reduce_min": partial(_reduce, "ReduceMin"),
    "reduce_or": partial(_reduce, "ReduceMax"),
    "reduce_and": partial(_reduce, "ReduceMin"),
    "argmax": partial(_arg, "ArgMax"),
    "argmin": partial(_arg, "ArgMin"),
    "cumsum": _cumsum,
    "top_k": _top_k,
    "dot_general": _dot,
    "gather": _gather,
    "scatter": _scatter,
    "scatter-add": _scatter_add,
}
