"""The endpoint: the same predictions as `predict`, and the status of each refusal."""

import asyncio
import io
import json
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the extra `serve` is not installed")
import gradio as gr
from starlette.testclient import TestClient

from fgvpl_jax.inference.regions import content_of_regions
from fgvpl_jax.serving.http_api import LimitedRequests
from fgvpl_jax.serving.page import uploads_only
from fgvpl_jax.serving.server import LOOPBACK_NAMES, make_app, trusted_names
from fgvpl_jax.serving.service import Limits, Service

LIMITS = Limits(photo_bytes=20_000, photo_pixels=90_000, requests_per_minute=10_000)
SIZES = (1, 4)
AT = "http://127.0.0.1:7860"


@pytest.fixture(scope="module")
def service(classifier):
    made = Service(classifier, LIMITS, SIZES)
    yield made
    made.close()


@pytest.fixture(scope="module")
def client(service):
    app = make_app(service, (), LOOPBACK_NAMES)
    with TestClient(app, base_url=AT, raise_server_exceptions=False) as made:
        yield made


def png(size=(40, 30), colour=(200, 40, 40)):
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "PNG")
    return stream.getvalue()


def ask(client, data, name="photo.png", **fields):
    return client.post("/api/predict", files={"image": (name, data)}, data=fields)


def test_the_answer_is_that_of_predict(client, classifier, photos_dir):
    photo = photos_dir / "test" / "red_square" / "000.png"
    answer = ask(client, photo.read_bytes(), "a<b>.png", top_k=2).json()
    (expected,) = classifier.predict(photo, top_k=2)
    assert answer["image"] == "a<b>.png"
    assert [c["name"] for c in answer["classes"]] == list(expected.class_names)
    for place, found in enumerate(answer["classes"]):
        assert found["probability"] == pytest.approx(expected.probabilities[place], abs=2e-6)
        assert found["logit"] == pytest.approx(expected.logits[place], abs=1e-4)
        assert sum(found["contributions"].values()) == pytest.approx(found["logit"], abs=1e-4)
    assert answer["none_of_these"] == expected.belonging.none_of_these
    assert answer["score"] == pytest.approx(expected.belonging.score, abs=1e-5)
    assert [s["path"] for s in answer["similar"]] == [s.key for s in expected.similar]
    np.testing.assert_allclose(answer["attention_map"], expected.location.attention_map, atol=1e-5)
    np.testing.assert_array_equal(
        np.array(answer["object_mask"], bool), expected.location.object_mask
    )


def test_regions_are_those_of_the_classifier(client, classifier, photos_dir, monkeypatch):
    photo = photos_dir / "test" / "red_square" / "000.png"
    answer = ask(client, photo.read_bytes(), regions="true", top_k=2).json()
    expected = content_of_regions(classifier.regions(photo, top_k=2))
    assert len(answer["classes"]) == 2
    for found, region in zip(answer["regions"], expected, strict=True):
        assert found.keys() == region.keys() >= {"box", "area", "classes", "none_of_these"}
        assert (found["box"], found["area"]) == (region["box"], region["area"])
        assert [c["name"] for c in found["classes"]] == [c["name"] for c in region["classes"]]
    assert "regions" not in ask(client, photo.read_bytes(), regions="false").json()
    monkeypatch.setattr(classifier, "finds_objects", False)
    refused = ask(client, photo.read_bytes(), regions="true")
    assert refused.status_code == 400
    assert "looks for no object, so it has no regions" in refused.json()["error"]


def test_many_at_once_get_their_own_answers(client, classifier, photos_dir):
    photos = sorted((photos_dir / "test").rglob("*.png")) * 4
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda p: ask(client, p.read_bytes(), str(p)).json(), photos))
    for photo, answer, expected in zip(photos, answers, classifier.predict(photos), strict=True):
        assert answer["image"] == str(photo)
        assert answer["classes"][0]["name"] == expected.class_names[0]
        assert answer["classes"][0]["logit"] == pytest.approx(expected.logits[0], abs=1e-3)


