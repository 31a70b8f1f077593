"""The ONNX file: the run's predictions at any batch, operators against jax, and refusals."""

import json

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from examples.run_exported import prepare
from fgvpl_jax.errors import UserError

onnx = pytest.importorskip("onnx", reason="needs the extra `onnx`")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra `onnx`")

from fgvpl_jax.inference import onnx_export  # noqa: E402
from fgvpl_jax.inference.onnx_export import export_onnx  # noqa: E402
from fgvpl_jax.inference.onnx_graph import IMAGES, OPSET, Graph  # noqa: E402
from fgvpl_jax.inference.onnx_translation import translate  # noqa: E402


def test_predictions_are_those_of_the_run_for_any_number_of_photos(exported, photos, tmp_path):
    classifier, _ = exported
    session = onnxruntime.InferenceSession(export_onnx(classifier, tmp_path / "a" / "W.onnx"))
    metadata = session.get_modelmeta().custom_metadata_map
    names, preparation = (json.loads(metadata[key]) for key in ("class_names", "preparation"))
    outputs = [output.name for output in session.get_outputs()]
    photos = (photos * 2)[:16]
    images = np.stack([prepare(photo, preparation) for photo in photos])
    predictions = classifier.predict(photos, top_k=len(names))
    for count in (1, 3, 16):
        found = dict(zip(outputs, session.run(None, {IMAGES: images[:count]}), strict=True))
        assert len(found["probabilities"]) == count
        assert ("object_mask" in found) == classifier.finds_objects
        for row, prediction in enumerate(predictions[:count]):
            order = [names.index(name) for name in prediction.class_names]
            for name in ("logits", "probabilities"):
                ours, theirs = getattr(prediction, name), found[name][row, order]
                np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-5)
            belonging = prediction.belonging
            assert found["score"][row] == pytest.approx(belonging.score, rel=1e-4)
            assert found["none_of_these"][row] == belonging.none_of_these
            if classifier.finds_objects:
                location = prediction.location
                np.testing.assert_array_equal(found["object_mask"][row], location.object_mask)
                np.testing.assert_allclose(
                    found["attention_map"][row], location.attention_map, rtol=1e-4
                )


# Functions of x, uint8 [b, 2, 2, 3], that cover the operators; most occur in some method.
FUNCTIONS = {
    "arithmetic": lambda x: (x + 1.5) * x - x / 3 + jnp.maximum(x, 9) + jnp.minimum(x, 9) - (-x),
    "powers": lambda x: jnp.square(x) + x**3 + jax.lax.rsqrt(x + 1) + jnp.sqrt(x) + x**0.5,
    "exponentials": lambda x: jnp.exp(-x) + jnp.log(x + 1) + jnp.log1p(x) + jax.nn.sigmoid(x),
    "activations": lambda x: jax.nn.gelu(x, approximate=False) + jax.nn.gelu(x) + jax.nn.relu(x),
    "rounding": lambda x: jnp.floor(x / 8) + jnp.ceil(x / 8) + jnp.abs(x - 9) + jnp.sign(x - 9),
    "comparisons": lambda x: (x < 9) | ((x > 99) & ~(x == 120)) | (x != x) | (x >= 250) & (x <= 9),
    "choices": lambda x: jnp.where(x > 9, jnp.where(x[:, :1] > 99, x > 120, x < 3), x > 1),
    "limits": lambda x: jnp.where(jnp.isfinite(1 / x), jnp.clip(x, 9, 99), -1),
    "sums": lambda x: x.sum((1, 3)) + x.max((1, 2, 3))[:, None] - x.min(3)[:, 0],
    "any": lambda x: (x > 99).any((1, 2)) & (x > 9).all((1, 2)),
    "places": lambda x: x.reshape(-1, 12).argmax(1) * 100 + x.reshape(-1, 12).argmin(1),
    "best": lambda x: jax.lax.top_k(x.reshape(-1, 12), 5)[1],
    "running": lambda x: jnp.cumsum(x, 1) + jax.lax.cumsum(x, 2, reverse=True),
    "parts": lambda x: jnp.concatenate(
        [x[:, :, 1:], jnp.zeros((x.shape[0], 2, 0, 3)), jax.lax.slice_in_dim(x, 0, 2, 2, 2)], 2
    )[:, 0],
    "halves": lambda x: jnp.multiply(*jnp.split(x, 2, 1)),
    "padding": lambda x: jnp.pad(x, ((0, 0), (1, 0), (0, 2), (0, 0)), constant_values=7),
    "axes": lambda x: x.transpose(0, 3, 1, 2)[:, None] + jnp.arange(2.0),
    "linear": lambda x: x @ jnp.eye(3, 5) + jnp.einsum("bhwc,dc->bhwd", x, jnp.eye(5, 3)),
    "heads": lambda x: jnp.einsum("bhwc,bhvc->bhwv", x, x) @ x,
    "einsum": lambda x: jnp.einsum("bhwc,hcd->bwd", x, jnp.ones((2, 3, 4))),
    "elements": lambda x: jnp.take_along_axis(x, jnp.minimum(x, 2).astype(jnp.int32), 3),
    "rows": lambda x: jnp.arange(20.0).reshape(10, 2)[jnp.minimum(x, 9).astype(jnp.int32)[:, 0, 0]],
    "columns": lambda x: x.reshape(-1, 12)[:, jnp.array([[0, 3, 5], [7, 1, 0]])],
    "shared elements": lambda x: jnp.take_along_axis(
        x[:, 0], jnp.array([[[0, 2, 1, 1], [2, 1, 0, 2]]]), 2
    ),
    "new columns": lambda x: x.reshape(-1, 12).at[:, jnp.array([3, 0])].set(x[:, 0, 1, :2] + 1),
    "numbers": lambda x: x[:, 0, 0, 0] + jnp.arange(x.shape[0]) + x.shape[0],
    "counts": lambda x: jax.vmap(lambda row: jnp.zeros(3, jnp.int32).at[row].add(1))(
        jnp.minimum(x, 2).reshape(-1, 12).astype(jnp.int32)
    ),
    "loop": lambda x: jax.lax.while_loop(
        lambda state: (state[0] < 300).any(),
        lambda state: (state[0] * 2 + x, state[1] + 1),
        (x + 1, 0),
    )[1],
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_operators_compute_what_jax_computes(name):
    function = jax.jit(lambda images: FUNCTIONS[name](images.astype(jnp.float32)))
    (batch,) = jax.export.symbolic_shape("b")
    traced = function.trace(jax.ShapeDtypeStruct((batch, 2, 2, 3), np.uint8))
    graph = Graph()
    (value,) = translate(graph, traced.jaxpr, [IMAGES])
    model = graph.model(2, {"found": (value, traced.jaxpr.out_avals[0])})
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    rng = np.random.default_rng(0)
    for count in (1, 4):
        images = rng.integers(1, 256, (count, 2, 2, 3), dtype=np.uint8)
        images[0] = rng.permutation(12).reshape(2, 2, 3)  # holds 0 and no value twice
        (found,) = session.run(None, {IMAGES: images})
        expected = np.asarray(function(images))
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-6)


