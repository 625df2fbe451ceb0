"""Sequences of tokens: consecutive, drawn without replacement, begun with BOS where the tokenizer does so."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import beginning_with

from taylorder.analysis.text import Text
from taylorder.analysis.tokens import Tokens, beginning, tokenise
from taylorder.errors import UsageError
from taylorder.evaluation.task_source import TaskSource

NUMBERS = Text("numbers", "")
PROSE = Text("prose", "Whatever is worth doing at all is worth doing well. " * 20)


def tokens(count, bos=None, unknown=None):
    return Tokens(NUMBERS, list(range(count)), bos, unknown)


def test_sequences_are_drawn_in_order_without_replacement():
    drawn = tokens(1003).draw(10, 40, seed=0)
    assert drawn.dtype == torch.int64
    assert drawn.shape == (40, 10)
    first = drawn[:, 0]
    assert (first.diff() > 0).all()
    assert (first % 10 == 0).all()
    assert torch.equal(drawn, first[:, None] + torch.arange(10))


def test_the_seed_decides_which():
    again = [tokens(1000).draw(10, 20, seed) for seed in (3, 3, 4)]
    assert torch.equal(again[0], again[1])
    assert not torch.equal(again[0], again[2])


def test_all_sequences_are_the_consecutive_cut():
    assert torch.equal(tokens(35).draw(10, 3, 7), torch.arange(30).view(3, 10))
    assert torch.equal(tokens(35).first(10, 1000), torch.arange(30).view(3, 10))
    assert torch.equal(tokens(35).first(10, 29), torch.arange(20).view(2, 10))


@pytest.mark.parametrize(
    ("length", "count", "message"),
    [
        (10, 4, r"numbers: 35 tokens give 3 sequences of 10, 4 are asked for; use more text, fewer sequences"),
        (1, 1, "sequence length is 1, expected at least 2"),
        (10, 0, "number of sequences is 0, expected at least 1"),
    ],
)
def test_what_cannot_be_drawn_is_refused(length, count, message):
    with pytest.raises(UsageError, match=message):
        tokens(35).draw(length, count, 0)


@given(st.integers(1, 6), st.integers(2, 40), st.integers(0, 5))
def test_bos_takes_the_place_of_the_first_token_and_the_predicted_tokens_stay(count, length, seed):
    plain, begun = tokens(300), tokens(300, bos=999)
    for cut in (lambda text: text.first(length, count * length), lambda text: text.draw(length, count, seed)):
        assert (cut(begun)[:, 0] == 999).all()
        assert torch.equal(cut(begun)[:, 1:], cut(plain)[:, 1:])


def test_a_text_begins_as_its_tokenizer_begins_it(tiny_tokenizer):
    assert beginning(tiny_tokenizer) is None
    assert beginning(beginning_with(tiny_tokenizer, "<s>")) == 1
    assert beginning(beginning_with(tiny_tokenizer, "</s>")) is None  # something else, as [CLS] of an encoder
    assert beginning(SimpleNamespace()) is None
    cut = tokenise(beginning_with(tiny_tokenizer, "<s>"), PROSE).first(16, 64)
    assert cut[:, 0].tolist() == [1] * 4
    assert torch.equal(cut[:, 1:], tokenise(tiny_tokenizer, PROSE).first(16, 64)[:, 1:])


def test_prompts_of_tasks_begin_alike(tiny_tokenizer):
    assert TaskSource(beginning_with(tiny_tokenizer, "<s>"), PROSE).start == [1]
    assert TaskSource(tiny_tokenizer, PROSE).start == []


@pytest.mark.parametrize("content", ["a" * 4000, "\0" * 4000, "ab" * 2000, "\u6ce8" * 4000, "\u6ce8\u610f " * 1000])
def test_text_of_a_handful_of_different_tokens_is_refused(tiny_tokenizer, content):
    text = tokenise(tiny_tokenizer, Text("odd.txt", content))
    for cut in (lambda: text.first(64, 256), lambda: text.draw(64, 4, 0)):
        with pytest.raises(
            UsageError, match=r"odd.txt is made of \d different tokens.*expected at least 16.*use prose"
        ):
            cut()


def test_the_refusal_names_a_text_that_the_tokenizer_does_not_know(tiny_tokenizer):
    with pytest.raises(UsageError, match=r"100% of it unknown to the tokenizer"):
        tokenise(tiny_tokenizer, Text("cjk.txt", "\u6ce8" * 4000)).first(64, 256)


def test_a_short_text_needs_an_eighth_as_many_different_tokens_as_it_has():
    ids = [5, 6, 7, 8] * 8
    assert Tokens(NUMBERS, ids, None).first(32, 32).tolist() == [ids]
    with pytest.raises(UsageError, match="4 different tokens, expected at least 5"):
        Tokens(NUMBERS, ids + ids, None).first(40, 40)


def test_the_share_of_unknown_tokens(tiny_tokenizer):
    text = tokenise(tiny_tokenizer, Text("mixed", "abcdefghijklmnopqrstuvwxyz\u6ce8\u6ce8" * 10))
    assert text.unknown_share(text.first(28, 280)) == pytest.approx(2 / 28)
    assert tokens(300).unknown_share(tokens(300).first(10, 100)) == 0
