"""Words, sentences and tokens of a text as a tokenizer sees them: what the prompts of the tasks are made of."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from taylorder.analysis.text import Text
from taylorder.analysis.tokens import beginning

_SAMPLE = 300_000  # characters of the text in which tokens are looked for


@dataclass(frozen=True)
class TaskSource:
    """Words, sentences and tokens of a text, as a tokenizer sees them."""

    tokenizer: Any
    text: Text

    @cached_property
    def words(self) -> list[str]:
        """Lower-case words of at least four letters, the most common first."""
        return [word for word, _ in Counter(re.findall(r"\b[a-z]{4,9}\b", self.text.content)).most_common(4000)]

    @cached_property
    def choices(self) -> dict[str, int]:
        """Words whose first tokens all differ, with these tokens: words of one token first, then by frequency."""
        encoding = self.tokenizer([f"a {word}" for word in self.words], add_special_tokens=False)
        starts = [encoding.char_to_token(index, 2) for index in range(len(self.words))]
        tokens = [len(ids) - start for ids, start in zip(encoding.input_ids, starts, strict=True)]
        chosen: dict[int, str] = {}
        for index in sorted(range(len(self.words)), key=lambda index: tokens[index]):
            chosen.setdefault(encoding.input_ids[index][starts[index]], self.words[index])
        special = set(self.tokenizer.all_special_ids)  # among them that of unknown words
        return {word: token for token, word in chosen.items() if token not in special}

    @cached_property
    def sentences(self) -> list[str]:
        """Different sentences of plain prose, in the order of the text."""
        paragraphs = (" ".join(part.split()) for part in self.text.content.split("\n\n") if ">>>" not in part)
        sentences = (sentence for paragraph in paragraphs for sentence in re.split(r"(?<=\.) (?=[A-Z])", paragraph))
        plain = re.compile(r"[A-Z][A-Za-z0-9 ,;'()`-]+\.")
        return list(dict.fromkeys(s for s in sentences if plain.fullmatch(s) and 6 <= len(s.split()) <= 40))

    @cached_property
    def tokens(self) -> list[int]:
        """Ids of the tokens of the text, special ones left out, sorted."""
        ids = self.tokenizer(self.text.content[:_SAMPLE], add_special_tokens=False, verbose=False).input_ids
        return sorted(set(ids) - set(self.tokenizer.all_special_ids))

    @cached_property
    def start(self) -> list[int]:
        """The beginning-of-sequence token where the tokenizer itself puts one."""
        bos = beginning(self.tokenizer)
        return [] if bos is None else [bos]

    def size(self, text: str) -> int:
        """How many tokens a prompt has."""
        return len(self.encode(text, ())[0])

    def encode(self, text: str, spans: Sequence[tuple[int, int]]) -> tuple[list[int], list[range]]:
        """Token ids of a prompt, and the tokens of each span of its characters."""
        encoding = self.tokenizer(text, add_special_tokens=False, verbose=False)
        shift = len(self.start)
        tokens = [
            range(shift + encoding.char_to_token(start), shift + encoding.char_to_token(end - 1) + 1)
            for start, end in spans
        ]
        return self.start + encoding.input_ids, tokens
