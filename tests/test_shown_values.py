"""How values look in a terminal and a notebook, and as tables: one short line, a few rows, the columns of the files."""

import dataclasses
import html
import json
from types import SimpleNamespace
from xml.etree import ElementTree

import claims_cases
import pandas
import pytest
import synthetic
import tiny
from pandas.testing import assert_frame_equal
from rich.pretty import pretty_repr

import taylorder
from taylorder.claims.verdicts.degree import degree_claim
from taylorder.commands._shared import write_run
from taylorder.errors import UsageError
from taylorder.evaluation.comparison import Comparison, Standing
from taylorder.evaluation.evaluate import Evaluation
from taylorder.evaluation.intervals import Interval
from taylorder.models.loading import LoadedModel
from taylorder.selection.lever_table import LeverTable
from taylorder.selection.run_levers import LeverRun

MEASURED = synthetic.analysis()
CHOSEN = synthetic.selection(MEASURED, tolerance=0.5)
STANDINGS = (
    Standing("exact", "the model as it is", 262144, nll=Interval(2.2, 1.7, 2.7), buckets=((0, 63, 3.1),)),
    Standing("config", "", 188416, failure="its logits overflow"),
)
EVALUATION = Evaluation(
    False, tuple(Comparison(length, 4, "a text", "0" * 64, 0, STANDINGS) for length in (1024, 4096))
)
TABULAR = {"Analysis": MEASURED, "Selection": CHOSEN, "OrderConfig": CHOSEN.config, "Evaluation": EVALUATION}


def test_a_repr_is_one_short_line():
    model = tiny.llama()
    config = taylorder.OrderConfig.uniform(model, 2, "mean", 8, 2)
    others = {
        "ModelDescription": MEASURED.model,
        "LoadedModel": LoadedModel(model, None, "tiny"),
        "TaylorCache:": taylorder.TaylorCache(model, config),
        "Evaluation without figures:": Evaluation(True, (), "every layer has a sliding window of its own"),
        "LeverTable": (table := LeverTable(MEASURED.model, (), ())),
        "LeverRun:": LeverRun(table, SimpleNamespace(nominal_bytes=65536), None),
        "Claim": degree_claim(claims_cases.evidence(claims_cases.model())),
        "ModelEvidence": claims_cases.model(),
    }
    for name, value in (TABULAR | others).items():
        line = repr(value)
        assert line.startswith(f"<{name} ")
        assert line.endswith(">")
        assert "\n" not in line
        assert len(line) < 200
        assert str(value) == line


def test_the_lines_say_what_it_is():
    assert repr(MEASURED) == "<Analysis of smollm2-135m: 30 layers x 9 heads, 8 x 1,024 tokens, orders 1 to 8>"
    near = synthetic.analysis(layers=2, window=64, sinks=4)
    assert repr(near).endswith("2 layers x 9 heads, 8 x 1,024 tokens, orders 1 to 8, window 64 and 4 sinks>")
    uniform = taylorder.OrderConfig.uniform(MEASURED.model, 3, "mean", 64, 4)
    assert repr(uniform) == "<OrderConfig for smollm2-135m: 30 layers x 9 heads; 270 order 3>"
    assert pretty_repr([uniform], max_width=100) == repr([uniform])  # what rich prints
    assert repr(synthetic.selection(MEASURED)) == "<Selection for smollm2-135m by error: 270 exact>"
    assert repr(EVALUATION) == "<Evaluation at 1,024, 4,096 tokens: exact, config>"


def test_long_parts_stay_out_of_the_reprs_of_what_is_inside():
    assert len(repr(MEASURED.calibration)) < 500
    assert len(repr(MEASURED.preview)) < 200


@pytest.mark.parametrize("name", TABULAR)
def test_a_notebook_shows_the_line_and_a_few_rows(name):
    value = TABULAR[name]
    page = value._repr_html_()
    assert html.escape(repr(value)) in page
    assert page.count("<tr") <= 12
    assert len(page) < 10_000