def test_an_operation_without_an_operator_is_named():
    (batch,) = jax.export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((batch, 2, 2, 3), np.uint8)
    for function, name in (
        (lambda x: jnp.sort(x, 1), "sort"),
        (lambda x: x.astype(jnp.bfloat16) * 2, "bfloat16"),
        (lambda x: jnp.zeros(9).at[x[:, 0, 0, 0]].add(1.0), "scatter-add"),
        (lambda x: x.reshape(-1), "reshape of the size 12\\*b"),
        (lambda x: x[:-1], "gather of the size b - 1"),
        (lambda x: jax.lax.slice_in_dim(x, x.shape[0] - 1, None), "slice of uint8"),
    ):
        traced = jax.jit(function).trace(images)
        with pytest.raises(UserError, match=f"{name}.*export with --format=fgvpl"):
            translate(Graph(), traced.jaxpr, [IMAGES])


@pytest.mark.parametrize("exported", ["fg_vpl"], indirect=True)
def test_the_file_states_its_opset_and_shapes_and_holds_no_path(exported, tmp_path):
    classifier, _ = exported
    file = export_onnx(classifier, tmp_path / "W.onnx")
    model = onnx.load(file)
    assert [(one.domain, one.version) for one in model.opset_import] == [("", OPSET)]
    shapes = {
        one.name: [size.dim_param or size.dim_value for size in one.type.tensor_type.shape.dim]
        for one in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {
        "images": ["b", 32, 32, 3],
        **{name: ["b", 3] for name in ("logits", "probabilities")},
        **{name: ["b"] for name in ("score", "none_of_these")},
        **{name: ["b", 4, 4] for name in ("attention_map", "object_mask")},
    }
    assert str(classifier.clip.identity.name).encode() not in file.read_bytes()
    with pytest.raises(UserError, match="exists already"):
        export_onnx(classifier, file)


@pytest.mark.parametrize("exported", ["fg_vpl"], indirect=True)
def test_a_model_beyond_the_limit_of_a_file_is_refused(exported, tmp_path, monkeypatch):
    classifier, _ = exported
    monkeypatch.setattr(onnx_export, "MOST_WEIGHT_BYTES", 1000)
    monkeypatch.setattr(onnx.ModelProto, "ByteSize", None, raising=False)  # fails beyond 2 GB
    with pytest.raises(UserError, match="at most 2 GB: export with --format=fgvpl"):
        export_onnx(classifier, tmp_path / "W.onnx")
    assert not list(tmp_path.iterdir())
