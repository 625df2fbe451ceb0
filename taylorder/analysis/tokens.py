"""A text as the tokens of one model, and the sequences cut from them.

Where a tokenizer puts a beginning-of-sequence token (BOS) in front of a text, the model was trained with one in front
of every sequence and predicts badly without it. So each sequence begins with it: BOS takes the place of the sequence's
first token, and the tokens that are predicted stay the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taylorder.analysis.text import Text, calibration_text
from taylorder.errors import UsageError

LEAST_DISTINCT = 16
"""Different tokens that the sequences of a text must have; of short ones, an eighth as many as there are tokens."""

MOST_UNKNOWN = 0.1
"""Share of unknown tokens above which a report warns: the tokenizer does not know the text's script or language."""


@dataclass(frozen=True)
class Tokens:
    """The ids of a whole text without special tokens.

    ``bos`` is the token that begins every sequence, ``unknown`` the one that stands for what the tokenizer does not
    know; None where it has no such token, or does not put it in front.
    """

    text: Text
    ids: list[int]
    bos: int | None
    unknown: int | None = None

    @classmethod
    def of(cls, tokenizer: Any, text: Text | Tokens | str | None) -> Tokens:
        """The tokens of a text, or as they are; of the English that Python ships for None."""
        if isinstance(text, Tokens):
            return text
        return tokenise(tokenizer, calibration_text() if text is None else Text.of(text))

    def first(self, length: int, most: int) -> Tensor:
        """Cut the first ``most`` tokens into consecutive sequences: int64 ``[N, length]``, the rest dropped.

        Raises:
            UsageError: ``most`` or the text does not fill a single sequence, or it has too few different tokens.

        """
        _refuse_short(length)
        count = min(len(self.ids), most) // length
        if count == 0:
            raise UsageError(
                f"{self.text.source} gives {len(self.ids)} tokens, of which at most {most} are used: fewer than one "
                f"sequence of {length}; use more text, or a smaller sequence length"
            )
        return self._begun(torch.tensor(self.ids[: count * length], dtype=torch.int64).view(count, length))

    def last(self, length: int) -> Tensor:
        """Return the last tokens, as many as there are up to ``length``, as one sequence: int64 ``[T]``."""
        ids = self.ids[-length:]
        return torch.tensor(ids if self.bos is None else [self.bos, *ids[1:]], dtype=torch.int64)

    def draw(self, length: int, count: int, seed: int) -> Tensor:
        """Cut the text into consecutive sequences and draw some without replacement, sorted: int64 ``[count, length]``.

        Raises:
            UsageError: a length below 2, a count below 1, fewer than ``count`` sequences, or too few different tokens.

        """
        _refuse_short(length)
        if count < 1:
            raise UsageError(f"number of sequences is {count}, expected at least 1")
        available = len(self.ids) // length
        if available < count:
            raise UsageError(
                f"{self.text.source}: {len(self.ids)} tokens give {available} sequences of {length}, {count} are asked "
                "for; use more text, fewer sequences or a smaller length"
            )
        chosen = np.sort(np.random.default_rng(seed).choice(available, size=count, replace=False))
        cut = torch.tensor(self.ids[: available * length], dtype=torch.int64).view(available, length)
        return self._begun(cut[torch.from_numpy(chosen)])

    def unknown_share(self, sequences: Tensor) -> float:
        """Share of the tokens of sequences that the tokenizer did not know."""
        return 0.0 if self.unknown is None else float((sequences == self.unknown).double().mean())

    def _begun(self, sequences: Tensor) -> Tensor:
        """Let every sequence begin with BOS, after a look at what the text is made of."""
        distinct, expected = len(torch.unique(sequences)), min(LEAST_DISTINCT, sequences.numel() // 8)
        if distinct < expected:
            unknown = self.unknown_share(sequences)
            why = f" ({unknown:.0%} of it unknown to the tokenizer)" if unknown > MOST_UNKNOWN else ""
            raise UsageError(
                f"{self.text.source} is made of {distinct} different tokens{why}, expected at least {expected}: "
                "nothing measured on it would hold for other text; use prose in a language that the tokenizer knows"
            )
        if self.bos is not None:
            sequences[:, 0] = self.bos
        return sequences


def tokenise(tokenizer: Any, text: Text) -> Tokens:
    """Tokenise a whole text, without special tokens."""
    ids = tokenizer(text.content, add_special_tokens=False, verbose=False).input_ids
    return Tokens(text, list(ids), beginning(tokenizer), getattr(tokenizer, "unk_token_id", None))


def beginning(tokenizer: Any) -> int | None:
    """The beginning-of-sequence token, where the tokenizer itself puts it in front of a text."""
    bos = getattr(tokenizer, "bos_token_id", None)
    return bos if bos is not None and tokenizer("x").input_ids[:1] == [bos] else None


def _refuse_short(length: int) -> None:
    if length < 2:
        raise UsageError(f"sequence length is {length}, expected at least 2 tokens")
