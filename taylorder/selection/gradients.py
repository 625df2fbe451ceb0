"""One backward pass: what every attention module computed for a sequence, and how the loss depends on its output."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from taylorder.errors import NonFiniteError
from taylorder.kernels.score_terms import PLAIN, ScoreTerms
from taylorder.models.attention import AttentionCall, Observer, recording
from taylorder.models.running import run_base

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


def exactly(model: Any, observe: Observer) -> AbstractContextManager[None]:
    """Observe the model as it is."""
    return recording(model, None, observe=observe)


def observe_sequence(
    model: Any, input_ids: Tensor, loss_gradient: LossGradient, running: Running = exactly
) -> tuple[float, dict[str, Observed]]:
    """Run one sequence ``[T]`` forward and backward; memory is that of all modules' tensors of that sequence.

    Args:
        model: a causal transformers model with a language-model head.
        input_ids: ``[T]``.
        loss_gradient: see :data:`LossGradient`.
        running: the state of the model; default as it is.

    Returns:
        The loss, and what was observed of every attention module in the order the model runs them.

    Raises:
        NonFiniteError: loss or gradients are not finite.

    """
    calls: dict[str, tuple[Tensor, Tensor, Tensor, Tensor, float, ScoreTerms]] = {}

    def observe(call: AttentionCall, output: Tensor) -> None:
        output.retain_grad()
        terms = call.terms.map(Tensor.detach)
        calls[call.name] = (call.q.detach(), call.k.detach(), call.v.detach(), output, call.scaling, terms)

    with _input_gradient_only(model), torch.enable_grad(), running(model, observe):
        hidden = run_base(model, input_ids[None])
        loss, gradient = loss_gradient(hidden[0].detach())
        torch.autograd.backward(hidden, gradient[None])
    observed = {}
    for name, (q, k, v, output, scaling, terms) in calls.items():
        by_output = output.grad
        if by_output is None or not torch.isfinite(by_output).all():
            raise NonFiniteError(f"the gradient of the loss by the output of {name} is missing or not finite")
        observed[name] = Observed(
            q[0], k[0], v[0], output.detach()[0].transpose(0, 1), by_output[0].transpose(0, 1), scaling, terms
        )
    return loss, observed


@contextmanager
def _input_gradient_only(model: nn.Module) -> Iterator[None]:
    """Let gradients begin at the embedded tokens instead of at the weights, which nobody asks about."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def begin(_module: nn.Module, _args: Any, embedded: Tensor) -> Tensor:
        return embedded.detach().requires_grad_(True)

    hook = model.get_input_embeddings().register_forward_hook(begin)  # type: ignore[operator]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        hook.remove()
        for parameter in wanted:
            parameter.requires_grad_(True)
