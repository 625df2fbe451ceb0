"""What some models do to scores beside scaling them: learned sinks in every denominator, and a cap on every score.

A **learned sink** is a number per head. It is the score of a key that every row attends to and whose value is zero. It
belongs to the near sum, so that the guard, which compares far sums with the number of far keys, does not see it. A
**soft cap** puts ``cap tanh(s / cap)`` in the place of a score s wherever the true exponential is taken; the polynomial
of far keys is of the score before the cap, and what that leaves out is part of its error.

A vector subtracted from all keys moves the scores of a row together, and weights do not notice. These terms do: the
sink stays where it was, and the cap is one of the score that the model computes. So they know, for every row, by how
much its scores are less: the ``shift``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Callable, Optional

import torch
from torch import Tensor


@dataclass(frozen=True)
class ScoreTerms:
    """Terms of heads ``[H]`` or of rows, whose shape is that of their scores without the keys, or broadcasts to it.

    Attributes:
        sink_logits: learned sinks as the model has them, to which ``scaling`` is not applied; None if there are none.
        softcap: the cap; None if there is none.
        shift: by how much the scores of a row are less than those of the model; None if they are not.

    """

    sink_logits: Optional[Tensor] = None
    softcap: Optional[float] = None
    shift: Optional[Tensor] = None

    @staticmethod
    def of_rows(
        q: Tensor, sink_logits: Optional[Tensor], softcap: Optional[float], shift: Optional[Tensor]
    ) -> ScoreTerms:
        """Terms ``[B, H, T]`` of queries ``[B, H, T, d]`` in the dtype of sums; ``sink_logits`` ``[H]`` are per head.

        Raises:
            TypeError: a tensor is no tensor of floating point numbers.
            ValueError: a tensor has another shape or device, or the cap is not above zero and finite.

        """
        if softcap is not None and not 0 < softcap < math.inf:
            raise ValueError(f"softcap is {softcap}, expected a finite number above 0, or None")
        B, H, T, _ = q.shape
        if sink_logits is not None:
            sink_logits = _checked("sink_logits", sink_logits, q, (H,))[None, :, None].expand(B, H, T)
        if shift is not None:
            shift = _checked("shift", shift, q, (B, H, T))
        if sink_logits is None and softcap is None:
            return PLAIN
        return ScoreTerms(sink_logits, softcap, shift)

    @property
    def plain(self) -> bool:
        """Whether there are none: weights are the exponentials of scores and nothing else."""
        return self.sink_logits is None and self.softcap is None

    @property
    def sinks(self) -> Optional[Tensor]:
        """Learned sinks as they stand beside the scores at hand; None if there are none."""
        if self.sink_logits is None or self.shift is None:
            return self.sink_logits
        return self.sink_logits - self.shift

    def map(self, change: Callable[[Tensor], Tensor]) -> ScoreTerms:
        """Return them with every tensor changed alike."""
        if self.plain:
            return self
        sinks, shift = (None if rows is None else change(rows) for rows in (self.sink_logits, self.shift))
        return ScoreTerms(sinks, self.softcap, shift)

    def by_row(self, shift: Tensor) -> ScoreTerms:
        """Terms of heads as those of their rows, whose scores are less by ``shift`` ``[H, R]``."""
        if self.plain:
            return self
        sinks = None if self.sink_logits is None else self.sink_logits[:, None].expand_as(shift)
        return ScoreTerms(sinks, self.softcap, shift)

    def at(self, index: Any) -> ScoreTerms:
        """Those of some rows, by an index of them."""
        return self.map(lambda rows: rows[index])

    def by_group(self, group: int) -> ScoreTerms:
        """Those of rows ``[B, H, T]`` as ``[B, G, g, T]``."""
        return self.map(lambda rows: rows.reshape(len(rows), -1, group, *rows.shape[2:]))

    def flatten(self, first: int, last: int) -> ScoreTerms:
        """Some dimensions of the rows as one."""
        return self.map(lambda rows: rows.flatten(first, last))

    def lowered(self, by: Tensor) -> ScoreTerms:
        """The same where the scores of every row are less by so much more."""
        return replace(self, shift=by if self.shift is None else self.shift + by)

    def capped(self, scores: Tensor) -> Tensor:
        """Scores ``[*, S]`` of keys under the true exponential."""
        if self.softcap is None:
            return scores
        if self.shift is None:
            return self.softcap * (scores / self.softcap).tanh()
        shift = self.shift[..., None]
        return self.softcap * ((scores + shift) / self.softcap).tanh() - shift

    def softmax(self, scores: Tensor) -> Tensor:
        """Weights of keys by their scores ``[*, S]``, capped already: with learned sinks they add up to less than 1."""
        sinks = self.sinks
        if sinks is None:
            return scores.softmax(-1)
        sinks = sinks[..., None].to(scores.dtype).expand(*scores.shape[:-1], 1)
        return torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]


PLAIN = ScoreTerms()
"""Of most models: none."""


def shift_of(q: Tensor, centres: Tensor, scaling: float) -> Tensor:
    """By how much scores are less where ``centres`` ``[G, d]`` were subtracted from keys: ``[B, H, T]``.

    ``q`` ``[B, H, T, d]`` are the queries, of the dtype of sums, and ``scaling`` the factor of q.k.
    """
    B, H, T, d = q.shape
    products = q.reshape(B, len(centres), -1, T, d) @ centres[:, None, :, None]
    return scaling * products.view(B, H, T)


def _checked(name: str, tensor: Any, q: Tensor, shape: tuple[int, ...]) -> Tensor:
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        found = getattr(tensor, "dtype", type(tensor).__name__)
        raise TypeError(f"{name} is {found}, expected a tensor of floating point numbers or None")
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape} to match q {tuple(q.shape)}")
    if tensor.device != q.device:
        raise ValueError(f"{name} is on {tensor.device}, expected the device of q: {q.device}")
    return tensor.to(torch.float64 if q.dtype == torch.float64 else torch.float32)
