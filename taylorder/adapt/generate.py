"""Stream text from a model as it is or as a config makes it, and see where the two part."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from taylorder.adapt.config import OrderConfig
from taylorder.adapt.continuation import Continuation, Generated, Sampling, end_tokens, refuse_without_head
from taylorder.adapt.handle import attach
from taylorder.adapt.text_pieces import decoded
from taylorder.errors import UsageError
from taylorder.models.running import refuse_foreign_ids


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

    sampling = Sampling(max_new_tokens, temperature, seed)
    ids = _encoded(model, tokenizer, prompt)
    with ExitStack() as stack:
        handle = None if config is None else stack.enter_context(attach(model, config))
        cache = DynamicCache(config=model.config) if handle is None else handle.new_cache()
        made = Continuation(model, tokenizer, cache, sampling, end_tokens(model, tokenizer))
        yield from filter(None, made.pieces(ids))
    return made.generated(None if handle is None else handle.counts)


def compared(tokenizer: Any, exact: Generated, adapted: Generated) -> GeneratedPair:
    """Say where two continuations of one prompt part."""
    common = 0
    for one, other in zip(exact.tokens, adapted.tokens, strict=False):
        if one != other:
            break
        common += 1
    return GeneratedPair(exact, adapted, common, decoded(tokenizer, exact.tokens[:common]))


def _encoded(model: Any, tokenizer: Any, prompt: str) -> Tensor:
    """Check model and prompt, and return the prompt's token ids ``[1, T]``."""
    refuse_without_head(model)
    ids: Tensor = tokenizer(prompt, return_tensors="pt").input_ids
    if ids.shape[1] == 0:
        raise UsageError("the prompt has no tokens; write at least one word")
    refuse_foreign_ids(model, ids)
    return ids.long()
