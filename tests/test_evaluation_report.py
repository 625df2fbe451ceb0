"""What a person and a script read of an evaluation: tables at 80 columns, verdicts, bounds, finite JSON."""

from __future__ import annotations

import json
import math

import pytest
import synthetic
from evaluations import KIB, MEASURED, REPORTS, comparison, hidden_comparison
from synthetic import replaced

from taylorder.commands._shared import write_run
from taylorder.evaluation.comparison import Standing
from taylorder.evaluation.evaluate import Evaluation
from taylorder.evaluation.intervals import Interval
from taylorder.reports import evaluation, evaluation_tables, verdict
from taylorder.reports import evaluation_words as words
from taylorder.reports.document import as_document
from taylorder.reports.evaluation import as_document as as_eval_document
from taylorder.reports.render import plain_text
from taylorder.runs import run_directory
from taylorder.storage.finite_json import as_json


@pytest.mark.parametrize("name", REPORTS)
def test_reports_are_readable_at_80_columns_without_colour(name):
    text = plain_text(evaluation.sections(REPORTS[name]()))
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert "\x1b" not in text
    assert "Verdict" in text
    assert "nan" not in text.lower().replace("nan or infinite", "").replace("hold nan", "")


def test_the_report_has_every_figure():
    text = plain_text(evaluation.sections(REPORTS["whole"]()))
    for part in (
        "8 sequences of 4,096 tokens",
        "config       100 KiB  3.700 [3.500, 3.900]",
        "config             +0.200 [+0.180, +0.220]  -0.050 [-0.070, -0.030]",
        "0.210",
        "87.6%",
        "1.2%",
        "1.6e6",
        "over 1e300",
        "4,096-8,190",
        "window     what window is",
        "alphas     no figures: no alpha could be fitted",
        "sha256 abababababab, seed 0",
        "heads: order 3: 27",
        "exact cannot",
        "-20 [-30, -10]",
        "2 sequences make them rough",
        "Bound missed: the config's mean KL is 0.21 nats per token at 4,096 tokens;",
    ):
        assert part in text or part in " ".join(text.split()), part


def test_a_state_larger_than_the_cache_is_said_in_words():
    (told,) = words.sizes(comparison())
    assert told == (
        "paper and unguarded: 11.9 MiB per KV head are more than the KV cache of 1 MiB that they replace at 4,096 "
        "tokens; this saves nothing here, and exact attention takes less."
    )
    assert "config: 2 MiB per KV head" in words.sizes(comparison(config_bytes=2048 * KIB))[0]
    assert words.sizes(hidden_comparison()) == []


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (comparison(3.7), "At 4,096 tokens the config's loss is 3.700 nats per token: +0.200 [+0.180, +0.220] beside "
         "exact, worse. It is better than sinks and one window of the same bytes (100 KiB per KV head; -0.050 [-0.070, "
         "-0.030]), the paper's order 4 (-10.60 [-10.62, -10.58]) and the paper's order 4 unguarded (-1996 [-1996, "
         "-1996])."),
        (comparison(3.8), "and is worse than sinks and one window of the same bytes (100 KiB per KV head; +0.050 "
         "[+0.030, +0.070])."),
        (comparison(3.76), "It is better than the paper's order 4 (-10.54 [-10.56, -10.52]) and the paper's "
         "order 4 unguarded (-1996 [-1996, -1996]) and cannot be told apart here from sinks and one window of the same "
         "bytes (100 KiB per KV head; +0.010 [-0.010, +0.030])."),
        (comparison(3.51), "+0.010 [-0.010, +0.030] beside exact, from which it cannot be told apart here. It"),
        (comparison(3.4), "-0.100 [-0.120, -0.080] beside exact, better. It"),
        (comparison(3.7, sequences=4), "So few sequences all agree by chance one time in 8."),
        (comparison(3.7, config_bytes=2048 * KIB), "It takes no fewer bytes than the whole KV cache (1 MiB per KV"),
        (hidden_comparison(), "At 4,096 tokens the config moves the final hidden states by 12%. It is better than "
         "order 3 (-3.0 percentage points [-5.0, -1.0])."),
    ],
)  # fmt: skip
def test_verdicts_name_every_rival_of_the_table(made, told):
    (verdict,) = words.verdicts(Evaluation(False, (made,)))
    assert told in verdict


