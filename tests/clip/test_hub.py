"""Finding checkpoints: directory or hub id, one weight format from the hub, cache, no network."""

import json
import shutil
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from flax.serialization import msgpack_serialize

from fgvpl_jax import load_clip
from fgvpl_jax.errors import UserError
from fgvpl_jax.inference.model_card import licence_of
from tests.clip.checkpoints import same, take_weights, to_flax_layout
from tests.clip.hub_client import find_elsewhere
from tests.tiny_backbones import write_tiny_backbone

REVISION = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """A server with the part of the Hugging Face hub that one public model repository needs."""

    def __init__(self, directory: Path, name: str):
        self.sent: set[str] = set()
        files = {file.name: file for file in directory.iterdir()}
        info = {
            "id": name,
            "sha": REVISION,
            "siblings": [{"rfilename": file} for file in files],
            "private": False,
            "tags": [],
            "downloads": 0,
        }
        tree = [
            {"type": "file", "path": path, "size": file.stat().st_size, "oid": f"{i:040x}"}
            for i, (path, file) in enumerate(files.items())
        ]
        sent = self.sent

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self):
                self.answer(body=False)

            def do_GET(self):
                self.answer(body=True)

            def answer(self, body):
                path = self.path.partition("?")[0]
                resolved = f"/{name}/resolve/{REVISION}/"
                headers = {"X-Repo-Commit": REVISION}
                status = 200
                if path.startswith(f"/api/models/{name}/tree/"):
                    content = json.dumps(tree).encode()
                elif path.startswith(f"/api/models/{name}"):
                    content = json.dumps(info).encode()
                elif path.startswith(resolved) and path.removeprefix(resolved) in files:
                    file = path.removeprefix(resolved)
                    content = files[file].read_bytes()
                    headers["ETag"] = f'"{list(files).index(file):040x}"'
                    if body:
                        sent.add(file)
                else:
                    status, content = 404, b""
                    headers["X-Error-Code"] = "RepoNotFound"
                self.send_response(status)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if body:
                    self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def add_other_formats(directory, formats):
    (directory / "README.md").write_text("---\nlicense: mit\n---\n")
    (directory / "LICENSE.txt").write_text("the licence")
    (directory / "tf_model.h5").write_bytes(b"not to be fetched")
    if "model.safetensors" not in formats:
        tree = to_flax_layout(take_weights(directory))
        (directory / "flax_model.msgpack").write_bytes(msgpack_serialize(tree))
    else:
        (directory / "flax_model.msgpack").write_bytes(b"not to be fetched")
    (directory / "pytorch_model.bin").write_bytes(b"not to be fetched")


@pytest.mark.parametrize("weights", ["model.safetensors", "flax_model.msgpack"])
def test_one_format_is_fetched(checkpoint, tmp_path, weights):
    """Checks also that the copy is used when the hub is gone."""
    original = load_clip(checkpoint)
    add_other_formats(checkpoint, {weights})
    hub = Hub(checkpoint, "someone/tiny-clip")
    home = tmp_path / "home"
    directory, revision = find_elsewhere("someone/tiny-clip", home, HF_ENDPOINT=hub.url)
    assert revision == REVISION
    fetched = load_clip(directory)
    assert same(fetched, original)
    assert fetched.identity.small_files_sha256 == original.identity.small_files_sha256
    assert licence_of(Path(directory)) == "mit"
    small = {"config.json", "vocab.json", "merges.txt", "tokenizer_config.json"}
    licence = {"README.md", "LICENSE.txt"}
    assert hub.sent == small | licence | {weights, "preprocessor_config.json"}
    hub.server.shutdown()
    hub.server.server_close()
    # One way of losing the hub per format, because a process takes a second.
    gone = {"HF_ENDPOINT": hub.url} if "safetensors" in weights else {"HF_HUB_OFFLINE": "1"}
    assert find_elsewhere("someone/tiny-clip", home, **gone) == (directory, REVISION)


