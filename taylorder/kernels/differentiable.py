"""Attention with gradients: everything that ``taylor_attention`` computes, in memory linear in tokens.

KV heads of one kind, which differ in coefficients at most, are computed together. Those whose far field is dropped, and
exact ones, are ordinary attention to some of the keys, which torch differentiates well; all others, and padding, go
block of rows after block (``recomputed``). There, far keys are weighed one by one or folded into features, whichever is
less work: see :func:`folds_from`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Optional

import torch
from torch import Tensor

from . import fold_rule
from .choosing import with_choice_gradient
from .exact import windowed_attention
from .polynomial import Polynomials
from .recomputed import Inputs, attend_in_blocks
from .recorded_features import Features, TorchFeatures
from .row_attention import RowAttention
from .row_steps import Plan
from .score_terms import ScoreTerms
from .softmax_attention import softmax_attention
from .spec import Exact, HeadSpec, Near, Taylor, check_heads, deepest, grouped, ignores_shifts
from .tables import count
from .token_buffer import selection
from .triton_backend.state_gradients import triton_features

BLOCK_ROWS = 128
"""Query rows of a block: few, because a block weighs keys above the diagonal in vain."""

_NUMBERS = 1 << 20
"""Most scores of one block, of all KV heads computed together (4 MiB in float32), unless one alone has more."""


def needs_gradient(*tensors: Optional[Tensor]) -> bool:
    """Whether autograd is recording and any of the tensors takes part."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def differentiable_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    heads: Sequence[HeadSpec],
    *,
    scaling: float,
    causal: bool = True,
    valid: Optional[Tensor] = None,
    priority: Optional[Tensor] = None,
    sink_logits: Optional[Tensor] = None,
    softcap: Optional[float] = None,
    shift: Optional[Tensor] = None,
    coefficients: Optional[Tensor] = None,
    backend: Optional[str] = None,
) -> tuple[Tensor, Tensor]:
    """Attend to whole sequences; gradients of first order flow to every tensor but ``valid``.

    Priorities get theirs where a head attends to its near field alone, causally, without padding and soft cap, and it
    is that of :mod:`~taylorder.kernels.choosing`.

    Args:
        query: ``[B, H, T, d]``.
        key: ``[B, G, T, d]``, prepared as for ``taylor_attention``.
        value: ``[B, G, T, d_v]``.
        heads: one spec per query head.
        scaling: factor of q.k.
        causal: False attends in both directions.
        valid: bool ``[B, T]``, False for padding; None if there is none.
        priority: ``[B, G, T]``, needed where a head keeps keys.
        sink_logits: learned sinks ``[H]``; None if there are none.
        softcap: cap of scores under the true exponential; None if there is none.
        shift: by how much scores are less because keys are centred, ``[B, H, T]``; None if they are not.
        coefficients: ``[H, P]`` in place of those of the specs, one per degree up to the largest order P; what a head
            has no use for is ignored. None takes those of the specs.
        backend: of what goes through features: ``triton``, where Triton can (heads of at most 64 dimensions, not in
            float64), or torch. None is ``triton`` on GPUs. Everything else is torch's in any case.

    Returns:
        Output ``[B, H, T, d_v]`` in the dtype of ``query``, zero for padding; the guard is applied. And guarded rows
        per query head, int64 ``[H]``.

    Raises:
        ValueError: an argument does not fit the others.

    """
    check_heads(heads, query.shape[1], key.shape[1], causal)
    order = max((spec.order for spec in heads), default=1)
    if coefficients is not None and tuple(coefficients.shape) != (len(heads), order):
        raise ValueError(
            f"coefficients has shape {tuple(coefficients.shape)}, expected one row per query head and one column per "
            f"degree of the largest order: {(len(heads), order)}"
        )
    terms = ScoreTerms.of_rows(query, sink_logits, softcap, shift)
    if valid is not None and bool(valid.all()):
        valid = None
    kinds: dict[object, list[int]] = {}
    for kv_head, group in enumerate(grouped(heads, key.shape[1])):
        kinds.setdefault(_kind(group), []).append(kv_head)
    B, H, T, d = query.shape
    if not B or not T:
        return query[..., :1].expand(B, H, T, value.shape[-1]), query.new_zeros(H, dtype=torch.int64)
    g = H // key.shape[1]
    outputs, guarded, order_of_heads = [], [], []
    for kv_heads in kinds.values():
        chosen = selection(kv_heads)
        members = [h for kv_head in kv_heads for h in range(kv_head * g, (kv_head + 1) * g)]
        specs = [heads[h] for h in members]
        q, k, v = query, key, value
        of_kind = terms
        ranking = priority
        if len(kinds) > 1:
            q, k, v = query.view(B, -1, g, T, d)[:, chosen].flatten(1, 2), key[:, chosen], value[:, chosen]
            of_kind = terms.at((slice(None), selection(members)))
            ranking = None if ranking is None else ranking[:, chosen]
        own = None if coefficients is None else coefficients[selection(members)]
        rows, hits = _attend_kind(q, k, v, specs, scaling, causal, valid, ranking, of_kind, own, backend)
        outputs.append(rows)
        guarded.append(hits)
        order_of_heads += members
    if len(kinds) == 1:
        return outputs[0], guarded[0]
    back = torch.tensor(order_of_heads).argsort().to(query.device)
    return torch.cat(outputs, 1)[:, back], torch.cat(guarded)[back]