def test_one_sequence_decides_nothing():
    made = comparison()
    endless = [
        replaced(
            each,
            delta_exact=each.delta_exact and Interval(each.delta_exact.estimate, -math.inf, math.inf),
            config_less=each.config_less and Interval(each.config_less.estimate, -math.inf, math.inf),
        )
        for each in made.standings
    ]
    (told,) = words.verdicts(Evaluation(False, (replaced(made, standings=tuple(endless), sequences=1),)))
    assert told.endswith(
        "3.700 nats per token: +0.200 beside exact. Without an interval, which decides nothing, it differs from sinks "
        "and one window of the same bytes (100 KiB per KV head; -0.050), the paper's order 4 (-10.60) and the paper's "
        "order 4 unguarded (-1996)."
    )
    assert "inf" not in told


NAMES = {
    "window": "sinks and one window of the same bytes",
    "paper": "the paper's order 4",
    "unguarded": "the paper's order 4 unguarded",
}


@pytest.mark.parametrize("name", ["whole", "encoder", "one sequence", "tasks broke"])
def test_the_verdict_names_every_rival_in_the_table(name):
    for made in REPORTS[name]().evaluation.comparisons:
        table = evaluation_tables.hidden(made) if name == "encoder" else evaluation_tables.figures(made)
        rows = [row[0].text for row in table.rows]
        assert rows[:2] == ["exact", "config"]
        (told,) = words.verdicts(Evaluation(False, (made,)))
        for rival in rows[2:]:
            assert NAMES.get(rival, rival) + " (" in told


def test_an_untrained_model_is_called_one_before_its_config_is_judged():
    assert len(words.verdicts(Evaluation(False, (comparison(vocabulary=50),)))) == 1
    caution, _ = words.verdicts(Evaluation(False, (comparison(vocabulary=48),)))
    assert caution.startswith(
        "The model as it is loses 3.50 nats per token, where guessing among its 48 tokens loses 3.87"
    )


def test_verdicts_without_a_comparison():
    assert words.verdicts(Evaluation(True, ())) == [words.EQUALS_EXACT]
    assert words.verdicts(Evaluation(False, (), "no text")) == ["Not evaluated: no text."]
    without = comparison(standings=(*comparison().standings[:2], Standing("window", "", None, failure="too few bytes")))
    (told,) = words.verdicts(Evaluation(False, (without,)))
    assert told.endswith("There is no window to compare it with: too few bytes.")


def test_bounds_name_value_bound_and_length():
    both = Evaluation(False, (comparison(3.7), comparison(3.6, length=8192)))
    assert words.missed(both, 0.3) is None
    assert words.missed(both, 0.21000000001) is None
    assert words.missed(both, 0.15) == (
        "the config's mean KL is 0.21 nats per token at 4,096 tokens; --max-kl allows 0.15"
    )
    assert "at 4,096 tokens; the config's mean KL is 0.11 nats per token at 8,192 tokens" in words.missed(both, 0.1)
    assert words.missed(Evaluation(True, ()), 0.0) is None
    assert "broke down at 4,096 tokens" in words.missed(REPORTS["config broke"]().evaluation, 100.0)


@pytest.mark.parametrize(
    ("value", "signed", "text"),
    [(3.44149, False, "3.441"), (0.0, True, "0.000"), (-0.0001, True, "0.000"), (9.9996, False, "10.00"),
     (-0.05, True, "-0.050"), (2000.3, True, "+2000"), (math.inf, False, "inf")],
)  # fmt: skip
def test_figures_have_few_digits(value, signed, text):
    assert words.figure(value, signed) == text


@pytest.mark.parametrize("name", REPORTS)
def test_the_document_is_finite_json(name):
    def refuse(constant):
        raise AssertionError(constant)

    made = REPORTS[name]()
    document = json.loads(as_json(as_eval_document(made)), parse_constant=refuse)
    assert document["schema"] == "taylorder/eval@1"
    assert document["config"]["exact_everywhere"] is made.evaluation.exact_everywhere
    assert len(document["comparisons"]) == len(made.evaluation.comparisons)
    assert document["verdict"]["text"]


