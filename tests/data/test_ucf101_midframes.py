"""Videos are converted to their middle frames, at the paths in CoOp's split file."""

import re

import numpy as np
import pytest
from PIL import Image

from fgvpl_jax.data import benchmark_named, read_split_file
from fgvpl_jax.data.official_lists import midframes_folder
from fgvpl_jax.data.ucf101_midframes import convert, main, middle_frame
from fgvpl_jax.errors import UserError

av = pytest.importorskip("av")


def write_video(file, frames):
    """Frame i is grey of level 10 · i."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(frames):
            grey = np.full((48, 64, 3), 10 * i, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(grey)):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


@pytest.mark.parametrize(("frames", "middle"), [(1, 0), (2, 1), (9, 4), (20, 10)])
def test_the_middle_frame(tmp_path, frames, middle):
    write_video(tmp_path / "v.avi", frames)
    pixels = np.asarray(middle_frame(tmp_path / "v.avi"), np.float64)
    assert abs(pixels.mean() - 10 * middle) < 4


def test_a_folder_is_converted_and_the_conversion_resumed(tmp_path, capsys):
    videos, photos = tmp_path / "UCF-101", tmp_path / "frames"
    write_video(videos / "HandstandPushups" / "v_HandStandPushups_g01_c01.avi", 5)
    write_video(videos / "YoYo" / "v_YoYo_g01_c01.avi", 5)
    assert main([str(videos), str(photos)]) == 0
    found = sorted(file.relative_to(photos).as_posix() for file in photos.rglob("*.*"))
    expected = ["Handstand_Pushups/v_HandStandPushups_g01_c01.jpg", "Yo_Yo/v_YoYo_g01_c01.jpg"]
    assert found == expected
    assert Image.open(photos / expected[0]).size == (64, 48)
    before = (photos / expected[0]).stat().st_mtime_ns
    (photos / expected[1]).unlink()
    assert convert(str(videos), str(photos)) == []
    assert (photos / expected[1]).exists()
    assert (photos / expected[0]).stat().st_mtime_ns == before


def test_damage_is_named_and_the_rest_converted(tmp_path, capsys):
    videos, photos = tmp_path / "UCF-101", tmp_path / "frames"
    write_video(videos / "YoYo" / "v_YoYo_g01_c01.avi", 3)
    (videos / "YoYo" / "v_YoYo_g01_c02.avi").write_bytes(b"no video")
    assert main([str(videos), str(photos)]) == 2
    assert re.search(r"c02\.avi cannot be read", capsys.readouterr().err)
    assert [file.name for file in photos.rglob("*.*")] == ["v_YoYo_g01_c01.jpg"]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path, capsys):
    write_video(tmp_path / "UCF-101" / "YoYo" / "v_YoYo_g01_c01.avi", 1)
    (tmp_path / "file").touch()
    assert main([str(tmp_path / "UCF-101"), str(tmp_path / "file")]) == 2
    assert re.search(r"error: .*file/Yo_Yo: Not a directory\n$", capsys.readouterr().err)


def test_a_folder_without_videos(tmp_path):
    with pytest.raises(UserError, match=r"holds no <action>/<video>\.avi"):
        convert(str(tmp_path), str(tmp_path / "frames"))


def test_the_videos_of_tfds(real_data, tmp_path):
    fakes = real_data / "tfds_fake/tensorflow_datasets/testing/test_data/fake_examples/ucf101"
    for video in fakes.rglob("*.avi"):
        place = tmp_path / "UCF-101" / video.name.split("_")[1] / video.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(video)
    assert convert(str(tmp_path / "UCF-101"), str(tmp_path / "frames")) == []
    assert len(list((tmp_path / "frames").rglob("*.jpg"))) == 5


def test_folders_are_those_of_the_published_split(real_data):
    ucf101 = benchmark_named("ucf101")
    file = real_data / "coop_splits" / "split_zhou_UCF101.json"
    _, parts = read_split_file(file)
    for key, label in (image for images in parts.values() for image in images):
        folder, name = key.split("/")
        action = name.split("_")[1].replace("HandStand", "Handstand")
        assert midframes_folder(action) == folder
        assert ucf101.label_of(folder) == label
