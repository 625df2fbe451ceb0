"""The one-pass measurement against the plain loop, and the invariants that hold for any q, k, v."""

from __future__ import annotations

import math

import numpy as np
import plain
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from taylorder.analysis.capture import LayerTensors
from taylorder.analysis.truncation import Sweep, key_centres, measure, relative


def tensors(B=2, H=4, G=2, T=13, d=6, d_v=5, *, spread=1.0, offset=1.5, causal=True, mask=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(B, H, T, d, generator=generator) * spread
    k = torch.randn(B, G, T, d, generator=generator) + offset
    v = torch.randn(B, G, T, d_v, generator=generator)
    return LayerTensors(q, k, v, mask, 0.7, causal)


def rows_of(layer, every=1):
    B, _, T, _ = layer.q.shape
    return [torch.arange(0, T, every) for _ in range(B)]


def measured(layer, sweep, rows=None):
    statistics, (sums,) = measure(layer, key_centres(layer), rows or rows_of(layer), (sweep,))
    return statistics, sums, relative(sums.squared["guarded"], statistics.output_squared)


def padded_mask(B, T, first):
    mask = torch.ones(T, T, dtype=torch.bool).tril().expand(B, 1, T, T).clone()
    for b, start in enumerate(first):
        mask[b, :, :, :start] = False
    return mask


@pytest.mark.parametrize("window, sinks", [(0, 0), (1, 0), (3, 2), (0, 2), (40, 0)])
@pytest.mark.parametrize("shape", ["causal", "bidirectional", "sliding", "left-padded"])
def test_every_candidate_equals_the_plain_loop(window, sinks, shape):
    if shape == "bidirectional" and (window or sinks):
        window = sinks = 0
    first = [0, 0]
    match shape:
        case "causal":
            layer = tensors()
        case "bidirectional":
            layer = tensors(causal=False)
        case "sliding":
            T = 13
            i, j = torch.arange(T)[:, None], torch.arange(T)[None]
            layer = tensors(mask=((j <= i) & (j > i - 6)).expand(2, 1, T, T))
        case "left-padded":
            first = [0, 4]
            layer = tensors(mask=padded_mask(2, 13, first))
    rows = [torch.arange(start, 13, 2) for start in first]
    sweep = Sweep(8, window, sinks)
    statistics, sums, relative_l2 = measured(layer, sweep, rows)
    centres = key_centres(layer)
    q, k, v = (t.double().numpy() for t in (layer.q, layer.k, layer.v))

    def attends(b, i):
        if layer.mask is not None:
            return np.flatnonzero(layer.mask[b, 0, i].numpy()).tolist()
        return list(range(i + 1 if layer.causal else 13))

    for head in (0, 3):
        kv = head // 2
        for index, expansion in enumerate(sweep.expansions):
            for order in (1, 2, 3, 4, 8):
                expected = plain.head_errors(
                    q[:, head], k[:, kv], v[:, kv], centres[kv].numpy(), [r.tolist() for r in rows], attends,
                    layer.scaling, order, expansion, window, sinks, first,
                )  # fmt: skip
                place = (index, order - 1, head)
                found = {
                    "relative_l2": relative_l2[place],
                    "rmse": (sums.squared["guarded"][place] / (statistics.rows * 5)).sqrt(),
                    "cosine": sums.cosine["guarded"][place] / statistics.rows,
                    "max_error": sums.largest["guarded"][place],
                    "nonpositive_share": sums.guarded_rows[place] / statistics.rows,
                }
                for name, value in expected.items():
                    assert float(found[name]) == pytest.approx(value, rel=1e-9, abs=1e-12), (
                        name,
                        head,
                        expansion,
                        order,
                    )


def test_score_statistics_equal_the_plain_loop():
    layer = tensors()
    statistics, _, _ = measured(layer, Sweep(1))
    centre = key_centres(layer).numpy()
    q, k = layer.q.double().numpy(), layer.k.double().numpy()
    rows = [[layer.scaling * (k[b, 1, : i + 1] - centre[1]) @ q[b, 3, i] for i in range(13)] for b in range(2)]
    flat = [row for sequence in rows for row in sequence]
    scores = np.concatenate(flat)
    deviation = np.concatenate([row - row.mean() for row in flat])
    assert statistics.count == len(scores)
    assert float(statistics.total[3]) / statistics.count == pytest.approx(scores.mean(), rel=1e-9)
    assert math.sqrt(float(statistics.squared_deviation[3]) / statistics.count) == pytest.approx(
        math.sqrt(np.mean(deviation**2)), rel=1e-9
    )
    assert float(statistics.largest[3]) == pytest.approx(np.abs(scores).max(), rel=1e-9)


def test_padding_changes_nothing():
    """A left-padded sequence measures like the same tokens alone, whatever stands in the padding."""
    alone = tensors(B=1)
    pad = 5
    garbage = 1e3 * torch.randn(1, 1, pad, 1)
    padded = LayerTensors(
        *(torch.cat([garbage.expand(1, t.shape[1], pad, t.shape[-1]), t], dim=2) for t in (alone.q, alone.k, alone.v)),
        padded_mask(1, 13 + pad, [pad]),
        alone.scaling,
        True,
    )
    sweep = Sweep(4, window=2, sinks=2)
    _, _, expected = measured(alone, sweep)
    _, _, found = measured(padded, sweep, [torch.arange(13 + pad)])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def before_and_after_a_shift(shift, seed):
    """Errors by expansion, of a layer and of one with a number added to every key."""
    layer = tensors(seed=seed)
    moved = LayerTensors(layer.q, layer.k.double() + shift, layer.v, None, layer.scaling, True)
    return measured(layer, Sweep(4))[-1], measured(moved, Sweep(4))[-1]


@settings(max_examples=30, deadline=None)
@given(shift=st.floats(-4, 4), seed=st.integers(0, 99))
def test_centred_expansions_do_not_see_a_shift_of_all_keys(shift, seed):
    """Softmax ignores a fixed vector added to every key, and so do ``centre`` and ``mean``."""
    before, after = before_and_after_a_shift(shift, seed)
    torch.testing.assert_close(after[1:], before[1:], rtol=1e-6, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(shift=st.floats(-4, -0.51) | st.floats(0.51, 4), seed=st.integers(0, 99))
def test_the_expansion_around_zero_sees_a_shift_of_all_keys(shift, seed):
    before, after = before_and_after_a_shift(shift, seed)
    assert (after[0] - before[0]).abs().max() > 1e-3


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), d=st.integers(1, 9), d_v=st.integers(1, 9), T=st.integers(1, 20))
def test_high_orders_tend_to_softmax_when_scores_are_mild(seed, d, d_v, T):
    layer = tensors(T=T, d=d, d_v=d_v, spread=0.2 / math.sqrt(d), offset=0.0, seed=seed)
    statistics, _, errors = measured(layer, Sweep(8))
    assert float(statistics.largest.max()) < 3.0
    assert errors[:, 7].max() < 1e-2
    assert (errors[:, 7] <= errors[:, 2] + 1e-12).all()


