"""Many near fields in one pass, beside the float64 reference that takes them one at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from taylorder.kernels import HeadSpec, reference_attention
from taylorder.kernels.near_fields import NearField, attend_near_fields
from taylorder.kernels.spec import Dropped, Exact, Near, Taylor

HEADS, T, D, DV, SCALING = 3, 300, 6, 5, 0.4  # more rows than a block has
DROP = (0.0,)


def tensors(seed=0, tokens=T):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(n, tokens, w, generator=generator) for n, w in ((HEADS, D), (1, D), (1, DV)))
    return 2 * q, k[0], v[0]


def specs(window, sinks, coefficients):
    """One head for each coefficient of order 1; 0 drops the far field."""
    return [HeadSpec(Taylor(1, coefficients=(c,)) if c else Dropped(), Near(window, sinks)) for c in coefficients]


def reference(q, k, v, heads):
    output, _ = reference_attention(
        q[None].double(), k[None, None].double(), v[None, None].double(), heads, scaling=SCALING
    )
    return output[0]


def attend(q, k, v, runs):
    return attend_near_fields(q, k, v, [NearField.of(heads) for heads in runs], scaling=SCALING)


RUNS = [
    specs(window, sinks, coefficients)
    for window in (1, 7, 128, 129, 250, T, 2 * T)
    for sinks in (0, 4, 16)
    for coefficients in (DROP * 3, (0.3, 1.0, 2.5))
]


def test_every_field_is_what_it_is_alone():
    q, k, v = tensors()
    found = attend(q, k, v, RUNS)
    assert found.shape == (len(RUNS), HEADS, T, DV)
    for heads, output in zip(RUNS, found, strict=True):
        torch.testing.assert_close(output.double(), reference(q, k, v, heads), rtol=1e-4, atol=1e-5)


def test_fields_differ():
    """Negative control: the comparison above would not pass for a neighbour."""
    q, k, v = tensors()
    found = attend(q, k, v, RUNS[:12])
    for place, output in enumerate(found[1:]):
        assert (output - found[place]).abs().max() > 1e-2


@settings(max_examples=30, deadline=None)
@given(
    tokens=st.integers(1, 40),
    near=st.lists(st.tuples(st.integers(1, 50), st.integers(0, 20), st.booleans()), min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
def test_any_fields_of_any_length(tokens, near, seed):
    q, k, v = tensors(seed, tokens)
    runs = [specs(window, sinks, DROP * 3 if drops else (0.2, 0.9, 4.0)) for window, sinks, drops in near]
    for heads, output in zip(runs, attend(q, k, v, runs), strict=True):
        torch.testing.assert_close(output.double(), reference(q, k, v, heads), rtol=1e-4, atol=1e-5)


def test_a_constant_below_the_guard_counts_as_one():
    q, k, v = tensors()
    heads = specs(9, 2, (0.0005, 0.5, -3.0))
    field = NearField.of(heads)
    assert field.guarded(T) == [T - 11, 0, T - 11]
    assert field.guarded(10) == [0, 0, 0]
    expected = reference(q, k, v, specs(9, 2, (1.0, 0.5, 1.0)))
    torch.testing.assert_close(attend(q, k, v, [heads])[0].double(), expected, rtol=1e-4, atol=1e-5)


def test_rows_that_lost_all_digits_are_nan():
    """One key far away outweighs the window by more than float32 can tell."""
    q, k, v = tensors(tokens=40)
    q[:] = 0
    q[..., 0] = 100.0
    k[:] = 0
    k[3, 0] = 10.0
    near, whole = attend(q, k, v, [specs(4, 0, DROP * 3), specs(40, 0, DROP * 3)])
    assert near[:, 20].isnan().all()
    assert near[:, 5].isfinite().all()
    assert whole.isfinite().all()


@pytest.mark.parametrize(
    "heads",
    [
        [HeadSpec(Exact())] * 2,
        specs(0, 4, DROP * 2),
        [HeadSpec(Taylor(2), Near(5, 2))] * 2,
        [HeadSpec(Taylor(1, "mean"), Near(5, 2))] * 2,
        [*specs(5, 2, DROP), *specs(5, 2, (1.0,))],
        [*specs(5, 2, (1.0,)), *specs(6, 2, (1.0,))],
    ],
    ids=["exact", "no window", "order 2", "mean", "one drops", "two windows"],
)
def test_what_is_more_than_a_near_field(heads):
    assert NearField.of(heads) is None
