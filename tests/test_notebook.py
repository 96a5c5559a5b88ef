"""The example notebook runs in a kernel, and each of its outputs is one that a notebook can show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from .pages import parsed

NOTEBOOK = Path(__file__).parents[1] / "examples" / "look.ipynb"

# what is in the output of each cell, in order
SEEN = (
    "state_dict: 3 entries, 20 tensors, 496.0 kB",
    "float32 120×400, 192.0 kB",
    "1 tensor, 48,000 elements: nothing deserves a look",
    "20 tensors, 124,012 elements: dead rows in 1, denormal in 5",
    "model_state.fc1: 2 tensors",
    "20 tensors, 124,012 elements, 496.0 kB",
    "memory → memory: 8 tensors identical, 1 changed, 1 removed",
    "checkpoint.pth: fine (torch, 20 tensors in 26 parts, CRC-32 of 26, digests of 0)",
    "checkpoint.pth: data, 1 pickle",
    "restored 10 of 10 entries",
    "would restore 8 of 12 entries",
    "20 tensors, 496.0 kB → 10 tensors, 124.0 kB (nothing was written)",
)


def results(folder: Path) -> list[Any]:
    """What the cells show, run in a kernel that keeps its files in a folder."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
            patch.setenv(name, str(folder / name.lower()))
        patch.setenv("JUPYTER_PLATFORM_DIRS", "1")
        NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    return [output.data for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def test_every_cell_shows_its_page_and_where_there_is_no_html_a_short_text(tmp_path: Path) -> None:
    found = results(tmp_path)
    pages = [parsed(data["text/html"]) for data in found]
    assert len(pages) == len(SEEN)
    for page, seen in zip(pages, SEEN, strict=True):
        assert seen in page.text
    texts = [data["text/plain"] for data in found]
    assert texts[7] == "checkpoint.pth: fine (torch, 20 tensors in 26 parts, CRC-32 of 26, digests of 0)"
    assert all(len(text.splitlines()) <= 100 for text in texts)
    assert texts[3].splitlines()[-1] == "… 13 more lines; print() shows all"


def test_the_notebook_is_committed_without_outputs_and_is_valid() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
    assert NOTEBOOK.stat().st_size < 10_000
