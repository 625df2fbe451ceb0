"""Tasks: prompts hold the answer where they say, scores tell an oracle from a guesser, rows have intervals."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import tiny
import torch

from taylorder.analysis.text import Text
from taylorder.errors import NonFiniteError, UsageError
from taylorder.evaluation.task_prompts import KINDS, make_tasks, write_prompts
from taylorder.evaluation.tasks import Outcome, Question, Task, answer_logits, run_tasks, score, summarise

LENGTHS = (192, 320)
DEPTHS = 4


@pytest.fixture(scope="module")
def tasks(word_tokenizer, docstrings):
    return make_tasks(word_tokenizer, lengths=LENGTHS, cases=3, depths=DEPTHS, text=docstrings)


class Induction(torch.nn.Module):
    """Predicts what followed the longest earlier match of the last tokens, among the last ``window`` tokens."""

    def __init__(self, vocabulary, window=None):
        super().__init__()
        self.vocabulary, self.window = vocabulary, window

    def forward(self, input_ids, use_cache=False, logits_to_keep: int | torch.Tensor = 0):
        ids = input_ids[0].tolist()
        logits = torch.zeros(1, len(logits_to_keep), self.vocabulary)
        for row, position in enumerate(logits_to_keep.tolist()):
            logits[0, row, self._next(ids[: position + 1])] = 20.0
        return SimpleNamespace(logits=logits)

    __call__ = forward

    def _next(self, seen):
        if self.window is not None:
            seen = seen[-self.window :]
        best, found = 0, seen[-1]
        for end in range(len(seen) - 1):
            length = 0
            while length <= end and length < 24 and seen[end - length] == seen[len(seen) - 1 - length]:
                length += 1
            if length > best:
                best, found = length, seen[end + 1]
        return found


class Constant(torch.nn.Module):
    """Gives every token the same logit; its forward keeps all positions."""

    def __init__(self, vocabulary, value=0.0):
        super().__init__()
        self.vocabulary, self.value = vocabulary, value

    def forward(self, input_ids, use_cache=False):
        return SimpleNamespace(logits=torch.full((1, input_ids.shape[1], self.vocabulary), self.value))

    __call__ = forward


def _of(tasks, *kinds):
    return [task for task in tasks if task.kind in kinds]


def test_every_kind_length_and_case_is_there_once(tasks):
    assert [(task.kind, task.length, task.case) for task in tasks] == [
        (kind, length, case) for kind in KINDS for length in LENGTHS for case in range(3)
    ]


def test_prompts_fill_their_length(tasks):
    for task in tasks:
        assert 0.8 * task.length <= len(task.input_ids) <= task.length


def test_the_seed_decides_and_other_prompts_do_not_matter(word_tokenizer, docstrings, tasks):
    one = make_tasks(word_tokenizer, kinds=["needle"], lengths=[LENGTHS[1]], cases=1, depths=DEPTHS, text=docstrings)
    assert one == tuple(task for task in _of(tasks, "needle") if (task.length, task.case) == (LENGTHS[1], 0))
    other = make_tasks(word_tokenizer, kinds=KINDS, lengths=LENGTHS, cases=3, depths=DEPTHS, text=docstrings, seed=1)
    assert not {task.input_ids for task in other} & {task.input_ids for task in tasks}


def test_answers_follow_their_positions_and_are_among_the_candidates(tasks):
    for task in tasks:
        for question in task.questions:
            assert task.input_ids[question.position + 1] == question.answer
            assert bool(question.candidates) == (task.kind in {"lookup", "needle"})
            assert question.answer in (question.candidates or [question.answer])
            assert len(set(question.candidates)) == len(question.candidates)


def test_an_answer_stands_once_before_its_question_at_the_depth_stated(tasks):
    for task in _of(tasks, "lookup", "needle"):
        # The first question begins after the last context token; the format question of lookup lies between.
        end = min(question.position for question in task.questions) - 12
        assert sorted(question.depth for question in task.questions) == [0.125, 0.375, 0.625, 0.875]
        for question in task.questions:
            before = task.input_ids[: question.position + 1]
            assert before.count(question.answer) == 1
            # Lines and sentences differ in their tokens, hence the margin around the stretch.
            assert abs(before.index(question.answer) / end - question.depth) < 0.125 + 0.1


def test_lookup_asks_for_lines_of_the_list(tasks, word_tokenizer):
    for task in _of(tasks, "lookup"):
        context, asked = word_tokenizer.decode(task.input_ids).split("\n\n\n")
        lines = context.split("\n")
        assert [line.split(". ")[0] for line in lines] == [str(number + 1) for number in range(len(lines))]
        words = Counter(word for line in lines for word in line.split(". ")[1].split(" "))
        assert set(words.values()) == {1}
        assert len(asked.split("\n")) == DEPTHS + 1 == len(set(asked.split("\n")))
        assert set(asked.split("\n")) <= set(lines)
        assert len(task.questions[0].candidates) == len(lines)


def test_a_needle_is_hidden_in_prose_and_asked_for_word_by_word(tasks, word_tokenizer):
    for task in _of(tasks, "needle"):
        prose, asked = word_tokenizer.decode(task.input_ids).rstrip("\n").split("\n\n")
        assert len(asked.split("\n")) == DEPTHS
        for sentence in asked.split("\n"):
            assert prose.count(sentence) == 1
        absent = set(task.questions[0].candidates) - {question.answer for question in task.questions}
        assert len(absent) == DEPTHS
        assert not absent & set(task.input_ids)


def test_the_second_list_is_the_first(tasks, word_tokenizer):
    for task in _of(tasks, "list"):
        first, second = word_tokenizer.decode(task.input_ids).rstrip("\n").split("\n\n")
        assert first == second
        assert [word_tokenizer.decode([q.answer]).strip() for q in task.questions] == [
            line.split(". ")[1] for line in second.split("\n")[1:]
        ]


@pytest.mark.parametrize(("kind", "between"), list(zip(KINDS, ("\n\n\n", "\n\n", "", "\n\n"), strict=True)))
def test_the_context_ends_where_the_prompt_begins_to_ask(tasks, word_tokenizer, kind, between):
    for task in _of(tasks, kind):
        context, asked = map(word_tokenizer.decode, (task.input_ids[: task.context], task.input_ids[task.context :]))
        assert context.endswith(between)
        assert between not in asked.rstrip("\n") or kind == "copy"
        assert min(question.position for question in task.questions) >= task.context
        if kind in ("list", "copy"):
            assert context.removesuffix(between) == asked.rstrip("\n")
        else:
            assert all(line in context for line in asked.rstrip("\n").split("\n"))


def test_the_second_half_of_a_copy_is_the_first(tasks):
    for task in _of(tasks, "copy"):
        half = task.length // 2
        assert task.input_ids[:half] == task.input_ids[half:]
        assert len(set(task.input_ids[:half])) == half
        assert [question.position for question in task.questions] == list(range(half, 2 * half - 1))


def test_long_copies_are_thinned_evenly(word_tokenizer, docstrings):
    (task,) = make_tasks(word_tokenizer, kinds=["copy"], lengths=[2048], cases=1, text=docstrings)
    positions = [question.position for question in task.questions]
    assert len(positions) == 256
    assert positions[0] == 1024
    assert {after - before for before, after in pairwise(positions)} <= {3, 4}


def test_tokens_of_single_characters_make_prompts_too(tiny_tokenizer, docstrings):
    made = make_tasks(
        tiny_tokenizer, kinds=["lookup", "list", "copy"], lengths=[200], cases=1, depths=2, text=docstrings
    )
    made += make_tasks(tiny_tokenizer, kinds=["needle"], lengths=[500], cases=1, depths=2, text=docstrings)
    outcomes = run_tasks(Induction(len(tiny_tokenizer)), made)
    for task in made:
        assert task.length * 0.7 < len(task.input_ids) <= task.length
    assert {outcome.kind for outcome in outcomes if outcome.accuracy == 1.0} >= {"lookup", "needle"}


def test_a_tokenizer_that_begins_every_text_begins_prompts(word_tokenizer, docstrings, tasks):
    beginning = tiny.beginning_with(word_tokenizer, "<s>")
    for task in make_tasks(beginning, lengths=LENGTHS[:1], cases=2, depths=DEPTHS, text=docstrings):
        assert task.input_ids[0] == 1
        assert 1 not in task.input_ids[1:]
        assert len(task.input_ids) <= LENGTHS[0]
        assert score(Induction(len(beginning)), task)[0].accuracy == 1.0
    assert not [task for task in tasks if 1 in task.input_ids]


def test_an_oracle_has_everything_right(tasks, word_tokenizer):
    for outcome in run_tasks(Induction(len(word_tokenizer)), tasks):
        assert (outcome.accuracy, outcome.rank) == (1.0, 1.0)
        assert outcome.nll < 1e-3


def test_equal_logits_score_at_chance(tasks, word_tokenizer):
    for outcome in run_tasks(Constant(len(word_tokenizer)), tasks):
        assert outcome.accuracy == pytest.approx(outcome.chance)
        assert outcome.nll == pytest.approx(-math.log(outcome.chance), rel=1e-5)
        assert outcome.rank == pytest.approx((1 + 1 / outcome.chance) / 2)


def test_the_oracle_fails_when_it_sees_the_last_tokens_only(tasks, word_tokenizer):
    near = run_tasks(Induction(len(word_tokenizer), window=24), tasks)
    for kind in KINDS:
        shares = [outcome.accuracy for outcome in near if outcome.kind == kind]
        assert sum(shares) / len(shares) < 0.25


def test_one_outcome_for_each_depth_in_order(tasks, word_tokenizer):
    outcomes = score(Induction(len(word_tokenizer)), _of(tasks, "lookup")[0])
    assert [outcome.depth for outcome in outcomes] == [0.125, 0.375, 0.625, 0.875]
    assert [outcome.questions for outcome in outcomes] == [1] * DEPTHS
    (whole,) = score(Induction(len(word_tokenizer)), _of(tasks, "copy")[0])
    assert (whole.depth, whole.questions) == (None, 95)


def test_rank_and_nll_are_over_the_candidates():
    logits = torch.tensor([9.0, 1.0, 3.0, 2.0, 1.0])
    model = Constant(5)
    model.forward = lambda input_ids, use_cache=False: SimpleNamespace(logits=logits.expand(1, input_ids.shape[1], 5))
    model.__class__ = type("Given", (Constant,), {"__call__": lambda self, **kwargs: self.forward(**kwargs)})
    task = Task("lookup", 4, 0, (0, 3), (Question(0, 3, (1, 2, 3), 0.5),), 1)
    (outcome,) = score(model, task)
    assert (outcome.accuracy, outcome.rank, outcome.chance) == (0.0, 2.0, 1 / 3)
    assert outcome.nll == pytest.approx(float(logits[1:4].logsumexp(0) - 2.0))
    (open_choice,) = score(model, replace(task, questions=(Question(0, 3),)))
    assert (open_choice.rank, open_choice.chance) == (3.0, 1 / 5)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_only_the_logits_of_the_answers_are_computed(name):
    model = tiny.TINY[name]()
    ids = tiny.tokens()[0].tolist()
    with torch.inference_mode():
        full = model(torch.tensor([ids])).logits[0]
    assert torch.allclose(answer_logits(model, ids, [3, 20, 7]), full[[3, 20, 7]], atol=1e-5)
    assert answer_logits(model, ids, [3]).shape == (1, tiny.VOCAB)


def test_a_random_model_runs(tiny_tokenizer, docstrings):
    made = make_tasks(tiny_tokenizer, kinds=["copy"], lengths=[32, 64, 128], max_context=tiny.CONTEXT, text=docstrings)
    done = []
    outcomes = run_tasks(tiny.llama(), made, progress=lambda count, total: done.append((count, total)))
    assert [task.length for task in made] == [32] * 4 + [64] * 4
    assert done == [(count, 8) for count in range(1, 9)]
    assert all(0 <= outcome.accuracy <= 1 and outcome.nll > 0 for outcome in outcomes)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_model_that_breaks_down_is_named(tasks, word_tokenizer, value):
    with pytest.raises(NonFiniteError, match="task lookup, case 0 at 192 tokens are not finite"):
        score(Constant(len(word_tokenizer), value), tasks[0])


def _outcome(kind, length, depth, case, accuracy, nll=1.0):
    return Outcome(kind, length, depth, case, 1, accuracy, 1.0, nll, 0.1)


def _run(kind, length, per_case):
    return [
        _outcome(kind, length, depth, case, accuracy, 2 - accuracy)
        for case, right in enumerate(per_case)
        for depth, accuracy in zip((0.25, 0.75), right, strict=True)
    ]


def test_rows_hold_all_depths_and_each():
    exact = _run("lookup", 256, [(1, 1), (1, 0), (1, 1)]) + _run("lookup", 512, [(0, 1), (1, 0), (0, 1)])
    other = _run("lookup", 256, [(1, 0), (0, 0), (1, 0)]) + _run("lookup", 512, [(0, 1), (1, 0), (0, 1)])
    rows = summarise(exact, other)
    assert [(row.length, row.depth) for row in rows] == [
        (256, None), (256, 0.25), (256, 0.75), (512, None), (512, 0.25), (512, 0.75),
    ]  # fmt: skip
    whole, near, far = rows[:3]
    assert (whole.cases, whole.questions, near.cases, near.questions) == (3, 6, 3, 3)
    assert whole.exact_accuracy.estimate == pytest.approx(5 / 6)
    assert whole.other_accuracy.estimate == pytest.approx(2 / 6)
    assert whole.accuracy_difference.estimate == pytest.approx(-0.5)
    assert whole.nll_difference.estimate == pytest.approx(0.5)
    assert near.exact_accuracy.estimate == 1.0
    assert 0 < near.exact_accuracy.low < 1.0
    assert far.other_accuracy.estimate == 0.0


def test_what_the_exact_model_cannot_do_is_flagged_at_all_depths_of_the_length():
    exact = _run("lookup", 256, [(1, 1), (1, 0)]) + _run("lookup", 512, [(0, 1), (0, 1)])
    rows = summarise(exact, exact)
    assert [row.exact_cannot for row in rows] == [False] * 3 + [True] * 3


def test_a_run_compared_with_itself_does_not_differ(tasks, word_tokenizer):
    outcomes = run_tasks(Induction(len(word_tokenizer), window=100), tasks)
    for row in summarise(outcomes, outcomes):
        for difference in (row.accuracy_difference, row.nll_difference):
            assert (difference.estimate, difference.low, difference.high) == (0.0, 0.0, 0.0)


def test_rows_of_oracle_and_guesser(tasks, word_tokenizer):
    oracle, guesser = (run_tasks(kind(len(word_tokenizer)), tasks) for kind in (Induction, Constant))
    rows = summarise(oracle, guesser)
    assert [(row.kind, row.length) for row in rows if row.depth is None] == [(k, n) for k in KINDS for n in LENGTHS]
    assert not [row for row in rows if row.exact_cannot]
    for row in rows:
        assert row.accuracy_difference.high < 0 < row.nll_difference.low
        assert row.exact_rank < row.other_rank
    assert all(row.exact_cannot for row in summarise(guesser, oracle))


def test_runs_of_different_tasks_are_not_compared():
    exact = _run("lookup", 256, [(1, 1), (1, 0)])
    with pytest.raises(ValueError, match=r"\(4 and 3\) are of different tasks"):
        summarise(exact, exact[:3])
    with pytest.raises(ValueError, match="different tasks"):
        summarise(exact, exact[::-1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": ["lookup", "riddle"]}, "unknown kind of task riddle: choose among lookup, list, copy, needle"),
        ({"cases": 0}, "cases is 0, expected at least 1"),
        ({"depths": 9}, "depths is 9, expected 1 to 8"),
        ({"lengths": (256, 512), "max_context": 128}, r"lengths \(256, 512\) exceed the model's 128 tokens"),
        ({"lengths": (20,), "kinds": ["lookup"]}, r"20 tokens are too few for a lookup task: it takes at least \d+"),
        ({"lengths": (20,), "kinds": ["needle"]}, r"20 tokens are too few for a needle task: it takes at least \d+"),
        ({"lengths": (3,), "kinds": ["copy"]}, "3 tokens are too few for a copy task: it takes at least 4"),
    ],
)
def test_what_cannot_be_asked_is_refused(word_tokenizer, docstrings, options, message):
    with pytest.raises(UsageError, match=message):
        make_tasks(word_tokenizer, text=docstrings, **options)


@pytest.mark.parametrize("kind", ["lookup", "list"])
def test_too_few_words_are_refused(tiny_tokenizer, docstrings, kind):
    with pytest.raises(UsageError, match=f"too few words with different first tokens for a {kind} task of 2048"):
        make_tasks(tiny_tokenizer, kinds=[kind], lengths=[2048], text=docstrings)


def test_a_text_without_prose_is_refused(word_tokenizer):
    with pytest.raises(UsageError, match="numbers has no plain English sentences"):
        make_tasks(word_tokenizer, kinds=["needle"], text=Text("numbers", "1 2 3 4"))


def test_a_tokenizer_without_offsets_is_refused():
    with pytest.raises(UsageError, match="SimpleNamespace reports no offsets"):
        make_tasks(SimpleNamespace(is_fast=False))


@pytest.mark.builtin
def test_the_built_in_model_can_do_all_of_them(builtin):
    made = make_tasks(builtin.tokenizer, lengths=[256], cases=2)
    outcomes = run_tasks(builtin.model, made)
    rows = [row for row in summarise(outcomes, outcomes) if row.depth is None]
    assert [row.kind for row in rows] == list(KINDS)
    assert not [row.kind for row in rows if row.exact_cannot]


@pytest.mark.parametrize("kind", ["lookup", "list", "needle"])
def test_prompts_as_text_are_those_of_the_tasks(word_tokenizer, docstrings, kind):
    """What a harness that tokenizes by itself is given asks what the tasks ask."""
    written = list(write_prompts(word_tokenizer, kind, lengths=LENGTHS, text=docstrings))
    tasks = make_tasks(word_tokenizer, kinds=[kind], lengths=LENGTHS, text=docstrings)
    assert [length for length, _ in written] == [task.length for task in tasks]
    for (_, prompt), task in zip(written, tasks, strict=True):
        assert word_tokenizer(prompt.text, add_special_tokens=False).input_ids == list(task.input_ids)
        for answer, question in zip(prompt.answers, task.questions, strict=True):
            word = prompt.text[answer.start : answer.end]
            assert prompt.text[answer.start - 1] == " "
            assert word_tokenizer.decode(question.answer).strip() == word
            assert answer.depth == question.depth
            assert len(answer.choices) == len(question.candidates)
            assert not answer.choices or word in answer.choices
