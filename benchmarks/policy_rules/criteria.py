"""Criteria that give every candidate of every KV head a loss of its own, and so look at one KV head at a time.

None of these is the loss of the whole model, and all of them lose to the iterative scheme (docs/choosing.md). Two are
the KL of the next-token distributions that is measured when one KV head alone is changed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from taylorder.adapt.handle import attach
from taylorder.adapt.prepared import prepare
from taylorder.analysis.losses import EXACT, hidden_states, language_model_head, token_losses
from taylorder.kernels.spec import Dropped
from taylorder.selection.config_of import config_of
from taylorder.selection.criteria import RELATIVE_L2, Criterion, where_eligible
from taylorder.selection.lever_table import LeverTable
from taylorder.storage.progress import Progress
from taylorder.storage.records import Records

SCREENING_TOKENS = 1024
SCREENING_NEAR = 64
"""Tokens kept in the screening: enough that most heads lose little, few enough that the others show."""

KvHead = tuple[str, int]


def gradient_errors(table: LeverTable) -> list[list[float]]:
    """The gradient-weighted errors ``[KV heads][candidates]``, as measured."""
    return where_eligible(table, [[row.gradient_error for row in rows] for rows in table.rows()])


def shared_out(table: LeverTable, kl: Mapping[KvHead, float], reference: int) -> list[list[float]]:
    """Losses ``[KV heads][candidates]`` from one measured loss of each KV head, that of its ``reference`` candidate.

    The other candidates get as much of it as their squared relative error is of the reference's.
    """
    losses = []
    for kv_head, rows in zip(table.kv_heads, table.rows(), strict=True):
        unit = rows[reference].relative_l2 ** 2
        losses.append([kl[kv_head] * row.relative_l2**2 / unit if unit else 0.0 for row in rows])
    return where_eligible(table, losses)


def criteria(model: Any, screening: Tensor, records: Records, progress: Progress) -> dict[str, Criterion | None]:
    """All criteria by name; None is the iterative scheme.

    Args:
        model: the model.
        screening: calibration sequences ``[N, T]`` on which KV heads are changed one at a time.
        records: where finished layers of that are kept.
        progress: called with a stage, what is done of it, and its size.

    """

    def screened(table: LeverTable, scale: Callable[[float], float]) -> list[list[float]]:
        kl = screen(model, table, screening, records=records, progress=progress)
        return shared_out(table, {kv_head: scale(value) for kv_head, value in kl.items()}, screening_reference(table))

    return {
        "relative-l2": RELATIVE_L2,
        "gradient": Criterion("gradient", gradient_errors),
        "kl": Criterion("kl", lambda table: screened(table, float)),
        "sqrt-kl": Criterion("sqrt-kl", lambda table: screened(table, math.sqrt)),
        "iterative": None,
    }


def screening_reference(table: LeverTable) -> int:
    """The candidate screened: of those that drop the far field, the nearest to :data:`SCREENING_NEAR` tokens."""
    dropped = [place for place, each in enumerate(table.candidates) if isinstance(each.spec.far, Dropped)]
    return min(dropped, key=lambda place: abs(table.candidates[place].spec.near.tokens - SCREENING_NEAR))


def screen(
    model: Any,
    table: LeverTable,
    sequences: Tensor,
    *,
    records: Records,
    progress: Progress,
) -> dict[tuple[str, int], float]:
    """Mean KL in nats when one KV head runs :func:`screening_reference` and all others are exact.

    Activations below the changed layer are those of the exact model and are not computed again. Layers that ``records``
    has are not measured again.

    Args:
        model: the model.
        table: its candidates.
        sequences: ``[N, T]``, :data:`SCREENING_TOKENS` long.
        records: where finished layers are kept.
        progress: called with the stage, KV heads done, and their number.

    """
    modules = table.modules
    done = {module.name: records.get(f"screening-{module.name}") for module in modules}
    if any(value is None for value in done.values()):
        head = language_model_head(model)
        reference = screening_reference(table)
        blocks = [_block(model, module.name) for module in modules]
        totals = {
            name: torch.zeros(module.kv_heads, dtype=torch.float64) for name, module in zip(done, modules, strict=True)
        }
        runs = [_exact_run(model, blocks, sequence) for sequence in sequences]
        for index, module in enumerate(modules):
            progress("screening", index, len(modules))
            if done[module.name] is not None:
                continue
            for kv_head in range(module.kv_heads):
                choice = [reference if other == (module.name, kv_head) else 0 for other in table.kv_heads]
                prepared = prepare(model, config_of(table, choice, context=sequences.shape[1]), table.model)
                for sequence, (exact, outputs) in zip(sequences, runs, strict=True):
                    with attach(model, prepared), _replaying(blocks[:index], outputs):
                        hidden = {EXACT: exact, "changed": hidden_states(model, sequence)}
                    kl = token_losses(head, sequence, hidden)["changed"].kl
                    totals[module.name][kv_head] += float(kl.mean(dtype="float64")) / len(sequences)
            done[module.name] = totals[module.name].tolist()
            records.put(f"screening-{module.name}", done[module.name])
        progress("screening", len(modules), len(modules))
    return {(name, kv_head): value for name, values in done.items() for kv_head, value in enumerate(values)}


def _block(model: nn.Module, module: str) -> nn.Module | None:
    """The element of the model's list of layers that an attention module is part of."""
    match = re.match(r"(.*?\.\d+)\.", module)
    return None if match is None else model.get_submodule(match[1])


def _exact_run(model: Any, blocks: Sequence[nn.Module | None], sequence: Tensor) -> tuple[Tensor, dict[nn.Module, Any]]:
    """Final hidden states of the model as it is, and what each block put out."""
    outputs: dict[nn.Module, Any] = {}

    def keep(block: nn.Module, _args: Any, output: Any) -> None:
        outputs[block] = output

    hooks = [block.register_forward_hook(keep) for block in blocks if block is not None]
    try:
        return hidden_states(model, sequence), outputs
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _replaying(blocks: Sequence[nn.Module | None], outputs: dict[nn.Module, Any]) -> Iterator[None]:
    """Have blocks put out what they did before instead of computing it."""
    changed = [block for block in blocks if block is not None]
    shadowed = [vars(block).get("forward") for block in changed]
    for block in changed:
        block.forward = lambda *_args, _output=outputs[block], **_kwargs: _output
    try:
        yield
    finally:
        for block, forward in zip(changed, shadowed, strict=True):
            if forward is None:
                del block.forward
            else:
                block.forward = forward
