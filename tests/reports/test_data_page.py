"""The page of photos to look at."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fgvpl_jax.data import Split
from fgvpl_jax.reports.data_page import MOST_SHOWN, look_sections, write_data_page
from fgvpl_jax.runs.data_look import DataLook, Suspect


@pytest.fixture
def look(tmp_path):
    """Made-up findings in 70 photos, the last of which is gone."""
    keys = tuple(f"<b>/{i:02}.png" for i in range(70))
    (tmp_path / "<b>").mkdir()
    for key in keys[:-1]:
        Image.new("RGB", (8, 8), "red").save(tmp_path / key)
    split = Split(Path(tmp_path), keys, np.zeros(70, np.int32))
    suspects = [Suspect(key, 0, i, "cat", f"reason {i}") for i, key in enumerate(keys)]
    return DataLook((split,), 0.75, suspects, [suspects[-2:]], [], [("cat", "dog", 3)])


def test_the_page_shows_the_first_photos_and_the_file_all(look, tmp_path):
    html = write_data_page(look, tmp_path / "data").read_text()
    assert "75.0% of the photos" in html
    assert "reason 59" in html
    assert "reason 60" not in html
    assert f"the first {MOST_SHOWN} of 70" in html
    assert "<b>/" not in html  # names are escaped
    assert "No photos were found." in html  # outliers
    assert "dog" in html
    with open(tmp_path / "data" / "mislabelled.csv", encoding="utf-8") as file:
        assert [row["reason"] for row in csv.DictReader(file)] == [f"reason {i}" for i in range(70)]
    with open(tmp_path / "data" / "outliers.csv", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == []
    with Image.open(tmp_path / "data" / "copies.jpg") as sheet:
        red, white = (sheet.getpixel((left, 40)) for left in (40, 420))
    assert red[0] > 200 > red[1]
    assert min(white) > 200  # the photo that is gone


def test_a_report_names_the_page(tmp_path):
    (tmp_path / "check").mkdir()
    content = {"mislabelled": [{}], "copies": [], "outliers": [{}, {}]}
    (tmp_path / "check" / "data_look.json").write_text(json.dumps(content))
    (section,) = look_sections([tmp_path, tmp_path / "check"])
    (line,) = section.lines
    assert line.startswith("1 photos are probably mislabelled, 0 groups of copies are in several")
    assert line.endswith(str(tmp_path / "check" / "data" / "report.html"))
    assert look_sections([tmp_path / "nothing"]) == []
