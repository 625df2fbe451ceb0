"""``report.html`` without a browser: its figures and words are those of the run, and nothing comes from elsewhere."""

from __future__ import annotations

import csv
import re
import shlex
from pathlib import Path

import pytest
import synthetic
import typer
from evaluations import comparison
from pages import Page
from synthetic import replaced

from taylorder import cli
from taylorder.claims.claim import Claim, Effect, FigureTable, Plot, Series
from taylorder.commands._shared import write_run
from taylorder.evaluation.evaluate import Evaluation
from taylorder.kernels.spec import EXPANSIONS
from taylorder.reports import grids, html, html_data, levers, summary, verdict
from taylorder.reports.analysis import sections as report_sections
from taylorder.reports.claims import ClaimsReport
from taylorder.reports.document import as_document
from taylorder.reports.numbers import percent
from taylorder.reports.render import plain_text
from taylorder.reports.sections import Paragraph
from taylorder.reports.sections import Table as TableBlock

HOSTILE = "</script><script>alert(1)</script><b>&amp;'\"<!--"


def easy_error(layer, head, order, expansion):
    """Layers from the third on meet 7 % at order 1, around any point."""
    return (0.5 if layer < 2 else 0.05) / order + 0.001 * head


def evaluation():
    return Evaluation(False, (comparison(3.8125, length=1024, sequences=4),))


def claim(**changes):
    made = Claim(
        key="alpha",
        statement="Alpha tells the order.",
        source="arXiv 2102.06603",
        verdict="contradicted",
        reason="It does not.",
        rule="A correlation.",
        effects=(Effect("rho", -0.125, -0.5, 0.25, "above 0"), Effect("features", 2080.0, None, None, "few")),
        tables=(FigureTable("By layer", ("layer", "rho"), (("0", 0.12345), ("1", None), ("2", float("nan")))),),
        plots=(Plot("Rho", "layer", "rho", (Series("a", (0.0, 1.0), (0.5, None), (0.25, 0.0), (0.75, 1.0)),)),),
        notes=("Few layers.",),
    )
    return replaced(made, **changes)


