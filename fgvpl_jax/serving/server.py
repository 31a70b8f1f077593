"""Starts page and endpoint, on this machine alone unless another address is named."""

import ipaddress
import os
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.middleware.trustedhost import TrustedHostMiddleware

from fgvpl_jax.data import UnreadableImage
from fgvpl_jax.errors import UserError
from fgvpl_jax.inference.classifier import Classifier
from fgvpl_jax.serving.http_api import LimitedRequests, add_endpoint
from fgvpl_jax.serving.page import build_page, style
from fgvpl_jax.serving.service import Limits, Service

NUM_EXAMPLES = 6
LOOPBACK_NAMES = ["127.0.0.1", "localhost"]


def serve(
    classifier: Classifier, host: str, port: int, limits: Limits, examples: Sequence[Path] = ()
) -> None:
    """Serves until it is interrupted.

    Args:
        classifier: A trained run.
        host: Address to listen at.
        port: Of it.
        limits: Of every client.
        examples: Photos to pick from; none for some of the training photos.
    Raises:
        UserError: If the address cannot be had.
    """
    listener = listen(host, port)
    service = Service(classifier, limits)
    # Uploads are private to this process and go with it; Gradio reads the variable when it is used.
    with tempfile.TemporaryDirectory(prefix="fgvpl_serve_") as folder, listener:
        os.environ["GRADIO_TEMP_DIR"] = folder
        photos = list(examples) or training_photos(classifier, Path(folder))
        app = make_app(service, photos, trusted=trusted_names(host))
        shown = f"[{host}]" if ":" in host else host
        print(f"page: http://{shown}:{port}/ (Ctrl-C ends it)", flush=True)
        print(f"endpoint: http://{shown}:{port}/api/predict, see docs/serve.md", flush=True)
        server = uvicorn.Server(
            uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3)
        )
        try:
            server.run(sockets=[listener])
        finally:
            service.close()


def trusted_names(host: str) -> list[str]:
    """Names under which a browser may reach a server at this address; all, if others reach it."""
    return [*LOOPBACK_NAMES, host, f"[{host}]"] if is_loopback(host) else ["*"]


def make_app(service: Service, examples: Sequence[Path], trusted: Sequence[str]) -> FastAPI:
    """Page and endpoint behind the limits.

    Args:
        service: Answers.
        examples: Photos to pick from.
        trusted: Names under which a browser may reach the server: a stranger's page that got its
            own name to point here is refused.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    add_endpoint(app, service)
    gr.mount_gradio_app(
        app,
        build_page(service, examples),
        path="/",
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        show_error=False,
        max_file_size=service.limits.photo_bytes,
        theme=gr.themes.Default(
            primary_hue="blue",
            font=["system-ui", "sans-serif"],
            font_mono=["ui-monospace", "monospace"],
        ),
        css=style(),
    )
    app.add_middleware(LimitedRequests, limits=service.limits)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(trusted))
    return app


def listen(host: str, port: int) -> socket.socket:
    """A socket at the address.

    Raises:
        UserError: If it is none of this machine, or taken.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # The look-up of the name takes larger numbers, and wraps them round.
        listener.bind((address[0], port, *address[2:]))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot listen at --host={host} --port={port} ({reason}): choose others"
        ) from error
    return listener


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False


def training_photos(classifier: Classifier, folder: Path) -> list[Path]:
    """A training photo of each of the first classes, copied into a folder."""
    support, found = classifier.support, []
    first = {int(label): place for place, label in reversed(list(enumerate(support.labels)))}
    for label in sorted(first)[:NUM_EXAMPLES]:
        file = folder / f"training_photo_{label}.png"
        try:
            support.image(first[label]).save(file)
        except UnreadableImage:  # gone since
            continue
        found.append(file)
    return found
