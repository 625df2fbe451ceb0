"""The loss on what no step reads, by which the best weights are known."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from taylorder.analysis.losses import mean_kl, mean_nll
from taylorder.healing.student import Student
from taylorder.storage import processes


class HeldOut:
    """Held-out sequences ``[N, T]``, and what the exact model makes of them, which does not change."""

    def __init__(self, student: Student, sequences: Tensor, *, towards_text: bool = False) -> None:
        """Remember them, and whether the student learns the text, as the exact model always does."""
        self._student, self._sequences = student, sequences
        self._towards_text = towards_text or student.config is None
        self._exact: dict[int, Tensor] = {}

    def loss(self) -> float:
        """Mean KL (exact || this) per token in nats; where the text is learnt, its mean NLL."""
        return float(np.mean(list(processes.spread(self._loss, range(len(self._sequences))))))

    def _loss(self, index: int) -> float:
        student, sequence = self._student, self._sequences[index]
        hidden = student.hidden(sequence)
        if self._towards_text:
            return mean_nll(student.head, sequence, hidden)
        if index not in self._exact:
            self._exact[index] = student.exact(sequence)
        return mean_kl(student.head, self._exact[index], hidden)
