"""The endpoint `POST /api/predict`, and the limits on requests to it and to the page."""

import math
import re
import time
from collections import OrderedDict
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fgvpl_jax.defaults import TOP_K
from fgvpl_jax.errors import UserError
from fgvpl_jax.inference.predict import content_of
from fgvpl_jax.inference.regions import content_of_regions
from fgvpl_jax.serving.micro_batches import Overloaded
from fgvpl_jax.serving.service import Limits, RecognisedPhoto, Refused, Service

ENDPOINT = "/api/predict"
ANSWER = "/page/answer"  # see `photo_api.py`
CLASSES = "/api/classes"  # see `classes_api.py`
FORM_BYTES = 10_000  # size of a form without its photo, at most
MOST_CLIENTS = 10_000
PLAIN_NUMBER = re.compile("[1-9][0-9]{0,8}")
MOST_TOP_K = 1000


def add_endpoint(app: FastAPI, service: Service) -> None:
    """Adds the endpoint to an app."""

    @app.post(ENDPOINT)
    async def predict(request: Request) -> JSONResponse:
        async with request.form(max_files=1, max_fields=2) as form:
            image, top_k = form.get("image"), form.get("top_k", str(TOP_K))
            if not isinstance(image, UploadFile):
                raise Refused(400, "no photo: send one in the form's file field 'image'")
            if not isinstance(top_k, str) or not PLAIN_NUMBER.fullmatch(top_k):
                raise Refused(400, f"top_k is {str(top_k)[:20]!r}: give an integer, 1 or more")
            if (regions := form.get("regions", "false")) not in ("true", "false"):
                raise Refused(400, f"regions is {str(regions)[:20]!r}: give true or false")
            name, data = image.filename or "image", await image.read()
        num_classes = min(int(top_k), MOST_TOP_K)
        content = as_content(await service.recognise(data, name, num_classes))
        if regions == "true":
            content["regions"] = content_of_regions(await service.regions(data, name, num_classes))
        return JSONResponse(content)

    # Without this route, the page, which is mounted under all other addresses, would return 404.
    @app.api_route(ENDPOINT, methods=["DELETE", "GET", "PATCH", "PUT"])
    async def other_method() -> JSONResponse:
        return problem(405, "send a photo by POST, as described in docs/serve.md")


def report_errors(app: FastAPI) -> None:
    """Makes an app's endpoints report errors as JSON."""

    @app.exception_handler(UserError)
    async def refused(request: Request, error: UserError) -> JSONResponse:
        return problem(error.status if isinstance(error, Refused) else 400, str(error))

    @app.exception_handler(Overloaded)
    async def overloaded(request: Request, error: Overloaded) -> JSONResponse:
        return problem(503, str(error), retry_after=1)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        return problem(error.status_code, str(error.detail))


def as_content(photo: RecognisedPhoto) -> dict[str, Any]:
    """Returns a photo's prediction as JSON content."""
    prediction = photo.response.prediction
    content = {"image": prediction.name, **content_of(prediction)}
    location = prediction.location
    if location is not None:
        content["attention_map"] = location.attention_map.astype(float).round(6).tolist()
        content["object_mask"] = location.object_mask.astype(int).tolist()
    return content


def problem(status: int, message: str, retry_after: int | None = None) -> JSONResponse:
    """Returns an error as a JSON response."""
    headers = None if retry_after is None else {"Retry-After": str(retry_after)}
    return JSONResponse({"error": message}, status, headers)


class TooLarge(HTTPException):
    """Raised for a body that is larger than its limit."""


class LimitedRequests:
    """Middleware that refuses bodies that are too large and clients that send too many requests.

    Each address may send `requests_per_minute` requests at once, and then as many in every minute.
    Requests for the page's own files do not count.

    Args:
        app: Application that handles the accepted requests.
        limits: Limits on the clients' requests.
    """

    def __init__(self, app: ASGIApp, limits: Limits):
        self._app = app
        self._limits = limits
        # Number of requests that each client had left, and the time of that; latest clients last.
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or responds with status 413 or 429."""
        counts = scope["type"] == "http" and (
            scope["method"] in ("POST", "PATCH", "DELETE") or scope["path"].startswith(CLASSES)
        )
        if not counts:
            await self._app(scope, receive, send)
            return
        wait = self._seconds_to_wait((scope.get("client") or ("", 0))[0])
        if wait:
            most = self._limits.requests_per_minute
            message = f"more than {most} requests a minute: wait, then try again"
            await problem(429, message, math.ceil(wait))(scope, receive, send)
            return
        is_photo = scope["path"] in (ENDPOINT, ANSWER)
        limit = self._limits.photo_bytes + FORM_BYTES if is_photo else self._limits.request_bytes
        refusal = f"more than {limit:,} bytes: send smaller photos, or fewer"
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > limit:
            await problem(413, refusal)(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:  # sent in chunks, without a length
                raise TooLarge(413, refusal)
            return message

        await self._app(scope, counted, send)

    def _seconds_to_wait(self, client: str) -> float:
        """Returns 0 and counts the request if the client may send it now."""
        now, most = time.monotonic(), float(self._limits.requests_per_minute)
        left, since = self._left.pop(client, (most, now))
        left = min(most, left + (now - since) * most / 60)
        if len(self._left) >= MOST_CLIENTS:
            self._left.popitem(last=False)
        allowed = left >= 1
        self._left[client] = (left - allowed, now)
        return 0.0 if allowed else (1 - left) * 60 / most
