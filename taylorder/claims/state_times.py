"""Time per token after short and long contexts, exact and from a state, measured several times over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from taylorder.adapt.bench import bench
from taylorder.adapt.config import OrderConfig
from taylorder.models import ModelDescription
from taylorder.records import Records

ORDER, WINDOW, SINKS = 3, 64, 4
REPEATS, NEW_TOKENS = 3, 16
LENGTHS = (256, 1024, 4096)


@dataclass(frozen=True)
class StateTimes:
    """Milliseconds per token ``[repeat][length]`` and bytes of the caches held ``[length]``, by context length."""

    lengths: tuple[int, ...]
    exact: tuple[tuple[float, ...], ...]
    adapted: tuple[tuple[float, ...], ...]
    exact_bytes: tuple[int, ...]
    adapted_bytes: tuple[int, ...]


def measure_times(
    model: Any,
    description: ModelDescription,
    *,
    records: Records,
    progress: Callable[[str, int, int], None],
) -> StateTimes:
    """Feed tokens one by one after contexts of random tokens; finished repeats are found in ``records``."""
    config = OrderConfig.uniform(description, ORDER, "mean", WINDOW, SINKS)
    longest = description.max_context - NEW_TOKENS
    lengths = tuple(length for length in LENGTHS if length <= longest) or (longest,)
    runs = []
    for repeat in range(REPEATS):
        progress("time per token", repeat, REPEATS)
        kept = records.get(f"times-{repeat}")
        if kept is None:
            found = bench(model, description, config, lengths=lengths, new_tokens=NEW_TOKENS, seed=repeat)
            kept = [
                [
                    row.exact.milliseconds_per_token,
                    row.adapted.milliseconds_per_token,
                    row.exact.cache_bytes,
                    row.adapted.cache_bytes,
                ]
                for row in found.rows
            ]
            records.put(f"times-{repeat}", kept)
        runs.append(kept)
    progress("time per token", REPEATS, REPEATS)
    return StateTimes(
        lengths,
        tuple(tuple(row[0] for row in run) for run in runs),
        tuple(tuple(row[1] for row in run) for run in runs),
        tuple(row[2] for row in runs[0]),
        tuple(row[3] for row in runs[0]),
    )
