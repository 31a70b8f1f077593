"""Lists of photos in CSV and JSON lines are read; mistakes are explained."""

import json

import pytest
from PIL import Image

from fgvpl_jax.data import load_manifest
from fgvpl_jax.errors import UserError


@pytest.fixture
def photos(tmp_path):
    for key in ("a 1.png", "deep/ü.png", "c.png", "d.png"):
        (tmp_path / key).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / key)
    return tmp_path


def write_csv(folder, text):
    (folder / "list.csv").write_text(text, encoding="utf-8")
    return str(folder / "list.csv")


def test_csv_without_splits_is_all_for_training(photos):
    file = write_csv(photos, "path,label\na 1.png,red_fox\ndeep/ü.png,owl\n")
    dataset = load_manifest(file)
    assert dataset.class_names == ("owl", "red fox")
    assert dataset.train.keys == ("a 1.png", "deep/ü.png")
    assert dataset.train.labels.tolist() == [1, 0]
    assert dataset.train.image(0).size == (4, 4)
    assert dataset.validation is None
    assert dataset.test is None


def test_json_lines_with_splits(photos):
    rows = [
        {"path": "a 1.png", "label": "x", "split": "train"},
        {"path": "deep/ü.png", "label": "y"},
        {"path": "c.png", "label": "y", "split": "val"},
        {"path": "d.png", "label": "x", "split": "test"},
    ]
    (photos / "list.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    dataset = load_manifest(str(photos / "list.jsonl"))
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (2, 1, 1)
    assert dataset.test.labels.tolist() == [0]


def test_spaces_and_upper_case_suffixes_are_accepted(photos):
    text = "path , label, split\na 1.png,x, train\n\nc.png, y, train\n"
    (photos / "LIST.CSV").write_text(text, encoding="utf-8")
    dataset = load_manifest(str(photos / "LIST.CSV"))
    assert dataset.class_names == ("x", "y")
    assert dataset.train.keys == ("a 1.png", "c.png")


def test_a_class_may_be_spelled_with_spaces_or_underscores(photos):
    text = "path,label\na 1.png,red_fox\nc.png,red fox\nd.png,owl\n"
    assert load_manifest(write_csv(photos, text)).class_names == ("owl", "red fox")


def test_blank_lines_are_counted(photos):
    rows = [json.dumps({"path": "a 1.png", "label": "x"}), "", json.dumps({"path": "c.png"})]
    (photos / "list.jsonl").write_text("\n".join(rows))
    with pytest.raises(UserError, match="line 3 needs"):
        load_manifest(str(photos / "list.jsonl"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "path,label\na 1.png,x\n",
            r"1 class\(es\) for training: use at least two different labels",
        ),
        ("", r"0 class"),
        ("path,label\n\na 1.png,x\n\nc.png,\n", "line 5 needs a path, a label"),
        ("path,label\na 1.png,x\nc.png,\n", "line 3 needs a path, a label"),
        ("file,label\na 1.png,x\n", "line 2 needs a path"),
        ("path,label,split\na 1.png,x,later\n", "line 2 needs"),
        ("path,label\na 1.png,x\n../c.png,y\n", r"line 3 names '\.\./c\.png', which leaves"),
        ("path,label\na 1.png,x\ngone.png,y\n", r"1 images.*gone\.png"),
        (
            "path,label,split\na 1.png,x,train\nc.png,y,train\nc.png,y,test\n",
            "in train and in test",
        ),
        ("path,label\na 1.png,x\nc.png,y\nc.png,x\n", "line 4: 'c.png' occurs twice"),
        (
            "path,label\na 1.png,Cat\nc.png,cat\n",
            "line 3 has the classes 'Cat' and 'cat', which are one name",
        ),
        ("path,label,split\na 1.png,x,train\nc.png,y,train\nd.png,z,test\n", r"lacks: \['z'\]"),
    ],
)
def test_lists_that_make_no_sense_are_explained(photos, text, message):
    with pytest.raises(UserError, match=message):
        load_manifest(write_csv(photos, text))


def test_other_files_are_refused(photos):
    with pytest.raises(UserError, match=r"must end in \.csv or \.jsonl"):
        load_manifest(str(photos / "c.png"))
    (photos / "bad.jsonl").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        load_manifest(str(photos / "bad.jsonl"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na 1.png,x\n" + "x" * 300 + "/c.png,y\n", "1 images .* are not in"),
        ("path,label\na 1.png,x\nc.png,\x1b[31mred\n", "control characters"),
    ],
)
def test_names_that_harm_a_file_system_or_a_terminal_are_refused(photos, text, message):
    with pytest.raises(UserError, match=message):
        load_manifest(write_csv(photos, text))


def test_deeply_nested_lines_are_refused(photos):
    (photos / "list.jsonl").write_text("[" * 100_000)
    with pytest.raises(UserError, match="nested too deeply"):
        load_manifest(str(photos / "list.jsonl"))
