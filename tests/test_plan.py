"""The plan of an analysis: its stages are those that the progress of a run tells, and what a dry run prints."""

from __future__ import annotations

import json
import re

import pytest
from command_line import WORDS

from taylorder.commands import _planning
from taylorder.reports.plan import Estimate
from taylorder.reports.progress import StderrProgress
from taylorder.storage.durations import duration
from taylorder.storage.machine import Machine
from taylorder.storage.stages import Stage, StagePlan, together

SMALL = ("--max-tokens", 96, "--sequence-length", 32, "--rows", 4, "--max-order", 2)
BUDGET = ("--lever-length", 48, "--budget", "600B")
SPEED = dict.fromkeys(
    ("token", "step", "pair", "loss", "spectrum", "term", "use", "near", "polynomial"), 1e-6
)  # fmt: skip


@pytest.fixture
def analyze(run, saved, tmp_path, monkeypatch):
    """Call ``taylorder analyze`` on a tiny model, into ``tmp_path / "out"``, without fits of alphas."""
    monkeypatch.setattr("taylorder.analysis.analyze.fit_spectra", lambda *_, **__: [])

    def call(*arguments):
        return run("analyze", saved, "--text", saved / "words.txt", "--out", tmp_path / "out", *SMALL, *arguments)

    return call


@pytest.fixture
def planned(analyze, monkeypatch):
    """The stages of a dry run, as its JSON has them, timed by a machine that does a million of everything a second."""
    monkeypatch.setattr("taylorder.selection.speed.speed", lambda *_: SPEED)

    def call(*arguments):
        code, out, err = analyze("--dry-run", "--format", "json", *arguments)
        assert code == 0, err
        return json.loads(out)

    return call


@pytest.mark.parametrize(
    "arguments",
    [(), ("--no-eval",), BUDGET, (*BUDGET, "--no-eval", "--levers", "window"), (*BUDGET[:2], "--levers", "order")],
)
def test_a_run_tells_the_stages_of_its_plan_in_order(analyze, planned, evaluates_on, arguments):
    evaluates_on(WORDS)
    stages = [stage["stage"] for stage in planned(*arguments)["stages"]]
    code, _, err = analyze(*arguments)
    assert code == 0, err
    told = list(dict.fromkeys(re.findall(r"^stage (\d+) of (\d+), (.*?): \d+ of", err, re.MULTILINE)))
    assert told == [(str(number), str(len(stages)), stage) for number, stage in enumerate(stages, start=1)]


def test_the_stages_of_every_budget_are_told_apart(analyze, planned, evaluates_on):
    evaluates_on(WORDS)
    arguments = ("--lever-length", 48, "--levers", "window", "--budget", "50%,600B")
    stages = [(stage["stage"], stage["budget"]) for stage in planned(*arguments)["stages"]]
    assert stages[4:] == [
        ("moving bytes", "50%"), ("runs of 48 tokens", "50%"), ("moving bytes", "600B"), ("runs of 48 tokens", "600B"),
    ]  # fmt: skip
    _, _, err = analyze(*arguments)
    first, second = err.split("budget 600B, 2 of 2")
    assert "stage 5 of 8, moving bytes" in first
    assert "stage 7 of 8, moving bytes" in second
    assert "stage 8 of 8, runs of 48 tokens" in second


def test_a_dry_run_prints_what_a_run_would_take_and_writes_nothing(analyze, tmp_path):
    code, out, err = analyze("--dry-run", *BUDGET)
    assert code == 0, err
    assert not (tmp_path / "out").exists()
    assert re.search(r"^ *2 +heads of the layers +errors of orders 1 to 2 on 4 rows of 3 ", out, re.MULTILINE)
    assert re.search(r"^ +time +\d+ s$", out, re.MULTILINE)
    assert re.search(r"^ +memory +[\d.]+ MiB$", out, re.MULTILINE)
    assert "Nothing was written." in out
    assert max(map(len, out.splitlines())) <= 80


def test_more_work_takes_longer(planned):
    def seconds(*arguments):
        document = planned(*arguments)
        assert document["seconds"] == pytest.approx(sum(stage["seconds"] for stage in document["stages"]))
        return {stage["stage"]: stage["seconds"] for stage in document["stages"]}

    little, rows, more = seconds(), seconds("--rows", 8), seconds("--budget", "600B", "--lever-length", 48)
    assert rows["heads of the layers"] > little["heads of the layers"]
    assert rows["spectra of the layers"] == little["spectra of the layers"]
    assert little.items() >= {name: more[name] for name in ("spectra of the layers", "heads of the layers")}.items()
    longer = seconds("--budget", "600B", "--lever-length", 64)
    assert longer["levers"] != more["levers"]


def test_what_the_machine_lacks_is_said_with_a_way_out(analyze, monkeypatch):
    monkeypatch.setattr("taylorder.selection.speed.speed", lambda *_: SPEED)
    monkeypatch.setattr(Machine, "here", lambda *_: Machine(2, 2**10, 2**10))
    code, out, _ = analyze("--dry-run")
    words = " ".join(out.split())
    assert code == 0
    assert "lower --max-tokens" in words
    assert "1 KiB are available" in words
    assert "name another disk with --out" in words


def test_options_that_do_not_fit_are_refused_by_a_dry_run_too(analyze):
    assert analyze("--dry-run", "--budget", "1B", "--lever-length", 48)[0] == 2


PLAN = StagePlan((Stage("one", "", {"token": 2}), Stage("two", "", {"pair": 3}, "a"), Stage("two", "", {}, "b")), 0)


def test_stages_that_have_nothing_to_do_are_passed_over(capsys):
    progress = StderrProgress()
    progress.follow(PLAN)
    progress("two", 1, 1)
    progress("elsewhere", 1, 1)
    progress.begin("b")
    progress("two", 1, 1)
    progress.begin("unknown")
    assert capsys.readouterr().err == "stage 2 of 3, two: 1 of 1\nelsewhere: 1 of 1\nstage 3 of 3, two: 1 of 1\n"


def test_work_and_speed_make_time():
    speed = SPEED | {"token": 10.0, "pair": 1.0}
    assert PLAN.seconds(speed) == 23
    assert Stage("", "", {"token": 2}, most=5).seconds(speed) == 5
    assert together({"token": 1, "pair": 2}, {"token": 3}, times=2) == {"token": 8, "pair": 4}
    assert Estimate(PLAN, speed, 5, Machine(1, None, None)).warnings == ()


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.1, "1 s"), (89, "89 s"), (91, "2 min"), (89 * 60, "89 min"), (7200, "2.0 h"), (10**7, "2,778 h")],
)
def test_times_are_rough(seconds, said):
    assert duration(seconds) == said


def test_a_plan_is_timed_with_the_model_itself(saved):
    from taylorder.models.describe import describe
    from taylorder.models.loading import load

    model = load(str(saved)).model
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    found = _planning.timed(PLAN, model, describe(model), saved)
    assert set(found.speed) == set(SPEED)
    assert all(0 < seconds < 1 for seconds in found.speed.values())
    assert all((parameter == before[name]).all() for name, parameter in model.named_parameters())
