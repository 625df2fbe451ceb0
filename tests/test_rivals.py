"""What else a config's bytes buy: never more bytes than the budget, less than one token's worth left over."""

from __future__ import annotations

import pytest
import tiny
from descriptions import made_up_model
from hypothesis import given, settings
from hypothesis import strategies as st

from taylorder.adapt import cost
from taylorder.adapt.config import HeadOrder, OrderConfig
from taylorder.adapt.decisions import FlatOrder
from taylorder.analysis.spectral import Matrix, fit_spectra
from taylorder.evaluation import rivals
from taylorder.evaluation.rivals import (
    SINKS,
    alpha_policy,
    at_equal_bytes,
    bytes_per_kv_head,
    exact_everywhere,
    fitted_alphas,
    paper,
    per_layer,
    sliding_window,
    uniform_order,
)
from taylorder.kernels.spec import Dropped, HeadSpec, Near, Taylor
from taylorder.models.describe import describe

MODELS = st.builds(
    made_up_model,
    layers=st.integers(1, 6),
    heads=st.sampled_from([4, 8]),
    kv_heads=st.sampled_from([1, 2, 4]),
    d=st.sampled_from([4, 16, 60]),
    d_v=st.sampled_from([4, 16]),
    sliding=st.sets(st.integers(1, 5)),
)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), described=MODELS, tokens=st.integers(2, 9000), budget=st.integers(0, 2_000_000))
def test_no_rival_takes_more_than_the_budget_or_leaves_a_token_unspent(data, described, tokens, budget):
    first = described.modules[0]
    token = cost.kv_bytes(first.head_dim, first.value_dim, 1)
    whole = tokens * token
    known = st.none() | st.floats(1.5, 6)
    alphas = {module.name: data.draw(known, label=module.name) for module in described.modules}
    window = sliding_window(described, budget, tokens)
    one_order = uniform_order(described, budget, tokens)
    by_alpha = alpha_policy(described, alphas, budget, tokens)
    for contender in filter(None, (window, one_order, by_alpha)):
        taken = bytes_per_kv_head(contender.config, described, tokens)
        assert taken <= budget
        assert contender.config is None or budget - taken < token + 1, contender.name  # bytes are rounded down
    least = (SINKS + 1) * token
    assert (window is None) == (budget < min(least, whole))
    assert (window is not None and window.config is None) == (budget >= whole)
    assert (one_order is not None) == (least + cost.state_bytes(first.head_dim, first.value_dim, 1) <= budget < whole)
    assert by_alpha is None or budget < whole


def test_a_larger_order_is_taken_as_soon_as_it_fits():
    described = made_up_model()
    token, order_3 = cost.kv_bytes(16, 16, 1), cost.state_bytes(16, 16, 3)
    least = order_3 + (SINKS + 1) * token
    assert uniform_order(described, least, 4096).config.layers[0].heads[0].spec.far.order == 3
    assert uniform_order(described, least - 1, 4096).config.layers[0].heads[0].spec.far.order == 2


def test_the_window_keeps_sinks_and_drops_the_far_field():
    contender = sliding_window(made_up_model(), 100 * cost.kv_bytes(16, 16, 1), 4096)
    head = contender.config.layers[0].heads[0]
    assert head.spec == HeadSpec(Dropped(), Near(100 - SINKS, SINKS))
    assert contender.note == "4 sinks and the last 96 keys for every head, the rest dropped"


def test_alphas_far_from_two_get_high_orders():
    described = made_up_model()
    alphas = {"layers.0": 5.0, "layers.1": 2.1, "layers.2": 1.2, "layers.3": 3.0}
    budget = cost.state_bytes(16, 16, 3) + 40 * cost.kv_bytes(16, 16, 1)
    contender = alpha_policy(described, alphas, budget, 100_000)
    orders = [FlatOrder.of(layer.heads[0]).order for layer in contender.config.layers]
    assert orders[1] == 1
    assert orders[0] > orders[3] >= orders[2] >= orders[1]


