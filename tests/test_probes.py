"""Fitting probes: a planted priority comes back, sums add up over sequences, and a resumed fit is the same fit."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import tiny
import torch

from taylorder.adapt.probe import priorities, probe_features
from taylorder.analysis.future_attention import FAIR_SHARES, Reach, attention_by_part, log_use
from taylorder.analysis.text import Text
from taylorder.analysis.tokens import Tokens
from taylorder.errors import UsageError
from taylorder.models.describe import describe
from taylorder.selection import probes
from taylorder.selection.probes import NormalEquations
from taylorder.storage.records import Records

TEXT = Text("random", "numbers")


@pytest.fixture(scope="module")
def model():
    return tiny.llama()


@pytest.fixture(scope="module")
def description(model):
    return describe(model, "tiny")


def fit(model, records, sequences=None, **options):
    sequences = tiny.tokens(3, 48, seed=5) if sequences is None else sequences
    return probes.fit_probes(model, describe(model, "tiny"), sequences, text=TEXT, records=records, **options)


def assert_same(probe, other):
    assert replace(probe, weights={}) == replace(other, weights={})
    assert list(probe.weights) == list(other.weights)
    assert all(torch.equal(weights, other.weights[name]) for name, weights in probe.weights.items())


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_planted_linear_priority_is_recovered():
    k, v = draw(2, 400, 6), draw(2, 400, 4, seed=1)
    planted = draw(2, 15, seed=2)
    target = priorities(planted, k[None], v[None])[0]
    found = NormalEquations.of(probe_features(k, v), target).solve(1e-12)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, planted, rtol=1e-3, atol=1e-3)
    shrunk = NormalEquations.of(probe_features(k, v), target).solve(1.0)
    assert shrunk.norm() < 0.8 * planted.norm()


def test_equations_add_up_over_keys():
    features, target = draw(2, 90, 7), draw(2, 90, seed=1)
    whole = NormalEquations.of(features, target)
    parts = [NormalEquations.of(features[:, keys], target[:, keys]) for keys in (slice(0, 40), slice(40, 90))]
    torch.testing.assert_close((parts[0] + parts[1]).moment, whole.moment)
    torch.testing.assert_close((parts[0] + parts[1]).right, whole.right)
    assert whole.moment.dtype == torch.float64


def plain_use(q, k, scaling, reach):
    """The target of one query head's keys in loops, float64."""
    T, received = len(q), {key: [] for key in range(reach.first, reach.stop)}
    for row in range(T):
        exponentials = [math.exp(scaling * float(q[row] @ k[key])) for key in range(row + 1)]
        for key in range(reach.first, min(reach.stop, row - reach.recent)):
            attention = exponentials[key] / sum(exponentials)
            received[key].append(min(1.0, attention * (row + 1) / FAIR_SHARES))
    return received


@pytest.mark.parametrize("block", [50, 2**20])
def test_the_target_is_the_formula(monkeypatch, block):
    monkeypatch.setattr("taylorder.analysis.future_attention._BLOCK", block)
    q, k, reach = draw(4, 70, 5).double(), draw(2, 70, 5, seed=1).double(), Reach(4, 62, 3)
    q[:, 30] *= 40  # a query that looks at one key alone, and reaches the cap
    found = log_use(q, k, 0.7, reach)
    assert found.shape == (2, 58)
    for kv_head in range(2):
        of_heads = [plain_use(q[head], k[kv_head], 0.7, reach) for head in (2 * kv_head, 2 * kv_head + 1)]
        assert any(use == 1.0 for received in of_heads for uses in received.values() for use in uses)
        means = [sum(a + b) / len(a + b) for a, b in zip(*(received.values() for received in of_heads), strict=True)]
        torch.testing.assert_close(found[kv_head], torch.tensor(means).log(), rtol=1e-4, atol=1e-4)


def test_attention_by_part_is_all_there_is():
    q, k = draw(4, 43, 5), draw(2, 43, 5, seed=1)
    received = attention_by_part(q, k, 0.7, 4)
    assert received.shape == (4, 2, 43)
    assert float(received.sum()) == pytest.approx(4 * 43, rel=1e-5)
    torch.testing.assert_close(received.sum((1, 2)), torch.tensor([40.0, 40.0, 40.0, 52.0]))
    assert not received[0, :, 10:].any()
    weights = torch.softmax(0.7 * q[2, 42] @ k[1].T, -1) + torch.softmax(0.7 * q[3, 42] @ k[1].T, -1)
    assert float(received[3, 1, 42]) == pytest.approx(float(weights[42]), rel=1e-5)


