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
        ("", "begins with the line ''.*must name the columns"),
        ("path,label\n", r"0 class"),
        ("path,label\n\na 1.png,x\n\nc.png,\n", "line 5 needs a path, a label"),
        ("path,label\na 1.png,x\nc.png,\n", "line 3 needs a path, a label"),
        ("file,label\na 1.png,x\n", "begins with the line 'file,label'"),
        ("a 1.png,x\nc.png,y\n", "begins with the line 'a 1.png,x'"),
        ("path,label,label\na 1.png,x,y\n", "two columns 'label': remove one"),
        ("path,label,split\na 1.png,x,later\n", "line 2 needs"),
        ("path,label\na 1.png,x\n../c.png,y\n", r"line 3 names '\.\./c\.png', which leaves"),
        (
            "path,label\na 1.png,x\ngone.png,y\n",
            r"1 of the 2 images.*'gone\.png' \(the folder",
        ),
        (
            "path,label,split\na 1.png,x,train\nc.png,y,train\nc.png,y,test\n",
            "in train and in test",
        ),
        ("path,label\na 1.png,x\nc.png,y\nc.png,x\n", "line 4: 'c.png' occurs twice"),
        (
            "path,label\na 1.png,Cat\nc.png,cat\n",
            "line 3 has the classes 'Cat' and 'cat', which are one name",
        ),
        ("path,label\na 1.png,1\nc.png,1.0\nd.png,2\n", "line 3 has the classes '1' and '1.0'"),
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
        ("path,label\na 1.png,x\n" + "x" * 300 + "/c.png,y\n", "1 of the 2 images .* are not in"),
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


def test_an_unquoted_comma_is_refused_rather_than_merging_two_classes(photos):
    text = "path,label\na 1.png,spaniel, long-haired\nc.png,spaniel, short-haired\n"
    with pytest.raises(UserError, match=r"line 2 has more fields.*'long-haired'.*quotation marks"):
        load_manifest(write_csv(photos, text))
    quoted = 'path,label\na 1.png,"spaniel, long-haired"\nc.png,"spaniel, short-haired",\n'
    assert load_manifest(write_csv(photos, quoted)).class_names == (
        "spaniel, long-haired",
        "spaniel, short-haired",
    )


def test_a_missing_quotation_mark_is_refused_rather_than_swallowing_lines(photos):
    text = 'path,label\na 1.png,"x\nc.png,y\nd.png,z"\ndeep/ü.png,y\n'
    with pytest.raises(UserError, match=r"line 4: the label .* contains a line break"):
        load_manifest(write_csv(photos, text))


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_the_usual_separators_are_read(photos, separator, start):
    rows = ["path label", "c.png x", "d.png y"]
    text = start + "\r\n".join(row.replace(" ", separator) for row in rows)
    assert load_manifest(write_csv(photos, text)).train.keys == ("c.png", "d.png")


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("NaN", "the label is nan: it must be a text"),
        ("null", "needs a path, a label"),
        ("1.0", r"the label is 1\.0: it must be a text"),
        ("true", "the label is True: it must be a text"),
        ('["x", "z"]', r"the label is \['x', 'z'\]: it must be a text"),
        ('{"id": 3}', r"the label is \{'id': 3\}: it must be a text"),
        ('" "', "needs a path, a label"),
        ('"nan"', "the label is 'nan', which is no class name"),
        ('"None"', "which is no class name"),
        ('"NA"', "which is no class name"),
        ('"N/A"', "which is no class name"),
        ('"#REF!"', "which is no class name"),
        ("\"['x']\"", "which is no class name"),
    ],
)
def test_labels_that_are_no_names_are_refused(photos, label, message):
    rows = [json.dumps({"path": "c.png", "label": "x"}), f'{{"path": "d.png", "label": {label}}}']
    (photos / "list.jsonl").write_text("\n".join(rows))
    with pytest.raises(UserError, match=f"line 2.*{message}"):
        load_manifest(str(photos / "list.jsonl"))


@pytest.mark.parametrize("split", ["NaN", "0", "false", "[]"])
def test_splits_that_are_no_names_are_refused(photos, split):
    row = f'{{"path": "d.png", "label": "x", "split": {split}}}'
    (photos / "list.jsonl").write_text(row)
    with pytest.raises(UserError, match="line 1: the split is"):
        load_manifest(str(photos / "list.jsonl"))


def test_numbers_as_labels_and_usual_names_of_splits_are_read(photos):
    rows = [
        {"path": "c.png", "label": 3, "split": "Training"},
        {"path": "d.png", "label": 4, "split": None},
        {"path": "a 1.png", "label": 4, "split": "dev"},
    ]
    (photos / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset = load_manifest(str(photos / "list.jsonl"))
    assert dataset.class_names == ("3", "4")
    assert dataset.validation.keys == ("a 1.png",)


@pytest.mark.parametrize(
    ("written", "there"),
    [
        ("deep\\x.png", "deep/x.png"),
        (" deep/x.png ", "deep/x.png"),
        ("deep/Gru\u0308n.png", "deep/Gr\u00fcn.png"),
        ("deep/Gr\u00fcn.png", "deep/Gru\u0308n.png"),
        ("Gr\u00fcn/x.png", "Gru\u0308n/x.png"),
    ],
)
def test_a_path_may_be_spelled_as_another_system_spells_it(photos, written, there):
    (photos / there).parent.mkdir(exist_ok=True)
    (photos / "c.png").rename(photos / there)
    text = f'path,label\n"{written}",x\nd.png,y\n'
    assert load_manifest(write_csv(photos, text)).train.keys == (there, "d.png")


def test_two_spellings_of_one_file_are_one_photo(photos):
    text = "path,label\ndeep/ü.png,x\ndeep\\ü.png,y\nd.png,y\n"
    with pytest.raises(UserError, match=r"line 3.*occurs twice"):
        load_manifest(write_csv(photos, text))


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("C.PNG", r"the folder has 'c\.png', with other capital letters"),
        ("Deep/ü.png", "the folder has 'deep/ü.png', with other capital letters"),
        ("c.jpg", r"the folder has 'c\.png', with another ending"),
        ("deep", "a folder"),
        ("link.png", "a link to /nowhere, which does not exist"),
        ("..\\c.png", "which leaves the folder"),
    ],
)
def test_how_a_missing_photo_differs_is_explained(photos, written, message):
    (photos / "link.png").symlink_to("/nowhere")
    with pytest.raises(UserError, match=message):
        load_manifest(write_csv(photos, f"path,label\n{written},x\nd.png,y\n"))


def test_two_files_that_fit_are_not_guessed_between(photos):
    for name in (" e.png", "e.png "):
        (photos / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"1 of the 2 images.*'e\.png'"):
        load_manifest(write_csv(photos, "path,label\ne.png,x\nd.png,y\n"))


def test_other_encodings_are_named(photos):
    (photos / "list.csv").write_bytes("path,label\nc.png,Grün\nd.png,y\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"not UTF-8.*save it as UTF-8"):
        load_manifest(str(photos / "list.csv"))
    (photos / "list.csv").write_text("path,label\nc.png,x\n", encoding="utf-16")
    with pytest.raises(UserError, match=r"not UTF-8.*save it as UTF-8"):
        load_manifest(str(photos / "list.csv"))


def test_invisible_characters_do_not_make_another_class(photos):
    text = "path,label\na 1.png,red\u200b fox\nc.png,red fox\nd.png,\ufeffowl\u00ad\n"
    dataset = load_manifest(write_csv(photos, text))
    assert dataset.class_names == ("owl", "red fox")
    assert dataset.train.labels.tolist() == [1, 1, 0]
