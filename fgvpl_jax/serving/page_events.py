"""Events of the Gradio tabs: recognise many photos, add a class, remove the added classes."""

import asyncio
import csv
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from anyio import to_thread

from fgvpl_jax.errors import UserError
from fgvpl_jax.inference.class_changes import MOST_PHOTOS
from fgvpl_jax.inference.predictions import Belonging
from fgvpl_jax.serving.answer_view import ENVIRONMENT, problem_html
from fgvpl_jax.serving.data_address import thumbnail_of
from fgvpl_jax.serving.micro_batches import Overloaded
from fgvpl_jax.serving.service import BATCH_SIZES, Service
from fgvpl_jax.serving.sessions import CLASSES_EXPIRED, Session, Sessions, changes_in

COLUMNS = 3  # classes in the table of many photos


class PageEvents:
    """Handles the page's events.

    Args:
        service: Service that recognises the photos.
        sessions: Classes that the users added.
    """

    def __init__(self, service: Service, sessions: Sessions):
        self._service = service
        self._sessions = sessions

    async def recognise_photos(self, paths: list[str] | None, key: str) -> tuple[str, Any]:
        """Returns a table of the answers, and all of them as a CSV file."""
        most = self._service.limits.photos_at_once
        if not paths:
            return problem_html("no photo: choose some first"), gr.update(visible=False)
        if len(paths) > most:
            return problem_html(f"{len(paths)} photos: choose at most {most}"), gr.update(
                visible=False
            )
        rows: list[dict[str, Any]] = []
        session = self._sessions.get(key)
        if key and session is None:
            return problem_html(CLASSES_EXPIRED), gr.update(visible=False)
        for start in range(0, len(paths), BATCH_SIZES[-1]):  # limits the photos in memory
            some = paths[start : start + BATCH_SIZES[-1]]
            rows += await asyncio.gather(*(self._row(Path(path), session) for path in some))
        table = ENVIRONMENT.get_template("table.html.j2").render(rows=rows)
        return table, gr.update(value=write_table(rows), visible=True)

    async def _row(self, path: Path, session: Session | None) -> dict[str, Any]:
        try:
            photo = await self._service.recognise(
                path.read_bytes(), path.name, COLUMNS, changes_in(session)
            )
        except (UserError, Overloaded) as error:
            return {"image": path.name, "classes": [], "belonging": None, "error": str(error)}
        prediction = photo.response.prediction
        classes = list(zip(prediction.class_names, prediction.probabilities, strict=True))
        belonging = prediction.belonging
        return {"image": path.name, "classes": classes, "belonging": belonging, "error": ""}

    async def add_class(
        self, name: str, paths: list[str] | None, key: str
    ) -> tuple[str, str, Any, Any]:
        """Returns the user's key, the list of the added classes with one more, and emptied fields.

        Args:
            name: Name of the new class, as the user wrote it.
            paths: Uploaded photos of the class.
            key: Key of the user's classes; empty if the user has added none.
        """
        if len(paths or []) > MOST_PHOTOS:  # checked before any file is read
            problem = problem_html(f"{len(paths or [])} photos: choose at most {MOST_PHOTOS}")
            return key, problem, gr.update(), gr.update()
        photos = [(Path(p).name, Path(p).read_bytes()) for p in paths or []]
        session = self._sessions.get(key)
        try:
            changes, squares = await self._service.with_class(changes_in(session), name, photos)
        except (UserError, Overloaded) as error:
            return key, problem_html(str(error)), gr.update(), gr.update()
        thumbnails = await to_thread.run_sync(lambda: [*map(thumbnail_of, squares)])
        known = (None,) * (len(changes.photos) - len(squares))
        session = Session(
            changes,
            (*(session.added if session else ()), changes.added_names[-1]),
            (*(session.thumbnails if session else known), *thumbnails),
        )
        return self._sessions.put(key, session), added_html(session), "", None

    async def remove_classes(self, key: str) -> tuple[str, str]:
        """Returns to the classifier's own classes."""
        self._sessions.remove(key)
        return "", added_html(None)


def added_html(session: Session | None) -> str:
    """Renders the list of classes that a user added."""
    counts = []
    if session is not None:
        photos = Counter(session.changes.added_names[p.label] for p in session.changes.photos)
        counts = [(name, photos[name]) for name in session.added]
    return ENVIRONMENT.get_template("added.html.j2").render(counts=counts)


def write_table(rows: Sequence[dict[str, Any]]) -> str:
    """Writes the answers to a new CSV file and returns its path."""
    stream, path = tempfile.mkstemp(".csv", "answers_", os.environ["GRADIO_TEMP_DIR"])
    with os.fdopen(stream, "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        numbers = range(1, COLUMNS + 1)
        heads = [f"{field}_{i}" for i in numbers for field in ("class", "probability")]
        writer.writerow(["image", *heads, "none_of_these", "score", "threshold", "error"])
        for row in rows:
            cells = [c for pair in row["classes"] for c in (pair[0], f"{pair[1]:.6f}")]
            cells += [""] * (len(heads) - len(cells))
            found = row["belonging"]
            cells += [""] * 3 if found is None else belonging_cells(found)
            writer.writerow([row["image"], *cells, row["error"]])
    return path


def belonging_cells(belonging: Belonging) -> list[str]:
    """Returns whether a photo is "none of these", its score and the threshold."""
    numbers = (f"{number:.6f}" for number in (belonging.score, belonging.threshold))
    return [str(belonging.none_of_these).lower(), *numbers]
