"""The INT8 file: what is quantised, answers that depend on no other photo, and what it states."""

import json
from dataclasses import replace

import numpy as np
import pytest
from absl.testing import flagsaver

from fgvpl_jax.commands import command_line
from fgvpl_jax.errors import UserError

onnx = pytest.importorskip("onnx", reason="needs the extra `onnx`")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra `onnx`")

from fgvpl_jax.inference import onnx_int8  # noqa: E402
from fgvpl_jax.inference.onnx_export import export_onnx  # noqa: E402
from fgvpl_jax.inference.onnx_graph import IMAGES  # noqa: E402
from fgvpl_jax.inference.onnx_int8 import export_onnx_int8  # noqa: E402


def outputs_of(file, images):
    session = onnxruntime.InferenceSession(file)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {IMAGES: images}), strict=True))


def crops_of(classifier, photos):
    return np.stack([classifier.crop(photo, photo.name) for photo in photos])


@pytest.fixture(scope="module")
def files(exported, tmp_path_factory):
    """Returns the classifier's float32 file, its INT8 file and the stated difference."""
    classifier, _ = exported
    folder = tmp_path_factory.mktemp("onnx")
    exact = export_onnx(classifier, folder / "exact.onnx")
    return exact, *export_onnx_int8(classifier, folder / "int8.onnx")


def test_the_stated_difference_is_that_of_both_files_on_the_validation_photos(
    exported, files, photos_dir
):
    classifier, _ = exported
    exact, file, difference = files
    assert file.stat().st_size < exact.stat().st_size
    model = onnx.load(file)
    metadata = {one.key: one.value for one in model.metadata_props}
    assert json.loads(metadata.pop("int8")) == difference._asdict()
    assert metadata == {one.key: one.value for one in onnx.load(exact).metadata_props}
    # 3 shots bring 3 validation photos of each class, which are all that there are.
    images = crops_of(classifier, sorted((photos_dir / "val").rglob("*.png")))
    ours, theirs = outputs_of(file, images), outputs_of(exact, images)
    assert (difference.photos, difference.num_photos) == ("validation", 9)
    for name, stated in (
        ("logits", difference.largest_logit_difference),
        ("probabilities", difference.largest_probability_difference),
    ):
        assert stated == pytest.approx(np.abs(ours[name] - theirs[name]).max(), rel=1e-3)
    same = ours["probabilities"].argmax(1) == theirs["probabilities"].argmax(1)
    same &= ours["none_of_these"] == theirs["none_of_these"]
    assert difference.same_answers == pytest.approx(same.mean())
    assert (difference.changed_mask is not None) == classifier.finds_objects
    assert f"9 validation photos: {same.mean():.1%} of the answers are the same" in str(difference)


def test_an_answer_does_not_depend_on_the_other_photos_in_the_batch(exported, files, photos):
    _, file, _ = files
    images = crops_of(exported[0], photos)
    alone = outputs_of(file, images[:1])
    for name, values in outputs_of(file, images).items():
        np.testing.assert_allclose(values[:1], alone[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("exported", ["fg_vpl"], indirect=True)
def test_the_layers_of_the_tower_are_quantised_by_column_and_nothing_else(exported, files):
    exact, model = (onnx.load(file) for file in files[:2])
    config = exported[0].clip.vision.config
    arrays = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}
    quantised = []
    for node in model.graph.node:
        if node.op_type != "MatMul":
            continue
        weight = producers.get(node.input[1])
        if weight is None or weight.op_type != "DequantizeLinear":
            continue
        kernel, scale = (arrays[name] for name in weight.input[:2])
        assert kernel.dtype == np.int8 and np.abs(kernel.astype(int)).max() <= 64
        assert scale.shape == kernel.shape[1:]
        assert set(kernel.shape) <= {config.width, config.mlp_width}
        quantised.append(node.name)
    # Query, key, value, out, fc1 and fc2 of each layer; with the prompt, of each one again.
    assert len(quantised) >= 6 * config.num_layers
    assert set(quantised) == set(onnx_int8.tower_products(exact, config))
    kinds = [node.op_type for node in model.graph.node]
    before = [node.op_type for node in exact.graph.node]
    added = ("QuantizeLinear", "DequantizeLinear")
    assert sorted(kind for kind in kinds if kind not in added) == sorted(before)


@pytest.mark.parametrize("exported", ["fg_vpl"], indirect=True)
def test_without_validation_photos_the_training_photos_are_compared(
    exported, tmp_path, monkeypatch
):
    classifier, _ = exported
    draw = onnx_int8.draw
    monkeypatch.setattr(onnx_int8, "draw", lambda *args: replace(draw(*args), validation=None))
    monkeypatch.setattr(onnx_int8, "MOST_PHOTOS", 5)  # of nine, every second
    _, difference = export_onnx_int8(classifier, tmp_path / "int8.onnx")
    assert (difference.photos, difference.num_photos) == ("training", 5)


@pytest.mark.parametrize("exported", ["fg_vpl"], indirect=True)
def test_training_photos_that_are_gone_are_named(exported, tmp_path, monkeypatch):
    classifier, _ = exported
    gone = replace(classifier.support, root=tmp_path / "gone")
    monkeypatch.setattr(classifier, "support", gone)
    with pytest.raises(UserError, match=f"no photo in {gone.root} can be read: restore them"):
        export_onnx_int8(classifier, tmp_path / "int8.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("exported", ["fg_vpl"], indirect=True)
def test_the_command_prints_the_difference(exported, tmp_path, capsys):
    classifier, _ = exported
    file = tmp_path / "int8.onnx"
    flags = [f"--workdir={classifier.workdir}", "--mode=export", f"--output={file}"]
    with flagsaver.flagsaver():
        command_line.parse_flags(["run.py", *flags, "--format=onnx_int8"])
        assert command_line.main(["run.py"]) == 0
    size, difference = capsys.readouterr().out.splitlines()
    assert size.startswith(f"{file}: 0.") and size.endswith("docs/export.md says how to run it")
    assert difference.startswith("compared with --format=onnx on 9 validation photos: ")
