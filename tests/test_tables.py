"""The figures in README and docs are those of the committed results."""

import json
from importlib import util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "tables.py"


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    spec = util.spec_from_file_location("tables_script", SCRIPT)
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_have_the_figures_of_the_results(tables):
    marked = [path for path in tables.PAGES if tables.MARKED.search(path.read_text(encoding="utf-8"))]
    assert marked
    for path in marked:
        page = path.read_text(encoding="utf-8")
        assert tables.filled(page) == page, f"{path.name} is out of date: run python scripts/tables.py"


def test_every_table_is_on_a_page_and_has_rows(tables):
    pages = "".join(path.read_text(encoding="utf-8") for path in tables.PAGES)
    for name, table in tables.TABLES.items():
        assert f"<!-- table {name} -->" in pages, name
        made = table()
        assert made.count("\n") > 2 if made.startswith("|") else made.strip(), name


def test_a_changed_result_is_noticed(tables, tmp_path, monkeypatch):
    from page_tables import table

    document = json.loads((table.RESULTS / "policies.json").read_text(encoding="utf-8"))
    for row in document["rows"]:
        row["nll"] += 0.01
    (tmp_path / "policies.json").write_text(json.dumps(document), encoding="utf-8")
    before = tables.TABLES["policies-choices"]()
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    assert tables.TABLES["policies-choices"]() != before
