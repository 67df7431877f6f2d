"""The notebook of examples/ runs from its first cell to its last; `make test-notebook` installs what runs it."""

from __future__ import annotations

import ast
import json
import os
import re
import sys

import pytest


@pytest.fixture
def path(root):
    return root / "examples" / "tour.ipynb"


@pytest.fixture
def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def code_of(cells):
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_it_is_committed_without_outputs(cells):
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None


def test_it_needs_nothing_from_elsewhere_but_what_its_first_cell_installs(cells):
    install, *code = code_of(cells)
    assert re.fullmatch(r"%pip install --quiet 'mmemb-r1\[[\w,]+\]'", install)
    assert not re.search(r"https?://|^[%!]", "\n".join(code), re.MULTILINE)
    (chosen,) = [line for line in "\n".join(code).splitlines() if line.startswith("MODEL = ")]
    assert chosen.startswith("MODEL = None")


def test_its_links_lead_to_files(path, cells):
    text = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    links = re.findall(r"\]\((\.\./[^)#]+)\)", text)
    assert links and all((path.parent / link).is_file() for link in links)


def test_its_code_is_python(cells):
    for code in code_of(cells)[1:]:
        ast.parse(code)


@pytest.mark.slow
def test_it_runs(path, tmp_path, monkeypatch):
    """In a kernel of its own, as Jupyter runs it. What the words find after the training is not by chance."""
    nbclient = pytest.importorskip("nbclient", reason="make test-notebook installs it")
    nbformat = pytest.importorskip("nbformat")
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # more threads only wait for one another over small matrices
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(os.path.abspath, filter(None, sys.path))))
    notebook = nbformat.read(path, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if "install" not in cell.metadata.get("tags", [])]
    nbclient.NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = [
        "".join(output.get("text", "") for output in cell.outputs if output.output_type == "stream")
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]
    assert "12 pictures are new; 0 embedded by a second run" in printed[2]
    shown = [output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in str(output)]
    assert len(shown) == 4
    right = dict(re.findall(r"reasoning=(\w+): (\d+) of 12 names", printed[-1]))
    assert set(right) == {"never", "always"} and min(map(int, right.values())) >= 6
