"""The page's events, without a browser."""

import asyncio
import csv
import re
import threading
from types import SimpleNamespace

import pytest

gr = pytest.importorskip("gradio", reason="the extra `serve` is not installed")

from fgvpl_jax.inference.class_changes import ClassChanges  # noqa: E402
from fgvpl_jax.inference.predictions import Belonging  # noqa: E402
from fgvpl_jax.serving import page_events  # noqa: E402
from fgvpl_jax.serving.answer_view import ENVIRONMENT  # noqa: E402
from fgvpl_jax.serving.service import Limits, Service  # noqa: E402


class SlowService(Service):
    """Answers for a photo when its gate opens."""

    def __init__(self):
        self.gates = {}

    async def recognise(self, data, name, top_k, added, *, with_square):
        self.gates[name] = asyncio.Event()
        await self.gates[name].wait()
        return name


def test_an_answer_that_was_overtaken_is_not_shown(monkeypatch, tmp_path):
    """On one open page the newest request counts, whichever finishes first."""
    monkeypatch.setattr(page_events, "answer_html", lambda photo, *_: f"answer for {photo}")
    for name in "abc":
        (tmp_path / name).write_bytes(b"")
    service = SlowService()
    events = page_events.PageEvents(service)

    async def sent(name, session_hash="one"):
        request = gr.Request(session_hash=session_hash)
        call = asyncio.create_task(events.recognise_photo(str(tmp_path / name), None, request))
        while name not in service.gates:
            await asyncio.sleep(0)
        return call

    async def check():
        old, other = await sent("a"), await sent("b", "two")
        new = await sent("c")
        for name in "cab":
            service.gates[name].set()
        answers = [await call for call in (old, other, new)]
        assert answers == [gr.skip(), "answer for b", "answer for c"]
        cleared = await events.recognise_photo(None, None, gr.Request(session_hash="one"))
        assert cleared == ""
        assert events._newest == {}

    asyncio.run(check())


class SlowEvidence:
    """Explains a photo when its gate opens, and records how many calls run together."""

    def __init__(self):
        self.gates = {name: threading.Event() for name in "ab"}
        self.started, self.running, self.most_running = [], 0, 0

    def evidence_in(self, crop, class_name, added):
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        self.started.append(crop)
        assert self.gates[crop].wait(60)
        self.running -= 1
        return f"{class_name} in {crop}"


class QuickService(Service):
    """Answers at once, with the name of the photo as its crop."""

    def __init__(self):
        self.classifier = SlowEvidence()
        self.one_at_a_time = asyncio.Lock()

    async def recognise(self, data, name, top_k, added, *, with_square):
        response = SimpleNamespace(prediction=SimpleNamespace(class_names=("x",)))
        return SimpleNamespace(crop=name, response=response)


def test_evidence_that_waited_for_another_users_does_not_replace_a_newer_answer(
    monkeypatch, tmp_path
):
    monkeypatch.setattr(
        page_events, "answer_html", lambda photo, *others: f"{photo.crop}: {others[3]}"
    )
    for name in "abc":
        (tmp_path / name).write_bytes(b"")
    service = QuickService()
    events = page_events.PageEvents(service)
    one, two = gr.Request(session_hash="one"), gr.Request(session_hash="two")

    async def check():
        first = asyncio.create_task(events.explain_photo(str(tmp_path / "a"), None, None, one))
        while service.classifier.started != ["a"]:
            await asyncio.sleep(0.001)
        waiting = asyncio.create_task(events.explain_photo(str(tmp_path / "b"), None, None, two))
        while events._newest.keys() != {"one", "two"}:
            await asyncio.sleep(0.001)
        assert await events.recognise_photo(str(tmp_path / "c"), None, two) == "c: None"
        for gate in service.classifier.gates.values():
            gate.set()
        assert await first == "a: x in a"
        assert await waiting == gr.skip()
        assert service.classifier.most_running == 1
        assert events._newest == {}

    asyncio.run(check())


def test_the_page_names_the_regions_among_the_users_classes(classifier, photos_dir):
    service = Service(classifier, Limits(), batch_sizes=(1,))
    events = page_events.PageEvents(service)
    photo = photos_dir / "test" / "red_square" / "000.png"
    request = gr.Request(session_hash="one")
    removed = ClassChanges((*classifier.trained_names[:-1], None))
    session = page_events.Session(removed, (), ())

    async def named():
        return [
            await events.find_regions(str(photo), None, request),
            await events.find_regions(str(photo), session, request),
            await events.find_regions(None, None, request),
        ]

    try:
        html, changed, nothing = asyncio.run(named())
    finally:
        service.close()
    assert "fg-layer-regions" in html
    assert html.index("fg-layer-regions") < html.index("fg-layer-attention")
    names = "|".join(removed.class_names)
    assert re.search(f'alt="Regions: ({names}) ', changed)
    assert nothing == ""


def test_the_page_shows_evidence_for_any_class(classifier, photos_dir):
    service = Service(classifier, Limits(), batch_sizes=(1,))
    events = page_events.PageEvents(service)
    photo = str(photos_dir / "test" / "red_square" / "000.png")
    request = gr.Request(session_hash="one")

    async def explained():
        return [
            await events.explain_photo(photo, name, None, request)
            for name in (None, classifier.class_names[2], "zebra")
        ]

    try:
        best, other, unknown = asyncio.run(explained())
    finally:
        service.close()
    (expected,) = classifier.predict(photo, top_k=1)
    assert f"Evidence for {expected.class_names[0]}: strongest" in best
    assert f"Evidence for {classifier.class_names[2]}: strongest" in other
    assert "there is no class" in unknown


def test_the_introduction_says_what_auto_tried():
    template = ENVIRONMENT.get_template("intro.html.j2")
    results = SimpleNamespace(test_accuracy=None, reason="gda has the lowest NLL")
    classifier = SimpleNamespace(title="Auto", class_names=("a", "b"), results=results)
    rows = [("gda", "0.750", "62.5%", "2 min", "1.00")]
    page = template.render(classifier=classifier, columns=("method",), tried=rows)
    assert "<p>gda has the lowest NLL.</p>" in page and "<td>62.5%</td>" in page
    assert "<table>" not in template.render(classifier=classifier, columns=(), tried=[])


def test_the_table_of_many_photos_has_the_score(monkeypatch, tmp_path):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    rows = [
        {"image": "a", "classes": [("x", 0.9)], "belonging": Belonging(-2.0, -1.0), "error": ""},
        {"image": "b", "classes": [("x", 0.9)], "belonging": None, "error": ""},
        {"image": "c", "classes": [], "belonging": None, "error": "damaged"},
    ]
    with open(page_events.write_table(rows), encoding="utf-8-sig") as file:
        first, second, third = csv.DictReader(file)
    assert (first["none_of_these"], first["score"]) == ("true", "-2.000000")
    assert (second["none_of_these"], second["threshold"]) == ("", "")
    assert third["error"] == "damaged"
    table = ENVIRONMENT.get_template("table.html.j2").render(rows=rows)
    assert table.count("none of these") == 1
