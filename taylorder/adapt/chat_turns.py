"""The turns of a conversation as tokens: what the chat template of a tokenizer puts between one answer and the next.

Only the new turn is made into tokens. What came before stays as the cache has it, the model's own tokens among it: to
render the whole conversation again might cut an answer into other tokens, or leave a part of it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypedDict

from jinja2 import TemplateError

from taylorder.errors import UsageError, first_line

_PLAIN = "{% for message in messages %}{{ message.content + ('' if message.role == 'user' else '\\n') }}{% endfor %}"
"""Without a chat template: what is said as it stands, and a line of its own for what is said after an answer."""

_ANSWER = "\ue000\ue001\ue000"
"""Stands for an answer where its surroundings are asked for; for private use, so that no text has it."""


class Message(TypedDict):
    """Who said what, as transformers takes it."""

    role: Literal["system", "user", "assistant"]
    content: str


def has_template(tokenizer: Any) -> bool:
    """Whether a tokenizer knows what a conversation looks like."""
    return bool(getattr(tokenizer, "chat_template", None))


def turn_tokens(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Token ids of everything after the last answer, up to where the next one begins; all of a first turn.

    Raises:
        UsageError: the chat template refuses these messages, or does not show answers.

    """
    *before, last = messages
    answered = bool(before) and before[-1]["role"] == "assistant"
    if answered:
        before[-1] = {"role": "assistant", "content": _ANSWER}
    text = _rendered(tokenizer, [*before, last], onward=True)
    if answered:
        text = _after_answer(text)
    # A template writes the token that begins a text itself.
    begins = not answered and not has_template(tokenizer)
    ids: list[int] = tokenizer(text, add_special_tokens=begins, verbose=False).input_ids
    return ids


def closing_tokens(tokenizer: Any) -> set[int]:
    """The special token that a chat template puts after an answer: a model may end one with it, and not the text."""
    messages: list[Message] = [{"role": "user", "content": "-"}, {"role": "assistant", "content": _ANSWER}]
    text = _after_answer(_rendered(tokenizer, messages, onward=False))
    first = tokenizer(text, add_special_tokens=False, verbose=False).input_ids[:1]
    known = tokenizer.added_tokens_decoder
    return {token for token in first if token in known and known[token].special}


def _rendered(tokenizer: Any, messages: Sequence[Message], *, onward: bool) -> str:
    """The text of messages, with what has the model answer if it goes ``onward``."""
    options = {} if has_template(tokenizer) else {"chat_template": _PLAIN}
    try:
        text: str = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=onward, **options
        )
    except (TemplateError, ValueError, TypeError) as error:
        way_out = "leave the system text out" if messages[0]["role"] == "system" else "choose another model"
        raise UsageError(
            f"the chat template of the tokenizer takes no such turns ({first_line(error)}); {way_out}"
        ) from error
    return text


def _after_answer(text: str) -> str:
    """What a template writes after the last answer."""
    _, found, rest = text.rpartition(_ANSWER)
    if not found:
        raise UsageError("the chat template of the tokenizer leaves answers out; choose another model")
    return rest
