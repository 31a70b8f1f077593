"""Each entry of a folder is a photo by its content, or is skipped for a reason that is named."""

import os
import sys

import pytest
from PIL import Image

from fgvpl_jax.data import UnreadableImage, load_folder, photos_at
from fgvpl_jax.data.entries import Entries, Reason, reason_to_skip_file
from fgvpl_jax.data.images import FORMATS
from fgvpl_jax.errors import UserError


def save(path, file_format="PNG", size=(8, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 30, 40)).save(path, file_format)


@pytest.fixture
def root(tmp_path):
    for name in ("a", "b"):
        save(tmp_path / name / "1.png")
    return tmp_path


@pytest.mark.parametrize(
    "name", ["0.jpg?w=640", "b.jpg.1", "none", "x.mpo", "y.cr3", "z.JPG_large"]
)
@pytest.mark.parametrize("file_format", sorted(FORMATS | {"MPO"}))
def test_the_content_makes_a_photo_whatever_the_name(root, name, file_format):
    if file_format == "TIFF" and name.endswith("cr3"):
        return  # raw photos are TIFF files too
    save(root / "a" / name, file_format)
    dataset = load_folder(str(root))
    assert f"a/{name}" in dataset.train.keys
    assert dataset.train.image(dataset.train.keys.index(f"a/{name}")).size == (8, 6)
    assert dataset.skipped == {}


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("phone.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", Reason.FOREIGN),
        ("phone", b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", Reason.FOREIGN),
        ("raw.nef", b"MM\0*" + bytes(20), Reason.FOREIGN),
        ("raw.cr3", b"\0\0\0\x18ftypcrx \0\0\0\0crx isom", Reason.FOREIGN),
        ("picture.tga", bytes(40), Reason.FOREIGN),
        ("drawing.svg", b"<svg xmlns=''/>", Reason.FOREIGN),
        ("layers", b"8BPS\0\1", Reason.FOREIGN),
        ("large", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", Reason.POINTER),
        ("x.jpg.dvc", b"outs:\n- md5: 0\n  path: x.jpg\n", Reason.POINTER),
        (".1.jpg.icloud", b"bplist00", Reason.POINTER),
        ("more.zip", b"PK\3\4", Reason.ARCHIVE),
        ("2.jpg.part", b"\xff\xd8\xff\xe0", Reason.UNFINISHED),
        ("3.jpg.crdownload", b"\xff\xd8\xff\xe0", Reason.UNFINISHED),
        ("film.mp4", b"\0\0\0\x18ftypmp42\0\0\0\0isommp42", Reason.OTHER),
        ("notes.txt", b"BM is how a text may begin, too", Reason.OTHER),
        ("boxes.xml", b"<?xml version='1.0'?><annotation/>", Reason.OTHER),
        ("empty", b"", Reason.OTHER),
        ("._1.png", b"\0\5\x16\7" + bytes(30), Reason.SYSTEM),
        ("Thumbs.db", b"\xd0\xcf\x11\xe0", Reason.SYSTEM),
        ("desktop.ini", b"[x]", Reason.SYSTEM),
        (".hidden.png", b"\x89PNG\r\n\x1a\n", Reason.HIDDEN),
        ("SYNOPHOTO_THUMB_M.jpg", b"\xff\xd8\xff\xe0", Reason.THUMBNAIL),
        ("1_thumb.jpg", b"\xff\xd8\xff\xe0", Reason.THUMBNAIL),
        ("thumb_1.png", b"\xff\xd8\xff\xe0", Reason.THUMBNAIL),
    ],
)
def test_other_files_are_skipped_for_a_reason(root, name, content, reason):
    (root / "a" / name).write_bytes(content)
    dataset = load_folder(str(root))
    assert dataset.train.keys == ("a/1.png", "b/1.png")
    assert dataset.skipped == {reason: (f"a/{name}",)}


def test_a_name_like_that_of_a_thumbnail_is_read_if_there_is_no_original(root):
    save(root / "a" / "green_thumb.png")
    assert "a/green_thumb.png" in load_folder(str(root)).train.keys


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        *((name, Reason.THUMBNAIL) for name in ("@eaDir", ".thumbnails", "Thumbs", "_thumb")),
        *((name, Reason.SYSTEM) for name in ("__MACOSX", "#recycle", "$RECYCLE.BIN", "lost+found")),
        (".git", Reason.HIDDEN),
    ],
)
@pytest.mark.parametrize("place", ["", "a/"])
def test_folders_of_programs_are_neither_classes_nor_photos(root, place, name, reason):
    save(root / place / name / "1.png")
    save(root / place / name / "deep" / "1.png")
    dataset = load_folder(str(root))
    assert dataset.class_names == ("a", "b")
    assert dataset.train.keys == ("a/1.png", "b/1.png")
    assert dataset.skipped == {reason: (f"{place}{name}/",)}


def test_names_that_begin_with_underscores_are_read(root):
    save(root / "__background__" / "__x.png")
    dataset = load_folder(str(root))
    assert dataset.class_names == ("background", "a", "b")
    assert dataset.train.keys[0] == "__background__/__x.png"


def test_a_class_may_be_called_thumb(root):
    save(root / "thumb" / "1.png")
    assert load_folder(str(root)).class_names == ("a", "b", "thumb")


def test_a_photo_that_links_nowhere_counts_as_unreadable(root):
    (root / "a" / "2.jpg").symlink_to("/nowhere/2.jpg")
    dataset = load_folder(str(root))
    assert dataset.train.keys == ("a/1.png", "a/2.jpg", "b/1.png")
    with pytest.raises(UnreadableImage, match=r"a link to /nowhere/2\.jpg, which does not exist"):
        dataset.train.image(1)
    (root / "a" / "data").symlink_to("/nowhere/data")
    assert load_folder(str(root)).skipped == {Reason.BROKEN_LINK: ("a/data",)}
    assert Reason.BROKEN_LINK.is_problem