@pytest.mark.parametrize(
    ("data", "status", "message"),
    [
        (b"", 415, "photo.png is not an image"),
        (b"#!/bin/sh", 415, "JPEG"),
        (png()[:60], 422, "photo.png"),
        (png((301, 300)), 413, "90,000 pixels"),
        (png((3, 900)), 422, "crop it"),
        (bytes(25_000), 413, "25,000 bytes, more than 20,000"),
        (bytes(90_000), 413, "more than 30,000 bytes"),
    ],
)
def test_a_bad_photo_is_refused_with_its_reason(client, data, status, message):
    answer = ask(client, data)
    assert answer.status_code == status, answer.text
    assert message in answer.json()["error"]


def test_a_bad_request_is_refused_with_its_reason(client):
    for answer, status, message in (
        (client.post("/api/predict", data={"x": "1"}), 400, "'image'"),
        (client.post("/api/predict", json={}), 400, "'image'"),
        (ask(client, png(), top_k="many"), 400, "'many'"),
        (ask(client, png(), top_k="0"), 400, "1 or more"),
        (ask(client, png(), regions="yes"), 400, "'yes': give true or false"),
        (client.get("/api/predict"), 405, "by POST"),
    ):
        assert answer.status_code == status, answer.text
        assert message in json.loads(answer.text)["error"]


def test_a_body_without_a_length_is_cut_off(client):
    def chunks():
        yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        for _ in range(100):
            yield bytes(1000)

    answer = client.post(
        "/api/predict",
        content=chunks(),
        headers={"Content-Type": "multipart/form-data; boundary=x"},
    )
    assert answer.status_code == 413, answer.text


def test_another_name_of_this_machine_is_refused(client):
    """A stranger who points their own name to this machine could otherwise read the answers."""
    answer = client.get("/", headers={"Host": "attacker.example"})
    assert answer.status_code == 400
    assert client.get("/", headers={"Host": "localhost:7860"}).status_code == 200


def test_a_client_that_sends_too_many_requests_waits(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    limited = LimitedRequests(lambda scope, receive, send: None, Limits(requests_per_minute=30))
    assert [limited._seconds_to_wait("a") for _ in range(30)] == [0.0] * 30
    assert limited._seconds_to_wait("a") == pytest.approx(2.0)
    assert limited._seconds_to_wait("b") == 0.0
    now[0] = 2.5
    assert limited._seconds_to_wait("a") == 0.0
    assert limited._seconds_to_wait("a") == pytest.approx(1.5)
    now[0] = 1e4
    assert [limited._seconds_to_wait("a") for _ in range(31)] == [*[0.0] * 30, pytest.approx(2.0)]


def test_too_many_requests_is_429_with_the_seconds_to_wait(service):
    app = LimitedRequests(make_app(service, (), LOOPBACK_NAMES), Limits(requests_per_minute=1))
    client = TestClient(app, base_url=AT)
    assert ask(client, png()).status_code == 200
    answer = ask(client, png())
    assert answer.status_code == 429
    assert 1 <= int(answer.headers["Retry-After"]) <= 60
    assert client.get("/").status_code == 200


def test_too_many_waiting_is_503(classifier):
    service = Service(classifier, LIMITS, (1,))
    service.close()
    answer = ask(TestClient(make_app(service, (), LOOPBACK_NAMES), base_url=AT), png())
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "1"


def test_no_address_is_fetched_for_a_client():
    photo = gr.File()
    uploads_only(photo)
    with pytest.raises(gr.Error, match="nothing is fetched from other addresses"):
        asyncio.run(photo.async_move_resource_to_block_cache("http://127.0.0.1:1/photo.png"))


def test_the_message_about_a_bad_top_k_is_short(client):
    answer = ask(client, png(), top_k="9" * 5000)
    assert answer.status_code == 400
    assert len(answer.text) < 200


@pytest.mark.parametrize(
    ("host", "names"),
    [("127.0.0.1", True), ("::1", True), ("127.0.0.2", True), ("0.0.0.0", False)],
)
def test_a_loopback_server_answers_to_its_own_names_only(host, names):
    assert ("*" not in trusted_names(host)) == names
    assert host in trusted_names(host) or not names
