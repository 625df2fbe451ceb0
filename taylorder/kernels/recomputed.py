"""Attention with gradients in memory linear in tokens: blocks of rows are computed again on the way back.

Forward goes through the rows once, and carries along what is far for all rows to come: sums, and features into which
tokens are folded some at a time. It keeps these as they were before each block, and nothing of what a block computes.
Backward goes from the last block to the first, has autograd differentiate one block at a time, and adds up gradients in
place; a token folded gets its own from that of the features, which all blocks after it have added to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .recorded_features import Features
from .row_attention import RowTensors
from .row_blocks import Tokens
from .row_steps import Plan, Step


class Inputs(NamedTuple):
    """What is attended with, of N KV heads of one kind, and what its gradients are like.

    Attributes:
        q: ``[N, g, T, d]``, scaled.
        k: ``[N, T, d]``, zero where there is padding.
        v: ``[N, T, d_v + 1]``, values and ones, zero where there is padding.
        coefficients: ``[N, g, P]``.
        sinks: learned sinks of the rows, ``[N, g, T]``; None if there are none.
        shift: by how much scores are less than the model's, ``[N, g, T]``; None if they are not.

    """

    q: Tensor
    k: Tensor
    v: Tensor
    coefficients: Tensor
    sinks: Optional[Tensor]
    shift: Optional[Tensor]

    def of(self, part: slice) -> Inputs:
        """Those of some KV heads."""
        sinks, shift = (None if x is None else x[part] for x in (self.sinks, self.shift))
        return Inputs(self.q[part], self.k[part], self.v[part], self.coefficients[part], sinks, shift)

    def of_rows(self, step: Step, sums: Sequence[Tensor]) -> RowTensors:
        """What a step's rows are computed from."""
        rows, at_hand, waiting = step.block.rows, step.block.at_hand, step.waiting
        sinks, shift = (None if x is None else x[:, :, rows] for x in (self.sinks, self.shift))
        key_sums, value_sums = sums
        return RowTensors(
            self.q[:, :, rows], self.coefficients, sinks, shift, at_hand.of(self.k), at_hand.of(self.v),
            waiting.of(self.k), waiting.of(self.v), key_sums, value_sums,
        )  # fmt: skip

    def add_rows(self, step: Step, rows: RowTensors, gone: Sequence[Tensor]) -> None:
        """Add the gradients of a step's rows, and of the tokens that became part of the sums before, to these."""
        at_hand, waiting = step.block.at_hand, step.waiting
        for total, more in ((self.q, rows.queries), (self.sinks, rows.sinks), (self.shift, rows.shift)):
            if total is not None and more is not None:
                total[:, :, step.block.rows] = more
        self.coefficients.add_(rows.coefficients)
        for total, near, far, of_sum in (
            (self.k, rows.keys, rows.waiting_keys, gone[0]),
            (self.v, rows.values, rows.waiting_values, gone[1]),
        ):
            at_hand.add(total, near)
            waiting.add(total, far)
            step.gone.add(total, of_sum[:, None].expand(-1, step.gone.number, -1))


