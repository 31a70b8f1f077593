"""The whole report, of runs written by hand and of a real run with its pictures."""

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from fgvpl_jax.errors import UserError
from fgvpl_jax.evaluation import SavedPredictions
from fgvpl_jax.reports.example_pictures import most_confident
from fgvpl_jax.reports.report import write_report
from fgvpl_jax.runs.experiment import train_and_evaluate
from fgvpl_jax.runs.workdir import Workdir
from tests.reports.run_folders import write_run

EVIL = "<script>alert('x')</script>"
NAMES = np.array([EVIL, "a | b", '$5 & "6"'])


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.addresses, self.text = [], [], ""
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [v for name, v in attributes if name in ("src", "href")]

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Returns a folder of runs that no test changes."""
    folder = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(0)
    labels = (np.arange(60) % 3).astype(np.int32)
    for benchmark in ("eurosat", "dtd"):
        for method, quality in {"fg_vpl": 0.8, "coop": 0.6}.items():
            for shots in (1, 2):
                for seed in (1, 2):
                    predicted = np.where(rng.random(60) < quality, labels, (labels + 1) % 3)
                    write_run(
                        folder / f"{benchmark}{method}{shots}{seed}",
                        float((predicted == labels).mean()),
                        config={
                            "benchmark": benchmark,
                            "method": method,
                            "shots": shots,
                            "seed": seed,
                            "clip": "my clip v1.5 (old)",  # its dot must not end a file's name
                        },
                        predictions={
                            "labels": labels,
                            "predicted": predicted.astype(np.int32),
                            "class_names": NAMES,
                        },
                    )
    return folder


@pytest.fixture(scope="module")
def report(runs, tmp_path_factory):
    """Returns the folder of the report of all runs."""
    place = tmp_path_factory.mktemp("W")
    lines = write_report(place, [runs])
    assert lines == [f"16 runs; the report is {place / 'report' / 'report.html'}"]
    return place / "report"


def test_the_page_is_self_contained_and_shows_names_as_text(report):
    source = (report / "report.html").read_text()
    page = Page(source)
    assert "script" not in page.tags
    assert EVIL in page.text
    assert "&lt;script&gt;" in source
    assert page.tags.count("img") == 10
    assert all(address.startswith(("data:image/", "#")) for address in page.addresses)
    assert not re.search(r"https?://", re.sub(r"data:[^\"]*", "", source))
    for heading in ("Accuracy", "Points above zero-shot CLIP", "Is the difference real?"):
        assert heading in page.text
    for heading in ("Training time", "Would more photos help?"):
        assert heading in page.text
    assert "No pictures: the model of" in page.text


def test_figures_can_be_read_and_are_the_same_for_the_same_runs(runs, report, tmp_path):
    write_report(tmp_path, [runs])
    stems = {file.stem for file in report.glob("*.png")}
    assert all(stem.endswith("_my clip v1.5 (old)") for stem in stems)
    assert stems == {file.stem for file in report.glob("*.svg")}
    assert {stem.partition("_")[0] for stem in stems} == {
        *("accuracy", "gains", "time", "learning", "confusion", "reliability"),
    }
    for stem in stems:
        with Image.open(report / f"{stem}.png") as image:
            assert min(image.size) > 200
        ET.parse(report / f"{stem}.svg")
    for file in report.iterdir():
        assert file.read_bytes() == (tmp_path / "report" / file.name).read_bytes(), file.name


def test_markdown_links_to_its_pictures_and_keeps_its_columns(report):
    text = (report / "report.md").read_text()
    assert "<script" not in text
    assert "a \\| b" in text
    for address in re.findall(r"\]\((\S+)\)\n", text + "\n"):
        assert (report / unquote(address)).is_file()
    assert text.count("![") == text.count("my%20clip%20v1.5%20%28old%29.svg") == 10
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table


@pytest.mark.slow
def test_a_real_run_has_pictures_while_its_model_and_data_exist(tiny_config, tmp_path):
    place = Workdir(tmp_path / "run")
    results = train_and_evaluate(tiny_config, place)
    write_report(tmp_path / "W", [place.path])
    out = tmp_path / "W" / "report"
    text = (out / "report.md").read_text()
    assert f"{100 * results.test_accuracy:.2f}" in text
    kinds = {file.name.split("_")[-2] for file in out.glob("*.jpg")}
    assert kinds <= {"right", "wrong"}
    assert kinds
    with np.load(place.predictions_file) as saved:
        right = saved["predicted"] == saved["labels"]
    assert right.mean() == pytest.approx(results.test_accuracy)
    place.support_file.unlink()
    write_report(tmp_path / "W2", [place.path])
    assert "No pictures: the model of" in (tmp_path / "W2" / "report" / "report.md").read_text()


def test_runs_of_zero_shot_clip_alone_report_what_is_missing(tmp_path):
    write_run(tmp_path / "runs" / "a", 0.25, config={"method": "zero_shot"})
    with pytest.raises(UserError, match=r"another method"):
        write_report(tmp_path, [tmp_path / "runs"])


def test_the_most_confident_of_each_class_come_first():
    columns = dict.fromkeys(SavedPredictions._fields, np.zeros(6, np.int32))
    columns["labels"] = np.array([0, 0, 1, 2, 2, 3], np.int32)
    columns["confidence"] = np.array([0.5, 0.9, 0.7, 0.95, 0.99, 0.1], np.float32)
    floats = ("confidence_tempered", "zero_shot_confidence")
    columns |= {name: np.zeros(6, np.float32) for name in floats}
    saved = SavedPredictions(**columns)
    assert most_confident(saved, np.ones(6, bool)).tolist() == [4, 1, 2]
    assert most_confident(saved, columns["labels"] == 0).tolist() == [1]
    assert most_confident(saved, np.zeros(6, bool)).tolist() == []


@pytest.mark.parametrize("make", [False, True])
def test_a_folder_without_runs_is_an_error(tmp_path, make):
    place = tmp_path / "W"
    if make:
        place.mkdir()
    with pytest.raises(UserError, match="no finished run" if make else "no folder"):
        write_report(place, [place])
    assert not (place / "report").exists()
