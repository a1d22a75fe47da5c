"""The notebook: stored clean, written against the public API alone, and run from its first cell to its last."""

from __future__ import annotations

import ast
import base64
import io
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

import chestxray

STORED = Path(__file__).parents[2] / "notebooks" / "pipeline.ipynb"
NOTEBOOK = nbformat.read(STORED, as_version=4)
CODE = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]
TEXT = [cell for cell in NOTEBOOK.cells if cell.cell_type == "markdown"]

STEPS = ("Collect", "Clean", "Scale", "Model", "Train", "Deploy", "Validate", "Web app", "Tear down")
LONGEST_CELL = 14  # lines
DRAWS = re.compile(r"\bplot_\w+\(|^Image\(", re.MULTILINE)
PICTURES = 14
MIN_SPREAD = 10.0  # grey levels: an empty sheet of paper has none


def trees() -> Iterator[tuple[str, ast.AST]]:
    """Every cell as Python: its name, and its syntax without the magic line."""
    for cell in CODE:
        source = "\n".join(line for line in cell.source.splitlines() if not line.startswith("%"))
        yield cell.id, ast.parse(source)


def test_it_is_stored_without_outputs() -> None:
    nbformat.validate(NOTEBOOK)
    assert [cell.id for cell in CODE if cell.outputs or cell.execution_count is not None] == []


def test_it_goes_through_the_nine_steps_in_their_order() -> None:
    headings = re.findall(r"^## (\d)\. (.+)$", "\n".join(cell.source for cell in TEXT), re.MULTILINE)
    assert headings == [(str(number), name) for number, name in enumerate(STEPS, start=1)]


def test_cells_are_short_and_a_text_stands_before_each_step() -> None:
    assert {cell.id: len(cell.source.splitlines()) for cell in CODE if cell.source.count("\n") >= LONGEST_CELL} == {}


def test_it_imports_the_package_itself_and_no_part_of_it() -> None:
    modules = {
        name
        for _, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    ours = {name for name in modules if name and name.partition(".")[0] == "chestxray"}
    others = {name.partition(".")[0] for name in modules - ours if name}
    assert ours == {"chestxray"}
    assert others <= sys.stdlib_module_names | {"IPython"}


def test_every_name_that_it_uses_is_public() -> None:
    used = {
        node.attr
        for _, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "chestxray"
    }
    named = set(re.findall(r"`chestxray\.(\w+)", "\n".join(cell.source for cell in TEXT)))
    assert used | named <= set(chestxray.__all__)
    assert len(used) > 15


def test_every_command_that_it_names_exists() -> None:
    from chestxray.cli import chestxray_group

    text = "\n".join(cell.source for cell in TEXT)
    verbs = set(re.findall(r"\bchestxray ([a-z]+)", text))
    assert verbs <= set(chestxray_group.commands)
    aws = set(re.findall(r"\bchestxray aws ([a-z]+)", text))
    assert aws
    assert aws <= set(chestxray_group.commands["aws"].commands)


# --------------------------------------------------------------------------- run


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> nbformat.NotebookNode:
    """The notebook after all its cells were run in an empty folder, as ``jupyter execute`` does."""
    folder = tmp_path_factory.mktemp("notebook")
    (folder / STORED.name).write_bytes(STORED.read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "jupyter", "execute", "--kernel_name=python3", "--output=executed.ipynb", STORED.name],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return nbformat.read(folder / "executed.ipynb", as_version=4)


def pictures_of(cell: nbformat.NotebookNode) -> list[np.ndarray]:
    data = [output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("L")) for text in data]


def told(notebook: nbformat.NotebookNode, name: str) -> str:
    """What a cell printed."""
    (cell,) = (cell for cell in notebook.cells if cell.id == name)
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_runs_from_its_first_cell_to_its_last(executed: nbformat.NotebookNode) -> None:
    cells = [cell for cell in executed.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(CODE) + 1))
    kinds = {(cell.id, output.output_type) for cell in cells for output in cell.outputs}
    assert not {cell for cell, kind in kinds if kind == "error"}
    noted = {cell.id for cell in cells for output in cell.outputs if output.get("name") == "stderr"}
    assert noted <= {"collect-films"}  # which says what of the folder is no film


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_cell_that_draws_shows_a_picture_with_something_on_it(executed: nbformat.NotebookNode) -> None:
    drawing = [cell for cell in executed.cells if cell.cell_type == "code" and DRAWS.search(cell.source)]
    assert len(drawing) == PICTURES
    for cell in drawing:
        (picture,) = pictures_of(cell)
        assert picture.std() > MIN_SPREAD, cell.id


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_it_tells_is_what_the_text_around_it_says(executed: nbformat.NotebookNode) -> None:
    assert "on two splits: 0" in told(executed, "split-films")
    assert told(executed, "refused-leakage").startswith("Leakage - ")
    epochs = [float(found) for found in re.findall(r"training loss ([\d.]+)", told(executed, "train-network"))]
    assert epochs[-1] < epochs[0]
    apart = re.search(r"differ by at most ([\d.e+-]+)", told(executed, "same-answers"))
    assert apart
    assert float(apart[1]) < 1e-6
    auroc = re.search(r"auroc ([\d.]+) \(([\d.]+) to ([\d.]+); (\d+) films\)", told(executed, "evaluate"))
    assert auroc
    assert float(auroc[2]) > 0.5  # its interval lies above chance
    assert '"operating_point": "screening"' in told(executed, "one-request")
    assert told(executed, "refused-picture").strip()
    assert told(executed, "stop-service").startswith("nobody answers")
