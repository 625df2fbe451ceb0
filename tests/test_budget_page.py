"""The page of a choice for all KV heads together, without a browser: its figures are those of the run."""

from __future__ import annotations

import math

import pytest
import synthetic
from evaluations import comparison, standing
from pages import Page
from synthetic import replaced

from taylorder.evaluation.evaluate import Evaluation
from taylorder.reports import html, kv_data, kv_map
from taylorder.reports.column_help import EXPLAINED
from taylorder.reports.headline import headline
from taylorder.reports.loss_strips import loss_strips

MEASURED = synthetic.analysis(layers=3)
CHOSEN = synthetic.keeping_selection(MEASURED)
COSTS = synthetic.costs(MEASURED, CHOSEN)
FOUND = Evaluation(False, (comparison(length=1024, sequences=4),))


def test_the_four_facts_open_the_page():
    page = Page(html.render(MEASURED, CHOSEN, FOUND, None, None, COSTS))
    places = [page.text.index(fact.value) for fact in headline(MEASURED, CHOSEN, FOUND).facts]
    assert places == sorted(places)
    assert places[-1] < page.text.index("What every KV head runs", places[0])
    assert page.data["start_view"] == "tokens"
    assert "error at an order" not in page.text


def test_every_view_has_a_figure_of_every_kv_head():
    views = kv_map.views(MEASURED, CHOSEN)
    assert list(views) == ["tokens", "bytes", "runs", "lost", "rest", "alpha", "std"]
    assert {len(view.figures) for view in views.values()} == {9}
    assert [figure.text for figure in views["tokens"].figures] == ["32+"] * 3 + ["b", "256", "256"] * 2
    assert views["bytes"].figures[0].value == 99999
    assert [figure.text for figure in views["runs"].figures] == ["P2"] * 3 + ["b", "k", "k"] * 2
    assert views["rest"].figures[0].value == pytest.approx((0.1 + 0.09 + 0.08) / 3)
    assert views["rest"].figures[3].value is None
    assert any(line.startswith("k: a window, sinks and keys kept by priority") for line in views["runs"].legend)
    without = CHOSEN.with_levers(CHOSEN.config, replaced(CHOSEN.levers, example=None))
    assert "rest" not in kv_map.views(MEASURED, without)


def test_points_lie_where_bytes_and_errors_say_and_the_chosen_one_is_marked():
    plot = kv_data.CostPlot.of(COSTS)
    name = MEASURED.model.modules[1].name
    points = plot.points((name, 1))
    assert [words.partition(":")[0] for *_, words, _ in points] == [
        "60 + 4 keys", "64 + 4 + 188 kept keys", "order 2 mean, rank 64, 28 + 4 keys",
    ]  # fmt: skip
    assert [kind for _, _, kind, _, _ in points] == [0, 1, 2]
    assert [chosen for *_, chosen in points] == [False, True, False]
    across, down = [point[0] for point in points], [point[1] for point in points]
    assert across == sorted(across)
    assert down[1] > down[2] > down[0], "an error of 20% lies below one of 30%, and that below 50%"
    assert kv_data.CostPlot.of(()) is None
    assert "Error against bytes" not in Page(html.render(MEASURED, CHOSEN)).text


def test_guarded_candidates_are_said_to_be_out_of_the_choice():
    guarded = [replaced(cost, guarded_share=0.25) for cost in COSTS]
    words = [words for *_, words, _ in kv_data.CostPlot.of(guarded).points((MEASURED.model.modules[0].name, 0))]
    assert [text.endswith("rows needed the guard") for text in words] == [False, False, True]


def test_losses_are_strips_on_an_axis_for_the_config_and_its_window():
    strips = loss_strips(FOUND.comparisons[0])
    assert [strip.name for strip in strips.strips] == ["config", "window", "paper", "unguarded"]
    config, window, paper, _ = strips.strips
    assert (config.text, config.beyond, paper.beyond) == ("+0.200 [+0.180, +0.220]", False, True)
    assert strips.exact < config.low < config.at < config.high
    assert config.at < window.at < paper.at
    alone = comparison(standings=(standing("exact", 9, 3.5),))
    assert loss_strips(alone) is None
    assert loss_strips(None) is None
    nothing = replaced(standing("config", 5, 3.6).delta_exact, low=-math.inf, high=math.inf)
    single = loss_strips(
        comparison(standings=(standing("exact", 9, 3.5), standing("config", 5, 3.6, delta_exact=nothing)))
    )
    assert single.strips[0].low == single.strips[0].at == single.strips[0].high


def test_bars_of_bytes_have_their_figures_and_files_are_linked():
    page = Page(html.render(MEASURED, CHOSEN, FOUND))
    assert "exact 18 MiB config " in page.text
    links = {attributes["href"] for tag, attributes in page.tags if tag == "a"}
    assert {"orders.json", "levers.csv", "heads.csv", "report.json"} <= links


def test_everything_explained_is_the_title_of_a_column():
    pages = [
        Page(html.render(MEASURED, chosen, FOUND)).tags
        for chosen in (synthetic.lever_selection(MEASURED), synthetic.selection(MEASURED))
    ]
    marked = {
        attributes["aria-label"].removeprefix("What is ").removesuffix("?")
        for tags in pages
        for tag, attributes in tags
        if attributes.get("class") == "help"
    }
    assert marked == set(EXPLAINED)
