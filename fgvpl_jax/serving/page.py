"""The page: one photo, many photos, a new class."""

import asyncio
import csv
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import gradio as gr
from anyio import to_thread
from PIL import Image

from fgvpl_jax.errors import UserError
from fgvpl_jax.inference.added_classes import MOST_CLASSES, MOST_PHOTOS, Extension
from fgvpl_jax.serving.answer_view import TEMPLATES, answer_html, problem_html
from fgvpl_jax.serving.micro_batches import Overloaded
from fgvpl_jax.serving.service import BATCH_SIZES, Service

TOP_K = 5
KEPT_SECONDS = 3600  # of uploads, and of what a user added who went away
COLUMNS = 3  # classes in the table of many photos


@dataclass(frozen=True)
class Session:
    """What one user added.

    Attributes:
        extension: The classes.
        squares: Their photos, in its order.
    """

    extension: Extension
    squares: tuple[Image.Image, ...]


def uploads_only(component: gr.components.Component) -> None:
    """Makes a field take what was uploaded to this server, and no address to fetch it from.

    Gradio would fetch a path that a client calls `http://…` itself, of any size.
    """
    keep = component.async_move_resource_to_block_cache

    async def moved(path: str | Path | None) -> str | None:
        if path is not None and "://" in str(path):
            raise gr.Error("nothing is fetched from elsewhere: upload the photo itself")
        return await keep(path)

    component.async_move_resource_to_block_cache = moved  # type: ignore[assignment,method-assign]


def path_of(payload: Any) -> str | None:
    """Where an uploaded file lies."""
    return None if payload is None else payload.path


def build_page(service: Service, examples: Sequence[Path]) -> gr.Blocks:
    """The page of a service.

    Args:
        service: Answers.
        examples: Photos to pick from.
    """
    classifier = service.classifier
    pages = Pages(service)
    with gr.Blocks(
        title=f"{classifier.title}: {classifier.workdir.name}",
        fill_width=True,
        analytics_enabled=False,
        delete_cache=(KEPT_SECONDS, KEPT_SECONDS),
    ) as page:
        session = gr.State(None, time_to_live=KEPT_SECONDS)
        gr.HTML(TEMPLATES.get_template("intro.html.j2").render(classifier=classifier))
        with gr.Tab("One photo"), gr.Row():
            with gr.Column(scale=1, min_width=280):
                photo = gr.Image(
                    label="Photo: drop, paste or choose one",
                    sources=["upload", "clipboard"],
                    type="filepath",
                    height=300,
                    elem_id="photo",
                )
                # The file as it is: Gradio would open it, and fail in its own words. A subclass,
                # which says the same, makes Gradio write a stub beside this file.
                photo.preprocess = path_of  # type: ignore[method-assign]
                uploads_only(photo)
                picked = None
                if examples:
                    picked = gr.Examples(
                        [[str(file)] for file in examples],
                        photo,
                        label="Or pick an example",
                        example_labels=None,
                        api_visibility="private",
                    ).load_input_event
            with gr.Column(scale=2, min_width=300):
                answer = gr.HTML(elem_id="answer", js_on_load=None)
        with gr.Tab("Many photos"):
            photos = gr.File(
                file_count="multiple",
                label=f"Photos, at most {service.limits.photos_at_once}",
                elem_id="photos",
            )
            uploads_only(photos)
            classify = gr.Button("Classify them", variant="primary")
            table = gr.HTML(elem_id="table", js_on_load=None)
            download = gr.File(label="All answers as CSV", visible=False, elem_id="csv")
        added = None
        if classifier.uses_cache:
            with gr.Tab("New class"):
                gr.Markdown(
                    "Name a class and add photos of it: they join the photos that new ones are "
                    "compared with, and the name joins the names. **Nothing is retrained, neither "
                    "the prompt nor the adapters**, so expect less of it than of a class that was "
                    f"there in training. Up to {MOST_CLASSES} classes and {MOST_PHOTOS} photos; "
                    "only you see them, until you close the page."
                )
                name = gr.Textbox(label="Name of the class", elem_id="class-name", max_lines=1)
                class_photos = gr.File(
                    file_count="multiple", label="Its photos", elem_id="class-photos"
                )
                uploads_only(class_photos)
                with gr.Row():
                    add = gr.Button("Add the class", variant="primary")
                    reset = gr.Button("Remove all added classes")
                added = gr.HTML(elem_id="added", js_on_load=None)
        settings: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None}
        # Each event by its name: `change` comes twice for an upload. The service has a queue and
        # limits, and Gradio's queue would cost one photo two more requests.
        one: dict[str, Any] = {
            "fn": pages.one,
            "inputs": [photo, session],
            "outputs": answer,
            **settings,
            "queue": False,
            "trigger_mode": "multiple",  # the newest counts, see `Pages.one`
        }
        gr.on([photo.upload, photo.clear], **one)
        if picked is not None:
            picked.then(**one)
        classify.click(pages.many, [photos, session], [table, download], **settings)
        if added is not None:
            # What is shown of the photo at hand is answered anew among the new classes.
            add.click(
                pages.add,
                [name, class_photos, session],
                [session, added, name, class_photos],
                **settings,
            ).then(**one)
            reset.click(pages.reset, None, [session, added], **settings).then(**one)
    page.queue(api_open=False, max_size=service.limits.waiting)
    return page


