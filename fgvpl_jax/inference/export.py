"""Export of a trained run to one file that runs without this package.

The file is a zip archive, stored without compression:

    manifest.json        format, preparation of a photo, class names, accuracy
    program.stablehlo    from `jax.export`: (weights, uint8 crops [b, side, side, 3]) -> dictionary
    weights/0000.npy …   the program's first argument, a list
    flatbuffers/         the package that jax needs to read such programs and does not install
"""

import hashlib
import importlib.resources
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

from fgvpl_jax.clip.image_input import Geometry
from fgvpl_jax.errors import UserError
from fgvpl_jax.files import expand_user, written_whole
from fgvpl_jax.inference.class_changes import ClassChanges
from fgvpl_jax.inference.classifier import Classifier
from fgvpl_jax.inference.programs import Weights
from fgvpl_jax.runs.results import RunResults
from fgvpl_jax.version import __version__

FORMAT = "fgvpl export 1"
PLATFORMS = ("cpu", "cuda", "tpu")
PROGRAM = "program.stablehlo"
MANIFEST = "manifest.json"


def export_classifier(classifier: Classifier, output: str | Path) -> Path:
    """Writes a classifier to one file, completely or not at all.

    Args:
        classifier: A finished run.
        output: Path of the new file.
    Returns:
        The path of the file.
    Raises:
        UserError: See `new_output`; or if the backbone prepares photos in a way that the manifest
            cannot describe.
    """
    file = new_output(classifier, output)
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


def new_output(classifier: Classifier, output: str | Path) -> Path:
    """Returns the path of an export that can be written.

    Raises:
        UserError: If the path exists already, or the classes of the classifier have changed.
    """
    path = expand_user(output)
    if path.exists():
        raise UserError(f"the output {output} exists already: name a new one, or remove it first")
    if classifier.changes != ClassChanges(classifier.trained_names):
        raise UserError(
            "an export has the trained classes only, and the classes of this classifier have "
            "changed: export the run that it was loaded from, or train a run with these classes"
        )
    return path


def shareable(results: RunResults) -> dict[str, Any]:
    """Returns the results without paths of the machine that trained the run.

    A backbone from a local folder keeps the folder's name; its hash identifies it. Unreadable
    photos are left out, because a reason can name another path, such as the target of a link.
    """
    backbone = results.backbone
    if backbone.revision is None:  # otherwise the name is a hub id
        backbone = replace(backbone, name=Path(backbone.name).absolute().name)
    cleaned = replace(results, backbone=backbone, unreadable=(), validation_unreadable=())
    return cleaned.to_json()


def describe_preparation(classifier: Classifier) -> dict[str, Any]:
    """Describes how a photo must be prepared for the program.

    Raises:
        UserError: If the backbone needs more than a resize and a centre crop.
    """
    processor = classifier.clip.image_processor
    if processor.geometry is None:
        raise UserError(
            f"the backbone {classifier.clip.identity.name} does not prepare photos by a resize of "
            "the shortest side and a centre crop, or by a resize to a square, the only "
            "preparations that an export can describe: predict with the run itself instead"
        )
    side = processor.side
    preparation = {
        "mode": "RGB",  # upright by EXIF, transparency on white
        "filter": processor.resample.name.lower(),
        "dtype": "uint8",
    }
    if processor.geometry is Geometry.SQUASH:
        return preparation | {"both_sides": side}
    return preparation | {
        "shortest_side": side,
        "longer_side": "rounded down",
        "centre_crop": side,
        "half_pixels": "to even" if processor.geometry is Geometry.CROP_TO_EVEN else "down",
    }


@cache
def symbolic_size(name: str) -> Any:
    """Returns a symbolic size, the same object at every call.

    Sizes of different calls are unequal, so a program would be traced again.
    """
    (size,) = jax.export.symbolic_shape(name)
    return size


def trace(classifier: Classifier) -> tuple[bytes, list[np.ndarray]]:
    """Returns the serialised program, for any number of images, and the weights that it reads.

    The weights are arguments: as constants they would be in memory several times, and a program of
    more than 2 GB cannot be serialised.
    """
    leaves, structure = jax.tree.flatten(classifier.inference.weights)
    leaves = [np.asarray(leaf) for leaf in leaves]
    side = classifier.clip.image_size
    every = list(range(len(leaves)))
    images = jax.ShapeDtypeStruct((symbolic_size("b"), side, side, 3), np.uint8)
    # Weights that the program does not read, such as CoOp's table of tokens, are left out.
    jaxpr = jax.make_jaxpr(program_of(classifier, structure, leaves, every))(leaves, images).jaxpr
    read = {id(variable) for equation in jaxpr.eqns for variable in equation.invars}
    places = [place for place in every if id(jaxpr.invars[place]) in read]
    program = jax.jit(program_of(classifier, structure, leaves, places))
    exported = jax.export.export(program, platforms=PLATFORMS)(
        [leaves[place] for place in places], images
    )
    return bytes(exported.serialize()), [leaves[place] for place in places]


def program_of(
    classifier: Classifier,
    structure: jax.tree_util.PyTreeDef,
    leaves: Sequence[np.ndarray],
    places: Sequence[int],
) -> Callable[[list[Array], UInt8[Array, "b H W 3"]], dict[str, Array]]:
    """Returns the classifier's program, which takes only the weights' leaves at these places."""
    grid = classifier.clip.vision.grid

    def program(weights: list[Array], images: UInt8[Array, "b H W 3"]) -> dict[str, Array]:
        given = dict(zip(places, weights, strict=True))
        full: Weights = jax.tree.unflatten(
            structure, [given.get(place, leaf) for place, leaf in enumerate(leaves)]
        )
        recognition = classifier.inference.programs.encode_and_recognise(full, images)
        outputs = {"logits": recognition.logits, "probabilities": recognition.probabilities}
        if recognition.locations is not None:
            for name, values in recognition.locations._asdict().items():
                outputs[name] = values.reshape(-1, *grid)
        score = recognition.known_score
        if full.known is not None and score is not None:
            outputs |= {"score": score, "none_of_these": score < full.known.threshold}
        return jax.tree.map(jnp.asarray, outputs)

    return program
