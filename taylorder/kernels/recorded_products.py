"""Polynomials of scores and products of coordinates, with gradients that keep little and pass over it few times."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .tables import count


def power_sum(x: Tensor, coefficients: Tensor, lowest: int) -> Tensor:
    """``sum_p coefficients[..., p - lowest] x^p`` over degrees from ``lowest`` on.

    Args:
        x: ``[N, g, C, F]``.
        coefficients: ``[N, g, degrees]``.
        lowest: the first degree.

    """
    result: Tensor = _PowerSum.apply(x, coefficients, lowest)  # type: ignore[no-untyped-call]  # not typed by torch
    return result


def extended(below: Tensor, coordinates: Tensor, degree: int) -> Tensor:
    """Features of a degree, each one of the degree below times its largest coordinate; see :mod:`.tables`.

    Args:
        below: features of degree - 1, ``[N, D, C]``, at least those over the first r coordinates.
        coordinates: ``[N, r, C]``.
        degree: at least 2.

    """
    result: Tensor = _Extended.apply(below, coordinates, degree)  # type: ignore[no-untyped-call]  # not typed by torch
    return result


class _PowerSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, coefficients: Tensor, lowest: int) -> Tensor:
        ctx.save_for_backward(x, coefficients)
        ctx.lowest = lowest
        return _horner(x, _broadcast(coefficients), lowest)

    @staticmethod
    @once_differentiable  # type: ignore[misc]  # not typed by torch
    def backward(ctx: Any, gradient: Tensor) -> tuple[Optional[Tensor], Optional[Tensor], None]:
        x, coefficients = ctx.saved_tensors
        lowest, by_x, by_coefficients = ctx.lowest, None, None
        if ctx.needs_input_grad[0]:
            factors = [(lowest + p) * c for p, c in enumerate(_broadcast(coefficients))]
            if lowest == 0:
                factors = factors[1:]
            by_x = _horner(x, factors, max(lowest - 1, 0)).mul_(gradient) if factors else torch.zeros_like(x)
        if ctx.needs_input_grad[1]:
            power, sums = gradient * x**lowest if lowest else gradient, []
            for p in range(coefficients.shape[-1]):
                power = power * x if p else power
                sums.append(power.sum((-2, -1)))
            by_coefficients = torch.stack(sums, -1)
        return by_x, by_coefficients, None


def _broadcast(coefficients: Tensor) -> list[Tensor]:
    return [c[..., None, None] for c in coefficients.unbind(-1)]


def _horner(x: Tensor, factors: list[Tensor], lowest: int) -> Tensor:
    """``x^lowest sum_p factors[p] x^p``, in memory of its own."""
    result = factors[0].expand_as(x).clone() if len(factors) == 1 else (x * factors[-1]).add_(factors[-2])
    for factor in factors[-3::-1]:
        result.mul_(x).add_(factor)
    for _ in range(lowest):
        result.mul_(x)
    return result


class _Extended(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, below: Tensor, coordinates: Tensor, degree: int) -> Tensor:
        ctx.save_for_backward(below, coordinates)
        ctx.degree = degree
        N, r, C = coordinates.shape
        result = below.new_empty(N, count(degree, r), C)
        for i, block, prefix in _blocks(degree, r):
            torch.mul(below[:, prefix], coordinates[:, i : i + 1], out=result[:, block])
        return result

    @staticmethod
    @once_differentiable  # type: ignore[misc]  # not typed by torch
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        below, coordinates = ctx.saved_tensors
        by_below, by_coordinates = torch.zeros_like(below), torch.empty_like(coordinates)
        for i, block, prefix in _blocks(ctx.degree, coordinates.shape[1]):
            by_below[:, prefix].addcmul_(gradient[:, block], coordinates[:, i : i + 1])
            torch.sum(gradient[:, block] * below[:, prefix], 1, out=by_coordinates[:, i])
        return by_below, by_coordinates, None


def _blocks(degree: int, coordinates: int) -> list[tuple[int, slice, slice]]:
    """Per largest coordinate: it, its features of the degree, and the features of the degree below they extend."""
    return [
        (i, slice(count(degree, i), count(degree, i + 1)), slice(0, count(degree - 1, i + 1)))
        for i in range(coordinates)
    ]
