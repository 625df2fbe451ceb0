"""Two configs of one model side by side: what every KV head runs under each, the tokens it holds, and its bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch

from taylorder.adapt.config import OrderConfig
from taylorder.adapt.cost import KvShape, kv_head_bytes
from taylorder.adapt.decisions import ModelIdentity, groups_of
from taylorder.kernels.spec import Exact, HeadSpec, Taylor, deepest, keeps_keys
from taylorder.models.description import WhyExact


@dataclass(frozen=True, slots=True)
class Held:
    """What one config has a KV head hold.

    ``specs`` are those of its query heads, ``tokens`` the keys with the true exponential at the context, and
    ``nominal_bytes`` those of cache and state, 0 where attention is bidirectional and there is none.
    """

    specs: tuple[HeadSpec, ...]
    tokens: int
    nominal_bytes: int

    @property
    def order(self) -> int:
        """Highest order of its polynomials, 0 where there is none."""
        polynomial = deepest(self.specs)
        return 0 if polynomial is None else polynomial.order


@dataclass(frozen=True, slots=True)
class KvHeadPair:
    """One KV head under both configs; differences are those of B less A.

    ``tensors`` are the calibrated tensors in which the two differ although both decide the same.
    """

    module: str
    kv_head: int
    a: Held
    b: Held
    tensors: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        """Whether it computes the same under both."""
        return self.a.specs == self.b.specs and not self.tensors

    @property
    def tokens(self) -> int:
        """Keys with the true exponential."""
        return self.b.tokens - self.a.tokens

    @property
    def nominal_bytes(self) -> int:
        """Bytes of cache and state."""
        return self.b.nominal_bytes - self.a.nominal_bytes


@dataclass(frozen=True, slots=True)
class ConfigPair:
    """Two configs of one model, after ``context`` tokens.

    ``closed`` are the modules that stay as they are; ``exact_bytes`` is what exact attention holds in all, 0 for
    encoders, which have no cache.
    """

    model: ModelIdentity
    context: int
    kv_heads: tuple[KvHeadPair, ...]
    closed: frozenset[str]
    exact_bytes: int

    @property
    def differing(self) -> tuple[KvHeadPair, ...]:
        """The KV heads that do not compute the same, largest difference in bytes first, then in tokens."""
        different = (pair for pair in self.kv_heads if not pair.same)
        return tuple(sorted(different, key=lambda pair: (-abs(pair.nominal_bytes), -abs(pair.tokens))))

    @property
    def bytes_a(self) -> int:
        """Nominal bytes of all caches and states under A."""
        return sum(pair.a.nominal_bytes for pair in self.kv_heads)

    @property
    def bytes_b(self) -> int:
        """The same under B."""
        return sum(pair.b.nominal_bytes for pair in self.kv_heads)

    def per_kv_head(self, total: int) -> int:
        """The mean over the KV heads that may be truncated, what the others hold left out; rounded down."""
        closed = sum(pair.a.nominal_bytes for pair in self.kv_heads if pair.module in self.closed)
        seeing = sum(pair.module not in self.closed for pair in self.kv_heads)
        return (total - closed) // seeing if seeing else 0


@dataclass(frozen=True, slots=True)
class RecordedShape:
    """The shape of a layer's KV heads as far as a config tells."""

    head_dim: int
    value_dim: int
    stays_exact: None = None

    def seen_tokens(self, tokens: int) -> int:
        """All of them."""
        return tokens

    def cached_tokens(self, tokens: int) -> int:
        """All of them."""
        return tokens


def pair_configs(
    a: OrderConfig, b: OrderConfig, shapes: Sequence[KvShape], context: int, *, causal: bool = True
) -> ConfigPair:
    """Put two configs of one model side by side.

    Args:
        a: the first.
        b: the second.
        shapes: the shape of every layer, such as the modules of a model's description.
        context: tokens after which is counted.
        causal: whether attention is, so that there is a cache.

    """
    exact, whole = HeadSpec(Exact()), 0
    pairs: list[KvHeadPair] = []

    def held(group: Sequence[HeadSpec], shape: KvShape) -> Held:
        seen = shape.seen_tokens(context)
        tokens = seen if isinstance(group[0].far, Exact) else min(seen, group[0].near.tokens)
        return Held(tuple(group), tokens, kv_head_bytes(group, shape, context) if causal else 0)

    for layer, ours, theirs, shape in zip(a.layers, _groups(a), _groups(b), shapes, strict=True):
        module = layer.module
        for kv_head, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            tensors = _other_tensors(a, b, module, kv_head, one) if one == other else ()
            pairs.append(KvHeadPair(module, kv_head, held(one, shape), held(other, shape), tensors))
            whole += held([exact], shape).nominal_bytes
    closed = (layer.module for layer, shape in zip(a.layers, shapes, strict=True) if shape.stays_exact is not None)
    return ConfigPair(a.model, context, tuple(pairs), frozenset(closed), whole)


def recorded_shapes(*configs: OrderConfig) -> list[RecordedShape] | None:
    """The shapes of the layers of a model whose values are as wide as its keys, as the bytes that a config records say.

    None where no config's bytes are just those: then only the model knows.
    """
    model = configs[0].model
    shape = RecordedShape(model.head_dim, model.head_dim)
    alike = all(layer.shape is None for layer in configs[0].layers)
    return [shape] * model.layers if alike and any(_explains(shape, config) for config in configs) else None


def _explains(shape: KvShape, config: OrderConfig) -> bool:
    """Whether all bytes that a config records are those of this shape, none of them of a module that stays exact."""
    heads = [head for layer in config.layers for head in layer.heads]
    if config.context is None or any(head.reason in get_args(WhyExact) for head in heads):
        return False
    context, groups = config.context, [group for layer in config.layers for group in groups_of(layer, config.model)]
    return all(
        head.nominal_bytes == kv_head_bytes([one.spec for one in group], shape, context)
        for group in groups
        for head in group
    )


def _groups(config: OrderConfig) -> list[list[Sequence[HeadSpec]]]:
    """What the query heads of every KV head run, by layer."""
    return [[[head.spec for head in heads] for heads in groups_of(layer, config.model)] for layer in config.layers]


def _other_tensors(
    a: OrderConfig, b: OrderConfig, module: str, kv_head: int, group: Sequence[HeadSpec]
) -> tuple[str, ...]:
    """The kinds of calibrated tensors that a KV head reads under these specs and that are not the same in both."""
    centred = any(isinstance(spec.far, Taylor) and spec.far.expansion == "centre" for spec in group)
    read = {
        "probe": keeps_keys(group),
        "rotations": any(spec.ranks is not None for spec in group),
        "key centre": centred,
    }
    ours, theirs = a.tensors(), b.tensors()
    return tuple(
        kind
        for kind, needed in read.items()
        if needed
        and not all(
            torch.equal(one[kv_head], other[kv_head])
            for one, other in zip(
                *(side.get(f"{module}.{kind.replace(' ', '_')}", ()) for side in (ours, theirs)), strict=True
            )
        )
    )
