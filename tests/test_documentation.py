"""The Python blocks of README and docs run unchanged, and their commands name existing flags."""

import os
import re
import shutil
from pathlib import Path

import pytest
from absl import flags

from fgvpl_jax import defaults
from fgvpl_jax.commands import command_line
from fgvpl_jax.commands.modes import modes_by_flag
from fgvpl_jax.commands.shipped_configs import FOLDER
from fgvpl_jax.methods import METHODS, fg_vpl
from fgvpl_jax.runs import default_config
from fgvpl_jax.runs.settings import flatten
from fgvpl_jax.sweeps.cells import sweep_config
from tests.conftest import write_photo_folders

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
# A line that ends in a backslash continues the command.
COMMAND = re.compile(r"(?:run\.py|fgvpl) (--(?:[^\n\\`]|\\\n)*)")
FLAG = re.compile(r"--([\w.]+)(?:=(\S*))?")


def with_python(page):
    return PYTHON.search(page.read_text(encoding="utf-8")) is not None


@pytest.fixture
def desk(tiny_clip_dir, tmp_path, monkeypatch):
    """Enters a folder with the files that the pages name: photos, a list, and a CLIP for each."""
    write_photo_folders(tmp_path / "photos", 4)
    shutil.copy(tmp_path / "photos" / "red_square" / "000.png", tmp_path / "new_photo.jpg")
    photos = sorted((tmp_path / "photos").glob("*/*.png"))
    rows = [f"{photo.relative_to(tmp_path)},{photo.parent.name}|square" for photo in photos]
    (tmp_path / "labels.csv").write_text("\n".join(["path,labels", *rows]))
    for name in ("demo/clip", "openai/clip-vit-base-patch16"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        os.symlink(tiny_clip_dir, tmp_path / name)
    # The test checks that the calls work, not what the model learns.
    monkeypatch.setattr(fg_vpl, "OTHER_EPOCHS", 20)  # as on python_api.md, to share programs
    monkeypatch.setattr(defaults, "MINUTES", 1e-3)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_pages_have_blocks_and_commands_to_check():
    assert {"README.md", "python_api.md"} <= {page.name for page in filter(with_python, PAGES)}
    commands = {page.name: len(COMMAND.findall(page.read_text(encoding="utf-8"))) for page in PAGES}
    assert commands["README.md"] >= 3
    assert commands["sweeps.md"] >= 4


@pytest.mark.further
@pytest.mark.parametrize("page", list(filter(with_python, PAGES)), ids=lambda page: page.name)
def test_the_python_blocks_of_a_page_run(page, desk):
    text, names = page.read_text(encoding="utf-8"), {}
    for block in PYTHON.finditer(text):
        line = text[: block.start(1)].count("\n")
        # With these line breaks, tracebacks show the line numbers of the page.
        exec(compile("\n" * line + block[1], page, "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_name_flags_and_fields_that_exist(page):
    sweep_fields = flatten(sweep_config(tuple(METHODS)).to_dict())
    fields = {*flatten(default_config.get_config().to_dict()), *sweep_fields}
    modes = flags.FLAGS[command_line.MODE.name].parser.enum_values
    owners = modes_by_flag(command_line.MODES) | dict.fromkeys(["mode", "workdir"], modes)
    for command in COMMAND.findall(page.read_text(encoding="utf-8")):
        given = FLAG.findall(command)
        mode = dict(given).get("mode", "train").strip("`.,;)")
        assert mode in modes, command
        for name, value in given:
            if name == "config":
                placeholder = Path(value).stem == "NAME"
                assert placeholder or (FOLDER / Path(value).name).exists(), command
            elif name.startswith("config."):
                field = name.removeprefix("config.")
                assert field in fields or field.startswith("grid."), name
            elif name != "help":  # absl adds --help itself
                assert mode in owners[name], command
