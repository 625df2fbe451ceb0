"""Inputs for kernel tests: strategies over whole tables, small sizes that reach every code path, recorders."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import strategies as st

from taylorder.kernels import (
    HeadSpec,
    fold_rule,
    reference_attention,
    state_products,
    taylor_attention,
    taylor_run,
    torch_backend,
)
from taylorder.kernels import attend as attending
from taylorder.kernels.spec import Dropped, Exact, Near, Taylor

SCALING = 0.4


@dataclass(frozen=True)
class Case:
    """One problem: sizes, table, padding and where the sequence is cut into calls."""

    heads: tuple[HeadSpec, ...]
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    valid: torch.Tensor | None
    causal: bool
    cuts: tuple[int, ...]
    priority: torch.Tensor | None = None
    sink_logits: torch.Tensor | None = None
    softcap: float | None = None
    shift: torch.Tensor | None = None

    def to(self, dtype):
        return replace(self, q=self.q.to(dtype), k=self.k.to(dtype), v=self.v.to(dtype))


def problem(heads, B=2, G=2, T=130, d=8, d_v=5, seed=0, valid=None, cuts=None, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(B, len(heads), T, d, generator=generator) * scale
    k, v = torch.randn(B, G, T, d, generator=generator), torch.randn(B, G, T, d_v, generator=generator)
    return Case(tuple(heads), q, k, v, valid, True, cuts or (0, T))


MIXED = [
    HeadSpec(Taylor(3, "mean"), Near(4, 2)),
    HeadSpec(Taylor(2, "centre"), Near(4, 2)),
    HeadSpec(Exact()),
    HeadSpec(Exact()),
]
"""Heads of two groups: one with a window, sinks and both expansions, one exact."""

KEPT = (0, 1, 5, 40)
"""Numbers of keys kept by priority."""

MIXED_KEPT = [
    HeadSpec(Taylor(3, "mean"), Near(4, 2, 9)),
    HeadSpec(Taylor(2, "mean"), Near(4, 2, 9)),
    HeadSpec(Dropped(), Near(7, 0, 20)),
    HeadSpec(Dropped(), Near(7, 0, 20)),
    HeadSpec(Exact()),
    HeadSpec(Exact()),
]
"""Heads of three groups: a state beside kept keys, kept keys alone, exact."""


def ranked(heads, T=130, seed=0, levels=10_000, **options):
    """A problem with priorities, of so many different levels, for groups of two heads."""
    case = problem(heads, G=len(heads) // 2, T=T, seed=seed, **options)
    generator = torch.Generator().manual_seed(seed + 1)
    shape = (case.q.shape[0], len(heads) // 2, T)
    return replace(case, priority=torch.randint(0, levels, shape, generator=generator).float())


def reference(case):
    output, _ = reference_attention(
        case.q,
        case.k,
        case.v,
        case.heads,
        scaling=SCALING,
        causal=case.causal,
        valid=case.valid,
        priority=case.priority,
        sink_logits=case.sink_logits,
        softcap=case.softcap,
        shift=case.shift,
    )
    return output


@st.composite
def head_groups(draw, d, group, causal, orders=(1, 2, 3, 4, 6), drops=True, kept=(0,)):
    """Specs of one KV head's query heads."""
    if draw(st.integers(0, 4)) == 0:
        return [HeadSpec(Exact())] * group
    window = draw(st.sampled_from([0, 1, 5, 30])) if causal else 0
    sinks = draw(st.sampled_from([0, 0, 1, 4])) if causal else 0
    kept = draw(st.sampled_from(kept)) if causal else 0
    ranks = draw(st.sampled_from([None, (0, d, 4, 3, 3, 2, 1, 0), (0, 3, 3, 2, 2, 2, 2, 2), (0, d, d, 3, 1, 1, 1, 1)]))
    fitted = (0.9, 0.8, 0.7, 0.3, 0.2, 0.1, 0.05, 0.02)
    coefficients = draw(st.sampled_from([None, fitted, *(["dropped"] if drops else [])]))
    specs = []
    for _ in range(group):
        order = draw(st.sampled_from(orders))
        expansion = draw(st.sampled_from(["centre", "mean"]))
        if draw(st.integers(0, 5)) == 0:
            coefficients = None
        far = Dropped()
        if coefficients != "dropped":
            far = Taylor(order, expansion, ranks and ranks[:order], coefficients and coefficients[:order])
        specs.append(HeadSpec(far, Near(window, sinks, kept)))
    return specs


