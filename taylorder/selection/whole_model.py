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

    ``sequences`` are those of this process, ``count`` how many all processes have.
    """

    def __init__(self, model: Any, sequences: Tensor) -> None:
        """Look at a model on sequences ``[N, T]``, of which each process takes its share."""
        self.model, self.count = model, len(sequences)
        mine = share(self.count, "sequences that levers are measured on")
        self.sequences = sequences[mine.start : mine.stop]

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
        """Mean KL of a choice to the exact model, in nats per token."""
        with adapted(self.model, self.prepared(table, choice)):
            hidden = [hidden_states(self.model, sequence).clone() for sequence in self.sequences]
        kls = gathered([mean_kl(self.head, exact, changed) for exact, changed in zip(self.exact, hidden, strict=True)])
        return sum(kls) / len(kls)
