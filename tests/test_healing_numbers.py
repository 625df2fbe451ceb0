"""The numbers of a config, trained: they change what runs, and what was trained is in the config that comes out."""

from __future__ import annotations

import pytest
import torch
from healing_cases import course, settings, student_of
from tiny import llama, tokens

from taylorder.adapt.config import OrderConfig
from taylorder.adapt.handle import attach
from taylorder.analysis.losses import hidden_states
from taylorder.errors import UsageError
from taylorder.healing.numbers import TrainedNumbers
from taylorder.kernels.spec import HeadSpec, Near, Taylor
from taylorder.models.describe import describe

NAMES = [f"model.layers.{layer}.self_attn" for layer in range(2)]


def with_every_number(model):
    """Ranks around the mean in the first layer, order 2 around a centre in the second, each in one KV head of two."""
    config = OrderConfig.uniform(describe(model, "tiny"), 3, "mean", 4, 2)
    generator = torch.Generator().manual_seed(3)
    specs = (HeadSpec(Taylor(3, "mean", (8, 8, 4)), Near(4, 2)), HeadSpec(Taylor(2, "centre"), Near(4, 2)))
    layers = tuple(
        layer.model_copy(update={"heads": tuple(head.model_copy(update={"spec": spec}) for head in layer.heads)})
        for layer, spec in zip(config.layers, specs, strict=True)
    )
    rotation = torch.linalg.qr(torch.randn(2, 8, 8, generator=generator)).Q
    config = config.model_copy(update={"layers": layers})
    config = config.with_key_centres({name: torch.randn(2, 8, generator=generator) for name in NAMES})
    return config.with_rotations({NAMES[0]: (rotation, rotation.clone())})


def test_training_comes_nearer_to_the_exact_model_and_leaves_its_weights(tmp_path, tiny_tokenizer):
    model = llama()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with student_of(model, with_every_number(model), "config") as student:
        done = course(student, tmp_path, tiny_tokenizer, 12, chosen=settings(train="config")).run()
        changed = [name for name in done.weights if not torch.equal(done.weights[name], student.trained.first[name])]
    assert min(loss for _, loss in done.held_out) < 0.999 * done.held_out[0][1]
    assert set(changed) == set(done.weights) == {
        *(f"{name}.coefficients" for name in NAMES), *(f"{name}.centre" for name in NAMES), f"{NAMES[0]}.query_rotation"
    }  # fmt: skip
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_the_config_that_comes_out_runs_as_the_student_ran(tmp_path):
    model, sequence = llama(), tokens(1, 40)[0]
    config = with_every_number(model)
    with student_of(model, config, "config") as student:
        untrained = student.hidden(sequence)
        generator = torch.Generator().manual_seed(1)
        student.trained.load({
            name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator)
            for name, tensor in student.trained.first.items()
        })  # fmt: skip
        trained = student.hidden(sequence)
        made = student.trained.into(config)
        with student.trained.off():
            assert torch.allclose(student.hidden(sequence), untrained, atol=1e-5)
    assert not torch.allclose(trained, untrained, atol=1e-3)
    made.save(tmp_path / "orders.json")
    with attach(model, OrderConfig.load(tmp_path / "orders.json", model)):
        assert torch.allclose(hidden_states(model, sequence), trained, atol=1e-4)


def test_groups_around_zero_keep_their_keys():
    model = llama()
    config = OrderConfig.uniform(describe(model, "tiny"), 3, "zero", 4, 2)
    assert [name.rpartition(".")[2] for name in TrainedNumbers(config).parameters] == ["coefficients"] * 2


def test_a_config_without_polynomials_has_nothing_to_train():
    with pytest.raises(UsageError, match="no head of the config has a polynomial.*--train lora"):
        TrainedNumbers(OrderConfig.uniform(describe(llama(), "tiny"), "exact"))
