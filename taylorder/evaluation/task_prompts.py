"""Prompts of the tasks in :mod:`taylorder.evaluation.tasks`, drawn from a seed, for models of 100M parameters.

=======  ===============================================================================================================
lookup   A prompt of :mod:`taylorder.evaluation.written_prompts`; forced choice of the second word of a line.
list     Another of these: every token of the words of the second copy.
copy     Random tokens, then the same again: the tokens of the second half, the first one left out.
needle   Another of these; forced choice of the word of an odd sentence.
=======  ===============================================================================================================

One prompt asks at every depth, because one forward pass costs the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from taylorder.analysis.text import Text
from taylorder.errors import UsageError
from taylorder.evaluation.evaluation_text import evaluation_text
from taylorder.evaluation.task_source import TaskSource
from taylorder.evaluation.tasks import Question, Task
from taylorder.evaluation.written_prompts import NEEDLES, WRITERS, WrittenPrompt

KINDS = ("lookup", "list", "copy", "needle")
LENGTHS = (256, 512, 1024)
CASES = 4
DEPTHS = 5

_MOST_SCORED = 256  # answers scored per copy, evenly spaced, which bounds the memory of their logits


def prompt_tokens(max_context: int) -> int:
    """About how many tokens all prompts have together, unless asked for others."""
    return len(KINDS) * CASES * sum(length for length in LENGTHS if length <= max_context)


def make_tasks(
    tokenizer: Any,
    *,
    lengths: Sequence[int] = LENGTHS,
    kinds: Sequence[str] = KINDS,
    cases: int = CASES,
    depths: int = DEPTHS,
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
    _check(kinds, cases, depths)
    source = _source(tokenizer, text)
    tasks = []
    for drawn in _draws(kinds, _fitting(lengths, max_context), cases, seed):
        if drawn.kind == "copy":
            ids, questions, context = _copy(source, drawn.length, drawn.generator)
        else:
            ids, questions, context = _asked(source, drawn.written(source, depths))
        tasks.append(Task(drawn.kind, drawn.length, drawn.case, tuple(ids), tuple(questions), context))
    return tuple(tasks)


def write_prompts(
    tokenizer: Any, kind: str, *, lengths: Sequence[int] = LENGTHS, text: Text | None = None
) -> Iterator[tuple[int, WrittenPrompt]]:
    """Draw the prompts of :func:`make_tasks` of one kind as text, each with its length; ``copy`` has none.

    Raises:
        UsageError: as :func:`make_tasks` does.

    """
    source = _source(tokenizer, text)
    for drawn in _draws((kind,), lengths, CASES, seed=0):
        yield drawn.length, drawn.written(source, DEPTHS)


@dataclass(frozen=True)
class _Draw:
    """A prompt to be made."""

    kind: str
    length: int
    case: int
    generator: np.random.Generator

    def written(self, source: TaskSource, depths: int) -> WrittenPrompt:
        return WRITERS[self.kind](source, self.length, depths, self.generator)


def _draws(kinds: Sequence[str], lengths: Sequence[int], cases: int, seed: int) -> Iterator[_Draw]:
    for kind in kinds:
        for length in lengths:
            for case in range(cases):
                yield _Draw(kind, length, case, np.random.default_rng([seed, KINDS.index(kind), length, case]))


def _check(kinds: Sequence[str], cases: int, depths: int) -> None:
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown:
        raise UsageError(f"unknown kind of task {', '.join(unknown)}: choose among {', '.join(KINDS)}")
    if cases < 1:
        raise UsageError(f"cases is {cases}, expected at least 1")
    if not 1 <= depths <= len(NEEDLES):
        raise UsageError(f"depths is {depths}, expected 1 to {len(NEEDLES)}")


def _fitting(lengths: Sequence[int], max_context: int | None) -> list[int]:
    fitting = [length for length in lengths if max_context is None or length <= max_context]
    if not fitting:
        raise UsageError(
            f"all task lengths {tuple(lengths)} exceed the model's {max_context} tokens: ask for smaller ones"
        )
    return fitting


def _source(tokenizer: Any, text: Text | None) -> TaskSource:
    if not getattr(tokenizer, "is_fast", False):
        raise UsageError(f"{type(tokenizer).__name__} reports no offsets, tasks need a fast tokenizer")
    return TaskSource(tokenizer, text or evaluation_text())


def _copy(source: TaskSource, length: int, draw: np.random.Generator) -> tuple[list[int], list[Question], int]:
    half = (length - len(source.start)) // 2
    if half < 2:
        raise UsageError(f"{length} tokens are too few for a copy task: it takes at least {4 + len(source.start)}")
    # Tokens that differ leave no doubt which one comes next; small vocabularies do not have enough of them.
    chosen = draw.choice(source.tokens, size=half, replace=half > len(source.tokens)).tolist()
    ids = source.start + chosen + chosen
    return ids, _copied(ids, range(len(ids) - half + 1, len(ids))), len(ids) - half


def _asked(source: TaskSource, prompt: WrittenPrompt) -> tuple[list[int], list[Question], int]:
    """The tokens of a written prompt, its questions (forced choices, or every token of the answers), its context."""
    words = [(answer.start, answer.end) for answer in prompt.answers]
    # A token that begins in the context and ends in what is asked is part of what is asked.
    ids, (first, *spans) = source.encode(prompt.text, [(prompt.context, prompt.context + 1), *words])
    if not prompt.answers[0].choices:
        return ids, _copied(ids, [token for span in spans for token in span]), first.start
    questions = []
    for span, answer in zip(spans, prompt.answers, strict=True):
        word = prompt.text[answer.start : answer.end]
        if ids[span.start] != source.choices[word]:
            raise UsageError(
                f"the tokenizer splits {word!r} differently in different places, so no one token can stand for it: "
                "leave out the lookup and needle tasks"
            )
        candidates = tuple(source.choices[choice] for choice in answer.choices)
        questions.append(Question(span.start - 1, ids[span.start], candidates, answer.depth))
    return ids, questions, first.start


def _copied(ids: list[int], tokens: Sequence[int]) -> list[Question]:
    """Questions for the given tokens of the prompt, evenly thinned to at most ``_MOST_SCORED``."""
    count = min(len(tokens), _MOST_SCORED)
    return [
        Question(token - 1, ids[token]) for token in (tokens[index * len(tokens) // count] for index in range(count))
    ]
