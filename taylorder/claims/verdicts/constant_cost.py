"""Constant cost per token: the formula, where it begins to pay, and the clock."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from taylorder.adapt import cost
from taylorder.claims.claim import Claim, Effect, Figure, FigureTable, Plot, Series
from taylorder.claims.evidence import Evidence, ModelEvidence, below, overall
from taylorder.claims.measurements.state_times import EXACT, StateTimes, TimeMeasurement
from taylorder.evaluation.intervals import Interval, geometric_mean_interval

CONSTANT = 1.25
"""Time per token may grow by this factor between the shortest and the longest context measured."""

ORDERS = range(1, 9)
_RULE = (
    f"Time per token of states beside a window of {TimeMeasurement.window}, after the longest context over that after "
    "the shortest at which the replaced layers hold a state (before that keys take fewer bytes, and are kept). "
    f"Supported if it is below {CONSTANT:g} by the whole 95 % interval over rounds for every order and model, "
    "contradicted if above for all, undecided otherwise. That a constant is small is another claim: see the crossovers."
)


def constant_cost_claim(evidence: Evidence) -> Claim:
    """Set the cost per token against the context."""
    models = evidence.models
    times_of = {model.name_and_layers: model.result(TimeMeasurement) for model in models}
    timed = {name: times for name, times in times_of.items() if times is not None}
    growth = {(name, state): _growth(times, state) for name, times in timed.items() for state in times.states}
    effects = []
    for (name, state), grown in growth.items():
        if grown is None:
            continue
        lengths = [timed[name].lengths[index] for index in timed[name].constant(state)]
        between = f"from {lengths[0]:,} to {lengths[-1]:,} tokens"
        exact = _ratio(timed[name], EXACT, timed[name].constant(state))
        effects += [
            Effect.of(f"{name}: growth of the time per token, {state}, {between}", grown, f"below {CONSTANT:g}"),
            Effect.of(f"{name}: growth of the time per token, exact, {between}", exact, "for comparison"),
        ]
    return Claim(
        key="cost",
        statement="The cost per token is constant, whatever the context.",
        source="arXiv 2602.00294, abstract",
        verdict=overall([below(interval, CONSTANT) for interval in growth.values()]),
        reason=" ".join(_sentence(model) for model in models),
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
    constant = times.constant(state)
    return _ratio(times, state, constant) if len(constant) > 1 else None


def _ratio(times: StateTimes, name: str, constant: Sequence[int]) -> Interval:
    """Geometric mean over rounds of the time after the last of some lengths over that after the first."""
    first, last = constant[0], constant[-1]
    return geometric_mean_interval([by_length[last] / by_length[first] for by_length in times.milliseconds[name]])


def _sentence(model: ModelEvidence) -> str:
    module = model.model.typical
    d, d_v = module.head_dim, module.value_dim
    if not model.model.causal:
        needed = cost.break_even_flops(d, d_v, 4, module.group)
        return f"{model.name} is bidirectional: order 4 takes fewer multiplications from {needed:,} tokens on."
    third, fourth = (cost.break_even_tokens(d, d_v, order) for order in (3, 4))
    formula = (
        f"{model.name}: a state is smaller than the cache it replaces from {third:,} tokens on at order 3, from "
        f"{fourth:,} at order 4; the model sees {model.model.max_context:,}."
    )
    times = model.result(TimeMeasurement)
    return formula + (_measured(times) if times else "")


def _measured(times: StateTimes) -> str:
    """Where states began to pay in what was measured."""
    exact = _medians(times, EXACT)
    crossovers = []
    for state in times.states:
        smaller = [held < cache for held, cache in zip(times.held[state], times.held[EXACT], strict=True)]
        faster = [median < other for median, other in zip(_medians(times, state), exact, strict=True)]
        crossovers.append(f"{state} {_from(times.lengths, smaller)} smaller and {_from(times.lengths, faster)} faster")
    return f" Measured, near field and all: {'; '.join(crossovers)}."


def _medians(times: StateTimes, name: str) -> list[float]:
    """Milliseconds per token ``[length]``, median over rounds."""
    return [statistics.median(rounds) for rounds in zip(*times.milliseconds[name], strict=True)]


def _from(lengths: Sequence[int], better: Sequence[bool]) -> str:
    """Since when something is better and stays so."""
    worse = [index for index, is_better in enumerate(better) if not is_better]
    since = worse[-1] + 1 if worse else 0
    return f"from {lengths[since]:,} tokens on" if since < len(lengths) else f"up to {lengths[-1]:,} tokens not"


def _crossovers(model: ModelEvidence) -> FigureTable:
    module = model.model.typical
    d, d_v = module.head_dim, module.value_dim
    rows: list[tuple[Figure, ...]] = [
        (
            order,
            cost.features(d, order),
            cost.state_bytes(d, d_v, order) / 1024,
            cost.break_even_tokens(d, d_v, order) if model.model.causal else None,
            cost.break_even_flops(d, d_v, order, module.group),
        )
        for order in ORDERS
    ]
    return FigureTable(
        f"{model.name}: head dim {d}, {module.group} query head{'s' * (module.group > 1)} to a KV head",
        ("order", "features", "state of a KV head, KiB", "smaller than the cache from", "fewer multiplications from"),
        tuple(rows),
        note="Tokens of context. Nominal bytes: the cache in bfloat16, states in float32.",
    )


def _times_table(name: str, times: StateTimes) -> FigureTable:
    medians = [_medians(times, name) for name in times.held]
    rows = [
        (length, *(by_length[index] for by_length in medians), *(held[index] / 1024**2 for held in times.held.values()))
        for index, length in enumerate(times.lengths)
    ]
    return FigureTable(
        f"{name}: milliseconds per token and bytes held, one thread",
        ("context", *(f"{held}, ms" for held in times.held), *(f"{held}, MiB" for held in times.held)),
        tuple(rows),
        note=(
            f"Median of {len(times.milliseconds[EXACT])} rounds, each the median of {TimeMeasurement.tokens} tokens, "
            f"all contexts in turn; states beside a window of {TimeMeasurement.window} and {TimeMeasurement.sinks} "
            "sinks. All of the model's work, not attention alone."
        ),
    )


def _plot(name: str, times: StateTimes) -> Plot:
    x = tuple(map(float, times.lengths))
    series = tuple(Series(held, x, tuple(_medians(times, held))) for held in times.milliseconds)
    return Plot(f"{name}: time per token", "tokens of context", "ms", series, log_x=True)
