"""Tokens as text, piece by piece."""

from __future__ import annotations

from typing import Any


class TextPieces:
    """Tokens to text, a complete piece at a time: one character may take several tokens, and a token may need its left
    neighbours to know whether it starts with a space.

    The stream of ``tokenizers`` is for fast tokenizers only, gives no incomplete end, and raises where bytes that made
    a character are followed by one that breaks it, as a model of few heads may well write with a byte fallback.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.tokens: list[int] = []
        self.context = 0  # where decoding starts
        self.done = 0  # up to where text has been given out

    def add(self, token: int) -> str:
        """Return what can be said now."""
        self.tokens.append(token)
        piece = self._pending()
        if not piece or piece.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        self.context, self.done = self.done, len(self.tokens)
        return piece

    def rest(self) -> str:
        """Return what has been held back, incomplete characters included."""
        return self._pending()

    def _pending(self) -> str:
        said = decoded(self.tokenizer, self.tokens[self.context : self.done])
        return decoded(self.tokenizer, self.tokens[self.context :])[len(said) :]


def decoded(tokenizer: Any, tokens: list[int] | tuple[int, ...]) -> str:
    """Return what tokens say, special ones left out."""
    text: str = tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text