def folds_from(
    tokens: int, window: int, features: int, head_dim: int, value_dim: int, group: int, states: int
) -> Optional[int]:
    """Fewest far tokens that are folded into features at a time; None where weighing them one by one is less work.

    A row that weighs far keys one by one takes ``head_dim + value_dim`` multiplications, and some passes over weights,
    for each of half the tokens. One that reads features takes ``value_dim + 1`` for each of them, and as many again are
    made of every key, once for all query heads of its group. Features are kept as they were at each folding, and so
    many tokens are folded at a time that these copies are about as large as the tokens.

    Args:
        tokens: T.
        window: of the near field.
        features: D.
        head_dim: d.
        value_dim: d_v.
        group: query heads per KV head.
        states: KV heads of all sequences, N.

    """
    waiting = fold_rule.worth_a_state(features, head_dim, value_dim)
    of_key = head_dim + value_dim + _PASSES
    one_by_one = max(0, tokens - window) / 2 * of_key
    folded = features * (value_dim + 1 + _MAKING) * (1 + 1 / group) + waiting / 2 * of_key + _STARTING / states
    return max(waiting, BLOCK_ROWS) if folded < one_by_one else None


_PASSES, _MAKING, _STARTING = 16, 48, 16_000
"""In multiplications of a product, as timed on a CPU for head dims 16 to 64, orders 2 to 4, 256 to 4,096 tokens: passes
over a weight (mask, powers, gradients), making a feature, and the small operations of a row, shared by all states."""


def _kind(group: Sequence[HeadSpec]) -> tuple[HeadSpec, ...]:
    """What KV heads that are computed together have alike: everything but coefficients."""
    return tuple(
        replace(spec, far=replace(spec.far, coefficients=None)) if isinstance(spec.far, Taylor) else spec
        for spec in group
    )


