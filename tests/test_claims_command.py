"""``taylorder claims``: measured once, kept, pooled, printed, and refused where nothing could be said."""

from __future__ import annotations

import html
import json
from collections import Counter

import pytest
import tiny
from claims_cases import SMALL, SMALL_NORMAL

import taylorder
from taylorder.analysis.analyze import analyze
from taylorder.claims import measure, registry
from taylorder.claims.measurements.order_losses import LossMeasurement
from taylorder.commands import claims as claims_command
from taylorder.commands._shared import write_run
from taylorder.models.loading import LoadedModel
from taylorder.reports import claims as report
from taylorder.runs import run_directory
from taylorder.selection.by_tolerance import select

KEYS = ["alpha", "precision", "cost", "similar", "distance", "ranges", "degree", "lookup"]


@pytest.fixture
def small(monkeypatch, tiny_tokenizer):
    """Everything at sizes of a tiny model; `small` lists what was loaded."""
    monkeypatch.setattr(registry, "MEASUREMENTS", SMALL)
    monkeypatch.setattr(registry, "NORMAL_INPUTS", SMALL_NORMAL)
    loaded = []

    def load(name, **_):
        loaded.append(name)
        return LoadedModel(tiny.TINY[name](), tiny_tokenizer, name, None)

    monkeypatch.setattr("taylorder.models.loading.load", load)
    return loaded


@pytest.fixture
def finished(tmp_path, tiny_tokenizer):
    def make(architecture, name=None, **options):
        analysis = analyze(
            tiny.TINY[architecture](), tiny_tokenizer, name=name or architecture, max_tokens=64, sequence_length=32,
            rows=4, max_order=5, **options,
        )  # fmt: skip
        directory = tmp_path / architecture
        write_run(directory, analysis, select(analysis, policy="error", tolerance=0.07, context=32), None, None)
        return directory

    return make


def test_every_claim_gets_a_verdict_with_its_rule(run, small, finished):
    directory = finished("llama")
    code, out, err = run("claims", directory)
    assert code == 0
    document = json.loads((directory / "claims.json").read_text())
    assert document["schema"] == "taylorder/claims@1"
    assert document["models"] == ["llama"]
    keys = [claim["key"] for claim in document["claims"]]
    assert len(set(keys)) == len(keys) == len(registry.VERDICTS)
    assert [key for key in keys if key in KEYS] == KEYS
    verdicts = {claim["key"]: claim["verdict"] for claim in document["claims"]}
    assert verdicts["alpha"] == "not applicable"  # two layers
    assert verdicts["precision"] == "contradicted"
    assert verdicts["lookup"] == "not applicable"  # a tokenizer without words
    for claim in document["claims"]:
        assert claim["statement"] in " ".join(out.split())
        assert claim["verdict"].upper() in out
        assert claim["rule"].endswith(".")
    assert "measuring llama for the claims" in err
    assert small == ["llama"]


def test_what_was_measured_is_not_measured_again(run, small, finished):
    directory = finished("llama")
    first = run("claims", directory, "--format", "json")[1]
    again = run("claims", directory, "--format", "json")[1]
    assert json.loads(first) == json.loads(again)
    assert small == ["llama"]
    run("claims", directory, "--fresh")
    assert small == ["llama", "llama"]


def test_python_judges_as_the_command_does(run, small, finished, tiny_tokenizer):
    directory = finished("llama")
    document = json.loads(run("claims", directory, "--format", "json")[1])
    analysis = run_directory.read(directory)[0]
    loaded = LoadedModel(tiny.llama(), tiny_tokenizer, "llama", None)
    evidence = measure.measure(analysis, loaded, directory / "records-claims", measurements=SMALL)
    claims = taylorder.judge_claims([evidence], SMALL_NORMAL.measure())
    assert [(claim.key, claim.verdict, claim.reason) for claim in claims] == [
        (claim["key"], claim["verdict"], claim["reason"]) for claim in document["claims"]
    ]


