"""Preparing by TFDS: what is missing is said at once; the own builder of FGVC-Aircraft."""

import json
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.error import HTTPError, URLError

import numpy as np
import pytest

from fgvpl_jax.data import benchmark_named, decode_image, load_tfds, tfds_prepare
from fgvpl_jax.data.tfds_prepare import main, prepare_tfds
from fgvpl_jax.errors import UserError
from tests.data.tfds_builders import write_aircraft_archive, write_dtd

AIRCRAFT = benchmark_named("fgvc_aircraft")


@pytest.fixture
def archive(tmp_path):
    """At hand, where a person puts it."""
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


def test_aircraft_is_downloaded_without_tensorflow(tmp_path, monkeypatch):
    from fgvpl_jax.data import fgvc_aircraft

    site = tmp_path / "site"
    site.mkdir()
    write_aircraft_archive(site / "fgvc-aircraft-2013b.tar.gz")
    handler = partial(SimpleHTTPRequestHandler, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/fgvc-aircraft-2013b.tar.gz"
        monkeypatch.setattr(fgvc_aircraft, "ARCHIVE", url)
        prepare_tfds("fgvc_aircraft", str(tmp_path / "data"))
        server.shutdown()
    assert len(load_tfds(str(tmp_path / "data"), "", AIRCRAFT).test) == 100


def test_an_archive_that_its_site_no_longer_has_may_come_from_elsewhere(tmp_path, monkeypatch):
    from fgvpl_jax.data import fgvc_aircraft

    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/fgvc-aircraft-2013b.tar.gz"
        monkeypatch.setattr(fgvc_aircraft, "ARCHIVE", url)
        with pytest.raises(UserError, match=r"404.*elsewhere is taken from .*/downloads/manual$"):
            prepare_tfds("fgvc_aircraft", str(tmp_path / "data"))
        server.shutdown()


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


def test_tensorflow_is_asked_for_before_anything_is_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds_prepare, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"TensorFlow to prepare food101.*\.\[tensorflow\]"):
        prepare_tfds("food101", str(tmp_path / "data"))
    assert not (tmp_path / "data").exists()


@pytest.fixture
def offline(monkeypatch):
    """Whatever is asked for; with TensorFlow, so far as one looks."""
    asked = []

    def urlopen(request, timeout):
        asked.append(request.full_url)
        raise URLError("Name or service not known")

    monkeypatch.setattr(tfds_prepare, "urlopen", urlopen)
    monkeypatch.setattr(tfds_prepare, "find_spec", lambda name: "there")
    return asked


def test_no_network_is_told_before_tfds_tries_for_minutes(tmp_path, offline):
    message = r"fgvc-aircraft-2013b\.tar\.gz cannot be reached.*Name or service not known"
    with pytest.raises(UserError, match=message):
        prepare_tfds("fgvc_aircraft", str(tmp_path))


def test_the_first_archive_that_is_missing_is_named(tmp_path, offline):
    """Of Flowers102's three, one is downloaded, of one only the record of it is there."""
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
def test_archives_of_other_configs_are_not_asked_for(name, archive, tmp_path, offline, monkeypatch):
    import tensorflow_datasets as tfds

    (tmp_path / "downloads" / "manual").mkdir(parents=True)
    (tmp_path / "downloads" / "manual" / archive).touch()
    prepared = []
    monkeypatch.setattr(
        tfds.core.GeneratorBasedBuilder,
        "download_and_prepare",
        lambda self, download_dir: prepared.append(self.name),
    )
    with pytest.raises(UserError, match="is not there"):  # nothing was prepared in truth
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
    with pytest.raises(UserError, match=r"1\.0\.0 is there, but lacks dataset_info\.json: remove"):
        prepare_tfds("fgvc_aircraft", str(data))


def test_a_server_that_refuses_to_tell_is_reachable(tmp_path, monkeypatch):
    def urlopen(request, timeout):
        raise HTTPError(request.full_url, 405, "Method Not Allowed", {}, None)

    monkeypatch.setattr(tfds_prepare, "urlopen", urlopen)
    tfds_prepare._check_reachable({"https://example.org/a.tar": "a.tar"}, tmp_path)


def test_mistakes_on_the_command_line(tmp_path, capsys):
    assert main(["food101"]) == 2
    assert "usage" in capsys.readouterr().err
    assert main(["ucf101", str(tmp_path)]) == 2
    assert "TFDS has no photos of ucf101" in capsys.readouterr().err
    assert main(["mnist", str(tmp_path)]) == 2
    assert "benchmark is 'mnist'" in capsys.readouterr().err
