"""The blocked score-space path and the float64 reference against the plain loop and against each other."""

from __future__ import annotations

import re
from dataclasses import replace

import plain
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import TOLERANCE, relative_error

from taylorder.kernels import HeadSpec, reference_attention, score_space_attention
from taylorder.kernels.spec import Dropped, Exact, Near, Taylor

specs = st.builds(
    lambda order, expansion, coefficients: HeadSpec(
        Taylor(order, expansion, coefficients=coefficients[:order] if coefficients else None)
    ),
    st.integers(1, 8),
    st.sampled_from(["centre", "mean"]),
    st.none() | st.tuples(*[st.floats(0.05, 1.0)] * 8),
)


def tensors(B=2, H=4, G=2, T=17, S=None, d=6, d_v=5, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    S = S or T
    return (
        torch.randn(B, H, T, d, generator=generator) * scale,
        torch.randn(B, G, S, d, generator=generator),
        torch.randn(B, G, S, d_v, generator=generator),
    )


def with_near(spec, window, sinks, ranks=None):
    return HeadSpec(replace(spec.far, ranks=ranks and ranks[: spec.far.order]), Near(window, sinks))


@pytest.mark.parametrize("expansion", ["zero", "mean"])
@pytest.mark.parametrize("order", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("window, sinks", [(0, 0), (3, 2), (50, 0)])
def test_reference_equals_the_plain_loop(order, expansion, window, sinks):
    q, k, v = tensors(B=1)
    spec = HeadSpec(Taylor(order, expansion), Near(window, sinks))
    output, _ = reference_attention(q, k, v, [spec] * 4, scaling=0.7)
    for i in range(17):
        scores = 0.7 * (k[0, 1].double() @ q[0, 3, i].double())
        keys = range(i + 1)
        near = [j for j in keys if (window and j > i - window) or j < sinks]
        far = [j for j in keys if j not in near]
        expected, _ = plain.attention_row(scores.numpy(), v[0, 1].double().numpy(), far, near, order, expansion, 0.0)
        assert output[0, 3, i].numpy() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("window, sinks", [(5, 2), (1, 0), (0, 3), (40, 0)])
def test_coefficients_of_zero_drop_the_far_field(window, sinks):
    """What is left is softmax over sinks and a sliding window."""
    q, k, v = tensors()
    spec = HeadSpec(Dropped(), Near(window, sinks))
    i, j = torch.arange(17)[:, None], torch.arange(17)
    mask = (j <= i) & ((j > i - window) | (j < sinks))
    expected = torch.nn.functional.scaled_dot_product_attention(
        q.double(), k.double(), v.double(), attn_mask=mask, scale=0.7, enable_gqa=True
    ).nan_to_num(0.0)
    output, _ = reference_attention(q, k, v, [spec] * 4, scaling=0.7)
    torch.testing.assert_close(output, expected)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("taylorder.kernels.score_space._BLOCK_SCORES", 3 * 17)
        fast, hits = score_space_attention(q, k, v, [spec] * 4, scaling=0.7)
    assert relative_error(fast, expected) < TOLERANCE[torch.float32]
    assert hits.sum() == 0


def test_exact_heads_are_softmax():
    q, k, v = tensors()
    output, _ = reference_attention(q, k, v, [HeadSpec(Exact())] * 4, scaling=0.7)
    expected = torch.nn.functional.scaled_dot_product_attention(
        q.double(), k.double(), v.double(), is_causal=True, scale=0.7, enable_gqa=True
    )
    torch.testing.assert_close(output, expected)
    fast, _ = score_space_attention(q, k, v, [HeadSpec(Exact())] * 4, scaling=0.7)
    assert relative_error(fast, expected) < TOLERANCE[torch.float32]


@settings(max_examples=60, deadline=None)
@given(
    chosen=st.lists(specs, min_size=4, max_size=4),
    window=st.integers(0, 20),
    sinks=st.integers(0, 4),
    ranks=st.none() | st.just((6, 6, 4, 3, 3, 2, 1, 1)),
    causal=st.booleans(),
    seed=st.integers(0, 99),
    padding=st.integers(0, 9),
    rows=st.sampled_from([1, 5, 64]),
)
def test_score_space_equals_the_reference(chosen, window, sinks, ranks, causal, seed, padding, rows):
    q, k, v = (t.double() for t in tensors(seed=seed))
    near = (window, sinks) if causal else (0, 0)
    heads = [with_near(spec, *near, ranks) for spec in chosen]
    valid = torch.ones(2, 17, dtype=torch.bool)
    valid[1, :padding] = False
    expected, _ = reference_attention(q, k, v, heads, scaling=0.4, causal=causal, valid=valid)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("taylorder.kernels.score_space._BLOCK_SCORES", rows * 17)
        found, _ = score_space_attention(q, k, v, heads, scaling=0.4, causal=causal, valid=valid)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def test_float32_meets_its_tolerance_and_a_perturbed_input_does_not():
    heads = [
        HeadSpec(Taylor(3, "mean"), Near(4, 2)),
        HeadSpec(Taylor(2, "mean"), Near(4, 2)),
        HeadSpec(Taylor(3)),
        HeadSpec(Taylor(5)),
    ]
    q, k, v = tensors(T=65, scale=0.5)
    expected, _ = reference_attention(q, k, v, heads, scaling=0.4)
    found, _ = score_space_attention(q, k, v, heads, scaling=0.4)
    assert relative_error(found, expected) < TOLERANCE[torch.float32]
    spoiled, _ = score_space_attention(q, k + 1e-3 * torch.randn_like(k), v, heads, scaling=0.4)
    assert relative_error(spoiled, expected) > TOLERANCE[torch.float32]


@pytest.mark.parametrize(
    "spec",
    [
        HeadSpec(Exact()),
        HeadSpec(Taylor(1)),
        HeadSpec(Taylor(3)),
        HeadSpec(Taylor(4, "mean"), Near(3, 2)),
        HeadSpec(Taylor(3, "mean", (4, 4, 2)), Near(sinks=1)),
    ],
)
def test_gradients_are_those_of_the_formula(spec):
    inputs = tuple(t.double().requires_grad_() for t in tensors(B=1, H=2, G=1, T=7, d=4, d_v=3, scale=0.5))
    assert torch.autograd.gradcheck(
        lambda q, k, v: score_space_attention(q, k, v, [spec] * 2, scaling=0.5)[0], inputs, atol=1e-6
    )


def test_queries_of_the_last_tokens_see_all_keys():
    heads = [HeadSpec(Taylor(3, "mean"), Near(4, 2))] * 4
    q, k, v = (t.double() for t in tensors())
    whole, _ = score_space_attention(q, k, v, heads, scaling=0.4)
    tail, _ = score_space_attention(q[:, :, 12:], k, v, heads, scaling=0.4)
    torch.testing.assert_close(tail, whole[:, :, 12:])


def test_reference_goes_on_from_a_state():
    heads = [
        HeadSpec(Taylor(3, "mean"), Near(4, 2)),
        HeadSpec(Taylor(4, "mean"), Near(4, 2)),
        HeadSpec(Exact()),
        HeadSpec(Exact()),
    ]
    q, k, v = tensors()
    valid = torch.ones(2, 17, dtype=torch.bool)
    valid[0, :3] = False
    whole, _ = reference_attention(q, k, v, heads, scaling=0.4, valid=valid)
    state, parts = None, []
    for start, stop in ((0, 2), (2, 9), (9, 10), (10, 17)):
        cut = slice(start, stop)
        part, state = reference_attention(
            q[:, :, cut], k[:, :, cut], v[:, :, cut], heads, scaling=0.4, valid=valid[:, cut], state=state
        )
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, 2), whole)