class Pages:
    """What the page's events do."""

    def __init__(self, service: Service):
        self._service = service
        self._newest: dict[str | None, object] = {}  # of each open page, while it is at work

    async def one(self, file: str | None, session: Session | None, request: gr.Request) -> Any:
        """The answer for one photo; nothing new where the page has asked again meanwhile."""
        call = self._newest[request.session_hash] = object()
        answer = await self._answer(file, session)
        if self._newest.get(request.session_hash) is not call:
            return gr.skip()
        del self._newest[request.session_hash]
        return answer

    async def _answer(self, file: str | None, session: Session | None) -> str:
        if file is None:
            return ""
        try:
            seen = await self._service.ask(
                Path(file).read_bytes(),
                Path(file).name,
                TOP_K,
                extension_of(session),
                with_square=True,
            )
        except (UserError, Overloaded) as error:
            return problem_html(str(error))
        names = session.extension.class_names if session else ()
        squares = session.squares if session else ()
        # Decodes training photos.
        return await to_thread.run_sync(answer_html, seen, self._service, names, squares)

    async def many(self, paths: list[str] | None, session: Session | None) -> tuple[str, Any]:
        """A table of the answers, and all of them as a CSV file."""
        most = self._service.limits.photos_at_once
        if not paths:
            return problem_html("no photo: choose some first"), gr.update(visible=False)
        if len(paths) > most:
            return problem_html(f"{len(paths)} photos: give at most {most}"), gr.update(
                visible=False
            )
        rows: list[dict[str, Any]] = []
        for start in range(0, len(paths), BATCH_SIZES[-1]):  # those are in memory at once
            some = paths[start : start + BATCH_SIZES[-1]]
            rows += await asyncio.gather(*(self._row(Path(path), session) for path in some))
        stream, place = tempfile.mkstemp(".csv", "answers_", os.environ["GRADIO_TEMP_DIR"])
        with os.fdopen(stream, "w", newline="", encoding="utf-8-sig") as file:
            writer = csv.writer(file)
            numbers = range(1, COLUMNS + 1)
            heads = [f"{what}_{i}" for i in numbers for what in ("class", "probability")]
            writer.writerow(["image", *heads, "error"])
            for row in rows:
                cells = [c for pair in row["classes"] for c in (pair[0], f"{pair[1]:.6f}")]
                cells += [""] * (len(heads) - len(cells))
                writer.writerow([row["image"], *cells, row["error"]])
        table = TEMPLATES.get_template("table.html.j2").render(rows=rows)
        return table, gr.update(value=place, visible=True)

    async def _row(self, path: Path, session: Session | None) -> dict[str, Any]:
        try:
            seen = await self._service.ask(
                path.read_bytes(), path.name, COLUMNS, extension_of(session)
            )
        except (UserError, Overloaded) as error:
            return {"image": path.name, "classes": [], "error": str(error)}
        found = seen.answer.prediction
        classes = list(zip(found.class_names, found.probabilities, strict=True))
        return {"image": path.name, "classes": classes, "error": ""}

    async def add(
        self, name: str, paths: list[str] | None, session: Session | None
    ) -> tuple[Session | None, str, Any, Any]:
        """The session with one class more, what it has now, and emptied fields."""
        if len(paths or []) > MOST_PHOTOS:  # before any is read
            told = problem_html(f"{len(paths or [])} photos: give at most {MOST_PHOTOS}")
            return session, told, gr.update(), gr.update()
        photos = [(Path(p).name, Path(p).read_bytes()) for p in paths or []]
        try:
            extension, squares = await self._service.with_class(extension_of(session), name, photos)
        except (UserError, Overloaded) as error:
            return session, problem_html(str(error)), gr.update(), gr.update()
        session = Session(extension, (*(session.squares if session else ()), *squares))
        return session, added_html(session), "", None

    def reset(self) -> tuple[None, str]:
        """Back to the trained classes."""
        return None, added_html(None)


def extension_of(session: Session | None) -> Extension | None:
    """The classes that a user added, if any."""
    return session.extension if session else None


def added_html(session: Session | None) -> str:
    """The classes that a user added, in words."""
    extension = extension_of(session)
    counts = []
    if extension is not None:
        for label, name in enumerate(extension.class_names):
            counts.append((name, sum(photo.label == label for photo in extension.photos)))
    return TEMPLATES.get_template("added.html.j2").render(counts=counts)


def style() -> str:
    """The page's style sheet."""
    folder = files("fgvpl_jax.serving") / "templates"
    return (folder / "page.css").read_text(encoding="utf-8")
