"""An adapted CLIP in transformers' form: its features, its model card, refusals and the upload."""

import base64
import json
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from huggingface_hub import metadata_load
from PIL import Image
from safetensors.numpy import load_file

import fgvpl_jax as fg
from fgvpl_jax.clip.families.siglip import SIGLIP
from fgvpl_jax.errors import UserError
from fgvpl_jax.files import read_json, write_json
from fgvpl_jax.inference import hugging_face
from fgvpl_jax.inference.hugging_face import export_hugging_face, push_to_hub
from fgvpl_jax.inference.model_card import licence_of, model_card
from fgvpl_jax.runs import experiment
from fgvpl_jax.runs.workdir import Workdir
from tests.cases import further
from tests.comparison import relative_error
from tests.tiny_clip import write_tiny_clip


@pytest.fixture(scope="module", params=["clip_lora", *further("clip_svd", "two_stage")])
def exported(request, photos_dir, tmp_path_factory):
    """Returns a classifier and its folder; the backbone's config names another type and a path."""
    from tests.conftest import make_tiny_config

    place = tmp_path_factory.mktemp(request.param)
    config = write_tiny_clip(place / "clip")
    write_json(
        place / "clip" / "config.json",
        {**config, "torch_dtype": "float16", "_name_or_path": "/home/someone/clip"},
    )
    tokenizer = read_json(place / "clip" / "tokenizer_config.json")
    paths = ("name_or_path", "special_tokens_map_file", "tokenizer_file")
    write_json(
        place / "clip" / "tokenizer_config.json",
        {**tokenizer, **dict.fromkeys(paths, "/home/someone/clip/file")},
    )
    (place / "clip" / "README.md").write_text("---\nlicense: mit\n---\n# A CLIP\n")
    (place / "clip" / "LICENSE").write_text("the licence")
    settings = make_tiny_config(place / "clip", photos_dir)
    settings.method, settings.learning_rate, settings.epochs = request.param, 0.02, 2
    experiment.train_and_evaluate(settings, Workdir(place / "W"))
    classifier = fg.load_classifier(place / "W")
    return classifier, export_hugging_face(classifier, place / "a" / "hf")


@pytest.fixture(scope="module")
def images(photos_dir):
    paths = sorted((photos_dir / "test").rglob("*.png"))[::4]
    return [Image.open(path).convert("RGB") for path in paths]


def test_its_features_are_those_of_the_trained_towers(exported, images):
    classifier, folder = exported
    model, clip = classifier.model, fg.load_clip(folder)
    frozen_encoder = classifier.clip.image_encoder
    crops = jnp.asarray(np.stack([clip.resize_and_crop(image) for image in images]))
    features, adapted, frozen = jax.jit(
        lambda crops: (clip.image_encoder(crops), model.features(crops), frozen_encoder(crops))
    )(crops)
    assert relative_error(features, adapted) < 1e-5
    assert relative_error(features, frozen) > 1e-3
    template = read_json(folder / "classifier.json")["template"]
    ids = clip.tokenize([template.replace("{}", name) for name in classifier.class_names])
    texts = np.array(clip.encode_text(ids))
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    assert relative_error(texts, jax.jit(model.adapted_text_features)()) < 1e-5
    assert clip.logit_scale == pytest.approx(classifier.clip.logit_scale, rel=1e-6)


def test_its_files_give_the_predictions_of_the_run(exported, images):
    classifier, folder = exported
    clip, numbers = fg.load_clip(folder), read_json(folder / "classifier.json")
    weights = load_file(folder / "classifier.safetensors")["class_weights"]
    pixels = np.stack([clip.preprocess(image) for image in images])
    features = np.array(clip.encode_image(pixels))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    logits = clip.logit_scale * features @ weights.T / numbers["temperature"]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for row, prediction in zip(probabilities, classifier.predict(images), strict=True):
        ours = [row[numbers["class_names"].index(name)] for name in prediction.class_names]
        np.testing.assert_allclose(ours, prediction.probabilities, rtol=1e-4)


def test_the_folder_is_complete_and_names_no_path(exported):
    classifier, folder = exported
    assert {file.name for file in folder.iterdir()} == {
        *("config.json", "vocab.json", "merges.txt", "tokenizer_config.json", "LICENSE"),
        *("preprocessor_config.json", "model.safetensors", "README.md"),
        *("classifier.json", "classifier.safetensors"),
    }
    config = read_json(folder / "config.json")
    assert config["dtype"] == "float32"
    assert not {"torch_dtype", "_name_or_path"} & config.keys()
    card = (folder / "README.md").read_text()
    for file in folder.iterdir():
        content = file.read_bytes()
        assert str(classifier.workdir.parent).encode() not in content, file.name
        assert b"/home/someone" not in content, file.name
    assert metadata_load(folder / "README.md")["license"] == "mit"
    results = classifier.results
    assert f"{results.test_accuracy:.1%} of 15 test photos (95% Wilson interval" in card
    for words in (classifier.title, "clip, SHA-256", "9 training", "\n- red square\n", "`mit`"):
        assert words in card
    assert ("a trained classifier" in card) == (results.method == "two_stage")


def test_the_card_names_the_method_that_auto_chose(exported, monkeypatch):
    classifier, folder = exported
    monkeypatch.setattr(classifier, "title", "Auto")
    card = model_card(classifier, folder)
    assert f"| method | {classifier.model.title}, 2 epochs" in card
    assert "transformers 5.3 or later" in card