def test_layers_without_an_alpha_stay_exact_and_are_paid_for():
    described = made_up_model(sliding=(1,))
    alphas = {"layers.0": 5.0, "layers.1": 2.0, "layers.2": None, "layers.3": 3.0}
    budget, tokens = 40_000, 1000
    contender = alpha_policy(described, alphas, budget, tokens)
    reasons = [layer.heads[0].reason for layer in contender.config.layers]
    orders = [FlatOrder.of(layer.heads[0]).order for layer in contender.config.layers]
    assert orders[1] == orders[2] == "exact"
    assert reasons[1] == "sliding"
    assert {orders[0], orders[3]} != {"exact"}
    assert bytes_per_kv_head(contender.config, described, tokens) <= budget
    assert alpha_policy(described, alphas, 15_000, tokens) is None, "the exact layer alone takes more"


def test_sliding_layers_are_not_counted():
    described = made_up_model(sliding=(0, 2))
    assert [module.name for module in described.open_modules] == ["layers.1", "layers.3"]
    assert bytes_per_kv_head(None, described, 100) == cost.kv_bytes(16, 16, 100)
    assert bytes_per_kv_head(OrderConfig.uniform(described, 2), described, 100) == cost.state_bytes(16, 16, 2)
    assert bytes_per_kv_head(None, made_up_model(layers=1, sliding=(0,)), 100) == 0


def test_the_budget_is_the_mean_of_a_mixed_config():
    described = made_up_model(layers=2)
    mixed = per_layer(described, {"layers.0": HeadOrder(spec=HeadSpec(Taylor(2), Near(8, 2)))}, {})
    expected = (cost.state_bytes(16, 16, 2) + cost.kv_bytes(16, 16, 10) + cost.kv_bytes(16, 16, 500)) // 2
    assert bytes_per_kv_head(mixed, described, 500) == expected
    window = at_equal_bytes(described, mixed, {}, 500)[0]
    taken = bytes_per_kv_head(window.config, described, 500)
    assert expected - cost.kv_bytes(16, 16, 1) < taken <= expected


def test_what_bytes_do_not_buy_is_listed_with_the_reason():
    described, alphas = made_up_model(), {f"layers.{i}": 3.0 + i for i in range(4)}
    poor = per_layer(described, {f"layers.{i}": HeadOrder(spec=HeadSpec(Taylor(1), Near(1))) for i in range(4)}, {})
    found = {each.name: each for each in at_equal_bytes(described, poor, alphas, 4096)}
    assert list(found) == ["window", "one order", "alphas"]
    assert "per KV head hold no such state, or not 4 sinks and one key" in found["one order"].absent
    rich = OrderConfig.uniform(described, 8)
    found = {each.name: each for each in at_equal_bytes(described, rich, alphas, 64)}
    assert found["window"].config is None
    assert not found["window"].absent
    assert found["alphas"].absent == "the config's bytes hold the whole KV cache"
    without = at_equal_bytes(described, OrderConfig.uniform(described, 2, window=90), {}, 4096)[2]
    assert without.absent == "no alpha could be fitted"


def test_exact_everywhere_is_told_from_a_window():
    described = made_up_model(sliding=(1,))
    assert exact_everywhere(OrderConfig.uniform(described, "exact"))
    assert not exact_everywhere(sliding_window(described, 1000, 4096).config)


def test_the_paper_is_order_4_around_zero_with_and_without_the_guard():
    guarded, raw = paper(made_up_model())
    assert guarded.config == raw.config == OrderConfig.uniform(made_up_model(), 4)
    assert (guarded.guard, raw.guard) == (True, False)
    assert raw.optional


def test_alphas_are_those_of_q_and_k_of_the_layers_that_see_everything():
    tiny_model = tiny.build(
        tiny.hf.Gemma3ForCausalLM,
        tiny.hf.Gemma3TextConfig(
            head_dim=16, query_pre_attn_scalar=16, sliding_window=8,
            layer_types=["sliding_attention", "full_attention"], **tiny.decoder(),
        ),
    )  # fmt: skip
    described = describe(tiny_model, "tiny")
    seen = []
    alphas = fitted_alphas(tiny_model, described, lambda *event: seen.append(event))
    name = described.modules[1].name
    assert list(alphas) == [name]
    module = tiny_model.get_submodule(name)
    rows = fit_spectra([Matrix(name, "q", module.q_proj.weight), Matrix(name, "k", module.k_proj.weight)])
    assert alphas[name] == pytest.approx(sum(row.alpha for row in rows) / 2)
    assert seen == [("spectra of the layers", 1, 1)]
    assert rivals.alpha_policy(described, alphas, 4000, 4096) is not None
