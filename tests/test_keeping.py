"""Rules whose scores change while a sequence is read, against loops over tokens and keys."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from policy_rules.keeping import HeavyHitters, Keeper, Recall, attend, keeping
from tiny import gemma3, llama, tokens

from taylorder.adapt.config import OrderConfig
from taylorder.analysis.losses import hidden_states
from taylorder.kernels.spec import Dropped, Exact, HeadSpec, Near, Taylor
from taylorder.models.describe import describe

T, D, GROUP, SCALING = 60, 4, 2, 0.6


def drawn(seed=0, length=T, kv_heads=1):
    generator = torch.Generator().manual_seed(seed)
    q = 1.5 * torch.randn(1, GROUP * kv_heads, length, D, generator=generator)
    return q, *(torch.randn(1, kv_heads, length, D, generator=generator) for _ in range(2))


class Plain:
    """One KV head, one token after another, with Python lists."""

    def __init__(self, q, k, v, near, order=0):
        self.q, self.k, self.v = (x.double().numpy() for x in (q[0], k[0, 0], v[0, 0]))
        self.near, self.order = near, order
        self.kept, self.far, self.received = [], [], [0.0] * len(self.k)

    def outputs(self):
        return np.stack([self.row(i) for i in range(len(self.k))], 1)

    def row(self, i):
        leaver = i - self.near.window
        if leaver >= self.near.sinks:
            self.kept.append(leaver)
            if len(self.kept) > self.near.kept:
                loser = min(self.kept, key=lambda j: (self.standing(j), j))
                self.kept.remove(loser)
                self.far.append(loser)
        near = [j for j in range(i + 1) if j < self.near.sinks or j > leaver or j in self.kept]
        return np.stack([self.attended(head, i, near) for head in range(GROUP)])

    def attended(self, head, i, near):
        scores = SCALING * self.k @ self.q[head, i]
        weights = {j: math.exp(scores[j]) for j in near}
        total = sum(weights.values())
        for j, weight in weights.items():
            self.received[j] += weight / total
        if self.order and self.far:
            weights |= self.polynomial(scores)
        return sum(weight * self.v[j] for j, weight in weights.items()) / sum(weights.values())

    def polynomial(self, scores):
        mean = np.mean([scores[j] for j in self.far])
        return {j: math.exp(mean) * (1 + (scores[j] - mean) * (self.order == 2)) for j in self.far}

    def standing(self, j):
        return self.received[j]


class PlainRecall(Plain):
    def standing(self, j):
        if not self.far:
            return np.linalg.norm(self.v[j])
        weights = self.polynomial(SCALING * self.k @ self.k[j])
        recalled = sum(weight * self.v[n] for n, weight in weights.items()) / sum(weights.values())
        return np.linalg.norm(recalled - self.v[j])


class RecallByRow(Recall):
    ROWS = 1


def largest(one, other):
    return float(np.abs(np.asarray(one) - np.asarray(other)).max())


NEARS = [Near(5, 2, 6), Near(9, 0, 3), Near(1, 4, 10), Near(3, 2, 0), Near(20, 4, 20)]


@pytest.mark.parametrize("rows", [1, 7, 64])
@pytest.mark.parametrize("near", NEARS)
def test_h2o_is_a_plain_loop_whatever_the_blocks(near, rows):
    q, k, v = drawn()
    keeper = type("Blocks", (HeavyHitters,), {"ROWS": rows})
    found = keeper(q[0], k[0, 0], v[0, 0], near, 0, SCALING).outputs()
    assert largest(found, Plain(q, k, v, near).outputs()) < 1e-5


def test_h2o_counts_what_survives_and_not_what_it_never_saw():
    length, near = 200, Near(5, 2, 6)
    q, k, v = drawn(length=length)
    q = 4 * q  # attention that is spread evenly goes to the oldest keys, whatever is evicted
    found = HeavyHitters(q[0], k[0, 0], v[0, 0], near, 0, SCALING).outputs()
    plain = Plain(q, k, v, near)
    later = torch.ones(length, length).triu(1).bool()
    causal = (SCALING * q[0] @ k[0, 0].T).masked_fill(later, -math.inf).softmax(-1)  # as if nothing were evicted
    plain.standing = lambda j: float(causal[:, : max(plain.kept) + near.window, j].sum())
    assert largest(found, plain.outputs()) > 1e-2


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("near", NEARS)
def test_lola_is_a_plain_loop_where_scores_are_made_for_every_row(near, order):
    q, k, v = drawn(1)
    found = RecallByRow(q[0], k[0, 0], v[0, 0], near, order, SCALING).outputs()
    assert largest(found, PlainRecall(q, k, v, near, order).outputs()) < 1e-4


def test_what_lola_keeps_hardly_depends_on_the_blocks():
    q, k, v = drawn(2, length=400)
    exact, blocks = (rule(q[0], k[0, 0], v[0, 0], Near(16, 4, 40), 2, SCALING) for rule in (RecallByRow, Recall))
    exact.outputs()
    blocks.outputs()
    assert len(np.intersect1d(exact.kept, blocks.kept)) >= 32


def test_every_kv_head_runs_its_own_near_field():
    q, k, v = drawn(kv_heads=4)
    specs = [HeadSpec(Dropped(), Near(5, 2, 6)), HeadSpec(Exact()), HeadSpec(Dropped(), Near(8, 2))]
    specs += [HeadSpec(Taylor(2, "mean"), Near(4, 1, 5))]
    found = attend(q, k, v, [spec for spec in specs for _ in range(GROUP)], HeavyHitters, scaling=SCALING)
    for kv_head, spec in enumerate(specs):
        heads = slice(kv_head * GROUP, (kv_head + 1) * GROUP)
        alone = q[:, heads], k[:, kv_head : kv_head + 1], v[:, kv_head : kv_head + 1]
        near = Near(T) if isinstance(spec.far, Exact) else spec.near
        expected = Plain(*alone, near, order=2 * isinstance(spec.far, Taylor)).outputs()
        assert largest(found[0, heads], expected) < 1e-4


@pytest.mark.parametrize("far", [Taylor(3, "mean"), Taylor(2, "centre")])
def test_far_fields_it_cannot_run_are_refused(far):
    with pytest.raises(ValueError, match="of order 1 or 2 around the mean"):
        attend(*drawn(), [HeadSpec(far, Near(4, 1, 5))] * GROUP, Recall, scaling=SCALING)
    with pytest.raises(ValueError, match="window is 0"):
        attend(*drawn(), [HeadSpec(Dropped(), Near(0, 1, 5))] * GROUP, HeavyHitters, scaling=SCALING)


@pytest.mark.parametrize("factory", [llama, gemma3])
def test_a_model_keeps_keys_and_is_as_it_was_afterwards(factory):
    model, ids = factory(), tokens(length=40)[0]
    before = hidden_states(model, ids)
    near = Near(4, 2, 6)
    config = OrderConfig.uniform(describe(model, "tiny"), 2, "mean", window=4, sinks=2)
    layers = tuple(
        layer.model_copy(
            update={
                "heads": tuple(
                    head
                    if isinstance(head.spec.far, Exact)
                    else head.model_copy(update={"spec": HeadSpec(Dropped(), near)})
                    for head in layer.heads
                )
            }
        )
        for layer in config.layers
    )
    config = config.model_copy(update={"layers": layers})
    with keeping(model, config, HeavyHitters):
        kept = hidden_states(model, ids)
    assert torch.equal(kept[:7], before[:7]) or largest(kept[:7], before[:7]) < 1e-5  # all keys are near so far
    assert largest(kept[20:], before[20:]) > 1e-4
    assert torch.equal(hidden_states(model, ids), before)
    with keeping(model, config, Keeper), pytest.raises(NotImplementedError):
        hidden_states(model, ids)
    assert torch.equal(hidden_states(model, ids), before)
