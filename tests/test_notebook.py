"""``docs/start.ipynb`` runs from its first cell to its last, and what it shows comes from one such run."""

from __future__ import annotations

import copy
import importlib.util
import re
from pathlib import Path

import nbformat
import pytest
import tiny

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "notebook.py"
SMALL = """MODEL = {model!r}
CONTEXT = 128
BUDGET = "50%"
TOKENS = 256
NEW_TOKENS = 8"""


@pytest.fixture(scope="module")
def script():
    """The script as a module; scripts/ is not a package."""
    spec = importlib.util.spec_from_file_location("notebook_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def committed(script):
    """The notebook of the documentation, as it is."""
    return nbformat.read(script.NOTEBOOK, as_version=4)


def shown(cell):
    """All that a cell shows, as text."""
    parts = []
    for output in cell.outputs:
        parts += [output.text] if output.output_type == "stream" else output.data.values()
    return "\n".join(parts)


def test_it_has_ten_cells_of_code_and_says_before_each_what_it_does(script, committed):
    nbformat.validate(committed)
    assert len(script.code_cells(committed)) <= 10
    kinds = [cell.cell_type for cell in committed.cells]
    assert all(kinds[place - 1] == "markdown" for place, kind in enumerate(kinds) if kind == "code")


def test_what_it_shows_is_of_one_run_of_this_code(script, committed):
    cells = script.code_cells(committed)
    again = "run python scripts/notebook.py"
    assert committed.metadata["executed_sha256"] == script.digest(committed), again
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), again
    kinds = {output.output_type for cell in cells for output in cell.outputs}
    assert kinds == {"execute_result", "stream"}
    assert not any(output.get("name") == "stderr" for cell in cells for output in cell.outputs)
    assert all(cell.outputs for cell in cells[1:])


def test_it_says_nothing_of_the_machine_and_stays_small(script, committed):
    written = script.NOTEBOOK.read_text(encoding="utf-8")
    assert re.findall(r"(?<![\w.])/(?:work|tmp|home|root|usr|var|opt|Users)\b|\bsite-packages\b", written) == []
    assert '"execution":' not in written  # when each cell ran
    assert len(written) < 300_000


def test_changed_code_is_noticed(script, committed):
    changed = copy.deepcopy(committed)
    changed.cells[0].source += "\nText may change."
    assert script.digest(changed) == script.digest(committed)
    script.code_cells(changed)[3].source += "\n"
    assert script.digest(changed) != script.digest(committed)


def test_every_cell_runs(script, committed, tmp_path, tiny_tokenizer):
    folder = tiny.saved(tiny.llama(max_position_embeddings=256), tiny_tokenizer, tmp_path / "model")
    notebook = copy.deepcopy(committed)
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    names = re.compile(r"^(\w+) = ", re.MULTILINE)
    assert names.findall(parameters.source) == names.findall(SMALL)
    parameters.source = SMALL.format(model=str(folder))
    (work := tmp_path / "work").mkdir()
    script.execute(notebook, work)
    cells = {cell.id: shown(cell) for cell in script.code_cells(notebook)}
    assert "2 layers x 4 heads over 2 KV heads" in cells["cache"]
    assert "Error at order" in cells["report"]
    assert "What every KV head keeps" in cells["kept"]
    assert "background: #" in cells["kept"]
    assert "<OrderConfig for" in cells["save"]
    assert "<TaylorCache: 127 tokens" in cells["generate"]
    assert [name for name in ("exact", "config", "window") if f"<td>{name}</td>" not in cells["evaluate"]] == []
    assert {"orders.json", "report.html"} <= {path.name for path in work.iterdir()}
    assert notebook.metadata["executed_sha256"] == script.digest(notebook)
