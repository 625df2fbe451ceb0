"""Stream text from a model as it is or as a config makes it, and see where the two part.

A loop of its own rather than ``model.generate`` in a thread: closing the generator stops at once, errors come out where
they belong, and times are those of the model alone.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from taylorder.adapt.config import OrderConfig
from taylorder.adapt.handle import attach
from taylorder.adapt.text_pieces import TextPieces, decoded
from taylorder.errors import UnsupportedModelError, UsageError
from taylorder.models.running import next_logits, refuse_foreign_ids

PROMPT_CHUNK = 512
"""Prompt tokens run at a time; more would only hold more activations."""


@dataclass(frozen=True, slots=True)
class Generated:
    """A continuation and what it took.

    ``tokens`` are the new token ids, the one that ended the text left out, and ``text`` what they say. ``stopped`` is
    ``"end"`` if the model ended it. ``prompt_seconds`` is the time until the first token, ``seconds`` that of the
    ``steps`` forward passes after it, the time of whoever reads the stream not included. ``cache_bytes`` is what the
    tensors of the cache hold at the end, ``nominal_bytes`` the same with keys and values in 16 bits,
    sums and priorities in 32.
    ``guarded_rows`` counts rows of all heads that fell back to order 1, prompt included.
    """

    text: str
    tokens: tuple[int, ...]
    prompt_tokens: int
    stopped: Literal["end", "length"]
    prompt_seconds: float
    seconds: float
    steps: int
    cache_bytes: int
    nominal_bytes: int
    guarded_rows: int

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens per second after the first; None if there was only one."""
        return self.steps / self.seconds if self.steps else None


@dataclass(frozen=True, slots=True)
class GeneratedPair:
    """The same prompt continued by the model as it is and as a config makes it.

    ``common_tokens`` is how many new tokens agree from the start, and ``common_text`` what they say.
    """

    exact: Generated
    adapted: Generated
    common_tokens: int
    common_text: str

    @property
    def parted(self) -> bool:
        """Whether the two differ at all."""
        return self.exact.tokens != self.adapted.tokens


def stream(
    model: Any,
    tokenizer: Any,
    prompt: str,
    config: OrderConfig | None,
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    seed: int = 0,
) -> Generator[str, None, Generated]:
    """Yield the continuation of ``prompt`` piece by piece, and return (``yield from``) what it took.

    The model is adapted from the first piece until the generator is exhausted or closed; leave it alone meanwhile.

    Args:
        model: a causal language model of transformers.
        tokenizer: its tokenizer.
        prompt: the text to go on from.
        config: per-head decisions; None runs the model as it is.
        max_new_tokens: most tokens to make, at least 1.
        temperature: 0 takes the likeliest token; otherwise tokens are drawn from ``softmax(logits / temperature)``.
        seed: of that draw.

    Yields:
        Text as soon as its characters are complete; joined, the pieces are ``Generated.text``.

    Raises:
        UsageError: an argument is out of range, or the prompt has no tokens.
        UnsupportedModelError: the model generates no text.
        ConfigError: the config does not belong to the model.

    """
    from transformers import DynamicCache

    from taylorder.adapt.cache import cache_bytes, nominal_cache_bytes

    ids = _encoded(model, tokenizer, prompt, max_new_tokens, temperature)
    ends = _end_tokens(model, tokenizer)
    tokens: list[int] = []
    text = TextPieces(tokenizer)
    pieces: list[str] = []
    stopped: Literal["end", "length"] = "length"
    with ExitStack() as stack:
        handle = None if config is None else stack.enter_context(attach(model, config))
        cache = DynamicCache(config=model.config) if handle is None else handle.new_cache()
        begun = time.perf_counter()
        for start in range(0, ids.shape[1], PROMPT_CHUNK):
            logits = next_logits(model, ids[:, start : start + PROMPT_CHUNK], cache)
        draw = torch.Generator(logits.device).manual_seed(seed)
        token = _chosen(logits[0].float(), temperature, draw)
        prompt_seconds, seconds, steps = time.perf_counter() - begun, 0.0, 0
        while True:
            if token in ends:
                stopped = "end"
                break
            tokens.append(token)
            if piece := text.add(token):
                pieces.append(piece)
                yield piece
            if len(tokens) == max_new_tokens:
                break
            begun = time.perf_counter()
            logits = next_logits(model, ids.new_tensor([[token]]), cache)
            token = _chosen(logits[0].float(), temperature, draw)
            seconds += time.perf_counter() - begun
            steps += 1
        if rest := text.rest():
            pieces.append(rest)
            yield rest
    rows = () if handle is None else handle.counts.guarded_rows.values()
    return Generated(
        text="".join(pieces),
        tokens=tuple(tokens),
        prompt_tokens=ids.shape[1],
        stopped=stopped,
        prompt_seconds=prompt_seconds,
        seconds=seconds,
        steps=steps,
        cache_bytes=cache_bytes(cache),
        nominal_bytes=nominal_cache_bytes(cache),
        guarded_rows=sum(int(guarded.sum()) for guarded in rows),
    )


def compared(tokenizer: Any, exact: Generated, adapted: Generated) -> GeneratedPair:
    """Say where two continuations of one prompt part."""
    common = 0
    for one, other in zip(exact.tokens, adapted.tokens, strict=False):
        if one != other:
            break
        common += 1
    return GeneratedPair(exact, adapted, common, decoded(tokenizer, exact.tokens[:common]))


def _encoded(model: Any, tokenizer: Any, prompt: str, max_new_tokens: int, temperature: float) -> Tensor:
    """Check the arguments and return the prompt's token ids ``[1, T]``."""
    if max_new_tokens < 1:
        raise UsageError(f"max_new_tokens is {max_new_tokens}, expected at least 1")
    if not 0 <= temperature < float("inf"):
        raise UsageError(f"temperature is {temperature}, expected 0 (the likeliest token) or a positive number")
    if not getattr(model, "can_generate", lambda: False)():
        raise UnsupportedModelError(
            f"{type(model).__name__} generates no text: choose a causal language model with its head"
        )
    ids: Tensor = tokenizer(prompt, return_tensors="pt").input_ids
    if ids.shape[1] == 0:
        raise UsageError("the prompt has no tokens; write at least one word")
    refuse_foreign_ids(model, ids)
    return ids.long()


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Return the tokens that end a text, as the model's generation config and the tokenizer have them."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    listed = ends if isinstance(ends, list | tuple) else [ends]
    return {token for token in (*listed, tokenizer.eos_token_id) if token is not None}


def _chosen(logits: Tensor, temperature: float, draw: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    scaled = (logits - logits.max()).double() / temperature  # no temperature is so low that this overflows upwards
    return int(torch.multinomial(scaled.softmax(-1).float(), 1, generator=draw))
