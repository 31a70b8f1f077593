"""Compares the page with bare `predict`, and batched requests with one after the other.

    python -m benchmarks.serving WORKDIR PHOTO ... [--clients=32] [--requests=4] [--rounds=5]
    python -m benchmarks.serving --shape=B/16 WORKDIR PHOTO ...

WORKDIR holds a trained run; with --shape, a run over a random CLIP of that shape is made in it
first. Two servers, with and without batches, take turns at the same requests of many simultaneous
clients on loopback, and every answer is compared with `predict`. Then one client calls `predict`,
the endpoint and the page in turns. The page opens in the installed Chromium if Playwright is
installed, and has its own clock: `page_ms` is the time from the field's `change` event to the end
of the frame that shows the answer, `page_to_answer_ms` the time to the answer's arrival in it, and
`empty_page_ms` the time from a request for a few letters to the end of the frame that shows them,
which no page can undercut. `page_and_playwright_ms` also has Playwright's own work. Finally, it
times one photo by part, and the endpoint's answers with 1 and with many clients.
"""

import argparse
import asyncio
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import httpx
import jax
import numpy as np
import uvicorn

import fgvpl_jax as fg
from benchmarks.measuring import SHAPES, ratio, report, take_turns
from benchmarks.synthetic_imagenet import write_clip
from fgvpl_jax.data import decode_image, load_shapes
from fgvpl_jax.defaults import TOP_K
from fgvpl_jax.displays.overlay import PANEL, seen_square
from fgvpl_jax.inference.classifier import Classifier
from fgvpl_jax.inference.predictions import Prediction
from fgvpl_jax.inference.programs import padded_batch
from fgvpl_jax.serving import server
from fgvpl_jax.serving.answer_view import answer_html
from fgvpl_jax.serving.service import (
    BATCH_SIZES,
    Limits,
    PhotoResponse,
    RecognisedPhoto,
    Service,
)

TIMEOUT = 600.0
LEAST_SAMPLES = 300  # of a 99th percentile
TOLERANCE = 1e-3  # of a logit: sums round differently at another batch size


