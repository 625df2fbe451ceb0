"""What backward passes of tiny models show, the states they may be in, and what they could leave behind."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial

import tiny
import torch

import taylorder
from taylorder.adapt.config import HeadOrder, LayerOrders, ModelIdentity, OrderConfig
from taylorder.kernels.spec import Dropped, Exact, HeadSpec, Near, Taylor
from taylorder.models.describe import describe
from taylorder.selection.gradients import exactly, observe_sequence

IDS = tiny.tokens(seed=5)[0]


def llama64():
    """Float64 throughout: the norms of transformers compute in float32 whatever they are given."""
    model = tiny.llama().double()
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__ == "LlamaRMSNorm":
                norm = torch.nn.RMSNorm(child.weight.shape, eps=child.variance_epsilon, dtype=torch.float64)
                norm.weight = child.weight
                setattr(module, name, norm)
    return model


def mixed(model):
    """Exact, dropped-far and polynomial KV heads, in both layers."""
    window = HeadOrder(spec=HeadSpec(Dropped(), Near(5, 2)))
    taylor = HeadOrder(spec=HeadSpec(Taylor(3, "mean"), Near(3, 1)))
    layers = [(window, taylor), (taylor, HeadOrder(spec=HeadSpec(Exact())))]
    description = describe(model, "tiny")
    return OrderConfig(
        model=ModelIdentity.of(description),
        layers=tuple(
            LayerOrders(module=module.name, heads=(first, first, second, second))
            for module, (first, second) in zip(description.modules, layers, strict=True)
        ),
    )


@contextmanager
def adapted_to(config, model, observe):
    with taylorder.adapted(model, config, observe=observe):
        yield


def states(model):
    return {"exactly": exactly, "adapted": partial(adapted_to, mixed(model))}


def observe(model, gradient, running=exactly):
    """The loss of the ids, and what was observed by module, in the order of the model."""
    found = {}
    loss = observe_sequence(model, IDS, gradient, found.__setitem__, running)
    return loss, dict(reversed(found.items()))


def left_behind(model):
    return (
        [parameter.requires_grad for parameter in model.parameters()],
        [parameter.grad is None for parameter in model.parameters()],
        [(len(m._forward_hooks), len(m._forward_pre_hooks), sorted(vars(m))) for m in model.modules()],
        model.config._attn_implementation,
        torch.is_grad_enabled(),
    )
