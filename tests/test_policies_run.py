"""The benchmark from end to end on a tiny model: every part runs, within the budget, and nothing is measured twice."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import replace

import policies
import pytest
from policies import Levers, old_rules, one_budget
from policy_rules import judging
from policy_rules.judging import DEFAULT, WINDOW, WINDOWS, Judge
from tiny import llama, tokens

from taylorder.adapt import cost
from taylorder.adapt.config import OrderConfig
from taylorder.analysis.text import Text
from taylorder.evaluation.rivals import bytes_per_kv_head
from taylorder.evaluation.task_prompts import make_tasks
from taylorder.models.describe import describe
from taylorder.models.loading import LoadedModel
from taylorder.storage.records import Records

LENGTH = 64


@pytest.fixture(scope="module")
def levers(tmp_path_factory, tiny_tokenizer):
    model = llama()
    loaded = LoadedModel(model, tiny_tokenizer, "tiny")
    return Levers.measured(loaded, describe(model, "tiny"), LENGTH, tmp_path_factory.mktemp("levers"))


@pytest.fixture
def run(levers, tmp_path, monkeypatch):
    """Run one budget, and return the document with the number of runs it took."""
    small = {"lengths": (60,), "cases": 1, "kinds": ("copy",)}
    monkeypatch.setattr(judging, "make_tasks", lambda tokenizer, **_: make_tasks(tokenizer, **small))
    ids = tokens(2, LENGTH, seed=1)
    judge = Judge(levers.loaded, levers.model, "docstrings", ids, Records(tmp_path / "losses", {}))
    first = levers.model.modules[0]
    budget = 24 * cost.kv_bytes(first.head_dim, first.value_dim, 1)
    calls = []
    original = judging.hidden_states
    monkeypatch.setattr(judging, "hidden_states", lambda *args: calls.append(args) or original(*args))

    def run(**options):
        out = tmp_path / "results" / "policies.json"
        arguments = Namespace(
            length=LENGTH, few=2, brief=False, text="docstrings", threads=1, presets=False, old_rules=False, out=out
        )
        vars(arguments).update(options)
        calls.clear()
        one_budget(levers, judge, Text("noise", ""), budget, arguments)
        return json.loads(out.read_text()), len(calls), budget

    return run


def test_every_part_stays_within_the_budget_and_is_measured_once(run):
    document, runs, budget = run()
    rows = {(row["policy"], row["sequences"]): row for row in document["rows"]}
    assert len(rows) == len(document["rows"])
    names = {policy for policy, _ in rows}
    assert {"exact", WINDOW, WINDOWS, DEFAULT, "H2O, our bytes", "oracle, our bytes"} <= names
    for row in document["rows"] + document["without"]:
        assert row["policy"] == "exact" or row["nominal_bytes"] <= budget, row["policy"]
    for name in names - {"exact"}:
        row = next(row for (policy, _), row in rows.items() if policy == name)
        assert row["nominal_bytes"] > 0.8 * budget, name
    assert {row["policy"] for row in document["tasks"]} == {"exact", WINDOW, WINDOWS, DEFAULT, "H2O, our bytes"}
    assert [row["runnable"] for row in document["rows"] if row["policy"] == "oracle, 1/4 window"] == [False]
    assert runs > 20
    again, runs, _ = run()
    assert runs == 0
    assert again["rows"] == document["rows"]


def test_a_brief_run_has_five_rows_and_completes_what_is_there(run, tmp_path):
    document, _, budget = run(brief=True, presets=True)
    assert {row["policy"] for row in document["rows"]} == {"exact", WINDOW, WINDOWS, DEFAULT, "H2O, our bytes"}
    assert {row["sequences"] for row in document["rows"]} == {2}
    assert "tasks" not in document
    folder = tmp_path / "configs" / f"tiny-{budget // 1024}KiB"
    assert OrderConfig.load(folder / "orders.json").criterion["budget"] == budget
    later, _, _ = run(brief=True, text="code")
    assert len(later["rows"]) == len(document["rows"])  # the judge's text counts, which is the same


def test_what_ships_is_chosen_among_what_is_offered_alone(levers):
    offered = levers.table.candidates
    assert not any(offered[index].spec.near.kept for index in levers.without_kept)
    assert any(offered[index].spec.near.kept for index in levers.shipped)
    assert all(not offered[index].truncates for index in levers.near_fields)
    assert set(levers.shipped) | set(levers.without_kept) == set(range(len(offered)))
    assert replace(levers, shipped=levers.without_kept).near_fields != levers.near_fields


def test_old_rules_stay_within_the_budget(levers, monkeypatch):
    first = levers.model.modules[0]
    budget = 24 * cost.kv_bytes(first.head_dim, first.value_dim, 1)
    monkeypatch.setattr(policies, "SCREENING_TOKENS", LENGTH)
    entrants = old_rules(levers, budget)
    assert {"depth", "criterion kl", "criterion gradient", "random windows 0"} <= {entrant.name for entrant in entrants}
    for entrant in entrants:
        assert 0.8 * budget < bytes_per_kv_head(entrant.config, levers.model, LENGTH) <= budget, entrant.name
