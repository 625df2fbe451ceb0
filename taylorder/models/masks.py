"""What a mask admits: the library's own mask function decides, and plain masks stay small.

A mask is *plain* where it says no more than direction and padding. A truncated head follows plain masks only: its far
field is a sum over all earlier (or all) real keys. Exact heads follow whatever the model's mask says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_HIDDEN = -1e4
"""What is added to the score of a hidden key, or less: far below any score of a model that works."""


def short_mask(**options: Any) -> Tensor | None:
    """Answer as transformers' ``sdpa_mask``, with the same options, without anything of size tokens x tokens.

    Returns:
        None where ``sdpa_mask`` gives None. For plain causal masks the validity of keys, bool ``[B, S]``; for plain
        masks in both directions the mask itself, ``[B, 1, T, S]``, as a view of as much. Any other mask as it is, and
    so is one that the model asks for with ``allow_is_causal_skip=False``, because it reads the mask itself.

    """
    from transformers.masking_utils import bidirectional_mask_function, causal_mask_function, sdpa_mask

    function = options.get("mask_function", causal_mask_function)
    read_by_model = function is causal_mask_function and not options.get("allow_is_causal_skip", True)
    plain = function in (causal_mask_function, bidirectional_mask_function)
    if options.get("local_size") is not None or read_by_model or not plain:
        whole: Tensor | None = sdpa_mask(**options)
        return whole
    short: Tensor | None = sdpa_mask(**{**options, "mask_function": _every_key})
    return short if short is None or function is bidirectional_mask_function else short[:, 0, 0]


def causal_mask(valid: Tensor, queries: int) -> Tensor:
    """Make of the validity of keys, bool ``[B, S]``, what ``sdpa_mask`` makes of it for the last ``queries`` tokens."""
    from transformers.masking_utils import sdpa_mask

    B, S = valid.shape
    mask: Tensor = sdpa_mask(
        batch_size=B, q_length=queries, kv_length=S, q_offset=S - queries, attention_mask=valid,
        allow_is_causal_skip=False, device=valid.device,
    )  # fmt: skip
    return mask


def admitting(mask: Tensor | None) -> Tensor | None:
    """Return a mask as bool, True where a query may look, if it only admits and hides: zeros, and what exp makes zero.

    That is the minimum of its dtype, or -10,000 (MarkupLM). One that adds anything else comes back as it is.
    """
    if mask is None or not mask.is_floating_point():
        return mask
    admitted = mask == 0
    return admitted if bool((admitted | (mask <= _HIDDEN)).all()) else mask


def admitted_and_added(mask: Tensor | None, kwargs: Mapping[str, Any]) -> tuple[Tensor | None, Tensor | None]:
    """Which keys a mask lets the queries see, bool, and what the call adds to their scores; None where nothing.

    Scores are added to by an argument ``position_bias``, or by a mask that is not only of zeros and what hides.
    """
    added: Tensor | None = kwargs.get("position_bias")
    mask = admitting(mask)
    if mask is not None and mask.is_floating_point():
        added = mask if added is None else added + mask
        mask = mask > _HIDDEN
    return mask, added


def picked_keys(kwargs: Mapping[str, Any], keys: int) -> Tensor | None:
    """Which keys the argument ``indices`` ``[B, T, n]`` of a call picks, bool ``[B, 1, T, S]``; None for all."""
    indices: Tensor | None = kwargs.get("indices")
    if indices is None:
        return None
    picked = torch.zeros(*indices.shape[:2], keys, dtype=torch.bool, device=indices.device)
    return picked.scatter(-1, indices.long(), True)[:, None]


def key_validity(mask: Tensor | None, queries: int, *, causal: bool) -> Tensor | None:
    """Which keys are real, bool ``[B, S]``, under a plain mask; None where all are.

    Args:
        mask: bool ``[B, S]`` (causal, see :func:`short_mask`) or ``[B, 1 or H, T, S]``, of the last T of S tokens.
        queries: T.
        causal: the direction of the module.

    Raises:
        ValueError: the mask is not plain; the message says what it does, to follow "a mask that".

    """
    if mask is None:
        return None
    if mask.dtype != torch.bool or mask.ndim not in (2, 4):
        raise ValueError(f"is of {str(mask.dtype).removeprefix('torch.')} {tuple(mask.shape)}, not bool [B, 1, T, S]")
    if mask.ndim == 2:
        if not causal:
            raise ValueError("hides later tokens from earlier ones")
        return mask
    if not causal and mask.stride(-2) == 0:  # one row for all queries
        return mask[:, 0, 0]
    mask = mask.expand(-1, -1, queries, -1)
    valid = mask.any(-2, keepdim=True)
    expected = valid & _earlier(mask) if causal else valid
    # Queries that see nothing are padding, and what comes out for them is nobody's business.
    wrong = (mask != expected) & mask.any(-1, keepdim=True)
    for shown, what in (
        (mask, "lets token {} see token {}, which comes later"),
        (~mask, "hides from token {} token {}"),
    ):
        if (wrong & shown).any():
            *_, query, key = (wrong & shown).nonzero()[0].tolist()
            raise ValueError(what.format(query + mask.shape[-1] - queries, key))
    if not (valid == valid[:, :1]).all():
        raise ValueError("differs between heads")
    return valid[:, 0, 0]


def looks_ahead(mask: Tensor | None, queries: int) -> bool:
    """Whether a mask, bool ``[B, 1 or H, T or 1, S]`` of the last T = ``queries`` tokens, shows a token a later one."""
    if mask is None or mask.ndim != 4 or mask.dtype != torch.bool:
        return False
    rows = mask.expand(-1, -1, queries, -1)
    return bool((rows & ~_earlier(rows)).any())


def _earlier(mask: Tensor) -> Tensor:
    """Which keys are the query or come before it, bool ``[T, S]``."""
    T, S = mask.shape[-2:]
    column = torch.arange(S, device=mask.device)
    return column <= column[S - T :, None]


def _every_key(_batch: Tensor, _head: Tensor, _query: Tensor, key: Tensor) -> Tensor:
    """Admit all: a mask function whose result has no rows, so that it is never written out."""
    return key >= 0