@pytest.mark.torch
def test_transformers_has_equal_features_and_the_card_shows_how_to_predict(exported, images):
    torch = pytest.importorskip("torch", reason="compares live with PyTorch: make parity")
    from transformers import CLIPModel, CLIPProcessor

    classifier, folder = exported
    theirs = CLIPModel.from_pretrained(folder)
    assert theirs.dtype == torch.float32
    clip, model = classifier.clip, classifier.model
    crops = np.stack([clip.resize_and_crop(image) for image in images])
    pixels = np.stack([clip.preprocess(image) for image in images]).transpose(0, 3, 1, 2)
    text = read_json(folder / "classifier.json")["template"]
    ids = clip.tokenize([text.replace("{}", name) for name in classifier.class_names])
    with torch.no_grad():
        image = theirs.get_image_features(pixel_values=torch.tensor(pixels)).pooler_output
        texts = theirs.get_text_features(input_ids=torch.tensor(ids.astype(np.int64))).pooler_output
    assert relative_error(image.numpy(), jax.jit(model.features)(crops)) < 1e-5
    texts = torch.nn.functional.normalize(texts).numpy()
    assert relative_error(texts, jax.jit(model.adapted_text_features)()) < 1e-5
    tokens = CLIPProcessor.from_pretrained(folder).tokenizer(["a blue square"])["input_ids"][0]
    assert tokens == list(clip.tokenize(["a blue square"])[0][: len(tokens)])

    images[0].save(folder / "photo.jpg", quality=95)
    (program,) = re.findall("```py\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    try:
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=True
        )
        (best,) = classifier.predict(folder / "photo.jpg", top_k=1)
    finally:
        (folder / "photo.jpg").unlink()
    assert done.stdout.strip() == f"{best.class_names[0]} {best.probabilities[0]:.1%}"


def test_runs_without_an_adapted_clip_are_refused(exported, tmp_path, monkeypatch):
    classifier, folder = exported
    with pytest.raises(UserError, match="exists already: name a new one"):
        export_hugging_face(classifier, folder)
    with monkeypatch.context() as patch:
        patch.setattr(hugging_face, "FAMILIES", (SIGLIP,))
        with pytest.raises(UserError, match="has the form of transformers' CLIPModel"):
            export_hugging_face(classifier, tmp_path / "hf")
    monkeypatch.setattr(classifier, "model", object())
    with pytest.raises(UserError, match=r"leaves the towers of CLIP as they are.* two_stage"):
        export_hugging_face(classifier, tmp_path / "hf")
    assert not list(tmp_path.iterdir())


def test_an_interrupted_export_leaves_nothing_and_a_killed_one_hinders_no_other(
    exported, tmp_path, monkeypatch
):
    classifier, folder = exported

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(hugging_face, "model_card", killed)
        with pytest.raises(KeyboardInterrupt):
            export_hugging_face(classifier, tmp_path / "hf")
        assert not list(tmp_path.iterdir())
        # Nothing cleans up after SIGKILL.
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            export_hugging_face(classifier, tmp_path / "hf")
    assert len(list(tmp_path.iterdir())) == 1
    written = export_hugging_face(classifier, tmp_path / "hf")
    assert {file.name for file in written.iterdir()} == {file.name for file in folder.iterdir()}
    plain = tmp_path / "plain"
    plain.mkdir()
    assert written.stat().st_mode == plain.stat().st_mode


def test_the_licence_is_the_one_that_the_backbone_states(tmp_path):
    file = tmp_path / "README.md"
    assert licence_of(tmp_path) is None
    for text, licence in (("# A CLIP", None), ("---\nlicense: mit\n---\n", "mit")):
        file.write_text(text)
        assert licence_of(tmp_path) == licence
    file.write_text("---\nlicense: [mit\n---\n")
    with pytest.raises(UserError, match=r"README\.md is damaged"):
        licence_of(tmp_path)


class Hub:
    """A server with the part of the hub's API that creates a repository and takes a commit."""

    def __init__(self):
        self.created, self.files, self.tokens = {}, {}, set()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hub.tokens.add(self.headers.get("Authorization"))
                status, answer = hub.answer(self.path, body)
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, path, body):
        if path == "/api/validate-yaml":
            return 200, {"warnings": [], "errors": []}
        if path == "/api/repos/create":
            self.created = json.loads(body)
            return 200, {"url": f"{self.url}/someone/squares"}
        if path == "/api/models/someone/squares/preupload/main":
            files = json.loads(body)["files"]
            modes = [{"path": one["path"], "uploadMode": "regular"} for one in files]
            return 200, {"files": [one | {"shouldIgnore": False} for one in modes]}
        if path == "/api/models/someone/squares/commit/main":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"{self.url}/someone/squares/commit/0"
            return 200, {"success": True, "commitOid": "0" * 40, "commitUrl": url}
        return 404, {"error": f"no {path}"}


@pytest.fixture
def hub(monkeypatch):
    hub = Hub()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


def test_the_hub_has_the_files_of_the_folder(exported, hub):
    _, folder = exported
    assert push_to_hub(folder, "someone/squares") == f"{hub.url}/someone/squares"
    assert hub.created["name"] == "squares"
    assert hub.created["organization"] == "someone"
    assert "private" in json.dumps(hub.created)
    assert hub.tokens == {"Bearer hf_of_a_test"}
    assert hub.files == {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_refused_upload_says_how_to_repeat_it(exported, hub, monkeypatch):
    _, folder = exported
    monkeypatch.setattr(hub, "answer", lambda path, body: (401, {"error": "Invalid token"}))
    folder = folder.rename(folder.with_name("my hf"))
    try:
        command = rf"`hf upload --private someone/squares '{folder}'`"
        with pytest.raises(UserError, match=f"is written, but .*{command}"):
            push_to_hub(folder, "someone/squares")
    finally:
        folder = folder.rename(folder.with_name("hf"))
    assert (folder / "model.safetensors").is_file()
    with pytest.raises(UserError, match="'squares': name a repository"):
        hugging_face.check_hub_id("squares")
