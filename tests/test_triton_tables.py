"""Tiles, their tables and work lists: every monomial and every tile once, nothing padded, and bfloat16 good enough."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import TOLERANCE
from triton_cases import sized

from taylorder.compile_report.ahead_of_time import state_overhead
from taylorder.kernels import HeadSpec
from taylorder.kernels.spec import Dropped, Near, Taylor
from taylorder.kernels.tables import count
from taylorder.kernels.triton_backend import plan as work
from taylorder.kernels.triton_backend.head_tables import head_tables
from taylorder.kernels.triton_backend.layout_tables import Kind, layout_tables
from taylorder.kernels.triton_backend.plan import Rows
from taylorder.kernels.triton_backend.tiles import CONSTANT, TOP, Layout, groups

CPU = torch.device("cpu")
EVERY_LAYOUT = [Layout("linear", 8), Layout("pair", 8), Layout("gather", 8), Layout("pair", 32)]


def features(layout, d, order, ranks, x):
    """All features of ``x`` ``[n, d]`` with degree, slot and multiplicity: ``[n, D]`` and three lists."""
    padded = torch.nn.functional.pad(x.double(), (1, 0), value=1.0)
    values, degrees, slots, multiplicities = [], [], [], []
    for group in groups(layout, d, order, ranks):
        base = torch.stack([padded[:, index] for index in group.base]).prod(0)
        for prefix, multiplicity in zip(group.prefixes, group.multiplicity, strict=True):
            values.append(base * padded[:, list(prefix)].prod(-1, keepdim=True))
            degrees += [(group.base[:, u] > 0).sum().item() + len(prefix) for u in range(layout.tile)]
            slots += group.slots
            multiplicities.append(multiplicity.double())
    return torch.cat(values, 1), degrees, slots, torch.cat(multiplicities)


@pytest.mark.parametrize("layout", EVERY_LAYOUT)
@pytest.mark.parametrize("order", [2, 3, 4, 5])
@pytest.mark.parametrize("ranks", [None, (0, 6, 3, 3, 2), (0, 4, 4, 1, 1), (0, 6, 0, 0, 0)])
def test_features_of_a_degree_are_that_power_of_the_score(layout, order, ranks):
    own = None if ranks is None else ranks[:order]
    x, y = torch.randn(5, 6, generator=torch.Generator().manual_seed(0)), torch.randn(7, 6)
    left, degrees, _, multiplicity = features(layout, 6, order, own, x)
    right = features(layout, 6, order, own, y)[0]
    for degree in range(1, order):
        rank = 6 if own is None else own[degree]
        used = torch.tensor([d == degree for d in degrees]) & (multiplicity > 0)
        assert int(used.sum()) == (count(degree, rank) if rank else 0)
        power = (x[:, :rank].double() @ y[:, :rank].double().T) ** degree if rank else torch.zeros(5, 7)
        found = (left[:, used] * multiplicity[used]) @ right[:, used].T
        torch.testing.assert_close(found, power.double())


def test_slots_say_which_ranks_a_feature_is_in():
    _, degrees, slots, multiplicity = features(Layout("gather", 8), 6, 4, (0, 6, 3, 2), torch.ones(1, 6))
    used = [slot for slot, times in zip(slots, multiplicity.tolist(), strict=True) if times]
    assert Counter(used) == {
        (1, 1): 3,  # coordinates 4 to 6: only degree 1 reaches them
        (1, 2): 1,
        (1, TOP): 2,
        (2, 2): 3,  # pairs with coordinate 3
        (2, TOP): 3,
        (3, TOP): 4,
    }
    assert all(degree == slot[0] for degree, slot in zip(degrees, slots, strict=True) if slot != CONSTANT)


def test_states_are_hardly_larger_than_the_minimal_basis():
    assert state_overhead(64, 4) <= 1.10
    assert state_overhead(64, 3) <= 1.5
    for d, order in [(16, 4), (16, 8), (80, 4), (96, 4), (128, 3), (128, 4), (256, 3)]:
        assert state_overhead(d, order) <= 1.25


def test_low_ranks_hardly_waste_a_row():
    """Rank 8 at head dim 64: 221 features, and no more than a tile's padding beyond them."""
    kind = Kind(4, (0, 64, 8, 8))
    layout = Layout.choose(64, kind.order, kind.ranks)
    assert layout_tables(layout, 64, (kind,), CPU).tiles(kind) * layout.tile <= 221 + layout.tile


