"""The page's layout: tabs for one photo, many photos and a new class."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from fgvpl_jax.inference.class_changes import MOST_CLASSES, MOST_PHOTOS
from fgvpl_jax.runs.summary import TRIED_COLUMNS, best_first, tried_cells
from fgvpl_jax.serving.answer_view import ENVIRONMENT
from fgvpl_jax.serving.page_events import PageEvents
from fgvpl_jax.serving.service import Service

KEPT_SECONDS = 3600  # for uploads, and for the classes of a user who has left


class PhotoTab(NamedTuple):
    """Components of the tab for one photo; `picked` is the event of picking an example.

    `find` is the button for regions; None for a method that looks for no object.
    """

    photo: gr.Image
    answer: gr.HTML
    evidence_class: gr.Dropdown
    explain: gr.Button
    find: gr.Button | None
    picked: Any


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


def build_page(service: Service, examples: Sequence[Path]) -> gr.Blocks:
    """Builds the page of a service.

    Args:
        service: Service that recognises the photos.
        examples: Example photos to pick from.
    """
    classifier = service.classifier
    with gr.Blocks(
        title=f"{classifier.title}: {classifier.workdir.name}",
        fill_width=True,
        analytics_enabled=False,
        delete_cache=(KEPT_SECONDS, KEPT_SECONDS),
    ) as page:
        session = gr.State(None, time_to_live=KEPT_SECONDS)
        tried = [tried_cells(one) for one in best_first(classifier.results.tried or ())]
        intro = ENVIRONMENT.get_template("intro.html.j2")
        gr.HTML(intro.render(classifier=classifier, columns=TRIED_COLUMNS, tried=tried))
        photo_tab = add_photo_tab(examples, classifier.class_names, classifier.finds_objects)
        photos_tab = add_photos_tab(service.limits.photos_at_once)
        class_tab = add_class_tab() if classifier.uses_cache else None
        connect_events(PageEvents(service), session, photo_tab, photos_tab, class_tab)
    page.queue(api_open=False, max_size=service.limits.waiting)
    return page


def add_photo_tab(
    examples: Sequence[Path], class_names: Sequence[str], finds_objects: bool
) -> PhotoTab:
    """Adds the tab that shows the answer for one photo."""
    with gr.Tab("One photo"), gr.Row():
        with gr.Column(scale=1, min_width=280):
            photo = gr.Image(
                label="Photo: drop, paste or choose one",
                sources=["upload", "clipboard"],
                type="filepath",
                height=300,
                elem_id="photo",
            )
            # Passes the uploaded file on unopened: Gradio would open it and report errors in its
            # own words. Overriding this in a subclass makes Gradio write a stub next to this file.
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
            with gr.Row():
                evidence_class = gr.Dropdown(
                    list(class_names),
                    value=None,
                    label="Evidence for (if blank, the most probable class)",
                    allow_custom_value=True,  # an added class
                    elem_id="evidence-class",
                )
                explain = gr.Button("Why? Show the evidence", elem_id="explain")
            find = gr.Button("Name every region", elem_id="find") if finds_objects else None
    return PhotoTab(photo, answer, evidence_class, explain, find, picked)


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


def connect_events(
    events: PageEvents,
    session: gr.State,
    photo_tab: PhotoTab,
    photos_tab: PhotosTab,
    class_tab: ClassTab | None,
) -> None:
    """Connects the components to the functions that handle their events."""
    settings: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None}
    # Bypasses Gradio's queue, which would cost one photo two more requests: the service has its
    # own queue and limits.
    recognise: dict[str, Any] = {
        "fn": events.recognise_photo,
        "inputs": [photo_tab.photo, session],
        "outputs": photo_tab.answer,
        **settings,
        "queue": False,
        "trigger_mode": "multiple",  # the newest call counts, see `PageEvents.recognise_photo`
    }
    # Not `change`, which fires twice for an upload.
    gr.on([photo_tab.photo.upload, photo_tab.photo.clear], **recognise)
    photo_tab.explain.click(
        events.explain_photo,
        [photo_tab.photo, photo_tab.evidence_class, session],
        photo_tab.answer,
        **settings,
    )
    if photo_tab.find is not None:
        photo_tab.find.click(
            events.find_regions, [photo_tab.photo, session], photo_tab.answer, **settings
        )
    if photo_tab.picked is not None:
        photo_tab.picked.then(**recognise)
    photos_tab.classify.click(
        events.recognise_photos,
        [photos_tab.photos, session],
        [photos_tab.table, photos_tab.download],
        **settings,
    )
    if class_tab is not None:
        # Both events recognise the current photo again, among the new classes.
        class_tab.add.click(
            events.add_class,
            [class_tab.name, class_tab.photos, session],
            [session, class_tab.added, class_tab.name, class_tab.photos],
            **settings,
        ).then(**recognise)
        class_tab.reset.click(
            events.remove_classes, None, [session, class_tab.added], **settings
        ).then(**recognise)


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


def path_of(payload: Any) -> str | None:
    """Returns the path of an uploaded file."""
    return None if payload is None else payload.path


def style() -> str:
    """Returns the page's style sheet."""
    folder = files("fgvpl_jax.serving") / "templates"
    return (folder / "page.css").read_text(encoding="utf-8")
