"""How many tokens a model takes at most: what its config states, or fewer where its table of positions ends earlier.

RoBERTa and its kin state 514 positions and take 512, since theirs begin behind the padding's. Which rows of which table
are read is seen in a forward pass, so it needs no list of architectures.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from taylorder.errors import UnsupportedModelError

_STATED = (
    "max_position_embeddings",
    "n_positions",
    "max_sequence_length",
    "max_seq_len",
    "n_ctx",
    "seq_length",
    "max_target_positions",
)


@dataclass(frozen=True, slots=True)
class TableRead:
    """How many rows a table has, those that were read for the first sequence ``[T]``, and whether it is the tokens'."""

    length: int
    rows: torch.Tensor
    of_tokens: bool


class _Lookups(TorchFunctionMode):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.seen: list[TableRead] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.embedding:
            rows, table = (*args, *(kwargs or {}).values())[:2]
            if rows.ndim and rows.numel():
                # Asked now: a table that is brought in to run is another one afterwards.
                of_tokens = table is token_embeddings(self.model)
                self.seen.append(TableRead(len(table), rows.detach().reshape(-1, rows.shape[-1])[0], of_tokens))
        return func(*args, **(kwargs or {}))


@contextmanager
def lookups(model: Any) -> Iterator[list[TableRead]]:
    """Note every lookup of a model in a table of embeddings inside the block; what is looked up stays the same."""
    with _Lookups(model) as mode:
        yield mode.seen


def longest_context(model: Any, name: str, seen: list[TableRead]) -> int:
    """Return the longest context of ``model``, in tokens, given the lookups of a forward pass without a cache.

    Raises UnsupportedModelError where neither its config nor a table of positions says.
    """
    config = model.config.get_text_config()
    stated = [value for field in _STATED if isinstance(value := getattr(config, field, None), int) and value > 0]
    longest = [*stated[:1], *_table_lengths(model, getattr(config, "pad_token_id", None), seen)]
    if not longest:
        raise UnsupportedModelError(
            f"{name} states no longest context: its {type(config).__name__} has none of {', '.join(_STATED)}, and "
            "costs depend on it. Set config.max_position_embeddings."
        )
    return min(longest)


def token_embeddings(model: Any) -> torch.Tensor | None:
    """Return the table of a row per token, or None where there is not one: bytes that are hashed, several tables."""
    try:
        weight = getattr(model.get_input_embeddings(), "weight", None)
    except (NotImplementedError, AttributeError):
        return None
    return weight if isinstance(weight, torch.Tensor) else None


def _table_lengths(model: Any, padding: int | None, seen: list[TableRead]) -> Iterator[int]:
    """Tokens that fit into every table whose rows were read one after the other, beginning with the first token's."""
    if token_embeddings(model) is None:
        return  # nothing tells positions from token ids
    token_ids = [lookup.rows for lookup in seen if lookup.of_tokens]
    for lookup in seen:
        rows = lookup.rows
        # The token ids themselves may be consecutive too, and padding among them takes a row of its own.
        if any(torch.equal(rows, ids) for ids in token_ids):
            continue
        taken = next((rows[ids != padding] for ids in token_ids if ids.shape == rows.shape), rows)
        if len(taken) > 1 and bool((taken.diff() == 1).all()):
            yield lookup.length - int(taken[0])
