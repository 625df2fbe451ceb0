"""``taylorder analyze --budget`` and ``--levers`` on a tiny saved model: files, figures, and what is refused."""

from __future__ import annotations

import csv
import json
import math
import re

import pytest
import tiny
import torch
from command_line import WORDS

from taylorder.adapt.config import OrderConfig
from taylorder.adapt.cost import config_bytes
from taylorder.adapt.decisions import FlatOrder
from taylorder.kernels.spec import Dropped, Exact
from taylorder.models.describe import describe
from taylorder.models.loading import load
from taylorder.selection import lever_table as measuring
from taylorder.selection import refine as refining
from taylorder.selection.candidates import LEVERS

SMALL = ("--max-tokens", 96, "--sequence-length", 32, "--rows", 4, "--max-order", 2)


@pytest.fixture
def analyze(run, saved, tmp_path, monkeypatch):
    """Call ``taylorder analyze`` on it, into ``tmp_path / "out"``, without fits of alphas."""
    monkeypatch.setattr("taylorder.analysis.analyze.fit_spectra", lambda *_, **__: [])

    def call(*arguments, evaluate=False):
        rest = () if evaluate else ("--no-eval",)
        if {"--budget", "--levers"} & set(arguments):
            rest = (*rest, "--lever-length", 48)
        out = ("--text", saved / "words.txt", "--out", tmp_path / "out")
        return run("analyze", saved, *out, *SMALL, *rest, *arguments)

    return call


def loaded(saved):
    with torch.random.fork_rng(devices=[]):
        return load(str(saved))


def config_in(directory, saved):
    model = loaded(saved).model
    return OrderConfig.load(directory / "orders.json", model), describe(model, str(saved))


def lever_rows(directory):
    with (directory / "levers.csv").open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def test_a_budget_gives_a_config_within_it(analyze, saved, tmp_path):
    code, out, err = analyze("--budget", "0.75KiB")
    assert code == 0, err
    directory = tmp_path / "out"
    files = {f"{name}.csv" for name in ("heads", "spectral", "levers", "probes")} | {
        "report.json",
        "report.html",
        "records",
    }
    assert {path.name for path in directory.iterdir()} == files | {"orders.json", "orders.safetensors"}
    config, description = config_in(directory, saved)
    total = config_bytes(config, description, 64)
    assert 0 < total <= 4 * 768
    assert config.criterion["criterion"] == "iterative"
    rows = lever_rows(directory)
    chosen = [row for row in rows if row["chosen"] == "1"]
    assert [(row["module"], row["kv_head"]) for row in chosen] == [
        (f"model.layers.{layer}.self_attn", str(kv_head)) for layer in (0, 1) for kv_head in (0, 1)
    ]
    assert sum(int(row["nominal_bytes"]) for row in chosen) == total
    for row, choice in zip(chosen, [layer.heads[i] for layer in config.layers for i in (0, 2)], strict=True):
        head = FlatOrder.of(choice)
        assert row["order"] == str(head.order)
        assert tuple(int(row[name]) for name in ("window", "sinks", "kept")) == (head.window, head.sinks, head.kept)
        assert float(row["relative_l2"]) == pytest.approx(head.error, abs=1e-6)
    report = json.loads((directory / "report.json").read_text(encoding="utf-8"))
    with (directory / "probes.csv").open(newline="", encoding="utf-8") as lines:
        probes = [(row["module"], row["kv_head"], float(row["kept_share"])) for row in csv.DictReader(lines)]
    assert probes == [
        (row["module"], str(row["kv_head"]), row["kept_share"]) for row in report["levers"]["probes"]["rows"]
    ]
    assert len(probes) == 4
    assert report["files"]["probes"] == "probes.csv"
    keeping = [(row["module"], int(row["kv_head"])) for row in chosen if row["kept"] != "0"]
    example = report["levers"]["example"]
    assert [(held["module"], held["kv_head"]) for held in (example or {"kv_heads": []})["kv_heads"]] == keeping
    assert (example is None) == (not keeping)
    assert "What every KV head keeps" in out
    assert "a polynomial is the better use of its bytes than a near field of the same size" in out.replace("\n  ", " ")
    assert "Criterion iterative" in out.replace("\n  ", " ")
    assert "The same for all KV heads (window + sinks + kept keys): " in out.replace("\n  ", " ")
    assert re.search("chosen +KV heads +bytes each", out)
    assert "levers.csv, probes.csv" in out.replace("\n  ", " ")
    assert max(map(len, out.splitlines())) <= 80
    assert "\x1b" not in out + err


