"""A model goes on from given tokens, one token at a time: the loop behind ``generate`` and ``chat``.

A loop of its own rather than ``model.generate`` in a thread: whoever reads it may stop between any two forward passes
and go on from the cache later, errors come out where they belong, and times are those of the model alone.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from taylorder.adapt.attention import Counts
from taylorder.adapt.cache import cache_bytes, nominal_cache_bytes
from taylorder.adapt.text_pieces import TextPieces
from taylorder.errors import UnsupportedModelError, UsageError
from taylorder.models.running import next_logits

PROMPT_CHUNK = 512
"""Prompt tokens run at a time; more would only hold more activations."""

Stopped = Literal["end", "length", "interrupted"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How many tokens are made at most, and how each is chosen: the likeliest one at temperature 0, else drawn.

    Raises:
        UsageError: a value is out of range.

    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be done."""
        if self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is {self.max_new_tokens}, expected at least 1")
        if not 0 <= self.temperature < float("inf"):
            raise UsageError(
                f"temperature is {self.temperature}, expected 0 (the likeliest token) or a positive number"
            )


@dataclass(frozen=True, slots=True)
class Generated:
    """A continuation and what it took.

    ``tokens`` are the new token ids, the one that ended the text left out, and ``text`` what they say. ``stopped`` is
    ``"end"`` if the model ended it, ``"length"`` if it was cut, and ``"interrupted"`` if nobody waited for either.
    ``prompt_seconds`` is the time until the first token, ``seconds`` that of the ``steps`` forward passes after it, the
    time of whoever reads the stream not included. ``cache_bytes`` is what the tensors of the cache hold at the end,
    ``nominal_bytes`` the same with keys and values in 16 bits, sums and priorities in 32.
    ``guarded_rows`` counts rows of all heads that fell back to order 1, prompt included.
    """

    text: str
    tokens: tuple[int, ...]
    prompt_tokens: int
    stopped: Stopped
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


class Continuation:
    """Tokens that a model makes after others, and what that took so far.

    Attributes:
        tokens: the new token ids so far, the one that ended the text left out.
        fed: how many tokens the cache has been given, those of the prompt included. The last one made is not.

    """

    def __init__(self, model: Any, tokenizer: Any, cache: Any, sampling: Sampling, ends: Collection[int]) -> None:
        """Get ready to go on from what the cache holds; ``ends`` are the tokens that end a text."""
        self.model, self.cache, self.sampling, self.ends = model, cache, sampling, ends
        self.tokens: list[int] = []
        self.fed = self.prompt_tokens = self.steps = 0
        self.stopped: Stopped = "interrupted"
        self.prompt_seconds = self.seconds = 0.0
        self._text, self._said = TextPieces(tokenizer), ""

    def pieces(self, ids: Tensor) -> Iterator[str]:
        """Run the tokens ``[1, T]`` that the cache has not seen, and go on from them, once.

        Yields:
            After every forward pass the text that is complete by then, which may be empty; closing the iterator there
            leaves the cache good.

        """
        self.prompt_tokens = ids.shape[1]
        logits: Tensor | None = None
        for chunk in torch.split(ids, PROMPT_CHUNK, 1):
            if logits is not None:
                yield ""
            begun = time.perf_counter()
            logits = self._run(chunk)
            self.prompt_seconds += time.perf_counter() - begun
        assert logits is not None  # no prompt is empty
        begun = time.perf_counter()
        draw = torch.Generator(logits.device).manual_seed(self.sampling.seed)
        token = _chosen(logits, self.sampling.temperature, draw)
        self.prompt_seconds += time.perf_counter() - begun
        while token not in self.ends:
            self.tokens.append(token)
            yield self._told(self._text.add(token))
            if len(self.tokens) == self.sampling.max_new_tokens:
                break
            begun = time.perf_counter()
            token = _chosen(self._run(ids.new_tensor([[token]])), self.sampling.temperature, draw)
            self.seconds += time.perf_counter() - begun
            self.steps += 1
        self.stopped = "end" if token in self.ends else "length"
        yield self._told(self._text.rest())

    def generated(self, counts: Counts | None) -> Generated:
        """What has been made so far, with the guarded rows that a handle counted meanwhile."""
        rows = () if counts is None else counts.guarded_rows.values()
        return Generated(
            text=self._said,
            tokens=tuple(self.tokens),
            prompt_tokens=self.prompt_tokens,
            stopped=self.stopped,
            prompt_seconds=self.prompt_seconds,
            seconds=self.seconds,
            steps=self.steps,
            cache_bytes=cache_bytes(self.cache),
            nominal_bytes=nominal_cache_bytes(self.cache),
            guarded_rows=sum(int(guarded.sum()) for guarded in rows),
        )

    def _run(self, ids: Tensor) -> Tensor:
        logits = next_logits(self.model, ids, self.cache)[0].float()
        self.fed += ids.shape[1]
        return logits

    def _told(self, piece: str) -> str:
        self._said += piece
        return piece


def refuse_without_head(model: Any) -> None:
    """Refuse a model that generates no text.

    Raises:
        UnsupportedModelError: it has no language-model head.

    """
    if not getattr(model, "can_generate", lambda: False)():
        raise UnsupportedModelError(
            f"{type(model).__name__} generates no text: choose a causal language model with its head"
        )


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Return the tokens that end a text, as the model's generation config and the tokenizer have them."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    listed = ends if isinstance(ends, list | tuple) else [ends]
    return {token for token in (*listed, tokenizer.eos_token_id) if token is not None}


def _chosen(logits: Tensor, temperature: float, draw: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    scaled = (logits - logits.max()).double() / temperature  # no temperature is so low that this overflows upwards
    return int(torch.multinomial(scaled.softmax(-1).float(), 1, generator=draw))
