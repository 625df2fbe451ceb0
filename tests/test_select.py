"""The choice: smallest affordable order that meets the tolerance, with the rules for groups, even orders and ties."""

from __future__ import annotations

from dataclasses import replace

import pytest
import synthetic

from taylorder.adapt.decisions import FlatOrder
from taylorder.errors import UsageError
from taylorder.selection.by_tolerance import select
from taylorder.selection.settings import TIERS, parse_tolerance

CONTEXT = 65_536  # at d = 64 orders up to 4 pay off


def analysis(errors, *, guarded=(), heads=2, kv_heads=1, alphas=(), **options):
    """One module per entry of ``errors``: ``errors[layer][head][expansion][order] = relative_l2``; 1.0 elsewhere."""
    made = synthetic.analysis(
        len(errors), heads, kv_heads, max_context=CONTEXT, **options,
        error=lambda layer, head, order, expansion: errors[layer].get(head, {}).get(expansion, {}).get(order, 1.0),
        guarded=lambda layer, head, order, expansion: 0.1 * ((layer, head, expansion, order) in guarded),
    )  # fmt: skip
    fitted = {
        (module.name, projection): alpha
        for module, pair in zip(made.model.modules, alphas, strict=False)
        for projection, alpha in zip("qk", pair, strict=True)
    }
    spectral = [row for row in made.spectral if (row.module, row.projection) in fitted]
    return replace(
        made,
        candidates=tuple(replace(row, score_std=1.0) for row in made.candidates),
        spectral=tuple(replace(row, alpha=fitted[row.module, row.projection]) for row in spectral),
    )


def chosen(result, layer=0):
    heads = [FlatOrder.of(head) for head in result.config.layers[layer].heads]
    return [(head.order, head.expansion, head.reason) for head in heads]


def choose(measured, tolerance=0.07, context=CONTEXT, **options):
    return select(measured, tolerance=tolerance, context=context, **options)


def test_the_smallest_order_that_meets_and_of_equals_the_lower_error():
    measured = analysis(
        [{0: {"mean": {3: 0.06, 4: 0.01}, "centre": {3: 0.05, 1: 0.08}}, 1: {"mean": {1: 0.07}, "centre": {1: 0.071}}}]
    )
    result = choose(measured)
    assert chosen(result) == [(3, "centre", None), (1, "mean", None)]
    assert [head.error for head in result.config.layers[0].heads] == [0.05, 0.07]


def test_a_head_without_a_good_order_keeps_its_whole_group_exact():
    result = choose(analysis([{0: {"mean": {1: 0.01}}}]))
    assert chosen(result) == [("exact", "zero", "group"), ("exact", "zero", "tolerance")]
    assert [head.error for head in result.config.layers[0].heads] == [0.0, 0.0]
    separate = choose(analysis([{0: {"mean": {1: 0.01}}}], kv_heads=2))
    assert chosen(separate) == [(1, "mean", None), ("exact", "zero", "tolerance")]


def test_zero_is_not_mixed_with_the_centred_expansions_in_a_group():
    measured = analysis([{0: {"zero": {1: 0.01}, "mean": {3: 0.01}}, 1: {"mean": {2: 0.01}}}])
    assert chosen(choose(measured)) == [(3, "mean", None), (2, "mean", None)]
    apart = analysis([{0: {"zero": {1: 0.01}}, 1: {"mean": {2: 0.01}}}])
    assert chosen(choose(apart)) == [("exact", "zero", "group"), ("exact", "zero", "group")]


def test_an_even_order_with_a_guarded_row_is_not_chosen():
    errors = [{0: {"mean": {2: 0.01, 3: 0.02}}, 1: {"mean": {1: 0.01}}}]
    assert chosen(choose(analysis(errors)))[0] == (2, "mean", None)
    assert chosen(choose(analysis(errors, guarded={(0, 0, "mean", 2)})))[0] == (3, "mean", None)


def test_an_order_that_costs_more_than_the_cache_is_not_chosen():
    errors = [{0: {"mean": {4: 0.01}}, 1: {"mean": {1: 0.01}}}]
    assert chosen(choose(analysis(errors)))[0] == (4, "mean", None)
    result = choose(analysis(errors), context=8192)
    assert result.largest_order == 3
    assert chosen(result) == [("exact", "zero", "cost"), ("exact", "zero", "group")]
    assert result.heads[0].needed_order == 4


