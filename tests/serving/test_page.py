"""The page's events, without a browser."""

import asyncio
import csv
from types import SimpleNamespace

import pytest

pytest.importorskip("gradio", reason="the extra `serve` is not installed")

from fgvpl_jax.inference.predictions import Belonging
from fgvpl_jax.serving import page_events
from fgvpl_jax.serving.answer_view import ENVIRONMENT
from fgvpl_jax.serving.service import Limits, Service
from fgvpl_jax.serving.sessions import Sessions


def test_a_user_adds_classes_under_a_key_and_removes_them(
    classifier, photos_dir, tmp_path, monkeypatch
):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    service, sessions = Service(classifier, Limits(), batch_sizes=(1,)), Sessions(60)
    events = page_events.PageEvents(service, sessions)
    photos = [str(file) for file in sorted((photos_dir / "train" / "red_square").glob("*"))[:2]]

    async def check():
        key, html, name, files = await events.add_class("wall", photos, "")
        assert (name, files) == ("", None)
        assert "<strong>wall</strong>, 2 photos" in html
        again, html, *_ = await events.add_class("door", photos[:1], key)
        assert again == key
        assert "wall" in html and "<strong>door</strong>, 1 photo<" in html
        session = sessions.get(key)
        assert session.added == ("wall", "door")
        assert [one.partition(",")[0] for one in session.thumbnails] == [
            "data:image/jpeg;base64"
        ] * 3
        other, problem, *_ = await events.add_class("wall", photos, key)
        assert other == key and "a class" in problem and sessions.get(key) is session
        unknown, *_ = await events.add_class("wall", photos, "a guess")
        assert unknown not in ("a guess", key)
        rows, _ = await events.recognise_photos(photos[:1], key)
        assert "wall" in rows
        expired, _ = await events.recognise_photos(photos[:1], "a guess")
        assert "have expired: add them again" in expired
        assert await events.remove_classes(key) == ("", page_events.added_html(None))
        assert sessions.get(key) is None

    try:
        asyncio.run(check())
    finally:
        service.close()


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
