"""Files of a run are written whole or not at all; they hold any file name."""

import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fgvpl_jax.errors import UserError
from fgvpl_jax.files import read_arrays, read_json, write_arrays
from fgvpl_jax.runs.workdir import Workdir


def test_file_names_that_are_not_unicode_are_written_and_read_back(tmp_path):
    # Python reads a Latin-1 é in a file name as this surrogate.
    content = {"Füchse": ["狐.png", "caf\udce9.jpg"]}
    workdir = Workdir(tmp_path / "W")
    workdir.write(workdir.few_shot_file, content)
    assert read_json(workdir.few_shot_file) == content
    assert "Füchse" in workdir.few_shot_file.read_text(encoding="utf-8")  # not escaped


def test_a_failed_write_leaves_the_old_file(tmp_path):
    workdir = Workdir(tmp_path / "W")
    workdir.write(workdir.results_file, {"a": 1})
    with pytest.raises(TypeError):
        workdir.write(workdir.results_file, {"a": object()})
    assert [file.name for file in workdir.path.iterdir()] == ["results.json"]
    assert json.loads(workdir.results_file.read_text()) == {"a": 1}


def test_the_folder_of_the_backbone_is_stored_as_an_absolute_path(
    tiny_config, tiny_clip_dir, tmp_path, monkeypatch
):
    monkeypatch.chdir(tiny_clip_dir.parent)
    workdir = Workdir(tmp_path / "W")
    for given, kept in ((tiny_clip_dir.name, str(tiny_clip_dir)), ("owner/name", "owner/name")):
        tiny_config.clip = given
        workdir.write_config(tiny_config, {"sha256": "0"})
        assert workdir.stored_config().clip == kept


def test_damaged_json_is_reported(tmp_path):
    (tmp_path / "x.json").write_bytes(b"\xff")
    with pytest.raises(UserError, match="damaged"):
        read_json(tmp_path / "x.json")


@pytest.fixture
def holder(tmp_path):
    """Starts a process that holds the lock of tmp_path/W."""
    program = (
        "import time\n"
        "from fgvpl_jax.runs.workdir import Workdir\n"
        f"with Workdir({str(tmp_path / 'W')!r}).locked():\n"
        "    print('held', flush=True)\n"
        "    time.sleep(600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_folder_is_locked_until_its_process_ends_or_is_killed(holder, tmp_path):
    workdir = Workdir(tmp_path / "W")
    with pytest.raises(UserError, match=rf"\(pid {holder.pid} on .*\)"), workdir.locked():
        pytest.fail("another process holds the lock")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with workdir.locked():
        workdir.write(workdir.results_file, {})
    assert [file.name for file in workdir.path.iterdir()] == ["results.json"]


def test_a_lock_removes_the_folders_it_made_if_nothing_was_written(tmp_path):
    with pytest.raises(KeyError), Workdir(tmp_path / "a" / "b").locked():
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_a_changed_bit_of_an_array_is_reported(tmp_path):
    file = tmp_path / "x.npz"
    write_arrays(file, a=np.arange(100.0), b=np.arange(7))
    whole = file.read_bytes()
    start = whole.index(np.arange(100.0).tobytes())
    for place in (start, start + 333, start + 799):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UserError, match=r"x\.npz is damaged .*CRC"):
            read_arrays(file)
    for length in (0, 10, start + 5, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"x\.npz is damaged"):
            read_arrays(file)
    file.unlink()
    with pytest.raises(UserError, match="is missing"):
        read_arrays(file)


def test_compressed_pickled_and_invalid_arrays_are_refused(tmp_path):
    file = tmp_path / "x.npz"
    np.savez_compressed(file, a=np.zeros(1000))
    with pytest.raises(UserError, match="it is compressed"):
        read_arrays(file)
    np.savez(file, a=np.array([{}], object))  # only a pickle can hold an object
    with pytest.raises(UserError, match="allow_pickle"):
        read_arrays(file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", b"no array")
    with pytest.raises(UserError, match="no array"):
        read_arrays(file)