def _attend_kind(
    q: Tensor, k: Tensor, v: Tensor, specs: Sequence[HeadSpec], scaling: float, causal: bool, valid: Optional[Tensor],
    priority: Optional[Tensor], terms: ScoreTerms, coefficients: Optional[Tensor], backend: Optional[str],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``differentiable_attention`` of KV heads of one kind, with the terms of rows ``[B, H, T]``."""
    B, H, T, d = q.shape
    G, d_v = k.shape[1], v.shape[-1]
    group = specs[: H // G]
    exact = isinstance(group[0].far, Exact)
    near = Near(T) if exact else group[0].near
    if valid is None and terms.softcap is None and (near.window or near.kept) and deepest(group) is None:
        if causal:
            ranking = None if priority is None else priority.detach()
            rows = windowed_attention(q, k, v, near, scaling=scaling, priority=ranking, terms=terms)
            if near.kept and priority is not None and needs_gradient(priority):
                rows = with_choice_gradient(rows, priority, q, k, v, near, scaling=scaling, sinks=terms.sinks)
        else:
            rows = softmax_attention(q, k, v, scaling=scaling, terms=terms)
        return rows, torch.zeros(H, dtype=torch.int64, device=q.device)
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    known = None
    if valid is not None:
        # Not a product: whatever padding holds, infinities included, must leave no trace.
        q, k, v = (x.masked_fill(~valid[:, None, :, None], 0.0) for x in (q, k, v))
        known = valid.repeat_interleave(G, 0)
    queries = (q.to(dtype) * scaling).reshape(B * G, H // G, T, d)
    keys, values = k.to(dtype).flatten(0, 1), v.to(dtype).flatten(0, 1)
    ones = values.new_ones(B * G, T, 1) if known is None else known[..., None].to(dtype)
    if ignores_shifts(group):  # powers cancel less where keys are near the origin
        origin = (keys.detach().sum(1) / ones.sum(1).clamp(min=1.0))[:, None]
        keys = keys - origin * ones
        if not terms.plain:
            terms = terms.lowered((queries * origin[:, None]).sum(-1).view(B, H, T))
    polynomials, own = None, queries.new_zeros(B * G, H // G, 1)
    if deepest(group) is not None:
        polynomials = Polynomials.build((tuple(group),), d, dtype, q.device)
        own = _coefficients(specs, polynomials.order, coefficients, queries).view(1, G, H // G, -1)
        own = own.expand(B, -1, -1, -1).flatten(0, 1)
    plan = _plan(polynomials, near, causal, known, priority, terms, queries, d_v, backend)
    sinks, shift = (None if x is None else x.reshape(B * G, H // G, T) for x in (terms.sink_logits, terms.shift))
    rows, guarded = attend_in_blocks(plan, Inputs(queries, keys, torch.cat([values, ones], -1), own, sinks, shift))
    rows, guarded = rows.view(B, H, T, d_v), guarded.view(B, H, T)
    if valid is not None:
        rows, guarded = rows.masked_fill(~valid[:, None, :, None], 0.0), guarded & valid[:, None]
    return rows.to(q.dtype), guarded.sum((0, 2))


def _coefficients(specs: Sequence[HeadSpec], order: int, given: Optional[Tensor], like: Tensor) -> Tensor:
    """Coefficients of every head ``[H, order]``, zero from its own order on: its own, or those given ``[H, P]``."""
    polynomials = [spec.far.polynomial if isinstance(spec.far, Taylor) else () for spec in specs]
    if given is None:
        return like.new_tensor([[*terms, *[0.0] * (order - len(terms))] for terms in polynomials])
    used = torch.tensor([[p < len(terms) for p in range(order)] for terms in polynomials], device=given.device)
    return given[:, :order].to(like.dtype).masked_fill(~used, 0.0)


def _plan(
    polynomials: Optional[Polynomials], near: Near, causal: bool, known: Optional[Tensor],
    priority: Optional[Tensor], terms: ScoreTerms, queries: Tensor, value_dim: int, backend: Optional[str],
) -> Plan:  # fmt: skip
    """How KV heads of one kind are worked through, for queries ``[N, g, T, d]``."""
    N, g, T, d = queries.shape
    fold = None
    waits = polynomials is not None and polynomials.order > 1
    at_hand = min(T, near.tokens + BLOCK_ROWS) if causal else 0
    width = at_hand + T if waits else at_hand
    if polynomials is not None and waits:
        features = sum(count(p, rank) if p else 1 for p, rank in enumerate(polynomials.ranks))
        fold = folds_from(T if causal else 2 * T, near.window, features, d, value_dim, g, N)
        width = width if fold is None else max(at_hand + fold, features)
    rows = min(BLOCK_ROWS, T)
    made: Optional[Features] = None
    if fold is not None and polynomials is not None:
        made = TorchFeatures(polynomials.ranks)
        if backend == "triton" or (backend is None and queries.device.type == "cuda"):
            made = triton_features(d, value_dim, polynomials.ranks, queries.device, queries.dtype) or made
    attention = RowAttention(polynomials, near.tokens > 0, terms.softcap, made)
    together = max(1, _NUMBERS // max(1, g * rows * width))
    ranking = None if priority is None or not near.kept else priority.detach().flatten(0, 1)
    return Plan(attention, near, causal, rows, together, fold, waits, known, ranking)
