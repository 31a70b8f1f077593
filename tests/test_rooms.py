"""Imports between rooms of the package point down, and no room imports the package root."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "fgvpl_jax"
# From top to bottom. A room may import from lower lines, but not from others on its own line.
LEVELS = (
    ("commands",),
    ("serving", "sweeps", "reports"),
    ("inference",),
    ("runs",),
    ("displays", "evaluation"),
    ("training",),
    ("methods",),
    ("recognition",),
    ("visual_prompt",),
    ("clip", "data"),
    # Single files at the root.
    ("files", "interruption", "variables", "version", "defaults"),
    ("errors",),
)
LEVEL = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}
FILES = sorted(PACKAGE.rglob("*.py"))


def imported(file):
    """Yields the full name of every module that a file imports."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file} has a relative import"
            if node.module == "fgvpl_jax":
                yield from (f"fgvpl_jax.{alias.name}" for alias in node.names)
            else:
                yield node.module or ""


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_of_a_file_point_down(file):
    room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room == "__init__":  # the package root, which exports the public API
        return
    for name in imported(file):
        package, _, rest = name.partition(".")
        if package != "fgvpl_jax":
            continue
        other = rest.split(".")[0]
        assert other in LEVEL, f"{file} imports {other or 'nothing'} from the package root"
        assert other == room or LEVEL[other] > LEVEL[room], f"{room} imports {name}"


def test_every_room_has_a_level_and_a_docstring():
    rooms = {file.relative_to(PACKAGE).parts[0].removesuffix(".py") for file in FILES}
    assert rooms - {"__init__"} == set(LEVEL)
    for room in PACKAGE.glob("*/__init__.py"):
        assert ast.get_docstring(ast.parse(room.read_text(encoding="utf-8"))), room


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_files_and_functions_stay_short(file):
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 355, f"{file} is long: is a room or a file missing?"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 75, f"{file}: {node.name} is long"