def test_reach_scales_with_short_sequences():
    assert Reach.of(2048) == Reach(4, 1792, 64)
    assert Reach.of(8192) == Reach(4, 7936, 64)
    assert Reach.of(64) == Reach(4, 56, 2)
    with pytest.raises(UsageError, match="sequences are of 15 tokens, expected at least 16"):
        Reach.of(15)


def test_a_probe_is_fitted_for_every_kv_head_and_says_on_what(model, description, tmp_path):
    fitted = fit(model, Records(tmp_path, {}))
    assert list(fitted.weights) == [module.name for module in description.open_modules]
    width = 2 * description.modules[0].head_dim + 5
    assert all(weights.shape == (2, width) and weights.dtype == torch.float32 for weights in fitted.weights.values())
    assert all(torch.isfinite(weights).all() for weights in fitted.weights.values())
    assert fitted.about == {"text": "random", "tokens": 144, "sha256": TEXT.sha256}
    assert repr(fitted) == "<Probes of 2 modules, fitted on 144 tokens of random>"


def test_probes_are_of_all_sequences_together(model, description, tmp_path):
    sequences = tiny.tokens(3, 48, seed=5)
    fitted = fit(model, Records(tmp_path, {}), sequences)
    for name, weights in fitted.weights.items():
        of = [probes.sequence_equations(model, description, sequence)[name] for sequence in sequences]
        torch.testing.assert_close((of[2] + of[0] + of[1]).solve(), weights, rtol=1e-4, atol=1e-5)
        assert not torch.allclose((of[0] + of[1]).solve(), weights, rtol=1e-2, atol=1e-2)


def test_only_modules_that_see_everything_have_probes(tmp_path):
    gemma = tiny.gemma3()
    open_ones = [module.name for module in describe(gemma, "gemma3").open_modules]
    assert len(open_ones) == 2
    assert list(fit(gemma, Records(tmp_path, {}), tiny.tokens(1, 40)).weights) == open_ones


def test_a_resumed_fit_runs_what_is_missing_and_is_the_same(model, monkeypatch, tmp_path):
    whole = fit(model, Records(tmp_path / "whole", {}))
    seen, real = [], probes.sequence_equations

    def interrupted(model, description, sequence):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(sequence)
        return real(model, description, sequence)

    monkeypatch.setattr(probes, "sequence_equations", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(model, Records(tmp_path / "parts", {}))
    monkeypatch.setattr(probes, "sequence_equations", lambda *arguments: seen.append(arguments) or real(*arguments))
    steps = []
    assert_same(fit(model, Records(tmp_path / "parts", {}), progress=lambda *step: steps.append(step)), whole)
    assert len(seen) == 3
    assert steps == [("probes", done, 3) for done in range(4)]
    assert_same(fit(model, Records(tmp_path / "parts", {})), whole)
    assert len(seen) == 3
    others = fit(model, Records(tmp_path / "parts", {}), tiny.tokens(3, 48, seed=5).flip(0)[:2])
    assert len(seen) == 3
    assert others.tokens == 96
    fit(model, Records(tmp_path / "parts", {}), tiny.tokens(1, 48, seed=6))
    assert len(seen) == 4


def tokens_of(count):
    return Tokens(TEXT, tiny.tokens(1, count)[0].tolist(), None)


@pytest.mark.parametrize(
    "available, most, length, fitted, held_out",
    [
        (6400, None, 64, [0, 12, 37, 50, 62, 87], [25, 75]),  # a context of 64 tokens
        (6400, 300, 64, [0, 25, 75], [50]),
        (200, None, 64, [0, 2], [1]),
        (140, None, 64, [0], [1]),
        (100, None, 50, [0], [1]),
        (1000, 60, 30, [0], [16]),
        (20, None, 16, [0], []),
    ],
)
def test_sequences_are_spread_and_fit_the_model_and_the_text(description, available, most, length, fitted, held_out):
    ids = tokens_of(available)
    cut = torch.tensor(ids.ids[: available // length * length]).view(-1, length)
    first, second = probes.probe_sequences(ids, description, most)
    assert torch.equal(first, cut[fitted])
    assert second is None if not held_out else torch.equal(second, cut[held_out])


def test_a_text_that_is_too_short_is_refused(description, model, tmp_path):
    with pytest.raises(UsageError, match="random gives 12 tokens, .* fewer than one sequence of 16; use more text"):
        probes.probe_sequences(tokens_of(12), description)
    with pytest.raises(UsageError, match="expected at least 16"):
        fit(model, Records(tmp_path, {}), tiny.tokens(1, 12))