def test_show_prints_the_same_report(analyze, run, evaluates_on, tmp_path):
    evaluates_on(WORDS)
    code, out, err = analyze("--budget", "44%", evaluate=True)
    assert code == 0, err
    forms = "901 B per KV head on average = 44% of exact = 3.52 KiB in total = 28 tokens of cache per KV head"
    assert forms in " ".join(out.split())
    assert forms in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert run("show", tmp_path / "out") == (0, out, "")
    assert "What every KV head keeps" in out
    assert "sequences of 48 tokens" in out
    assert "to window" in out.replace("\n  ", " ")
    code, shown, _ = run("show", tmp_path / "out", "--format", "json")
    assert code == 0
    assert out.index("one window ") < out.index("next ") < out.index("The run")
    verdict = json.loads(shown)["verdict"]["text"]
    assert verdict == json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["verdict"]["text"]


def test_json_carries_the_levers_with_bound_and_gap(analyze, tmp_path):
    code, out, err = analyze("--budget", "700B", "--format", "json")
    assert code == 0, err
    document = json.loads(out)
    levers = document["levers"]
    assert levers == json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["levers"]
    assert levers["bound"] <= levers["objective"]
    assert levers["gap"] == 0.0
    assert (levers["budget"], levers["tolerance"], levers["context"]) == (700, None, 64)
    assert levers["nominal_bytes"] <= 700 < levers["exact_bytes"] == 64 * 32
    assert levers["levers"] == list(LEVERS)
    assert (levers["sequences"], levers["sequence_length"], levers["kv_heads"]) == (2, 48, 4)
    assert sum(count for _, count in levers["chosen"]) == 4
    assert document["settings"]["policy"] == "levers"
    assert len(levers["starts"]) >= 2, "a window and at least one share of kept keys fit all KV heads"
    begun = [each for each in levers["rounds"] if each["promised"] is None]
    assert [each["among"] for each in begun] == ["near fields"] * 2
    assert sorted(each["kl"] for each in begun) == pytest.approx(sorted(kl for _, kl in levers["starts"])[:2], rel=0.05)
    assert sum(kind["kv_heads"] for kind in levers["kinds"]) == 4
    assert sum(kind["kv_heads"] * kind["nominal_bytes"] for kind in levers["kinds"]) <= 4 * 700
    assert all(row["kept_share"] <= row["oracle_share"] <= 1 for row in levers["probes"]["rows"])
    best = min(levers["rounds"], key=lambda each: each["kl"])
    assert levers["objective"] == (best["promised"] or 0.0)


def test_windows_alone_give_windows_only(analyze, saved, tmp_path):
    code, _, err = analyze("--budget", "800B", "--levers", "window")
    assert code == 0, err
    config, description = config_in(tmp_path / "out", saved)
    heads = [head for layer in config.layers for head in layer.heads]
    assert all(isinstance(head.spec.far, Exact | Dropped) for head in heads)
    assert not all(isinstance(head.spec.far, Exact) for head in heads)
    assert config_bytes(config, description, 64) <= 4 * 800
    assert {row["coefficients"] for row in lever_rows(tmp_path / "out") if row["order"] != "exact"} == {"dropped"}


def test_a_kv_head_that_a_tolerance_keeps_exact_is_not_exact_by_a_budget(analyze, saved, tmp_path):
    code, out, _ = analyze("--levers", "all", "--tolerance", 1e-5)
    assert code == 0
    config, _ = config_in(tmp_path / "out", saved)
    reasons = {head.reason for layer in config.layers for head in layer.heads if isinstance(head.spec.far, Exact)}
    assert reasons == {"levers"}
    assert "e  exact: the error allowed in all is spent better on other KV heads" in out


def test_a_tolerance_bounds_the_root_mean_square_of_the_errors(analyze, tmp_path):
    code, out, err = analyze("--levers", "all", "--tolerance", 0.4)
    assert code == 0, err
    rows = lever_rows(tmp_path / "out")
    chosen = [row for row in rows if row["chosen"] == "1"]
    assert math.sqrt(sum(float(row["relative_l2"]) ** 2 for row in chosen) / 4) <= 0.4
    total = sum(int(row["nominal_bytes"]) for row in chosen)
    assert total < 4 * 64 * 32
    assert f"Fewest bytes: {total:,} in all".replace(",", "") in out.replace("\n  ", " ").replace(",", "")
    tight = analyze("--levers", "all", "--tolerance", 0.01, "--format", "json")[1]
    assert total < json.loads(tight)["levers"]["objective"] <= 4 * 64 * 32


