"""Probes, trained: which keys are kept by what it costs, and the config that comes out."""

from __future__ import annotations

from dataclasses import replace

import keeping_configs
import pytest
import torch
from healing_cases import course, polynomials, settings, student_of
from mixed_orders import PROBE_TEXT, random_probes
from tiny import llama, tokens

from taylorder.adapt.config import OrderConfig
from taylorder.adapt.handle import attach
from taylorder.analysis.losses import hidden_states
from taylorder.errors import UsageError
from taylorder.healing.settings import RATES
from taylorder.healing.trained_probes import TrainedProbes
from taylorder.kernels.spec import SINKS, Near
from taylorder.models.describe import describe


def keeping(model):
    return keeping_configs.small(model)[1]


@pytest.mark.parametrize("stages", [("logits",), ("outputs", "logits")])
def test_training_comes_nearer_to_the_exact_model_and_leaves_its_weights(tmp_path, tiny_tokenizer, stages, monkeypatch):
    monkeypatch.setitem(RATES, "probes", 0.05)  # random probes have a long way to go
    model = llama()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with student_of(model, keeping(model), "probes") as student:
        done = course(
            student, tmp_path, tiny_tokenizer, 24, chosen=settings(train="probes", stages=stages, contexts=(32,))
        ).run()
        assert set(done.weights) == set(student.config.probes)
    assert min(loss for _, loss in done.held_out) < 0.9 * done.held_out[0][1]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_the_config_that_comes_out_runs_as_the_student_ran():
    model, sequence = llama(), tokens(1, 40)[0]
    config = keeping(model)
    with student_of(model, config, "probes") as student:
        untrained = student.hidden(sequence)
        generator = torch.Generator().manual_seed(1)
        student.trained.load({
            name: torch.randn(tensor.shape, generator=generator) for name, tensor in student.trained.first.items()
        })  # fmt: skip
        trained = student.hidden(sequence)
        with student.trained.off():
            torch.testing.assert_close(student.hidden(sequence), untrained, rtol=0, atol=0)
        made = student.trained.into(config)
    assert (trained - untrained).abs().max() > 1e-3
    assert made.probe.text == PROBE_TEXT["text"]
    with attach(model, made):
        torch.testing.assert_close(hidden_states(model, sequence), trained, rtol=1e-6, atol=1e-6)


def test_a_training_begins_with_the_probes_as_they_are():
    model = llama()
    config = keeping(model)
    with student_of(model, config, "probes") as student:
        begun = student.trained.into(config)
    assert begun.probes.keys() == config.probes.keys()
    assert all(torch.equal(begun.probes[name], config.probes[name]) for name in config.probes)


def test_what_keeps_no_keys_has_no_choice_to_train():
    model = llama()
    with pytest.raises(UsageError, match="no head of the config keeps keys, so there is no choice to train"):
        TrainedProbes.on(model, polynomials(model), tokens(2, 40), PROBE_TEXT)


def test_a_choice_beside_polynomials_is_refused():
    model = llama()
    described = describe(model, "tiny")
    config = OrderConfig.uniform(described, 3, "mean", 6, SINKS)
    layers = tuple(
        layer.model_copy(update={"heads": tuple(with_kept(head) for head in layer.heads)}) for layer in config.layers
    )
    config = config.model_copy(update={"layers": layers}).with_probes(random_probes(described, 0), PROBE_TEXT)
    with pytest.raises(UsageError, match="layers.0.self_attn keeps keys beside polynomials"):
        TrainedProbes.on(model, config, tokens(2, 40), PROBE_TEXT)


def with_kept(head):
    return head.model_copy(update={"spec": replace(head.spec, near=Near(6, SINKS, 5))})
