"""The page's layout: tabs for one photo, many photos and a new class."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from fgvpl_jax.inference.class_changes import MOST_CLASSES, MOST_PHOTOS
from fgvpl_jax.runs.summary import TRIED_COLUMNS, best_first, tried_cells
from fgvpl_jax.serving.answer_view import ENVIRONMENT
from fgvpl_jax.serving.http_api import ANSWER
from fgvpl_jax.serving.page_events import PageEvents
from fgvpl_jax.serving.photo_api import EXAMPLES
from fgvpl_jax.serving.service import Service
from fgvpl_jax.serving.sessions import Sessions

KEPT_SECONDS = 3600  # for uploads, and for the added classes that nobody uses
# Reports the key of the user's classes to `photo.js`.
CLASSES_CHANGED = "key => { document.dispatchEvent(new CustomEvent('fg-classes', {detail: key})); }"


class PhotosTab(NamedTuple):
    """Components of the tab for many photos."""

    photos: gr.File
    classify: gr.Button
    table: gr.HTML
    download: gr.File


class ClassTab(NamedTuple):
    """Components of the tab for a new class."""

    name: gr.Textbox
    photos: gr.File
    add: gr.Button
    reset: gr.Button
    added: gr.HTML


def build_page(service: Service, sessions: Sessions, examples: Sequence[Path]) -> gr.Blocks:
    """Builds the page of a service.

    Args:
        service: Service that recognises the photos.
        sessions: Classes that the users added.
        examples: Example photos to pick from.
    """
    classifier = service.classifier
    with gr.Blocks(
        title=f"{classifier.title}: {classifier.workdir.name}",
        fill_width=True,
        analytics_enabled=False,
        delete_cache=(KEPT_SECONDS, KEPT_SECONDS),
    ) as page:
        tried = [tried_cells(one) for one in best_first(classifier.results.tried or ())]
        intro = ENVIRONMENT.get_template("intro.html.j2")
        gr.HTML(intro.render(classifier=classifier, columns=TRIED_COLUMNS, tried=tried))
        add_photo_tab(service, examples)
        photos_tab = add_photos_tab(service.limits.photos_at_once)
        class_tab = add_class_tab() if classifier.uses_cache else None
        connect_events(PageEvents(service, sessions), photos_tab, class_tab)
    page.queue(api_open=False, max_size=service.limits.waiting)
    return page


def add_photo_tab(service: Service, examples: Sequence[Path]) -> None:
    """Adds the tab that shows the answer for one photo.

    Its script sends the photo to the endpoint of `photo_api.py`. Gradio's own field for a photo
    takes more than ten times as long as the prediction: it uploads the photo, then sends an event.
    """
    with gr.Tab("One photo"):
        template = ENVIRONMENT.get_template("photo.html.j2")
        gr.HTML(
            template.render(
                answer_address=ANSWER,
                class_names=service.classifier.class_names,
                examples=[
                    (f"{EXAMPLES}/{number}", file.name) for number, file in enumerate(examples)
                ],
                finds_objects=service.classifier.finds_objects,
                most_bytes=service.limits.photo_bytes,
            ),
            elem_id="photo",
            js_on_load=template_file("photo.js"),
        )


def add_photos_tab(photos_at_once: int) -> PhotosTab:
    """Adds the tab that shows a table of the answers for many photos."""
    with gr.Tab("Many photos"):
        photos = gr.File(
            file_count="multiple", label=f"Photos, at most {photos_at_once}", elem_id="photos"
        )
        uploads_only(photos)
        classify = gr.Button("Classify them", variant="primary")
        table = gr.HTML(elem_id="table", js_on_load=None)
        download = gr.File(label="All answers as CSV", visible=False, elem_id="csv")
    return PhotosTab(photos, classify, table, download)


def add_class_tab() -> ClassTab:
    """Adds the tab in which a user adds classes."""
    with gr.Tab("New class"):
        gr.Markdown(
            "Name a class and add photos of it. They are added to the photos and names that new "
            "photos are compared with. **Nothing is retrained, neither the prompt nor the "
            "adapters**, so expect less of it than of a class that was part of the training. Up to "
            f"{MOST_CLASSES} classes and {MOST_PHOTOS} photos; only you see them, until you close "
            "the page."
        )
        name = gr.Textbox(label="Name of the class", elem_id="class-name", max_lines=1)
        photos = gr.File(file_count="multiple", label="Its photos", elem_id="class-photos")
        uploads_only(photos)
        with gr.Row():
            add = gr.Button("Add the class", variant="primary")
            reset = gr.Button("Remove all added classes")
        added = gr.HTML(elem_id="added", js_on_load=None)
    return ClassTab(name, photos, add, reset, added)


def connect_events(events: PageEvents, photos_tab: PhotosTab, class_tab: ClassTab | None) -> None:
    """Connects the components to the functions that handle their events."""
    settings: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None}
    key = gr.Textbox("", visible=False)  # key of the user's session; empty before there is one
    photos_tab.classify.click(
        events.recognise_photos,
        [photos_tab.photos, key],
        [photos_tab.table, photos_tab.download],
        **settings,
    )
    if class_tab is not None:
        # Both events recognise the current photo again, among the new classes.
        recognise: dict[str, Any] = {"fn": None, "inputs": key, "js": CLASSES_CHANGED, **settings}
        class_tab.add.click(
            events.add_class,
            [class_tab.name, class_tab.photos, key],
            [key, class_tab.added, class_tab.name, class_tab.photos],
            **settings,
        ).then(**recognise)
        class_tab.reset.click(events.remove_classes, key, [key, class_tab.added], **settings).then(
            **recognise
        )


def uploads_only(component: gr.components.Component) -> None:
    """Makes a field accept uploads to this server only, and no address to fetch a file from.

    Gradio itself would fetch a path that a client names `http://…`, whatever its size.
    """
    keep = component.async_move_resource_to_block_cache

    async def moved(path: str | Path | None) -> str | None:
        if path is not None and "://" in str(path):
            raise gr.Error("nothing is fetched from other addresses: upload the photo itself")
        return await keep(path)

    component.async_move_resource_to_block_cache = moved  # type: ignore[assignment,method-assign]


def template_file(name: str) -> str:
    """Returns a file of the page that is sent as it is, such as its style sheet."""
    return (files("fgvpl_jax.serving") / "templates" / name).read_text(encoding="utf-8")