def attend_in_blocks(plan: Plan, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Attend; differentiable once.

    Returns:
        Output ``[N, g, T, d_v]``, which means nothing in rows of padding, and where the guard took effect, bool
        ``[N, g, T]``.

    """
    with torch.autocast(inputs.q.device.type, enabled=False):  # sums are taken in the dtype of the inputs
        output, guarded = _Recomputed.apply(plan, *inputs)  # type: ignore[no-untyped-call]  # not typed by torch
    return output, guarded


_Kept = tuple[slice, Step, list[int], list[int]]
"""KV heads, a step of theirs, and which of the tensors kept are its features and sums."""


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: Plan, *tensors: Any) -> tuple[Tensor, Tensor]:
        inputs = Inputs(*tensors)
        q, v, attention = inputs.q, inputs.v, plan.attention
        output = q.new_empty(*q.shape[:3], v.shape[-1] - 1)
        guarded = torch.empty(q.shape[:3], dtype=torch.bool, device=q.device)
        kept: list[Tensor] = []  # features and sums, each once
        steps: list[_Kept] = []
        for part in plan.parts(len(q)):
            given = inputs.of(part)
            features: list[int] = []
            totals = [given.k.new_zeros(len(given.k), given.k.shape[-1]), v.new_zeros(len(given.v), v.shape[-1])]
            sums = _numbered(kept, totals)
            for step in plan.steps(part, q.shape[2], q.device):
                if step.folding.number and attention.features is not None:
                    made = attention.features.fold(step.folding.of(given.k), step.folding.of(given.v))
                    if features:
                        made = [kept[index] + more for index, more in zip(features, made)]
                    features = _numbered(kept, made)
                if step.gone.number:
                    totals = [total + step.gone.of(x).sum(1) for total, x in zip(totals, (given.k, given.v))]
                    sums = _numbered(kept, totals)
                steps.append((part, step, features, sums))
                rows, hits = attention.rows(
                    given.of_rows(step, totals), [kept[index] for index in features], _masks(plan, part, step, q.device)
                )
                output[part, :, step.block.rows], guarded[part, :, step.block.rows] = rows, hits
        ctx.save_for_backward(*inputs, *kept)
        ctx.plan, ctx.steps = plan, steps
        ctx.mark_non_differentiable(guarded)
        return output, guarded

    @staticmethod
    @once_differentiable  # type: ignore[misc]  # not typed by torch
    def backward(ctx: Any, by_output: Tensor, _guarded: None) -> tuple[Optional[Tensor], ...]:
        with torch.autocast(by_output.device.type, enabled=False):
            result = _backward(ctx.plan, ctx.steps, ctx.saved_tensors, by_output, ctx.needs_input_grad[4])
        return None, *(x if needed else None for x, needed in zip(result, ctx.needs_input_grad[1:]))


def _backward(
    plan: Plan, steps: Sequence[_Kept], saved: Sequence[Tensor], by_output: Tensor, by_coefficients: bool
) -> Inputs:
    """Gradients of all inputs, those of coefficients if they are asked for: they take passes over all weights."""
    inputs, kept = Inputs(*saved[:6]), saved[6:]
    result = Inputs(*(None if x is None else torch.zeros_like(x) for x in inputs))  # type: ignore[arg-type]
    current: Optional[slice] = None
    by_sums: list[Tensor] = []
    by_features: list[Tensor] = []
    for part, step, features, sums in reversed(steps):
        if part != current:
            current, by_features = part, []
            given, by = inputs.of(part), result.of(part)
            by_sums = [torch.zeros_like(kept[index]) for index in sums]
        with torch.enable_grad():
            tensors = RowTensors(*map(_leaf, given.of_rows(step, [kept[index] for index in sums])))
            if not by_coefficients:
                tensors = tensors._replace(coefficients=given.coefficients)
            leaves = [_leaf(kept[index]) for index in features]
            masks = _masks(plan, part, step, by_output.device)
            rows, _ = plan.attention.rows(tensors, leaves, masks)
        found = _gradients(rows, [*tensors, *leaves], by_output[part, :, step.block.rows])
        of_rows = RowTensors(*found[: len(tensors)])
        by_sums = [total + more for total, more in zip(by_sums, (of_rows.key_sums, of_rows.value_sums))]
        by.add_rows(step, of_rows, by_sums)
        of_features = found[len(tensors) :]
        by_features = [total.add_(more) for total, more in zip(by_features, of_features)] or of_features
        if step.folding.number and plan.attention.features is not None:
            _unfold(plan.attention.features, step.folding, given, by, by_features)
    return result


def _unfold(features: Features, tokens: Tokens, given: Inputs, by: Inputs, by_folded: Sequence[Tensor]) -> None:
    """Add the gradients of folded tokens to ``by``, from those of what they were folded into."""
    with torch.enable_grad():
        keys, values = _leaf(tokens.of(given.k)), _leaf(tokens.of(given.v))
        folded = features.fold(keys, values)
    by_keys, by_values = torch.autograd.grad(folded, (keys, values), by_folded)
    tokens.add(by.k, by_keys)
    tokens.add(by.v, by_values)


def _gradients(rows: Tensor, leaves: Sequence[Optional[Tensor]], by_rows: Tensor) -> list[Any]:
    """The gradient of every leaf, zero where it plays no part; None for None."""
    wanted = {index: leaf for index, leaf in enumerate(leaves) if leaf is not None and leaf.requires_grad}
    found: list[Any] = [None] * len(leaves)
    if rows.requires_grad:
        gradients = torch.autograd.grad(rows, list(wanted.values()), by_rows, allow_unused=True)
        for index, gradient in zip(wanted, gradients):
            found[index] = gradient
    return [
        torch.zeros_like(leaf) if gradient is None and leaf is not None else gradient
        for leaf, gradient in zip(leaves, found)
    ]


def _leaf(tensor: Any) -> Any:
    return None if tensor is None else tensor.detach().requires_grad_()


def _masks(plan: Plan, part: slice, step: Step, device: torch.device) -> Optional[tuple[Tensor, Tensor]]:
    if not step.block.at_hand.number:
        return None
    return step.block.masks(None if plan.known is None else plan.known[part], device)


def _numbered(kept: list[Tensor], more: Sequence[Tensor]) -> list[int]:
    """Where these are in the list, behind which they are put."""
    kept += more
    return list(range(len(kept) - len(more), len(kept)))
