"""The four facts that a report opens with."""

from __future__ import annotations

import pytest
import synthetic
from evaluations import KIB, comparison, hidden_comparison, interval, standing
from synthetic import replaced

from taylorder.evaluation.comparison import Standing
from taylorder.evaluation.evaluate import Evaluation
from taylorder.reports.headline import headline

MEASURED = synthetic.analysis(layers=3)
EXACT = synthetic.selection(MEASURED)
WINDOWS = synthetic.lever_selection(MEASURED)
KEEPING = synthetic.keeping_selection(MEASURED)


def facts(selection, *standings, **changes):
    found = Evaluation(False, (comparison(length=1024, sequences=4, **changes),)) if changes or standings else None
    if standings:
        found = Evaluation(False, (comparison(standings=standings),))
    return headline(MEASURED, selection, found).facts


def test_what_runs_counts_kv_heads_by_kind():
    told = [facts(chosen)[0] for chosen in (WINDOWS, KEEPING, EXACT)]
    assert [fact.value for fact in told] == ["9 of 9 KV heads replaced", "7 of 9 KV heads replaced", "exact everywhere"]
    assert [fact.sentence for fact in told] == [
        "6 a window, 3 a polynomial",
        "4 a window and kept keys, 3 a polynomial, 2 exact attention",
        "all 9 KV heads stay as they are",
    ]


def test_sliding_layers_are_not_counted():
    measured = synthetic.analysis(layers=3, sliding=lambda layer: layer == 1)
    assert headline(measured, synthetic.selection(measured)).kv_heads == 6
    sliding = synthetic.analysis(layers=2, sliding=lambda layer: True)
    assert headline(sliding, synthetic.selection(sliding)).facts[0].meaning.startswith("every layer has a sliding")


def test_the_cache_is_that_of_all_kv_heads():
    _, cache, *_ = facts(WINDOWS)
    assert (cache.name, cache.value) == ("KV cache", "170 KiB instead of 18 MiB")
    assert cache.sentence == "99% less, nominal bytes of all KV heads at 8,192 tokens"
    assert facts(EXACT)[1].sentence.startswith("as much as exact attention, nominal bytes")


def test_an_encoder_has_multiplications_and_hidden_states():
    measured = synthetic.analysis(layers=2, causal=False, max_context=512, error=lambda *_: 0.01)
    chosen = synthetic.selection(measured)
    runs, cost, moved, _ = headline(measured, chosen, Evaluation(False, (hidden_comparison(),))).facts
    assert runs.sentence == "6 a polynomial"
    assert cost.name == "multiplications"
    assert "instead of" in cost.value
    assert (moved.name, moved.value) == ("final hidden states", "moved by 12%")


@pytest.mark.parametrize(
    ("config", "says"),
    [(3.7, "worse"), (3.51, "cannot be told apart here"), (3.4, "better")],
)
def test_the_loss_has_its_interval_and_what_that_says(config, says):
    _, _, loss, _ = facts(WINDOWS, config=config)
    assert loss.value == f"{config:.3f} instead of 3.500"
    assert f"{config - 3.5:+.3f} [{config - 3.52:+.3f}, {config - 3.48:+.3f}] nats per token on 4 sequences" in (
        loss.meaning
    )
    assert loss.judgement == says
    assert loss.sentence.endswith(f", {says}")


def test_one_window_of_the_same_bytes_is_beside_it():
    beside = facts(WINDOWS, config=3.7, window=3.75)[3]
    assert (beside.value, beside.judgement) == ("-0.050", "better")
    assert beside.meaning.startswith("[-0.070, -0.030] nats per token beside sinks and one window")
    alike = facts(WINDOWS, config=3.7, window=3.71)[3]
    assert (alike.value, alike.judgement) == ("-0.010", "cannot be told apart here")
    fits = facts(WINDOWS, config=3.7, config_bytes=1024 * KIB)[3]
    assert fits.value == "exact fits"


def test_what_was_not_measured_is_said():
    _, _, loss, beside = facts(WINDOWS)
    assert (loss.value, beside.value) == ("not measured", "not measured")
    assert "on the calibration text the KL to exact is 0.125 nats per token" in loss.meaning
    _, _, loss, beside = facts(EXACT)
    assert (loss.value, beside.value) == ("unchanged", "nothing to compare")
    without = facts(WINDOWS, standing("exact", KIB, 3.5), standing("config", KIB, 3.6))
    assert without[3].value == "not measured"


def test_a_config_that_breaks_down_has_no_loss():
    broken = Standing("config", "", 5, failure="queries hold NaN")
    _, _, loss, beside = facts(WINDOWS, standing("exact", 9, 3.5), broken, standing("window", 5, 3.6))
    assert (loss.value, beside.value) == ("breaks down", "no figure")
    assert "queries hold NaN" in loss.meaning
    assert beside.meaning == "queries hold NaN"


def test_a_single_sequence_decides_nothing():
    alone = replaced(interval(0.25), low=float("-inf"), high=float("inf"))
    _, _, loss, beside = facts(
        WINDOWS,
        standing("exact", 9, 3.5),
        standing("config", 5, 3.75, delta_exact=alone, delta_window=alone),
        standing("window", 5, 3.5),
    )
    assert loss.judgement is beside.judgement is None
    assert beside.meaning.startswith("nats per token beside")