def test_guarded_rows_are_counted_and_can_be_left_raw():
    q, k, v = tensors(T=40, scale=4.0)
    heads = [HeadSpec(Taylor(4))] * 4
    guarded, hits = score_space_attention(q, k, v, heads, scaling=1.0)
    raw, raw_hits = score_space_attention(q, k, v, heads, scaling=1.0, guard=False)
    assert hits.sum() > 0
    assert torch.equal(hits, raw_hits)
    assert not torch.allclose(guarded, raw)
    assert guarded.abs().max() < raw.abs().max()
    _, odd = score_space_attention(q, k, v, [HeadSpec(Taylor(3))] * 4, scaling=1.0)
    assert odd.sum() == 0


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Taylor(0), "order is 0, expected 1 to 8"),
        (lambda: Taylor(9), "order is 9"),
        (lambda: Taylor(3, "median"), "expansion is 'median', expected one of"),
        (lambda: Near(window=-1), "window is -1"),
        (lambda: Near(sinks=2**31), "sinks is 2147483648, expected 0 to 65536"),
        (lambda: Taylor(3, "mean", ranks=(4, 4)), "ranks has 2 entries, expected one per degree: 3"),
        (lambda: Taylor(4, "mean", ranks=(9, 3, 4, 2)), "expected ranks that do not increase"),
        (lambda: Taylor(3, "mean", ranks=(4, 4, -1)), "expected no negative rank"),
        (lambda: Taylor(2, ranks=(4, 4)), "ranks are not defined for expansion 'zero'"),
        (lambda: Taylor(2, coefficients=(1.0, float("nan"))), "expected finite numbers"),
        (lambda: Taylor(2, coefficients=(0.0, 0.0)), "drops the far field: use Dropped()"),
        (lambda: HeadSpec(Exact(), Near(4)), "an exact head has no near field, found Near(window=4, sinks=0)"),
    ],
)
def test_specs_that_make_no_sense_are_refused(make, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        make()


@pytest.mark.parametrize(
    "heads, causal, words",
    [
        ([HeadSpec(Taylor(3))] * 3, True, "heads has 3 specs, expected one per query head: 4"),
        ([HeadSpec(Taylor(3)), HeadSpec(Exact())] * 2, True, "KV head 0: some heads are exact and some are not"),
        (
            [HeadSpec(Taylor(3), Near(2)), HeadSpec(Taylor(3), Near(4))] * 2,
            True,
            "KV head 0: window differs within the group ([2, 4]); one value is expected",
        ),
        ([HeadSpec(Taylor(2, "centre", (4, 4))), HeadSpec(Taylor(2, "centre", (4, 3)))] * 2, True, "must be a prefix"),
        ([HeadSpec(Taylor(2, "mean", (4, 4))), HeadSpec(Taylor(2, "mean"))] * 2, True, "some have none"),
        ([HeadSpec(Taylor(2, "mean")), HeadSpec(Taylor(2))] * 2, True, "'zero' is mixed with 'centre' or 'mean'"),
        ([HeadSpec(Taylor(3), Near(2))] * 4, False, "bidirectional"),
    ],
)
def test_tables_the_shared_kv_cannot_honour_are_refused(heads, causal, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        reference_attention(*tensors(), heads, scaling=1.0, causal=causal)
