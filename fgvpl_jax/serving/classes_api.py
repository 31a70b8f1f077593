"""The endpoints under `/api/classes`, with which programs change the classes; off by default."""

import hmac
from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.datastructures import UploadFile

from fgvpl_jax.inference.class_changes import MOST_PHOTOS
from fgvpl_jax.serving.http_api import CLASSES, problem
from fgvpl_jax.serving.service import Service

Change = Callable[[Request], Awaitable[None]]


def add_class_endpoints(app: FastAPI, service: Service, token: str) -> None:
    """Adds the endpoints to an app; each returns the names of the classes after the change.

    Args:
        app: The app.
        service: Service whose classifier is changed, for all users until the server stops.
        token: Secret that every request must carry, as `Authorization: Bearer …`.
    """
    classifier = service.classifier

    async def changed(request: Request, change: Change | None = None) -> JSONResponse:
        # Headers are decoded as Latin-1, whatever the client meant.
        given = request.headers.get("Authorization", "")
        if not hmac.compare_digest(given.encode("latin-1"), f"Bearer {token}".encode()):
            return problem(401, "send the server's token in the header Authorization: Bearer TOKEN")
        if change is not None:
            await change(request)
        return JSONResponse({"classes": classifier.class_names})

    async def add(request: Request) -> None:
        async with request.form(max_files=MOST_PHOTOS, max_fields=1) as form:
            files = [x for x in form.getlist("image") if isinstance(x, UploadFile)]
            photos = [(file.filename or "image", await file.read()) for file in files]
            name = str(form.get("name", ""))
        await service.add_class(name, photos)

    async def rename(request: Request) -> None:
        async with request.form(max_files=0, max_fields=1) as form:
            new_name = str(form.get("name", ""))
        await service.rename_class(request.path_params["name"], new_name)

    async def remove(request: Request) -> None:
        await service.remove_class(request.path_params["name"])

    @app.get(CLASSES)
    async def names(request: Request) -> JSONResponse:
        return await changed(request)

    @app.post(CLASSES)
    async def add_class(request: Request) -> JSONResponse:
        return await changed(request, add)

    @app.patch(CLASSES + "/{name:path}")
    async def rename_class(request: Request) -> JSONResponse:
        return await changed(request, rename)

    @app.delete(CLASSES + "/{name:path}")
    async def remove_class(request: Request) -> JSONResponse:
        return await changed(request, remove)
