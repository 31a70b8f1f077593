"""Every method on every family of backbones: built or refused, trained, used and exported."""

import asyncio

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import fgvpl_jax as fg
from examples.run_exported import prepare
from fgvpl_jax.data import decode_image
from fgvpl_jax.errors import UserError
from fgvpl_jax.inference.evidence import hiding_windows
from fgvpl_jax.inference.export import describe_preparation, export_classifier
from fgvpl_jax.methods import METHODS, Task
from fgvpl_jax.recognition import class_text_features
from fgvpl_jax.runs import default_config
from fgvpl_jax.runs.workdir import Workdir
from fgvpl_jax.training import loop
from fgvpl_jax.training.train_step import make_resident_train_step
from tests.cases import further
from tests.conftest import make_tiny_config
from tests.tiny_backbones import small_perception_encoder, write_tiny_backbone
from tests.whole_runs import run

FAMILIES = ["siglip", "resnet_wide", *further("open_clip", "metaclip_2", "pe_core")]
PROMPTED = ("siglip", "resnet_wide", "pe_core")  # families with an own extension of FG-VPL
CLASSES = ("red square", "dog", "Ferris wheel")
# Methods that a family cannot take, and what the message says of its tower.
REFUSED = {"resnet_wide": ({"clip_lora", "clip_svd", "two_stage"}, "ResNet")}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def backbone(family, tmp_path_factory):
    directory = tmp_path_factory.mktemp(family)
    with small_perception_encoder():
        write_tiny_backbone(directory, family)
        yield directory


@pytest.fixture(scope="module")
def clip(backbone):
    return fg.load_clip(backbone)


def test_every_method_is_built_or_refused_in_one_line(family, clip):
    task = Task(
        CLASSES,
        class_text_features(clip, CLASSES, ("a photo of a {}.",)),
        np.array([0, 1, 2, 0, 1, 2]),
    )
    refused, tower = REFUSED.get(family, (set(), ""))
    for name, method in METHODS.items():
        config = default_config.get_config()
        config.method = name
        config.update({"epochs": 2, "batch_size": 4})
        if name in refused:
            with pytest.raises(UserError, match=f"{name} .*{clip.identity.name} is a {tower}"):
                method.build(clip, task, config, rngs=nnx.Rngs(0))
        else:
            model = method.build(clip, task, config, rngs=nnx.Rngs(0))
            assert model.text_features.shape == (len(CLASSES), clip.vision.config.embed_dim)


def test_class_names_in_any_order_have_the_same_text_features(clip):
    """Checks that no text feature depends on other texts in its batch, as longer ones."""
    features = class_text_features(clip, CLASSES, ("a {}.",))
    backwards = class_text_features(clip, CLASSES[::-1], ("a {}.",))
    np.testing.assert_allclose(features, backwards[::-1], rtol=1e-5, atol=1e-6)


def test_coop_with_words_as_context_is_the_text_of_these_words(clip):
    texts = class_text_features(clip, CLASSES, ("{}",))
    task = Task(CLASSES, texts, np.array([0, 1, 2]))
    model = METHODS["coop"].build(clip, task, default_config.get_config(), rngs=nnx.Rngs(0))
    words = " ".join("abcdefghijklmnop")
    row = clip.tokenize([words])[0, clip.text.num_start_tokens :]
    count = model.context.shape[0]
    model.context.set_value(clip.text.token_embedding[...][row[:count]])
    ids = clip.tokenize([name + "." for name in CLASSES])
    start = clip.text.num_start_tokens
    joined = np.concatenate(
        [ids[:, :start], np.tile(row[:count], (len(ids), 1)), ids[:, start:]], axis=1
    )[:, : ids.shape[1]]
    expected = clip.encode_text(joined)
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    weights = nnx.jit(lambda model: model.class_weights())(model)
    np.testing.assert_allclose(weights, expected, rtol=1e-4, atol=1e-5)