near_fields = st.tuples(st.integers(0, 6), st.integers(0, 6))


@settings(max_examples=20, deadline=None)
@given(near=near_fields.filter(lambda near: sum(near) >= 6), seed=st.integers(0, 9))
def test_a_near_field_that_covers_every_key_is_exact(near, seed):
    _, sums, errors = measured(tensors(T=6, seed=seed), Sweep(2, *near))
    assert errors.max() < 1e-12
    assert sums.guarded_rows.sum() == 0


@settings(max_examples=20, deadline=None)
@given(near=near_fields.filter(lambda near: sum(near) < 6), seed=st.integers(0, 9))
def test_a_near_field_that_leaves_a_key_out_is_not_exact(near, seed):
    assert measured(tensors(T=6, seed=seed), Sweep(2, *near))[-1].max() >= 1e-12


def test_odd_orders_at_full_rank_are_never_guarded_and_even_ones_are():
    layer = tensors(spread=6.0, T=40)
    _, sums, _ = measured(layer, Sweep(8))
    guarded = sums.guarded_rows.sum(-1)  # [expansion, P]
    assert guarded[:, 0::2].sum() == 0
    assert (guarded[:, 1::2] > 0).any(dim=0).all()
    assert (sums.squared["raw"][:, 1::2] != sums.squared["guarded"][:, 1::2]).any()
    torch.testing.assert_close(sums.squared["raw"][:, 0::2], sums.squared["guarded"][:, 0::2])


def test_rows_of_long_sequences_are_cut_into_blocks_without_changing_a_figure(monkeypatch):
    layer = tensors(T=50)
    _, _, whole = measured(layer, Sweep(4, 3, 2))
    monkeypatch.setattr("taylorder.analysis.truncation.BLOCK_ROWS", 7)
    _, _, blocks = measured(layer, Sweep(4, 3, 2))
    torch.testing.assert_close(blocks, whole, rtol=1e-10, atol=1e-14)


def test_a_head_that_puts_out_nothing_has_no_error():
    layer = tensors()
    silent = LayerTensors(layer.q, layer.k, torch.zeros_like(layer.v), None, layer.scaling, True)
    _, sums, errors = measured(silent, Sweep(3))
    assert errors.max() == 0
    assert torch.cat(sums.row_errors, -1).isfinite().all()
