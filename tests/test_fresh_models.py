"""Models trained from scratch: the task, the contenders, and the attention they are trained with."""

from __future__ import annotations

import math

import pytest
import torch
from fresh_models.answering import answering_rows
from fresh_models.contenders import BY_NAME, CONTENDERS, shifted
from fresh_models.models import attached, guard_of, recall_model
from fresh_models.recall import KEYS, Recall
from fresh_models.recall_run import answered
from fresh_models.training import Schedule, train
from torch.nn.functional import cross_entropy

TASK = Recall(3)


def batch(seed=0, sequences=16, task=TASK):
    return task.batch(sequences, torch.Generator().manual_seed(seed))


def started(name, head_dim=8):
    torch.manual_seed(0)
    model = recall_model(head_dim)
    return model, attached(model, BY_NAME[name])


def test_the_answer_to_a_question_is_the_value_that_stood_behind_its_key():
    drawn = batch(task=Recall(8))
    for words, asked, answers in zip(drawn.words.tolist(), drawn.asked.tolist(), drawn.answers.tolist(), strict=True):
        pairs = dict(zip(words[0:16:2], words[1:16:2], strict=True))
        assert len(pairs) == 8
        assert all(0 < key <= KEYS < value for key, value in pairs.items())
        assert {words[place]: answer for place, answer in zip(asked, answers, strict=True)} == pairs
        assert sum(word > 0 for word in words) == 4 * 8  # blank but for pairs and questions


def test_sequences_are_those_of_their_seed_and_no_batch_comes_twice():
    stream = TASK.batches(1)
    first, second = next(stream), next(stream)
    assert torch.equal(first.words, next(TASK.batches(1)).words)
    assert not torch.equal(first.words, second.words)
    assert first.words.numel() == 4096
    assert Recall(32).length == 256


def test_denominators_and_largest_weights_are_those_of_rows_that_answer():
    model, handle = started("order 2")
    handle.close()
    drawn = batch()
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight.zero_()  # scores of 0: a plain mean
    heads = answering_rows(model, BY_NAME["order 2"], drawn)
    assert len(heads) == 4
    plain = heads["model.layers.0.self_attn", 1]
    assert plain["denominator"] == pytest.approx(1.0)
    assert plain["largest"] == pytest.approx(float((1 / (drawn.asked + 1).double()).median()))
    assert heads["model.layers.1.self_attn", 0]["denominator"] != pytest.approx(1.0, abs=1e-6)
    window = answering_rows(model, BY_NAME["window"], drawn)["model.layers.0.self_attn", 0]
    assert window == {"largest": pytest.approx(1 / 18), "denominator": None}


@pytest.mark.parametrize("name", BY_NAME)
def test_a_contender_learns_from_its_first_steps(name):
    model, _ = started(name)
    drawn = batch()

    def loss():
        return cross_entropy(answered(model, drawn).flatten(0, 1), drawn.answers.flatten())

    before = loss().item()
    course = train(model, loss, lambda: -loss().item(), Schedule(6, 1e-3, 3))
    assert [step for step, _ in course.curve] == [3, 6]
    assert -course.curve[-1][1] < before


@pytest.mark.parametrize("name", ["order 3", "window", "order 2 mean"])
def test_attention_is_the_contenders_own(name):
    model, handle = started(name)
    drawn = batch()
    with torch.no_grad():
        # The scores of a fresh model hardly differ, and every kind of attention is a plain mean there.
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.mul_(40)
        theirs = answered(model, drawn)
        handle.close()
        assert (answered(model, drawn) - theirs).abs().max() > 1e-3


def test_all_coordinates_are_the_full_order():
    model, handle = started("order 3 rank 8")
    drawn = batch()
    with torch.no_grad():
        ranked = answered(model, drawn)
        handle.close()
        attached(model, BY_NAME["order 3"])
        assert torch.allclose(answered(model, drawn), ranked, atol=1e-6)


def test_trained_coefficients_move_and_are_applied():
    model, _ = started("order 4 learnt")
    drawn = batch()
    rows = model.model.layers[1].self_attn.coefficients
    assert rows.tolist()[0] == pytest.approx([1, 1, 1 / 2, 1 / 6])
    loss = cross_entropy(answered(model, drawn).flatten(0, 1), drawn.answers.flatten())
    loss.backward()
    assert rows.grad.abs().sum() > 0
    with torch.no_grad():
        before = answered(model, drawn)
        rows[:, 1] = -3.0
        assert not torch.allclose(answered(model, drawn), before)


@pytest.mark.parametrize(("order", "shift"), [(2, 4.0), (4, 3.0)])
def test_a_shifted_order_expands_around_a_point_below_all_scores(order, shift):
    coefficients = shifted(order, shift).polynomial
    for x in (-shift, -1.0, 0.0, 2.5):
        value = sum(c * x**p for p, c in enumerate(coefficients))
        assert value == pytest.approx(sum((x + shift) ** p / math.factorial(p) for p in range(order)))
        assert value > 0


def test_bytes_are_those_of_what_is_held():
    held = {contender.name: contender.state_bytes(16, 64) for contender in CONTENDERS}
    assert held["softmax"] == 64 * 32 * 2
    assert held["window"] == 18 * 32 * 2
    assert held["order 2"] == held["order 2 mean"] == 17 * 17 * 4
    assert held["order 3 beside window"] == held["order 3"] + held["window"]
    assert held["order 3 rank 4"] == (1 + 16 + 10) * 17 * 4


def test_training_stops_when_it_is_enough():
    model, _ = started("softmax")
    drawn = batch()
    course = train(
        model, lambda: answered(model, drawn).square().mean(), lambda: 1.0, Schedule(50, 1e-3, 2, enough=0.99)
    )
    assert course.steps == 2


def test_training_breaks_off_at_a_gradient_that_is_no_number():
    model, _ = started("softmax")
    drawn = batch()
    factors = iter([1.0, 1.0, math.nan])
    course = train(
        model, lambda: next(factors) * answered(model, drawn).square().mean(), lambda: 0.5, Schedule(50, 1e-3, 20)
    )
    assert (course.broke_off, course.curve) == (3, [(3, 0.5)])
    assert all(weight.isfinite().all() for weight in model.parameters())


@pytest.mark.parametrize("gradients", [False, True])
def test_without_guard_a_row_keeps_its_denominator(gradients):
    rows = {}
    for name in ("order 2", "order 2 unguarded"):
        model, handle = started(name)
        with torch.no_grad():
            for layer in model.model.layers:
                layer.self_attn.q_proj.weight.mul_(40)
        with torch.set_grad_enabled(gradients), guard_of(BY_NAME[name]):
            rows[name] = answered(model, batch())
        hits = sum(int(of_heads.sum()) for of_heads in handle.counts.guarded_rows.values())
        assert (hits > 0) == BY_NAME[name].guard
    assert not torch.allclose(*rows.values())


def test_the_rate_rises_to_its_largest_and_falls_to_nothing():
    schedule = Schedule(100, 1.0, 10)
    factors = [schedule.factor(step) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[9] == 1.0
    assert factors[-1] < 1e-3
