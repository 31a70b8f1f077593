"""The endpoints that change the classes: what they return, and who may use them."""

import asyncio

import pytest

pytest.importorskip("gradio", reason="the extra `serve` is not installed")
from starlette.testclient import TestClient

import fgvpl_jax as fg
from fgvpl_jax.serving.server import LOOPBACK_NAMES, make_app
from fgvpl_jax.serving.service import Limits, Service

TOKEN = "a secret of some length"
AT = "http://127.0.0.1:7860"


@pytest.fixture(scope="module")
def service(classifier):
    made = Service(fg.load_classifier(classifier.workdir), Limits(), (1,))
    yield made
    made.close()


@pytest.fixture(scope="module")
def app(service):
    return make_app(service, (), LOOPBACK_NAMES, TOKEN)


@pytest.fixture
def client(app, service):
    before = service.classifier.changes
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with TestClient(app, base_url=AT, headers=headers, raise_server_exceptions=False) as made:
        yield made
    service.classifier.changes = before


@pytest.fixture
def photo(photos_dir):
    return (photos_dir / "val" / "green square" / "000.png").read_bytes()


def predicted(client, photo):
    answer = client.post("/api/predict", files={"image": photo}, data={"top_k": "9"})
    return {one["name"] for one in answer.json()["classes"]}


def test_programs_add_rename_and_remove_classes(client, photo):
    names = ["blue square", "green square", "red square"]
    assert client.get("/api/classes").json() == {"classes": names}
    photos = [("image", ("a.png", photo)), ("image", ("b.png", photo))]
    answer = client.post("/api/classes", files=photos, data={"name": "lawn"})
    assert answer.json() == {"classes": [*names, "lawn"]}
    assert predicted(client, photo) == {*names, "lawn"}
    answer = client.patch("/api/classes/lawn", data={"name": "a/b meadow"})
    assert answer.json() == {"classes": [*names, "a/b meadow"]}
    assert predicted(client, photo) == {*names, "a/b meadow"}
    client.delete("/api/classes/green square")
    answer = client.delete("/api/classes/a/b meadow")
    assert answer.json() == {"classes": ["blue square", "red square"]}
    assert predicted(client, photo) == {"blue square", "red square"}


def test_mistakes_are_reported_and_change_nothing(client, photo):
    before = client.get("/api/classes").json()
    for answer, status, message in (
        (client.delete("/api/classes/lawn"), 400, "there is no class 'lawn'"),
        (client.patch("/api/classes/red square", data={"name": ""}), 400, "at least one letter"),
        (client.post("/api/classes", data={"name": "lawn"}), 400, "the new class has no photo"),
        (
            client.post("/api/classes", files={"image": b"text"}, data={"name": "lawn"}),
            415,
            "not an image",
        ),
        (
            client.post("/api/classes", files={"image": photo}, data={"name": "Red square"}),
            400,
            "a class 'red square' already",
        ),
    ):
        assert answer.status_code == status
        assert message in answer.json()["error"]
    assert client.get("/api/classes").json() == before


def test_a_class_that_is_being_added_undoes_no_other_change(service, photo):
    before = service.classifier.changes

    async def both():
        await asyncio.gather(
            service.add_class("lawn", [("a.png", photo)]), service.remove_class("red square")
        )

    asyncio.run(both())
    assert service.classifier.class_names == ("blue square", "green square", "lawn")
    service.classifier.changes = before


@pytest.mark.parametrize("header", [None, "Bearer", "Bearer wrong", TOKEN])
def test_only_the_token_opens_the_endpoints(client, header):
    client.headers.pop("Authorization")
    headers = {} if header is None else {"Authorization": header}
    for answer in (
        client.get("/api/classes", headers=headers),
        client.delete("/api/classes/red square", headers=headers),
    ):
        assert answer.status_code == 401 and "Authorization" in answer.json()["error"]


def test_without_a_token_there_are_no_such_endpoints(service):
    app = make_app(service, (), LOOPBACK_NAMES)
    with TestClient(app, base_url=AT, raise_server_exceptions=False) as client:
        assert client.delete("/api/classes/red square").status_code in (404, 405)
    assert "red square" in service.classifier.class_names
