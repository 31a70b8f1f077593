"""The server of page and endpoint, which only this machine can reach by default."""

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
from fgvpl_jax.serving.classes_api import add_class_endpoints
from fgvpl_jax.serving.http_api import LimitedRequests, add_endpoint, report_errors
from fgvpl_jax.serving.page import KEPT_SECONDS, build_page, template_file
from fgvpl_jax.serving.photo_api import add_photo_endpoints
from fgvpl_jax.serving.service import Limits, Service
from fgvpl_jax.serving.sessions import Sessions

NUM_EXAMPLES = 6
LOOPBACK_NAMES = ["127.0.0.1", "localhost"]


def serve(
    classifier: Classifier,
    host: str,
    port: int,
    limits: Limits,
    examples: Sequence[Path] = (),
    token: str | None = None,
) -> None:
    """Serves until interrupted.

    Args:
        classifier: A trained run.
        host: Address to listen at.
        port: Port to listen at.
        limits: Limits on the clients' requests.
        examples: Example photos on the page; without any, some of the training photos.
        token: Secret with which programs may change the classes; None lets nobody change them.
    Raises:
        UserError: If the server cannot listen at the address.
    """
    listener = listen(host, port)
    service = Service(classifier, limits)
    # Only this process uses the folder of uploads, and removes it at its end. Gradio reads the
    # variable at each use.
    with tempfile.TemporaryDirectory(prefix="fgvpl_serve_") as folder, listener:
        os.environ["GRADIO_TEMP_DIR"] = folder
        photos = list(examples) or training_photos(classifier, Path(folder))
        app = make_app(service, photos, trusted=trusted_names(host), token=token)
        shown = f"[{host}]" if ":" in host else host
        print(f"page: http://{shown}:{port}/ (Ctrl-C stops the server)", flush=True)
        print(f"endpoint: http://{shown}:{port}/api/predict, see docs/serve.md", flush=True)
        server = uvicorn.Server(
            uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3)
        )
        try:
            server.run(sockets=[listener])
        finally:
            service.close()


def trusted_names(host: str) -> list[str]:
    """Returns the names by which a browser may reach the server; all, if other machines can."""
    return [*LOOPBACK_NAMES, host, f"[{host}]"] if is_loopback(host) else ["*"]


def make_app(
    service: Service, examples: Sequence[Path], trusted: Sequence[str], token: str | None = None
) -> FastAPI:
    """Builds the application: page and endpoint behind the limits.

    Args:
        service: Service that recognises the photos.
        examples: Example photos on the page.
        trusted: Names by which a browser may reach the server. This refuses the page of a stranger
            who made their own name point to this machine.
        token: Secret with which programs may change the classes; None lets nobody change them.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    report_errors(app)
    sessions = Sessions(KEPT_SECONDS)
    add_endpoint(app, service)
    add_photo_endpoints(app, service, sessions, examples)
    if token is not None:
        add_class_endpoints(app, service, token)
    gr.mount_gradio_app(
        app,
        build_page(service, sessions, examples),
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
        css=template_file("page.css"),
    )
    app.add_middleware(LimitedRequests, limits=service.limits)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(trusted))
    return app


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket bound to the address.

    Raises:
        UserError: If the address is not one of this machine's, or is in use.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # `getaddrinfo` accepts larger numbers and wraps them around, so pass the port itself.
        listener.bind((address[0], port, *address[2:]))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot listen at --host={host} --port={port} ({reason}): choose another host or port"
        ) from error
    return listener


def is_loopback(host: str) -> bool:
    """Returns whether only this machine can reach the address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a host name
        return False


def training_photos(classifier: Classifier, folder: Path) -> list[Path]:
    """Copies one training photo of each of the first classes into a folder."""
    support, found = classifier.support, []
    first = {int(label): place for place, label in reversed(list(enumerate(support.labels)))}
    for label in sorted(first)[:NUM_EXAMPLES]:
        file = folder / f"training_photo_{label}.png"
        try:
            support.image(first[label]).save(file)
        except UnreadableImage:  # no longer exists
            continue
        found.append(file)
    return found