def test_of_a_repository_with_two_forms_the_supported_one_is_fetched(tmp_path):
    """Checks a repository like timm's, which also holds an image tower in timm's own form."""
    directory = tmp_path / "clip"
    write_tiny_backbone(directory, "resnet")
    (directory / "config.json").write_text(json.dumps({"architecture": "resnet50_clip"}))
    for name in ("model.safetensors", "open_clip_pytorch_model.bin"):
        (directory / name).write_bytes(b"not to be fetched")
    hub = Hub(directory, "timm/tiny-resnet")
    home = tmp_path / "home"
    found, revision = find_elsewhere("timm/tiny-resnet", home, HF_ENDPOINT=hub.url)
    assert revision == REVISION
    assert same(load_clip(found), load_clip(directory))
    assert "open_clip_model.safetensors" in hub.sent
    assert hub.sent.isdisjoint({"model.safetensors", "open_clip_pytorch_model.bin"})
    hub.server.shutdown()
    hub.server.server_close()


def test_safetensors_of_one_form_are_preferred_to_a_pickle_of_another(tmp_path):
    """Checks a repository with transformers' config and pickle next to OpenCLIP's safetensors."""
    directory = tmp_path / "clip"
    write_tiny_backbone(directory, "open_clip")
    expected = load_clip(directory)
    (directory / "config.json").write_text(json.dumps({"model_type": "clip"}))
    (directory / "pytorch_model.bin").write_bytes(b"not to be fetched")
    assert same(load_clip(directory), expected)
    hub = Hub(directory, "someone/tiny-clip")
    found, _ = find_elsewhere("someone/tiny-clip", tmp_path / "home", HF_ENDPOINT=hub.url)
    assert same(load_clip(found), expected)
    assert "open_clip_model.safetensors" in hub.sent
    assert "pytorch_model.bin" not in hub.sent
    hub.server.shutdown()
    hub.server.server_close()


def test_a_repository_that_is_not_there_or_has_no_weights(checkpoint, tmp_path):
    take_weights(checkpoint)
    hub = Hub(checkpoint, "someone/empty")
    with pytest.raises(UserError, match=r"^there is no directory someone/else"):
        find_elsewhere("someone/else", tmp_path, HF_ENDPOINT=hub.url)
    with pytest.raises(UserError, match=r"^someone/empty on the hub holds no weights"):
        find_elsewhere("someone/empty", tmp_path, HF_ENDPOINT=hub.url)
    hub.server.shutdown()


@pytest.mark.parametrize("network", ["offline mode", "a refused connection", "no answer"])
def test_without_network_a_hub_id_is_refused(tmp_path, network):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        environment = {
            "offline mode": {"HF_HUB_OFFLINE": "1"},
            "a refused connection": {"HF_ENDPOINT": "http://127.0.0.1:9"},
            "no answer": {"HF_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}"},
        }[network]
        with pytest.raises(UserError) as error:
            find_elsewhere(
                "openai/clip-vit-base-patch16", tmp_path, timeout_seconds=0.3, **environment
            )
    last = str(error.value).splitlines()[-1]
    assert last.startswith("there is no directory openai/clip-vit-base-patch16")
    assert last.endswith("or pass the folder of a downloaded checkpoint")


def test_a_copy_that_another_program_fetched_is_used(tiny_clip_dir, tmp_path, monkeypatch):
    """Checks a copy in the hub's cache layout without the client's listing of the repository."""
    import huggingface_hub.constants as constants

    repository = tmp_path / "models--someone--tiny-clip"
    shutil.copytree(tiny_clip_dir, repository / "snapshots" / REVISION)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(REVISION)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    clip = load_clip("someone/tiny-clip")
    assert (clip.identity.name, clip.identity.revision) == ("someone/tiny-clip", REVISION)
    assert same(clip, load_clip(tiny_clip_dir))


@pytest.mark.parametrize("name", ["./none", "/none", "~/none/none", "a/b/c", "none", "", "run.py"])
def test_a_missing_directory_is_reported_at_once(name):
    with pytest.raises(UserError, match=r"there is no directory.*name a folder"):
        load_clip(name)


@pytest.mark.parametrize("name", ["a--b/c", "a/b.git"])
def test_a_name_that_cannot_be_on_the_hub_is_refused(name):
    with pytest.raises(UserError, match=r"there is no directory.*(repo_id|Repo_id)"):
        load_clip(name)
