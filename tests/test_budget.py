"""``taylorder.budget``: one call chooses what ``taylorder analyze --budget`` chooses."""

from __future__ import annotations

import pandas
import pytest
import tiny
from command_line import WORDS
from pandas.testing import assert_frame_equal

import taylorder
from taylorder.adapt.cost import config_bytes
from taylorder.errors import UsageError
from taylorder.models.describe import describe
from taylorder.runs.run_files import RunDirectoryError
from taylorder.runs.tables import read_levers, write_levers
from taylorder.selection.run_levers import run_levers
from taylorder.selection.settings import AnalyzeSettings, Budget

SMALL = {"text": WORDS, "max_tokens": 96}


@pytest.fixture(autouse=True)
def no_spectra(monkeypatch):
    monkeypatch.setattr("taylorder.analysis.analyze.fit_spectra", lambda *_, **__: [])


def test_a_budget_is_kept_and_the_heads_are_judged(tiny_tokenizer, tmp_path):
    model = tiny.llama()
    calls = []
    selection = taylorder.budget(
        model, tiny_tokenizer, "0.75KiB", sequence_length=48, records=tmp_path,
        progress=lambda *call: calls.append(call), **SMALL,
    )  # fmt: skip
    description = describe(model)
    assert (
        selection.config
        == run_levers(
            model,
            tiny_tokenizer,
            description,
            AnalyzeSettings(budget=Budget.parse("768B"), max_tokens=96, lever_length=48),
            text=WORDS,
        ).chosen.config
    )
    assert 0 < config_bytes(selection.config, description, 64) <= 4 * 768
    assert (selection.policy, selection.levers.budget, selection.context) == ("levers", 768, 64)
    assert [head.choice for head in selection.heads] == [
        head for layer in selection.config.layers for head in layer.heads
    ]
    assert any(head.best is not None for head in selection.heads)
    assert {stage for stage, _, _ in calls} >= {"heads of the layers", "levers"}
    assert len(list(tmp_path.glob("levers-*.json"))) == 2


@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        (None, {}, "the size is None"),
        (float("nan"), {}, "the size is nan"),
        (0, {}, "the size is 0"),
        ("1KiB", {"context": 0}, "the context is 0 tokens"),
        ("1KiB", {"levers": ()}, r"levers is \(\)"),
        ("1KiB", {"levers": ["windows"]}, r"levers is \['windows'\], expected some of order, "),
        ("1KiB", {"levers": "window"}, "levers is 'window'"),
    ],
)
def test_what_means_nothing_is_refused_before_anything_is_measured(size, options, message):
    with pytest.raises(UsageError, match=message):
        taylorder.budget(None, None, size, **options)


def test_the_table_of_levers_is_that_of_the_file(tiny_tokenizer, tmp_path):
    model = tiny.llama()
    settings = AnalyzeSettings(budget=Budget.parse("768B"), max_tokens=96, lever_length=48)
    run = run_levers(model, tiny_tokenizer, describe(model), settings, text=WORDS)
    write_levers(tmp_path / "levers.csv", run)
    table, written = run.to_frame(), pandas.read_csv(tmp_path / "levers.csv")
    table.order = table.order.map(str)
    table.ranks = table.ranks.map(lambda ranks: " ".join(map(str, ranks)), na_action="ignore")
    assert_frame_equal(table, written, check_dtype=False, check_exact=True)
    assert read_levers(tmp_path / "levers.csv") == run.costs()
    assert [one.candidate for one in run.costs()] == [*run.table.candidates] * 4
    assert table.groupby(["module", "kv_head"]).chosen.sum().tolist() == [1] * 4


@pytest.mark.parametrize(
    ("text", "message"),
    [("module\na\n", "column kv_head is missing"), ("module,kv_head\na,b\n", "line 2: invalid literal")],
)
def test_a_damaged_table_of_levers_is_refused(tmp_path, text, message):
    (tmp_path / "levers.csv").write_text(text, encoding="utf-8")
    with pytest.raises(RunDirectoryError, match=f"damaged.*{message}"):
        read_levers(tmp_path / "levers.csv")


@pytest.mark.parametrize(("most", "expected"), [(96, 2), (192, 2), (480, 5), (50, 1)])
def test_levers_are_measured_on_half_of_the_tokens_or_two_sequences(tiny_tokenizer, monkeypatch, most, expected):
    def measure(_model, _description, sequences, *_, **__):
        raise KeyboardInterrupt(tuple(sequences.shape))

    monkeypatch.setattr("taylorder.selection.lever_table.measure", measure)
    model = tiny.llama()
    settings = AnalyzeSettings(budget=Budget.parse("768B"), levers=["window"], max_tokens=most, lever_length=48)
    with pytest.raises(KeyboardInterrupt) as stopped:
        run_levers(model, tiny_tokenizer, describe(model), settings, text=WORDS * 9)
    assert stopped.value.args == ((expected, 48),)


def test_an_analysis_is_used_where_there_is_one(tiny_tokenizer, monkeypatch):
    model = tiny.llama()
    analysis = taylorder.analyze(model, tiny_tokenizer, sequence_length=32, rows=4, max_order=2, name="mine", **SMALL)
    monkeypatch.setattr("taylorder.selection.budget.analyze", lambda *_, **__: pytest.fail("measured again"))
    selection = taylorder.budget(
        model, tiny_tokenizer, 768, analysis=analysis, sequence_length=48, levers=["window"], **SMALL
    )
    assert selection.config.model.name == "mine"
    assert selection.levers.levers == ("window",)


def test_an_analysis_of_another_model_and_a_size_without_a_unit_are_refused(tiny_tokenizer):
    analysis = taylorder.analyze(tiny.gpt2(), tiny_tokenizer, sequence_length=32, rows=4, max_order=2, **SMALL)
    with pytest.raises(UsageError, match="the analysis is of .*, but the model is .*; measure this one"):
        taylorder.budget(tiny.llama(), tiny_tokenizer, 768, analysis=analysis)
    with pytest.raises(UsageError, match="which has no unit: write 128KiB"):
        taylorder.budget(tiny.llama(), tiny_tokenizer, "128")
    with pytest.raises(UsageError, match="the budget is 1 bytes per KV head, and the cheapest way"):
        taylorder.budget(tiny.llama(), tiny_tokenizer, 1, sequence_length=48, **SMALL)


def test_what_was_finished_is_told_and_that_of_other_software_is_forgotten(tiny_tokenizer, monkeypatch, tmp_path):
    model, told = tiny.llama(), []

    def run():
        return run_levers(
            model, tiny_tokenizer, describe(model),
            AnalyzeSettings(budget=Budget.parse("768B"), levers=["window"], max_tokens=96, lever_length=48),
            text=WORDS, records=tmp_path, say=told.append,
        )  # fmt: skip

    first = run()
    rounds = len(first.chosen.rounds)
    again = run()
    assert told == [f"found 2 of 2 layers and {rounds} rounds in {tmp_path}; going on from there"]
    assert again.chosen == first.chosen
    (tmp_path / "levers-model.layers.1.self_attn.json").unlink()
    run()
    assert "found 1 of 2 layers" in told.pop()
    monkeypatch.setattr("taylorder.selection.run_levers.software_versions", lambda: {"torch": "another"})
    run()
    assert told[1:] == [f"what {tmp_path} held was measured under other settings; starting over"]