def test_a_notebook_shows_the_summary_and_a_map_of_the_heads_of_a_report():
    made = taylorder.report(MEASURED)
    assert repr(made).startswith("<Report on smollm2-135m: summary, run, orders, errors,")
    assert str(made) == synthetic.report(MEASURED, synthetic.selection(MEASURED))
    page = made._repr_html_()
    ElementTree.fromstring(page)  # each element is closed, and names are escaped
    assert "exact everywhere" in page
    assert page.count("<td") > 270
    coloured = taylorder.report(MEASURED, CHOSEN)._repr_html_()
    assert "Order of every head" in coloured
    assert coloured.count("background: #") == sum(head.choice.spec.runs == "taylor" for head in CHOSEN.heads)
    small = synthetic.analysis(layers=3)
    keeping = taylorder.report(small, synthetic.keeping_selection(small))._repr_html_()
    assert "What every KV head keeps" in keeping
    assert "4/64/188" in keeping


def test_a_report_of_a_run_directory_is_that_of_its_run(tmp_path):
    small = synthetic.analysis(layers=2)
    write_run(tmp_path, small, synthetic.selection(small), EVALUATION)
    made = taylorder.report(tmp_path)
    assert made.evaluation == EVALUATION
    assert f"In {tmp_path}: report.html" in " ".join(str(made).split())
    made.save(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == (tmp_path / "report.html").read_text(
        encoding="utf-8"
    )
    with pytest.raises(UsageError, match="has a selection of its own"):
        taylorder.report(tmp_path, CHOSEN)


def test_tables_of_an_analysis_are_those_of_its_files(tmp_path):
    write_run(tmp_path, MEASURED, CHOSEN)
    for file, table in (("heads.csv", MEASURED.to_frame()), ("spectral.csv", MEASURED.spectral_frame())):
        written = pandas.read_csv(tmp_path / file)
        assert_frame_equal(table, written, check_dtype=False, check_exact=True)


def test_a_config_and_a_selection_have_a_row_per_head(tmp_path):
    CHOSEN.config.save(tmp_path / "orders.json")
    layers = json.loads((tmp_path / "orders.json").read_text())["layers"]
    written = [
        (layer["module"], kv_head["runs"], head["order"] if kv_head["runs"] == "taylor" else None, head["error"])
        for layer in layers
        for kv_head in layer["kv_heads"]
        for head in kv_head["heads"]
    ]
    assert {runs for _, runs, *_ in written} == {"exact", "taylor"}
    for table in (CHOSEN.config.to_frame(), CHOSEN.to_frame()):
        cells = table[["module", "runs", "order", "error"]].astype(object).where(table.notna(), None)
        assert [tuple(row) for row in cells.values.tolist()] == written
    verdict, row = CHOSEN.heads[100], CHOSEN.to_frame().iloc[100]
    assert (row.module, row["head"], row.kv_head) == (verdict.module, verdict.head, verdict.kv_head)
    assert row.predicted_order == verdict.predicted_order


def test_an_evaluation_has_a_row_per_contender_and_length():
    table = EVALUATION.to_frame()
    assert table[["length", "name"]].values.tolist() == [
        [length, name] for length in (1024, 4096) for name in ("exact", "config")
    ]
    exact, config = table.iloc[0], table.iloc[1]
    assert (exact.nll, exact.nll_low, exact.nll_high) == (2.2, 1.7, 2.7)
    assert pandas.isna(config.nll) and pandas.isna(config.nll_low)
    assert config.failure == "its logits overflow"
    left_out = {field.name for field in dataclasses.fields(Standing)} - set(table.columns)
    assert left_out == {"buckets"}


def test_every_interval_has_its_ends_in_the_table():
    intervals = [field.name for field in dataclasses.fields(Standing) if "Interval" in str(field.type)]
    assert intervals
    assert {f"{name}_{end}" for name in intervals for end in ("low", "high")} <= set(EVALUATION.to_frame().columns)
