"""Rivals that keep keys: their scores against plain loops, their bytes, and that they run as they say."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from descriptions import made_up_model
from hypothesis import given, settings
from hypothesis import strategies as st
from keeping_configs import small
from mixed_orders import PROBE_TEXT, random_probes
from policy_rules.fields import alike, with_state
from policy_rules.keeping import Keeper, keeping
from policy_rules.priorities import (
    RECENT,
    at_random,
    least_like_the_mean,
    looked_up,
    prepared_by,
    received_later,
    smallest_norm,
)
from policy_rules.rules import CHEAP, H2O, KEYDIFF, LOLA, ORACLE, PROBE, RANDOM
from tiny import gemma3, llama, tokens

from taylorder.adapt import cost
from taylorder.adapt.handle import attach
from taylorder.analysis.losses import hidden_states
from taylorder.evaluation.rivals import bytes_per_kv_head
from taylorder.kernels.spec import SINKS, Exact, Taylor
from taylorder.models.describe import describe

SHARES = [Fraction(3, 4), Fraction(1, 2)]


@pytest.mark.parametrize("share", SHARES)
@given(tokens=st.integers(8, 3000), spare=st.integers(0, 63))
@settings(max_examples=60, deadline=None)
def test_one_near_field_spends_the_budget_and_no_more(share, tokens, spare):
    described = made_up_model(sliding=(1,))
    token = cost.kv_bytes(16, 16, 1)
    config = alike(described, tokens * token + spare, share, random_probes(described), PROBE_TEXT)
    near = config.layers[0].heads[0].spec.near
    kept = (tokens - SINKS) * share * token / (token + cost.PRIORITY_BYTES)
    assert near.kept == pytest.approx(float(kept), abs=2)
    assert isinstance(config.layers[1].heads[0].spec.far, Exact)
    taken = bytes_per_kv_head(config, described, 4096)
    assert (tokens - 2) * token < taken <= tokens * token


@pytest.mark.parametrize("order", [1, 2])
@given(tokens=st.integers(8, 600))
@settings(max_examples=40, deadline=None)
def test_a_state_is_paid_for_with_kept_keys(order, tokens):
    described = made_up_model(d=4, d_v=4)
    budget = tokens * cost.kv_bytes(4, 4, 1)
    config = alike(described, budget, SHARES[0], random_probes(described), PROBE_TEXT)
    changed_config = with_state(config, described, order)
    before, spec = (each.layers[0].heads[0].spec for each in (config, changed_config))
    assert bytes_per_kv_head(changed_config, described, 4096) <= bytes_per_kv_head(config, described, 4096)
    assert bytes_per_kv_head(changed_config, described, 4096) > budget - 3 * cost.kv_bytes(4, 4, 1)
    assert (spec.near.window, spec.near.sinks) == (before.near.window, before.near.sinks)
    kept, price = before.near.kept, -(-cost.state_bytes(4, 4, order) // 20)  # bytes of a key and its priority
    if kept >= 2 * price:
        assert spec.far == Taylor(order, "mean")
        assert spec.near.kept == kept - price
    else:
        assert spec.near.kept <= kept


def test_knorm_and_keydiff_are_what_a_plain_loop_gives():
    key, value = torch.randn(1, 2, 30, 6), torch.randn(1, 2, 30, 6)
    norm, unlike = smallest_norm("", key, value), least_like_the_mean("", key, value)
    for head in range(2):
        keys = key[0, head].double().numpy()
        for j in range(30):
            assert float(norm[0, head, j]) == pytest.approx(-math.sqrt(sum(x * x for x in keys[j])), rel=1e-5)
            anchor = sum(keys[i] / np.linalg.norm(keys[i]) for i in range(j + 1)) / (j + 1)
            cosine = keys[j] @ anchor / np.linalg.norm(keys[j]) / np.linalg.norm(anchor)
            assert float(unlike[0, head, j]) == pytest.approx(-cosine, abs=1e-5)
    assert not torch.equal(at_random("one", key, value), at_random("other", key, value))
    assert torch.equal(at_random("one", key, value), at_random("one", key, value))


def test_the_oracle_is_what_a_plain_loop_gives():
    model, length = llama(), RECENT + 40
    described, ids = describe(model, "tiny"), tokens(length=length, seed=5)[0]
    received = received_later(model, described, ids)
    seen = {}
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        weights = model(ids[None], output_attentions=True).attentions
    for module, of_module in zip(described.modules, weights, strict=True):
        seen[module.name] = of_module[0].double().numpy()
    for module in described.modules:
        found = received[module.name][0]
        assert found.shape == (module.kv_heads, length)
        for kv_head in range(module.kv_heads):
            heads = range(kv_head * module.group, (kv_head + 1) * module.group)
            for j in (0, 7, length - RECENT - 2):
                later = range(j + RECENT + 1, length)
                mean = np.mean([[seen[module.name][head, i, j] for i in later] for head in heads])
                assert float(found[kv_head, j]) == pytest.approx(mean, rel=1e-4)
        assert not found[:, -RECENT - 1 :].any()


class ByPriority(Keeper):
    """Fixed priorities in the loop that runs row by row: where the product has to arrive."""

    rule = staticmethod(smallest_norm)

    def standings(self, numbers):
        priority = self.rule("", self.k[None, None], self.v[None, None])[0, 0]
        return priority[torch.from_numpy(numbers)].double().numpy()


@pytest.mark.parametrize(  # keys of a Gemma 3 are normalised: by their norms they are all alike
    ("factory", "rule"), [(llama, smallest_norm), (llama, least_like_the_mean), (gemma3, least_like_the_mean)]
)
def test_the_product_keeps_what_the_loop_over_rows_keeps(factory, rule):
    model, ids = factory(), tokens(length=60, seed=2)[0]
    described, config = small(model)
    with attach(model, prepared_by(model, described, config, rule)):
        found = hidden_states(model, ids)
    with keeping(model, config, type("Loop", (ByPriority,), {"rule": staticmethod(rule)})):
        expected = hidden_states(model, ids)
    assert float((found - expected).norm() / expected.norm()) < 1e-5
    with attach(model, config):
        assert float((hidden_states(model, ids) - expected).norm() / expected.norm()) > 1e-3


@pytest.mark.parametrize("rule", [*CHEAP, H2O, LOLA, ORACLE], ids=lambda rule: rule.name)
def test_every_rule_runs_its_own_way_and_leaves_the_model_as_it_was(rule):
    model, ids = llama(), tokens(length=RECENT + 40, seed=3)[0]
    described, config = small(model)
    before = hidden_states(model, ids)
    with rule.running(model, described, with_state(config, described, 1) if rule is LOLA else config, ids):
        found = hidden_states(model, ids)
    assert not torch.allclose(found, before, atol=1e-4)
    assert torch.equal(hidden_states(model, ids), before)
    with PROBE.running(model, described, config, ids):
        by_probe = hidden_states(model, ids)
    assert torch.equal(found, by_probe) == (rule is PROBE)


def test_priorities_of_another_sequence_are_not_used_twice():
    model = llama()
    described, config = small(model)
    found = []
    for seed in (3, 4, 3):
        ids = tokens(length=RECENT + 40, seed=seed)[0]
        with ORACLE.running(model, described, config, ids):
            found.append(hidden_states(model, ids))
        with attach(model, prepared_by(model, described, config, looked_up(received_later(model, described, ids)))):
            assert torch.equal(found[-1], hidden_states(model, ids))
    assert torch.equal(found[0], found[2])


def test_rules_say_where_they_are_from_and_what_they_need():
    rules = [*CHEAP, H2O, LOLA, ORACLE]
    assert len({rule.name for rule in rules}) == len(rules)
    assert all(rule.source.startswith("arXiv") for rule in rules if rule not in (PROBE, RANDOM, ORACLE))
    assert [rule.name for rule in rules if not rule.runnable] == ["oracle"]
    assert KEYDIFF.needs == "nothing"
