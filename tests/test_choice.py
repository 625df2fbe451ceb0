"""From candidates to configs: bytes by hand, tensors that belong to it, and what remains without each lever."""

from __future__ import annotations

import itertools

import pytest
import torch
from measured_levers import (
    CANDIDATES,
    CENTRE_3,
    DROPPED,
    EVEN,
    EXACT,
    FITTED_1,
    FITTED_2,
    HALF_KEPT,
    KEEPING,
    KEPT,
    KEPT_1,
    KEPT_2,
    LENGTH,
    LONG,
    RANKED,
    SINKS_16,
    TAYLOR_1,
    measured,
)
from policy_rules.ablation import without_lever
from tiny import gemma3, llama

from taylorder.adapt.config import OrderConfig
from taylorder.adapt.cost import config_bytes, kv_bytes, kv_head_bytes
from taylorder.adapt.handle import adapted
from taylorder.analysis.losses import hidden_states
from taylorder.errors import ConfigError
from taylorder.kernels.spec import Dropped, Exact, HeadSpec, Near, Taylor
from taylorder.models.attention import recording
from taylorder.models.description import AttentionModule
from taylorder.selection.candidates import LEVERS, Candidate
from taylorder.selection.config_of import config_of, table_bytes, window_instead
from taylorder.selection.lever_table import LeverTable

MODULE = AttentionModule("m", 4, 2, head_dim=8, value_dim=6, scaling=1.0, causal=True, sliding_window=None)


@pytest.fixture(scope="module")
def tiny_llama(tmp_path_factory):
    model = llama()
    return model, *measured(model, tmp_path_factory.mktemp("records"), KEEPING)


@pytest.mark.parametrize(
    ("candidate", "expected"),
    [
        (Candidate(HeadSpec(Exact())), 100 * 28),  # a token: (8 + 6) numbers of 2 bytes
        (Candidate(HeadSpec(Dropped(), Near(12, 4))), 16 * 28),
        (Candidate(HeadSpec(Taylor(1, "centre"), Near(sinks=4))), 4 * 28 + 1 * 7 * 4),
        (Candidate(HeadSpec(Taylor(1, "centre"), Near(12, 4)), fitted=True), 16 * 28 + 1 * 7 * 4),
        (Candidate(HeadSpec(Taylor(3, "mean"), Near(6, 2))), 8 * 28 + (1 + 8 + 36) * 7 * 4),
        (Candidate(HeadSpec(Taylor(4, "mean", (8, 8, 3, 2)), Near(6, 2))), 8 * 28 + (1 + 8 + 6 + 4) * 7 * 4),
        (Candidate(HeadSpec(Dropped(), Near(200, 4))), 100 * 28),
        (Candidate(HeadSpec(Dropped(), Near(12, 4, 30))), 46 * 28 + 30 * 4),
        (Candidate(HeadSpec(Taylor(1, "centre"), Near(12, 4, 30))), 46 * 28 + 30 * 4 + 7 * 4),
        (Candidate(HeadSpec(Taylor(2, "mean"), Near(97, 4))), 100 * 28 + 9 * 7 * 4),
    ],
)
def test_bytes_of_a_candidate_by_hand(candidate, expected):
    assert kv_head_bytes([candidate.spec], MODULE, 100) == expected


@pytest.mark.parametrize(
    "candidate",
    [each for each in KEEPING if each.truncates]
    + [Candidate(HeadSpec(Taylor(4, "mean"), Near(sinks=4))), Candidate(HeadSpec(Taylor(1, "centre"), Near(sinks=9)))],
)
def test_the_window_instead_costs_the_state_and_less_than_a_token_more(candidate):
    instead = window_instead(candidate, MODULE)
    near, before = instead.spec.near, candidate.spec.near
    assert instead.spec == HeadSpec(Dropped(), Near(near.window, before.sinks, near.kept))
    assert near.kept * before.window == pytest.approx(before.kept * near.window, abs=near.window + near.kept)
    more = kv_head_bytes([instead.spec], MODULE, 10_000) - kv_head_bytes([candidate.spec], MODULE, 10_000)
    assert 0 <= more < kv_bytes(8, 6, 1) + (4 if before.kept else 0)


def test_there_is_no_window_instead_of_what_has_no_state():
    assert window_instead(CANDIDATES[EXACT], MODULE) is None
    assert window_instead(CANDIDATES[DROPPED], MODULE) is None


CHOICES = [
    (EXACT, DROPPED, FITTED_1, RANKED),
    (EVEN, FITTED_2, CENTRE_3, LONG),
    (RANKED, TAYLOR_1, SINKS_16, RANKED),
    (KEPT, KEPT_1, DROPPED, RANKED),
    (HALF_KEPT, RANKED, KEPT_2, KEPT),
]


@pytest.mark.parametrize("context", [5, LENGTH, 5000])
@pytest.mark.parametrize("choice", CHOICES)
def test_a_config_costs_what_its_candidates_do(tiny_llama, choice, context):
    _, table, _ = tiny_llama
    sizes = table_bytes(table, context)
    expected = [size[place] for size, place in zip(sizes, choice, strict=True)]
    config = config_of(table, choice, context=context)
    assert config_bytes(config, table.model, context) == sum(expected)
    noted = [layer.heads[head].nominal_bytes for layer in config.layers for head in range(4)]
    assert noted == [size for size in expected for _ in range(2)]


