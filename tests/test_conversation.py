"""A conversation: its turns are those of the chat template, and its cache is given every token once."""

import filecmp
import itertools

import pytest
import torch
from talking import TEMPLATE, conversation, said, small_config, talker, with_template
from transformers import DynamicCache

import taylorder
from taylorder.adapt.cache import TaylorCache
from taylorder.adapt.chat_turns import closing_tokens, turn_tokens
from taylorder.adapt.continuation import Sampling
from taylorder.errors import UnsupportedModelError, UsageError
from taylorder.models.running import next_logits

TURNS = ("What now?", "Why is that?", "Go on, then.")


@pytest.fixture
def model():
    return talker()


@pytest.fixture
def tokenizer(tiny_tokenizer):
    return with_template(tiny_tokenizer)


def test_turn_by_turn_gives_the_tokens_of_the_whole_template(model, tokenizer):
    chat = conversation(model, tokenizer, system="Be brief.", sampling=Sampling(20))
    answers = [said(chat.answer(turn)) for turn in TURNS]
    assert all(answers)
    roles = ["system", *("user", "assistant") * 3]
    spoken = ["Be brief.", *itertools.chain(*zip(TURNS, answers, strict=True))]
    assert chat.messages == [{"role": role, "content": text} for role, text in zip(roles, spoken, strict=True)]
    whole = tokenizer.apply_chat_template(chat.messages, return_dict=False)
    assert chat.tokens == whole[:-1]
    assert whole[-1] == tokenizer.eos_token_id  # what closes an answer comes with the next turn


def test_every_token_is_fed_once_and_the_cache_holds_what_one_pass_makes(model, tokenizer):
    fed = []
    model.register_forward_pre_hook(
        lambda _, __, options: fed.extend(options["input_ids"][0].tolist()), with_kwargs=True
    )
    chat = conversation(model, tokenizer, sampling=Sampling(20))
    for turn in TURNS:
        said(chat.answer(turn))
    assert fed == chat.tokens[: chat.fed]
    assert chat.cache.get_seq_length() == chat.fed >= len(chat.tokens) - 1
    afresh = TaylorCache(model, small_config(model))
    more = torch.tensor([[9, 10, 11]])
    with taylorder.adapted(model, small_config(model)):
        next_logits(model, torch.tensor([chat.tokens[: chat.fed]]), afresh)
        expected, found = (next_logits(model, more, cache) for cache in (afresh, chat.cache))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert (next_logits(model, more, DynamicCache(config=model.config)) - expected).abs().max() > 1e-2


def test_the_model_runs_adapted_only_while_it_answers(model, tokenizer):
    chat = conversation(model, tokenizer, sampling=Sampling(4))
    ids = torch.tensor([[9, 10, 11] * 9])
    before = model(ids).logits
    pieces = chat.answer(TURNS[0])
    next(pieces)
    assert not torch.equal(model(ids).logits, before)
    pieces.close()
    assert torch.equal(model(ids).logits, before)


def test_exact_answers_the_last_turn_as_the_model_would_and_leaves_the_conversation(model, tokenizer, tmp_path):
    chat, twin = (conversation(model, tokenizer, sampling=Sampling(20, 0.7, seed=3)) for _ in range(2))
    for turn in TURNS[:2]:
        assert said(chat.answer(turn)) == said(twin.answer(turn))
    asked = chat.tokens[: len(chat.tokens) - len(chat.turns[-1].answer.tokens)]
    tokens, fed = list(chat.tokens), chat.fed
    chat.cache.save(tmp_path / "before")
    text = said(chat.exact())
    chat.cache.save(tmp_path / "after")
    assert filecmp.cmp(tmp_path / "before", tmp_path / "after", shallow=False)
    assert (chat.tokens, chat.fed) == (tokens, fed)
    exact = chat.turns[-1].exact
    assert exact.text == text != chat.turns[-1].answer.text
    assert exact.prompt_tokens == len(asked)
    assert exact.cache_bytes == exact.nominal_bytes * 2 > chat.turns[-1].answer.nominal_bytes  # float32, all keys
    assert said(chat.answer(TURNS[2])) == said(twin.answer(TURNS[2]))


def test_greedy_exact_tokens_are_those_of_generate(model, tokenizer):
    chat = conversation(model, tokenizer, sampling=Sampling(12))
    said(chat.answer(TURNS[0]))
    ids = torch.tensor([turn_tokens(tokenizer, [{"role": "user", "content": TURNS[0]}])])
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    said(chat.exact())
    assert list(chat.turns[0].exact.tokens) == [token for token in made[0, ids.shape[1] :].tolist() if token != 2]


