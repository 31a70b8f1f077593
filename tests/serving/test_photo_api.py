"""The endpoint of the tab for one photo, without a browser."""

import asyncio
import re
import threading
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("gradio", reason="the extra `serve` is not installed")
from fastapi import FastAPI
from starlette.testclient import TestClient

from fgvpl_jax.inference.class_changes import ClassChanges
from fgvpl_jax.inference.evidence import ClassEvidence
from fgvpl_jax.serving import photo_api
from fgvpl_jax.serving.http_api import report_errors
from fgvpl_jax.serving.micro_batches import Overloaded
from fgvpl_jax.serving.photo_api import add_photo_endpoints, answer_for
from fgvpl_jax.serving.server import LOOPBACK_NAMES, make_app
from fgvpl_jax.serving.service import Limits, Service
from fgvpl_jax.serving.sessions import Session, Sessions

AT = "http://127.0.0.1:7860"
LIMITS = Limits(photo_bytes=20_000, requests_per_minute=10_000)


@pytest.fixture(scope="module")
def service(classifier):
    made = Service(classifier, LIMITS, (1,))
    yield made
    made.close()


@pytest.fixture
def photo(photos_dir):
    return photos_dir / "test" / "red_square" / "000.png"


@pytest.fixture
def client(service, photo):
    app = make_app(service, [photo], LOOPBACK_NAMES)
    return TestClient(app, base_url=AT, raise_server_exceptions=False)


def ask(client, data, name="photo.png", **fields):
    return client.post("/page/answer", files={"image": (name, data)}, data=fields)


def test_the_answer_has_the_classes_of_predict(client, classifier, photo):
    answer = ask(client, photo.read_bytes(), "a<b>.png")
    assert answer.headers["content-type"].startswith("text/html")
    assert 'aria-label="Answer for a&lt;b&gt;.png"' in answer.text
    (expected,) = classifier.predict(photo)
    assert re.findall('fg-name">(.*?)<', answer.text) == list(expected.class_names)
    assert "fg-layer-evidence" not in answer.text and "fg-layer-regions" not in answer.text


def test_the_answer_has_the_evidence_for_any_class(client, classifier, photo):
    best, other, unknown = (
        ask(client, photo.read_bytes(), extra="evidence", class_name=name)
        for name in ("", classifier.class_names[2], "zebra")
    )
    (expected,) = classifier.predict(photo, top_k=1)
    assert f"Evidence for {expected.class_names[0]}: strongest" in best.text
    assert f"Evidence for {classifier.class_names[2]}: strongest" in other.text
    assert unknown.status_code == 400
    assert "there is no class" in unknown.json()["error"]


def test_the_regions_have_the_names_of_the_users_classes(service, classifier, photo):
    sessions = Sessions(60)
    removed = ClassChanges((*classifier.trained_names[:-1], None))
    key = sessions.put("", Session(removed, (), ()))
    app = FastAPI()
    report_errors(app)
    add_photo_endpoints(app, service, sessions, ())
    client = TestClient(app, base_url=AT)
    own = ask(client, photo.read_bytes(), extra="regions")
    assert "fg-layer-regions" in own.text
    assert own.text.index("fg-layer-regions") < own.text.index("fg-layer-attention")
    changed = ask(client, photo.read_bytes(), extra="regions", session=key)
    assert re.search(f'alt="Regions: ({"|".join(removed.class_names)}) ', changed.text)
    assert changed.text.count('class="fg-name"') == len(removed.class_names)
    guessed = ask(client, photo.read_bytes(), session="a guess")
    assert guessed.status_code == 410
    assert "have expired: add them again" in guessed.json()["error"]


@pytest.mark.parametrize(
    ("data", "fields", "status", "message"),
    [
        (b"#!/bin/sh", {}, 415, "photo.png is not an image"),
        (bytes(25_000), {}, 413, "25,000 bytes, more than 20,000"),
        (bytes(90_000), {}, 413, "more than 30,000 bytes"),
        (b"", {"extra": "all"}, 400, "'all': give evidence, regions or nothing"),
    ],
)
def test_a_bad_request_is_refused_with_its_reason(client, data, fields, status, message):
    answer = ask(client, data, **fields)
    assert answer.status_code == status, answer.text
    assert message in answer.json()["error"]


def test_a_form_without_a_photo_is_refused(client):
    answer = client.post("/page/answer", data={"extra": ""})
    assert answer.status_code == 400
    assert "choose one first" in answer.json()["error"]


def test_too_many_requests_and_photos_are_refused(classifier, photo):
    closed = Service(classifier, Limits(requests_per_minute=1), (1,))
    closed.close()
    client = TestClient(make_app(closed, (), LOOPBACK_NAMES), base_url=AT)
    assert [ask(client, photo.read_bytes()).status_code for _ in range(2)] == [503, 429]


def test_examples_are_served_by_number(client, photo):
    assert client.get("/page/examples/0").content == photo.read_bytes()
    assert client.get("/page/examples/1").status_code == 404
    assert client.get("/page/examples/-1").status_code == 404
    assert client.get("/page/examples/..%2f..%2frun.py").status_code == 404


class SlowEvidence:
    """Explains a photo when its gate opens, and records how many calls run together."""

    def __init__(self):
        self.gates = {name: threading.Event() for name in "ab"}
        self.started, self.running, self.most_running = [], 0, 0

    def evidence_in(self, crop, class_name, changes):
        name = chr(crop[0, 0, 0])
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        self.started.append(name)
        assert self.gates[name].wait(60)
        self.running -= 1
        return ClassEvidence(f"{class_name} in {name}", np.zeros((1, 1), np.float32))


class QuickService(Service):
    """Answers at once, with the letter that names the photo as its crop."""

    def __init__(self):
        self.classifier = SlowEvidence()
        self.limits = Limits(waiting=2)
        self._one_at_a_time, self._num_photos = asyncio.Lock(), 0

    async def recognise(self, data, name, top_k, changes, *, with_square):
        response = SimpleNamespace(prediction=SimpleNamespace(class_names=("x",)))
        return SimpleNamespace(crop=np.full((1, 1, 3), ord(name), np.uint8), response=response)


def test_evidence_is_computed_for_one_user_after_another(monkeypatch):
    """Other photos are answered meanwhile."""

    def described(photo, *others):
        return others[3].class_name if others[3] else "nothing"

    monkeypatch.setattr(photo_api, "answer_html", described)
    service = QuickService()

    async def check():
        first = asyncio.create_task(answer_for(service, b"", "a", None, "evidence"))
        while service.classifier.started != ["a"]:
            await asyncio.sleep(0.001)
        waiting = asyncio.create_task(answer_for(service, b"", "b", None, "evidence"))
        assert await answer_for(service, b"", "c", None) == "nothing"
        await asyncio.sleep(0.01)
        with pytest.raises(Overloaded, match="too many photos wait"):
            await answer_for(service, b"", "c", None, "evidence")
        for gate in service.classifier.gates.values():
            gate.set()
        assert [await first, await waiting] == ["x in a", "x in b"]
        assert service.classifier.most_running == 1

    asyncio.run(check())
