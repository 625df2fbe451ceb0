"""How a report begins and ends: six lines that hold the comparison with one window, and the same in short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import synthetic
from evaluations import comparison, interval, standing
from synthetic import replaced

from taylorder.evaluation.evaluate import Evaluation
from taylorder.reports.analysis import sections
from taylorder.reports.render import plain_text

MEASURED = synthetic.analysis(layers=3)
WINDOWS = synthetic.lever_selection(MEASURED)
EXACT = synthetic.selection(MEASURED)
NAMES = ["what runs", "why", "KV cache", "loss", "one window", "next"]


def lost(window_less, sequences=4):
    """A short evaluation in which the config's loss is less than that of one window by so much."""
    config, window = standing("config", 20000, 3.6), standing("window", 19968, 3.6 - window_less)
    config = replaced(config, delta_window=interval(window_less, 0.05))
    return Evaluation(
        False, (comparison(sequences=sequences, standings=(standing("exact", 1 << 20, 3.5), config, window)),)
    )


def printed(name, chosen, evaluation=None, width=80, measured=MEASURED):
    made = sections(measured, chosen, Path("out"), evaluation)
    return plain_text([section for section in made if section.name == name], width)


@pytest.mark.parametrize("width", [50, 80, 120])
@pytest.mark.parametrize(("chosen", "evaluation"), [(WINDOWS, lost(-0.2)), (WINDOWS, None), (EXACT, None)])
def test_a_report_opens_with_six_lines(chosen, evaluation, width):
    made = sections(MEASURED, chosen, Path("out"), evaluation)
    assert made[0].name == "summary"
    lines = plain_text(made[:1], width).splitlines()
    assert lines[0] == "taylorder: smollm2-135m"
    assert max(map(len, lines)) <= width
    named = [line[2:14].strip() for line in lines[1:] if re.match("  [a-zA-Z]", line)]
    assert named == NAMES
    assert lines[-1].startswith("    ")
    command = " ".join(" ".join(lines).replace("\\ ", " ").split())
    assert re.search(r"taylorder (eval|analyze) .*--", command)


@pytest.mark.parametrize(
    ("window_less", "interval_", "judgement"),
    [
        (-0.2, "-0.200 [-0.250, -0.150]", "better"),
        (0.2, "+0.200 [+0.150, +0.250]", "worse"),
        (-0.03, "-0.030 [-0.080, +0.020]", "cannot be told apart here"),
    ],
)
def test_a_budget_is_held_against_one_window_at_both_ends(window_less, interval_, judgement):
    text = " ".join(printed("summary", WINDOWS, lost(window_less)).split())
    beside = "nats per token beside sinks and one window of the same bytes for all KV heads"
    assert f"one window {interval_} {beside}, {judgement}" in text
    end = " ".join(printed("verdict", WINDOWS, lost(window_less)).split())
    assert f"against one window {interval_.split()[0]}, {judgement}." in end
    assert "loss 3.600 instead of 3.500, worse;" in end


def test_few_sequences_are_said_to_agree_by_chance():
    for name in ("summary", "verdict"):
        assert "So few sequences all agree by chance one time in 8." in " ".join(
            printed(name, WINDOWS, lost(-0.2)).split()
        )
        assert "by chance" not in printed(name, WINDOWS, lost(-0.2, sequences=8))


def test_it_says_why():
    budget = " ".join(printed("summary", WINDOWS).split())
    assert (
        "Of what fits the budget of 19.5 KiB per KV head on average (0.95% of exact attention's), this has the least "
        "KL to exact on the calibration text that was found." in budget
    )
    assert "No head of 27 meets 7% with an order that pays off at 8,192 tokens (3 or lower)." in printed(
        "summary", EXACT, width=120
    )
    sliding = synthetic.analysis(layers=3, sliding=lambda layer: layer == 1)
    told = " ".join(printed("summary", synthetic.selection(sliding), measured=sliding).split())
    assert "The 9 heads of 1 sliding-window layer stay as they are and are not counted here." in told


def test_an_untrained_model_is_called_one_at_both_ends():
    calibration = replaced(MEASURED.calibration, nll=10.5, vocabulary=49152)
    untrained = replaced(MEASURED, calibration=calibration)
    for name in ("summary", "verdict"):
        text = " ".join(printed(name, synthetic.selection(untrained), measured=untrained).split())
        assert "it looks untrained" in text
    assert "untrained" not in printed("summary", EXACT)


def test_it_ends_with_the_files_and_the_next_command():
    end = printed("verdict", WINDOWS)
    assert "In out: report.html (for a browser), orders.json, heads.csv, spectral.csv, levers.csv," in " ".join(
        end.split()
    )
    assert end.splitlines()[-1].strip() == "taylorder eval --config out"