MIXED = (
    (HeadSpec(Taylor(4, "mean")), HeadSpec(Taylor(2, "centre"))),
    (HeadSpec(Taylor(3)), HeadSpec(Taylor(3))),
    (HeadSpec(Taylor(1)), HeadSpec(Taylor(1))),
    (HeadSpec(Dropped(), Near(4)),) * 2,
    (HeadSpec(Taylor(4, "centre", (0, 32, 6, 4))), HeadSpec(Taylor(3, "centre", (0, 32, 6)))),
)


def make_plan(new, rows=32, stacked=False, far=(0, 0, 0, 0, 0), started=(True,) * 5, batch=2, causal=True):
    tables = head_tables(MIXED, 32, CPU)
    chosen = [layout for layout in dict.fromkeys(tables.layouts) if layout is not None]
    layouts = tuple(
        layout_tables(
            own,
            32,
            tuple(dict.fromkeys(k for k, at in zip(tables.kinds, tables.layouts, strict=True) if at == own)),
            CPU,
        )
        for own in chosen
    )
    return tables, layouts, work.plan(tables, layouts, batch, Rows(2, new, rows, stacked), started, far, causal)


def tiles_read(layouts, made):
    """Tiles each block (n, first row) reads, in order of its pieces, and the numbers of those pieces."""
    read = {}
    for own in (each for each in layouts if each.layout in made.states):
        state = made.states[own.layout]
        for n, first, start, end, piece in state.items.tolist():
            runs = state.runs[start:end].tolist()
            tiles = [t for _, tile, number in runs for t in range(tile, tile + number)]
            assert tiles, "a program without work"
            for group, tile, number in runs:
                assert all(own.tile_groups[t] == group for t in range(tile, tile + number))
            read.setdefault((n, first), {})[piece] = tiles
    return {block: [pieces[p] for p in sorted(pieces)] for block, pieces in read.items()}


