"""Prompts of the tasks in :mod:`taylorder.evaluation.tasks`, drawn from a seed, for models of 100M parameters.

=======  ===============================================================================================================
lookup   Numbered lines of two words; then lines again in random order, number and first word given (by the number alone
         such models find nothing). Forced choice of the second word among those of all lines. One question that is not
         scored goes first and shows the format.
list     A numbered list of words, then the same list again: the words of the second copy, the first one left out.
copy     Random tokens, then the same again: the tokens of the second half, the first one left out.
needle   Sentences of prose with one odd sentence per depth ("The password of the old library is river."); then the odd
         sentences again in random order, up to the last word. Forced choice among their words and as many others.
=======  ===============================================================================================================

All words are English words of the text. One prompt asks at every depth, because one forward pass costs the same.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from taylorder.analysis.text import Text
from taylorder.errors import UsageError
from taylorder.evaluation.evaluation_text import evaluation_text
from taylorder.evaluation.task_source import TaskSource
from taylorder.evaluation.tasks import Question, Task

KINDS = ("lookup", "list", "copy", "needle")
LENGTHS = (256, 512, 1024)
CASES = 4

_MOST_SCORED = 256  # answers scored per copy, evenly spaced, which bounds the memory of their logits
_COMMON = 700  # words are drawn from this many of the most common ones, or from as many as are needed
_TOO_FEW_WORDS = (
    "the tokenizer has too few words with different first tokens for a {kind} task of {length} tokens: ask for smaller "
    "lengths, or use more text"
)
_NEEDLES = (
    "The secret word of the red door is",
    "The password of the old library is",
    "The captain of the ship is afraid of the",
    "The girl in the garden dreamed about the",
    "The cook hid the key behind the",
    "My uncle paid a fortune for the",
    "The letter from the king mentions only the",
    "In the end the detective found the",
)


def prompt_tokens(max_context: int) -> int:
    """About how many tokens all prompts have together, unless asked for others."""
    return len(KINDS) * CASES * sum(length for length in LENGTHS if length <= max_context)


def make_tasks(
    tokenizer: Any,
    *,
    lengths: Sequence[int] = LENGTHS,
    kinds: Sequence[str] = KINDS,
    cases: int = CASES,
    depths: int = 5,
    seed: int = 0,
    max_context: int | None = None,
    text: Text | None = None,
) -> tuple[Task, ...]:
    """Draw ``cases`` prompts of every kind and length, in the order of the arguments.

    Args:
        tokenizer: of the causal model; it has to report offsets, as all fast tokenizers do.
        lengths: most tokens of a prompt, questions included; lengths beyond ``max_context`` are left out.
        kinds: some of :data:`KINDS`.
        cases: prompts per kind and length.
        depths: equal stretches of the context, each of which a lookup and a needle prompt asks about once; 1 to 8.
        seed: with tokenizer, text and ``depths`` it decides each prompt, whatever other prompts are drawn.
        max_context: the longest context of the model in tokens.
        text: source of words, prose and tokens; default the evaluation text.

    Raises:
        UsageError: an argument is out of range, or tokenizer, text or length do not allow such a prompt.

    """
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown:
        raise UsageError(f"unknown kind of task {', '.join(unknown)}: choose among {', '.join(KINDS)}")
    if cases < 1:
        raise UsageError(f"cases is {cases}, expected at least 1")
    if not 1 <= depths <= len(_NEEDLES):
        raise UsageError(f"depths is {depths}, expected 1 to {len(_NEEDLES)}")
    if not getattr(tokenizer, "is_fast", False):
        raise UsageError(f"{type(tokenizer).__name__} reports no offsets, tasks need a fast tokenizer")
    fitting = [length for length in lengths if max_context is None or length <= max_context]
    if not fitting:
        raise UsageError(
            f"all task lengths {tuple(lengths)} exceed the model's {max_context} tokens: ask for smaller ones"
        )
    source = TaskSource(tokenizer, text or evaluation_text())
    tasks = []
    for kind in kinds:
        for length in fitting:
            for case in range(cases):
                draw = np.random.default_rng([seed, KINDS.index(kind), length, case])
                ids, questions = _BUILDERS[kind](source, length, depths, draw)
                tasks.append(Task(kind, length, case, tuple(ids), tuple(questions)))
    return tuple(tasks)


_Prompt = tuple[list[int], list[Question]]


def _lookup(source: TaskSource, length: int, depths: int, draw: np.random.Generator) -> _Prompt:
    words = _shuffled(source, length, draw)
    cues, answers = words[1::2], words[::2]
    within, order, spare = draw.random(depths), draw.permutation(depths), draw.random()

    def build(lines: int) -> _Prompt:
        edges = [lines * stretch // depths for stretch in range(depths + 1)]
        asked = [low + int(u * (high - low)) for u, low, high in zip(within, edges, edges[1:], strict=False)]
        unasked = sorted(set(range(lines)) - set(asked))
        text = "".join(f"{line + 1}. {cues[line]} {answers[line]}\n" for line in range(lines)) + "\n"
        spans = []
        for line in [unasked[int(spare * len(unasked))], *(asked[stretch] for stretch in order)]:
            text += f"\n{line + 1}. {cues[line]} "
            spans.append((len(text), len(text) + len(answers[line])))
            text += answers[line]
        ids, tokens = source.encode(text, spans)
        choices = answers[:lines]
        right = [answers[asked[stretch]] for stretch in order]
        return ids, _choices(source, ids, tokens[1:], right, choices, [_middle(stretch, depths) for stretch in order])

    return _longest(build, depths + 1, len(words) // 2, length, "lookup")


def _list(source: TaskSource, length: int, depths: int, draw: np.random.Generator) -> _Prompt:
    words = _shuffled(source, length, draw)

    def build(lines: int) -> _Prompt:
        copy = "".join(f"{line + 1}. {words[line]}\n" for line in range(lines))
        text, spans = copy + "\n", []
        for line in range(lines):
            text += f"{line + 1}. "
            spans.append((len(text), len(text) + len(words[line])))
            text += words[line] + "\n"
        ids, tokens = source.encode(text, spans)
        return ids, _copied(ids, [token for span in tokens[1:] for token in span])

    return _longest(build, 2, len(words), length, "list")


def _copy(source: TaskSource, length: int, depths: int, draw: np.random.Generator) -> _Prompt:
    half = (length - len(source.start)) // 2
    if half < 2:
        raise UsageError(f"{length} tokens are too few for a copy task: it takes at least {4 + len(source.start)}")
    # Tokens that differ leave no doubt which one comes next; small vocabularies do not have enough of them.
    chosen = draw.choice(source.tokens, size=half, replace=half > len(source.tokens)).tolist()
    ids = source.start + chosen + chosen
    return ids, _copied(ids, range(len(ids) - half + 1, len(ids)))


def _needle(source: TaskSource, length: int, depths: int, draw: np.random.Generator) -> _Prompt:
    if not source.sentences:
        raise UsageError(f"{source.text.source} has no plain English sentences to hide a needle in: use more text")
    words = _shuffled(source, length, draw)
    needles = [_NEEDLES[index] for index in draw.permutation(len(_NEEDLES))[:depths]]
    first = int(draw.integers(len(source.sentences)))
    within, order = draw.random(depths), draw.permutation(depths)

    def build(count: int) -> _Prompt:
        prose = [source.sentences[(first + index) % len(source.sentences)] for index in range(count)]
        seen = set(re.findall("[a-z]+", " ".join([*prose, *_NEEDLES]).lower()))
        choices = sorted(words, key=seen.__contains__)[: 2 * depths]  # words that the prose does not hold come first
        ends = np.cumsum([len(sentence) for sentence in prose])
        for stretch in reversed(range(depths)):
            sentence = int(np.searchsorted(ends, (stretch + within[stretch]) / depths * ends[-1]))
            prose.insert(sentence, f"{needles[stretch]} {choices[stretch]}.")
        text, spans = " ".join(prose) + "\n\n", []
        for stretch in order:
            text += needles[stretch] + " "
            spans.append((len(text), len(text) + len(choices[stretch])))
            text += choices[stretch] + ".\n"
        ids, tokens = source.encode(text, spans)
        if len(ids) <= length and (len(choices) < 2 * depths or choices[-1] in seen):
            raise UsageError(_TOO_FEW_WORDS.format(kind="needle", length=length))
        right = [choices[stretch] for stretch in order]
        return ids, _choices(source, ids, tokens, right, choices, [_middle(stretch, depths) for stretch in order])

    return _longest(build, 1, length, length, "needle")


_BUILDERS: dict[str, Callable[[TaskSource, int, int, np.random.Generator], _Prompt]] = {
    "lookup": _lookup,
    "list": _list,
    "copy": _copy,
    "needle": _needle,
}


def _shuffled(source: TaskSource, length: int, draw: np.random.Generator) -> list[str]:
    # Each word stands in a line or sentence of its own, so there are always fewer of them than tokens.
    words = list(source.choices)[: max(_COMMON, length)]
    return [words[index] for index in draw.permutation(len(words))]


def _middle(stretch: int, depths: int) -> float:
    return round((int(stretch) + 0.5) / depths, 3)


def _choices(
    source: TaskSource, ids: list[int], tokens: list[range], right: list[str], choices: list[str], depths: list[float]
) -> list[Question]:
    """Forced choices of the words ``right``, which ``tokens`` of the prompt spell, each at its depth."""
    candidates = tuple(source.choices[word] for word in choices)
    for span, word in zip(tokens, right, strict=True):
        if ids[span.start] != source.choices[word]:
            raise UsageError(
                f"the tokenizer splits {word!r} differently in different places, so no one token can stand for it: "
                "leave out the lookup and needle tasks"
            )
    return [
        Question(span.start - 1, ids[span.start], candidates, depth) for span, depth in zip(tokens, depths, strict=True)
    ]


def _copied(ids: list[int], tokens: Sequence[int]) -> list[Question]:
    """Questions for the given tokens of the prompt, evenly thinned to at most ``_MOST_SCORED``."""
    count = min(len(tokens), _MOST_SCORED)
    return [
        Question(token - 1, ids[token]) for token in (tokens[index * len(tokens) // count] for index in range(count))
    ]


def _longest(build: Callable[[int], _Prompt], least: int, most: int, length: int, kind: str) -> _Prompt:
    """Return the prompt of the most lines or sentences, from ``least`` on, that has at most ``length`` tokens."""

    def size(count: int) -> int:
        return len(build(count)[0])

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
