"""Many near fields with kept keys in one pass, beside the float64 reference that takes them one at a time."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from taylorder.kernels import HeadSpec, reference_attention
from taylorder.kernels.kept_fields import attend_kept_fields, chains
from taylorder.kernels.kept_keys import far_from
from taylorder.kernels.near_fields import NearField
from taylorder.kernels.spec import Dropped, Near, Taylor

HEADS, T, D, DV, SCALING = 3, 300, 6, 5, 0.4  # more rows than two blocks have
CONSTANTS = (0.3, 1.0, 2.5)


def tensors(seed=0, tokens=T):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(n, tokens, w, generator=generator) for n, w in ((HEADS, D), (1, D), (1, DV)))
    return 2 * q, k[0], v[0], torch.randn(tokens, generator=generator)


def specs(near, constants):
    return [HeadSpec(Taylor(1, coefficients=(c,)) if constants else Dropped(), near) for c in CONSTANTS]


def reference(q, k, v, priority, near, constants):
    output, _ = reference_attention(
        q[None].double(), k[None, None].double(), v[None, None].double(), specs(near, constants),
        scaling=SCALING, priority=priority[None, None],
    )  # fmt: skip
    return output[0]


def attend(q, k, v, priority, runs):
    fields = [NearField.of(specs(near, constants)) for near, constants in runs]
    return attend_kept_fields(q, k, v, priority, fields, scaling=SCALING)


RUNS = [
    (Near(window, sinks, kept), constants)
    for window, kept in ((0, 3), (1, 1), (5, 15), (40, 120), (60, 60), (130, 7), (20, 500), (T, 3))
    for sinks in (0, 4)
    for constants in (False, True)
]


def test_every_field_is_what_it_is_alone():
    inputs = tensors()
    found = attend(*inputs, RUNS)
    assert found.shape == (len(RUNS), HEADS, T, DV)
    for run, output in zip(RUNS, found, strict=True):
        torch.testing.assert_close(output.double(), reference(*inputs, *run), rtol=1e-4, atol=1e-5)


def test_other_priorities_and_another_near_field_give_something_else():
    """Negative control."""
    q, k, v, priority = tensors()
    run = (Near(5, 4, 15), False)
    found, other = (attend(q, k, v, ranks, [run])[0].double() for ranks in (priority, -priority))
    expected = reference(q, k, v, priority, *run)
    assert (other - expected).abs().max() > 1e-2
    assert (found - reference(q, k, v, priority, Near(5, 4, 14), False)).abs().max() > 1e-2


@settings(max_examples=30, deadline=None)
@given(
    tokens=st.integers(1, 40),
    near=st.lists(
        st.tuples(st.integers(0, 30), st.integers(0, 20), st.integers(1, 40), st.booleans()), min_size=1, max_size=5
    ),
    levels=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_any_fields_of_any_length_with_equal_priorities(tokens, near, levels, seed):
    q, k, v, priority = tensors(seed, tokens)
    priority = (priority * levels).round()  # ties: the later key stays
    runs = [(Near(window, sinks, kept), constants) for window, sinks, kept, constants in near]
    for run, output in zip(runs, attend(q, k, v, priority, runs), strict=True):
        torch.testing.assert_close(output.double(), reference(q, k, v, priority, *run), rtol=1e-4, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    near=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20), st.sampled_from((0, 4))), min_size=1, max_size=8),
    seed=st.integers(0, 99),
)
def test_in_a_chain_each_near_field_holds_the_one_before(near, seed):
    fields = list({Near(window, sinks, kept) for window, kept, sinks in near})
    found = chains(fields)
    assert sorted(repr(near) for chain in found for near in chain) == sorted(map(repr, fields))
    priority = tensors(seed, 50)[3].round()
    for chain in found:
        rows = [far_from(priority[None, None], None, near)[0, 0] for near in chain]
        for smaller, larger in pairwise(rows):
            assert (smaller <= larger).all()


def test_near_fields_of_one_share_are_one_chain():
    assert len(chains([Near(size, 4, 3 * size) for size in (500, 1, 20, 7)])) == 1
    assert len(chains([Near(20, 4, 60), Near(40, 4, 40)])) == 2
    assert len(chains([Near(20, 4, 60), Near(40, 2, 80)])) == 2


def test_rows_that_lost_all_digits_are_nan():
    """One key far away outweighs all that is near by more than float32 can tell; a larger field holds it."""
    q, k, v, priority = tensors(tokens=40)
    q[:], k[:] = 0, 0
    q[..., 0], k[3, 0] = 100.0, 10.0
    priority[3] = 0.0
    priority[4:] = torch.arange(36) + 1.0
    small, whole = attend(q, k, v, priority, [(Near(2, 0, 3), False), (Near(10, 0, 30), False)])
    assert small[:, 20].isnan().all()
    assert small[:, 3].isfinite().all()
    assert whole.isfinite().all()


@pytest.mark.parametrize("window", [0, 1, 9])
def test_rows_from_which_keys_are_far_by_hand(window):
    priority = torch.tensor([5.0, 1.0, 3.0, 3.0, 2.0, 4.0, 0.0])
    # Two places: 5 and 1 compete, 3 puts out 1, the later 3 puts out the earlier, 2 loses, 4 puts out 3, 0 loses.
    lost_to = {1: 2, 2: 3, 4: 4, 3: 5, 6: 6}
    expected = [min(7, lost_to[key] + window) if key in lost_to else 7 for key in range(7)]
    assert far_from(priority[None, None], None, Near(window, 0, 2))[0, 0].tolist() == expected
