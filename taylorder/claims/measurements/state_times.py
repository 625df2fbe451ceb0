"""Time per token after short and long contexts, exact and from states, in turns.

A machine that others use is slower at one time than at another by more than contexts differ. So all contexts are read
first, and then every one is fed a token in turn: what is compared was measured within a second.
"""

from __future__ import annotations

import statistics
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product
from typing import Any

from taylorder.adapt.config import OrderConfig
from taylorder.adapt.handle import attach
from taylorder.adapt.prepared import PreparedConfig, prepare
from taylorder.claims.measurement import Measurement, Subject
from taylorder.evaluation.timing import one_thread, random_tokens, seconds, seconds_to_read
from taylorder.kernels.spec import SINKS
from taylorder.storage.progress import Progress
from taylorder.storage.records import Records

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
        """Indices of the lengths after which the replaced layers hold as much as after the longest.

        At shorter ones the kernels keep keys and values, because a state would be larger.
        """
        held = self.replaced[state]
        least, most = held[-1] / _SAME, held[-1] * _SAME
        return [index for index, size in enumerate(held) if least <= size <= most]


@dataclass(frozen=True)
class TimeMeasurement(Measurement[StateTimes]):
    """Times after contexts of random tokens, on one thread.

    There are ``rounds`` figures for every context, each the median over ``tokens`` tokens; states of every order stand
    beside a window and sinks.
    """

    name = "times"
    result = StateTimes
    on_device = True
    lengths: tuple[int, ...] = (256, 1024, 4096)
    rounds: int = 8
    tokens: int = 8
    orders: tuple[int, ...] = (2, 3)
    window: int = 64
    sinks: int = SINKS

    def applies(self, subject: Subject) -> bool:
        """Only what predicts tokens is fed one by one, and it has to see as many as are fed."""
        return subject.predicts_tokens and subject.description.max_context > self._new_tokens

    @property
    def _new_tokens(self) -> int:
        return _WARM_UP + self.rounds * self.tokens

    def measure(self, subject: Subject, records: Records, progress: Progress) -> StateTimes:
        """Read all contexts, and feed a token to each in turn."""
        from transformers import DynamicCache

        from taylorder.adapt.cache import cache_bytes, replaced_bytes

        model, configs = subject.model, self._configs(subject)
        longest = subject.description.max_context - self._new_tokens
        lengths = tuple(length for length in self.lengths if length <= longest) or (longest,)
        turns = list(product(configs, lengths))
        ids = random_tokens(model, lengths[-1] + self._new_tokens, 0)

        def running(name: str) -> Any:
            prepared = configs[name]
            return nullcontext() if prepared is None else attach(model, prepared)

        caches, times = {}, {turn: list[float]() for turn in turns}
        with one_thread():
            for done, (name, length) in enumerate(turns):
                progress("time per token", done, len(turns) + 1)
                with running(name) as handle:
                    cache = DynamicCache(config=model.config) if handle is None else handle.new_cache()
                    seconds_to_read(model, ids[:, :length], cache)
                caches[name, length] = cache
            held, replaced = (
                {name: tuple(count(caches[name, length]) for length in lengths) for name in configs}
                for count in (cache_bytes, replaced_bytes)
            )
            del replaced[EXACT]
            for step in range(self._new_tokens):
                for name, length in turns:
                    with running(name):
                        token = ids[:, length + step : length + step + 1]
                        times[name, length].append(1e3 * seconds(model, token, caches[name, length]))
        progress("time per token", len(turns) + 1, len(turns) + 1)

        def median(name: str, length: int, round_: int) -> float:
            begin = _WARM_UP + round_ * self.tokens
            return statistics.median(times[name, length][begin : begin + self.tokens])

        milliseconds = {
            name: tuple(tuple(median(name, length, round_) for length in lengths) for round_ in range(self.rounds))
            for name in configs
        }
        return StateTimes(lengths, milliseconds, held, replaced)

    def _configs(self, subject: Subject) -> dict[str, PreparedConfig | None]:
        configs: dict[str, PreparedConfig | None] = {EXACT: None}
        for order in self.orders:
            config = OrderConfig.uniform(subject.description, order, "mean", self.window, self.sinks)
            configs[f"order {order}"] = prepare(subject.model, config, subject.description)
        return configs
