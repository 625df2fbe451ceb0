"""The text that a choice is made on: prose and source code, half and half, unless the user names a text.

Which keys are used again, and how far back, differs by kind of text. What is fitted to both holds better, on other
prose as on other code (docs/notebook/2026-11-keeping-keys.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from taylorder.analysis.text import CALIBRATION_SOURCE, Text, source_code
from taylorder.analysis.tokens import Tokens, tokenise


def kinds(text: Text) -> int:
    """How many kinds of text a choice is made on where this one is the calibration text."""
    return 2 if text.source == CALIBRATION_SOURCE else 1


@dataclass(frozen=True)
class ChoiceText:
    """Texts of one or two kinds, in tokens, and both of them one after the other."""

    kinds: tuple[Tokens, ...]
    joined: Tokens

    @classmethod
    def of(cls, tokenizer: Any, tokens: Tokens) -> ChoiceText:
        """The default calibration text with source code beside it; any other text alone."""
        if kinds(tokens.text) == 1:
            return cls((tokens,), tokens)
        code = source_code()
        both = Text(f"{tokens.text.source} and {code.source}", f"{tokens.text.content}\n{code.content}")
        return cls((tokens, tokenise(tokenizer, code)), tokenise(tokenizer, both))

    def sequences(self, length: int, count: int) -> Tensor:
        """The first sequences of every kind, as many of each, ``count`` in all: int64 ``[count, length]``.

        Raises:
            UsageError: a text is too short.

        """
        shares = [len(range(kind, count, len(self.kinds))) for kind in range(len(self.kinds))]
        parts = [
            tokens.first(length, share * length) for tokens, share in zip(self.kinds, shares, strict=True) if share
        ]
        return torch.cat(parts)
