"""Prompts as text, drawn from a seed, with the characters of every answer: words, lines and needles that are asked for.

=======  ===============================================================================================================
lookup   Numbered lines of two words; then lines again in random order, number and first word given (by the number alone
         small models find nothing). Choice of the second word among those of all lines. One question that is not scored
         goes first and shows the format.
list     A numbered list of words, then the same list again: the words of the second copy, the first one left out.
needle   Sentences of prose with one odd sentence per depth ("The password of the old library is river."); then the odd
         sentences again in random order, up to the last word. Choice among their words and as many others.
=======  ===============================================================================================================

All words are English words of the text, and a space stands before every answer.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from taylorder.errors import UsageError
from taylorder.evaluation.task_source import TaskSource

NEEDLES = (
    "The secret word of the red door is",
    "The password of the old library is",
    "The captain of the ship is afraid of the",
    "The girl in the garden dreamed about the",
    "The cook hid the key behind the",
    "My uncle paid a fortune for the",
    "The letter from the king mentions only the",
    "In the end the detective found the",
)

_COMMON = 700  # words are drawn from this many of the most common ones, or from as many as are needed
_TOO_FEW_WORDS = (
    "the tokenizer has too few words with different first tokens for a {kind} task of {length} tokens: ask for smaller "
    "lengths, or use more text"
)


@dataclass(frozen=True, slots=True)
class Answer:
    """The characters of a prompt from ``start`` to ``end``, which what stands before them lets one foretell.

    ``choices`` are the words to choose among, the right one among them; empty means anything. ``depth`` is the middle
    of the stretch of the context (0 its start, 1 its end) the answer was put in, or None where all are equally far.
    """

    start: int
    end: int
    choices: tuple[str, ...] = ()
    depth: float | None = None


@dataclass(frozen=True, slots=True)
class WrittenPrompt:
    """A text that asks several questions and holds their answers, in the order of the text.

    ``context`` is how many characters stand before the part that asks: all that the questions are about.
    """

    text: str
    answers: tuple[Answer, ...]
    context: int


def _lookup(source: TaskSource, length: int, depths: int, draw: np.random.Generator) -> WrittenPrompt:
    words = _shuffled(source, length, draw)
    cues, answers = words[1::2], words[::2]
    within, order, spare = draw.random(depths), draw.permutation(depths), draw.random()

    def build(lines: int) -> WrittenPrompt:
        edges = [lines * stretch // depths for stretch in range(depths + 1)]
        asked = [low + int(u * (high - low)) for u, low, high in zip(within, edges, edges[1:], strict=False)]
        unasked = sorted(set(range(lines)) - set(asked))
        example = unasked[int(spare * len(unasked))]
        text = "".join(f"{line + 1}. {cues[line]} {answers[line]}\n" for line in range(lines)) + "\n\n"
        context = len(text)
        text += f"{example + 1}. {cues[example]} {answers[example]}"
        choices, spans = tuple(answers[:lines]), []
        for stretch in order:
            line = asked[stretch]
            text += f"\n{line + 1}. {cues[line]} "
            spans.append(Answer(len(text), len(text) + len(answers[line]), choices, _middle(stretch, depths)))
            text += answers[line]
        return WrittenPrompt(text, tuple(spans), context)

    return _longest(build, depths + 1, len(words) // 2, source, length, "lookup")


def _list(source: TaskSource, length: int, depths: int, draw: np.random.Generator) -> WrittenPrompt:
    words = _shuffled(source, length, draw)

    def build(lines: int) -> WrittenPrompt:
        text, spans = "".join(f"{line + 1}. {words[line]}\n" for line in range(lines)) + "\n", []
        context = len(text)
        for line in range(lines):
            text += f"{line + 1}. "
            spans.append(Answer(len(text), len(text) + len(words[line])))
            text += words[line] + "\n"
        return WrittenPrompt(text, tuple(spans[1:]), context)

    return _longest(build, 2, len(words), source, length, "list")


def _needle(source: TaskSource, length: int, depths: int, draw: np.random.Generator) -> WrittenPrompt:
    if not source.sentences:
        raise UsageError(f"{source.text.source} has no plain English sentences to hide a needle in: use more text")
    words = _shuffled(source, length, draw)
    needles = [NEEDLES[index] for index in draw.permutation(len(NEEDLES))[:depths]]
    first = int(draw.integers(len(source.sentences)))
    within, order = draw.random(depths), draw.permutation(depths)

    def build(count: int) -> WrittenPrompt:
        prose = [source.sentences[(first + index) % len(source.sentences)] for index in range(count)]
        seen = set(re.findall("[a-z]+", " ".join([*prose, *NEEDLES]).lower()))
        # Words that the prose does not hold come first.
        choices = tuple(sorted(words, key=seen.__contains__)[: 2 * depths])
        ends = np.cumsum([len(sentence) for sentence in prose])
        for stretch in reversed(range(depths)):
            sentence = int(np.searchsorted(ends, (stretch + within[stretch]) / depths * ends[-1]))
            prose.insert(sentence, f"{needles[stretch]} {choices[stretch]}.")
        text, spans = " ".join(prose) + "\n\n", []
        context = len(text)
        for stretch in order:
            text += needles[stretch] + " "
            word = choices[stretch]
            spans.append(Answer(len(text), len(text) + len(word), choices, _middle(stretch, depths)))
            text += word + ".\n"
        if (len(choices) < 2 * depths or choices[-1] in seen) and source.size(text) <= length:
            raise UsageError(_TOO_FEW_WORDS.format(kind="needle", length=length))
        return WrittenPrompt(text, tuple(spans), context)

    return _longest(build, 1, length, source, length, "needle")


WRITERS: dict[str, Callable[[TaskSource, int, int, np.random.Generator], WrittenPrompt]] = {
    "lookup": _lookup,
    "list": _list,
    "needle": _needle,
}
"""By kind: from a source, the most tokens, depths and a generator to a prompt."""


def _shuffled(source: TaskSource, length: int, draw: np.random.Generator) -> list[str]:
    # Each word stands in a line or sentence of its own, so there are always fewer of them than tokens.
    words = list(source.choices)[: max(_COMMON, length)]
    return [words[index] for index in draw.permutation(len(words))]


def _middle(stretch: int, depths: int) -> float:
    return round((int(stretch) + 0.5) / depths, 3)


def _longest(
    build: Callable[[int], WrittenPrompt], least: int, most: int, source: TaskSource, length: int, kind: str
) -> WrittenPrompt:
    """Return the prompt of the most lines or sentences, from ``least`` on, that has at most ``length`` tokens."""

    def size(count: int) -> int:
        return source.size(build(count).text)

    if most >= least and size(least) > length:
        raise UsageError(f"{length} tokens are too few for a {kind} task: it takes at least {size(least)}")
    high = least
    while high < most and size(high) <= length:
        high *= 2
    count = bisect_right(range(high + 1), length, lo=least, hi=min(high, most) + 1, key=size) - 1
    if count >= most:
        raise UsageError(_TOO_FEW_WORDS.format(kind=kind, length=length))
    while size(count) > length:  # other words may be a token longer
        count -= 1
    return build(count)
