"""Two configs side by side in sentences: how many KV heads differ, bytes, losses, which is better if that is known."""

from __future__ import annotations

from typing import Any

from taylorder.analysis.losses import EXACT
from taylorder.evaluation.comparison import Comparison, Standing
from taylorder.evaluation.intervals import Interval
from taylorder.evaluation.two_configs import A, B
from taylorder.reports import run_pair_grid
from taylorder.reports.evaluation_words import ENOUGH, figure, with_bracket
from taylorder.reports.numbers import counted, percent, size
from taylorder.runs.recorded_config import RecordedConfig
from taylorder.runs.run_pair import RunPair
from taylorder.selection.config_pair import ConfigPair


def config(side: RecordedConfig) -> str:
    """Where a config lies, and what it was chosen by."""
    criterion: dict[str, Any] = side.config.criterion
    parts = [f"policy {criterion['policy']}"] if isinstance(criterion.get("policy"), str) else []
    if type(criterion.get("budget")) is int:
        parts.append(f"budget {size(criterion['budget'])} per KV head")
    elif isinstance(criterion.get("tolerance"), float):
        parts.append(f"tolerance {percent(criterion['tolerance'], 3)}")
    if side.config.context is not None:
        parts.append(f"for {counted(side.config.context, 'token')}")
    return f"{side.path}{': ' if parts else ''}{', '.join(parts)}"


def model(configs: ConfigPair) -> str:
    """The model that both are configs of."""
    about = configs.model
    kv_heads = counted(about.kv_heads, "KV head")
    return f"both of {about.name} ({about.architecture}, {counted(about.layers, 'layer')} of {kv_heads})"


def kv_heads(configs: ConfigPair) -> str:
    """How many KV heads differ, and which config holds more on how many."""
    found, total = run_pair_grid.counts(configs), len(configs.kv_heads)
    if not configs.differing:
        return f"none of {total} differs"
    more = {letter: found[letter] + found[letter.lower()] for letter in (A, B)}
    parts = [f"{letter} holds more tokens on {count}" for letter, count in more.items() if count]
    if otherwise := found[run_pair_grid.OTHERWISE]:
        parts.append(f"on {otherwise} both hold as many")
    verb = "differs" if len(configs.differing) == 1 else "differ"
    return f"{len(configs.differing)} of {total} {verb}: {', '.join(parts)}"


def cache(configs: ConfigPair) -> str:
    """Bytes of both per KV head that sees the whole context, as shares of exact, and what one takes more."""
    if not configs.exact_bytes:
        return "attention is bidirectional: there is no cache"
    a, b = (size(configs.per_kv_head(total)) for total in (configs.bytes_a, configs.bytes_b))
    shares = (percent(total / configs.exact_bytes) for total in (configs.bytes_a, configs.bytes_b))
    return (
        f"A {a}, B {b} per KV head at {counted(configs.context, 'token')} ({' and '.join(shares)} of exact): "
        f"{more_bytes(configs)}"
    )


def more_bytes(configs: ConfigPair) -> str:
    """Which of them takes more bytes in all."""
    difference = configs.bytes_b - configs.bytes_a
    if not difference:
        return "both take the same bytes"
    return f"{B if difference > 0 else A} takes {size(abs(difference))} more in all"


def loss(pair: RunPair) -> str:
    """What both lose, as measured together, or else as their runs recorded it."""
    if pair.measured is not None:
        standings = {name: pair.measured.standing(name) for name in (EXACT, A, B)}
        parts = [f"{name} {_loss(standing)}" for name, standing in standings.items() if standing is not None]
        difference = paired(pair.measured)
        beside = "" if difference is None else f"; B less A {difference_words(pair.measured, difference)}"
        return f"{', '.join(parts)}{_unit(pair.measured)}{beside} on {sequences(pair.measured)}"
    recorded = [
        f"{letter} {_loss(standing)}{'' if pair.same_sequences else f' on {sequences(side.comparison)}'}"
        for letter, side in ((A, pair.a), (B, pair.b))
        if (standing := side.standing) is not None and side.comparison is not None
    ]
    if not recorded:
        return "not measured, neither here nor by their runs"
    where = "" if not pair.same_sequences or pair.a.comparison is None else f" on {sequences(pair.a.comparison)}"
    missing = "" if len(recorded) == 2 else f"; nothing of {B if pair.a.standing is not None else A}"
    return f"as recorded by each run for itself, nats per token: {', '.join(recorded)}{where}{missing}"


def verdict(pair: RunPair) -> str:
    """Which is better, or why that cannot be told."""
    configs = pair.configs
    if not configs.differing:
        return "The two compute the same."
    taken = more_bytes(configs)
    if pair.measured is None:
        recorded = pair.recorded_difference
        if recorded is None:
            return (
                f"Which is better cannot be told without losses on the same sequences: --eval measures them; {taken}."
            )
        return (
            f"Which is better cannot be told: on the same sequences B less A is {figure(recorded, signed=True)}, but "
            f"runs keep no losses of single sequences, so there is no interval; --eval measures both. {taken}."
        )
    return _judged(pair.measured, configs)


def paired(measured: Comparison) -> Interval | None:
    """The figure of B less that of A, paired by sequence; None where one of them broke down."""
    a = measured.standing(A)
    return None if a is None else a.config_less


def sequences(comparison: Comparison) -> str:
    """``8 sequences of 1,024 tokens``."""
    return f"{counted(comparison.sequences, 'sequence')} of {counted(comparison.length, 'token')}"


def difference_words(measured: Comparison, difference: Interval) -> str:
    """A paired difference with its interval: in nats, or in percentage points of hidden states."""
    if _hidden(measured):
        low, high = (f"{100 * end:+.1f}" for end in (difference.low, difference.high))
        return f"{100 * difference.estimate:+.1f}" + (f" [{low}, {high}]" if difference.bounded else "")
    return with_bracket(difference, signed=True)


def _judged(measured: Comparison, configs: ConfigPair) -> str:
    """The verdict by the interval of the paired difference, beside the bytes."""
    for name in (A, B):
        standing = measured.standing(name)
        if standing is not None and standing.failure is not None:
            return f"{name} breaks down: {standing.failure}."
    difference, bytes_more = paired(measured), configs.bytes_b - configs.bytes_a
    if difference is None or not difference.bounded:
        return f"Which is better cannot be told: one sequence gives no interval; {more_bytes(configs)}."
    if difference.low <= 0 <= difference.high:
        return f"Their losses cannot be told apart here; {more_bytes(configs)}."
    better = B if difference.high < 0 else A
    cheaper = better == (A if bytes_more > 0 else B) or not bytes_more
    both = f"{better} is better: it loses less" if cheaper else f"{better} loses less, for more bytes"
    words = f"{both} (B less A {difference_words(measured, difference)}); {more_bytes(configs)}."
    if measured.sequences < ENOUGH:
        words += f" So few sequences all agree by chance one time in {2 ** (measured.sequences - 1)}."
    return words


def _hidden(comparison: Comparison) -> bool:
    """Whether figures are of hidden states, since the model predicts no next token."""
    return any(standing.hidden_relative_l2 is not None for standing in comparison.standings)


def _unit(comparison: Comparison) -> str:
    return " of the final hidden states moved" if _hidden(comparison) else " nats per token"


def _loss(standing: Standing) -> str:
    if standing.failure is not None:
        return "broke down"
    if standing.nll is not None:
        return figure(standing.nll.estimate)
    return "-" if standing.hidden_relative_l2 is None else percent(standing.hidden_relative_l2)