def test_a_stopped_answer_stays_as_it_is_and_the_conversation_goes_on(model, tokenizer):
    chat = conversation(model, tokenizer, sampling=Sampling(24, 0.5))
    pieces = chat.answer(TURNS[0])
    begun = next(pieces) + next(pieces)
    pieces.close()
    answer = chat.turns[0].answer
    assert (answer.text, answer.stopped, len(answer.tokens)) == (begun, "interrupted", 2)
    assert chat.fed == len(chat.tokens) - 1
    said(chat.answer(TURNS[1]))
    assert tokenizer.apply_chat_template(chat.messages, return_dict=False)[: len(chat.tokens)] == chat.tokens


def test_stopped_while_the_turn_is_read_nothing_is_lost(model, tokenizer, monkeypatch):
    monkeypatch.setattr("taylorder.adapt.continuation.PROMPT_CHUNK", 5)
    chat = conversation(model, tokenizer, sampling=Sampling(8))
    pieces = chat.answer(TURNS[0])
    assert next(pieces) == ""
    pieces.close()
    assert (chat.fed, chat.turns[0].answer.text) == (5, "")
    said(chat.answer(TURNS[1]))
    assert tokenizer.apply_chat_template(chat.messages, return_dict=False)[: len(chat.tokens)] == chat.tokens
    assert chat.cache.get_seq_length() == chat.fed > 40


def test_a_full_context_cuts_the_answer_and_refuses_the_next_turn(tokenizer):
    model = talker(context=48)
    chat = conversation(model, tokenizer, sampling=Sampling(100, 0.5))
    with pytest.raises(UsageError, match="has 0 tokens and this turn 70 more, but the model sees 48 at most"):
        said(chat.answer("x" * 50))
    assert (chat.tokens, chat.turns) == ([], [])
    said(chat.answer("abc"))
    assert (chat.turns[0].answer.stopped, chat.room) == ("length", 0)
    held = chat.cache.nbytes()
    with pytest.raises(UsageError, match="say less, or begin another conversation"):
        said(chat.answer("x"))
    assert (len(chat.turns), chat.cache.nbytes()) == (1, held)


def test_without_a_template_turns_follow_each_other_as_they_stand(model, tiny_tokenizer):
    chat = conversation(model, tiny_tokenizer, system="A play.", sampling=Sampling(9))
    answers = [said(chat.answer(turn)) for turn in TURNS[:2]]
    text = f"A play.\n{TURNS[0]}{answers[0]}\n{TURNS[1]}{answers[1]}"
    assert chat.tokens == tiny_tokenizer(text).input_ids
    assert closing_tokens(tiny_tokenizer) == set()


def test_what_a_template_changes_in_earlier_answers_is_not_changed_in_the_cache(model, tokenizer):
    """As templates do that leave out what a model thought before it answered."""
    tokenizer.chat_template = TEMPLATE.replace("message.content", "message.content | trim | upper")
    chat = conversation(model, tokenizer, sampling=Sampling(9))
    answer = said(chat.answer("a"))
    said(chat.answer("b"))
    assert tokenizer.decode(chat.tokens).startswith(
        f"<s>user: A</s><s>assistant: {answer}</s><s>user: B</s><s>assistant: "
    )


def test_an_answer_also_ends_with_what_the_template_closes_it_with(tokenizer):
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}<unk>{% endfor %}"
    assert closing_tokens(tokenizer) == {3}


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{{ raise_exception('no system role') if messages[0].role == 'system' }}" + TEMPLATE,
            r"takes no such turns \(no system role\); leave the system text out",
        ),
        ("{{ messages[0].content }}", "the chat template of the tokenizer leaves answers out; choose another model"),
        ("{{ nothing.at.all }}", r"takes no such turns \('nothing' is undefined\); choose another model"),
    ],
)
def test_templates_that_cannot_be_used_are_refused(model, tokenizer, template, message):
    tokenizer.chat_template = template
    with pytest.raises(UsageError, match=message):
        said(conversation(model, tokenizer, system="x").answer("y"))


def test_models_without_a_head_and_turns_without_tokens_are_refused(model, tokenizer, tiny_tokenizer):
    with pytest.raises(UsageError, match="nothing has been said yet"):
        said(conversation(model, tokenizer).exact())
    with pytest.raises(UsageError, match="has a token for"):
        said(conversation(model, tiny_tokenizer).answer(""))
    with pytest.raises(UnsupportedModelError, match="LlamaModel generates no text"):
        conversation(model.model, tokenizer)
