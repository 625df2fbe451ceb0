"""Constant cost per token: the formula, where it begins to pay, and the clock."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from taylorder.adapt import cost
from taylorder.claims.claim import Cell, Claim, Effect, Plot, Series, Table
from taylorder.claims.evidence import Evidence, below, overall
from taylorder.claims.measurements import state_times
from taylorder.claims.measurements.state_times import StateTimes
from taylorder.evaluation.intervals import Interval, geometric_mean_interval

CONSTANT = 1.25
"""Time per token may grow by this factor between the shortest and the longest context measured."""

ORDERS = range(1, 9)
_RULE = (
    f"Time per token of states beside a window of {state_times.WINDOW}, after the longest context over that after the "
    "shortest at which the replaced layers hold a state (before that keys take fewer bytes, and are kept). Supported "
    f"if it is below {CONSTANT:g} by the whole 95 % interval over rounds for every order and model, contradicted if "
    "above for all, undecided otherwise. That a constant is small is another claim: see the crossovers."
)


def constant_cost_claim(models: Sequence[Evidence]) -> Claim:
    """Set the cost per token against the context."""
    timed = {model.replaced: model.measured.times for model in models if model.measured.times is not None}
    growth = {(name, state): _growth(times, state) for name, times in timed.items() for state in times.states}
    effects = []
    for (name, state), own in growth.items():
        if own is None:
            continue
        lengths = [timed[name].lengths[place] for place in timed[name].constant(state)]
        between = f"from {lengths[0]:,} to {lengths[-1]:,} tokens"
        exact = _ratio(timed[name], state_times.EXACT, timed[name].constant(state))
        effects += [
            Effect.of(f"{name}: growth of the time per token, {state}, {between}", own, f"below {CONSTANT:g}"),
            Effect.of(f"{name}: growth of the time per token, exact, {between}", exact, "for comparison"),
        ]
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
            *(_times_table(name, times) for name, times in timed.items()),
        ),
        plots=tuple(_plot(name, times) for name, times in timed.items()),
    )


def _growth(times: StateTimes, state: str) -> Interval | None:
    """Of a state's time per token; None where no state is held at two lengths."""
    places = times.constant(state)
    return _ratio(times, state, places) if len(places) > 1 else None


def _ratio(times: StateTimes, name: str, places: Sequence[int]) -> Interval:
    """Geometric mean over rounds of the last time over the first."""
    return geometric_mean_interval([own[places[-1]] / own[places[0]] for own in times.milliseconds[name]])


def _told(model: Evidence) -> str:
    module = model.model.modules[0]
    d, d_v = module.head_dim, module.value_dim
    if not model.model.causal:
        needed = cost.break_even_flops(d, d_v, 4, module.group)
        return f"{model.name} is bidirectional: order 4 takes fewer multiplications from {needed:,} tokens on."
    third, fourth = (cost.break_even_tokens(d, d_v, order) for order in (3, 4))
    told = (
        f"{model.name}: a state is smaller than the cache it replaces from {third:,} tokens on at order 3, from "
        f"{fourth:,} at order 4; the model sees {model.model.max_context:,}."
    )
    return told + (_measured(model.measured.times) if model.measured.times else "")


def _measured(times: StateTimes) -> str:
    """Where states began to pay in what was measured."""
    exact = [statistics.median(own) for own in zip(*times.milliseconds[state_times.EXACT], strict=True)]
    told = []
    for state in times.states:
        own = [statistics.median(each) for each in zip(*times.milliseconds[state], strict=True)]
        smaller = [held < cache for held, cache in zip(times.held[state], times.held[state_times.EXACT], strict=True)]
        faster = [mine < theirs for mine, theirs in zip(own, exact, strict=True)]
        told.append(f"{state} {_from(times.lengths, smaller)} smaller and {_from(times.lengths, faster)} faster")
    return f" Measured, near field and all: {'; '.join(told)}."


def _from(lengths: Sequence[int], better: Sequence[bool]) -> str:
    """Since when something is better and stays so."""
    worse = [place for place, each in enumerate(better) if not each]
    since = worse[-1] + 1 if worse else 0
    return f"from {lengths[since]:,} tokens on" if since < len(lengths) else f"up to {lengths[-1]:,} tokens not"


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
        f"{model.name}: head dim {d}, {module.group} query head{'s' * (module.group > 1)} to a KV head",
        ("order", "features", "state of a KV head, KiB", "smaller than the cache from", "fewer multiplications from"),
        tuple(rows),
        note="Tokens of context. Nominal bytes: the cache in bfloat16, states in float32.",
    )


def _times_table(name: str, times: StateTimes) -> Table:
    rows = [
        (
            length,
            *(statistics.median(own[place] for own in times.milliseconds[each]) for each in times.held),
            *(held[place] / 1024**2 for held in times.held.values()),
        )
        for place, length in enumerate(times.lengths)
    ]
    return Table(
        f"{name}: milliseconds per token and bytes held, one thread",
        ("context", *(f"{each}, ms" for each in times.held), *(f"{each}, MiB" for each in times.held)),
        tuple(rows),
        note=(
            f"Median of {len(times.milliseconds[state_times.EXACT])} rounds, each the median of {state_times.TOKENS} "
            f"tokens, all contexts in turn; states beside a window of {state_times.WINDOW} and {state_times.SINKS} "
            "sinks. All of the model's work, not attention alone."
        ),
    )


def _plot(name: str, times: StateTimes) -> Plot:
    x = tuple(map(float, times.lengths))
    series = tuple(
        Series(each, x, tuple(statistics.median(own) for own in zip(*rows, strict=True)))
        for each, rows in times.milliseconds.items()
    )
    return Plot(f"{name}: time per token", "tokens of context", "ms", series, log_x=True)
