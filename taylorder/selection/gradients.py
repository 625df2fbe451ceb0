"""One backward pass: what every attention module computed for a sequence, and how the loss depends on its output."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from taylorder.errors import NonFiniteError
from taylorder.kernels.score_terms import PLAIN, ScoreTerms
from taylorder.models.attention import AttentionCall, Observer, recording
from taylorder.models.running import run_base
from taylorder.selection.recomputing import by_layer, goes_by_layer

LossGradient = Callable[[Tensor], tuple[float, Tensor]]
"""From final hidden states ``[T, hidden]`` to the loss and its gradient by them."""

Running = Callable[[Any, Observer], AbstractContextManager[Any]]
"""``running(model, observe)`` puts a model into some state and has ``observe`` called by its attention modules."""


@dataclass(frozen=True, slots=True)
class Observed:
    """One attention module on one sequence, float32 (or the model's dtype), on the device of the model.

    ``q`` ``[H, T, d]``, ``k`` ``[G, T, d]`` (not centred), ``v`` ``[G, T, d_v]``, ``output`` ``[H, T, d_v]`` and
    ``gradient``, of the same shape, of the loss by the output; ``terms`` are what the module does to scores beside
    scaling them, for each head.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    output: Tensor
    gradient: Tensor
    scaling: float
    terms: ScoreTerms = PLAIN


Consumer = Callable[[str, Observed], None]
"""Called with the name of an attention module and what was observed of it; what is not kept there is gone."""


def exactly(model: Any, observe: Observer) -> AbstractContextManager[None]:
    """Observe the model as it is."""
    return recording(model, None, observe=observe)


def observe_sequence(
    model: Any, input_ids: Tensor, loss_gradient: LossGradient, consume: Consumer, running: Running = exactly
) -> float:
    """Run one sequence ``[T]`` forward and backward, and hand over every attention module on the way back.

    That is as soon as the gradient by its output is known: the last module of the model comes first. Memory is what the
    forward pass remembers of the sequence, or that of a layer where this would be too much
    (:mod:`~taylorder.selection.recomputing`).

    Args:
        model: a causal transformers model with a language-model head.
        input_ids: ``[T]``.
        loss_gradient: see :data:`LossGradient`.
        consume: see :data:`Consumer`.
        running: the state of the model; default as it is.

    Returns:
        The loss.

    Raises:
        NonFiniteError: loss or gradients are not finite.
        UnsupportedModelError: weights are brought in when a layer runs, and no layer can run twice.

    """
    twice = goes_by_layer(model, len(input_ids))
    awaited: set[str] = set()
    calls: dict[str, tuple[Tensor, Tensor, Tensor, Tensor, float, ScoreTerms]] = {}
    on_the_way_back = False

    def observe(call: AttentionCall, output: Tensor) -> None:
        if on_the_way_back or not twice:
            q, k, v = call.q.detach(), call.k.detach(), call.v.detach()
            calls[call.name] = (q, k, v, output.detach(), call.scaling, call.terms.map(Tensor.detach))
        if not on_the_way_back:
            awaited.add(call.name)
            output.register_hook(partial(arrived, call.name))  # type: ignore[no-untyped-call]

    def arrived(name: str, gradient: Tensor) -> None:
        if not torch.isfinite(gradient).all():
            raise _broken(name)
        awaited.discard(name)
        q, k, v, output, scaling, terms = calls.pop(name)
        by_output = gradient.contiguous()[0].transpose(0, 1)
        consume(name, Observed(q[0], k[0], v[0], output[0].transpose(0, 1), by_output, scaling, terms))

    with _input_gradient_only(model), torch.enable_grad(), running(model, observe), by_layer(model, twice):
        hidden = run_base(model, input_ids[None])
        loss, gradient = loss_gradient(hidden[0].detach())
        on_the_way_back = True
        torch.autograd.backward(hidden, gradient[None])
    for name in awaited:
        raise _broken(name)
    return loss


def _broken(name: str) -> NonFiniteError:
    return NonFiniteError(f"the gradient of the loss by the output of {name} is missing or not finite")


@contextmanager
def _input_gradient_only(model: nn.Module) -> Iterator[None]:
    """Let gradients begin at the embedded tokens instead of at the weights, which nobody asks about."""
    # By place: parameters that are brought in when a module runs are others afterwards.
    wanted = [
        (module, key)
        for module in model.modules()
        for key, parameter in module._parameters.items()
        if parameter is not None and parameter.requires_grad
    ]

    def begin(_module: nn.Module, _args: Any, embedded: Tensor) -> Tensor:
        return embedded.detach().requires_grad_(True)

    hook = model.get_input_embeddings().register_forward_hook(begin)  # type: ignore[operator]
    for module, key in wanted:
        getattr(module, key).requires_grad_(False)
    try:
        yield
    finally:
        hook.remove()
        for module, key in wanted:
            getattr(module, key).requires_grad_(True)
