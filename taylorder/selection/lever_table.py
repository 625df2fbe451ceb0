"""Measure all candidates of all KV heads: one forward and one backward pass, then layer by layer, each kept on disk."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from taylorder.analysis.losses import language_model_head, nll_gradient
from taylorder.errors import UnsupportedModelError
from taylorder.kernels.score_terms import ScoreTerms
from taylorder.models.description import AttentionModule, ModelDescription
from taylorder.selection.candidates import Candidate
from taylorder.selection.gradients import Observed, observe_sequence
from taylorder.selection.lever_errors import LayerLevers, LeverRow, Prepared, measure_levers
from taylorder.selection.probes import Probes
from taylorder.storage import processes
from taylorder.storage.progress import Progress
from taylorder.storage.records import Records
from taylorder.storage.spill import Spill

BACKWARD, LEVERS = "backward pass", "levers"
"""Stages, as progress is told."""


_TENSORS = ("q", "k", "v", "output", "gradient")


@dataclass(frozen=True)
class LeverTable:
    """What every candidate of every KV head costs in accuracy; layers in the order of the model.

    Only modules that see the whole context are there; those with a sliding window of their own stay as they are.
    ``probed`` says what the probes of the layers were fitted on, None where no candidate keeps keys.
    """

    model: ModelDescription
    candidates: tuple[Candidate, ...]
    layers: tuple[LayerLevers, ...]
    probed: Mapping[str, Any] | None = None

    @property
    def modules(self) -> tuple[AttentionModule, ...]:
        """The modules measured."""
        return self.model.open_modules

    @property
    def kv_heads(self) -> list[tuple[str, int]]:
        """Module and number of every KV head measured, in the order of all lists of choices."""
        return [(module.name, kv_head) for module in self.modules for kv_head in range(module.kv_heads)]

    def rows(self) -> list[list[LeverRow]]:
        """Rows of each KV head (as ``kv_heads``), by candidate."""
        count = len(self.candidates)  # a layer's rows are [KV heads][candidates], flattened
        return [
            list(layer.rows[start : start + count])
            for layer in self.layers
            for start in range(0, len(layer.rows), count)
        ]

    def restricted_to(self, indices: Sequence[int]) -> LeverTable:
        """The table with these candidates alone, in this order."""
        count = len(self.candidates)
        layers = []
        for layer in self.layers:
            rows = [
                replace(layer.rows[start + index], candidate=new)
                for start in range(0, len(layer.rows), count)
                for new, index in enumerate(indices)
            ]
            fitted = {new: layer.fitted[index] for new, index in enumerate(indices) if index in layer.fitted}
            layers.append(replace(layer, rows=tuple(rows), fitted=fitted))
        return replace(self, candidates=tuple(self.candidates[index] for index in indices), layers=tuple(layers))

    def __repr__(self) -> str:
        """One line; ``rows`` has the figures."""
        return f"<LeverTable of {self.model.name}: {len(self.kv_heads)} KV heads, {len(self.candidates)} candidates>"


def refuse_unsupported(description: ModelDescription) -> None:
    """Refuse models without a cache that could be exchanged for something else.

    Raises:
        UnsupportedModelError: the model is bidirectional, all its modules stay exact, or they have heads of several
            shapes.

    """
    if not description.alike:
        raise UnsupportedModelError(
            f"{description.name} has layers whose heads are of several shapes, and levers are offered to all alike; "
            "leave out --budget and --levers"
        )
    if not description.causal or not description.open_modules:
        raise UnsupportedModelError(
            f"{description.name} has no attention module whose cache could be exchanged: levers are for causal models "
            "with layers that see the whole context; leave out --budget and --levers"
        )


def measure(
    model: Any,
    description: ModelDescription,
    sequences: Tensor,
    candidates: Sequence[Candidate],
    instead: Callable[[Candidate, AttentionModule], Candidate | None],
    *,
    probes: Probes | None = None,
    seed: int,
    records: Records,
    progress: Progress,
) -> LeverTable:
    """Measure candidates on sequences ``[N, T]``; layers that ``records`` has are not measured again.

    ``instead`` names what is measured beside a candidate, a near field of the same bytes, or None; ``probes`` give keys
    their priorities and are needed where a candidate keeps keys. Memory is that of one
    module's queries, keys, values, outputs and gradients on all sequences, or of a sequence on its way back through
    the model; those of all modules lie on disk beside the records, until it is their turn.

    Raises:
        UnsupportedModelError: the model is bidirectional, has no language-model head, or no module to truncate.
        NonFiniteError: the model breaks down.

    """
    refuse_unsupported(description)
    modules = description.open_modules
    layers = [_read(records, module.name) for module in modules]
    missing = [module.name for module, layer in zip(modules, layers, strict=True) if layer is None]
    if missing:
        mine = processes.share(len(sequences), "sequences that levers are measured on")
        with Spill(records.directory / f"spilled-{processes.rank()}") as spilled:
            observed = _Observations(spilled, missing)
            head = language_model_head(model)
            for done, number in enumerate(mine):
                progress(BACKWARD, done, len(mine))
                sequence, keep = sequences[number], partial(observed.keep, number)
                observe_sequence(model, sequence, partial(nll_gradient, head, sequence), keep)
            for done, module in enumerate(modules):
                progress(LEVERS, done, len(modules))
                if layers[done] is None:
                    probe = None if probes is None else probes.weights[module.name]
                    windows = [instead(candidate, module) for candidate in candidates]
                    of_module = [observed.take(number, module.name) for number in mine]
                    layer = measure_levers(module.name, of_module, candidates, windows, probe=probe, seed=seed)
                    _write(records, layer)
                    layers[done] = layer
    progress(LEVERS, len(modules), len(modules))
    measured = tuple(layer for layer in layers if layer is not None)
    return LeverTable(description, tuple(candidates), measured, None if probes is None else probes.about)


class _Observations:
    """What was observed of attention modules on sequences, on disk between the way back and their turn."""

    def __init__(self, spilled: Spill, modules: Collection[str]) -> None:
        """Keep what is observed of these modules."""
        self.spilled, self.modules = spilled, modules
        self._about: dict[str, tuple[float, ScoreTerms, torch.device]] = {}

    def keep(self, sequence: int, module: str, observed: Observed) -> None:
        """Put away what was observed of a module on the sequence of that number."""
        if module in self.modules:
            tensors = {name: getattr(observed, name) for name in _TENSORS}
            self.spilled.put(f"{module}-{sequence}", tensors)
            self._about[module] = observed.scaling, observed.terms, observed.q.device

    def take(self, sequence: int, module: str) -> Observed:
        """The same, where the module is."""
        scaling, terms, device = self._about[module]
        tensors = self.spilled.take(f"{module}-{sequence}")
        q, k, v, output, gradient = (tensors[name].to(device) for name in _TENSORS)
        return Observed(q, k, v, output, gradient, scaling, terms)


def record_name(module: str) -> str:
    """Name of the record that a module's measurements are kept in."""
    return f"levers-{module}"


def _write(records: Records, layer: LayerLevers) -> None:
    tensors = {"centres": layer.prepared.centres}
    if layer.prepared.rotations is not None:
        tensors |= dict(zip(("query", "key"), layer.prepared.rotations, strict=True))
    if layer.prepared.probe is not None:
        tensors["probe"] = layer.prepared.probe
    value = {"rows": [asdict(row) for row in layer.rows], "fitted": layer.fitted}
    records.put(record_name(layer.module), value, tensors)


def _read(records: Records, module: str) -> LayerLevers | None:
    name = record_name(module)
    value = records.get(name)
    if value is None:
        return None
    tensors = records.tensors(name)
    rotations = (tensors["query"], tensors["key"]) if "query" in tensors else None
    return LayerLevers(
        module=module,
        rows=tuple(LeverRow(**row) for row in value["rows"]),
        fitted={int(index): tuple(map(tuple, heads)) for index, heads in value["fitted"].items()},
        prepared=Prepared(tensors["centres"], rotations, tensors.get("probe")),
    )
