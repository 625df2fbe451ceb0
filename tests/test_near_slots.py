"""Slots of near keys: nothing moves, a step costs the same for any mixture of near fields, and files hold them."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from taylorder.kernels import HeadSpec, Near, taylor_attention
from taylorder.kernels.near_slots import NearPart
from taylorder.kernels.spec import Dropped

MIXED = [Near(3), Near(2, 1, 4), Near(5, 2), Near(1, 0, 3), Near(0, 2, 2), Near(8, 4, 8)]


def specs(nears):
    return [HeadSpec(Dropped(), near) for near in nears for _ in range(2)]


def tokens(kv_heads, count, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    shape = 2, kv_heads, count
    return {
        "q": draw(2, 2 * kv_heads, count, 4), "k": draw(*shape, 4), "v": draw(*shape, 3), "priority": draw(*shape)
    }  # fmt: skip


def attend(nears, count, state=None, seed=0):
    return taylor_attention(**tokens(len(nears), count, seed), heads=specs(nears), scaling=0.5, state=state)


@pytest.mark.parametrize("first", [1, 4, 30])
def test_a_step_changes_one_slot_of_each_kv_head_and_moves_nothing(first):
    _, state = attend(MIXED, first)
    attend(MIXED, 1, state, 1)
    (part,) = state.parts
    for step in range(2, 40):
        keys, size = part.keys.clone(), part.layout.counts
        attend(MIXED, 1, state, step)
        if part.layout.counts != size:
            continue  # there is more room
        changed = (part.keys != keys).any(-1)
        for g in range(len(MIXED)):
            assert changed[:, part.layout.slots(g)].sum(-1).tolist() == [1, 1]
    assert [count - 1 for count in part.layout.counts] == [near.tokens for near in MIXED]


VIEWS = {f"aten::{name}" for name in ("alias", "expand", "flatten", "is_nonzero", "mT", "to", "unsqueeze", "view")}


def operations(nears):
    """How many tensor operations a step takes once the near fields are full: no views, nothing inside of others."""
    _, state = attend(nears, 40)
    new = tokens(len(nears), 1, 1)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        taylor_attention(**new, heads=specs(nears), scaling=0.5, state=state)
    names = [event.name for event in profiled.events() if event.cpu_parent is None]
    return sum(name.startswith("aten::") and name not in VIEWS for name in names)


def test_a_step_takes_as_many_operations_for_any_mixture_of_near_fields():
    alike = operations([Near(3, 2, 4)] * 2)
    assert operations([near for near in MIXED if near.tokens]) == alike
    assert alike <= 33


def test_what_is_held_does_not_grow_once_near_fields_are_full():
    _, state = attend(MIXED, 40)
    held, nominal = state.nbytes, state.nominal_bytes
    attend(MIXED, 200, state, 1)
    attend(MIXED, 1, state, 2)
    assert (state.nbytes, state.nominal_bytes) == (held, nominal)
    near = sum(near.tokens for near in MIXED) * 2 * (4 + 3) + 4 * sum(near.kept for near in MIXED)
    assert nominal == 2 * near


@pytest.mark.parametrize("count", [1, 6, 40])
def test_slots_written_and_read_go_on_alike(count):
    _, state = attend(MIXED, count)
    attend(MIXED, 1, state, 1)
    (part,) = state.parts
    like = tokens(len(MIXED), 0)
    empty = NearPart(part.kv_heads, [[spec] for spec in specs(MIXED)[::2]], like["k"], like["v"])
    empty.put({name: tensor.clone() for name, tensor in part.held().items()})
    copy = state.clone()
    copy.parts = (empty,)
    for step in range(2, 6):
        expected, _ = attend(MIXED, 1, state, step)
        found, _ = attend(MIXED, 1, copy, step)
        assert torch.equal(found, expected)
    held = part.held()
    held["keys"] = held["keys"][:, 1:]
    with pytest.raises(ValueError, match="is torch.float32 .*, expected torch.float32"):
        empty.put(held)
