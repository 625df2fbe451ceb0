"""Attention of rules whose scores change while a sequence is read, in loops of their own.

The near field is that of the product: sinks, the last ``window`` keys and ``kept`` others. A key competes from the row
at which it leaves the window on, and what is evicted never comes back. Only the score differs:

* :class:`HeavyHitters` (H2O, arXiv 2306.14048): the attention a key has received so far, from its own row on and from
  all query heads of the group. It accumulates over what survives: weights are normalised over the near field alone,
  and an evicted key receives nothing more. One eviction per row, with what was received up to the row before: exact.
* :class:`Recall` (LoLA, arXiv 2505.23666): how badly the state recalls the value of a key that asks for it itself. What
  is evicted goes into the state, here one of Taylor features instead of learned ones, and stays readable in it. One
  eviction per row; scores are those that the state gave at the beginning of a block of 64 rows. That hardly matters:
  NLL of a sequence of 1,024 tokens 2.7951 with blocks of one row, 2.7894 with 16, 2.7955 with 64 (SmolLM2-135M, 128
  tokens per KV head).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from taylorder.adapt.config import OrderConfig
from taylorder.kernels.exact import windowed_attention
from taylorder.kernels.spec import Dropped, Exact, HeadSpec, Near, Taylor, grouped
from taylorder.models.attention import selected

ATTENTION_NAME = "taylorder_keeping"


class Keeper:
    """One KV head that reads a whole sequence, block after block.

    Attributes:
        kept: numbers of the keys kept now, ascending.
        count, keys, values, products: the state: number of the keys in it, sum of them ``[d]``, sum of their values
            ``[d_v]``, and sum of key times value ``[d, d_v]``.

    """

    ROWS: ClassVar[int] = 64

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, near: Near, order: int, scaling: float) -> None:
        """Take queries ``[h, T, d]``, keys ``[T, d]`` and values ``[T, d_v]``; order 0 drops the far field."""
        if near.window < 1:
            raise ValueError(f"the window is {near.window}, expected at least 1: a key receives nothing before its row")
        self.q, self.k, self.v, self.near, self.order, self.scaling = q * scaling, k, v, near, order, scaling
        self.kept = np.empty(0, dtype=np.int64)
        self.count = 0
        self.keys, self.values = k.new_zeros(k.shape[-1]), v.new_zeros(v.shape[-1])
        self.products = k.new_zeros(k.shape[-1], v.shape[-1])

    def outputs(self) -> Tensor:
        """Read everything: ``[h, T, d_v]``."""
        T = len(self.k)
        return torch.cat([self._block(start, min(start + self.ROWS, T)) for start in range(0, T, self.ROWS)], 1)

    def standings(self, numbers: np.ndarray) -> np.ndarray:
        """The scores of keys at the beginning of a block, float64 ``[N]``; the lowest goes."""
        raise NotImplementedError

    def after_row(self, scores: np.ndarray) -> np.ndarray | float:
        """What the standings gain by a row with these scores ``[h, N]``, minus infinity for all that is not near."""
        return 0.0

    def after_block(self, numbers: np.ndarray, standings: np.ndarray) -> None:
        """Note the standings at the end of a block."""

    def _block(self, start: int, stop: int) -> Tensor:
        near, rows = self.near, stop - start
        sinks, first = min(near.sinks, stop), max(near.sinks, start - near.window)
        numbers = np.concatenate([np.arange(sinks), self.kept, np.arange(first, stop)])
        competes = np.full(len(numbers), np.inf)  # added to the standings
        competes[sinks : sinks + len(self.kept)] = 0.0
        at_hand = torch.from_numpy(numbers)
        made = at_hand <= torch.arange(start, stop)[:, None]
        scores = (self.q[:, start:stop] @ self.k[at_hand].T).masked_fill_(~made, -torch.inf)
        by_row = scores.transpose(0, 1).contiguous().numpy()

        standings = self.standings(numbers)
        far_from, gone, held = np.full(len(numbers), rows), np.zeros(len(numbers), by_row.dtype), len(self.kept)
        for row in range(rows):
            leaver = start + row - near.window
            if leaver >= near.sinks:
                competes[sinks + len(self.kept) + leaver - first] = 0.0
                held += 1
                if held > near.kept:
                    loser = int((standings + competes).argmin())  # of equal ones the earliest
                    far_from[loser], gone[loser], competes[loser], held = row, -np.inf, np.inf, held - 1
            standings += self.after_row(by_row[row] + gone)
        self.after_block(numbers, standings)

        far = made & (torch.from_numpy(far_from) <= torch.arange(rows)[:, None])
        output = self._attend(self.q[:, start:stop], scores, made & ~far, far, self.v[at_hand])
        self.kept = numbers[np.isfinite(competes)]
        self._take_in(torch.from_numpy(numbers[far_from < rows]))
        return output

    def _attend(self, q: Tensor, scores: Tensor, near: Tensor, far: Tensor, values: Tensor) -> Tensor:
        """The rows of a block; ``near`` and ``far`` ``[R, N]`` are of the keys at hand, the state has the others."""
        near_scores = scores.masked_fill(~near, -torch.inf)
        count = (self.count + far.sum(-1)) * bool(self.order)
        if not count.any():
            return near_scores.softmax(-1) @ values
        mean = (q @ self.keys + scores.masked_fill(~far, 0.0).sum(-1)) / count.clamp(min=1)
        numerator, weights = self.values.expand(*mean.shape, -1), far.to(scores.dtype)
        if self.order == 2:
            numerator = numerator * (1 - mean)[..., None] + q @ self.products
            weights = (1 + scores - mean[..., None]).masked_fill(~far, 0.0)
        numerator = numerator + weights @ values
        top = torch.maximum(near_scores.amax(-1), mean.masked_fill(count == 0, -torch.inf))
        exponentials, scale = (near_scores - top[..., None]).exp(), (mean - top).exp() * (count > 0)
        total = exponentials.sum(-1) + scale * count
        return (exponentials @ values + scale[..., None] * numerator) / total[..., None]

    def _take_in(self, evicted: Tensor) -> None:
        """Add keys to the state."""
        keys, values = self.k[evicted], self.v[evicted]
        self.count += len(evicted)
        self.keys, self.values = self.keys + keys.sum(0), self.values + values.sum(0)
        self.products = self.products + keys.T @ values


class HeavyHitters(Keeper):
    """What has received most attention so far stays."""

    def __init__(self, *args: Any) -> None:
        """Begin with nothing received."""
        super().__init__(*args)
        self.received = np.zeros(len(self.k))

    def standings(self, numbers: np.ndarray) -> np.ndarray:
        """Received up to the row before."""
        return self.received[numbers]

    def after_row(self, scores: np.ndarray) -> np.ndarray | float:
        """The weights of the row, summed over query heads."""
        scores -= scores.max(-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(-1, keepdims=True)
        return scores.sum(0)

    def after_block(self, numbers: np.ndarray, standings: np.ndarray) -> None:
        """Keep the sums."""
        self.received[numbers] = standings


class Recall(Keeper):
    """What the state recalls worst stays, and the rest goes into the state."""

    ROWS = 64

    def standings(self, numbers: np.ndarray) -> np.ndarray:
        """``|state(k) - v|``, the key in the place of the query; of an empty state ``|v|``."""
        at_hand = torch.from_numpy(numbers)
        queries, values = self.scaling * self.k[at_hand], self.v[at_hand]
        recalled = self.values.expand_as(values)
        if self.order == 2:
            mean = queries @ self.keys / max(self.count, 1)
            recalled = recalled * (1 - mean)[:, None] + queries @ self.products
        return (recalled / max(self.count, 1) - values).norm(dim=-1).double().numpy()


def attend(
    q: Tensor, k: Tensor, v: Tensor, heads: Sequence[HeadSpec], keeper: type[Keeper], *, scaling: float
) -> Tensor:
    """Attend causally: q ``[1, H, T, d]``, k ``[1, G, T, d]``, v ``[1, G, T, d_v]``; output ``[1, H, T, d_v]``.

    Far fields are exact, dropped, or of order 1 or 2 around the mean; one near field and order for a group.
    """
    if q.shape[0] != 1:
        raise ValueError(f"there are {q.shape[0]} sequences, expected one: what is kept differs between them")
    q, k, v = q.float(), k.float(), v.float()
    outputs = []
    for kv_head, specs in enumerate(grouped(heads, k.shape[1])):
        spec, queries = specs[0], q[:, kv_head * len(specs) : (kv_head + 1) * len(specs)]
        keys, values = k[:, kv_head : kv_head + 1], v[:, kv_head : kv_head + 1]
        if isinstance(spec.far, Exact) or spec.near.tokens >= k.shape[2]:
            outputs.append(
                scaled_dot_product_attention(queries, keys, values, is_causal=True, scale=scaling, enable_gqa=True)
            )
        elif isinstance(spec.far, Dropped) and not spec.near.kept:
            outputs.append(windowed_attention(queries, keys, values, spec.near, scaling=scaling))
        else:
            reader = keeper(queries[0], keys[0, 0], values[0, 0], spec.near, _order(specs), scaling)
            outputs.append(reader.outputs()[None])
    return torch.cat(outputs, 1)


def _order(specs: Sequence[HeadSpec]) -> int:
    fars = {spec.far for spec in specs}
    far = specs[0].far
    if len(fars) > 1 or (isinstance(far, Taylor) and (far.order > 2 or far.expansion != "mean")):
        raise ValueError(f"far fields are {sorted(map(repr, fars))}, expected one, of order 1 or 2 around the mean")
    return far.order if isinstance(far, Taylor) else 0


_RUNNING: WeakKeyDictionary[nn.Module, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = WeakKeyDictionary()


@contextmanager
def keeping(model: Any, config: OrderConfig, keeper: type[Keeper]) -> Iterator[None]:
    """Run whole sequences, one at a time and without a cache, with the near fields of ``config`` kept by ``keeper``."""
    _register()
    modules = dict(model.named_modules())
    table: Mapping[nn.Module, Any] = {
        modules[layer.module]: [head.spec for head in layer.heads]
        for layer in config.layers
        if not all(isinstance(head.spec.far, Exact) for head in layer.heads)
    }
    with selected(model, ATTENTION_NAME):
        for module, specs in table.items():
            _RUNNING[module] = lambda q, k, v, scaling, specs=specs: attend(q, k, v, specs, keeper, scaling=scaling)
        try:
            yield
        finally:
            for module in table:
                _RUNNING.pop(module, None)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    run = _RUNNING.get(module)
    if run is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    if key.shape[2] != query.shape[2]:
        raise ValueError(f"there are {key.shape[2]} keys for {query.shape[2]} queries: run whole sequences, no cache")
    scaling = kwargs.get("scaling")
    output = run(query, key, value, query.shape[-1] ** -0.5 if scaling is None else scaling)
    return output.to(query.dtype).transpose(1, 2).contiguous(), None


def _register() -> None:
    """Make the name known to transformers; idempotent."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION_NAME, _attention)
    AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
