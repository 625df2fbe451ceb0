"""Which tokens of a text are near after its last one, for every KV head that keeps keys: seen while the model runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from taylorder.adapt.config import OrderConfig
from taylorder.adapt.handle import attach
from taylorder.adapt.probe import priorities
from taylorder.adapt.text_pieces import TextPieces
from taylorder.analysis.losses import hidden_states
from taylorder.analysis.tokens import Tokens
from taylorder.kernels.kept_keys import far_from
from taylorder.kernels.spec import Near, grouped

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
    """A text by token, where it is from, and what every KV head that keeps keys holds at its end."""

    source: str
    pieces: tuple[str, ...]
    kv_heads: tuple[NearTokens, ...]


def near_example(model: Any, tokenizer: Any, config: OrderConfig, tokens: Tokens, length: int = TOKENS) -> NearExample:
    """Run a model with a config on the last ``length`` tokens of a text, and see which are near after the last one.

    Raises:
        ConfigError: the config does not belong to the model.

    """
    ids = tokens.last(length)
    text = TextPieces(tokenizer)
    pieces = [text.add(int(token)) for token in ids]
    pieces[-1] += text.rest()
    return NearExample(f"the end of {tokens.text.source}", tuple(pieces), near_tokens(model, config, ids))


def near_tokens(model: Any, config: OrderConfig, ids: Tensor) -> tuple[NearTokens, ...]:
    """Which of the tokens ``ids`` ``[T]`` are near after the last one, for every KV head that keeps keys.

    Raises:
        ConfigError: the config does not belong to the model.

    """
    heads = {layer.module: [head.spec for head in layer.heads] for layer in config.layers}
    held: list[NearTokens] = []

    def note(name: str, query: Tensor, key: Tensor, value: Tensor, output: Tensor, scaling: float) -> None:
        nears = [group[0].near for group in grouped(heads[name], key.shape[1])]
        if any(near.kept for near in nears):
            ranking = priorities(config.probes[name].to(key.device), key, value)
            held.extend(
                NearTokens(name, kv_head, near.sinks, near.window, _kept(ranking[:, kv_head : kv_head + 1], near))
                for kv_head, near in enumerate(nears)
                if near.kept
            )

    with attach(model, config, observe=note):
        hidden_states(model, ids)
    return tuple(held)


def _kept(priority: Tensor, near: Near) -> tuple[int, ...]:
    """Places of the tokens that are near by their priority ``[1, 1, T]`` alone."""
    T = priority.shape[2]
    places: list[int] = (far_from(priority, None, near)[0, 0] == T).nonzero()[:, 0].tolist()
    return tuple(place for place in places if near.sinks <= place < T - near.window)
