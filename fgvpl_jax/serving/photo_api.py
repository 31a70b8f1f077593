"""The endpoints of the page's tab for one photo, which go past Gradio's slow upload and events."""

from collections.abc import Sequence
from pathlib import Path

from anyio import to_thread
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from fgvpl_jax.defaults import TOP_K
from fgvpl_jax.inference.evidence import ClassEvidence
from fgvpl_jax.inference.regions import Region
from fgvpl_jax.serving.answer_view import answer_html
from fgvpl_jax.serving.http_api import ANSWER
from fgvpl_jax.serving.service import Refused, Service
from fgvpl_jax.serving.sessions import CLASSES_EXPIRED, Session, Sessions, changes_in

EXAMPLES = "/page/examples"
EXTRAS = ("", "evidence", "regions")
EXPIRED = 410  # the page then forgets its key


def add_photo_endpoints(
    app: FastAPI, service: Service, sessions: Sessions, examples: Sequence[Path]
) -> None:
    """Adds the endpoint that answers one photo, and the example photos.

    Args:
        app: The app.
        service: Service that recognises the photos.
        sessions: Classes that the users added.
        examples: Example photos, which are served under their numbers.
    """

    @app.post(ANSWER)
    async def answer(request: Request) -> HTMLResponse:
        async with request.form(max_files=1, max_fields=3) as form:
            image = form.get("image")
            if not isinstance(image, UploadFile):
                raise Refused(400, "no photo: choose one first")
            extra, class_name, key = (
                str(form.get(field, "")) for field in ("extra", "class_name", "session")
            )
            if extra not in EXTRAS:
                raise Refused(400, f"extra is {extra[:20]!r}: give evidence, regions or nothing")
            name, data = image.filename or "image", await image.read()
        session = sessions.get(key)
        if key and session is None:
            raise Refused(EXPIRED, CLASSES_EXPIRED)
        return HTMLResponse(await answer_for(service, data, name, session, extra, class_name))

    @app.get(EXAMPLES + "/{number:int}")
    async def example(number: int) -> FileResponse:
        if number >= len(examples):
            raise HTTPException(404, f"there is no example {number}")
        return FileResponse(examples[number])


async def answer_for(
    service: Service,
    data: bytes,
    name: str,
    session: Session | None,
    extra: str = "",
    class_name: str = "",
) -> str:
    """Recognises a photo and renders the answer.

    Args:
        service: Service that recognises the photo.
        data: Bytes of the photo's file.
        name: Name of the photo.
        session: Classes that the user added, if any.
        extra: Layer to compute in addition: "evidence", "regions" or nothing.
        class_name: Class of the evidence; if it is empty, the most probable class.
    """
    changes = changes_in(session)
    photo = await service.recognise(data, name, TOP_K, changes, with_square=True)
    evidence: ClassEvidence | None = None
    regions: tuple[Region, ...] = ()
    if extra == "evidence":
        wanted = class_name or photo.response.prediction.class_names[0]
        evidence = await service.evidence(photo.crop, wanted, changes)
    elif extra == "regions":
        regions = await service.regions(data, name, 1, changes)
    # In a thread, because it decodes training photos.
    return await to_thread.run_sync(
        answer_html,
        photo,
        service,
        session.added if session else (),
        session.thumbnails if session else (),
        evidence,
        regions,
    )