@pytest.mark.parametrize("programs", [1, 5, 50, 1000])
@pytest.mark.parametrize("new, stacked", [(100, False), (1, True), (7, True)])
def test_every_tile_of_every_heads_order_is_read_once(programs, new, stacked):
    with sized({(work, "PROGRAMS"): programs, (work, "PIECE_TILES"): 1}):
        tables, layouts, made = make_plan(new, stacked=stacked)
        read = tiles_read(layouts, made)
    reading = {n for n in range(10) if tables.layouts[n % 5] is not None}
    assert {n for n, _ in read} == reading  # order 1 and dropped far fields have nothing to read
    for n in reading:
        g = n % 5
        blocks = {first: tiles for (owner, first), tiles in read.items() if owner == n}
        own = next(each for each in layouts if each.layout == tables.layouts[g])
        assert len(blocks) == (1 if stacked else 2 * math.ceil(new / 32))
        for first, pieces in blocks.items():
            order = max(tables.orders[g]) if stacked else tables.orders[g][first // 128]
            runs = own.runs_of(tables.kinds[g], order)
            expected = [t for run in runs for t in range(run.first, run.first + run.count)]
            assert [t for piece in pieces for t in piece] == expected


@pytest.mark.parametrize("tiles, fewest, most", [(1, 200, 528), (8, 50, 66)])
def test_a_decode_step_is_cut_into_programs_of_one_size(tiles, fewest, most):
    with sized({(work, "PROGRAMS"): 264, (work, "PIECE_TILES"): tiles}):
        _, layouts, made = make_plan(1, rows=16, stacked=True, started=(True, False, False, False, False))
        lengths = [len(tiles) for pieces in tiles_read(layouts, made).values() for tiles in pieces]
    assert len(made.blocks) == 10  # one per sequence and KV head, also where no state is read
    assert fewest <= len(lengths) <= most
    assert max(lengths) - min(lengths) <= 1


def test_long_programs_come_first():
    with sized({(work, "PROGRAMS"): 1}):
        _, _, made = make_plan(100)
    for state in made.states.values():
        costs = [int(state.runs[start:end, 2].sum()) for _, _, start, end, _ in state.items.tolist()]
        assert costs == sorted(costs, reverse=True)


def test_pieces_are_numbered_within_their_block():
    with sized({(work, "PROGRAMS"): 40, (work, "PIECE_TILES"): 1, (work, "PIECE_TOKENS"): 16}):
        _, _, made = make_plan(100, far=(120, 30, 0, 0, 500))
    owners = [None] * made.pieces
    for state in made.states.values():
        for n, first, _, _, piece in state.items.tolist():
            assert owners[piece] is None
            owners[piece] = (n, first)
    for n, first, _, piece in made.pending.tolist():
        assert owners[piece] is None
        owners[piece] = (n, first)
    for n, first, start, number in made.blocks.tolist():
        assert all(owner == (n, first) for owner in owners[start : start + number])
    assert sum(number for *_, number in made.blocks.tolist()) == made.pieces


@given(new=st.integers(1, 300), far=st.integers(0, 700))
@settings(max_examples=40, deadline=None)
def test_rows_without_far_tokens_get_no_program(new, far):
    with sized({(work, "PROGRAMS"): 1000, (work, "PIECE_TOKENS"): 16}):
        _, _, made = make_plan(new, far=(far, 0, 0, 0, 0), batch=1)
    for n, first, begin, _ in made.pending.tolist():
        last_token = min(new, first % (math.ceil(new / 32) * 32) + 32) - 1
        assert n == 0
        assert begin < far - (new - 1 - last_token)


def test_rows_of_heads_stand_one_after_another():
    assert (Rows(2, 3, 8, True).pitch, Rows(2, 3, 8, True).width) == (3, 8)
    assert (Rows(2, 3, 4, False).pitch, Rows(2, 3, 4, False).width) == (4, 8)
    assert [first for first, _ in Rows(2, 3, 4, False).blocks((4, 2))] == [0, 4]
    assert Rows(3, 2, 4, True).blocks((2, 4, 3)) == [(0, 4), (4, 3)]


@pytest.mark.parametrize("expansion, mean", [("zero", 0.0), ("mean", 0.0), ("mean", 0.5)])
@pytest.mark.parametrize("order", [3, 4])
def test_bfloat16_products_meet_the_tolerance(expansion, mean, order):
    """The interpreter cannot round to bfloat16, so what the compiled kernels round is rounded here.

    Base, state and its counts are rounded before they are multiplied, prefixes scale the float32 product, as in
    ``read_state``; states are folded from rounded features and values, as in ``fold_tokens``.
    """

    def rounded(tensor):
        return tensor.bfloat16().double()

    d, generator = 32, torch.Generator().manual_seed(0)
    q = rounded(torch.randn(64, d, generator=generator))
    k = rounded(torch.randn(512, d, generator=generator) + mean)
    v = rounded(torch.randn(512, d, generator=generator))
    scaling = d**-0.5
    tables = head_tables(((HeadSpec(Taylor(order, expansion)),),), d, CPU)
    layout, kind = tables.layouts[0], tables.kinds[0]
    own = layout_tables(layout, d, (kind,), CPU)
    centre = k.mean(0) if expansion == "mean" else torch.zeros(d)
    # Means are zero relative to the state's origin, which is the mean of its keys: no power of them is left.
    slots = [scaling**m * tables.expansions[0, m, m].expand(64).double() for m, _ in own.slots]
    slots = torch.stack(slots)
    columns = [torch.nn.functional.pad(rounded(x), (1, 0), value=1.0).T for x in (q, k - centre)]
    base_of, prefix_of = own.factors.long(), own.prefixes.long()
    numerator = slots[0][:, None] * v.sum(0)
    for tile, group in enumerate(own.tile_groups.tolist()):
        sides = []
        for x in columns:
            base = torch.stack([x[base_of[group, r]] for r in range(own.constants["BASE"])]).prod(0)
            sides.append((base, torch.stack([x[i] for i in prefix_of[tile]]).prod(0)))
        (query, scale), (key, weight) = sides
        times = own.multiplicity[tile * layout.tile : (tile + 1) * layout.tile].double()
        state = times[:, None] * (rounded(key) @ rounded(weight[:, None] * v))
        operand = rounded(query * slots[base_of[group, -1]])
        numerator = numerator + scale[:, None] * (operand.T @ rounded(state))
    x = scaling * q @ (k - centre).T
    truth = sum(x**p / math.factorial(p) for p in range(order)) @ v
    assert float((numerator - truth).norm() / truth.norm()) < TOLERANCE[torch.bfloat16]


def test_degrees_of_runs_ascend():
    for layout in EVERY_LAYOUT:
        kind = Kind(5, None)
        runs = layout_tables(layout, 6, (kind,), CPU).runs_of(kind, 5)
        assert all(before.degree <= after.degree for before, after in pairwise(runs))
        assert all(before.first + before.count == after.first for before, after in pairwise(runs))
