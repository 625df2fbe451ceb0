"""``bench``: bytes of the cache and time per token, exact against adapted, by context length.

Contexts are random tokens: neither bytes nor times depend on what a text says. Prompts are fed in pieces, as
:mod:`taylorder.adapt.generate` does, so that this is what a stream of that length costs.
"""

from __future__ import annotations

import statistics
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from taylorder.adapt.config import OrderConfig
from taylorder.adapt.continuation import PROMPT_CHUNK
from taylorder.adapt.cost import config_bytes
from taylorder.adapt.handle import attach
from taylorder.adapt.prepared import prepare
from taylorder.errors import UnsupportedModelError, UsageError
from taylorder.models.description import ModelDescription
from taylorder.models.positions import token_embeddings
from taylorder.models.running import input_device, next_logits
from taylorder.storage.progress import Progress, silent

WARM_UP = 16
"""Tokens run before each measurement: what the first calls allocate is not the cache's."""

FARTHEST = 1 << 48
"""No break-even context is looked for beyond so many tokens."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One state of the model at one context length.

    ``prefill_seconds`` is the time to read the context, ``milliseconds_per_token`` the median over the tokens fed one
    by one after it. Bytes are those of the cache at the context, as in :class:`taylorder.adapt.generate.Generated`.
    """

    prefill_seconds: float
    milliseconds_per_token: float
    cache_bytes: int
    nominal_bytes: int


@dataclass(frozen=True, slots=True)
class Row:
    """Exact and adapted after ``context`` tokens."""

    context: int
    exact: Reading
    adapted: Reading

    @property
    def slowdown(self) -> float:
        """Time per token, adapted over exact."""
        return self.adapted.milliseconds_per_token / self.exact.milliseconds_per_token

    @property
    def prefill_slowdown(self) -> float:
        """Time to read the context, adapted over exact."""
        return self.adapted.prefill_seconds / self.exact.prefill_seconds


@dataclass(frozen=True, slots=True)
class Bench:
    """Rows by ascending context; ``predicted`` is the break-even context of :func:`predicted_break_even`."""

    rows: tuple[Row, ...]
    new_tokens: int
    predicted: int | None

    @property
    def smaller_nominal(self) -> int | None:
        """The smallest context measured at which the adapted cache is smaller in nominal bytes; None if at none."""
        return next((row.context for row in self.rows if row.adapted.nominal_bytes < row.exact.nominal_bytes), None)

    @property
    def smaller_held(self) -> int | None:
        """The same in bytes of memory held."""
        return next((row.context for row in self.rows if row.adapted.cache_bytes < row.exact.cache_bytes), None)


def bench(
    model: Any,
    description: ModelDescription,
    config: OrderConfig,
    *,
    lengths: Sequence[int],
    new_tokens: int = 16,
    seed: int = 0,
    progress: Progress = silent,
) -> Bench:
    """Measure a model as it is and as a config makes it, on one thread, one context length after the other.

    Args:
        model: a causal language model of transformers.
        description: of that model.
        config: per-head decisions.
        lengths: contexts in tokens, at least 1 each.
        new_tokens: tokens fed one by one after each context, at least 1.
        seed: of the random tokens.
        progress: called with ``("bench", done, total)``.

    Raises:
        UsageError: a length is out of the range that the model allows.
        UnsupportedModelError: the model generates no text.
        ConfigError: the config does not belong to the model.

    """
    from transformers import DynamicCache

    if not (description.causal and getattr(model, "can_generate", lambda: False)()):
        raise UnsupportedModelError(
            f"{description.name} generates no text: choose a causal language model with its head"
        )
    if new_tokens < 1:
        raise UsageError(f"new_tokens is {new_tokens}, expected at least 1")
    contexts = sorted(set(lengths))
    if not contexts or contexts[0] < 1 or contexts[-1] + new_tokens > description.max_context:
        raise UsageError(
            f"contexts are {contexts}, expected numbers from 1 to {description.max_context - new_tokens}: the model "
            f"sees {description.max_context} tokens, and {new_tokens} are fed after the context"
        )
    prepared = prepare(model, config, description)
    rows = []
    with one_thread():
        for done, context in enumerate(contexts):
            progress("bench", done, len(contexts))
            ids = random_tokens(model, context + new_tokens, seed)
            _measure(model, DynamicCache(config=model.config), ids[:, : WARM_UP + 1], 1)
            exact = _measure(model, DynamicCache(config=model.config), ids, new_tokens)
            with attach(model, prepared) as handle:
                _measure(model, handle.new_cache(), ids[:, : WARM_UP + 1], 1)
                rows.append(Row(context, exact, _measure(model, handle.new_cache(), ids, new_tokens)))
    progress("bench", len(contexts), len(contexts))
    return Bench(tuple(rows), new_tokens, predicted_break_even(config, description))


def predicted_break_even(config: OrderConfig, model: ModelDescription) -> int | None:
    """Smallest context from which on caches and states of a config are smaller than the exact cache, in nominal bytes.

    None if they never are: every head is exact. Between the contexts at which near fields fill, what is saved changes
    steadily; only priorities, which are held beside keys while a near field fills, make it shrink.
    """
    exact = OrderConfig.uniform(model, "exact")
    nears = {head.spec.near for layer in config.layers for head in layer.heads}
    filled = {tokens for near in nears for tokens in (near.window + near.sinks, near.tokens)}

    def smaller(tokens: int) -> bool:
        return config_bytes(config, model, tokens) < config_bytes(exact, model, tokens)

    if not smaller(FARTHEST):
        return None
    last = max(tokens for tokens in {0, *filled} if not smaller(tokens))
    return bisect_left(range(FARTHEST), True, last, key=smaller)


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread inside the block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def random_tokens(model: Any, count: int, seed: int) -> Tensor:
    """Draw tokens of the model's vocabulary, ``[1, count]``, where it takes them."""
    table = token_embeddings(model)
    vocabulary = int(model.config.get_text_config().vocab_size if table is None else table.shape[0])
    ids = torch.randint(vocabulary, (1, count), generator=torch.Generator().manual_seed(seed))
    return ids.to(input_device(model))


def _measure(model: Any, cache: Any, ids: Tensor, new_tokens: int) -> Reading:
    """Feed all but the last ``new_tokens`` of ``ids`` ``[1, T]`` in pieces, and those one by one."""
    from taylorder.adapt.cache import cache_bytes, nominal_cache_bytes

    context = ids.shape[1] - new_tokens
    prefill = seconds_to_read(model, ids[:, :context], cache)
    held, nominal = cache_bytes(cache), nominal_cache_bytes(cache)
    steps = [seconds(model, token, cache) for token in torch.split(ids[:, context:], 1, 1)]
    return Reading(prefill, 1e3 * statistics.median(steps), held, nominal)


def seconds_to_read(model: Any, ids: Tensor, cache: Any) -> float:
    """Time to feed a prompt ``[1, T]`` in pieces."""
    return sum(seconds(model, piece, cache) for piece in torch.split(ids, PROMPT_CHUNK, 1))


def seconds(model: Any, ids: Tensor, cache: Any) -> float:
    """Time of a forward pass and of picking the likeliest token, which waits for the device."""
    begun = time.perf_counter()
    int(next_logits(model, ids, cache)[0].argmax())
    return time.perf_counter() - begun
