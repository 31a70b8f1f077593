"""Files of a run: whole or not there, and readable again whatever they name."""

import json

import pytest

from fgvpl_jax.apps.workdir import Workdir, read_json
from fgvpl_jax.errors import UserError


def test_names_that_are_no_text_come_back(tmp_path):
    content = {"Füchse": ["狐.png", "caf\udce9.jpg"]}  # a Latin-1 é, as Python reads it from a disk
    workdir = Workdir(tmp_path / "W")
    workdir.write(workdir.few_shot_file, content)
    assert read_json(workdir.few_shot_file) == content
    assert "Füchse" in workdir.few_shot_file.read_text(encoding="utf-8")  # for people too


def test_a_failed_write_leaves_what_was_there(tmp_path):
    workdir = Workdir(tmp_path / "W")
    workdir.write(workdir.results_file, {"a": 1})
    with pytest.raises(TypeError):
        workdir.write(workdir.results_file, {"a": object()})
    assert [file.name for file in workdir.path.iterdir()] == ["results.json"]
    assert json.loads(workdir.results_file.read_text()) == {"a": 1}


def test_the_backbones_folder_is_kept_absolute(tiny_config, tiny_clip_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_clip_dir.parent)
    workdir = Workdir(tmp_path / "W")
    for given, kept in ((tiny_clip_dir.name, str(tiny_clip_dir)), ("owner/name", "owner/name")):
        tiny_config.clip = given
        workdir.write_config(tiny_config, {"sha256": "0"})
        assert workdir.stored_config().clip == kept


def test_damage_is_told_of(tmp_path):
    (tmp_path / "x.json").write_bytes(b"\xff")
    with pytest.raises(UserError, match="damaged"):
        read_json(tmp_path / "x.json")
