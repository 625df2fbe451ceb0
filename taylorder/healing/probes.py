"""Probes fitted anew while a model is trained: its keys and values are others then, and so is what they foretell."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from taylorder.adapt.config import OrderConfig
from taylorder.analysis.text import Text
from taylorder.healing.student import Student
from taylorder.selection.probes import Probes, sequence_equations, solved
from taylorder.storage import processes


def refitted(student: Student, config: OrderConfig, sequences: Tensor, text: Text) -> OrderConfig:
    """The config with probes for the weights of now, by the same regression that fitted those it has.

    Args:
        student: the model in training, which attends exactly meanwhile.
        config: has probes.
        sequences: ``[N, T]``, see :func:`~taylorder.selection.probes.probe_sequences`.
        text: where they are from.

    Raises:
        NonFiniteError: the model breaks down.

    """
    equations = processes.spread(partial(sequence_equations, student.model, student.description), list(sequences))
    probes = solved(equations)
    fitted = Probes({name: probes[name] for name in config.probes}, text.source, sequences.numel(), text.sha256)
    return config.with_probes(fitted.weights, fitted.about)