@pytest.mark.parametrize("place", ["", "train/"])
def test_a_class_that_links_nowhere_is_refused(tmp_path, place):
    for name in ("a", "b"):
        save(tmp_path / place / name / "1.png")
    (tmp_path / place / "c").symlink_to("/nowhere/c")
    with pytest.raises(UserError, match="c is a link to /nowhere/c, which does not exist: mount"):
        load_folder(str(tmp_path))


def test_pipes_and_files_that_cannot_be_opened_are_named(root, monkeypatch):
    os.mkfifo(root / "a" / "pipe")
    (root / "a" / "closed").write_bytes(b"x")
    original = type(root).open

    def refusing(path, *arguments, **options):
        if path.name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return original(path, *arguments, **options)

    monkeypatch.setattr(type(root), "open", refusing)
    skipped = load_folder(str(root)).skipped
    assert skipped == {Reason.UNOPENED: ("a/closed",), Reason.SPECIAL: ("a/pipe",)}


@pytest.mark.parametrize("closed", ["", "a", "a/deep"])
def test_a_folder_that_cannot_be_listed_is_refused(root, monkeypatch, closed):
    save(root / "a" / "deep" / "1.png")
    original = os.scandir

    def refusing(place="."):
        if os.fspath(place) == str(root / closed):
            raise PermissionError(13, "Permission denied", str(place))
        return original(place)

    def refusing_list(place="."):
        return [entry.name for entry in refusing(place)]

    monkeypatch.setattr(os, "scandir", refusing)
    monkeypatch.setattr(os, "listdir", refusing_list)
    with pytest.raises(UserError, match=r"cannot be listed \(Permission denied\)"):
        load_folder(str(root))


def test_links_to_folders_that_are_read_already_are_named(root):
    (root / "a" / "loop").symlink_to(root / "a")
    assert load_folder(str(root)).skipped == {Reason.VISITED: ("a/loop/",)}


def test_a_link_to_the_folder_of_all_classes_brings_no_photos_of_other_classes(root):
    (root / "a" / "deep").mkdir()
    (root / "a" / "up").symlink_to("..")
    (root / "a" / "deep" / "up").symlink_to(root)
    dataset = load_folder(str(root))
    assert dataset.train.keys == ("a/1.png", "b/1.png")
    assert dataset.skipped == {Reason.VISITED: ("a/deep/up/", "a/up/")}


def test_a_class_that_is_a_link_may_hold_a_link_upwards(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    save(elsewhere / "photos" / "2.png")
    save(elsewhere / "3.png")
    (elsewhere / "photos" / "up").symlink_to("..")
    (root / "c").symlink_to(elsewhere / "photos")
    assert load_folder(str(root)).train.keys == ("a/1.png", "b/1.png", "c/2.png")


def test_photos_of_a_folder_to_predict_are_chosen_alike(root, caplog):
    save(root / "a" / "no ending", "JPEG")
    save(root / "a" / "@eaDir" / "1.png")
    assert [path.name for path in photos_at(root / "a")] == ["1.png", "no ending"]
    assert "1 thumbnails that a program made: @eaDir/" in caplog.text
    (root / "c").mkdir()
    with pytest.raises(UserError, match=r"c holds no image \(it is empty\)"):
        photos_at(root / "c")
    (root / "c" / "x.heic").write_bytes(b"x")
    with pytest.raises(UserError, match=r"c holds no image \(1 pictures in formats.*x\.heic"):
        photos_at(root / "c")


def test_what_every_folder_holds_is_no_news(root, caplog):
    for name in (".DS_Store", "._1.png", "desktop.ini"):
        (root / "a" / name).write_bytes(b"")
    assert len(load_folder(str(root)).skipped[Reason.SYSTEM]) == 3
    assert len(photos_at(root / "a")) == 1
    assert caplog.text == ""


@pytest.mark.parametrize("encoding", ["iso8859-1", "ascii"])
def test_names_that_the_locale_misreads_are_refused(root, monkeypatch, encoding):
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: encoding)
    assert load_folder(str(root)).class_names == ("a", "b")
    save(root / "b" / "Möwe.png")
    with pytest.raises(
        UserError, match=f"'b/Möwe.png'.*read names as {encoding}: set .*PYTHONUTF8"
    ):
        load_folder(str(root))
    save(root / "Grün" / "1.png")
    with pytest.raises(UserError, match=f"'Grün'.*read names as {encoding}: set .*PYTHONUTF8=1"):
        load_folder(str(root))


@pytest.mark.parametrize("twin", ["a\u200b", "\u00ada", "a\ufe0f", "a\u3164", "a\u200d", "\u2060a"])
def test_classes_that_differ_by_invisible_characters_are_refused(root, twin):
    save(root / twin / "1.png")
    with pytest.raises(UserError, match="which are one name in a sentence"):
        load_folder(str(root))


def test_invisible_characters_do_not_reach_clip(tmp_path):
    for name in ("grey\u200b heron\u00ad", "b"):
        save(tmp_path / name / "1.png")
    assert load_folder(str(tmp_path)).class_names == ("b", "grey heron")
    save(tmp_path / "\u200b\u3164" / "1.png")
    with pytest.raises(UserError, match="give it a name of at least one letter"):
        load_folder(str(tmp_path))


def test_a_damaged_photo_stays_a_photo(root):
    (root / "a" / "2.jpg").write_bytes(b"")
    assert reason_to_skip_file(root / "a" / "2.jpg") is None
    entries = Entries(root)
    assert [path.name for path in entries.photos(root / "a")] == ["1.png", "2.jpg"]
    assert entries.skipped == {}
