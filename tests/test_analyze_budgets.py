"""``taylorder analyze --budget`` with several budgets: measured once, a run for each, a table and a page of all."""

from __future__ import annotations

import json
import re

import pytest
from command_line import WORDS
from pages import Page

from taylorder.runs import run_directory
from taylorder.selection import lever_table as measuring

SMALL = (
    "--max-tokens", 96, "--sequence-length", 32, "--rows", 4, "--max-order", 2, "--lever-length", 48,
    "--levers", "window",
)  # fmt: skip
FOLDERS = ["600B", "50percent"]


@pytest.fixture
def analyze(run, saved, tmp_path, monkeypatch):
    """Call ``taylorder analyze`` on it, into ``tmp_path / "out"``, without fits of alphas."""
    monkeypatch.setattr("taylorder.analysis.analyze.fit_spectra", lambda *_, **__: [])

    def call(*arguments):
        return run("analyze", saved, "--text", saved / "words.txt", "--out", tmp_path / "out", *SMALL, *arguments)

    return call


def test_several_budgets_are_measured_once_and_get_a_run_each(analyze, run, evaluates_on, monkeypatch, tmp_path):
    evaluates_on(WORDS)
    measured, measure_levers = [], measuring.measure_levers

    def counting(*arguments, **options):
        measured.append(arguments[0])
        return measure_levers(*arguments, **options)

    monkeypatch.setattr(measuring, "measure_levers", counting)
    code, out, err = analyze("--budget", "50%,600B", "--fresh")
    assert code == 0, err
    assert measured == [f"model.layers.{layer}.self_attn" for layer in (0, 1)], "each layer once, not once per budget"
    directory = tmp_path / "out"
    assert {path.name for path in directory.iterdir()} == {*FOLDERS, "records", "index.html", "budgets.json"}
    document = json.loads((directory / "budgets.json").read_text(encoding="utf-8"))
    assert [(made["budget"], made["folder"]) for made in document["runs"]] == [("50%", "50percent"), ("600B", "600B")]
    assert [made["budget_bytes"] for made in document["runs"]] == [1024, 600]
    for made in document["runs"]:
        _, selection = run_directory.read(directory / made["folder"])
        assert selection.levers.nominal_bytes == made["nominal_bytes"] <= made["budget_bytes"]
        evaluation = run_directory.read_evaluation(directory / made["folder"])
        standings = {standing["name"]: standing for standing in made["standings"]}
        assert standings["config"]["nll"] == evaluation.comparisons[0].standing("config").nll.estimate
        assert set(standings) == {"exact", "config", "window"}
    row = r"600B +\d+ B +[\d.]+ +[+-]?[\d.]+ \[.*\] +[+-]?[\d.]+ \[.*\]\n50% "
    assert re.search(row, out), "smallest first, in one line each"
    assert max(map(len, out.splitlines())) <= 80
    assert run("show", directory) == (0, out, "")
    assert run("show", directory / "index.html") == (0, out, "")
    assert json.loads(run("show", directory, "--format", "json")[1])["runs"] == document["runs"]
    page = Page((directory / "index.html").read_text(encoding="utf-8"))
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert {f"{folder}/report.html" for folder in FOLDERS} <= set(links)
    assert all((directory / link).is_file() for link in links if not link.startswith("#"))
    assert all(name in page.text for name in ("Loss against bytes", "chosen per KV head", "one window for all"))
    assert sum(tag == "use" for tag, _ in page.tags) == 5 + 3, "two budgets, their windows and exact; and the keys"
    assert "--budget 50%,600B " in page.text
    assert run("show", directory / "600B")[0] == 0


def test_without_losses_the_kl_of_the_calibration_text_stands(analyze, tmp_path):
    code, out, err = analyze("--budget", "600B,tokens:32", "--no-eval", "--format", "json")
    assert code == 0, err
    document = json.loads(out)
    assert [made["standings"] for made in document["runs"]] == [[], []]
    assert document["runs"][0]["calibration_kl"] >= document["runs"][1]["calibration_kl"] > 0
    assert document == json.loads((tmp_path / "out" / "budgets.json").read_text(encoding="utf-8"))
    assert "KL to exact against bytes" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


def test_a_directory_of_several_runs_is_told_from_a_run(analyze, run, nothing_loads, tmp_path):
    directory = tmp_path / "out"
    (directory / "600B").mkdir(parents=True)
    for name in ("budgets.json", "600B/report.json"):
        (directory / name).write_text("{}", encoding="utf-8")
    one_of_them = f"{directory} holds a run for each of several budgets; name one of them: {directory}/600B"
    code, _, err = analyze("--budget", "600B")
    assert (code, err) == (2, f"error: --out {one_of_them}, or another directory\n")
    code, _, err = run("generate", "x", "--config", directory)
    assert (code, err) == (2, f"error: {one_of_them}\n")
    code, _, err = run("claims", directory)
    assert (code, err.splitlines()[-1]) == (2, f"error: {one_of_them}")
    code, _, err = run("show", directory)
    assert code == 1
    assert f"{directory}/budgets.json is damaged" in err
    (directory / "budgets.json").unlink()
    (directory / "report.json").write_text("{}", encoding="utf-8")
    code, _, err = analyze("--budget", "600B,700B")
    assert code == 2
    assert err == (
        f"error: --out {directory} holds a run, and several budgets get a folder each; name another directory\n"
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("50%,1KiB", "--budget has 50% and 1KiB, both 1024 bytes per KV head; leave one out"),
        ("600B,1%", "the budget 1% is 20 bytes per KV head, and the cheapest way to run one takes "),
    ],
)
def test_every_budget_is_checked_before_anything_is_measured(analyze, monkeypatch, tmp_path, given, message):
    monkeypatch.setattr("taylorder.analysis.analyze.analyze", lambda *_, **__: pytest.fail("measured"))
    code, out, err = analyze("--budget", given)
    assert (code, out) == (2, "")
    assert message in err.splitlines()[-1]
    assert not (tmp_path / "out").exists()
