"""The benchmark of fresh models as it is run: piece by piece, each run once, and what the table says."""

from __future__ import annotations

import json

import fresh
import pytest
import torch
from fresh_models import recall_run
from fresh_models.found import FoundRun
from fresh_models.log import Log, weights_file
from fresh_models.models import recall_model
from fresh_models.plan import RATES, SEEDS, Plan
from fresh_models.plots import courses
from fresh_models.recall_run import RecallRun
from fresh_models.summary import lines
from fresh_models.text_run import TextRun
from safetensors.torch import save_file


def recorded(log, contender="order 3", seed=0, rate=RATES[0], pairs=8, first=None, **changes):
    record = {"share": 0.5, "solved_at": None, "steps": 2400, "state_bytes": 100, "guessing": 0.125}
    log.add(RecallRun(contender, seed=seed, rate=rate, pairs=pairs, first=first).about, record | changes)


@pytest.fixture
def log(tmp_path):
    return Log(tmp_path / "fresh.jsonl")


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """The command with tiny runs; returns what it prints and the records there are."""
    monkeypatch.setattr(recall_run, "STEPS", 2)
    monkeypatch.setattr(recall_run, "TESTED", 1024)

    def call(*options):
        paths = ["--out", str(tmp_path / "fresh.jsonl"), "--models", str(tmp_path / "models")]
        monkeypatch.setattr("sys.argv", ["fresh.py", *paths, *options])
        fresh.main()
        return capsys.readouterr().out, Log(tmp_path / "fresh.jsonl").records()

    return call


def test_a_benchmark_that_was_interrupted_goes_on_where_it_was(run, monkeypatch):
    _, first = run("--only", "recall", "--contenders", "order 2 learnt", "--minutes", "0")
    assert first == []
    shown, everything = run("--only", "recall", "--contenders", "order 2 learnt")
    assert len(everything) == len(RATES) + len(SEEDS) - 1
    assert "order 2 learnt, d 16, 8 pairs" in shown
    assert all(len(record["coefficients"]) == 2 for record in everything)

    def never(self):
        raise AssertionError(f"{self} was run again")

    monkeypatch.setattr(RecallRun, "measure", never)
    again, same = run("--only", "recall", "--contenders", "order 2 learnt")
    assert (again, same) == (shown, everything)


def test_trained_models_are_analysed_and_run_with_other_orders(run):
    run("--only", "recall", "--contenders", "order 3", "--minutes", "0.0001")
    _, records = run("--only", "found", "--contenders", "order 3")
    found = [record for record in records if record["about"]["task"] == "found"]
    assert len(found) == len(records) - len(found) > 0
    assert list(found[0]["run_as"]) == ["softmax", "order 1", "order 2", "order 3", "order 4", "order 5"]
    assert len(found[0]["heads"]) == 4
    assert all(0 < head["largest"] < 1 and head["denominator"] > 0 for head in found[0]["heads"])
    assert all(len(errors) == 8 for head in found[0]["heads"] for errors in head["errors"].values())


def test_weights_of_another_model_are_refused(tmp_path):
    weights = tmp_path / "some.safetensors"
    kept = {name: values for name, values in recall_model(16).state_dict().items() if name != "lm_head.weight"}
    save_file(kept | {"other.weight": torch.zeros(1)}, weights)
    with pytest.raises(ValueError, match="other.weight"):
        FoundRun(RecallRun("softmax"), weights).measure()
    kept.pop("model.layers.0.self_attn.q_proj.weight")
    save_file(kept, weights)
    with pytest.raises(ValueError, match="layers.0.self_attn.q_proj"):
        FoundRun(RecallRun("softmax"), weights).measure()


def test_a_model_that_broke_off_has_a_course_beside_those_that_did_not(log):
    recorded(log, "softmax", curve=[[77, 0.25]])
    recorded(log, "softmax", seed=1, curve=[[200, 0.5], [400, 0.75]])
    (series,) = courses(log.records()).series
    assert (series.x[0], series.x[-1]) == (200.0, 2400.0)
    assert (series.y[0], series.y[-1]) == (0.375, 0.5)


def test_fewer_pairs_first_are_trainings_of_their_own(monkeypatch):
    monkeypatch.setattr(recall_run, "STEPS", 1)
    monkeypatch.setattr(recall_run, "TESTED", 8 * 256)
    train, seen = recall_run.train, []

    def spied(model, loss, judge, schedule):
        seen.append(float(judge()))
        return train(model, loss, judge, schedule)

    monkeypatch.setattr(recall_run, "train", spied)
    record, _ = RecallRun("order 1", pairs=32, first=8).measure()
    assert [stage[:2] for stage in record["before"]] == [[8, 1], [16, 1]]
    assert len(seen) == 3
    assert RecallRun("order 1", pairs=16, first=8).before == [8]
    assert RecallRun("order 1", pairs=16).before == []


