"""The page's events: recognise one photo or many, add a class, remove the added classes."""

import asyncio
import csv
import os
import tempfile
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from anyio import to_thread
from PIL import Image

from fgvpl_jax.defaults import TOP_K
from fgvpl_jax.errors import UserError
from fgvpl_jax.inference.class_changes import MOST_PHOTOS, ClassChanges
from fgvpl_jax.inference.predictions import Belonging
from fgvpl_jax.inference.regions import Region
from fgvpl_jax.serving.answer_view import ENVIRONMENT, answer_html, problem_html
from fgvpl_jax.serving.micro_batches import Overloaded
from fgvpl_jax.serving.service import BATCH_SIZES, Service

COLUMNS = 3  # classes in the table of many photos


@dataclass(frozen=True)
class Session:
    """The classes that one user added.

    Attributes:
        changes: All changes of the classes, with those that the server's classifier has itself.
        added: Names of the classes that the user added.
        squares: Squares of the photos, in the order of `ClassChanges.photos`; None for photos that
            the classifier has itself.
    """

    changes: ClassChanges
    added: tuple[str, ...]
    squares: tuple[Image.Image | None, ...]


class PageEvents:
    """Handles the page's events.

    Args:
        service: Service that recognises the photos.
    """

    def __init__(self, service: Service):
        self._service = service
        # The newest call of each open page that has one running.
        self._newest: dict[str | None, object] = {}

    async def recognise_photo(
        self, file: str | None, session: Session | None, request: gr.Request
    ) -> Any:
        """Returns the answer for one photo; no update if the page has sent a newer request."""
        return await self._if_newest(self._answer(file, session), request)

    async def explain_photo(
        self,
        file: str | None,
        class_name: str | None,
        session: Session | None,
        request: gr.Request,
    ) -> Any:
        """Returns the answer with the evidence for a class; see `recognise_photo`.

        Without a `class_name`, the class is the most probable one.
        """
        answer = self._answer(file, session, with_evidence=True, class_name=class_name)
        return await self._if_newest(answer, request)

    async def find_regions(
        self, file: str | None, session: Session | None, request: gr.Request
    ) -> Any:
        """Returns the answer with the regions of the photo; see `recognise_photo`."""
        return await self._if_newest(self._answer(file, session, with_regions=True), request)

    async def _if_newest(self, answer: Coroutine[Any, Any, str], request: gr.Request) -> Any:
        call = self._newest[request.session_hash] = object()
        html = await answer
        if self._newest.get(request.session_hash) is not call:
            return gr.skip()
        del self._newest[request.session_hash]
        return html

    async def _answer(
        self,
        file: str | None,
        session: Session | None,
        *,
        with_evidence: bool = False,
        class_name: str | None = None,
        with_regions: bool = False,
    ) -> str:
        if file is None:
            return ""
        try:
            photo = await self._service.recognise(
                Path(file).read_bytes(),
                Path(file).name,
                TOP_K,
                changes_in(session),
                with_square=True,
            )
        except (UserError, Overloaded) as error:
            return problem_html(str(error))
        names = session.added if session else ()
        squares = session.squares if session else ()
        evidence = None
        if with_evidence:
            wanted = class_name or photo.response.prediction.class_names[0]
            try:
                # A limit of Gradio's queue would let a call wait before it counts as the newest.
                async with self._service.one_at_a_time:  # it takes about a hundred predictions
                    evidence = await to_thread.run_sync(
                        self._service.classifier.evidence_in,
                        photo.crop,
                        wanted,
                        changes_in(session),
                    )
            except UserError as error:
                return problem_html(str(error))
        regions: tuple[Region, ...] = ()
        if with_regions:
            try:
                regions = await self._service.regions(
                    Path(file).read_bytes(), Path(file).name, 1, changes_in(session)
                )
            except (UserError, Overloaded) as error:
                return problem_html(str(error))
        # In a thread, because it decodes training photos.
        return await to_thread.run_sync(
            answer_html, photo, self._service, names, squares, evidence, regions
        )

    async def recognise_photos(
        self, paths: list[str] | None, session: Session | None
    ) -> tuple[str, Any]:
        """Returns a table of the answers, and all of them as a CSV file."""
        most = self._service.limits.photos_at_once
        if not paths:
            return problem_html("no photo: choose some first"), gr.update(visible=False)
        if len(paths) > most:
            return problem_html(f"{len(paths)} photos: choose at most {most}"), gr.update(
                visible=False
            )
        rows: list[dict[str, Any]] = []
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
        self, name: str, paths: list[str] | None, session: Session | None
    ) -> tuple[Session | None, str, Any, Any]:
        """Returns the session with one more class, the list of its classes, and emptied fields."""
        if len(paths or []) > MOST_PHOTOS:  # checked before any file is read
            problem = problem_html(f"{len(paths or [])} photos: choose at most {MOST_PHOTOS}")
            return session, problem, gr.update(), gr.update()
        photos = [(Path(p).name, Path(p).read_bytes()) for p in paths or []]
        try:
            changes, squares = await self._service.with_class(changes_in(session), name, photos)
        except (UserError, Overloaded) as error:
            return session, problem_html(str(error)), gr.update(), gr.update()
        known = (None,) * (len(changes.photos) - len(squares))
        session = Session(
            changes,
            (*(session.added if session else ()), changes.added_names[-1]),
            (*(session.squares if session else known), *squares),
        )
        return session, added_html(session), "", None

    def remove_classes(self) -> tuple[None, str]:
        """Returns to the classifier's own classes."""
        return None, added_html(None)


def changes_in(session: Session | None) -> ClassChanges | None:
    """Returns the classes as a user changed them; None for the classifier's own."""
    return session.changes if session else None


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
