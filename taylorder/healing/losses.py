"""What a step adds to the gradients for one sequence: from outputs of single modules, from logits, or from the text."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from taylorder.analysis.losses import kl_gradient, nll_gradient
from taylorder.errors import NonFiniteError
from taylorder.healing.settings import Stage
from taylorder.healing.student import Student
from taylorder.models.running import run_base
from taylorder.selection.recomputing import by_layer, goes_by_layer


def add_gradients(
    student: Student, stage: Stage, sequence: Tensor, share: float, far_only: Collection[str] = ()
) -> float:
    """Add ``share`` of the gradients of one sequence ``[T]`` to what is trained, and return its loss.

    ==========  ======================================================================================================
    outputs     Mean over modules of the squared error of a module's output on the exact model's inputs, relative to
                the mean square of the exact output.
    logits      Mean KL (exact || this) of the next-token distributions, in nats.
    text        Mean negative log-likelihood of the text, in nats; this in any stage where the exact model is trained.
    ==========  ======================================================================================================

    Raises:
        NonFiniteError: the loss is not finite.

    """
    if stage == "outputs" and student.config is not None:
        loss = _outputs(student, sequence, share, far_only)
    else:
        exact = student.exact(sequence) if stage == "logits" and student.config is not None else None
        loss = _logits(student, sequence, exact, share, far_only)
    if not torch.isfinite(torch.tensor(loss)):
        raise NonFiniteError(
            f"the loss of a step of {student.description.name} is {loss}, expected a finite number: the model broke "
            "down in training; lower orders, or give heads a near field"
        )
    return loss


def _logits(student: Student, sequence: Tensor, exact: Tensor | None, share: float, far_only: Collection[str]) -> float:
    """Towards final hidden states of the exact model, or else towards the text."""
    model = student.model
    with torch.enable_grad(), student.running(far_only), by_layer(model, goes_by_layer(model, len(sequence))):
        hidden = run_base(model, sequence[None])
        final = hidden[0].detach()
        if exact is None:
            loss, gradient = nll_gradient(student.head, sequence, final)
        else:
            loss, gradient = kl_gradient(student.head, exact, final)
        torch.autograd.backward(hidden, share * gradient[None])
    return loss


def _outputs(student: Student, sequence: Tensor, share: float, far_only: Collection[str]) -> float:
    """Each module by itself, so that memory is that of one."""
    calls = _calls_of_the_exact_model(student, sequence)
    total = 0.0
    with torch.enable_grad(), student.running(far_only):
        for module, (args, kwargs, expected) in calls.items():
            error = (_first(module(*args, **kwargs)) - expected).float().square().mean()
            loss = error / expected.float().square().mean() / len(calls)
            (share * loss).backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
    return total


_Call = tuple[tuple[Any, ...], dict[str, Any], Tensor]
"""Arguments of a module, and what it put out."""


def _calls_of_the_exact_model(student: Student, sequence: Tensor) -> dict[nn.Module, _Call]:
    calls: dict[nn.Module, _Call] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls[module] = args, kwargs, _first(output)

    with ExitStack() as stack:
        for module in student.truncated.values():
            stack.callback(module.register_forward_hook(note, with_kwargs=True).remove)
        # Not in inference mode: what is made there takes no part where gradients are recorded.
        with student.trained.off(), torch.no_grad():
            run_base(student.model, sequence[None])
    return calls


def _first(output: Any) -> Tensor:
    """What a module puts out, without the attention weights beside it."""
    tensor: Tensor = output if isinstance(output, Tensor) else output[0]
    return tensor
