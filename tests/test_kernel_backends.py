"""What both linear-time backends promise alike, each beside the float64 reference: one suite, run against the two."""

from __future__ import annotations

from dataclasses import replace

import kernel_cases
import pytest
import torch
import triton_cases
from kernel_cases import MIXED, SCALING, Case, attend, problem, reference
from tolerances import TOLERANCE, relative_error
from triton_cases import backward_error

from taylorder.kernels import fold_rule, taylor_attention
from taylorder.kernels.spec import Exact, HeadSpec, Near, Taylor

FP32 = TOLERANCE[torch.float32]


class Backend:
    """One backend, and how to have it fold early; ``tokens`` are few where operations are slow."""

    def __init__(self, name):
        self.name = name
        self.cases, self.tokens = {"torch": (kernel_cases, 150), "triton": (triton_cases, 60)}[name]

    def attend(self, case):
        return attend(case, self.name)

    def eager(self, changes=()):
        return self.cases.sized({**self.cases.EAGER, **dict(changes)})

    def as_usual(self):
        return self.cases.sized({})


@pytest.fixture(params=["torch", pytest.param("triton", marks=pytest.mark.interpreter)])
def backend(request):
    return Backend(request.param)


def test_decoding_token_by_token_is_prefill(backend):
    T = backend.tokens
    case = problem(MIXED, T=T)
    with backend.eager({(fold_rule, "BLOCK"): 8}):
        whole, _ = backend.attend(case)
        steps, _ = backend.attend(replace(case, cuts=(0, 20, *range(21, T + 1))))
    torch.testing.assert_close(steps, whole, rtol=2e-5, atol=2e-6)


def test_left_padding_changes_nothing(backend):
    T, pad = backend.tokens, 37
    alone = problem(MIXED, B=1, T=T)
    generator = torch.Generator().manual_seed(5)
    junk = [torch.randn(*t.shape[:2], pad, t.shape[3], generator=generator) * 1e4 for t in (alone.q, alone.k, alone.v)]
    junk[0][..., 1], junk[1][..., 0], junk[2][..., 0] = float("nan"), float("inf"), float("nan")
    padded = [torch.cat([a, b], 2) for a, b in zip(junk, (alone.q, alone.k, alone.v), strict=True)]
    valid = torch.arange(pad + T)[None] >= pad
    cuts = (0, 20, 30 + pad, T - 1 + pad, T + pad)
    for folding in (backend.eager, backend.as_usual):
        with folding():
            expected, _ = backend.attend(replace(alone, cuts=(0, 30, T - 1, T)))
            found, _ = backend.attend(Case(alone.heads, *padded, valid, True, cuts))
        torch.testing.assert_close(found[:, :, pad:], expected, rtol=2e-5, atol=2e-6)
        assert found[:, :, :pad].abs().max() == 0


def test_rows_of_a_padded_batch_are_what_each_row_gives_alone(backend):
    case = problem(MIXED, B=3, T=80)
    valid = torch.arange(80)[None] >= torch.tensor([0, 13, 61])[:, None]
    batch, _ = backend.attend(replace(case, valid=valid, cuts=(0, 66, 67, 80)))
    for b, pad in enumerate((0, 13, 61)):
        alone = [t[b : b + 1, :, pad:] for t in (case.q, case.k, case.v)]
        expected, _ = backend.attend(Case(case.heads, *alone, None, True, (0, 80 - pad)))
        torch.testing.assert_close(batch[b : b + 1, :, pad:], expected, rtol=2e-5, atol=2e-6)


def test_two_directions(backend):
    heads = [HeadSpec(Taylor(3, "mean")), HeadSpec(Taylor(4, "centre")), HeadSpec(Exact()), HeadSpec(Exact())]
    T = 2 * backend.tokens
    valid = torch.rand(2, T, generator=torch.Generator().manual_seed(2)) < 0.9
    case = replace(problem(heads, T=T), valid=valid, causal=False)
    for folding in (backend.eager, backend.as_usual):
        with folding():
            found, state = backend.attend(case)
        assert state is None
        assert backward_error(found, case) < FP32


def test_outputs_do_not_depend_on_what_memory_held(backend, monkeypatch):
    empty = torch.empty

    def poisoned(*arguments, **options):
        made = empty(*arguments, **options)
        return made.fill_(float("nan")) if made.is_floating_point() else made.fill_(1)

    def like(tensor, options):
        return {"dtype": tensor.dtype, "device": tensor.device, **options}

    monkeypatch.setattr(torch, "empty", poisoned)
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda t, *s, **o: poisoned(*s, **like(t, o)))
    monkeypatch.setattr(torch, "empty_like", lambda t, **o: poisoned(t.shape, **like(t, o)))
    T = backend.tokens + 30
    case = problem(MIXED, T=T, cuts=(0, 60, T - 1, T))
    for folding in (backend.eager, backend.as_usual):
        with folding():
            found, _ = backend.attend(case)
        assert backward_error(found, case) < FP32


@pytest.mark.parametrize("shape", [(0, 4, 5), (2, 4, 0), (0, 4, 0)])
def test_nothing_in_nothing_out(backend, shape):
    B, H, T = shape
    q, k, v = (torch.zeros(B, heads, T, dim) for heads, dim in ((H, 8), (2, 8), (2, 3)))
    output, state = taylor_attention(q, k, v, MIXED, scaling=1.0, backend=backend.name)
    assert output.shape == (B, H, T, 3)
    assert state.tokens == T
    case = problem(MIXED, B=B, T=1, d=8, d_v=3)
    output, _ = attend(case, backend.name, state if T == 0 else None)
    torch.testing.assert_close(output.double(), reference(case), rtol=1e-5, atol=1e-6)


def test_strides_do_not_matter(backend):
    case = problem(MIXED, T=50, cuts=(0, 40, 50))
    moved = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (case.q, case.k, case.v)]
    moved[0] = torch.stack([moved[0], moved[0]], -1)[..., 0]
    with backend.eager():
        found, _ = backend.attend(Case(case.heads, *moved, None, True, case.cuts))
        expected, _ = backend.attend(case)
    torch.testing.assert_close(found, expected)


def test_guarded_rows_are_counted_as_in_score_space(backend):
    case = problem([HeadSpec(Taylor(4)), HeadSpec(Taylor(2))] * 2, G=2, T=60, scale=4.0)
    case = replace(case, valid=torch.rand(2, 60, generator=torch.Generator().manual_seed(1)) < 0.9)
    _, by_scores = attend(case, backend="score-space")
    with backend.eager():
        found, state = backend.attend(case)
    assert state.guarded.sum() > 0
    assert torch.equal(state.guarded, by_scores.guarded)
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("mean", [0.0, 5.0, 20.0])
def test_scores_far_from_zero_stay_accurate(backend, mean):
    """Keys that share an offset: powers around the mean are read from powers around zero, which could cancel."""
    case = problem([HeadSpec(Taylor(4, "mean"), Near(2, 1))] * 2, T=backend.tokens)
    along = torch.eye(8)[0]
    moved = replace(case, q=case.q + 3 * along, k=case.k / 2 + mean / (3 * SCALING) * along)
    with backend.eager():
        found, _ = backend.attend(moved)
    assert relative_error(found, reference(moved)) < FP32


def test_a_perturbed_key_shows(backend):
    case = problem(MIXED, T=backend.tokens, scale=0.5)
    noise = torch.randn(case.k.shape, generator=torch.Generator().manual_seed(1))
    with backend.eager():
        found, _ = backend.attend(replace(case, k=case.k + 0.01 * noise))
    assert backward_error(found, case) > 10 * FP32