@pytest.mark.parametrize(
    ("arguments", "value", "way_out"),
    [
        (["--budget", "12 furlongs"], "--budget is '12 furlongs'", "for example 65536B or 1.5MiB"),
        (["--budget", "128"], "--budget is '128', which has no unit", "write 128KiB, 128MiB, or 128B"),
        (["--budget", "0"], "--budget is '0'", "expected a positive number of bytes"),
        (["--budget", "120%"], "--budget is '120%'", "above 0% and below 100%"),
        (["--budget", "1KiB,tokens:x"], "--budget is 'tokens:x'", "such as tokens:512"),
        (["--levers", "order,rank"], "--levers has 'rank'", "expected all, or some of order, expansion"),
        (["--levers", "all", "--policy", "alpha"], "--policy alpha knows no levers", "leave out --budget and --levers"),
        (["--budget", "1KiB", "--policy", "alpha"], "--policy alpha knows no levers", "or --policy"),
        (["--budget", "1KiB", "--lever-length", "1"], "--lever-length", "invalid value"),
    ],
)
def test_bad_options_are_refused_before_anything_is_loaded(analyze, nothing_loads, tmp_path, arguments, value, way_out):
    code, out, err = analyze(*arguments)
    assert (code, out) == (2, "")
    assert value in err
    assert way_out in err
    assert not (tmp_path / "out").exists()


def test_a_budget_that_nothing_fits_is_named_with_the_way_out_before_anything_is_measured(
    analyze, monkeypatch, tmp_path
):
    monkeypatch.setattr("taylorder.analysis.analyze.analyze", lambda *_, **__: pytest.fail("measured"))
    code, out, err = analyze("--budget", "100B")
    assert (code, out) == (2, "")
    last = err.splitlines()[-1]
    assert last.startswith("error: the budget is 100 bytes per KV head, and the cheapest way to run one takes ")
    assert re.search(r" takes (\d+) at 64 tokens: raise it to at least \1B$", last)
    assert not (tmp_path / "out" / "report.json").exists()


def test_sequences_shorter_than_every_window_are_refused(analyze):
    code, out, err = analyze("--budget", "900B", "--lever-length", 16)
    assert (code, out) == (2, "")
    last = err.splitlines()[-1]
    assert last.startswith("error: sequences are of 16 tokens, and no window offered is shorter: raise --lever-length")


def test_no_window_is_offered_that_hides_the_far_keys_of_a_longer_context(analyze, tmp_path):
    """On sequences of 48 tokens a near field of over 24 leaves too few rows with far keys to speak for 64 tokens."""
    for context, largest in ((48, 32), (64, 16)):
        code, _, err = analyze("--budget", "1200B", "--context", context, "--fresh")
        assert code == 0, err
        assert max(int(row["window"]) + int(row["sinks"]) for row in lever_rows(tmp_path / "out")) == largest


def test_a_run_within_a_budget_is_not_lost_unasked(analyze, tmp_path):
    assert analyze("--budget", "700B")[0] == 0
    code, _, err = analyze("--budget", "0.75KiB")
    assert code == 0, err
    assert "which this one replaces when it is finished: budget 700, now 768\n" in err
    config = tmp_path / "out" / "orders.json"
    before = config.read_bytes()
    lost = f"error: {tmp_path}/out holds another run, which this one replaces when it is finished: "
    code, out, err = analyze("--budget", "0.75KiB", "--seed", 3)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == (
        f"{lost}seed 0, now 3; to measure it again takes long: name another --out, or add --fresh to replace it"
    )
    code, out, err = analyze()
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].endswith("takes long: name another --out, or delete this one")
    assert "policy levers, now error" in err
    assert config.read_bytes() == before
    assert analyze("--budget", "0.75KiB", "--seed", 3, "--fresh")[0] == 0


def test_an_interrupted_run_goes_on_and_fresh_starts_over(analyze, tmp_path, monkeypatch):
    options = ("--budget", "700B", "--format", "json")
    measured = []

    def counting(*arguments, **options):
        measured.append(arguments[0])
        return measure_levers(*arguments, **options)

    measure_levers, measure_slopes = measuring.measure_levers, refining.measure_slopes
    monkeypatch.setattr(measuring, "measure_levers", counting)

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(refining, "measure_slopes", interrupt)
    code, out, err = analyze(*options)
    assert (code, out) == (130, "")
    records = tmp_path / "out" / "records"
    assert err.splitlines()[-1] == (
        f"error: interrupted; what was finished is kept in {records}: the same command goes on from there"
    )
    assert not (tmp_path / "out" / "report.json").exists()
    first = [f"model.layers.{layer}.self_attn" for layer in (0, 1)]
    assert measured == first

    monkeypatch.setattr(refining, "measure_slopes", measure_slopes)
    code, out, err = analyze(*options)
    assert code == 0, err
    assert measured == first, "nothing is measured again"
    assert analyze(*options, "--fresh")[:2] == (0, out)
    assert measured == first * 2


def test_a_bidirectional_model_is_refused(analyze, loads, tmp_path, tiny_tokenizer):
    loads(tiny.bert(), tiny_tokenizer, name="tiny/bert")
    code, out, err = analyze("--budget", "1KiB")
    assert (code, out) == (3, "")
    assert err.splitlines()[-1] == (
        "error: tiny/bert has no attention module whose cache could be exchanged: levers are for causal models with "
        "layers that see the whole context; leave out --budget and --levers"
    )
    assert not (tmp_path / "out").exists(), "refused before anything is measured"
