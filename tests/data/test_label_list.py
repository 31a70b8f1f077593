"""Lists with several labels a photo are read; mistakes are explained."""

import json

import pytest
from PIL import Image

from fgvpl_jax.data import load_manifest
from fgvpl_jax.data.label_list import load_label_list
from fgvpl_jax.data.manifest import has_several_labels
from fgvpl_jax.errors import UserError


@pytest.fixture
def photos(tmp_path):
    for key in ("a.png", "b.png", "c.png", "d.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / key)
    return tmp_path


def write_csv(folder, text):
    (folder / "list.csv").write_text(text, encoding="utf-8")
    return str(folder / "list.csv")


def test_labels_are_separated_by_a_bar_and_may_be_missing(photos):
    text = (
        "path,labels,split\na.png,red_fox| owl,\nb.png,,train\nc.png,owl|owl|,val\nd.png,owl,test\n"
    )
    dataset = load_label_list(write_csv(photos, text))
    assert dataset.class_names == ("owl", "red fox")
    assert dataset.train.photos.keys == ("a.png", "b.png", "c.png")
    assert dataset.train.truth.tolist() == [[True, True], [False, False], [True, False]]
    assert dataset.test.truth.tolist() == [[True, False]]
    assert dataset.split_protocol.endswith("validation photos join those for training")


def test_json_lines_may_list_the_labels(photos):
    rows = [
        {"path": "a.png", "labels": ["red fox", "owl"]},
        {"path": "b.png", "labels": "owl"},
        {"path": "c.png", "labels": []},
    ]
    (photos / "list.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    dataset = load_label_list(str(photos / "list.jsonl"))
    assert dataset.train.truth.tolist() == [[True, True], [True, False], [False, False]]
    assert dataset.test is None


@pytest.mark.parametrize(
    ("name", "text", "several"),
    [
        ("list.csv", "path;labels\n", True),
        ("list.csv", "\ufeffPath,Labels\n", True),
        ("list.csv", "path,label,labels\n", False),  # another column, which always was ignored
        ("list.csv", "path,label\n", False),
        ("list.csv", "", False),
        ("list.jsonl", '\n{"path": "a", "labels": []}\n', True),
        ("list.jsonl", '{"path": "a", "label": "x"}\n', False),
        ("list.jsonl", "{\n", False),
    ],
)
def test_the_column_says_whether_there_are_several_labels(tmp_path, name, text, several):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert has_several_labels(tmp_path / name) == several
    assert not has_several_labels(tmp_path / "missing.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na.png,x\n", "has no column labels"),
        ("path,label,labels\na.png,x,y\n", "the columns label and labels: remove one"),
        ("", "its first line must name the columns path, labels"),
        ("path,labels\na.png\n", "line 2 needs a path, labels"),
        ("path,labels\na.png,x\na.png,y\n", r"line 3: 'a.png' occurs twice: .*one line.*fox\|owl"),
        ("path,labels\na.png,\nb.png,\n", "no photo with a label for training"),
        ("path,labels,split\na.png,x,\nb.png,y,test\n", r"test has classes .*: \['y'\]"),
        ("path,labels\na.png,Cat|cat\n", "which are one name"),
        ("path,labels\na.png,x|nan\n", "no class name"),
        ("path,labels\na.png,\"['x', 'y']\"\n", "no class name"),
        ("path,labels\na.png,x,y\n", "more fields than the first line"),
        ("path,labels,split\na.png,x,later\n", "line 2 needs"),
        ("path,labels\ngone.png,x\n", "1 of the 1 images"),
    ],
)
def test_lists_that_make_no_sense_are_explained(photos, text, message):
    with pytest.raises(UserError, match=message):
        load_label_list(write_csv(photos, text))


def test_a_list_that_is_not_utf_8_is_not_said_to_lack_the_column(photos):
    (photos / "list.csv").write_text("path,labels\na.png,x\n", encoding="utf-16")
    with pytest.raises(UserError, match="because it is not UTF-8"):
        load_label_list(str(photos / "list.csv"))


def test_other_files_and_labels_of_other_types_are_refused(photos):
    with pytest.raises(UserError, match=r"must end in \.csv or \.jsonl"):
        load_label_list(str(photos))
    for labels, message in ((3, "must be a text"), ([["x"]], "must be a text"), (None, "needs")):
        (photos / "list.jsonl").write_text(json.dumps({"path": "a.png", "labels": labels}))
        with pytest.raises(UserError, match=message):
            load_label_list(str(photos / "list.jsonl"))


def test_readers_of_one_label_point_to_those_of_several(photos):
    with pytest.raises(UserError, match="several labels a photo: only training"):
        load_manifest(write_csv(photos, "path,labels\na.png,x|y\nb.png,y\n"))
    with pytest.raises(UserError, match=r"occurs twice.*#several-labels-a-photo"):
        load_manifest(write_csv(photos, "path,label\na.png,x\na.png,y\n"))
