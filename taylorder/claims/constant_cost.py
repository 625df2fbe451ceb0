"""Constant cost per token: the formula, where it begins to pay, and the clock."""

from __future__ import annotations

from collections.abc import Sequence

from taylorder.adapt import cost
from taylorder.analysis.bootstrap import Interval, geometric_mean_interval, mean_interval
from taylorder.claims import state_times
from taylorder.claims.claim import Cell, Claim, Effect, Plot, Series, Table
from taylorder.claims.evidence import Evidence, below, overall
from taylorder.claims.state_times import StateTimes

CONSTANT = 1.25
"""Time per token may grow by this factor between the shortest and the longest context measured."""

ORDERS = range(1, 9)
_RULE = (
    "Time per token after the longest context over that after the shortest, from states of order "
    f"{state_times.ORDER} with a window of {state_times.WINDOW}. Supported if it is below {CONSTANT:g} by the whole "
    "95 % interval over repeats in every model, contradicted if above in every model, undecided otherwise. That a "
    "constant is small is another claim: see the crossovers."
)


def constant_cost_claim(models: Sequence[Evidence]) -> Claim:
    """Set the cost per token against the context."""
    growth = {
        model.name: _growth(model.measured.times.lengths, model.measured.times.adapted)
        for model in models
        if model.measured.times
    }
    exact = {
        model.name: _growth(model.measured.times.lengths, model.measured.times.exact)
        for model in models
        if model.measured.times
    }
    effects = []
    for name, each in growth.items():
        if each is not None:
            effects.append(Effect.of(f"{name}: growth of the time per token, states", each, f"below {CONSTANT:g}"))
        if (own := exact[name]) is not None:
            effects.append(Effect.of(f"{name}: growth of the time per token, exact", own, "for comparison"))
    return Claim(
        key="cost",
        statement="The cost per token is constant, whatever the context.",
        source="arXiv 2602.00294, abstract",
        verdict=overall([below(each, CONSTANT) for each in growth.values()]),
        reason=" ".join(_told(model) for model in models),
        rule=_RULE,
        effects=tuple(effects),
        tables=(
            *(_crossovers(model) for model in models),
            *(_times_table(model.name, model.measured.times) for model in models if model.measured.times),
        ),
        plots=tuple(_plot(model.name, model.measured.times) for model in models if model.measured.times),
    )


def _growth(lengths: Sequence[int], times: Sequence[Sequence[float]]) -> Interval | None:
    """Geometric mean over repeats of the last time over the first."""
    if len(lengths) < 2:
        return None
    return geometric_mean_interval([own[-1] / own[0] for own in times])


def _told(model: Evidence) -> str:
    module = model.model.modules[0]
    d, d_v = module.head_dim, module.value_dim
    if not model.model.causal:
        needed = cost.break_even_flops(d, d_v, 4, module.group)
        return f"{model.name} is bidirectional: order 4 takes fewer multiplications from {needed:,} tokens on."
    third, fourth = (cost.break_even_tokens(d, d_v, order) for order in (3, 4))
    return (
        f"{model.name}: a state is smaller than the cache it replaces from {third:,} tokens on at order 3, from "
        f"{fourth:,} at order 4; the model sees {model.model.max_context:,}."
    )


def _crossovers(model: Evidence) -> Table:
    module = model.model.modules[0]
    d, d_v = module.head_dim, module.value_dim
    rows: list[tuple[Cell, ...]] = [
        (
            order,
            cost.features(d, order),
            cost.state_bytes(d, d_v, order) / 1024,
            cost.break_even_tokens(d, d_v, order) if model.model.causal else None,
            cost.break_even_flops(d, d_v, order, module.group),
        )
        for order in ORDERS
    ]
    return Table(
        f"{model.name}: head dim {d}, {module.group} query heads to a KV head",
        ("order", "features", "state of a KV head, KiB", "smaller than the cache from", "fewer multiplications from"),
        tuple(rows),
        note="Tokens of context. Nominal bytes: the cache in bfloat16, states in float32.",
    )


def _times_table(name: str, times: StateTimes) -> Table:
    rows = [
        (
            length,
            mean_interval([own[place] for own in times.exact]).estimate,
            mean_interval([own[place] for own in times.adapted]).estimate,
            times.exact_bytes[place] / 1024**2,
            times.adapted_bytes[place] / 1024**2,
        )
        for place, length in enumerate(times.lengths)
    ]
    return Table(
        f"{name}: milliseconds per token and bytes held, one thread",
        ("context", "exact, ms", f"order {state_times.ORDER}, ms", "exact, MiB", f"order {state_times.ORDER}, MiB"),
        tuple(rows),
        note=(
            f"Mean of {len(times.exact)} repeats, each the median of {state_times.NEW_TOKENS} tokens; states beside "
            f"a window of {state_times.WINDOW} and {state_times.SINKS} sinks. All of the model's work, not attention "
            "alone."
        ),
    )


def _plot(name: str, times: StateTimes) -> Plot:
    x = tuple(map(float, times.lengths))

    def mean(rows: Sequence[Sequence[float]]) -> tuple[float, ...]:
        return tuple(sum(own) / len(own) for own in zip(*rows, strict=True))

    series = (Series("exact", x, mean(times.exact)), Series(f"order {state_times.ORDER}", x, mean(times.adapted)))
    return Plot(f"{name}: time per token", "tokens of context", "ms", series, log_x=True)
