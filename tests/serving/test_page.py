"""What the page's events do, without a browser."""

import asyncio

import pytest

gr = pytest.importorskip("gradio", reason="the extra `serve` is not installed")

from fgvpl_jax.serving import page  # noqa: E402
from fgvpl_jax.serving.service import Service  # noqa: E402


class SlowService(Service):
    """Answers a photo when it is told to."""

    def __init__(self):
        self.gates = {}

    async def ask(self, data, name, top_k, extension, *, with_square):
        self.gates[name] = asyncio.Event()
        await self.gates[name].wait()
        return name


def test_an_answer_that_was_overtaken_is_not_shown(monkeypatch, tmp_path):
    """Of one open page the newest question counts, whichever is answered first."""
    monkeypatch.setattr(page, "answer_html", lambda seen, *_: f"answer for {seen}")
    for name in "abc":
        (tmp_path / name).write_bytes(b"")
    service = SlowService()
    pages = page.Pages(service)

    async def asked(name, session_hash="one"):
        request = gr.Request(session_hash=session_hash)
        question = asyncio.create_task(pages.one(str(tmp_path / name), None, request))
        while name not in service.gates:
            await asyncio.sleep(0)
        return question

    async def check():
        old, other = await asked("a"), await asked("b", "two")
        new = await asked("c")
        for name in "cab":
            service.gates[name].set()
        answers = [await question for question in (old, other, new)]
        assert answers == [gr.skip(), "answer for b", "answer for c"]
        cleared = await pages.one(None, None, gr.Request(session_hash="one"))
        assert cleared == ""
        assert pages._newest == {}

    asyncio.run(check())
