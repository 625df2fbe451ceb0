"""The report on probes: figures of a case made by hand, ranking among rivals, resuming, files' columns."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import tiny
import torch
from scipy import stats

from taylorder.adapt.probe import priorities
from taylorder.analysis.capture import run_layers
from taylorder.analysis.future_attention import Reach, attention_by_part
from taylorder.analysis.text import Text
from taylorder.models.describe import describe
from taylorder.selection import probe_report
from taylorder.selection.probe_report import ProbeRow, judge_module, prefixes, rank_correlations
from taylorder.selection.probes import fit_probes
from taylorder.storage.records import Records


@pytest.fixture(scope="module")
def model():
    return tiny.llama()


@pytest.fixture(scope="module")
def probes(model, tmp_path_factory):
    records = Records(tmp_path_factory.mktemp("fit"), {})
    return fit_probes(
        model, describe(model, "tiny"), tiny.tokens(2, 48, seed=5), text=Text("random", ""), records=records
    )


def report(model, probes, records, **options):
    sequences = tiny.tokens(2, 48, seed=6)
    return probe_report.report_probes(model, describe(model, "tiny"), probes, sequences, records=records, **options)


def test_the_figures_of_a_case_made_by_hand():
    """Two parts of ten tokens, so one prefix: keys 1 to 8 are candidates, and one of them (an eighth) is kept."""
    reach = Reach(1, 19, 1)
    received = torch.zeros(2, 1, 20)
    received[0, 0, 1:9] = torch.tensor([8.0, 1, 1, 1, 1, 1, 1, 1])  # so far: the first
    received[1, 0, 1:9] = torch.tensor([2.0, 1, 3, 10, 4, 5, 6, 9])  # afterwards: the fourth, then the last; 40 in all
    received[1, 0, 0] = received[1, 0, 9:] = 100  # the sink and what is recent do not count
    priority = torch.tensor([99.0, 3, 1, 2, 4, 5, 6, 7, 8, *[99] * 11])[None]
    (row,) = judge_module("layer", priority, received, reach)
    ranks = stats.spearmanr([3, 1, 2, 4, 5, 6, 7, 8], [2, 1, 3, 10, 4, 5, 6, 9]).statistic
    assert row == ProbeRow("layer", 0, pytest.approx(ranks), 9 / 40, 2 / 40, 10 / 40, 20)


def test_figures_are_means_over_prefixes():
    received = torch.rand(4, 2, 40, generator=torch.Generator().manual_seed(0))
    priority = torch.rand(2, 40, generator=torch.Generator().manual_seed(1))
    reach = Reach(4, 36, 2)
    cut = list(prefixes(received, reach))
    assert [prefix.keys for prefix in cut] == [slice(4, 8), slice(4, 18), slice(4, 28)]
    torch.testing.assert_close(cut[1].past + cut[1].future, received.sum(0)[:, 4:18])
    for row in judge_module("layer", priority, received, reach):
        shares = []
        for prefix in cut:
            future = prefix.future[row.kv_head].tolist()
            ranked = priority[row.kv_head, prefix.keys].argsort(descending=True).tolist()
            shares.append(sum(future[key] for key in ranked[: math.ceil(len(future) / 8)]) / sum(future))
        assert row.kept_share == pytest.approx(sum(shares) / 3)
        assert row.oracle_share > max(row.kept_share, row.h2o_share)


def test_ranks_agree_with_scipy_ties_included():
    left, right = torch.randint(0, 9, (2, 3, 50), generator=torch.Generator().manual_seed(0)).float()
    expected = [stats.spearmanr(a, b).statistic for a, b in zip(left, right, strict=True)]
    assert rank_correlations(left, right).tolist() == pytest.approx(expected)


def test_equal_priorities_have_no_rank_and_no_attention_loses_nothing():
    received = torch.rand(2, 1, 40)
    received[:, :, :20] = 0
    (row,) = judge_module("layer", torch.ones(1, 40), received, Reach(4, 36, 2))
    assert row.rank_correlation is None
    assert row.kept_share == row.oracle_share == 1


def test_the_report_has_every_kv_head_and_is_of_held_out_text(model, probes, tmp_path):
    found = report(model, probes, Records(tmp_path, {}))
    assert [(row.module, row.kv_head) for row in found.rows] == [
        (module, kv_head) for module in probes.weights for kv_head in (0, 1)
    ]
    assert {row.tokens for row in found.rows} == {96}
    expected = []

    def consume(name, layer):
        received = attention_by_part(layer.q[0], layer.k[0], layer.scaling, probe_report.PARTS)
        priority = priorities(probes.weights[name], layer.k, layer.v)[0]
        expected.extend(judge_module(name, priority, received, Reach.of(48)))

    for sequence in tiny.tokens(2, 48, seed=6):
        run_layers(model, sequence[None], consume)
    assert len(expected) == 8
    for row, first, second in zip(found.rows, expected[:4], expected[4:], strict=True):
        assert row.kept_share == pytest.approx((first.kept_share + second.kept_share) / 2)
        assert row.rank_correlation == pytest.approx((first.rank_correlation + second.rank_correlation) / 2)
    assert found.mean("kept_share") == pytest.approx(sum(row.kept_share for row in expected) / 8)
    assert list(found.to_frame().columns) == [
        "module", "kv_head", "rank_correlation", "kept_share", "h2o_share", "oracle_share", "tokens",
    ]  # fmt: skip


def test_sequences_that_were_judged_are_not_run_again(model, probes, monkeypatch, tmp_path):
    steps = []
    whole = report(model, probes, Records(tmp_path, {}), progress=lambda *step: steps.append(step))
    assert steps == [("probes held out", done, 2) for done in range(3)]
    others = replace(probes, weights={name: -weights for name, weights in probes.weights.items()})
    assert report(model, others, Records(tmp_path, {})).rank_correlation == pytest.approx(-whole.rank_correlation)
    monkeypatch.setattr(probe_report, "run_layers", lambda *_: pytest.fail("there is nothing to run"))
    assert report(model, probes, Records(tmp_path, {})) == whole
