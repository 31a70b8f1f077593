"""README and docs: their Python runs as it stands, their commands name what there is."""

import os
import re
import shutil
from pathlib import Path

import pytest
from absl import flags

from fgvpl_jax.commands import command_line
from fgvpl_jax.commands.shipped_configs import FOLDER
from fgvpl_jax.methods import METHODS, fg_vpl
from fgvpl_jax.runs import default_config
from fgvpl_jax.runs.settings import flatten
from fgvpl_jax.sweeps.cells import sweep_config
from tests.conftest import write_photo_folders

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
# A command may go on over lines that end in a backslash.
COMMAND = re.compile(r"(?:run\.py|fgvpl) (--(?:[^\n\\`]|\\\n)*)")
FLAG = re.compile(r"--([\w.]+)(?:=(\S*))?")


def with_python(page):
    return PYTHON.search(page.read_text(encoding="utf-8")) is not None


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with what the pages name: photos, and small models where they name a CLIP."""
    write_photo_folders(tmp_path / "photos", 4)
    shutil.copy(tmp_path / "photos" / "red_square" / "000.png", tmp_path / "new_photo.jpg")
    for name in ("demo/clip", "openai/clip-vit-base-patch16"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        os.symlink(ROOT / "demo" / "clip", tmp_path / name)
    # The pages are run for what they call, not for what is learnt.
    monkeypatch.setattr(fg_vpl, "OTHER_EPOCHS", 2)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", list(filter(with_python, PAGES)), ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page, desk):
    text, names = page.read_text(encoding="utf-8"), {}
    for block in PYTHON.finditer(text):
        line = text[: block.start(1)].count("\n")
        # Its own line numbers in a traceback.
        exec(compile("\n" * line + block[1], page, "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_name_flags_and_fields_that_there_are(page):
    of_runs = flatten(default_config.get_config().to_dict())
    of_sweeps = flatten(sweep_config(tuple(METHODS)).to_dict())
    modes = flags.FLAGS[command_line.MODE.name].parser.enum_values
    for command in COMMAND.findall(page.read_text(encoding="utf-8")):
        for name, value in FLAG.findall(command):
            if name == "config":
                placeholder = Path(value).stem == "NAME"
                assert placeholder or (FOLDER / Path(value).name).exists(), command
            elif name == "mode":
                assert value.strip("`.,;)") in modes, command
            elif name.startswith("config."):
                field = name.removeprefix("config.")
                assert field in of_runs or field in of_sweeps or field.split(".")[0] == "grid", name
            elif name != "help":  # absl's own, which is no flag of a program's
                assert name in flags.FLAGS, command