def test_a_class_name_that_leaves_no_room_for_coops_context_is_refused(clip):
    room = (
        clip.text.config.context_length
        - METHODS["coop"]
        .build(
            clip,
            Task(("x",), jnp.ones((1, clip.vision.config.embed_dim)), np.array([0])),
            default_config.get_config(),
            rngs=nnx.Rngs(0),
        )
        .context.shape[0]
    )
    names = ("x", "y" * room)
    task = Task(names, jnp.ones((2, clip.vision.config.embed_dim)), np.array([0, 1]))
    with pytest.raises(UserError, match=f"class name '{'y' * room}' exceed"):
        METHODS["coop"].build(clip, task, default_config.get_config(), rngs=nnx.Rngs(0))


def recorded(crops):
    """Returns `make_resident_train_step` that records side and filter of the crops."""

    def make(*arguments, image_size, resample):
        crops.append((image_size, resample))
        return make_resident_train_step(*arguments, image_size=image_size, resample=resample)

    return make


@pytest.fixture(scope="module")
def trained(family, backbone, photos_dir, tmp_path_factory):
    config = make_tiny_config(backbone, photos_dir)
    config.method = "fg_vpl" if family in PROMPTED else "tip_adapter_f"
    config.epochs = 2
    place = tmp_path_factory.mktemp("run")
    crops = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_resident_train_step", recorded(crops))
        results = run(config, place / "W")
    # Only methods that read pixels in training keep photos on the device.
    processor = fg.load_clip(backbone).image_processor
    assert crops == ([(processor.side, processor.resample)] if family in PROMPTED else [])
    return results, fg.load_classifier(place / "W"), place


def test_a_run_is_trained_used_and_exported(trained, photos_dir, backbone):
    results, classifier, place = trained
    assert results.backbone == fg.load_clip(backbone).identity
    photos = sorted((photos_dir / "test").rglob("*.png"))[:3]
    predictions = classifier.predict(photos, top_k=3)
    file = export_classifier(classifier, place / "W.fgvpl")
    assert file.is_file()
    preparation = describe_preparation(classifier)
    crops = np.stack([prepare(photo, preparation) for photo in photos])
    ours = [classifier.clip.resize_and_crop(decode_image(photo)) for photo in photos]
    np.testing.assert_array_equal(crops, np.stack(ours))
    inference = classifier.inference
    recognition = inference.programs.encode_and_recognise(inference.weights, crops)
    probabilities = np.asarray(recognition.probabilities)
    for row, prediction in zip(probabilities, predictions, strict=True):
        assert classifier.class_names[row.argmax()] == prediction.class_names[0]


def test_the_endpoint_answers_as_the_classifier(trained, photos_dir):
    pytest.importorskip("gradio", reason="the extra `serve` is not installed")
    from fgvpl_jax.serving.service import Limits, Service

    classifier = trained[1]
    photo = sorted((photos_dir / "test").rglob("*.png"))[0]
    service = Service(classifier, Limits(), (1,))
    answer = asyncio.run(service.recognise(photo.read_bytes(), "photo", 3)).response.prediction
    service.close()
    (expected,) = classifier.predict(photo, top_k=3)
    assert answer.class_names == expected.class_names
    np.testing.assert_allclose(answer.probabilities, expected.probabilities, rtol=1e-4)


def test_evidence_hides_cells_of_the_towers_grid(trained, photos_dir):
    _, classifier, _ = trained
    photo = sorted((photos_dir / "test").rglob("*.png"))[0]
    vision = classifier.clip.vision
    assert hiding_windows(vision.grid).shape[1:] == vision.grid
    assert vision.grid[0] * vision.config.patch_size <= vision.config.image_size
    evidence = classifier.evidence(photo)
    assert np.isfinite(evidence.map).all()
    assert evidence.map.shape == vision.grid


def test_a_refused_run_begins_nothing(photos_dir, tmp_path):
    write_tiny_backbone(tmp_path / "clip", "resnet")
    config = make_tiny_config(tmp_path / "clip", photos_dir)
    config.method = "clip_lora"
    with pytest.raises(UserError, match=r"clip_lora trains the transformer layers.*is a ResNet"):
        run(config, tmp_path / "W")
    assert not Workdir(tmp_path / "W").config_file.exists()
