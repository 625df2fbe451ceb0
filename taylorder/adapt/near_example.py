"""Which tokens of a text are near, and how much attention goes to them: seen while a model runs with a config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from taylorder.adapt.attention_shares import HeadShares, group_shares
from taylorder.adapt.config import OrderConfig
from taylorder.adapt.handle import attach
from taylorder.adapt.probe import priorities
from taylorder.adapt.text_pieces import TextPieces
from taylorder.analysis.losses import hidden_states
from taylorder.analysis.tokens import Tokens
from taylorder.kernels.kept_keys import far_from
from taylorder.kernels.spec import Exact, Near, grouped
from taylorder.models.attention import AttentionCall

TOKENS = 1024
"""Of an example: several times what a KV head of a small budget holds, and few enough to be read."""


@dataclass(frozen=True, slots=True)
class NearTokens:
    """What one KV head holds after the last token: the first ``sinks``, the last ``window``, and ``kept`` by place."""

    module: str
    kv_head: int
    sinks: int
    window: int
    kept: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class NearExample:
    """A text by token, where it is from, and what happens to it in a model that runs with a config.

    ``kv_heads`` says what every KV head that keeps keys holds at its end, and ``shares`` where the attention of every
    query head goes whose near field is not everything.
    """

    source: str
    pieces: tuple[str, ...]
    kv_heads: tuple[NearTokens, ...]
    shares: tuple[HeadShares, ...] = ()


def near_example(model: Any, tokenizer: Any, config: OrderConfig, tokens: Tokens, length: int = TOKENS) -> NearExample:
    """Run a model with a config on the last ``length`` tokens of a text, and see what is near.

    Raises:
        ConfigError: the config does not belong to the model.

    """
    ids = tokens.last(length)
    text = TextPieces(tokenizer)
    pieces = [text.add(int(token)) for token in ids]
    pieces[-1] += text.rest()
    return NearExample(f"the end of {tokens.text.source}", tuple(pieces), *seen_near(model, config, ids))


def seen_near(model: Any, config: OrderConfig, ids: Tensor) -> tuple[tuple[NearTokens, ...], tuple[HeadShares, ...]]:
    """What is near after the last of the tokens ``ids`` ``[T]``, and how much of the attention of all rows was near.

    Raises:
        ConfigError: the config does not belong to the model.

    """
    heads = {layer.module: [head.spec for head in layer.heads] for layer in config.layers}
    held: list[NearTokens] = []
    shares: list[HeadShares] = []

    def note(call: AttentionCall, _output: Tensor) -> None:
        name, query, key, value = call.name, call.q, call.k, call.v
        groups = grouped(heads[name], key.shape[1])
        ranking = None
        if any(group[0].near.kept for group in groups):
            ranking = priorities(config.probes[name].to(key.device), key, value)
        for kv_head, group in enumerate(groups):
            if isinstance(group[0].far, Exact):
                continue
            near, first = group[0].near, kv_head * len(group)
            of_group = slice(first, first + len(group))
            far_rows = None
            if near.kept and ranking is not None:
                far_rows = far_from(ranking[:, kv_head : kv_head + 1], None, near)[0, 0]
                held.append(NearTokens(name, kv_head, near.sinks, near.window, _kept(far_rows, near)))
            terms = call.terms.at(of_group)
            parts = group_shares(query[0, of_group], key[0, kv_head], near, far_rows, call.scaling, terms)
            shares.extend(HeadShares(name, first + at, *of_head) for at, of_head in enumerate(parts.tolist()))

    with attach(model, config, observe=note):
        hidden_states(model, ids)
    return tuple(held), tuple(shares)


def _kept(far_rows: Tensor, near: Near) -> tuple[int, ...]:
    """Places of the tokens that are near after the last one by their priority alone."""
    T = len(far_rows)
    places: list[int] = (far_rows == T).nonzero()[:, 0].tolist()
    return tuple(place for place in places if near.sinks <= place < T - near.window)
