"""Keys kept by priority: every path against the reference, which goes through the tokens one after another."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import kernel_cases
import pytest
import torch
import triton_cases
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import EAGER, KEPT, SCALING, Case, attend, cases, ranked, reference, sized, sizes
from kernel_cases import MIXED_KEPT as MIXED
from tolerances import TOLERANCE

from taylorder.kernels import kept_keys, kept_run, reference_attention, score_space_attention, taylor_attention
from taylorder.kernels.differentiable import differentiable_attention
from taylorder.kernels.kept_keys import far_from
from taylorder.kernels.spec import Dropped, HeadSpec, Near, Taylor

FEW_ROWS = {(kept_keys, "BLOCK_ROWS"): 5, (kept_run, "BLOCK_ROWS"): 5}


class Backend:
    """One backend: how precise it is, and how to have it fold early and find what becomes far a few rows at a time."""

    def __init__(self, name):
        self.name, triton = name, name == "triton"
        self.dtype, self.error = (torch.float32, 2e-5) if triton else (torch.float64, 1e-7)
        self.cases = triton_cases if triton else kernel_cases

    def eager(self):
        return self.cases.sized(self.cases.EAGER | FEW_ROWS)

    def ranked(self, heads, **options):
        return ranked(heads, **options).to(self.dtype)

    def attend(self, case, state=None):
        return attend(case, self.name, state)

    def assert_close(self, found, expected):
        torch.testing.assert_close(found.double(), expected.double(), rtol=self.error, atol=self.error / 10)


@pytest.fixture(params=["torch", pytest.param("triton", marks=pytest.mark.interpreter)])
def linear(request):
    """Those of linear time."""
    return Backend(request.param)


@settings(max_examples=150, deadline=None)
@given(case=cases(kept=KEPT), chosen=sizes, rows=st.sampled_from([1, 7, 256]))
def test_torch_is_the_reference_in_float64(case, chosen, rows):
    case = case.to(torch.float64)
    with sized(chosen | dict.fromkeys(FEW_ROWS, rows)):
        found, _ = attend(case, "torch")
    torch.testing.assert_close(found, reference(case), rtol=1e-8, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(case=cases(kept=KEPT))
def test_score_space_is_the_reference_in_float64(case):
    case = case.to(torch.float64)
    found, _ = attend(case, "score-space")
    torch.testing.assert_close(found, reference(case), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("near", [Near(5, 2, 6), Near(0, 0, 6), Near(40, 4, 30), Near(3, 0, 400)])
@pytest.mark.parametrize("far", [Dropped(), Taylor(1, "centre", None, (1.7,)), Taylor(2, "mean")])
def test_attention_with_gradients_is_the_reference(near, far):
    case = ranked([HeadSpec(far, near)] * 2 + [HeadSpec(Dropped(), Near(9, 1))] * 2, T=300).to(torch.float64)
    tensors = [tensor.requires_grad_() for tensor in (case.q, case.k, case.v)]
    options = {"scaling": SCALING, "priority": case.priority}
    found, _ = differentiable_attention(*tensors, case.heads, **options)
    expected, _ = reference_attention(*tensors, case.heads, **options)
    torch.testing.assert_close(found, expected)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for ours, truth in zip(
        torch.autograd.grad((found * weights).sum(), tensors),
        torch.autograd.grad((expected * weights).sum(), tensors),
        strict=True,
    ):
        torch.testing.assert_close(ours, truth)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_key_is_far_from_the_row_on_at_which_as_many_as_are_kept_rank_above_it(data):
    S, window, kept = data.draw(st.integers(1, 30)), data.draw(st.integers(0, 6)), data.draw(st.integers(1, 8))
    levels = st.lists(st.integers(0, data.draw(st.sampled_from([0, 3, 1000]))), min_size=S, max_size=S)
    priority = data.draw(levels)
    with sized({(kept_keys, "BLOCK_ROWS"): data.draw(st.sampled_from([1, 3, 256]))}):
        rows = far_from(torch.tensor(priority, dtype=torch.float32)[None, None], None, Near(window, 0, kept))[0, 0]
    for key in range(S):
        full = [
            row
            for row in range(key + window, S)
            if sum((priority[other], other) > (priority[key], key) for other in range(row - window + 1)) >= kept
        ]
        assert int(rows[key]) == (full[0] if full else S)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("cuts", [(0, 130), (0, 70, 129, 130)])
def test_each_dtype_meets_its_tolerance_and_other_priorities_do_not(dtype, cuts):
    case = replace(ranked(MIXED, scale=0.5), cuts=cuts).to(dtype)
    expected = reference(case)
    with sized(EAGER | FEW_ROWS):
        found, _ = attend(case, "torch")
        wrong, _ = attend(replace(case, priority=case.priority.flip(2)), "torch")
    assert found.dtype == dtype
    for output, close in ((found, True), (wrong, False)):
        error = float((output.double() - expected).norm() / expected.norm())
        assert (error < TOLERANCE[dtype]) == close


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        *((name, levels) for name in ("torch", "score-space") for levels in (1, 3, 10_000)),
        pytest.param("triton", 3, marks=pytest.mark.interpreter),
    ],
)
def test_token_by_token_is_as_at_once(name, levels):
    backend = Backend(name)
    case = backend.ranked(MIXED, T=50, levels=levels)
    expected = reference(case)
    for cuts in ((0, 1, 50), tuple(range(51)), (0, 0, 31, 32, 50)):
        backend.assert_close(backend.attend(replace(case, cuts=cuts))[0], expected)


def test_padding_on_the_left_changes_nothing_whatever_it_holds(linear):
    case, pad = linear.ranked(MIXED, T=60), 17
    padded = [torch.cat([torch.full_like(x[:, :, :pad], float("inf")), x], 2) for x in (case.q, case.k, case.v)]
    priority = torch.cat([torch.full_like(case.priority[:, :, :pad], 1e30), case.priority], 2)
    valid = (torch.arange(60 + pad) >= pad).expand(2, -1)
    whole, _ = linear.attend(case)
    for cuts in ((0, 60 + pad), (0, 5, pad + 3, 60 + pad)):
        found, _ = linear.attend(Case(case.heads, *padded, valid, True, cuts, priority))
        linear.assert_close(found[:, :, pad:], whole)
        assert found[:, :, :pad].abs().max() == 0


def test_beams_and_forks_go_on_from_what_they_keep(linear):
    case = linear.ranked(MIXED, T=60)
    whole = reference(case)
    beams = torch.tensor([1, 0, 1])
    with linear.eager():
        _, state = linear.attend(replace(case, cuts=(0, 40)))
        fork = state.clone()
        linear.assert_close(linear.attend(replace(case, cuts=(40, 60)), state)[0], whole[:, :, 40:])
        chosen = replace(case, q=case.q[beams], k=case.k[beams], v=case.v[beams], priority=case.priority[beams])
        found, _ = linear.attend(replace(chosen, cuts=(40, 60)), fork.index_select(beams))
        linear.assert_close(found, whole[beams][:, :, 40:])
        found, _ = linear.attend(replace(case, cuts=(40, 60)), fork)
        linear.assert_close(found, whole[:, :, 40:])


def test_a_state_is_written_down_and_filled_again(linear):
    case = linear.ranked(MIXED, T=90)
    for folding in (linear.eager, nullcontext):
        with folding():
            _, state = linear.attend(replace(case, cuts=(0, 60, 70)))
            _, empty = linear.attend(replace(case, cuts=(0, 0)))
            for part, blank in zip(state.parts, empty.parts, strict=True):
                blank.put({name: tensor.clone() for name, tensor in part.held().items()})
            empty.tokens = state.tokens
            found, _ = linear.attend(replace(case, cuts=(70, 71, 90)), empty)
        linear.assert_close(found, reference(case)[:, :, 70:])


def test_memory_is_that_of_the_near_field_and_what_waits_to_be_folded():
    near = Near(7, 3, 20)
    heads = [HeadSpec(Dropped(), near)] * 4
    case = ranked(heads, T=900, d=8, d_v=5)
    sizes_of = []
    for stop in (300, 900):
        for cuts in ((0, stop), (0, 100, *range(101, stop + 1, 61), stop)):
            _, state = attend(replace(case, cuts=cuts))
            sizes_of.append((state.nbytes, state.nominal_bytes))
    assert len(set(sizes_of)) == 1
    rows = 2 * 2  # sequences and KV heads
    assert sizes_of[0][1] == rows * (2 * near.tokens * (8 + 5) + 4 * near.kept)
    _, state = attend(replace(ranked([HeadSpec(Taylor(2), near)] * 4, T=2000), cuts=(0, 2000)))
    (part,) = state.parts
    assert part.priority.shape[2] == near.window + near.kept
    assert part.recent.length <= 64 + kept_keys.BLOCK_ROWS


def test_few_keys_are_at_hand_at_once():
    priority = torch.rand(1, 1, 3000)
    near = Near(30, 0, 50)
    blocks = list(kept_keys.KeptKeys(priority, near, places=50, new=3000).blocks())
    assert max(block.gather(priority).shape[2] for block in blocks) <= near.tokens + kept_keys.BLOCK_ROWS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: None, r"priority is None, but a head keeps keys"),
        (lambda p: p.double(), r"priority is torch.float64, expected a float32 tensor \(2, 3, 20\)"),
        (lambda p: p[:, :2], r"priority has shape \(2, 2, 20\), expected \(2, 3, 20\)"),
        (lambda p: p.index_fill(2, torch.tensor([7]), float("nan")), r"priority is nan for sequence 0, KV head 0, tok"),
        (lambda p: p.index_fill(2, torch.tensor([7]), float("inf")), r"priority is inf .* token 7, expected a finite"),
    ],
)
def test_priorities_that_cannot_rank_keys_are_refused_by_name(change, message):
    case = ranked(MIXED, T=20)
    changed = change(case.priority)
    with pytest.raises((ValueError, TypeError), match=message):
        attend(replace(case, priority=changed))
    with pytest.raises((ValueError, TypeError), match=message):
        score_space_attention(case.q, case.k, case.v, MIXED, scaling=1.0, priority=changed)


def test_heads_of_a_group_keep_as_many_keys():
    case = ranked(MIXED, T=20)
    heads = [replace(MIXED[0], near=Near(4, 2, 8)), *MIXED[1:]]
    with pytest.raises(ValueError, match=r"KV head 0: kept differs within the group \(\[8, 9\]\)"):
        taylor_attention(case.q, case.k, case.v, heads, scaling=1.0, priority=case.priority)
    with pytest.raises(ValueError, match="bidirectional"):
        score_space_attention(case.q, case.k, case.v, MIXED, scaling=1.0, causal=False, priority=case.priority)
