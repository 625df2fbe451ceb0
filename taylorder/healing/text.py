"""The text that a model is healed on: what a step reads of it, and what is held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from taylorder.analysis.docstrings import docstrings
from taylorder.analysis.text import Text, calibration_text, text_of_files
from taylorder.analysis.tokens import Tokens
from taylorder.errors import UsageError

PACKAGES = {
    "torch": ("distributed", "distributions", "nn", "optim", "utils"),
    "transformers": ("generation", "integrations", "pipelines", "utils"),
    "pandas": ("core", "io"),
}
"""None of those whose docstrings configs are judged on."""

HELD_OUT = 4
"""Sequences that say which weights are the best; less of a short text."""


def training_text(files: Sequence[str | Path] = ()) -> Text:
    """Return the files joined by a newline, or else the calibration text and docstrings: a million tokens of prose.

    Raises:
        UsageError: a file cannot be read as UTF-8 text.

    """
    if files:
        return text_of_files(files)
    prose, strings = calibration_text(), docstrings(PACKAGES)
    return Text(f"{prose.source} and {strings.source}", f"{prose.content}\n\n{strings.content}")


@dataclass(frozen=True)
class TrainingText:
    """A text cut into blocks of the longest sequences ``[N, longest]``; those ``held_out`` are evenly spread over it.

    ``bos`` is the token that begins every sequence, None where there is none.
    """

    source: str
    sha256: str
    blocks: Tensor
    held_out: Tensor
    bos: int | None

    @classmethod
    def of(cls, tokens: Tokens, longest: int) -> TrainingText:
        """Cut the text.

        Raises:
            UsageError: it is shorter than two sequences.

        """
        cut = tokens.first(longest, len(tokens.ids))
        if len(cut) < 2:
            raise UsageError(
                f"{tokens.text.source} has {len(tokens.ids):,} tokens, fewer than two sequences of {longest:,}, one to "
                "learn from and one that is held out; use more text, or a smaller --context"
            )
        count = min(HELD_OUT, max(1, len(cut) // 8))
        held_out = [len(cut) * (2 * number + 1) // (2 * count) for number in range(count)]
        learnt = [block for block in range(len(cut)) if block not in held_out]
        return cls(tokens.text.source, tokens.text.sha256, cut[learnt], cut[held_out], tokens.bos)

    def batch(self, length: int, count: int, seed: int, number: int) -> Tensor:
        """What step ``number`` reads, int64 ``[count, length]``; drawn from seed and number alone."""
        parts = self.blocks.shape[1] // length
        available = len(self.blocks) * parts
        generator = np.random.default_rng((seed, number))
        drawn = torch.from_numpy(generator.choice(available, size=count, replace=available < count))
        cut = self.blocks.view(available, length)[drawn].clone()
        if self.bos is not None:
            cut[:, 0] = self.bos
        return cut