def test_models_with_the_worse_rate_are_not_analysed(log, tmp_path):
    plan = Plan.of(log, tmp_path, ["order 3"])
    for rate, share in zip(RATES, (0.9, 0.2), strict=True):
        weights_file(tmp_path, RecallRun("order 3", rate=rate).about).touch()
        recorded(log, rate=rate, share=share)
        assert [run.run.rate for run in plan.missing(["found"])] == [RATES[0]]


def test_a_run_after_fewer_pairs_has_a_name_and_a_line_of_its_own(log):
    alone, after = RecallRun("order 3", pairs=16), RecallRun("order 3", pairs=16, first=8)
    assert after.about == alone.about | {"first": 8}
    assert [RecallRun.of(run.about) for run in (alone, after)] == [alone, after]
    recorded(log, pairs=16)
    recorded(log, pairs=16, first=8)
    assert [line.words for line in lines(log.records())] == [
        "order 3, d 16, 16 pairs", "order 3, d 16, 16 pairs after 8",
    ]  # fmt: skip


def test_unknown_names_are_refused(run):
    with pytest.raises(SystemExit, match="--contenders: there is no order 9; expected some of: softmax, order 1"):
        run("--contenders", "order 9")
    with pytest.raises(SystemExit, match="--only: there is no recal; expected some of: recall"):
        run("--only", "recal")


@pytest.mark.parametrize(
    ("first", "second", "better"),
    [
        ({"share": 0.4}, {"share": 0.6}, RATES[1]),
        ({"share": 0.995, "solved_at": 800}, {"share": 0.999, "solved_at": 1200}, RATES[0]),
        ({"share": 0.97}, {"share": 0.989, "solved_at": 2400}, RATES[1]),
    ],
)
def test_the_first_seed_chooses_the_rate_of_the_others(log, tmp_path, first, second, better):
    plan = Plan.of(log, tmp_path, ["order 3"])
    recorded(log, rate=RATES[0], **first)
    assert [run.seed for run in plan.missing(["recall"])] == [0]
    recorded(log, rate=RATES[1], **second)
    assert [(run.seed, run.rate) for run in plan.missing(["recall"])] == [(seed, better) for seed in SEEDS[1:]]
    (line,) = lines(log.records())
    assert line.run.rate == better


def test_language_models_have_a_second_seed_with_the_rate_that_the_first_chose(log, tmp_path):
    plan = Plan.of(log, tmp_path, ["order 2", "softmax"])
    assert list(plan.missing(["text"])) == [
        TextRun(name, rate=rate) for name in ("softmax", "order 2") for rate in RATES
    ]
    for name, losses in (("softmax", (4.0, 5.0)), ("order 2", (6.0, 5.5))):
        for rate, loss in zip(RATES, losses, strict=True):
            log.add(TextRun(name, rate=rate).about, {"loss": {"256 tokens": loss}})
    assert list(plan.missing(["text"])) == [
        TextRun("softmax", seed=1, rate=RATES[0]), TextRun("order 2", seed=1, rate=RATES[1])
    ]  # fmt: skip


def test_the_table_says_how_many_seeds_there_are_and_that_one_has_no_interval(log):
    recorded(log, "softmax", share=1.0, solved_at=800)
    recorded(log, "order 2", share=0.3, broke_off=77)
    for seed, share in enumerate((0.2, 0.4, 0.6)):
        recorded(log, "order 3", seed, share=share, guarded=0.5)
    softmax, broken, order = lines(log.records())
    assert broken.figures[3] == "0 of 1, 1 broke off"
    assert softmax.figures == ["100", "1.00", "1", "1 of 1, 800", "0.003 (alone)", "0.0 %"]
    assert order.figures[1:] == ["0.40 [0.00, 0.90]", "3", "0 of 3", "0.003 (alone)", "50.0 %"]


def test_a_line_that_was_cut_off_is_run_again(log):
    recorded(log, seed=0)
    recorded(log, seed=1)
    text = log.path.read_text()
    log.path.write_text(text[:-20])
    assert [record["about"]["seed"] for record in log.records()] == [0]
    recorded(log, seed=2)
    assert [record["about"]["seed"] for record in log.records()] == [0, 2]
    assert json.loads(log.path.read_text().splitlines()[-1])["about"]["seed"] == 2
