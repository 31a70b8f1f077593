"""The committed notebook has no outputs and runs from start to end."""

import os
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks" / "quickstart.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_the_committed_notebook_has_no_outputs(notebook):
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
    nbformat.validate(notebook)


@pytest.mark.slow
def test_the_notebook_runs(notebook, tmp_path, monkeypatch):
    """Runs in a temporary folder that links to the project, so that it writes nothing into it."""
    for name in ("run.py", "demo", "configs", "fgvpl_jax"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    NotebookClient(
        notebook,
        timeout=900,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    text = "".join(output.get("text", "") for output in outputs)
    assert "test photos" in text and "image_cache: " in text
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    shutil.rmtree(tmp_path / "runs")
