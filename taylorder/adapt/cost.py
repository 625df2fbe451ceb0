"""What a choice costs: features, nominal bytes, break-even contexts, FLOPs (docs/math.md#11-cost).

Nominal bytes count the KV cache in bfloat16, the state and the priorities of kept keys in float32; every comparison
uses them. They are not what a
particular run holds in memory. ``d`` is the head dim, ``d_v`` the value dim, ``P`` the order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from taylorder.kernels.spec import MAX_ORDER, Exact, HeadSpec, Near, deepest

if TYPE_CHECKING:
    from taylorder.adapt.config import OrderConfig
    from taylorder.models.description import AttentionModule, ModelDescription, WhyExact

KV_BYTES = 2
STATE_BYTES = 4
PRIORITY_BYTES = 4


class KvShape(Protocol):
    """What the tokens and bytes of a KV head depend on, as an attention module has it."""

    @property
    def head_dim(self) -> int:
        """Numbers of a key."""

    @property
    def value_dim(self) -> int:
        """Numbers of a value."""

    @property
    def stays_exact(self) -> WhyExact | None:
        """Why its heads stay as they are; None where they may be truncated."""

    def seen_tokens(self, tokens: int) -> int:
        """How many keys a query sees at most, after so many tokens."""

    def cached_tokens(self, tokens: int) -> int:
        """Tokens whose keys and values exact attention holds for it after so many."""


def features(head_dim: int, order: int, ranks: Sequence[int] | None = None) -> int:
    """Number of monomials D_P of degree 0 … P-1 in the symmetric basis.

    Args:
        head_dim: d.
        order: P >= 1.
        ranks: ``ranks[p]`` coordinates are used by degree p, ``ranks[0]`` says nothing; None uses all d.

    """
    dims = [head_dim] * order if ranks is None else list(ranks)
    return 1 + sum(math.comb(dims[degree] + degree - 1, degree) for degree in range(1, order) if dims[degree])


def state_bytes(head_dim: int, value_dim: int, order: int, ranks: Sequence[int] | None = None) -> int:
    """Nominal bytes of one KV head's state ``[D, d_v + 1]``."""
    return features(head_dim, order, ranks) * (value_dim + 1) * STATE_BYTES


def kv_bytes(head_dim: int, value_dim: int, tokens: int) -> int:
    """Nominal bytes of one KV head's keys and values for that many tokens."""
    return tokens * (head_dim + value_dim) * KV_BYTES


def near_bytes(near: Near, head_dim: int, value_dim: int, tokens: int) -> int:
    """Nominal bytes of what one KV head holds of a near field after ``tokens`` tokens; kept keys have priorities."""
    kept = min(near.kept, max(0, tokens - near.window - near.sinks))
    return kv_bytes(head_dim, value_dim, min(tokens, near.tokens)) + kept * PRIORITY_BYTES


def break_even_tokens(
    head_dim: int, value_dim: int, order: int, ranks: Sequence[int] | None = None, near: int = 0, kept: int = 0
) -> int:
    """Smallest context, in tokens, at which a state and the near field are no larger than the KV cache.

    ``near`` tokens are cached, ``kept`` of them with a priority.
    """
    beside = state_bytes(head_dim, value_dim, order, ranks) + kept * PRIORITY_BYTES
    return math.ceil(beside / kv_bytes(head_dim, value_dim, 1)) + near


def break_even_flops(head_dim: int, value_dim: int, order: int, group: int = 1) -> int:
    """Smallest sequence length at which two-sided Taylor attention needs no more FLOPs than quadratic attention.

    Per token and query head, quadratic attention multiplies and adds ``n (d + d_v)`` pairs; Taylor attention reads
    ``D (d_v + 1)`` from the state and, once per KV head, adds as many to it. Encoders have no cache, so this is their
    break-even.
    """
    per_query_head = features(head_dim, order) * (value_dim + 1) * (1 + 1 / group)
    return math.ceil(per_query_head / (head_dim + value_dim))


def kv_head_bytes(group: Sequence[HeadSpec], shape: KvShape, tokens: int) -> int:
    """Nominal bytes of the cache and state of one KV head after ``tokens`` tokens, whose query heads run ``group``."""
    d, d_v = shape.head_dim, shape.value_dim
    if isinstance(group[0].far, Exact):
        return kv_bytes(d, d_v, shape.cached_tokens(tokens))
    polynomial = deepest(group)
    state = 0 if polynomial is None else state_bytes(d, d_v, polynomial.order, polynomial.ranks)
    return near_bytes(group[0].near, d, d_v, tokens) + state


def config_bytes(config: OrderConfig, model: ModelDescription, tokens: int) -> int:
    """Nominal bytes of all caches and states of a causal model after ``tokens`` tokens, summed over KV heads."""
    return sum(
        kv_head_bytes([head.spec for head in group], module, tokens)
        for layer, module in zip(config.layers, model.modules, strict=True)
        for group in module.groups(layer.heads)
    )


def latent_bytes(config: OrderConfig, model: ModelDescription, tokens: int) -> int:
    """:func:`config_bytes` where layers whose heads are all exact keep latents, if they have any.

    A state takes keys and values as they enter the softmax, and so do exact heads beside it: there is no latent there.
    """
    total = 0
    for layer, module in zip(config.layers, model.modules, strict=True):
        if module.latent_dim is not None and all(isinstance(head.spec.far, Exact) for head in layer.heads):
            total += module.latent_dim * KV_BYTES * module.cached_tokens(tokens)
        else:
            groups = module.groups([head.spec for head in layer.heads])
            total += sum(kv_head_bytes(group, module, tokens) for group in groups)
    return total


def latent_break_even_tokens(module: AttentionModule, order: int, near: int = 0) -> int:
    """Smallest context at which the states and near fields of all KV heads of a module are no larger than its latents.

    The module has latents, and none that is empty.
    """
    d, d_v = module.head_dim, module.value_dim
    beside = module.kv_heads * (state_bytes(d, d_v, order) + kv_bytes(d, d_v, near))
    return math.ceil(beside / ((module.latent_dim or 0) * KV_BYTES))


def largest_order(head_dim: int, value_dim: int, context: int, *, causal: bool, group: int = 1, near: int = 0) -> int:
    """Largest order of 1 … 8 that pays off at ``context`` tokens; 0 if not even order 1 does.

    Causal attention pays in bytes (state and near field against the KV cache), bidirectional attention in FLOPs.
    """

    def needed(order: int) -> int:
        if causal:
            return break_even_tokens(head_dim, value_dim, order, near=near)
        return break_even_flops(head_dim, value_dim, order, group)

    return max((order for order in range(1, MAX_ORDER + 1) if needed(order) <= context), default=0)
