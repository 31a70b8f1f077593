"""Preparing with TFDS: missing archives are reported immediately; the FGVC-Aircraft builder."""

import json
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.error import URLError

import numpy as np
import pytest

from fgvpl_jax.data import benchmark_named, decode_image, load_tfds, tfds_prepare
from fgvpl_jax.data.tfds_prepare import main, prepare_tfds
from fgvpl_jax.errors import UserError
from tests.data.tfds_builders import write_aircraft_archive, write_dtd

AIRCRAFT = benchmark_named("fgvc_aircraft")


@pytest.fixture
def archive(tmp_path):
    """An archive in the folder for archives that users downloaded themselves."""
    file = tmp_path / "data" / "downloads" / "manual" / "fgvc-aircraft-2013b.tar.gz"
    file.parent.mkdir(parents=True)
    return file, write_aircraft_archive(file), tmp_path / "data"


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


class RefusesHead(SimpleHTTPRequestHandler):
    def do_HEAD(self):
        self.send_error(405)


@pytest.fixture
def aircraft_site(monkeypatch):
    """Serves a folder as the site of the Aircraft archive."""
    from fgvpl_jax.data import fgvc_aircraft

    @contextmanager
    def serve(folder, handler=SimpleHTTPRequestHandler):
        handler = partial(handler, directory=str(folder))
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            Thread(target=server.serve_forever, daemon=True).start()
            url = f"http://127.0.0.1:{server.server_port}/fgvc-aircraft-2013b.tar.gz"
            monkeypatch.setattr(fgvc_aircraft, "ARCHIVE", url)
            try:
                yield
            finally:
                server.shutdown()

    return serve


@pytest.mark.parametrize("handler", [SimpleHTTPRequestHandler, RefusesHead])
def test_aircraft_is_downloaded_without_tensorflow(tmp_path, aircraft_site, handler):
    site = tmp_path / "site"
    site.mkdir()
    write_aircraft_archive(site / "fgvc-aircraft-2013b.tar.gz")
    with aircraft_site(site, handler):
        prepare_tfds("fgvc_aircraft", str(tmp_path / "data"))
    assert len(load_tfds(str(tmp_path / "data"), "", AIRCRAFT).test) == 100


def test_an_archive_that_its_site_no_longer_has_may_come_from_elsewhere(tmp_path, aircraft_site):
    message = r"404.*elsewhere is used if you put it into .*/downloads/manual$"
    with aircraft_site(tmp_path), pytest.raises(UserError, match=message):
        prepare_tfds("fgvc_aircraft", str(tmp_path / "data"))


def test_a_prepared_benchmark_is_left_alone(archive):
    _, _, data = archive
    place = prepare_tfds("fgvc_aircraft", str(data))
    before = {file: file.stat().st_mtime_ns for file in place.iterdir()}
    assert prepare_tfds("fgvc_aircraft", str(data)) == place
    assert {file: file.stat().st_mtime_ns for file in place.iterdir()} == before


def test_another_archive_is_refused_and_nothing_left(archive):
    file, _, data = archive
    write_aircraft_archive(file, lists=("train", "val"))
    with pytest.raises(UserError, match=r"could not prepare.*lacks \['images_variant_test\.txt'\]"):
        prepare_tfds("fgvc_aircraft", str(data))
    with pytest.raises(UserError, match=r"tfds_prepare fgvc_aircraft"):
        load_tfds(str(data), "", AIRCRAFT)


def test_an_archive_with_a_member_beyond_the_limit_is_refused(archive, monkeypatch):
    from fgvpl_jax.data import fgvc_aircraft

    monkeypatch.setattr(fgvc_aircraft, "MOST_BYTES", 100)
    with pytest.raises(UserError, match=r"could not prepare.*bytes, more than 100"):
        prepare_tfds("fgvc_aircraft", str(archive[2]))


def test_missing_tensorflow_is_reported_before_anything_is_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds_prepare, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"TensorFlow to prepare food101.*\.\[tensorflow\]"):
        prepare_tfds("food101", str(tmp_path / "data"))
    assert not (tmp_path / "data").exists()