@st.composite
def cases(draw, orders=(1, 2, 3, 4, 6), drops=True, kept=(0,)):
    B, G, group = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 5])), draw(st.integers(1, 3))
    T, d, d_v = (
        draw(st.sampled_from([1, 3, 17, 70, 110])),
        draw(st.sampled_from([4, 7, 8])),
        draw(st.sampled_from([3, 8])),
    )
    causal = draw(st.sampled_from([True, True, True, False]))
    heads = [spec for _ in range(G) for spec in draw(head_groups(d, group, causal, orders, drops, kept))]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    q = torch.randn(B, G * group, T, d, generator=generator)
    k, v = torch.randn(B, G, T, d, generator=generator), torch.randn(B, G, T, d_v, generator=generator)
    valid = None
    if draw(st.booleans()):
        start = torch.tensor([draw(st.integers(0, T)) for _ in range(B)])
        holes = torch.rand(B, T, generator=generator) < draw(st.sampled_from([0.0, 0.2]))
        valid = (torch.arange(T) >= start[:, None]) & ~holes
    inner = draw(st.lists(st.integers(0, T), max_size=3)) if causal else []
    priority = None
    if any(kept):
        levels = draw(st.sampled_from([1, 5, 10_000]))  # few levels: many keys of equal priority
        priority = torch.randint(0, levels, (B, G, T), generator=generator).float() / levels - 0.5
        if valid is not None:  # what padding holds has no say
            priority = priority.masked_fill(~valid[:, None], draw(st.sampled_from([0.0, 1e9, math.nan, math.inf])))
    sink_logits = 3 * torch.randn(G * group, generator=generator) if draw(st.booleans()) else None
    softcap = draw(st.sampled_from([None, None, 1.5]))
    shift = torch.randn(B, G * group, T, generator=generator) if draw(st.booleans()) else None
    cuts = tuple(sorted({0, T, *inner}))
    return Case(tuple(heads), q, k, v, valid, causal, cuts, priority, sink_logits, softcap, shift)


SMALL = {
    (state_products, "_CHUNK_BYTES"): [1500, 5 << 19],
    (state_products, "_TILE_BYTES"): [3000, 1 << 19],
    (state_products, "_PREFIX"): [0, 4, 128],
    (state_products, "_GATHER_BELOW"): [0, 64, 100_000],
    (attending, "_BLOCK_ROWS"): [7, 128],
    (fold_rule, "BLOCK"): [1, 4, 64],
    (fold_rule, "RAW_SHARE"): [0.0, 0.0, 0.5],
    (taylor_run, "_CHUNK"): [19, 512],
    (taylor_run, "_CHUNK_TOGETHER"): [17, 256],
    (taylor_run, "_TOGETHER_BYTES"): [1, 5 << 19],
    (taylor_run, "_ROWS"): [300, 2048],
    (taylor_run, "_BATCH"): [1, 3000, 5 << 17],
    (taylor_run, "_SCORES"): [1000, 1 << 20],
}
"""Tuning constants and values that make small inputs take the paths of large ones: they may change no result."""

sizes = st.fixed_dictionaries({key: st.sampled_from(values) for key, values in SMALL.items()})


@contextmanager
def sized(chosen):
    with pytest.MonkeyPatch.context() as patch:
        for (module, name), value in chosen.items():
            patch.setattr(module, name, value)
        yield


EAGER = {
    (fold_rule, "BLOCK"): 1,
    (fold_rule, "RAW_SHARE"): 0.0,
    (taylor_run, "_CHUNK"): 16,
    (taylor_run, "_CHUNK_TOGETHER"): 16,
}
"""Chunks so short that nearly every far key is read from the state."""


def attend(case, backend=None, state=None):
    """All calls of a case, where its tensors are: the output of all of them, and the last state."""
    parts, valid, priority, shift = [], case.valid, case.priority, case.shift
    for start, stop in zip(case.cuts, case.cuts[1:], strict=False):
        cut = slice(start, stop)
        part, state = taylor_attention(
            case.q[:, :, cut], case.k[:, :, cut], case.v[:, :, cut], case.heads, scaling=SCALING, causal=case.causal,
            valid=None if valid is None else valid[:, cut], priority=None if priority is None else priority[:, :, cut],
            sink_logits=case.sink_logits, softcap=case.softcap, shift=None if shift is None else shift[:, :, cut],
            state=state, backend=backend,
        )  # fmt: skip
        parts.append(part)
    return torch.cat(parts, 2), state


def recorded_sums(case):
    """Numerators and denominators of one call over the whole sequence."""
    B, H, T, _ = case.q.shape
    numerators = torch.full((B, H, T, case.v.shape[-1]), float("nan"))
    denominators = torch.full((B, H, T), float("nan"))

    class Recorder(torch_backend.TaylorRun):
        def write(self, where, rows, heads, sums):
            shape = (-1, len(where.kv_heads), *sums.denominator.shape[1:])
            kv_heads = list(where.kv_heads)
            numerator = numerators.unflatten(1, (-1, self.group))
            numerator[where.sequences, kv_heads, heads, rows] = sums.numerator.view(*shape, case.v.shape[-1])
            denominator = denominators.unflatten(1, (-1, self.group))
            denominator[where.sequences, kv_heads, heads, rows] = sums.denominator.view(shape)
            super().write(where, rows, heads, sums)

    with sized({(torch_backend, "TaylorRun"): Recorder}):
        taylor_attention(
            case.q, case.k, case.v, case.heads, scaling=SCALING, causal=case.causal, valid=case.valid,
            priority=case.priority, sink_logits=case.sink_logits, softcap=case.softcap, shift=case.shift,
            backend="torch",
        )  # fmt: skip
    return numerators, denominators
