"""Keys kept by priority in the Triton backend, interpreted: see ``test_kept_keys`` for what all backends promise."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import KEPT, MIXED_KEPT, attend, cases, ranked, reference
from tolerances import TOLERANCE, relative_error
from triton_cases import EAGER, altering, backward_error, layouts, sized, sizes

from taylorder.kernels import fold_rule, kept_keys
from taylorder.kernels.spec import Dropped, HeadSpec, Near, Taylor
from taylorder.kernels.triton_backend import attention
from taylorder.kernels.triton_backend.pending import PendingTokens

pytestmark = pytest.mark.interpreter
FP32 = TOLERANCE[torch.float32]
few_rows = st.sampled_from([1, 7, 256])


def check_anything(case, chosen, layout, rows):
    with sized({**chosen, (kept_keys, "BLOCK_ROWS"): rows}, layout):
        found, _ = attend(case, "triton")
    assert backward_error(found, case) < FP32


@settings(max_examples=6, deadline=None)
@given(case=cases(orders=(1, 2, 3), kept=KEPT), chosen=sizes, layout=layouts, rows=few_rows)
def test_every_table_cut_and_padding(case, chosen, layout, rows):
    check_anything(case, chosen, layout, rows)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(case=cases(orders=(1, 2, 3, 4, 6), kept=KEPT), chosen=sizes, layout=layouts, rows=few_rows)
def test_every_table_up_to_order_6(case, chosen, layout, rows):
    check_anything(case, chosen, layout, rows)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_each_dtype_meets_its_tolerance_and_other_priorities_do_not(dtype):
    case = ranked(MIXED_KEPT, T=60, scale=0.5, cuts=(0, 40, 59, 60)).to(dtype)
    with sized(EAGER):
        found, _ = attend(case, "triton")
        wrong, _ = attend(replace(case, priority=case.priority.flip(2)), "triton")
    assert found.dtype == dtype
    assert relative_error(found, reference(case)) < TOLERANCE[dtype] < relative_error(wrong, reference(case))


@pytest.mark.parametrize("kernel", ["read_pending", "add_near_and_divide"])
def test_a_row_later_or_earlier_shows(kernel):
    """Both kernels take what is near and what is far from the same number, and one row more or less is an error."""
    case = ranked([HeadSpec(Taylor(2), Near(4, 0, 9))] * 2, B=1, T=40, scale=0.5)
    for later in (0, 1):
        with altering(kernel, "far_from", lambda rows, later=later: rows + later):
            found, _ = attend(case, "triton")
        assert (backward_error(found, case) < FP32) == (later == 0)


def test_windows_and_kept_keys_of_all_sizes_run_in_one_launch(monkeypatch):
    nears = [Near(4, 2, 9), Near(12), Near(0, 1, 3), Near(4, 2, 30)]
    heads = [HeadSpec(far, near) for near in nears for far in (Taylor(2), Taylor(1))] + [
        HeadSpec(Dropped(), Near(3, 0, 9))
    ] * 2
    launches = Counter()

    def launch(name, programs, *rest, original=attention.launch):
        launches[name] += 1
        original(name, programs, *rest)

    monkeypatch.setattr(attention, "launch", launch)
    case = ranked(heads, B=1, T=40)
    found, _ = attend(case, "triton")
    assert backward_error(found, case) < FP32
    assert launches["read_pending"] == launches["add_near_and_divide"] == 1


def test_a_kv_head_holds_its_near_field_and_what_waits_to_be_folded(monkeypatch):
    near, moves, reorder = Near(7, 3, 20), [], PendingTokens.reorder
    monkeypatch.setattr(PendingTokens, "reorder", lambda *arguments: moves.append(reorder(*arguments)))
    case = ranked([HeadSpec(Dropped(), near)] * 2, B=1, T=400)
    for cuts in ((0, 400), (0, *range(100, 400, 25), 400)):
        _, state = attend(replace(case, cuts=cuts), "triton")
        (part,) = state.parts
        (length,) = part.pending.lengths
        assert length < near.window + near.kept + fold_rule.BLOCK
        assert part.pending.keys.shape[1] <= 2 * (near.window + near.kept + 3 * fold_rule.BLOCK)
        assert state.nominal_bytes == 2 * (length + near.sinks) * (8 + 5) + 4 * near.kept
    assert len(moves) == 1 + 1 + 4  # tokens move once for 64 that became far, not once a call
