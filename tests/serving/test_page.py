"""The page's events, without a browser."""

import asyncio

import pytest

gr = pytest.importorskip("gradio", reason="the extra `serve` is not installed")

from fgvpl_jax.serving import page_events  # noqa: E402
from fgvpl_jax.serving.service import Service  # noqa: E402


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
