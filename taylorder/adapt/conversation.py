"""A conversation with a model that runs with a config: its turns, its tokens, and the cache that holds them."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

import torch

from taylorder.adapt.cache import TaylorCache
from taylorder.adapt.chat_turns import Message, closing_tokens, turn_tokens
from taylorder.adapt.config import OrderConfig
from taylorder.adapt.continuation import Continuation, Generated, Sampling, end_tokens, refuse_without_head
from taylorder.adapt.cost import config_bytes
from taylorder.adapt.handle import attach
from taylorder.adapt.left_out import LeftOut, left_out
from taylorder.adapt.prepared import prepare
from taylorder.errors import UsageError
from taylorder.models.description import ModelDescription
from taylorder.models.running import refuse_foreign_ids


@dataclass(frozen=True, slots=True)
class Turn:
    """What was said, what the model answered with the config, and, where that was asked for, as it is."""

    said: str
    answer: Generated
    exact: Generated | None = None


class Conversation:
    """A conversation whose history stays in the cache: a turn feeds what is new, and nothing again.

    The model is adapted while it answers, and untouched between turns.

    >>> import taylorder
    >>> from taylorder.adapt.conversation import Conversation
    >>> loaded = taylorder.load()
    >>> config = taylorder.OrderConfig.uniform(loaded.model, order=3, expansion="mean", window=64, sinks=4)
    >>> chat = Conversation(loaded.model, loaded.tokenizer, config, taylorder.describe(loaded.model))
    >>> "".join(chat.answer("What is the capital of France?"))
    'The capital of France is Paris.'
    >>> chat.cache.get_seq_length() == len(chat.tokens)  # what is said next is all that will be run next
    True

    Attributes:
        tokens: the whole history as token ids.
        turns: what was said, and what came back.
        cache: what the model remembers of the first ``fed`` tokens.
        fed: how many tokens the cache has been given; the last one of an answer that was cut comes with the next turn.
        description: what the model is like.

    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        config: OrderConfig,
        description: ModelDescription,
        *,
        system: str | None = None,
        sampling: Sampling | None = None,
    ) -> None:
        """Begin without a word.

        Args:
            model: a causal language model of transformers.
            tokenizer: its tokenizer; one without a chat template has the model go on with what is said.
            config: per-head decisions.
            description: of the model, as ``taylorder.describe`` gives it.
            system: what stands before the first turn; None leaves that to the chat template.
            sampling: how tokens of answers are chosen; the seed grows by 1 with every turn.

        Raises:
            ConfigError: the config does not belong to the model.
            UnsupportedModelError: the model generates no text, or takes no cache of states.
            UsageError: the chat template cannot be used.

        """
        refuse_without_head(model)
        self.model, self.tokenizer, self.description = model, tokenizer, description
        self.sampling = sampling or Sampling()
        self.prepared = prepare(model, config)
        self.cache = TaylorCache(model, self.prepared)
        self.tokens: list[int] = []
        self.turns: list[Turn] = []
        self.fed = 0
        self._asked = 0  # tokens before the last answer
        self._system: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        self._ends = end_tokens(model, tokenizer) | closing_tokens(tokenizer)

    @property
    def messages(self) -> list[Message]:
        """Everything said so far, as transformers takes it."""
        messages = list(self._system)
        for turn in self.turns:
            messages += [
                {"role": "user", "content": turn.said},
                {"role": "assistant", "content": turn.answer.text},
            ]
        return messages

    @property
    def context(self) -> int:
        """Most tokens that the model sees."""
        return self.description.max_context

    @property
    def room(self) -> int:
        """How many more tokens the model sees."""
        return self.context - len(self.tokens)

    @property
    def left_out(self) -> LeftOut:
        """How many KV heads have left out tokens that the cache was given."""
        return left_out(self.prepared.config, self.description, self.fed)

    @property
    def exact_bytes(self) -> int:
        """Nominal bytes that exact attention would hold of the same tokens."""
        return config_bytes(OrderConfig.uniform(self.description, "exact"), self.description, self.fed)

    def answer(self, said: str) -> Generator[str, None, None]:
        """Say something, and yield the answer piece by piece; it is in ``turns`` afterwards.

        Closing the iterator stops the answer where it is, and the conversation goes on from there. Pieces may be empty.

        Raises:
            UsageError: there is no room left for what is said and an answer; nothing has been said then.

        """
        new = turn_tokens(self.tokenizer, [*self.messages, {"role": "user", "content": said}])
        if not new:
            raise UsageError("nothing has been said that the tokenizer has a token for; say something else")
        if len(new) >= self.room:
            raise UsageError(
                f"the conversation has {len(self.tokens)} tokens and this turn {len(new)} more, but the model sees "
                f"{self.context} at most, its answer included; say less, or begin another conversation"
            )
        refuse_foreign_ids(self.model, torch.tensor(new))
        self.tokens += new
        self._asked = len(self.tokens)
        with attach(self.model, self.prepared) as handle:
            made = self._continuation(self.cache, len(self.turns))
            try:
                yield from made.pieces(torch.tensor([self.tokens[self.fed :]]))
            finally:
                self.tokens += made.tokens
                self.fed += made.fed
                self.turns.append(Turn(said, made.generated(handle.counts)))

    def exact(self) -> Generator[str, None, None]:
        """Yield what the model as it is answers to the last turn, after the same tokens; the conversation stays.

        A cache of its own is made of these tokens, which takes as long as reading them does.

        Raises:
            UsageError: nothing has been said yet.

        """
        from transformers import DynamicCache

        if not self.turns:
            raise UsageError("nothing has been said yet that could be answered; say something first")
        made = self._continuation(DynamicCache(config=self.model.config), len(self.turns) - 1)
        try:
            yield from made.pieces(torch.tensor([self.tokens[: self._asked]]))
        finally:
            self.turns[-1] = replace(self.turns[-1], exact=made.generated(None))

    def _continuation(self, cache: Any, turn: int) -> Continuation:
        """What answers that turn, as long as there is room after what was asked."""
        most = min(self.sampling.max_new_tokens, self.context - self._asked)
        sampling = replace(self.sampling, max_new_tokens=most, seed=self.sampling.seed + turn)
        return Continuation(self.model, self.tokenizer, cache, sampling, self._ends)