def test_costs_are_those_of_the_shared_state():
    result = choose(analysis([{0: {"mean": {3: 0.01}}, 1: {"mean": {1: 0.01}}}]))
    first, second = result.config.layers[0].heads
    assert first.nominal_bytes == second.nominal_bytes == 2145 * 65 * 4
    assert first.break_even == second.break_even == 2179
    exact = choose(analysis([{}])).config.layers[0].heads[0]
    assert exact.nominal_bytes == CONTEXT * 128 * 2


def test_verdicts_say_how_far_a_head_is():
    result = choose(analysis([{0: {"mean": {3: 0.3, 6: 0.05}}}], kv_heads=2))
    near, far = result.heads
    assert (near.best.order, near.best.relative_l2, near.needed_order) == (3, 0.3, 6)
    assert (far.best.relative_l2, far.needed_order) == (1.0, None)
    assert near.predicted_order == far.predicted_order == 7


def test_sliding_window_layers_stay_exact_with_the_bytes_of_their_window():
    result = choose(analysis([{0: {"mean": {1: 0.01}}, 1: {"mean": {1: 0.01}}}], sliding=lambda layer: True))
    assert chosen(result) == [("exact", "zero", "sliding")] * 2
    assert result.config.layers[0].heads[0].nominal_bytes == 512 * 256


def test_encoders_are_chosen_by_flops():
    measured = analysis([{h: {"mean": {3: 0.01}} for h in (0, 1)}], causal=False)
    assert choose(measured, context=65_536).config.layers[0].heads[0].spec.far.order == 3
    short = choose(measured, context=512)
    assert chosen(short)[0] == ("exact", "zero", "cost")


def test_policy_alpha_spreads_orders_over_the_ranks_of_distance_to_two():
    alphas = [(2.0, 2.2), (6.0, 6.0), (3.0, 3.0), (1.5, 1.3)]
    result = choose(analysis([{}] * 4, alphas=alphas), policy="alpha")
    assert [chosen(result, layer)[0] for layer in range(4)] == [
        (1, "zero", None), (7, "zero", None), (5, "zero", None), (3, "zero", None),
    ]  # fmt: skip
    assert result.config.criterion["policy"] == "alpha"


def test_policy_alpha_uses_what_could_be_fitted_and_keeps_a_layer_without_alpha_exact():
    result = choose(analysis([{}] * 3, alphas=[(None, 2.0), (None, None), (9.0, None)]), policy="alpha")
    assert chosen(result, 0)[0] == (1, "zero", None)
    assert chosen(result, 1) == [("exact", "zero", "alpha")] * 2
    assert chosen(result, 2)[0] == (5, "zero", None)


def test_tolerances_are_numbers_or_tiers():
    assert parse_tolerance("int4") == TIERS["int4"] == 7e-2
    assert parse_tolerance("bf16") == 2e-3
    assert parse_tolerance("fp16") == 3e-4
    assert parse_tolerance("0.25") == 0.25
    for wrong in ("int3", "0", "-1", "1.5", "nan", ""):
        with pytest.raises(UsageError, match="expected a number between 0 and 1 or one of fp16, bf16, int4"):
            parse_tolerance(wrong)


@pytest.mark.parametrize("policy", ["error", "alpha"])
@pytest.mark.parametrize(("share", "reasons"), [(0.5, {None}), (0.49, {"near"})])
def test_no_order_is_chosen_where_few_rows_have_far_keys(share, reasons, policy):
    measured = analysis([{0: {"mean": {1: 0.01}}, 1: {"mean": {1: 0.01}}}], alphas=[(2.0, 2.0)])
    measured = replace(measured, calibration=replace(measured.calibration, far_share=share))
    assert {reason for _, _, reason in chosen(choose(measured, policy=policy))} == reasons


def test_the_context_is_the_models_own_and_nonsense_is_refused():
    measured = synthetic.analysis(layers=2)
    assert select(measured).context == measured.model.max_context
    assert select(measured).tolerance == 0.07
    for options in (
        {"policy": "luck"},
        {"tolerance": 0},
        {"tolerance": float("nan")},
        {"tolerance": float("inf")},
        {"context": 0},
    ):
        with pytest.raises(UsageError, match=f"{next(iter(options))} .*expected"):
            select(measured, **options)