@pytest.mark.parametrize("choice", CHOICES)
def test_a_config_has_the_errors_that_were_measured(tiny_llama, choice):
    """The first layer sees the same inputs, so centres, rotations and coefficients all have to be those measured."""
    model, table, ids = tiny_llama
    config = config_of(table, choice, context=LENGTH)
    config.check(model)
    name = table.modules[0].name
    outputs = []

    def observe(call, output):
        if call.name == name:
            outputs.append(output[0].double())  # [T, H, d_v]

    with recording(model, None, observe=observe):
        hidden_states(model, ids[0])
    with adapted(model, config, observe=observe):
        hidden_states(model, ids[0])
    exact, changed = outputs
    for kv_head in range(2):
        heads = slice(2 * kv_head, 2 * kv_head + 2)
        error = float((changed - exact)[:, heads].norm() / exact[:, heads].norm())
        row = table.rows()[kv_head][choice[kv_head]]
        assert error == pytest.approx(row.relative_l2, rel=1e-4, abs=1e-6)
        assert config.layers[0].heads[heads.start].error == pytest.approx(row.relative_l2, abs=1e-6)
    assert max(table.rows()[head][choice[head]].relative_l2 for head in range(2)) > 0.01


def test_rotations_are_there_only_where_a_head_has_ranks(tiny_llama):
    _, table, _ = tiny_llama
    first, second = (module.name for module in table.modules)
    config = config_of(table, (EXACT, DROPPED, FITTED_1, RANKED), context=LENGTH)
    assert set(config.rotations) == {second}
    assert set(config.key_centres) == {first, second}
    assert torch.equal(config.key_centres[first], table.layers[0].prepared.centres)
    assert not config_of(table, (EXACT, DROPPED, FITTED_1, EVEN), context=LENGTH).rotations
    with pytest.raises(ConfigError, match="has ranks and no rotations"):
        config.with_rotations({}).check(table.model)


def test_probes_are_there_only_where_a_layer_keeps_keys(tiny_llama):
    _, table, _ = tiny_llama
    first, second = (module.name for module in table.modules)
    config = config_of(table, (DROPPED, KEPT, EXACT, DROPPED), context=LENGTH)
    assert set(config.probes) == {first}
    assert torch.equal(config.probes[first], table.layers[0].prepared.probe)
    assert (config.probe.text, config.probe.tokens) == ("made up", 1000)
    both = config_of(table, (DROPPED, KEPT, KEPT_1, DROPPED), context=LENGTH)
    assert set(both.probes) == {first, second}
    without = config_of(table, (DROPPED, EXACT, FITTED_1, DROPPED), context=LENGTH)
    assert (without.probes, without.probe) == ({}, None)


@pytest.mark.parametrize(("place", "tokens"), [(DROPPED, 16), (KEPT, 14 + 1), (KEPT_1, 9 + 2)])
def test_a_config_says_from_which_context_on_it_saves_bytes(tiny_llama, place, tokens):
    """A token is 32 bytes, a priority 4, a row of state 36."""
    _, table, _ = tiny_llama
    config = config_of(table, (place,) * 4, context=LENGTH)
    assert {head.break_even for layer in config.layers for head in layer.heads} == {tokens}


def test_fitted_coefficients_are_those_of_each_query_head(tiny_llama):
    _, table, _ = tiny_llama
    config = config_of(table, (FITTED_2,) * 4, context=LENGTH)
    for layer, measured_layer in zip(config.layers, table.layers, strict=True):
        assert tuple(head.spec.far.coefficients for head in layer.heads) == measured_layer.fitted[FITTED_2]
    assert len({head.spec.far.coefficients for layer in config.layers for head in layer.heads}) == 8


def test_a_config_reads_back(tiny_llama, tmp_path):
    model, table, _ = tiny_llama
    config = config_of(table, CHOICES[2], context=LENGTH, criterion={"policy": "levers"})
    config.save(tmp_path / "orders.json")
    assert OrderConfig.load(tmp_path / "orders.json", model) == config


@pytest.mark.parametrize("place", [TAYLOR_1, RANKED])
def test_modules_with_a_sliding_window_stay_exact(tmp_path, place):
    model = gemma3()
    candidates = (
        Candidate(HeadSpec(Exact())),
        Candidate(HeadSpec(Taylor(1, "centre"), Near(6, 4))),
        Candidate(HeadSpec(Taylor(3, "mean", (16, 16, 3)), Near(4, 4))),
    )
    table, ids = measured(model, tmp_path, candidates)
    place = {TAYLOR_1: 1, RANKED: 2}[place]
    config = config_of(table, (place,) * 4, context=LENGTH)
    config.check(model)
    kinds = [{head.spec for head in layer.heads} for layer in config.layers]
    exact, chosen = HeadSpec(Exact()), candidates[place].spec
    assert kinds == [{exact}, {chosen}, {exact}, {chosen}]
    assert {layer.heads[0].reason for layer in config.layers[::2]} == {"sliding"}
    token = kv_bytes(16, 16, 1)
    assert config.layers[0].heads[0].nominal_bytes == 8 * token
    assert config_bytes(config, table.model, LENGTH) == sum(size[place] for size in table_bytes(table, LENGTH)) + (
        2 * 2 * 8 * token
    )
    exact = hidden_states(model, ids[0])
    with adapted(model, config):
        changed = hidden_states(model, ids[0])
    assert torch.isfinite(changed).all()
    assert not torch.allclose(changed, exact, atol=1e-3)


