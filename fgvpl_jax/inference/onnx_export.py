"""Export of a trained run to an ONNX file with an open batch, for onnxruntime."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx

from fgvpl_jax.errors import UserError
from fgvpl_jax.files import written_whole
from fgvpl_jax.inference.classifier import Classifier
from fgvpl_jax.inference.export import (
    describe_preparation,
    new_output,
    program_of,
    shareable,
    symbolic_size,
)
from fgvpl_jax.inference.onnx_graph import BATCH, IMAGES, Graph
from fgvpl_jax.inference.onnx_translation import translate
from fgvpl_jax.version import __version__

# A protocol buffer holds less than 2 GiB; 16 MiB are left for the graph and the metadata.
MOST_WEIGHT_BYTES = 2**31 - 2**24


def export_onnx(classifier: Classifier, output: str | Path) -> Path:
    """Writes a classifier to one ONNX file, completely or not at all.

    Args:
        classifier: A finished run.
        output: Path of the new file.
    Returns:
        The path of the file.
    Raises:
        UserError: See `new_output` and `onnx_model`; or if the backbone prepares photos in a way
            that the file cannot describe.
    """
    file = new_output(classifier, output)
    metadata = describe(classifier)
    write_model(file, onnx_model(classifier), metadata)
    return file


def describe(classifier: Classifier) -> dict[str, str]:
    """Returns the metadata of a classifier's ONNX file.

    Raises:
        UserError: See `describe_preparation`.
    """
    return {
        "fgvpl_jax": __version__,
        "class_names": json.dumps(classifier.class_names),
        "preparation": json.dumps(describe_preparation(classifier)),
        "temperature": json.dumps(classifier.results.temperature),
        "results": json.dumps(shareable(classifier.results)),
    }


def onnx_model(classifier: Classifier) -> onnx.ModelProto:
    """Returns the classifier's program as an ONNX model, with the weights as initializers.

    Raises:
        UserError: If the program has an operation without an ONNX operator, or the model would
            exceed 2 GB.
    """
    leaves, structure = jax.tree.flatten(classifier.inference.weights)
    leaves = [np.asarray(leaf) for leaf in leaves]
    side = classifier.clip.image_size
    program = program_of(classifier, structure, leaves, range(len(leaves)))
    images = jax.ShapeDtypeStruct((symbolic_size(BATCH), side, side, 3), np.uint8)
    traced = jax.jit(program).trace(leaves, images)
    graph = Graph()
    values = translate(graph, traced.jaxpr, [*leaves, IMAGES])
    outputs: dict[str, tuple[Any, Any]] = {
        name: (value, traced.jaxpr.out_avals[place])
        for place, (name, value) in enumerate(zip(sorted(traced.out_info), values, strict=True))
    }
    model = graph.model(side, outputs)
    # Not `ByteSize`, which fails beyond 2 GB.
    weight_bytes = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if weight_bytes > MOST_WEIGHT_BYTES:
        raise UserError(
            f"the model takes {weight_bytes / 1e9:.1f} GB, and an ONNX file holds at most 2 GB: "
            "export with --format=fgvpl"
        )
    return model


def write_model(file: Path, model: onnx.ModelProto, metadata: dict[str, str]) -> None:
    """Checks a model and writes it with its metadata, completely or not at all."""
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(file) as stream:
        stream.write(model.SerializeToString())
