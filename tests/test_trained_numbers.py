"""Gradients of what a config adds to a model: key centres, rotations and coefficients, against finite differences."""

from __future__ import annotations

import pytest
import torch
from mixed_orders import ranked_config
from observing import llama64
from tiny import tokens
from torch import nn

import taylorder
from taylorder.adapt.prepared import prepare
from taylorder.errors import UsageError

IDS = tokens(2, 30)


@pytest.fixture
def trained():
    """A model in float64, its prepared config, and the numbers of its first layer, float64 too."""
    model = llama64().requires_grad_(False)
    prepared = prepare(model, ranked_config(model))
    for plan in prepared.plans.values():
        plan.numbers.double()
    return model, prepared, next(iter(prepared.plans.values()))


def loss_of(model, prepared, mask=None):
    with taylorder.attach(model, prepared):
        logits = model(IDS, attention_mask=mask, use_cache=False).logits  # the model's own loss is of float32
    return torch.nn.functional.cross_entropy(logits[:, 6:-1].flatten(0, 1), IDS[:, 7:].flatten())


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", ["centre", "query_rotation", "key_rotation", "coefficients"])
def test_gradients_reach_the_numbers_of_a_layer(trained, name, padded):
    model, prepared, plan = trained
    mask = (torch.arange(30) >= torch.tensor([[6], [0]])).long() if padded else None
    if name == "coefficients":
        order = max(spec.order for spec in plan.heads)
        rows = [[*spec.far.polynomial, *[0.0] * (order - spec.order)] for spec in plan.heads]
        before = loss_of(model, prepared, mask).detach()
        plan.numbers.coefficients = nn.Parameter(torch.tensor(rows, dtype=torch.float64))
        assert float(loss_of(model, prepared, mask).detach()) == pytest.approx(float(before), rel=1e-9)
    else:
        setattr(plan.numbers, name, nn.Parameter(getattr(plan.numbers, name)))
    parameter = getattr(plan.numbers, name)
    loss_of(model, prepared, mask).backward()
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    losses = []
    with torch.no_grad():
        for sign in (1, -2):
            parameter += sign * 1e-5 * direction
            losses.append(float(loss_of(model, prepared, mask)))
    slope = (losses[0] - losses[1]) / 2e-5
    assert float((parameter.grad * direction).sum()) == pytest.approx(slope, rel=1e-4)
    assert abs(slope) > 1e-5


def test_the_model_is_trained_as_before_beside_them(trained):
    model, prepared, plan = trained
    weight = model.model.layers[0].self_attn.k_proj.weight.requires_grad_()
    plan.numbers.centre = nn.Parameter(plan.numbers.centre)
    loss_of(model, prepared).backward()
    assert weight.grad.abs().max() > 0
    assert plan.numbers.centre.grad.abs().max() > 0
    assert not any("numbers" in name or "centre" in name for name in model.state_dict())


def test_coefficients_in_training_are_not_left_out_silently(trained):
    model, prepared, plan = trained
    order = max(spec.order for spec in plan.heads)
    plan.numbers.coefficients = nn.Parameter(torch.ones(len(plan.heads), order, dtype=torch.float64))
    words = "coefficients that are being trained, which are applied to whole sequences alone"
    with torch.no_grad(), taylorder.attach(model, prepared) as handle, pytest.raises(UsageError, match=words):
        model(IDS, past_key_values=handle.new_cache())
    with torch.no_grad(), taylorder.attach(model, prepared, guard=False), pytest.raises(UsageError, match=words):
        model(IDS, use_cache=False)