def groups(config):
    """What the first head of every KV head of the tiny Llama runs."""
    return [layer.heads[head].spec for layer in config.layers for head in (0, 2)]


def kept_tokens(spec):
    """Tokens of 8 + 8 numbers, those that the state is worth included."""
    if isinstance(spec.far, Exact):
        return LENGTH
    near = (spec.near.tokens * 32 + spec.near.kept * 4) // 32
    if isinstance(spec.far, Dropped):
        return near
    features = {1: 1, 2: 9, 3: 45}[spec.far.order] if spec.ranks is None else 1 + 8 + 6
    return near + features * 9 * 4 // 32


GONE = {
    "order": lambda specs: not any(isinstance(spec.far, Taylor) for spec in specs),
    "expansion": lambda specs: not any(spec.around_mean for spec in specs),
    "window": lambda specs: max(map(kept_tokens, specs)) - min(map(kept_tokens, specs)) <= 1,  # rounded down twice
    "sinks": lambda specs: all(isinstance(spec.far, Exact) or spec.near.sinks == 4 for spec in specs),
    "kept": lambda specs: not any(spec.near.kept for spec in specs),
    "ranks": lambda specs: all(spec.ranks is None for spec in specs),
    "coefficients": lambda specs: all(getattr(spec.far, "coefficients", None) is None for spec in specs),
}


MIXED = [
    *itertools.product((EXACT, DROPPED, RANKED), (FITTED_2, SINKS_16), (CENTRE_3,), (TAYLOR_1, FITTED_1)),
    (KEPT, RANKED, SINKS_16, KEPT_1),
    (KEPT_2, KEPT_2, HALF_KEPT, FITTED_1),
]


@pytest.mark.parametrize("lever", LEVERS)
def test_without_a_lever_it_is_gone_and_takes_no_more_bytes(tiny_llama, lever):
    model, table, ids = tiny_llama
    used = 0
    for choice in MIXED:
        config = config_of(table, choice, context=LENGTH)
        without = without_lever(config, table.model, lever, LENGTH)
        assert GONE[lever](groups(without))
        before, after = (config_bytes(each, table.model, LENGTH) for each in (config, without))
        assert after <= before
        assert (without == config) == GONE[lever](groups(config))
        used += without != config
    assert used
    without.check(model)
    with adapted(model, without):
        assert torch.isfinite(hidden_states(model, ids[0])).all()


@pytest.mark.parametrize("lever", LEVERS)
def test_without_a_lever_rounding_loses_less_than_two_tokens(tiny_llama, lever):
    """At a context that clips no window."""
    _, table, _ = tiny_llama
    for choice in [choice for choice in MIXED if EXACT not in choice]:
        config = config_of(table, choice, context=1000)
        without = without_lever(config, table.model, lever, 1000)
        before, after = (config_bytes(each, table.model, 1000) for each in (config, without))
        assert 0 <= before - after < 4 * 2 * kv_bytes(8, 8, 1)


@pytest.mark.parametrize(
    ("lever", "choice"),
    [
        ("order", (DROPPED, EXACT, SINKS_16, LONG)),
        ("expansion", (CENTRE_3, EXACT, FITTED_1, TAYLOR_1)),
        ("window", (CENTRE_3,) * 4),
        ("window", (DROPPED,) * 4),
        ("sinks", (CENTRE_3, EXACT, DROPPED, TAYLOR_1)),
        ("ranks", (CENTRE_3, EXACT, FITTED_2, TAYLOR_1)),
        ("coefficients", (CENTRE_3, EXACT, RANKED, DROPPED)),
        ("kept", (CENTRE_3, EXACT, RANKED, DROPPED)),
        ("order", (KEPT, EXACT, HALF_KEPT, KEPT)),
    ],
)
def test_a_config_that_does_not_use_a_lever_stays_equal(tiny_llama, lever, choice):
    _, table, _ = tiny_llama
    config = config_of(table, choice, context=LENGTH)
    assert without_lever(config, table.model, lever, LENGTH) == config


def test_fewer_sinks_than_four_are_no_lever(tmp_path):
    """Four sinks and a window would take more bytes than the two sinks there were."""
    model = llama()
    table, _ = measured(
        model, tmp_path, (Candidate(HeadSpec(Exact())), Candidate(HeadSpec(Dropped(), Near(sinks=2)))), length=16
    )
    assert isinstance(table, LeverTable)
    config = config_of(table, (1,) * 4, context=16)
    assert without_lever(config, table.model, "sinks", 16) == config
