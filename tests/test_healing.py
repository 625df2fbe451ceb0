"""Trainings: what a step reads, what is kept of it and goes on where it was, and that nothing is left in the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from healing_cases import SEEN, course, polynomials, settings, student_of, trained_alone
from keeping_configs import small
from tiny import TINY, WITH_TERMS, gpt_bigcode, llama, tokens
from torch.nn.functional import cross_entropy

from taylorder.adapt.config import OrderConfig
from taylorder.adapt.handle import attach
from taylorder.analysis.losses import hidden_states
from taylorder.analysis.text import Text
from taylorder.analysis.tokens import tokenise
from taylorder.errors import UnsupportedModelError, UsageError
from taylorder.evaluation.evaluation_text import PACKAGES as JUDGED_ON
from taylorder.healing.losses import add_gradients
from taylorder.healing.probes import refitted
from taylorder.healing.schedule import Schedule
from taylorder.healing.settings import RATES
from taylorder.healing.text import PACKAGES, TrainingText
from taylorder.healing.timing import Pace, longest_schedule
from taylorder.models.adapters import merge_adapter
from taylorder.models.describe import describe
from taylorder.models.fingerprint import fingerprint
from taylorder.selection.probes import probe_sequences


def test_a_step_reads_what_seed_and_number_say_and_nothing_held_out(tiny_tokenizer):
    text = TrainingText.of(tokenise(tiny_tokenizer, SEEN), 32)
    batch = text.batch(16, 4, seed=3, number=5)
    assert batch.shape == (4, 16)
    assert torch.equal(batch, text.batch(16, 4, seed=3, number=5))
    assert not torch.equal(batch, text.batch(16, 4, seed=3, number=6))
    letters = np.random.default_rng(0).choice(list("abcdefghijklmnopqrstuvwxyz "), 10_000)
    whole = Text("letters", "".join(letters))  # of which no two parts are alike
    text = TrainingText.of(tokenise(tiny_tokenizer, whole), 32)
    held_out = {tuple(part.tolist()) for row in text.held_out for part in row.view(2, 16)}
    read = {tuple(row.tolist()) for number in range(50) for row in text.batch(16, 4, 0, number)}
    assert len(held_out) == 8 and len(read) > 100
    assert not held_out & read


def test_a_text_that_leaves_nothing_to_hold_out_is_refused(tiny_tokenizer):
    with pytest.raises(UsageError, match="has 712 tokens, fewer than two sequences of 400.*use more text"):
        TrainingText.of(tokenise(tiny_tokenizer, Text("words", SEEN.content[:712])), 400)


def test_nothing_is_learnt_from_what_configs_are_judged_on():
    assert not PACKAGES.keys() & JUDGED_ON.keys()


def test_stages_follow_one_another_and_contexts_rise():
    schedule = Schedule(40, ("outputs", "logits"), (16, 32), 2)
    steps = [schedule.step(number) for number in range(40)]
    assert [step.stage for step in steps] == ["outputs"] * 10 + ["logits"] * 30
    assert [step.length for step in steps] == [16] * 20 + [32] * 20
    assert {step.tokens for step in steps} == {64}
    assert steps[0].rate < steps[1].rate > steps[20].rate > steps[39].rate > 0
    assert {step.stage for step in map(Schedule(8, ("logits",), (32,)).step, range(8))} == {"logits"}


def test_as_many_steps_as_there_is_time_for():
    pace = Pace({"outputs": 0.001, "logits": 0.002}, 0.0005, 128, 50)
    chosen = settings(tokens=None, minutes=1.0)
    schedule = longest_schedule(chosen, [pace, pace])
    longer = Schedule.of(chosen, schedule.steps + 1)
    assert 2 * pace.seconds(schedule) <= 60 < 2 * pace.seconds(longer)
    assert longest_schedule(settings(tokens=1000), [pace]).tokens == 960


@pytest.mark.parametrize("kind", ["lora", "qkvo", "qk"])
def test_training_comes_nearer_to_the_exact_model(tmp_path, tiny_tokenizer, kind):
    done = trained_alone(tmp_path, tiny_tokenizer, kind, steps=12)
    first, best = done.held_out[0][1], min(loss for _, loss in done.held_out)
    assert best < 0.999 * first
    assert done.best > 0
    assert (done.best, best) in done.held_out


@pytest.mark.parametrize("kind", ["lora", "qkvo", "qk"])
def test_the_model_is_left_as_it_was(tmp_path, tiny_tokenizer, kind):
    model = llama()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters = dict(model.named_parameters())
    with student_of(model, polynomials(model), kind) as student:
        course(student, tmp_path, tiny_tokenizer, steps=2).run()
        assert [name for name in model.state_dict() if name not in before]
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert all(
        parameter.requires_grad and parameters[name] is parameter for name, parameter in model.named_parameters()
    )
    assert not hasattr(model, "peft_config")


class StoppedError(Exception):
    """What ends a training in between."""


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_an_interrupted_training_goes_on_and_comes_to_the_same(tmp_path, tiny_tokenizer, stop):
    whole = trained_alone(tmp_path / "whole", tiny_tokenizer)

    def interrupt(_stage, done, _size):
        if done == stop:
            raise StoppedError

    with pytest.raises(StoppedError):
        trained_alone(tmp_path / "torn", tiny_tokenizer, progress=interrupt)
    steps = []
    resumed = trained_alone(tmp_path / "torn", tiny_tokenizer, progress=lambda _stage, done, _size: steps.append(done))
    assert steps[0] == stop
    assert resumed.losses == whole.losses
    assert resumed.held_out == whole.held_out
    assert all(torch.equal(resumed.weights[name], whole.weights[name]) for name in whole.weights)


def test_a_state_that_was_torn_while_it_was_written_leaves_the_one_before(tmp_path, tiny_tokenizer):
    def interrupt(_stage, done, _size):
        if done == 5:
            raise StoppedError

    with pytest.raises(StoppedError):
        trained_alone(tmp_path, tiny_tokenizer, progress=interrupt)
    (tmp_path / "training-config-b.safetensors").write_bytes(b"torn")  # of step 5; that of step 4 is whole
    steps = []
    trained_alone(tmp_path, tiny_tokenizer, progress=lambda _stage, done, _size: steps.append(done))
    assert steps[0] == 4


def test_a_training_that_gets_no_better_ends(tmp_path, tiny_tokenizer, monkeypatch):
    monkeypatch.setitem(RATES, "qkvo", 3.0)
    done = trained_alone(tmp_path, tiny_tokenizer, "qkvo", steps=60)
    assert done.best == 0
    assert "without a new best" in done.stopped and len(done.losses) < 60
    assert all(torch.equal(done.weights[name], values) for name, values in first_weights("qkvo").items())


def first_weights(kind):
    model = llama()
    with student_of(model, polynomials(model), kind) as student:
        return student.trained.first


def test_a_training_ends_when_its_time_is_over(tmp_path, tiny_tokenizer):
    done = trained_alone(tmp_path, tiny_tokenizer, limit=0.0)
    assert done.stopped == "the time is over" and done.losses == []


def test_the_exact_model_learns_the_text(tmp_path, tiny_tokenizer):
    done = trained_alone(tmp_path, tiny_tokenizer, config=None)
    assert done.config is None
    assert done.held_out[-1][1] < done.held_out[0][1]


@pytest.mark.parametrize("stage", ["outputs", "logits"])
def test_near_fields_that_are_left_out_change_the_loss_of_their_layers_alone(stage):
    model = llama()
    names = [f"model.layers.{layer}.self_attn" for layer in range(2)]
    with student_of(model, polynomials(model)) as student:
        sequence = tokens(1, 24)[0]
        losses = [add_gradients(student, stage, sequence, 1.0, far_only) for far_only in ([], names[:1], names, [])]
    assert len(set(losses)) == 3 and losses[0] == losses[3]


def test_text_is_learnt_with_the_config(tmp_path, tiny_tokenizer):
    model, chosen = llama(), settings(train="qkvo", stages=("text",))
    with student_of(model, polynomials(model), "qkvo") as student:
        sequence = tokens(1, 24)[0]
        loss = add_gradients(student, "text", sequence, 1.0)
        logits = student.head(student.hidden(sequence))
        assert loss == pytest.approx(float(cross_entropy(logits[:-1], sequence[1:])), rel=1e-5)
        assert loss != add_gradients(student, "logits", sequence, 1.0)
        done = course(student, tmp_path, tiny_tokenizer, 12, chosen=chosen).run()
        student.trained.load(student.trained.first)
        held_out = TrainingText.of(tokenise(tiny_tokenizer, SEEN), chosen.longest).held_out
        untrained = [float(cross_entropy(student.head(student.hidden(row))[:-1], row[1:])) for row in held_out]
    assert done.held_out[0][1] == pytest.approx(np.mean(untrained), rel=1e-5)
    assert min(loss for _, loss in done.held_out) < done.held_out[0][1] - 0.01


def test_the_teacher_is_the_model_without_what_was_trained():
    model = llama()
    sequence = tokens(1, 24)[0]
    with torch.no_grad():
        before = model.model(sequence[None]).last_hidden_state[0]
    with student_of(model, None, "qkvo") as student:
        student.trained.load({name: tensor + 0.1 for name, tensor in student.trained.first.items()})
        assert torch.equal(student.exact(sequence), before)
        assert not torch.allclose(student.hidden(sequence), before)


def test_probes_are_fitted_to_the_weights_of_now(tmp_path, tiny_tokenizer):
    model = llama()
    described, config = small(model)
    words = tokenise(tiny_tokenizer, SEEN)
    sequences, _ = probe_sequences(words, described)

    def refit(student, of):
        return refitted(student, of, sequences, words.text)

    with student_of(model, config, "qkvo") as student:
        fitted = refit(student, config)
        student.trained.load({name: 1.5 * tensor for name, tensor in student.trained.first.items()})
        other = refit(student, config)
        said = []
        done = course(student, tmp_path, tiny_tokenizer, refit=refit, say=said.append).run()
    name = "model.layers.0.self_attn"
    assert fitted.probe.text == "words"
    assert not torch.allclose(fitted.probes[name], other.probes[name])
    assert next(sentence for sentence in said if "anew" in sentence) == "config: fitting probes anew after 4 steps"
    assert done.config is not None and done.config.probes[name].shape == config.probes[name].shape


def test_q_and_k_cannot_be_had_without_v_where_they_are_one_matrix():
    model = gpt_bigcode()
    with (
        pytest.raises(UnsupportedModelError, match="no matrices of q and k by themselves.*--train qkvo"),
        student_of(model, None, "qk"),
    ):
        pass
    with student_of(model, None, "lora") as student:
        assert any("c_attn" in name for name in student.trained.parameters)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"contexts": (10, 32)}, "expected each to divide the longest"),
        ({"drop_window": 1.0}, "--drop-window is 1, expected a probability"),
        ({"tokens": None}, "neither minutes nor tokens"),
    ],
)
def test_settings_out_of_range_are_refused(changes, said):
    with pytest.raises(UsageError, match=said):
        settings(**changes)


@pytest.mark.parametrize(
    "name", ["gpt2", "gpt_bigcode", "qwen3", "pythia", "opt", "gemma3", "phi3", "gpt_oss", "gemma2"]
)
def test_models_of_all_kinds_are_trained(tmp_path, tiny_tokenizer, name):
    """Fused and transposed projections, sliding layers, learned sinks, capped scores."""
    model = (TINY | WITH_TERMS)[name]()
    described = describe(model, "tiny")
    config = OrderConfig.uniform(described, 3, "mean", 4, 2)
    with student_of(model, config) as student:
        done = course(student, tmp_path / "records", tiny_tokenizer, steps=4, chosen=settings(contexts=(32,))).run()
        student.trained.load({name: tensor + 0.01 for name, tensor in done.weights.items()})
        student.trained.save(tmp_path / "adapter", described)
        trained = student.hidden(tokens(1, 24)[0])
    assert len(done.losses) == 4 and all(loss > 0 for loss in done.losses)
    merge_adapter(model, tmp_path / "adapter")
    moved = config.model_copy(update={"model": config.model.model_copy(update={"fingerprint": fingerprint(model)})})
    with attach(model, moved):
        assert torch.allclose(hidden_states(model, tokens(1, 24)[0]), trained, atol=1e-4, rtol=1e-3)