def test_the_document_has_everything_a_script_needs():
    document = as_eval_document(REPORTS["whole"]())
    first = document["comparisons"][0]
    assert (first["length"], first["sequences"], first["seed"], first["text_sha256"]) == (4096, 8, 0, "ab" * 32)
    by_name = {each["name"]: each for each in first["standings"]}
    assert by_name["config"]["delta_window"]["estimate"] == pytest.approx(-0.05)
    assert by_name["unguarded"]["perplexity"] == "inf"
    assert by_name["alphas"]["failure"] == "no alpha could be fitted"
    assert document["bound"]["met"] is False
    assert document["tasks"]["results"][0]["rows"][0]["kind"] == "lookup"
    assert document["model"]["fingerprint"] == MEASURED.model.fingerprint
    assert (document["device"], document["dtype"]) == ("cpu", "float32")
    assert "torch" in document["software"]


# The short form in the report of `analyze`


SHORT = Evaluation(False, (comparison(length=1024, sequences=4),))
SHORT_EXACT = Evaluation(True, (comparison(standings=(comparison().standings[0], comparison().standings[3])),))
NONE = Evaluation(False, (), "made up has 3 tokens, fewer than one sequence of 1024; use more text")


@pytest.mark.parametrize("short", [SHORT, SHORT_EXACT, NONE, Evaluation(False, (hidden_comparison(),))])
def test_a_run_comes_back_with_its_evaluation(tmp_path, short):
    chosen = synthetic.selection(MEASURED)
    write_run(tmp_path, MEASURED, chosen, short)
    assert run_directory.read_evaluation(tmp_path) == short
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report == as_document(MEASURED, chosen, None, short)
    assert report["evaluation"]["exact_everywhere"] is short.exact_everywhere


def test_a_run_without_an_evaluation_says_that_losses_were_not_measured(tmp_path):
    chosen = synthetic.selection(MEASURED)
    write_run(tmp_path, MEASURED, chosen)
    assert run_directory.read_evaluation(tmp_path) is None
    text = " ".join(synthetic.report(MEASURED, chosen).split())
    assert "Losses were not measured (--no-eval, or the run ended before); `taylorder eval` measures them" in text


def test_the_report_of_an_analysis_ends_with_the_losses():
    chosen = synthetic.selection(MEASURED)
    text = synthetic.report(MEASURED, chosen, evaluation=SHORT)
    assert max(map(len, text.splitlines())) <= 80
    assert text.index("What this config saves") < text.index("What the model loses: 4 sequences of 1,024 tokens")
    assert text.index("What the model loses") < text.index("Verdict")
    assert "Intervals\n  are 95% over sequences, and 4 sequences make them rough." in text
    exact = synthetic.report(MEASURED, chosen, evaluation=SHORT_EXACT)
    assert "The config keeps every head exact, so it equals exact and was not run." in exact
    assert "Not measured: made up has 3 tokens" in synthetic.report(MEASURED, chosen, evaluation=NONE)
    assert "final hidden states" in synthetic.report(
        MEASURED, chosen, evaluation=Evaluation(False, (hidden_comparison(),))
    )


def test_the_verdict_of_an_analysis_has_the_loss():
    measured = synthetic.analysis(layers=3, error=lambda *_: 0.01)
    chosen = synthetic.selection(measured)
    assert verdict.sentences(measured, chosen)[1].endswith("together is not measured here.")
    told = verdict.sentences(measured, chosen, SHORT)[1]
    assert "Together they take the model's loss from 3.500 to 3.700 nats per token on 4 sequences of 1,024" in told
    (alone,) = words.verdicts(SHORT)
    assert told.endswith(alone.partition("nats per token")[2])
    broke = REPORTS["config broke"]().evaluation
    assert "the model breaks down on 8 sequences" in verdict.sentences(measured, chosen, broke)[1]
    moved = Evaluation(False, (hidden_comparison(),))
    assert "they move the final hidden states by 12%" in verdict.sentences(measured, chosen, moved)[1]
    assert as_document(measured, chosen, None, SHORT)["verdict"]["text"].count("3.700") == 1
