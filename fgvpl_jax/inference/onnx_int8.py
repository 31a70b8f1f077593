"""Export of a trained run to an ONNX file whose image tower multiplies in INT8.

The ranges of the activations are fixed, from the run's training photos. Ranges found at run time
would span the whole batch, so that a photo's answer would depend on the photos next to it.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
from jaxtyping import UInt8
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

from fgvpl_jax.clip.config import TransformerConfig
from fgvpl_jax.data import Split, UnreadableImage
from fgvpl_jax.errors import UserError
from fgvpl_jax.inference.classifier import Classifier
from fgvpl_jax.inference.export import new_output
from fgvpl_jax.inference.onnx_export import describe, onnx_model, write_model
from fgvpl_jax.inference.onnx_graph import IMAGES
from fgvpl_jax.runs.data_loading import draw, load_dataset
from fgvpl_jax.runs.workdir import Workdir

MOST_PHOTOS = 300
BATCH_SIZE = 16


class Difference(NamedTuple):
    """Difference between the INT8 file and the float32 file on photos of the run.

    Attributes:
        photos: Split of the photos: "validation", or "training" for a run without validation
            photos. An answer on a training photo is easier to keep than one on a new photo.
        num_photos: Number of photos.
        same_answers: Share of photos with the same most probable class and, where the run has a
            threshold, the same `none_of_these`.
        largest_logit_difference: Largest difference of a class's logit.
        largest_probability_difference: Largest difference of a class's probability.
        changed_mask: Share of patches whose `object_mask` differs; None without masks.
    """

    photos: str
    num_photos: int
    same_answers: float
    largest_logit_difference: float
    largest_probability_difference: float
    changed_mask: float | None

    def __str__(self) -> str:
        mask = "" if self.changed_mask is None else f", {self.changed_mask:.1%} of the mask differs"
        return (
            f"compared with --format=onnx on {self.num_photos} {self.photos} photos: "
            f"{self.same_answers:.1%} of the answers are the same; logits differ by up to "
            f"{self.largest_logit_difference:.2g}, probabilities by up to "
            f"{self.largest_probability_difference:.2g}{mask}"
        )


def export_onnx_int8(classifier: Classifier, output: str | Path) -> tuple[Path, Difference]:
    """Writes a classifier to one ONNX file with INT8 weights, completely or not at all.

    Args:
        classifier: A finished run.
        output: Path of the new file.
    Returns:
        The path of the file, and how its answers differ from those of `export_onnx`.
    Raises:
        UserError: See `export_onnx`; or if no training photo can be read.
    """
    file = new_output(classifier, output)
    metadata = describe(classifier)
    exact = onnx_model(classifier)
    calibration = _crops(classifier, classifier.support)
    if not len(calibration):
        raise UserError(
            "an INT8 file is calibrated on the run's training photos, and no photo in "
            f"{classifier.support.root} can be read: restore them, or export with --format=onnx"
        )
    config = classifier.clip.vision.config
    assert isinstance(config, TransformerConfig)  # convolutions have no operator in `onnx_model`
    model = quantise(exact, config, calibration)
    photos, name = _validation_crops(classifier), "validation"
    if not len(photos):
        photos, name = calibration, "training"
    difference = compare(exact, model, photos, name)
    write_model(file, model, metadata | {"int8": json.dumps(difference._asdict())})
    return file, difference


def quantise(
    exact: onnx.ModelProto, config: TransformerConfig, images: UInt8[np.ndarray, "b H W 3"]
) -> onnx.ModelProto:
    """Returns a model whose `tower_products` multiply in INT8; everything else stays float32.

    Activations have 8 bits and one range for each product. Weights have 7 bits, because the 16-bit
    sums of CPUs without VNNI overflow with 8, and a range for each column.

    Args:
        exact: Model in float32.
        config: Sizes of the image tower.
        images: Crops whose activations set the ranges.
    """
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "before.onnx", Path(folder) / "after.onnx"
        # Without this mark, onnxruntime warns that its own preparation of the graph was not run.
        onnx.helper.set_model_props(exact, {"onnx.quant.pre_process": "onnxruntime.quant"})
        onnx.save(exact, before)
        quantize_static(
            before,
            after,
            _Batches(images),
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=tower_products(exact, config),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"]},
        )
        return onnx.load(after)


def tower_products(model: onnx.ModelProto, config: TransformerConfig) -> list[str]:
    """Returns the names of the nodes that are linear layers of the image tower's transformer.

    They multiply tokens [b, t, in] by a constant [in, out], both sides of which are widths of the
    tower. The products of attention, which decide the object mask, have no constant. Those of the
    head, such as adapters and caches, have no tokens. The patch embedding can have these widths,
    but no product comes before it.
    """
    sides = {config.width, config.mlp_width}
    constants = {one.name: set(one.dims) for one in model.graph.initializer}
    inferred = onnx.shape_inference.infer_shapes(model).graph.value_info
    ranks = {one.name: len(one.type.tensor_type.shape.dim) for one in inferred}
    after_a_product: set[str] = set()
    found = []
    for node in model.graph.node:
        is_product = node.op_type == "MatMul"
        follows = not after_a_product.isdisjoint(node.input)
        if is_product or follows:
            after_a_product.update(node.output)
        is_linear = constants.get(node.input[1], {None}) <= sides if is_product else False
        if follows and is_linear and ranks.get(node.input[0]) == 3:
            found.append(node.name)
    return found


def compare(
    exact: onnx.ModelProto,
    model: onnx.ModelProto,
    images: UInt8[np.ndarray, "b H W 3"],
    photos: str,
) -> Difference:
    """Returns the difference of two models' outputs on crops, which are of the split `photos`."""
    ours, theirs = _outputs(model, images), _outputs(exact, images)
    same = ours["logits"].argmax(axis=1) == theirs["logits"].argmax(axis=1)
    if "none_of_these" in ours:
        same &= ours["none_of_these"] == theirs["none_of_these"]
    mask = None
    if "object_mask" in ours:
        mask = float((ours["object_mask"] != theirs["object_mask"]).mean())
    logits, probabilities = (
        float(np.abs(ours[name] - theirs[name]).max()) for name in ("logits", "probabilities")
    )
    return Difference(photos, len(images), float(same.mean()), logits, probabilities, mask)


