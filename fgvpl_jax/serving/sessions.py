"""The classes that each user of the page added, under a key that only this user's page knows."""

import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass

from fgvpl_jax.inference.class_changes import ClassChanges

MOST_SESSIONS = 10_000
CLASSES_EXPIRED = "the classes that you added have expired: add them again"


@dataclass(frozen=True)
class Session:
    """The classes that one user added.

    Attributes:
        changes: All changes of the classes, with those that the server's classifier has itself.
        added: Names of the classes that the user added.
        thumbnails: Thumbnails of the photos as data addresses, in the order of
            `ClassChanges.photos`; None for photos that the classifier has itself.
    """

    changes: ClassChanges
    added: tuple[str, ...]
    thumbnails: tuple[str | None, ...]


def changes_in(session: Session | None) -> ClassChanges | None:
    """Returns the classes as a user changed them; None for the classifier's own."""
    return session.changes if session else None


class Sessions:
    """The sessions of all open pages; each is kept until it has not been used for a while.

    Only the server's event loop may call the methods.

    Args:
        kept_seconds: Time for which an unused session is kept.
    """

    def __init__(self, kept_seconds: int):
        self._kept_seconds = kept_seconds
        # Each key's session and the time of its last use; the latest last.
        self._sessions: OrderedDict[str, tuple[Session, float]] = OrderedDict()

    def get(self, key: str) -> Session | None:
        """Returns the session of a key; None if there is none or it has expired."""
        self._remove_expired()
        if key not in self._sessions:
            return None
        session, _ = self._sessions.pop(key)
        self._sessions[key] = (session, time.monotonic())
        return session

    def put(self, key: str, session: Session) -> str:
        """Stores a session and returns its key, which is a new one unless the key is known."""
        self._remove_expired()
        if self._sessions.pop(key, None) is None:
            key = secrets.token_urlsafe(16)
        if len(self._sessions) >= MOST_SESSIONS:
            self._sessions.popitem(last=False)
        self._sessions[key] = (session, time.monotonic())
        return key

    def remove(self, key: str) -> None:
        """Removes a session, if it exists."""
        self._sessions.pop(key, None)

    def _remove_expired(self) -> None:
        while self._sessions:
            key, (_, used) = next(iter(self._sessions.items()))
            if time.monotonic() - used < self._kept_seconds:
                return
            del self._sessions[key]
