"""Entrants are judged once and found again, and a document grows by pieces."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from keeping_configs import small
from policy_rules import document, judging
from policy_rules.fields import changed
from policy_rules.judging import DEFAULT, WINDOW, Entrant, Judge
from policy_rules.rules import H2O, KNORM
from tiny import llama, tokens

from taylorder.evaluation.evaluation_text import evaluation_code
from taylorder.kernels.spec import SINKS, Dropped, HeadSpec, Near
from taylorder.models.loading import LoadedModel
from taylorder.storage.records import Records


@pytest.fixture
def judge(tmp_path, tiny_tokenizer):
    model = llama()
    described, config = small(model)
    loaded = LoadedModel(model, tiny_tokenizer, "tiny")
    return Judge(loaded, described, "noise", tokens(3, 40, seed=1), Records(tmp_path / "losses", {})), config


def entrants_of(described, config):
    window = changed(config, described, lambda group, _: [HeadSpec(Dropped(), Near(11, SINKS))] * len(group))
    by_rule = [Entrant(f"{rule.name}, our bytes", config, rule) for rule in (KNORM, H2O)]
    return [Entrant("exact", None), Entrant(WINDOW, window), Entrant(DEFAULT, config), *by_rule]


def test_what_was_measured_is_not_measured_again(judge, monkeypatch):
    judge, config = judge
    entrants = entrants_of(judge.model, config)
    calls = []
    original = judging.hidden_states
    monkeypatch.setattr(judging, "hidden_states", lambda *args: calls.append(args) or original(*args))
    judge.run(entrants, 1)
    assert len(calls) == 5
    judge.run([*entrants, Entrant("the same by another name", config)], 2)
    assert len(calls) == 10
    judge.run(entrants, 2)
    assert len(calls) == 10
    assert len({entrant.key for entrant in entrants}) == 5


def test_rows_have_paired_differences_and_say_what_a_rule_needs(judge):
    judge, config = judge
    entrants = entrants_of(judge.model, config)
    judge.run(entrants, 3)
    rows = {row["policy"]: row for row in judge.rows(entrants, entrants[:3], 1000, 3)}
    nll = {entrant.name: judge.figures(entrant, "nll", 3) for entrant in entrants}
    for name, row in rows.items():
        assert row["nll"] == pytest.approx(nll[name].mean())
        assert row["sequences"] == 3
        if name != WINDOW:
            estimate, low, high = row[f"to {WINDOW}"]
            assert estimate == pytest.approx((nll[name] - nll[WINDOW]).mean(), abs=1e-9)
            assert low <= estimate <= high
    gap = (nll[WINDOW].mean() - nll[DEFAULT].mean()) / (nll[WINDOW].mean() - nll["exact"].mean())
    assert rows[DEFAULT]["gap_closed"] == pytest.approx(gap)
    assert rows["exact"]["kl"] == 0
    assert rows["exact"]["gap_closed"] == pytest.approx(1)
    assert rows["H2O, our bytes"]["needs"] == "attention weights"
    assert rows["H2O, our bytes"]["source"] == "arXiv 2306.14048"
    assert "rule" not in rows[WINDOW]
    assert rows[DEFAULT]["nominal_bytes"] == rows["H2O, our bytes"]["nominal_bytes"]
    assert rows[DEFAULT]["nominal_bytes"] <= rows[WINDOW]["nominal_bytes"] + 20


def test_what_overflows_is_left_out(judge, capsys):
    judge, config = judge
    entrants = entrants_of(judge.model, config)[:3]
    judge.run(entrants, 1)
    judge.records.put(f"000-{entrants[1].key}", {"nll": np.inf, "kl": np.inf})
    assert [row["policy"] for row in judge.rows(entrants, entrants[:1], 1000, 1)] == ["exact", DEFAULT]
    assert "one window overflows" in capsys.readouterr().err


def test_rows_replace_their_like_and_nothing_else(tmp_path):
    path = tmp_path / "results" / "policies.json"
    one = {"model": "a", "text": "t", "budget_bytes": 1, "policy": "p", "sequences": 8, "nll": 2.0}
    document.add(path, {"rows": [one, one | {"budget_bytes": 2}], "tasks": [{"policy": "p", "task": "list"}]})
    document.add(path, {"rows": [one | {"nll": 1.5}, one | {"text": "u"}], "without": [one]})
    found = json.loads(path.read_text())
    assert found["rows"] == [one | {"nll": 1.5}, one | {"budget_bytes": 2}, one | {"text": "u"}]
    assert found["without"] == [one]
    assert found["tasks"] == [{"policy": "p", "task": "list"}]


def test_two_writers_lose_nothing(tmp_path):
    path = tmp_path / "policies.json"

    def write(writer):
        for number in range(20):
            document.add(path, {"rows": [{"policy": f"{writer}-{number}"}]})

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(write, range(3)))
    assert len(json.loads(path.read_text())["rows"]) == 60


def test_rows_are_shown_best_first(capsys):
    rows = [
        {"policy": "worse", "nll": 2.0, "kl": 0.1, "to default": [0.5, 0.4, 0.6], "gap_closed": 0.25},
        {"policy": "oracle", "nll": 1.0, "kl": 0.2, "runnable": False, "needs": "the whole text"},
    ]
    document.show(rows, DEFAULT)
    first, second = capsys.readouterr().out.splitlines()
    assert first.split()[:3] == ["oracle", "nll", "1.0000"]
    assert first.endswith("cannot be run")
    assert "25%" in second
    assert "+0.5000 [+0.4000, +0.6000]" in second


def test_the_text_of_code_is_the_same_every_time():
    text = evaluation_code()
    assert text == evaluation_code()
    assert len(text.content) > 1_000_000
    assert "def namedtuple" not in text.content  # collections is a folder
    assert "class Mailbox" in text.content
    assert "class ArgumentParser" not in text.content  # probes are fitted to it
    assert "Python 3." in text.source
