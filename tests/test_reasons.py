"""Every reason for which a head stays exact has a mark and a meaning, on every page that shows it."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import get_args

import pytest
import synthetic

import taylorder
from taylorder.adapt.config import HeadOrder
from taylorder.kernels.spec import Exact, HeadSpec
from taylorder.reports import grids, html_data, near_words
from taylorder.selection.reasons import REASONS, Reason, explained

ROOT = Path(__file__).parent.parent
TYPED = {("by_tolerance.py", "pick"), ("config_of.py", "reason")}
"""Variables of type ``Reason``, which mypy checks."""


def set_in_the_package():
    """What calls of ``HeadOrder`` in the package give as reason."""
    for file in Path(taylorder.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "HeadOrder":
                yield from ((file.name, word.value) for word in node.keywords if word.arg == "reason")


def with_reason(reason):
    measured = synthetic.analysis(layers=3)
    chosen = synthetic.selection(measured)
    choice = HeadOrder(spec=HeadSpec(Exact()), error=0.0, reason=reason)
    heads = tuple(synthetic.replaced(head, choice=choice) for head in chosen.heads)
    layers = tuple(layer.model_copy(update={"heads": (choice,) * 9}) for layer in chosen.config.layers)
    config = chosen.config.model_copy(update={"layers": layers})
    return measured, synthetic.replaced(chosen, config=config, heads=heads)


def test_the_table_has_every_reason_and_no_mark_twice():
    assert set(REASONS) == set(get_args(Reason))
    marks = [explanation.mark for explanation in REASONS.values()]
    assert len(set(marks) | {"x", *near_words.MEANINGS}) == len(marks) + 3
    assert all(len(mark) == 1 for mark in marks)


def test_code_sets_no_reason_that_the_table_lacks():
    found = list(set_in_the_package())
    constants = {value.value for _, value in found if isinstance(value, ast.Constant)}
    names = {(file, value.id) for file, value in found if isinstance(value, ast.Name)}
    assert found
    assert constants <= set(REASONS)
    assert names == TYPED
    assert all(isinstance(value, ast.Constant | ast.Name) for _, value in found)


@pytest.mark.parametrize("reason", [*REASONS, None, "by hand"])
def test_a_reason_is_shown_by_its_mark_with_a_meaning(reason):
    mark, meaning = explained(reason)
    measured, chosen = with_reason(reason)
    [key] = grids.order_legend(chosen).keys
    assert ([cell.text for cell in key.marks], key.meaning) == ([mark], f"{meaning} (27 heads)")
    assert {cell.text for row in grids.order_grid(measured, chosen).rows for cell in row.heads} == {mark}
    page = html_data.as_data(measured, chosen)
    assert page["views"]["order"]["legend"] == [f"{mark}: {meaning} (27 heads)"]
    assert page["layers"][0]["heads"][0]["order"] == (None, mark, meaning, None)
    assert page["layers"][0]["heads"][0]["choice"] == f"Stays {meaning}."


def test_the_documentation_has_every_mark():
    page = (ROOT / "docs" / "reading-a-report.md").read_text(encoding="utf-8")
    for reason, (mark, _) in REASONS.items():
        assert f"| `{mark}` | `{reason}` |" in page
    assert "| `x` |" in page
    assert all(f"`{mark}`" in page for mark in near_words.MEANINGS)
