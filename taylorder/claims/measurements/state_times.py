"""Time per token after short and long contexts, exact and from states, in turns.

A machine that others use is slower at one time than at another by more than contexts differ. So all contexts are read
first, and then every one is fed a token in turn: what is compared was measured within a second.
"""

from __future__ import annotations

import statistics
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from pydantic import TypeAdapter

from taylorder.adapt.config import OrderConfig
from taylorder.adapt.context import adapted
from taylorder.evaluation.timing import one_thread, random_tokens, seconds, seconds_to_read
from taylorder.models.description import ModelDescription
from taylorder.storage.progress import Progress
from taylorder.storage.records import Records

ORDERS = (2, 3)
WINDOW, SINKS = 64, 4
LENGTHS = (256, 1024, 4096)
ROUNDS, TOKENS = 8, 8
"""A figure is the median over so many tokens, and there are so many figures."""

EXACT = "exact"

_SAME = 1.05
"""Bytes held at two contexts are those of a state, and not of keys, if they differ by no more than this factor."""

_WARM_UP = 2
"""Tokens fed to every context before any is timed."""


@dataclass(frozen=True)
class StateTimes:
    """Milliseconds per token ``[round][length]`` and bytes held ``[length]``, by what holds the context.

    That is :data:`EXACT` or, for example, ``order 3``. ``replaced`` ``[length]`` are the bytes of the layers that a
    state's config replaces; those with a sliding window fill up by themselves.
    """

    lengths: tuple[int, ...]
    milliseconds: dict[str, tuple[tuple[float, ...], ...]]
    held: dict[str, tuple[int, ...]]
    replaced: dict[str, tuple[int, ...]]

    @property
    def states(self) -> list[str]:
        """All that is not exact."""
        return list(self.replaced)

    def constant(self, state: str) -> list[int]:
        """Places of the lengths after which the replaced layers hold as much as after the longest.

        At shorter ones the kernels keep keys and values, because a state would be larger.
        """
        held = self.replaced[state]
        return [place for place, own in enumerate(held) if held[-1] / _SAME <= own <= held[-1] * _SAME]


def measure_times(
    model: Any,
    description: ModelDescription,
    *,
    records: Records,
    progress: Progress,
) -> StateTimes | None:
    """Feed tokens one by one after contexts of random tokens, on one thread; a finished run is found in ``records``.

    None where the model sees fewer tokens than are fed.
    """
    if description.max_context <= _new_tokens():
        return None
    kept = records.get("times")
    if kept is None:
        kept = asdict(_measure(model, description, progress))
        records.put("times", kept)
    return TypeAdapter(StateTimes).validate_python(kept)


def _new_tokens() -> int:
    return _WARM_UP + ROUNDS * TOKENS


def _measure(model: Any, description: ModelDescription, progress: Progress) -> StateTimes:
    from transformers import DynamicCache

    from taylorder.adapt.cache import TaylorCache, cache_bytes, replaced_bytes

    configs: dict[str, OrderConfig | None] = {EXACT: None}
    configs |= {f"order {order}": OrderConfig.uniform(description, order, "mean", WINDOW, SINKS) for order in ORDERS}
    new_tokens = _new_tokens()
    longest = description.max_context - new_tokens
    lengths = tuple(length for length in LENGTHS if length <= longest) or (longest,)
    turns = list(product(configs, lengths))
    ids = random_tokens(model, lengths[-1] + new_tokens, 0)

    def running(name: str) -> Any:
        config = configs[name]
        return nullcontext() if config is None else adapted(model, config)

    caches, times = {}, {turn: list[float]() for turn in turns}
    with one_thread():
        for done, (name, length) in enumerate(turns):
            progress("time per token", done, len(turns) + 1)
            config = configs[name]
            with running(name):
                cache = DynamicCache(config=model.config) if config is None else TaylorCache.unchecked(model, config)
                seconds_to_read(model, ids[:, :length], cache)
            caches[name, length] = cache
        held, replaced = (
            {name: tuple(count(caches[name, length]) for length in lengths) for name in configs}
            for count in (cache_bytes, replaced_bytes)
        )
        del replaced[EXACT]
        for step in range(new_tokens):
            for name, length in turns:
                with running(name):
                    token = ids[:, length + step : length + step + 1]
                    times[name, length].append(1e3 * seconds(model, token, caches[name, length]))
    progress("time per token", len(turns) + 1, len(turns) + 1)

    def median(name: str, length: int, place: int) -> float:
        begin = _WARM_UP + place * TOKENS
        return statistics.median(times[name, length][begin : begin + TOKENS])

    milliseconds = {
        name: tuple(tuple(median(name, length, place) for length in lengths) for place in range(ROUNDS))
        for name in configs
    }
    return StateTimes(lengths, milliseconds, held, replaced)