@pytest.fixture
def offline(monkeypatch):
    """Fails all requests and lists their URLs; pretends that TensorFlow is installed."""
    asked = []

    def urlopen(request, timeout):
        asked.append(request.full_url)
        raise URLError("Name or service not known")

    monkeypatch.setattr(tfds_prepare, "urlopen", urlopen)
    monkeypatch.setattr(tfds_prepare, "find_spec", lambda name: "there")
    return asked


def test_a_missing_network_is_reported_before_tfds_retries_for_minutes(tmp_path, offline):
    message = r"fgvc-aircraft-2013b\.tar\.gz cannot be reached.*Name or service not known"
    with pytest.raises(UserError, match=message):
        prepare_tfds("fgvc_aircraft", str(tmp_path))


def test_the_first_archive_that_is_missing_is_named(tmp_path, offline):
    """One of Flowers102's three archives is downloaded; of another, only the record exists."""
    site = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102"
    downloads = tmp_path / "downloads" / "oxford_flowers102"
    downloads.mkdir(parents=True)
    for name in ("102flowers.tgz", "imagelabels.mat"):
        (downloads / f"{name}.INFO").write_text(json.dumps({"urls": [f"{site}/{name}"]}))
    (downloads / "102flowers.tgz").touch()
    message = rf"{site}/imagelabels\.mat cannot be reached.*downloads/manual as imagelabels\.mat"
    with pytest.raises(UserError, match=message):
        prepare_tfds("oxford_flowers", str(tmp_path))
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir()
    (manual / "imagelabels.mat").touch()
    with pytest.raises(UserError, match=rf"{site}/setid\.mat cannot be reached"):
        prepare_tfds("oxford_flowers", str(tmp_path))
    assert offline == [f"{site}/imagelabels.mat", f"{site}/setid.mat"]


@pytest.mark.parametrize(
    ("name", "archive"), [("eurosat", "EuroSAT.zip"), ("caltech101", "caltech-101.zip")]
)
def test_archives_of_other_configs_are_not_needed(name, archive, tmp_path, offline, monkeypatch):
    import tensorflow_datasets as tfds

    (tmp_path / "downloads" / "manual").mkdir(parents=True)
    (tmp_path / "downloads" / "manual" / archive).touch()
    prepared = []
    monkeypatch.setattr(
        tfds.core.GeneratorBasedBuilder,
        "download_and_prepare",
        lambda self, download_dir: prepared.append(self.name),
    )
    with pytest.raises(UserError, match="is not prepared"):  # the patched method prepares nothing
        prepare_tfds(name, str(tmp_path))
    assert (len(prepared), offline) == (1, [])


def test_another_format_is_refused_with_how_to_convert_it(tmp_path):
    names = benchmark_named("dtd").class_names
    write_dtd(tmp_path, list(names), {"train": [(names[0], "a.jpg")]})
    place = tmp_path / "dtd" / "3.0.1"
    assert prepare_tfds("dtd", str(tmp_path)) == place
    info = place / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    message = (
        rf"{place} holds tfrecord files.*scripts.convert_format --dataset_version_dir={place} "
    )
    with pytest.raises(UserError, match=message):
        prepare_tfds("dtd", str(tmp_path))


def test_a_folder_without_its_info_is_no_prepared_one(archive):
    _, _, data = archive
    (data / "fgvc_aircraft" / "1.0.0").mkdir(parents=True)
    with pytest.raises(UserError, match=r"1\.0\.0 exists, but lacks dataset_info\.json: remove"):
        prepare_tfds("fgvc_aircraft", str(data))


def test_mistakes_on_the_command_line(tmp_path, capsys):
    assert main(["food101"]) == 2
    assert "usage" in capsys.readouterr().err
    assert main(["ucf101", str(tmp_path)]) == 2
    assert "TFDS has no photos of ucf101" in capsys.readouterr().err
    assert main(["mnist", str(tmp_path)]) == 2
    assert "benchmark is 'mnist'" in capsys.readouterr().err
