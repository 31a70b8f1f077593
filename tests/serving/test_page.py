"""The page's events, without a browser."""

import asyncio

import pytest

gr = pytest.importorskip("gradio", reason="the extra `serve` is not installed")

from fgvpl_jax.inference.classifier import ObjectLocation  # noqa: E402
from fgvpl_jax.serving import page_events  # noqa: E402
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


@pytest.mark.parametrize("found", [True, False])
def test_the_button_adds_evidence_to_the_answer(classifier, photos_dir, monkeypatch, found):
    if not found:
        monkeypatch.setattr(ObjectLocation, "object_found", property(lambda self: False))
    service = Service(classifier, Limits(), batch_sizes=(1,))
    events = page_events.PageEvents(service)
    photo = str(photos_dir / "test" / "red_square" / "000.png")
    request = gr.Request(session_hash="one")

    async def both():
        plain = await events.recognise_photo(photo, None, request)
        return plain, await events.explain_photo(photo, None, request)

    try:
        plain, explained = asyncio.run(both())
    finally:
        service.close()
    (expected,) = classifier.predict(photo, top_k=1)
    assert "fg-layer-evidence" not in plain
    assert "fg-layer-evidence" in explained
    assert f"Evidence for {expected.class_names[0]}: strongest" in explained
    for html in (plain, explained):
        assert ("No object stands out" in html) == (not found)
    assert events._newest == {}
