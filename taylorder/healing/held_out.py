"""The loss on what no step reads, by which the best weights are known."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from taylorder.analysis.losses import mean_kl, mean_nll
from taylorder.healing.student import Student
from taylorder.storage import processes


class HeldOut:
    """Held-out sequences ``[N, T]``, and what the exact model makes of them, which does not change."""

    def __init__(self, student: Student, sequences: Tensor) -> None:
        """Remember them."""
        self._student, self._sequences = student, sequences
        self._exact: dict[int, Tensor] = {}

    def loss(self) -> float:
        """Mean KL (exact || this) per token in nats; where the exact model itself is trained, the NLL of the text."""
        return float(np.mean(list(processes.spread(self._loss, range(len(self._sequences))))))

    def _loss(self, index: int) -> float:
        student, sequence = self._student, self._sequences[index]
        hidden = student.hidden(sequence)
        if student.config is None:
            return mean_nll(student.head, sequence, hidden)
        if index not in self._exact:
            self._exact[index] = student.exact(sequence)
        return mean_kl(student.head, self._exact[index], hidden)
