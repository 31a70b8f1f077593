"""`--mode=export`: a trained run as one file that runs without this package.

The file is a zip, stored without compression:

    manifest.json        what it is, how a photo is prepared, class names, accuracy
    program.stablehlo    by `jax.export`: (weights, uint8 crops [b, side, side, 3]) -> dictionary
    weights/0000.npy …   its first argument, a list
    flatbuffers/         the reader of such programs, which jax does not bring
"""

import hashlib
import importlib.resources
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

from fgvpl_jax.errors import UserError
from fgvpl_jax.files import written_whole
from fgvpl_jax.inference.classifier import Classifier
from fgvpl_jax.inference.programs import Weights
from fgvpl_jax.runs.results import RunResults
from fgvpl_jax.version import __version__

FORMAT = "fgvpl export 1"
PLATFORMS = ("cpu", "cuda", "tpu")
PROGRAM = "program.stablehlo"
MANIFEST = "manifest.json"


def export_classifier(classifier: Classifier, output: str | Path) -> Path:
    """Writes a classifier into one file, whole or not at all.

    Args:
        classifier: A finished run.
        output: The new file.
    Returns:
        The file.
    Raises:
        UserError: If something is there already, or the backbone prepares photos in a way that the
            manifest has no words for.
    """
    file = Path(output).expanduser()
    if file.exists():
        raise UserError(f"--output={output} is there already: name a new file, or remove it first")
    preparation = describe_preparation(classifier)
    program, weights = trace(classifier)
    file.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(file) as stream, zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(PROGRAM, program)
        for source in importlib.resources.files("flatbuffers").iterdir():
            if source.name.endswith(".py"):
                archive.writestr(f"flatbuffers/{source.name}", source.read_bytes())
        weights_hash = hashlib.sha256()
        for number, array in enumerate(weights):
            with archive.open(f"weights/{number:04}.npy", "w", force_zip64=True) as weight:
                np.lib.format.write_array(weight, array, allow_pickle=False)
            weights_hash.update(array.tobytes())
        manifest = {
            "format": FORMAT,
            "fgvpl_jax": __version__,
            "jax": jax.__version__,
            "platforms": PLATFORMS,
            "sha256": {
                "program": hashlib.sha256(program).hexdigest(),
                "weights": weights_hash.hexdigest(),
            },
            "num_weights": len(weights),
            "class_names": classifier.class_names,
            "preparation": preparation,
            "temperature": classifier.results.temperature,
            "results": shareable(classifier.results),
        }
        archive.writestr(MANIFEST, json.dumps(manifest, indent=2))
    return file


def shareable(results: RunResults) -> dict[str, Any]:
    """Returns the results without the path of a backbone's folder; its hash identifies it."""
    backbone = results.backbone
    if Path(backbone.name).expanduser().exists():  # otherwise it is a hub id
        backbone = replace(backbone, name=Path(backbone.name).name)
    return replace(results, backbone=backbone).to_json()


def describe_preparation(classifier: Classifier) -> dict[str, Any]:
    """What has to be done to a photo before the program sees it.

    Raises:
        UserError: If the backbone asks for more than resize and centre crop.
    """
    processor = classifier.clip.image_processor
    if not processor.is_plain:
        raise UserError(
            f"the backbone {classifier.clip.identity.name} prepares photos otherwise than by "
            "CLIP's resize of the shortest side and centre crop, which an export has no words for: "
            "use --mode=predict"
        )
    return {
        "mode": "RGB",  # upright by EXIF, transparency on white
        "shortest_side": classifier.clip.image_size,
        "longer_side": "rounded down",
        "filter": processor.resample.name.lower(),
        "centre_crop": classifier.clip.image_size,
        "dtype": "uint8",
    }


def trace(classifier: Classifier) -> tuple[bytes, list[np.ndarray]]:
    """The serialised program, for any number of images, and the weights that it reads.

    Weights are arguments: as constants they would be in memory several times over, and a program
    of more than 2 GB cannot be serialised.
    """
    leaves, structure = jax.tree.flatten(classifier.inference.weights)
    leaves = [np.asarray(leaf) for leaf in leaves]
    side = classifier.clip.image_size
    every = list(range(len(leaves)))
    # What is not read, such as CoOp's table of tokens, is left out.
    jaxpr = jax.make_jaxpr(program_of(classifier, structure, leaves, every))(
        leaves, np.zeros((1, side, side, 3), np.uint8)
    ).jaxpr
    read = {id(variable) for equation in jaxpr.eqns for variable in equation.invars}
    places = [place for place in every if id(jaxpr.invars[place]) in read]
    (batch,) = jax.export.symbolic_shape("b")
    program = jax.jit(program_of(classifier, structure, leaves, places))
    exported = jax.export.export(program, platforms=PLATFORMS)(
        [leaves[place] for place in places],
        jax.ShapeDtypeStruct((batch, side, side, 3), np.uint8),
    )
    return bytes(exported.serialize()), [leaves[place] for place in places]


def program_of(
    classifier: Classifier,
    structure: jax.tree_util.PyTreeDef,
    leaves: Sequence[np.ndarray],
    places: Sequence[int],
) -> Callable[[list[Array], UInt8[Array, "b H W 3"]], dict[str, Array]]:
    """The classifier's program, of the weights' leaves at these places instead of all."""
    grid = classifier.clip.vision.grid

    def program(weights: list[Array], images: UInt8[Array, "b H W 3"]) -> dict[str, Array]:
        given = dict(zip(places, weights, strict=True))
        full: Weights = jax.tree.unflatten(
            structure, [given.get(place, leaf) for place, leaf in enumerate(leaves)]
        )
        said = classifier.inference.program(full, images)
        outputs = {"logits": said.logits, "probabilities": said.probabilities}
        if said.attention_map is not None and said.object_mask is not None:
            outputs["attention_map"] = said.attention_map.reshape(-1, *grid)
            outputs["object_mask"] = said.object_mask.reshape(-1, *grid)
        return jax.tree.map(jnp.asarray, outputs)

    return program