def _outputs(model: onnx.ModelProto, images: UInt8[np.ndarray, "b H W 3"]) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    batches = [session.run(None, batch) for batch in _batches(images)]
    names = [output.name for output in session.get_outputs()]
    return {
        name: np.concatenate(parts)
        for name, parts in zip(names, zip(*batches, strict=True), strict=True)
    }


def _batches(images: UInt8[np.ndarray, "b H W 3"]) -> Iterator[dict[str, np.ndarray]]:
    for start in range(0, len(images), BATCH_SIZE):
        yield {IMAGES: images[start : start + BATCH_SIZE]}


class _Batches(CalibrationDataReader):
    def __init__(self, images: UInt8[np.ndarray, "b H W 3"]):
        self._remaining = _batches(images)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._remaining, None)


def _crops(classifier: Classifier, photos: Split) -> UInt8[np.ndarray, "b H W 3"]:
    """Returns the crops of the photos that can be read; of more than 300, of every n-th."""
    crops = []
    for place in range(0, len(photos), max(1, -(-len(photos) // MOST_PHOTOS))):
        with suppress(UnreadableImage):
            crops.append(classifier.crop(photos.image(place), photos.keys[place]))
    side = classifier.clip.image_size
    return np.array(crops, np.uint8).reshape(-1, side, side, 3)


def _validation_crops(classifier: Classifier) -> UInt8[np.ndarray, "b H W 3"]:
    """Returns the crops of the run's validation photos; none if it has none or they are gone."""
    config = Workdir(classifier.workdir).stored_config()
    photos = None
    with suppress(UserError):
        photos = draw(config, load_dataset(config)).validation
    return _crops(classifier, classifier.support.select([]) if photos is None else photos)