def main(
    workdir: Path, photos: Sequence[Path], clients: int, requests: int, rounds: int
) -> dict[str, Any]:
    """Times all and returns medians, ratios and the number of wrong and lost answers."""
    classifier = fg.load_classifier(workdir)
    expected = {photo.name: classifier.predict(photo)[0] for photo in photos}
    tally = {"answers": 0, "wrong": 0, "lost": 0}
    with serving(workdir, "batched") as batched, serving(workdir, "unbatched") as unbatched:

        def ask_all(address: str) -> Callable[[], None]:
            return lambda: asyncio.run(crowd(address, photos, clients, requests, expected, tally))

        seconds = take_turns({"batched": ask_all(batched), "unbatched": ask_all(unbatched)}, rounds)
        result: dict[str, Any] = {"backbone_pixels": classifier.clip.image_size, "clients": clients}
        count = clients * requests
        result |= {
            f"{name}_requests_per_second": count / statistics.median(values)
            for name, values in seconds.items()
        }
        result["batched_over_unbatched_requests_per_second"] = ratio(
            seconds, "unbatched", "batched"
        )
        result |= one_after_the_other(classifier, batched, photos, rounds)
        for number in (1, clients):
            waited: list[float] = []
            one_by_one = -(-max(count, LEAST_SAMPLES) // number)
            asyncio.run(crowd(batched, photos, number, one_by_one, expected, tally, waited))
            result |= percentiles(f"endpoint_{number}_clients", waited)
        result |= tally
    turns = max(3 * rounds, -(-LEAST_SAMPLES // len(photos)))
    for part, values in times_of_parts(classifier, photos, turns).items():
        result |= percentiles(part, values)
    return result


def percentiles(name: str, seconds: Sequence[float]) -> dict[str, float]:
    """Returns the median and the 99th percentile in milliseconds, and the number of samples."""
    found = {f"{name}_p{p}_ms": 1e3 * float(np.percentile(seconds, p)) for p in (50, 99)}
    return found | {f"{name}_samples": len(seconds)}


def times_of_parts(
    classifier: Classifier, photos: Sequence[Path], rounds: int
) -> dict[str, list[float]]:
    """Times what the server does for one photo at a time, in seconds by part."""
    service = Service(classifier, Limits(requests_per_minute=10**9), (1,))
    inference = classifier.inference
    times: dict[str, list[float]] = {}

    def timed(part: str, call: Callable[[], Any], *, is_counted: bool) -> Any:
        started = time.perf_counter()
        value = jax.block_until_ready(call())
        if is_counted:
            times.setdefault(part, []).append(time.perf_counter() - started)
        return value

    for turn in range(-1, rounds):  # the first turn warms up
        part = partial(timed, is_counted=turn >= 0)
        for file in photos:
            content, name = file.read_bytes(), file.name
            photo = part("decode", partial(decode_image, content, name))
            crop = part("resize", partial(classifier.crop, photo, name))
            batch = padded_batch([crop], 1)
            features, _ = part("encode", partial(inference.encode, batch))
            found = part("head", partial(inference.recognise, features))
            response = PhotoResponse(classifier.prediction(found, 0, name, TOP_K), None)
            box = classifier.clip.image_processor.seen_box(*photo.size)
            side = min(PANEL, max(photo.size))
            square = part("square", partial(seen_square, photo, box, side))
            answer = RecognisedPhoto(crop, square, response)
            part("picture", partial(answer_html, answer, service, (), ()))
    service.close()
    return times


def one_after_the_other(
    classifier: Classifier, address: str, photos: Sequence[Path], rounds: int
) -> dict[str, Any]:
    """Times `predict`, the endpoint and the page with one photo at a time."""
    turn = iter(range(10**9))

    def next_photo() -> Path:
        return photos[next(turn) % len(photos)]

    with httpx.Client(timeout=TIMEOUT) as client, page_at(address) as page:
        contestants: dict[str, Callable[[], Any]] = {
            "predict": lambda: classifier.predict(next_photo()),
            "endpoint": lambda: client.post(
                f"{address}/api/predict", files={"image": next_photo().read_bytes()}
            ).raise_for_status(),
        }
        if page is not None:
            contestants["page_and_playwright"] = lambda: page.ask(next_photo())
            contestants["empty_page"] = page.show_letters
        seconds = take_turns(contestants, 3 * rounds)
    if page is not None:  # the first value of each comes from the round that warms up
        seconds |= {name: values[1:] for name, values in page.seconds.items()}
    result: dict[str, Any] = {}
    for name, values in seconds.items():
        result[f"{name}_ms"] = 1e3 * statistics.median(values)
        if name != "predict":
            result[f"{name}_over_predict"] = ratio(seconds, name, "predict")
    return result


async def crowd(
    address: str,
    photos: Sequence[Path],
    clients: int,
    requests: int,
    expected: dict[str, Prediction],
    tally: dict[str, int],
    waited: list[float] | None = None,
) -> None:
    """Runs clients that send one request after another; counts wrong and lost answers.

    Appends the seconds of each answer to `waited`.
    """
    port = int(address.rpartition(":")[2])

    async def one(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for turn in range(requests):
            photo = photos[(number + turn * clients) % len(photos)]
            started = time.perf_counter()
            try:
                status, body = await asyncio.wait_for(ask(reader, writer, photo), TIMEOUT)
            except (OSError, EOFError, TimeoutError):
                tally["lost"] += 1
                return
            if waited is not None:
                waited.append(time.perf_counter() - started)
            tally["answers"] += 1
            tally["wrong"] += not is_right(status, body, expected[photo.name])
        writer.close()

    await asyncio.gather(*map(one, range(clients)))


async def ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, photo: Path
) -> tuple[int, bytes]:
    """Sends one request and returns status and body.

    It uses bare streams, because a client library would take as long as the server.
    """
    writer.write(request_for(photo))
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.partition(b"content-length:")[2].partition(b"\r")[0])
    return int(head.split(maxsplit=2)[1]), await reader.readexactly(length)


@cache
def request_for(photo: Path) -> bytes:
    """Returns the bytes of a request whose form holds the photo."""
    request = httpx.Request(
        "POST",
        "http://127.0.0.1/api/predict",
        files={"image": (photo.name, photo.read_bytes())},
    )
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    return f"POST /api/predict HTTP/1.1\r\n{head}\r\n".encode() + request.read()


def is_right(status: int, body: bytes, expected: Prediction) -> bool:
    """Returns whether an answer has the photo, classes and logits that `predict` returns."""
    if status != 200:
        return False
    content = json.loads(body)
    logits = {found["name"]: found["logit"] for found in content["classes"]}
    return content["image"] == Path(expected.name).name and all(
        name in logits and abs(logits[name] - logit) < TOLERANCE
        for name, logit in zip(expected.class_names, expected.logits, strict=True)
    )


@contextmanager
def serving(workdir: Path, kind: str) -> Iterator[str]:
    """Runs a server in a separate process and yields its address."""
    command = [sys.executable, "-m", "benchmarks.serving", "--serve", kind, str(workdir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = process.stdout.readline()
            if not port:
                raise RuntimeError(f"the {kind} server ended")
            yield f"http://127.0.0.1:{int(port)}"
        finally:
            process.terminate()


def serve(kind: str, workdir: Path) -> None:
    """Serves without a limit on requests, and prints the port when it is ready."""
    limits = Limits(requests_per_minute=10**9)
    sizes = BATCH_SIZES if kind == "batched" else (1,)
    service = Service(fg.load_classifier(workdir), limits, sizes)
    app = server.make_app(service, (), server.LOOPBACK_NAMES)
    listener = server.listen("127.0.0.1", 0)
    listener.listen(socket.SOMAXCONN)
    print(listener.getsockname()[1], flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


# Waits in the page, because Playwright's own waiting would draw frames. A message that is posted
# when a frame begins arrives when the frame has been laid out and painted.
CLOCK = """() => {
  const answer = document.querySelector("#answer");
  const isShown = () => [...answer.querySelectorAll("img")].every((image) => image.complete);
  const painted = () => new Promise((resolve) => {
    const channel = new MessageChannel();
    channel.port1.onmessage = () => resolve(performance.now());
    const draw = () => isShown() ? channel.port2.postMessage(0) : requestAnimationFrame(draw);
    requestAnimationFrame(draw);
  });
  const changed = () => new Promise((resolve) => document.addEventListener(
    "change", () => resolve(performance.now()), { capture: true, once: true }));
  const arrived = (name) => new Promise((resolve) => {
    const observer = new MutationObserver(() => {
      if (answer.querySelector("section")?.ariaLabel !== `Answer for ${name}`) return;
      observer.disconnect();
      resolve(performance.now());
    });
    observer.observe(answer, { childList: true, subtree: true });
  });
  const letters = document.body.appendChild(document.createElement("p"));
  window.clock = {
    expect(name) {
      const times = [changed(), arrived(name), arrived(name).then(painted)];
      this.times = Promise.all(times).then(([start, arrival, end]) => ({
        page_to_answer: (arrival - start) / 1000, page: (end - start) / 1000 }));
    },
    async letters() {
      const start = performance.now();
      const response = await fetch("./api/predict");
      letters.textContent = `${(await response.text()).length} ${start}`;
      return { empty_page: (await painted() - start) / 1000 };
    },
  };
}"""


class TimedPage:
    """The page in a browser, with a clock in it.

    Args:
        page: Playwright's page.
    Attributes:
        seconds: Times by the page's clock, one for each call.
    """

    def __init__(self, page: Any):
        self._page = page
        self._field = page.locator("#photo input[type=file]")
        self._field.wait_for(state="attached")
        self.seconds: dict[str, list[float]] = {}
        page.evaluate(CLOCK)

    def ask(self, photo: Path) -> None:
        """Gives the page a photo and waits until its answer is seen."""
        self._page.evaluate("name => clock.expect(name)", photo.name)
        self._field.set_input_files(photo)
        self._keep(self._page.evaluate("clock.times"))

    def show_letters(self) -> None:
        """Requests a few letters and waits until they are seen."""
        self._keep(self._page.evaluate("clock.letters()"))

    def _keep(self, seconds: dict[str, float]) -> None:
        for name, value in seconds.items():
            self.seconds.setdefault(name, []).append(value)


@contextmanager
def page_at(address: str) -> Iterator[TimedPage | None]:
    """Opens the page in a browser; yields None without a browser."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        chromium = None
    if chromium is None:
        yield None
        return
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(address)
        yield TimedPage(page)
        browser.close()


def random_run(shape: str, workdir: Path) -> None:
    """Trains one epoch on drawn scenes, over a random CLIP of a real model's shape."""
    write_clip(workdir / "clip", SHAPES[shape])
    drawn = load_shapes()
    for split, scenes in (("train", drawn.train), ("test", drawn.test)):
        assert scenes is not None
        for label, name in enumerate(drawn.class_names):
            (workdir / "photos" / split / name).mkdir(parents=True, exist_ok=True)
            first = int(np.flatnonzero(scenes.labels == label)[0])
            scenes.image(first).save(workdir / "photos" / split / name / "0.png")
    photos = workdir / "photos"
    fg.fit(
        photos,
        clip=workdir / "clip",
        workdir=workdir / "run",
        method="fg_vpl",
        shots=1,
        epochs=1,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", type=Path)
    parser.add_argument("photos", type=Path, nargs="*")
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", choices=("batched", "unbatched"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.workdir)
    else:
        place = options.workdir
        if options.shape:
            place = options.workdir / "run"
            if not place.exists():
                random_run(options.shape, options.workdir)
        report(main(place, options.photos, options.clients, options.requests, options.rounds))
