"""The whole model on the calibration sequences: how far a config is from the exact model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from torch import Tensor

from taylorder.adapt.handle import adapted
from taylorder.adapt.prepared import PreparedConfig, prepare
from taylorder.analysis.losses import hidden_states, language_model_head, mean_kl
from taylorder.selection.config_of import config_of
from taylorder.selection.lever_table import LeverTable
from taylorder.storage.processes import gathered, share


class WholeModel:
    """A model and its exact self; what the latter computes is computed when it is first asked for.

    ``sequences`` are those of this process, ``numbers`` their places among the ``count`` that all processes have.
    """

    def __init__(self, model: Any, sequences: Tensor) -> None:
        """Look at a model on sequences ``[N, T]``, of which each process takes its share."""
        self.model, self.count = model, len(sequences)
        self.numbers = share(self.count, "sequences that levers are measured on")
        self.sequences = sequences[self.numbers.start : self.numbers.stop]
        self._kls: dict[str, float] = {}

    @cached_property
    def head(self) -> Callable[[Tensor], Tensor]:
        """From hidden states to logits, :func:`~taylorder.analysis.losses.language_model_head`."""
        return language_model_head(self.model)

    @cached_property
    def exact(self) -> list[Tensor]:
        """Final hidden states of the exact model ``[T, hidden]`` on each sequence."""
        return [hidden_states(self.model, sequence).clone() for sequence in self.sequences]

    def prepared(self, table: LeverTable, choice: Sequence[int]) -> PreparedConfig:
        """The config of a choice of one candidate per KV head, ready to be attached."""
        return prepare(self.model, config_of(table, choice, context=self.sequences.shape[1]), table.model)

    def kl(self, table: LeverTable, choice: Sequence[int]) -> float:
        """Mean KL of a choice to the exact model, in nats per token; measured once for what runs the same."""
        prepared = self.prepared(table, choice)
        if prepared.digest not in self._kls:
            with adapted(self.model, prepared):
                hidden = [hidden_states(self.model, sequence).clone() for sequence in self.sequences]
            pairs = zip(self.exact, hidden, strict=True)
            kls = gathered([mean_kl(self.head, exact, changed) for exact, changed in pairs])
            self._kls[prepared.digest] = sum(kls) / len(kls)
        return self._kls[prepared.digest]
