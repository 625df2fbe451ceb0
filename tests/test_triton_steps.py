"""A decode step of the Triton backend: how little runs beside its kernels, and that it is right."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from kernel_cases import SCALING, attend, ranked
from tolerances import TOLERANCE, relative_error
from torch.profiler import ProfilerActivity, profile, record_function
from triton_cases import backward_error, sized

from taylorder.kernels import fold_rule, taylor_attention
from taylorder.kernels.spec import Dropped, HeadSpec, Near, Taylor
from taylorder.kernels.triton_backend import attention, fold
from taylorder.kernels.triton_backend.extents import Extents

pytestmark = pytest.mark.interpreter
FP32 = TOLERANCE[torch.float32]

MOST = 25
"""Tensor operations of one layer's decode step, views included, those within the kernels left out."""

KERNEL = "a kernel of the Triton backend"
STEADY = slice(143, 144)
"""A token long after the prefill of 140 and its first steps, and long before the next fold."""

NEAR_FIELDS = [HeadSpec(Dropped(), near) for near in (Near(16, 4), Near(40, 4), Near(12, 0)) for _ in range(2)]
KEPT_KEYS = [HeadSpec(Dropped(), near) for near in (Near(16, 4), Near(12, 0, 20), Near(0, 2, 30)) for _ in range(2)]
STATES = [HeadSpec(Taylor(3, "mean"), Near(64, 4))] * 4
STATES_OF_TWO_LAYOUTS = [HeadSpec(Taylor(order, "mean", ranks), Near(64, 4, 9)) for order, ranks in
                         ((3, None), (4, (0, 32, 6, 4))) for _ in range(2)]  # fmt: skip
LAYERS = [NEAR_FIELDS, KEPT_KEYS, STATES, STATES_OF_TWO_LAYOUTS]


@pytest.fixture
def marked(monkeypatch):
    """Have a profiler tell what runs within kernels, which the interpreter adds to, from the rest."""
    for module in (attention, fold):

        def launch(*arguments, original=module.launch):
            with record_function(KERNEL):
                original(*arguments)

        monkeypatch.setattr(module, "launch", launch)


def before_the_step(heads):
    """A problem in which every far key is folded at once, and the state before its step."""
    case = ranked(heads, B=1, T=STEADY.stop, d=32, d_v=16)
    with sized({(fold_rule, "RAW_SHARE"): 0.0}):
        _, state = attend(replace(case, cuts=(0, 140, 141, 142, 143)), "triton")
    return case, state


def tokens(case):
    """Query, key, value and priority of the step."""
    return [tensor[:, :, STEADY].contiguous() for tensor in (case.q, case.k, case.v, case.priority)]


def step(case, state, q, k, v, priority):
    return taylor_attention(q, k, v, case.heads, scaling=SCALING, priority=priority, state=state)[0]


@pytest.mark.parametrize("heads", LAYERS)
def test_a_decode_step_is_a_few_operations_beside_the_kernels(heads, marked):
    case, state = before_the_step(heads)
    inputs = tokens(case)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        step(case, state, *inputs)
    called = Counter(event.name for event in profiled.events() if event.cpu_parent is None)
    assert 3 <= called[KERNEL] <= 6
    operations = Counter({name: number for name, number in called.items() if name.startswith("aten::")})
    assert 0 < operations.total() <= MOST, operations


@pytest.mark.parametrize("heads", LAYERS)
def test_a_decode_step_is_the_last_row_of_a_prefill(heads):
    """The step's own kernel takes the token in, finds what becomes far and sums it; a prefill does so in other ways."""
    case, state = before_the_step(heads)
    found = step(case, state, *tokens(case))
    whole, after = attend(replace(case, cuts=(0, STEADY.stop)), "triton")
    assert relative_error(found, whole[:, :, -1:]) < FP32
    (part,), (other,) = state.parts, after.parts
    for name in ("keys", "values", "counts"):
        torch.testing.assert_close(getattr(part.far, name), getattr(other.far, name), rtol=1e-5, atol=1e-4)
    q, k, v, priority = tokens(case)
    wrong = step(case, before_the_step(heads)[1], q, k * 1.1, v, priority)
    assert relative_error(wrong, whole[:, :, -1:]) > 10 * FP32


@pytest.mark.parametrize("heads", [KEPT_KEYS, STATES])
def test_the_device_counts_along_with_the_host(heads):
    """What a step left on the device is what the host would send: it sends nothing from one step to the next."""
    case, state = before_the_step(heads)
    (part,) = state.parts
    left = part.extents.of(part.pending, part.tables, 1, causal=True)
    assert torch.equal(left, Extents().of(part.pending, part.tables, 1, causal=True))
    step(case, state, *tokens(case))
    assert part.extents.of(part.pending, part.tables, 1, causal=True) is left
    assert torch.equal(left, Extents().of(part.pending, part.tables, 1, causal=True))


def test_steps_rank_padding_last_and_of_equal_priorities_keep_the_later_key():
    heads = [HeadSpec(Dropped(), near) for near in (Near(3, 2), Near(0, 1, 4), Near(4, 0, 3)) for _ in range(2)]
    valid = torch.ones(2, 26, dtype=torch.bool)
    valid[1, :5] = valid[0, 18] = False
    case = replace(ranked(heads, T=26, levels=2), valid=valid, cuts=(0, *range(14, 27)))
    found, _ = attend(case, "triton")
    assert backward_error(found, case) < FP32
    assert found[0, :, 18].abs().sum() == 0
    other = replace(case, priority=case.priority - torch.arange(26) / 100)  # the earlier one of those equal before
    assert backward_error(found, other) > 10 * FP32
