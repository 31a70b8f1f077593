"""An exported run: the same predictions, for any number of photos, without the package."""

import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import jax
import jax.export
import numpy as np
import pytest
from PIL import Image

import fgvpl_jax as fg
from examples.run_exported import prepare
from fgvpl_jax.data import decode_image
from fgvpl_jax.errors import UserError
from fgvpl_jax.files import read_json
from fgvpl_jax.inference.export import export_classifier, shareable
from tests.conftest import FAST_PROCESS

SCRIPT = Path(__file__).parents[2] / "examples" / "run_exported.py"
# The libraries that this package needs and the script must not use.
ALONE = """
import runpy, sys
for name in ("fgvpl_jax", "flax", "transformers", "orbax", "ml_collections", "jaxtyping"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def read(file):
    with zipfile.ZipFile(file) as archive:
        manifest = json.loads(archive.read("manifest.json"))
        program = jax.export.deserialize(bytearray(archive.read("program.stablehlo")))
        names = [f"weights/{number:04}.npy" for number in range(manifest["num_weights"])]
        return manifest, program, [np.load(archive.open(name)) for name in names]


def test_predictions_are_those_of_the_run_for_any_number_of_photos(exported, photos):
    classifier, file = exported
    manifest, program, weights = read(file)
    predictions = classifier.predict(photos, top_k=len(classifier.class_names))
    crops = np.stack([prepare(photo, manifest["preparation"]) for photo in photos])
    for count in (1, 3, len(photos)):
        outputs = jax.device_get(jax.jit(program.call)(weights, crops[:count]))
        tempered = outputs["logits"].astype(np.float64) / manifest["temperature"]
        by_hand = np.exp(tempered) / np.exp(tempered).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(outputs["probabilities"], by_hand, rtol=1e-5)
        assert len(outputs["probabilities"]) == count
        for row, prediction in enumerate(predictions[:count]):
            by_name = dict(zip(prediction.class_names, prediction.probabilities, strict=True))
            ours = [by_name[name] for name in manifest["class_names"]]
            np.testing.assert_allclose(outputs["probabilities"][row], ours, rtol=1e-5, atol=1e-6)
            belonging = prediction.belonging
            assert outputs["score"][row] == pytest.approx(belonging.score, rel=1e-4)
            assert outputs["none_of_these"][row] == belonging.none_of_these
            assert ("object_mask" in outputs) == classifier.finds_objects
            if classifier.finds_objects:
                np.testing.assert_array_equal(
                    outputs["object_mask"][row], prediction.location.object_mask
                )
                np.testing.assert_allclose(
                    outputs["attention_map"][row], prediction.location.attention_map, rtol=1e-5
                )


@pytest.mark.parametrize("exported", ["fg_vpl"], indirect=True)
def test_a_script_without_the_package_says_the_same(exported, photos, tmp_path):
    classifier, file = exported
    names = [str(photo) for photo in photos]
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(SCRIPT), str(file), *names],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | FAST_PROCESS,
        check=True,
    )
    assert done.stdout.splitlines() == [
        f"{p.name}: {'none of these; the most probable would be ' * p.belonging.none_of_these}"
        f"{p.class_names[0]} ({p.probabilities[0]:.1%})"
        for p in classifier.predict(names, top_k=1)
    ]


def test_the_manifest_describes_the_export(exported):
    classifier, file = exported
    manifest, program, weights = read(file)
    results = read_json(classifier.workdir / "results.json")
    assert (
        os.sep in results["backbone"]["name"]
    )  # the export must hold no path of the machine that made it
    results["backbone"]["name"] = results["backbone"]["name"].rsplit(os.sep, 1)[1]
    assert manifest["results"] == results
    assert tuple(manifest["class_names"]) == classifier.class_names
    assert manifest["fgvpl_jax"] == fg.__version__
    assert set(program.platforms) == {"cpu", "cuda", "tpu"}
    # Texts are embedded once, so the text tower's table of tokens is left out.
    table = classifier.clip.text.token_embedding.shape
    assert table not in [array.shape for array in weights]
    with zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None


@pytest.mark.parametrize("exported", ["fg_vpl"], indirect=True)
def test_shared_results_name_no_path(exported):
    results = exported[0].results
    lines = ("/home/someone/a.png: a link to /home/someone/b.png, which does not exist",)
    moved = replace(results.backbone, name="/home/someone/clip")
    results = replace(results, backbone=moved, unreadable=lines, validation_unreadable=lines)
    shared = shareable(results)
    assert shared["backbone"]["name"] == "clip"
    assert "/home/someone" not in json.dumps(shared)
    fetched = replace(moved, name="someone/clip", revision="0123")
    assert shareable(replace(results, backbone=fetched))["backbone"]["name"] == "someone/clip"


@pytest.mark.parametrize("size", [(32, 32), (40, 33), (33, 101), (500, 32), (31, 20)])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "CMYK", "turned"])
def test_the_script_prepares_photos_bit_by_bit_as_the_run_does(tiny_clip, size, mode, tmp_path):
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (*size[::-1], 4), np.uint8))
    file, exif = tmp_path / ("photo.jpg" if mode in ("CMYK", "turned") else "photo.png"), None
    if mode == "turned":
        exif, mode = Image.Exif(), "RGB"
        exif[0x0112] = 6
    photo.convert(mode).save(file, **({} if exif is None else {"exif": exif}))
    preparation = {"centre_crop": tiny_clip.image_size, "filter": "bicubic"}
    ours = tiny_clip.resize_and_crop(decode_image(file))
    np.testing.assert_array_equal(prepare(file, preparation), ours)


@pytest.fixture(scope="module")
def tiny_clip(tiny_clip_dir):
    return fg.load_clip(tiny_clip_dir)


def test_a_run_without_known_classes_exports_no_score(workdir, tmp_path):
    classifier = fg.load_classifier(workdir)
    classifier.inference.weights = classifier.inference.weights._replace(known=None)
    _, program, _ = read(export_classifier(classifier, tmp_path / "W.fgvpl"))
    outputs = jax.tree.unflatten(program.out_tree, program.out_avals)
    assert "logits" in outputs
    assert outputs.keys().isdisjoint({"score", "none_of_these"})


@pytest.mark.parametrize("exported", ["fg_vpl"], indirect=True)
def test_a_failed_export_is_explained(exported, tmp_path, monkeypatch):
    classifier, file = exported
    with pytest.raises(UserError, match="exists already"):
        export_classifier(classifier, file)
    monkeypatch.setattr(classifier.clip.image_processor, "geometry", None)
    with pytest.raises(UserError, match="does not prepare photos by"):
        export_classifier(classifier, tmp_path / "W.fgvpl")
    assert not list(tmp_path.iterdir())
