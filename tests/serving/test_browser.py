"""The page in a real Chromium: `make browser`. Skipped where there is none."""

import contextlib
import json
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("playwright.sync_api")
pytest.importorskip("gradio", reason="the extra `serve` is not installed")

ROOT = Path(__file__).parents[2]
SECONDS = 60_000  # a loaded machine is slow; nothing here is timed

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def address(classifier, photos_dir, tmp_path_factory):
    """Address of a server started by the command; the classifier only makes the run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    examples = [photos_dir / "test" / "blue_square" / f"00{i}.png" for i in range(2)]
    log = tmp_path_factory.mktemp("server") / "log"
    with (
        log.open("w") as stream,
        subprocess.Popen(
            [
                *(sys.executable, "run.py", "--mode=serve", f"--workdir={classifier.workdir}"),
                *(f"--port={port}", *map(str, examples)),
            ],
            stdout=stream,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
        ) as server,
    ):
        try:
            while "endpoint:" not in log.read_text():
                assert server.poll() is None, log.read_text()
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/"
        finally:
            server.terminate()
            server.wait()
    assert "Traceback" not in log.read_text()


@pytest.fixture
def open_page(browser, address):
    """Opens the page as a separate user; nothing may be fetched from other addresses."""
    contexts, elsewhere = [], []

    def open_(**settings):
        context = browser.new_context(**settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(SECONDS)
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith((address, "data:", "blob:"))
                else elsewhere.append(request.url)
            ),
        )
        page.goto(address)
        page.wait_for_selector("#photo input[type=file]", state="attached")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert elsewhere == []


@pytest.fixture
def red(photos_dir):
    return photos_dir / "test" / "red_square" / "000.png"


def upload(page, file, box="#photo"):
    page.set_input_files(f"{box} input[type=file]", file)


def answer_for(page, name):
    page.wait_for_selector(f'section[aria-label="Answer for {name}"]')


def names(page):
    return [text.strip() for text in page.locator("#answer .fg-name").all_inner_texts()]


def test_an_uploaded_photo_gets_the_answer_of_predict(open_page, classifier, red):
    page = open_page()
    upload(page, red)
    answer_for(page, red.name)
    (expected,) = classifier.predict(red)
    assert names(page) == list(expected.class_names)
    shown = page.locator("#answer .fg-bars .fg-percent").all_inner_texts()
    assert shown == [f"{100 * p:.1f}%" for p in expected.probabilities]
    row = page.locator(".fg-parts tbody tr").first.locator("td").all_inner_texts()
    *parts, score = map(float, row)
    assert len(parts) == 4
    assert sum(parts) == pytest.approx(score, abs=0.003)
    assert score == pytest.approx(expected.logits[0], abs=6e-4)
    assert page.locator(".fg-similar li").count() == 3


def test_layers_are_switched_by_mouse_and_keyboard(open_page, red):
    page = open_page()
    upload(page, red)
    answer_for(page, red.name)
    attention, mask = page.locator(".fg-layer-attention"), page.locator(".fg-layer-object")
    assert attention.is_visible() and not mask.is_visible()
    page.get_by_label("object mask").check()
    assert mask.is_visible()
    page.get_by_label("attention map").focus()
    page.keyboard.press("Space")
    assert mask.is_visible() and not attention.is_visible()
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert not mask.is_visible()


def test_the_evidence_is_shown_on_request(open_page, classifier, red):
    page = open_page()
    upload(page, red)
    answer_for(page, red.name)
    assert page.locator(".fg-layer-evidence").count() == 0
    page.get_by_role("button", name="Why? Show the evidence").click()
    page.wait_for_selector(".fg-layer-evidence")
    assert page.locator(".fg-layer-evidence").is_visible()
    (expected,) = classifier.predict(red, top_k=1)
    described = page.locator(".fg-layer-evidence").get_attribute("alt")
    assert described.startswith(f"Evidence for {expected.class_names[0]}: strongest")


def test_the_regions_are_shown_on_request(open_page, red):
    page = open_page()
    upload(page, red)
    answer_for(page, red.name)
    assert page.locator(".fg-layer-regions").count() == 0
    page.get_by_role("button", name="Name every region").click()
    page.wait_for_selector(".fg-layer-regions")
    assert page.locator(".fg-layer-regions").is_visible()


def test_pictures_and_fields_have_names_for_users_who_cannot_see_them(open_page, red):
    page = open_page()
    upload(page, red)
    answer_for(page, red.name)
    pictures = page.locator("#answer img").all()
    assert len(pictures) == 6
    assert all(picture.get_attribute("alt") for picture in pictures)
    assert re.match(r"Object mask: \d+% of the picture, ", pictures[2].get_attribute("alt"))
    for role, name in (("tab", "One photo"), ("tab", "Many photos"), ("tab", "New class")):
        assert page.get_by_role(role, name=name).count() == 1
    assert page.get_by_role("region", name="Table of scores").count() == 1


def test_an_example_is_picked(open_page):
    page = open_page()
    page.get_by_role("button", name="000.png").click()
    answer_for(page, "000.png")
    assert len(names(page)) == 3


def test_of_two_examples_picked_at_once_the_last_is_answered(open_page):
    page = open_page()
    for number in (0, 1):
        page.get_by_role("button", name=f"00{number}.png").click()
    answer_for(page, "001.png")
    page.wait_for_timeout(2000)  # no other answer may appear meanwhile
    answer_for(page, "001.png")


def test_a_dropped_photo_is_answered(open_page, red):
    page = open_page()
    page.evaluate(
        """(bytes) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "dropped.png", {type: "image/png"}));
            const target = document.querySelector("#photo input[type=file]");
            target.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true}));
        }""",
        list(red.read_bytes()),
    )
    answer_for(page, "dropped.png")


def test_a_pasted_photo_is_answered(open_page, red):
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    page.evaluate(
        """(bytes) => navigator.clipboard.write([new ClipboardItem(
            {"image/png": new Blob([new Uint8Array(bytes)], {type: "image/png"})})])""",
        list(red.read_bytes()),
    )
    page.get_by_role("button", name="Paste from clipboard").click()
    page.locator("#answer .fg-bars").wait_for()
    assert len(names(page)) == 3


def test_a_photo_is_pasted_by_the_keyboard(open_page, red):
    page = open_page()
    page.evaluate(
        """(bytes) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "image.png", {type: "image/png"}));
            document.body.dispatchEvent(
                new ClipboardEvent("paste", {clipboardData: data, bubbles: true}));
        }""",
        list(red.read_bytes()),
    )
    answer_for(page, "image.png")


def test_the_photo_is_previewed_and_cleared(open_page, red):
    page = open_page()
    upload(page, red)
    answer_for(page, red.name)
    preview = page.get_by_alt_text("The chosen photo")
    preview.wait_for()
    assert preview.evaluate("image => image.naturalWidth") > 0
    assert page.get_by_text(red.name, exact=True).is_visible()
    page.get_by_role("button", name="Clear").click()
    preview.wait_for(state="hidden")
    assert page.locator("#answer").inner_html() == ""
    upload(page, red)  # the same file again
    answer_for(page, red.name)


def test_an_answer_that_was_overtaken_is_not_shown(open_page, red):
    page = open_page()
    held = []
    page.route("**/page/answer", lambda route: held.append(route), times=1)
    upload(page, red)
    page.wait_for_timeout(200)
    page.get_by_role("button", name="001.png").click()
    answer_for(page, "001.png")
    (overtaken,) = held
    with contextlib.suppress(Exception):  # the browser has given up the request
        overtaken.fulfill(body='<section aria-label="Answer for an older photo"></section>')
    page.wait_for_timeout(500)
    answer_for(page, "001.png")
    assert page.locator("#answer").get_attribute("aria-busy") == "false"


def test_a_problem_is_reported_in_our_words(open_page, red):
    page = open_page()
    problem = page.locator("#answer [role=alert]")
    page.get_by_role("button", name="Why? Show the evidence").click()
    page.get_by_text("choose a photo first").wait_for()
    upload(page, {"name": "large.png", "mimeType": "image/png", "buffer": bytes(20_000_001)})
    page.get_by_text("large.png has 20,000,001 bytes, more than 20,000,000").wait_for()
    page.locator("#photo input[type=file]").evaluate(
        """field => field.dispatchEvent(
            new DragEvent("drop", {dataTransfer: new DataTransfer(), bubbles: true}))"""
    )
    page.get_by_text("nothing is fetched from other addresses").wait_for()
    upload(page, red)
    answer_for(page, red.name)
    page.get_by_label("Evidence for").fill("zebra")
    page.get_by_role("button", name="Why? Show the evidence").click()
    page.get_by_text("there is no class").wait_for()
    page.route("**/page/answer", lambda route: route.abort())
    upload(page, red)
    page.get_by_text("no answer: check that the server is running").wait_for()
    assert problem.count() == 1


def test_a_bad_file_is_reported_and_the_next_photo_answered(open_page, red, tmp_path):
    (tmp_path / "note.png").write_text("<script>alert(1)</script>")
    page = open_page()
    upload(page, tmp_path / "note.png")
    problem = page.locator("#answer [role=alert]")
    problem.wait_for()
    assert problem.inner_text().startswith("note.png is not an image")
    page.get_by_role("button", name="Clear").click()
    upload(page, red)
    answer_for(page, red.name)


def test_a_class_is_added_for_one_user_alone(open_page, photos_dir, red):
    mine, theirs = open_page(), open_page()
    for page in (mine, theirs):
        upload(page, red)
        answer_for(page, red.name)
        assert len(names(page)) == 3
    mine.get_by_role("tab", name="New class").click()
    mine.get_by_label("Name of the class").fill("<i>wall</i>")
    folder = photos_dir / "train" / "red_square"
    upload(mine, sorted(folder.glob("*.png"))[:2], "#class-photos")
    mine.get_by_text("001.png").or_(mine.locator("#class-photos .file-preview")).first.wait_for()
    mine.get_by_role("button", name="Add the class").click()
    mine.locator("#added", has_text="<i>wall</i>, 2 photos").wait_for()
    mine.get_by_role("tab", name="One photo").click()
    mine.locator("#answer .fg-name", has_text="<i>wall</i>").wait_for()
    assert len(names(mine)) == 4
    upload_again = photos_dir / "test" / "blue_square" / "001.png"
    theirs.get_by_role("button", name="Clear").click()
    upload(theirs, upload_again)
    answer_for(theirs, upload_again.name)
    assert len(names(theirs)) == 3
    mine.get_by_role("tab", name="New class").click()
    mine.get_by_role("button", name="Remove all").click()
    mine.locator("#added", has_text="No class is added").wait_for()


def test_many_photos_give_a_table_and_a_csv_file(open_page, classifier, photos_dir, tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    photos = sorted((photos_dir / "test" / "green square").glob("*.png"))
    page = open_page()
    page.get_by_role("tab", name="Many photos").click()
    upload(page, [*photos, tmp_path / "empty.png"], "#photos")
    page.get_by_text("empty").first.wait_for()
    page.get_by_role("button", name="Classify them").click()
    page.locator(".fg-many tbody tr").nth(5).wait_for()
    assert "empty.png" in page.locator(".fg-many").inner_text()
    with page.expect_download() as download:
        page.locator("#csv a").first.click()
    lines = Path(download.value.path()).read_text(encoding="utf-8-sig").splitlines()
    assert lines[0].startswith("image,class_1,probability_1,class_2")
    expected = classifier.predict(photos)
    assert [line.split(",")[1] for line in lines[1:6]] == [p.class_names[0] for p in expected]
    assert "empty.png" in lines[6] and "not an image" in lines[6]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_light_and_dark(open_page, red, scheme):
    page = open_page(
        viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True, color_scheme=scheme
    )
    upload(page, red)
    answer_for(page, red.name)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    background, text = page.evaluate(
        """() => [getComputedStyle(document.body).backgroundColor,
                  getComputedStyle(document.querySelector(".fg-name")).color]
                 .map(c => c.match(/[\\d.]+/g).slice(0, 3).map(Number))"""
    )
    assert (sum(background) > sum(text)) == (scheme == "light"), json.dumps([background, text])
    assert abs(sum(background) - sum(text)) > 450
