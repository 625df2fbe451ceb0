"""Measure all candidates of all KV heads: one forward and one backward pass, then layer by layer, each kept on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from taylorder.analysis.losses import language_model_head, nll_gradient
from taylorder.errors import UnsupportedModelError
from taylorder.models.description import AttentionModule, ModelDescription
from taylorder.selection.candidates import Candidate
from taylorder.selection.gradients import Observed, observe_sequence
from taylorder.selection.lever_errors import LayerLevers, LeverRow, Prepared, measure_levers
from taylorder.storage.progress import Progress
from taylorder.storage.records import Records


@dataclass(frozen=True)
class LeverTable:
    """What every candidate of every KV head costs in accuracy; layers in the order of the model.

    Only modules that see the whole context are there; those with a sliding window of their own stay as they are.
    """

    model: ModelDescription
    candidates: tuple[Candidate, ...]
    layers: tuple[LayerLevers, ...]

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
        count = len(self.candidates)
        return [
            list(layer.rows[start : start + count])
            for layer in self.layers
            for start in range(0, len(layer.rows), count)
        ]

    def only(self, places: Sequence[int]) -> LeverTable:
        """The table with the candidates at these places alone, in this order."""
        count = len(self.candidates)
        layers = []
        for layer in self.layers:
            rows = [
                replace(layer.rows[start + place], candidate=own)
                for start in range(0, len(layer.rows), count)
                for own, place in enumerate(places)
            ]
            fitted = {own: layer.fitted[place] for own, place in enumerate(places) if place in layer.fitted}
            layers.append(replace(layer, rows=tuple(rows), fitted=fitted))
        return replace(self, candidates=tuple(self.candidates[place] for place in places), layers=tuple(layers))


def refuse_unsupported(description: ModelDescription) -> None:
    """Refuse models without a cache that could be exchanged for something else.

    Raises:
        UnsupportedModelError: the model is bidirectional, or all its modules have sliding windows.

    """
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
    seed: int,
    records: Records,
    progress: Progress,
) -> LeverTable:
    """Measure candidates on sequences ``[N, T]``; layers that ``records`` has are not measured again.

    ``instead`` names what is measured beside a candidate, a window of the same bytes, or None. Memory is that of all
    modules' queries, keys, values, outputs and gradients on all sequences.

    Raises:
        UnsupportedModelError: the model is bidirectional, has no language-model head, or no module to truncate.
        NonFiniteError: the model breaks down.

    """
    refuse_unsupported(description)
    modules = description.open_modules
    table = [_read(records, module.name) for module in modules]
    if any(layer is None for layer in table):
        head = language_model_head(model)
        observed: list[dict[str, Observed]] = []
        for done, sequence in enumerate(sequences):
            progress("backward pass", done, len(sequences))
            observed.append(observe_sequence(model, sequence, partial(nll_gradient, head, sequence))[1])
        for place, module in enumerate(modules):
            progress("levers", place, len(modules))
            own = [each.pop(module.name) for each in observed]
            if table[place] is None:
                layer = measure_levers(
                    module.name, own, candidates, [instead(each, module) for each in candidates], seed=seed
                )
                _write(records, layer)
                table[place] = layer
    progress("levers", len(modules), len(modules))
    return LeverTable(description, tuple(candidates), tuple(layer for layer in table if layer is not None))


def _write(records: Records, layer: LayerLevers) -> None:
    tensors = {"centres": layer.prepared.centres}
    if layer.prepared.rotations is not None:
        tensors |= dict(zip(("query", "key"), layer.prepared.rotations, strict=True))
    value = {"rows": [asdict(row) for row in layer.rows], "fitted": layer.fitted}
    records.put(f"levers-{layer.module}", value, tensors)


def _read(records: Records, module: str) -> LayerLevers | None:
    name = f"levers-{module}"
    value = records.get(name)
    if value is None:
        return None
    tensors = records.tensors(name)
    return LayerLevers(
        module=module,
        rows=tuple(LeverRow(**row) for row in value["rows"]),
        fitted={int(place): tuple(map(tuple, heads)) for place, heads in value["fitted"].items()},
        prepared=Prepared(tensors["centres"], (tensors["query"], tensors["key"]) if "query" in tensors else None),
    )
