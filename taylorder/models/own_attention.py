"""Attention as a model computes it by itself, for what attends through a name registered here and is to stay the same.

Models whose scores are plain run transformers' SDPA, whatever they run by themselves. What SDPA has no argument for,
learned sinks and soft caps, is computed by the function that the model's own file has for it, to the last bit.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from taylorder.errors import UnsupportedModelError
from taylorder.kernels.score_terms import ScoreTerms
from taylorder.models.masks import picked_keys

_EAGER = "eager_attention_forward"

_SCORES = 1 << 28
"""Most scores written out at once, of all heads: as many sequences at a time as have no more."""


def attend_unchanged(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    causal: bool,
    scaling: float | None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> Tensor:
    """Attend as the module would by itself; output ``[B, T, H, d_v]``.

    Args:
        module: what attends.
        query: ``[B, H, T, d]``.
        key: ``[B, G, S, d]``.
        value: ``[B, G, S, d_v]``.
        mask: bool ``[B, 1 or H, T, S]``, or float of what is added to scores, or None.
        causal: whether a missing mask means "no look ahead".
        scaling: factor of q.k; None is ``d ** -0.5``.
        dropout: of the weights.
        kwargs: what else the module passed.

    Raises:
        UnsupportedModelError: there are such terms, and the model's file has no function that computes them.

    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    kwargs.pop("is_causal", None)  # ``causal`` says it
    picked = picked_keys(kwargs, key.shape[2])
    if picked is not None:
        del kwargs["indices"]
        mask = picked if mask is None else mask & picked
    if score_terms(kwargs).plain:
        output: Tensor = sdpa_attention_forward(
            module, query, key, value, mask, dropout=dropout, scaling=scaling, is_causal=causal, **kwargs
        )[0]
        return output
    eager, added = _eager(module), _added(mask, query, key, causal)
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    B, H, T, _ = query.shape
    together = max(1, _SCORES // max(1, H * T * key.shape[2]))
    outputs = []
    for start in range(0, B, together):
        some = slice(start, start + together)
        part = added if added is None or len(added) == 1 else added[some]
        tensors = (tensor[some] for tensor in (query, key, value))
        bias = kwargs.get("position_bias")
        options = kwargs if bias is None or len(bias) == 1 else {**kwargs, "position_bias": bias[some]}
        outputs.append(eager(module, *tensors, part, scaling=factor, dropout=dropout, **options)[0])
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def score_terms(kwargs: Mapping[str, Any]) -> ScoreTerms:
    """What the arguments of an attention call do to scores beside scaling: learned sinks ``[H]``, and a cap."""
    cap = kwargs.get("softcap")
    return ScoreTerms(kwargs.get("s_aux"), None if cap is None else float(cap))


def _eager(module: nn.Module) -> Callable[..., tuple[Tensor, Tensor]]:
    """The attention that the model's file defines, with arguments as transformers has them."""
    for owner in type(module).__mro__:
        function: Callable[..., tuple[Tensor, Tensor]] | None = getattr(sys.modules[owner.__module__], _EAGER, None)
        if function is not None:
            return function
    raise UnsupportedModelError(
        f"{type(module).__name__} has learned sinks or capped scores, and its file ({type(module).__module__}) has no "
        f"{_EAGER} to compute them by: update the model's code, or choose a model whose class is in transformers."
    )


def _added(mask: Tensor | None, query: Tensor, key: Tensor, causal: bool) -> Tensor | None:
    """What to add to scores instead of a bool mask: 0, and the least number there is where nothing may be seen."""
    if mask is None:
        if not causal or query.shape[2] == 1:
            return None
        mask = torch.ones(1, 1, query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
    if mask.is_floating_point():
        return mask
    zeros = torch.zeros(mask.shape, dtype=query.dtype, device=query.device)
    return zeros.masked_fill_(~mask, torch.finfo(query.dtype).min)