def test_several_models_are_pooled_into_a_place_of_their_own(run, small, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    directories = finished("llama"), finished("bert")
    code, out, _ = run("claims", *directories, "--tables")
    assert code == 0
    document = json.loads((tmp_path / "taylorder-claims" / "claims.json").read_text())
    assert document["models"] == ["llama", "bert"]
    assert not (directories[0] / "claims.json").exists()
    page = (tmp_path / "taylorder-claims" / "claims.html").read_text(encoding="utf-8")
    assert "<h1>llama, bert</h1>" in page
    assert all(each["statement"] in html.unescape(page) for each in document["claims"])
    verdicts = Counter(each["verdict"] for each in document["claims"])
    assert all(f"{count} {verdict}" in page for verdict, count in verdicts.items())
    assert f"taylorder claims {directories[0]} {directories[1]} --out taylorder-claims" in page
    assert "bert is bidirectional" in " ".join(out.split())
    assert "Rule: " in out
    assert "llama: weight by distance" in out
    assert "bert: weight by distance" not in out


def test_the_same_model_twice_is_refused(run, small, finished, tmp_path):
    one = finished("llama")
    other = one.rename(tmp_path / "other")
    code, _, err = run("claims", finished("llama"), other)
    assert code == 2
    assert "are runs of the same model, whose layers count once" in " ".join(err.split())
    assert not small, "nothing was measured"


def test_a_run_with_a_near_field_is_refused(run, small, finished):
    directory = finished("llama", window=8, sinks=2)
    code, _, err = run("claims", directory)
    assert code == 2
    assert "was analysed with a near field (window 8, sinks 2)" in " ".join(err.split())


def test_models_of_one_name_are_told_apart(run, small, finished, tmp_path):
    """Both are judged, and none takes the other's place."""
    paths = [finished("llama"), finished("bert", name="llama")]
    code, _, _ = run("claims", *paths, "--model", "x")
    assert code == 2
    labels = claims_command._labels(paths, [run_directory.read(path)[0] for path in paths])
    assert labels == [str(path) for path in paths]


def test_a_stage_that_changes_is_measured_anew_and_no_other(run, small, finished, monkeypatch):
    directory = finished("llama")
    run("claims", directory)
    records = directory / "records-claims"
    before = {path: path.stat().st_mtime_ns for path in records.rglob("*.json")}
    others = [each for each in SMALL if each.name != "losses"]
    monkeypatch.setattr(registry, "MEASUREMENTS", (*others, LossMeasurement(length=32, sequences=2, orders=(1, 2))))
    code, _, _ = run("claims", directory)
    assert code == 0
    after = {path: path.stat().st_mtime_ns for path in records.rglob("*.json")}
    changed = {path.parent.name for path, when in after.items() if before.get(path) != when}
    assert changed == {"losses"}


def test_figures_of_other_software_are_not_kept(run, small, finished, monkeypatch):
    """What a document of claims says it was measured with is what it was measured with."""
    directory = finished("llama")
    run("claims", directory)
    before = {path: path.stat().st_mtime_ns for path in (directory / "records-claims").rglob("*.json")}
    versions = {**measure.software_versions(), "torch": "3.0"}
    monkeypatch.setattr(measure, "software_versions", lambda: versions)
    code, _, _ = run("claims", directory)
    assert code == 0
    assert all(path.stat().st_mtime_ns != when for path, when in before.items())


def test_out_may_be_the_directory_of_one_of_several(run, small, finished):
    """The page of that one is not overwritten with what was pooled."""
    directories = [finished("llama"), finished("bert")]
    page = (directories[0] / "report.html").read_text()
    code, _, _ = run("claims", *directories, "--out", directories[0])
    assert code == 0
    assert (directories[0] / "report.html").read_text() == page
    assert (directories[0] / "claims.html").exists()


def test_json_is_what_the_file_holds(run, small, finished, tmp_path):
    _, out, _ = run("claims", finished("llama"), "--format", "json", "--out", tmp_path / "elsewhere")
    assert out == (tmp_path / "elsewhere" / "claims.json").read_text()


def test_another_model_than_was_analysed_is_refused(run, small, finished):
    code, _, err = run("claims", finished("llama"), "--model", "qwen3")
    assert code == 1
    assert "qwen3 is not the model that was analysed as llama" in err
    assert "--model" in err


def test_without_a_run_the_way_out_is_named(run, small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run("claims")
    assert code == 2
    assert "taylorder-out does not exist; `taylorder analyze --out taylorder-out` makes one" in err


def test_one_model_for_several_directories_is_refused(run, small, finished):
    code, _, err = run("claims", finished("llama"), finished("bert"), "--model", "llama")
    assert code == 2
    assert "--model names one model, but there are 2 directories" in err


def test_cells_are_short():
    assert [report.cell(each) for each in (None, 0.123456, 12345.6, 1234567, "q", float("inf"))] == [
        "-", "0.123", "12,346", "1,234,567", "q", "inf",
    ]  # fmt: skip
