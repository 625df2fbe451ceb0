"""Time per token after short and long contexts, exact and from states, measured several times over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter

from taylorder.adapt.bench import Reading, read_states
from taylorder.adapt.config import OrderConfig
from taylorder.models import ModelDescription
from taylorder.records import Records

ORDERS = (2, 3)
WINDOW, SINKS = 64, 4
REPEATS, NEW_TOKENS = 4, 16
LENGTHS = (256, 1024, 4096)
EXACT = "exact"

_SAME = 1.05
"""Bytes held at two contexts are those of a state, and not of keys, if they differ by no more than this factor."""


@dataclass(frozen=True)
class StateTimes:
    """Milliseconds per token ``[repeat][length]`` and bytes held ``[length]``, by what holds the context.

    That is :data:`EXACT` or, for example, ``order 3``.
    """

    lengths: tuple[int, ...]
    milliseconds: dict[str, tuple[tuple[float, ...], ...]]
    held: dict[str, tuple[int, ...]]

    @property
    def states(self) -> list[str]:
        """All that is not exact."""
        return [name for name in self.held if name != EXACT]

    def constant(self, name: str) -> list[int]:
        """Places of the lengths after which as much is held as after the longest.

        At shorter ones the kernels keep keys and values, because a state would be larger.
        """
        held = self.held[name]
        return [place for place, own in enumerate(held) if held[-1] / _SAME <= own <= held[-1] * _SAME]


def measure_times(
    model: Any,
    description: ModelDescription,
    *,
    records: Records,
    progress: Callable[[str, int, int], None],
) -> StateTimes:
    """Feed tokens one by one after contexts of random tokens; finished repeats are found in ``records``."""
    states: dict[str, OrderConfig | None] = {EXACT: None}
    states |= {f"order {order}": OrderConfig.uniform(description, order, "mean", WINDOW, SINKS) for order in ORDERS}
    longest = description.max_context - NEW_TOKENS
    lengths = tuple(length for length in LENGTHS if length <= longest) or (longest,)
    adapter = TypeAdapter(list[list[Reading]])  # [length][state]
    runs = []
    for repeat in range(REPEATS):
        progress("time per token", repeat, REPEATS)
        kept = records.get(f"times-{repeat}")
        if kept is None:
            found = [read_states(model, list(states.values()), length, NEW_TOKENS, seed=repeat) for length in lengths]
            kept = [[asdict(reading) for reading in row] for row in found]
            records.put(f"times-{repeat}", kept)
        runs.append(adapter.validate_python(kept))
    progress("time per token", REPEATS, REPEATS)
    return StateTimes(
        lengths,
        {
            name: tuple(tuple(row[place].milliseconds_per_token for row in run) for run in runs)
            for place, name in enumerate(states)
        },
        {name: tuple(row[place].cache_bytes for row in runs[0]) for place, name in enumerate(states)},
    )
