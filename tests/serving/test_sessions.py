"""The classes that users added: who sees them, and for how long they are kept."""

import pytest

pytest.importorskip("gradio", reason="the extra `serve` is not installed")

from fgvpl_jax.inference.class_changes import ClassChanges
from fgvpl_jax.serving import sessions
from fgvpl_jax.serving.sessions import Session, Sessions


def session(name):
    return Session(ClassChanges((name,)), (name,), ())


@pytest.fixture
def now(monkeypatch):
    time = [0.0]
    monkeypatch.setattr(sessions.time, "monotonic", lambda: time[0])
    return time


def test_a_session_is_kept_while_it_is_used(now):
    kept = Sessions(10)
    mine, theirs = session("a"), session("b")
    key, other = kept.put("", mine), kept.put("", theirs)
    assert key != other and len(key) > 20
    now[0] = 9
    assert kept.get(key) is mine
    now[0] = 18
    assert kept.get(key) is mine
    assert kept.get(other) is None
    now[0] = 28
    assert kept.get(key) is None
    assert kept.put(key, mine) != key  # a key that the server did not make is not used


def test_a_session_is_replaced_and_removed(now):
    kept = Sessions(10)
    key = kept.put("", session("a"))
    newer = session("b")
    assert kept.put(key, newer) == key
    assert kept.get(key) is newer
    kept.remove(key)
    kept.remove(key)
    assert kept.get(key) is None


def test_the_session_that_was_used_least_recently_makes_room(now, monkeypatch):
    monkeypatch.setattr(sessions, "MOST_SESSIONS", 2)
    kept = Sessions(10)
    first, second = (kept.put("", session(name)) for name in "ab")
    kept.get(first)
    third = kept.put("", session("c"))
    assert [kept.get(key) is not None for key in (first, second, third)] == [True, False, True]