def test_figures_are_those_of_the_run_directory(tmp_path):
    measured = synthetic.analysis(layers=4, heads=6, kv_heads=2, max_order=5)
    chosen = synthetic.selection(measured)
    write_run(tmp_path, measured, chosen)
    data = Page(html.render(measured, chosen)).data
    heads = {(layer["module"], place): head for layer in data["layers"] for place, head in enumerate(layer["heads"])}
    with (tmp_path / "heads.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 6 * 5 * 3
    for row in rows:
        head = heads[row["module"], int(row["head"])]
        place, order = EXPANSIONS.index(row["expansion"]), int(row["order"]) - 1
        error, raw = float(row["relative_l2"]), percent(float(row["raw_relative_l2"]))
        figures = head["table"][order]
        assert head["error"][place][order][0] == error
        assert head["error"][place][order][2] == percent(error, 3)
        assert figures[1 + place] == (percent(error) if percent(error) == raw else f"{percent(error)} ({raw})")
        assert figures[4 + place] == percent(float(row["nonpositive_share"]))
        assert figures[7] == percent(float(row["gaussian_prediction"]))
        assert head["std"][0] == float(row["score_std"])
        assert head["kv_head"] == int(row["kv_head"])
    with (tmp_path / "spectral.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            layer = next(each for each in data["layers"] if each["module"] == row["module"])
            alpha, text, *_ = layer["alphas"][row["projection"]]
            assert alpha == (float(row["alpha"]) if row["alpha"] else None)
            assert (text == "failed") == (row["status"] == "failed")
    for verdict_ in chosen.heads:
        assert heads[verdict_.module, verdict_.head]["needed"][0] == verdict_.needed_order


def test_the_page_opens_with_the_head_of_least_error():
    measured = synthetic.analysis(layers=3, error=lambda layer, head, order, _: 0.1 if (layer, head) == (1, 4) else 0.9)
    assert Page(html.render(measured, synthetic.selection(measured))).data["start"] == [1, 4]


def test_nothing_is_loaded_from_anywhere():
    measured = synthetic.analysis(layers=3)
    source = html.render(measured, synthetic.selection(measured), evaluation(), (claim(),))
    page = Page(source)
    targets = [attrs[name] for _, attrs in page.tags for name in ("src", "href", "action", "data") if name in attrs]
    assert targets
    beside = {"orders.json", "heads.csv", "spectral.csv", "report.json"}  # what a reader may follow a link to
    assert {target for target in targets if not target.startswith(("#", "data:,"))} == beside
    assert not re.search(r"@import|url\(|\bfetch\(|XMLHttpRequest|\bimport[\s(]|WebSocket|sendBeacon", source)
    assert ("meta", "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:") in [
        (tag, attrs.get("content")) for tag, attrs in page.tags
    ]
    anchors = {attrs["href"][1:] for tag, attrs in page.tags if tag == "a" and attrs["href"] not in beside}
    assert anchors <= {attrs.get("id") for _, attrs in page.tags}


def test_the_built_in_model_fits_in_a_megabyte():
    measured = synthetic.analysis()
    assert len(html.render(measured, synthetic.selection(measured)).encode()) < 1_000_000


def test_hostile_names_stay_text():
    measured = synthetic.analysis(layers=2, name=HOSTILE, source=HOSTILE, weights_note=HOSTILE)
    series = Series(HOSTILE, (1.0,), (2.0,))
    claims = (
        claim(
            statement=HOSTILE, reason=HOSTILE, notes=(HOSTILE,), verdict="undecided",
            effects=(Effect(HOSTILE, 1.0, None, None, HOSTILE),),
            tables=(FigureTable(HOSTILE, (HOSTILE,), ((HOSTILE,),)),),
            plots=(Plot(HOSTILE, HOSTILE, HOSTILE, (series,)),),
        ),
    )  # fmt: skip
    source = html.render(measured, synthetic.selection(measured), None, claims, Path(HOSTILE.replace("/", "")))
    page = Page(source)
    assert [attrs.get("type") for tag, attrs in page.tags if tag == "script"] == ["application/json", "module"]
    assert "b" not in {tag for tag, _ in page.tags}
    assert "<!--" not in source
    (label,) = [
        attrs["aria-label"] for tag, attrs in page.tags if tag == "svg" and HOSTILE in attrs.get("aria-label", "")
    ]
    assert label == f"{HOSTILE}: {HOSTILE} against {HOSTILE}"
    assert page.text.count(" ".join(HOSTILE.split())) > 8


def texts_of(section):
    """Everything that a section says, but what is drawn or laid out."""
    for block in section.blocks:
        if isinstance(block, Paragraph):
            yield from block.lines
        elif isinstance(block, TableBlock):
            yield from (column.title for column in block.columns)
            yield from (cell.text + cell.mark for row in block.rows for cell in row)


@pytest.mark.parametrize("levers", [False, True])
def test_terminal_and_page_render_the_same_sections(levers):
    measured, found = synthetic.analysis(layers=3), evaluation()
    chosen = synthetic.lever_selection(measured) if levers else synthetic.selection(measured)
    page = Page(html.render(measured, chosen, found))
    sections = report_sections(measured, chosen, None, found)
    assert {section.about for section in sections} >= {"run", "each head", "config", "verdict"}
    for section in sections:
        printed = plain_text([section], 2000)
        assert all(line in printed for text in texts_of(section) for line in text.split("\n"))  # titles may be folded
    shown = [section for section in sections if section.about in ("run", "all heads", "config")]
    assert all(" ".join(text.split()) in page.text for section in shown for text in texts_of(section))
    titled = [section for section in sections if section.about != "run" and section.level == 2]
    assert [section for section in titled if section.title in page.text] == [one for one in shown if one in titled]
    assert " ".join(verdict.sentences(measured, chosen, found)) in page.text
    assert "3.812 [3.612, 4.013]" in page.text


def test_claims_are_shown_with_their_figures():
    measured = synthetic.analysis(layers=2)
    chosen = synthetic.selection(measured)
    claims = (claim(), claim(verdict="supported"))
    page = Page(html.render(measured, chosen, None, claims))
    for told in (
        "1. Alpha tells the order.",
        "✕ contradicted",
        "✓ supported",
        "rho -0.125 [-0.5, 0.25] above 0",
        "features 2,080 exact, by formula few",
        "Rule: A correlation.",
        "Source: arXiv 2102.06603",
        "Few layers.",
        "By layer layer rho 0 0.123 1 - 2 nan",
        "a: 0, 0.5",
        "Without 1 point that has no figure on these axes.",
    ):
        assert told in page.text
    pooled = Page(html.render_claims(ClaimsReport(("a", "b"), claims), [Path("a"), Path("b c")], Path("out")))
    assert "a, b 2 claims about truncated attention: 1 supported, 1 contradicted." in pooled.text
    assert "taylorder claims a 'b c' --out out" in pooled.text
    shown = pooled.text[pooled.text.index("1. Alpha tells the order.") : pooled.text.rindex("Reproduce")]
    assert "rho -0.125 [-0.5, 0.25] above 0" in shown
    assert shown in page.text
    without = Page(html.render(measured, chosen))
    assert "Claims" not in without.text


def nan_error(layer, head, order, expansion):
    return (
        float("nan") if head == 0 else float("inf") if head == 1 else synthetic.hard_error(layer, head, order, "zero")
    )


VARIANTS = {
    "encoder": (dict(layers=3, causal=False, max_context=512), {}, "BertModel, bidirectional (no cache)"),
    "one of everything": (dict(layers=1, heads=1, kv_heads=1, max_order=1), {}, "1 layer of 1 head,"),
    "wide and deep": (dict(layers=100, heads=32, kv_heads=8), {}, "100 layers of 32 heads on 8 KV heads"),
    "no preview": (dict(layers=2, preview=False), {}, "near field: none"),
    "near field": (dict(layers=2, window=64, sinks=4), {}, "window 64, sinks 4"),
    "policy alpha": (dict(layers=4), dict(policy="alpha"), "The alphas alone gave"),
    "some sliding": (dict(layers=4, sliding=lambda layer: layer % 2 == 0), {}, "sliding-window layers stay as they"),
    "all sliding": (dict(layers=2, sliding=lambda layer: True), {}, "there is nothing to choose"),
    "some chosen": (dict(layers=4, error=easy_error), {}, "get an order (order 1: 18)"),
    "per head": (dict(layers=2, per_head_alpha=True), {}, "--per-head-alpha"),
    "no order pays": (dict(layers=2, error=easy_error), dict(context=1), "No order pays off"),
    "not finite": (dict(layers=2, error=nan_error), {}, "2 layers of 9 heads"),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_all_kinds_of_runs_render(name):
    shape, choice, told = VARIANTS[name]
    measured = synthetic.analysis(**shape)
    chosen = synthetic.selection(measured, **choice)
    page = Page(html.render(measured, chosen))
    assert told in page.text
    assert len(page.data["layers"]) == len(measured.model.modules)
    assert {len(layer["heads"]) for layer in page.data["layers"]} == {measured.model.modules[0].heads}


def test_reasons_and_choices_of_heads():
    measured = synthetic.analysis(layers=4, error=easy_error)
    first, *_, last = Page(html.render(measured, synthetic.selection(measured))).data["layers"]
    assert first["heads"][0]["order"] == [None, "·", "exact: no measured order is good enough", None]
    assert first["heads"][0]["choice"] == "Stays exact: no measured order is good enough."
    assert last["heads"][8]["order"] == [1, "1", "order 1, expansion zero", 0]
    assert last["heads"][8]["choice"] == (
        "Chosen: order 1, expansion zero. The smallest order that pays off at 8,192 tokens and meets 7%, as all heads "
        "of its KV cache do; error 5.8%; 260 B per KV head at 8,192 tokens; breaks even at 2 tokens."
    )


def test_a_run_without_any_alpha_renders():
    measured = replaced(synthetic.analysis(layers=2), spectral=())
    data = Page(html.render(measured, synthetic.selection(measured))).data
    assert "alpha" not in data["views"]
    assert {tuple(figure) for layer in data["layers"] for figure in layer["alphas"].values()} == {
        (None, "-", "alpha -", None)
    }


def test_levers_are_summarised():
    measured = synthetic.analysis(layers=3)
    chosen = synthetic.lever_selection(measured)
    page = Page(html.render(measured, chosen, evaluation()))
    for sentence in (*levers.sentences(chosen.levers), levers.program(chosen.levers)):
        assert sentence in page.text
    assert "What every KV head keeps" in page.text
    assert "window 60 6" in page.text  # candidates and how many KV heads run them
    first, _, last = page.data["layers"]
    window = "the last 60 keys and the first 4 exact, all others dropped"
    assert last["heads"][0]["choice"] == f"Runs: {window}."
    assert last["heads"][0]["runs"][1] == "w"
    assert first["heads"][0]["choice"] == (
        "Runs: order 2, expansion mean, the last 28 keys and the first 4 exact, ranks 64, 64."
    )
    command = next(line for line in commands_of(measured, chosen, evaluation()) if " analyze " in line)
    assert "--levers order,window --budget 20000B" in command


def commands_of(measured, chosen, found=None, directory=None):
    source = html.render(measured, chosen, found, None, directory)
    return [Page(f"<script>0</script>{code}").text for code in re.findall(r"<pre[^>]*><code>.*?</code>", source)]


def test_the_command_of_a_run_with_defaults_names_no_option():
    measured = synthetic.analysis(layers=2)
    shown = commands_of(measured, synthetic.selection(measured), evaluation())
    assert shown[:2] == ["taylorder analyze smollm2-135m --out taylorder-out", "taylorder show taylorder-out"]


def test_the_command_of_a_run_makes_the_same_run():
    measured = synthetic.analysis(
        layers=2, window=32, sinks=2, max_order=4, source="a b.txt, c.txt", per_head_alpha=True
    )
    measured = replaced(measured, calibration=replaced(measured.calibration, seed=5, rows_per_sequence=1024))
    shown = commands_of(measured, synthetic.selection(measured, tolerance=0.1, context=2000), None, Path("my run"))
    words = shlex.split(shown[0])
    assert words[:2] == ["taylorder", "analyze"]
    context = typer.main.get_command(cli.app).commands["analyze"].make_context("analyze", words[2:])
    given = {name: value for name, value in context.params.items() if value is not None}
    usual = typer.main.get_command(cli.app).commands["analyze"].make_context("analyze", []).params
    assert {name: value for name, value in given.items() if value != usual[name]} == {
        "model": "smollm2-135m", "text": [Path("a b.txt"), Path("c.txt")], "rows": "all", "tolerance": "0.1",
        "max_order": 4, "window": 32, "sinks": 2, "context": 2000, "out": Path("my run"), "seed": 5,
        "per_head_alpha": True, "no_eval": True,
    }  # fmt: skip


def test_windows_without_a_polynomial_are_no_order():
    measured = synthetic.analysis(3, 3, 1, error=easy_error)
    chosen = synthetic.lever_selection(measured)
    data = html_data.as_data(measured, chosen)
    assert [[head["order"][1] for head in layer["heads"]] for layer in data["layers"]] == [
        ["2"] * 3,
        ["w"] * 3,
        ["w"] * 3,
    ]
    assert data["layers"][1]["heads"][0]["order"][0] is None
    assert "w: a window and sinks, all other keys dropped: no polynomial" in data["views"]["order"]["legend"]
    without = html_data.as_data(measured, synthetic.selection(measured))["views"]["order"]["legend"]
    assert not any(line.startswith("w: ") for line in without)
    grid = [[cell.text for cell in row.heads] for row in grids.order_grid(measured, chosen).rows]
    assert grid == [["2"] * 3, ["w"] * 3, ["w"] * 3]
    legend = [(*(cell.text for cell in key.marks), key.meaning) for key in grids.order_legend(chosen).keys]
    assert legend[0] == ("2", "the order chosen (3 heads)")
    assert legend[1] == ("w", "a window and sinks, all other keys dropped: no polynomial (6 heads)")
    counts = summary.head_counts(measured, chosen)
    assert (counts.orders, counts.windows, counts.adapted) == ({2: 3}, 6, 9)
    verdict = as_document(measured, chosen)["verdict"]
    assert (verdict["orders"], verdict["windows"]) == ({"2": 3}, 6)
