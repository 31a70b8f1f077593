"""Preparing by TFDS: what is missing is said at once; the own builder of FGVC-Aircraft."""

import tarfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from threading import Thread
from unittest import mock
from urllib.error import HTTPError, URLError

import numpy as np
import pytest

from fgvpl_jax.data import benchmark_named, decode_image, load_tfds, tfds_prepare
from fgvpl_jax.data.tfds_prepare import main, prepare_tfds
from fgvpl_jax.errors import UserError
from tests.data.tfds_builders import jpeg

AIRCRAFT = benchmark_named("fgvc_aircraft")


def write_archive(file, lists=("train", "val", "test")):
    """The official layout: data/images and data/images_variant_*.txt; two photos a variant."""
    photos = {}
    with tarfile.open(file, "w:gz") as archive:

        def add(name, data):
            member = tarfile.TarInfo(f"fgvc-aircraft-2013b/data/{name}")
            member.size = len(data)
            archive.addfile(member, BytesIO(data))

        for part, split in enumerate(lists):
            lines = []
            for label, variant in enumerate(AIRCRAFT.class_names):
                name = f"{part}{label:06}"
                photos[f"{name}.jpg"] = jpeg(len(photos), size=(16, 30))
                add(f"images/{name}.jpg", photos[f"{name}.jpg"])
                lines.append(f"{name} {variant}\n")
            add(f"images_variant_{split}.txt", "".join(lines).encode())
        add("images/9999999.jpg", jpeg(0))
        add("families.txt", b"Boeing 707\n")
    return photos


@pytest.fixture
def archive(tmp_path):
    import tensorflow_datasets as tfds

    file = tmp_path / "fgvc-aircraft-2013b.tar.gz"
    photos = write_archive(file)
    manager = tfds.download.DownloadManager
    with (
        mock.patch.object(manager, "download", lambda self, url: file),
        mock.patch.object(tfds_prepare, "_check_reachable"),
    ):
        yield file, photos, tmp_path / "data"


def test_aircraft_is_prepared_without_its_banner(archive, capsys):
    _, photos, data = archive
    assert main(["fgvc_aircraft", str(data)]) == 0
    assert "prepared:" in capsys.readouterr().out
    dataset = load_tfds(str(data), "", AIRCRAFT)
    assert dataset.split_protocol == "the benchmark's own lists"
    for part, split in enumerate((dataset.train, dataset.validation, dataset.test)):
        assert sorted(split.labels.tolist()) == list(range(100))
        for i in range(0, 100, 9):
            key = split.keys[i]
            assert key == f"{part}{split.labels[i]:06}.jpg"
            whole = np.asarray(decode_image(photos[key]))
            np.testing.assert_array_equal(np.asarray(split.image(i)), whole[:-20])


def test_aircraft_is_downloaded_without_tensorflow(tmp_path, monkeypatch):
    from fgvpl_jax.data import fgvc_aircraft

    site = tmp_path / "site"
    site.mkdir()
    write_archive(site / "fgvc-aircraft-2013b.tar.gz")
    handler = partial(SimpleHTTPRequestHandler, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/fgvc-aircraft-2013b.tar.gz"
        monkeypatch.setattr(fgvc_aircraft, "ARCHIVE", url)
        prepare_tfds("fgvc_aircraft", str(tmp_path / "data"))
        server.shutdown()
    assert len(load_tfds(str(tmp_path / "data"), "", AIRCRAFT).test) == 100


def test_a_prepared_benchmark_is_left_alone(archive):
    _, _, data = archive
    place = prepare_tfds("fgvc_aircraft", str(data))
    before = {file: file.stat().st_mtime_ns for file in place.iterdir()}
    assert prepare_tfds("fgvc_aircraft", str(data)) == place
    assert {file: file.stat().st_mtime_ns for file in place.iterdir()} == before


def test_another_archive_is_refused_and_nothing_left(archive):
    file, _, data = archive
    write_archive(file, lists=("train", "val"))
    with pytest.raises(UserError, match=r"could not prepare.*lacks \['images_variant_test\.txt'\]"):
        prepare_tfds("fgvc_aircraft", str(data))
    with pytest.raises(UserError, match=r"tfds_prepare fgvc_aircraft"):
        load_tfds(str(data), "", AIRCRAFT)


def test_tensorflow_is_asked_for_before_anything_is_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds_prepare, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"TensorFlow to prepare food101.*\.\[tensorflow\]"):
        prepare_tfds("food101", str(tmp_path / "data"))
    assert not (tmp_path / "data").exists()


def test_no_network_is_told_before_tfds_tries_for_minutes(tmp_path, monkeypatch):
    def urlopen(request, timeout):
        raise URLError("Name or service not known")

    monkeypatch.setattr(tfds_prepare, "urlopen", urlopen)
    message = r"robots\.ox\.ac\.uk cannot be reached.*Name or service not known"
    with pytest.raises(UserError, match=message):
        prepare_tfds("fgvc_aircraft", str(tmp_path))


def test_a_server_that_refuses_to_tell_is_reachable(tmp_path, monkeypatch):
    def urlopen(request, timeout):
        raise HTTPError(request.full_url, 405, "Method Not Allowed", {}, None)

    monkeypatch.setattr(tfds_prepare, "urlopen", urlopen)
    tfds_prepare._check_reachable("https://example.org/a.tar", tmp_path)


def test_what_is_downloaded_needs_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds_prepare, "urlopen", lambda *a, **k: pytest.fail("asked"))
    (tmp_path / "a.tar.INFO").write_text('{"urls": ["https://example.org/a.tar"]}')
    tfds_prepare._check_reachable("https://example.org/a.tar", tmp_path)


def test_mistakes_on_the_command_line(tmp_path, capsys):
    assert main(["food101"]) == 2
    assert "usage" in capsys.readouterr().err
    assert main(["ucf101", str(tmp_path)]) == 2
    assert "TFDS has no photos of ucf101" in capsys.readouterr().err
    assert main(["mnist", str(tmp_path)]) == 2
    assert "benchmark is 'mnist'" in capsys.readouterr().err
