"""Triton kernels for the gradients of what lies between tokens and states; names as in ``state_kernels``.

A row is a query that has read a state, or a key that was folded into one. What a state's feature is multiplied with in
a row is its gradient there: a product with ``row_values`` (gradients of numerators, or values) and ``row_weights``.
"""

import triton
import triton.language as tl


@triton.jit
def fold_rows(
    coordinates,  # [N, 1 + d, ld] of rows; columns that must not count are zero
    coefficients,  # float32 [N, slots, ld]
    row_values,  # float32 [N, ld, d_v]
    row_weights,  # float32 [N, ld]
    features,  # float32 [*, d_v], written
    sums,  # float32 [*], written
    state_rows,  # int64 [N], row of features where tile 0 of the layout's tables would lie
    items,  # int32 [programs, 2]: n, tile
    factors,  # int32 [groups, BASE + 1, T]
    prefixes,  # int32 [tiles, PREFIX or 1]
    tile_groups,  # int32 [tiles]
    ld,
    slots,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    T: tl.constexpr,
    BASE: tl.constexpr,
    PREFIX: tl.constexpr,
    TOKENS: tl.constexpr,  # columns per step
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``features[tile] = sum_i coefficient_i base(q_i) prefix(q_i) row_values_i``, one program per tile."""
    item = items + tl.program_id(0) * 2
    n = tl.load(item).to(tl.int64)
    tile = tl.load(item + 1).to(tl.int64)
    group = tl.load(tile_groups + tile).to(tl.int64)
    feature = tl.arange(0, T)
    column = tl.arange(0, VALUE_BLOCK)
    coordinates += n * (1 + HEAD_DIM) * ld
    coefficients += n * slots * ld
    row_values += n * ld * VALUE_DIM
    row_weights += n * ld
    names = factors + group * (BASE + 1) * T + feature
    numerator = tl.zeros((T, VALUE_BLOCK), tl.float32)
    denominator = tl.zeros((T,), tl.float32)
    for start in range(0, ld, TOKENS):
        row = start + tl.arange(0, TOKENS)
        base = tl.load(coefficients + tl.load(names + BASE * T)[:, None] * ld + row[None, :])
        for r in tl.static_range(BASE):
            base *= tl.load(coordinates + tl.load(names + r * T)[:, None] * ld + row[None, :]).to(tl.float32)
        value = tl.load(
            row_values + row[:, None] * VALUE_DIM + column[None, :], mask=column[None, :] < VALUE_DIM, other=0.0
        )
        weight = tl.load(row_weights + row)
        if PREFIX > 0:
            prefix = tl.load(coordinates + tl.load(prefixes + tile * PREFIX) * ld + row).to(tl.float32)
            for r in tl.static_range(1, PREFIX):
                prefix *= tl.load(coordinates + tl.load(prefixes + tile * PREFIX + r) * ld + row).to(tl.float32)
            value *= prefix[:, None]
            weight *= prefix
        denominator += tl.sum(base * weight[None, :], 1)
        numerator = tl.dot(base.to(DOT), value.to(DOT), numerator, input_precision=PRECISION)
    place = tl.load(state_rows + n) + tile * T + feature
    inside = (column < VALUE_DIM)[None, :] & (feature >= 0)[:, None]
    tl.store(features + place[:, None] * VALUE_DIM + column[None, :], numerator, mask=inside)
    tl.store(sums + place, denominator)


@triton.jit
def differentiate_rows(
    coordinates,  # [N, 1 + d, ld] of rows
    coefficients,  # float32 [N, slots, ld]
    row_values,  # float32 [N, ld, d_v]
    row_weights,  # float32 [N, ld]
    features,  # float32 [*, d_v]
    sums,  # float32 [*]
    state_rows,  # int64 [N], row of features where tile 0 of the layout's tables would lie
    items,  # int32 [programs, 4]: n, first row, first run, end of runs
    runs,  # int32 [runs, 3]: group, first tile, number of tiles
    factors,  # int32 [groups, BASE + 1, T]
    prefixes,  # int32 [tiles, PREFIX or 1]
    by_coordinates,  # float32 [N, d, ld], written
    by_coefficients,  # float32 [N, slots, ld], written
    ld,
    slots,
    HEAD_DIM: tl.constexpr,
    HEAD_BLOCK: tl.constexpr,  # HEAD_DIM rounded up to a power of two
    VALUE_DIM: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    SLOTS: tl.constexpr,  # at least slots, a power of two
    T: tl.constexpr,
    BASE: tl.constexpr,
    PREFIX: tl.constexpr,
    ROWS: tl.constexpr,  # rows of a program
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of rows' coordinates and coefficients through every feature; a program owns its rows.

    A prefix is differentiated tile by tile, a base once for all tiles of its run. Which coordinates a base consists of
    is a matrix of zeros and ones: its product with the gradients of the factors adds up what belongs to a coordinate,
    in a fixed order.
    """
    item = items + tl.program_id(0) * 4
    n = tl.load(item).to(tl.int64)
    row = tl.load(item + 1) + tl.arange(0, ROWS)
    feature = tl.arange(0, T)
    column = tl.arange(0, VALUE_BLOCK)
    coordinate = tl.arange(0, HEAD_BLOCK)
    slot = tl.arange(0, SLOTS)
    coordinates += n * (1 + HEAD_DIM) * ld
    coefficients += n * slots * ld
    state_row = tl.load(state_rows + n)
    features += state_row * VALUE_DIM
    sums += state_row
    value = tl.load(
        row_values + (n * ld + row[None, :]) * VALUE_DIM + column[:, None], mask=column[:, None] < VALUE_DIM, other=0.0
    ).to(DOT)
    weight = tl.load(row_weights + n * ld + row)
    by_coordinate = tl.zeros((HEAD_BLOCK, ROWS), tl.float32)
    by_coefficient = tl.zeros((SLOTS, ROWS), tl.float32)
    for run in range(tl.load(item + 2), tl.load(item + 3)):
        group = tl.load(runs + run * 3).to(tl.int64)
        first = tl.load(runs + run * 3 + 1).to(tl.int64)
        end = first + tl.load(runs + run * 3 + 2)
        names = factors + group * (BASE + 1) * T + feature
        own_slot = tl.load(names + BASE * T)
        coefficient = tl.load(coefficients + own_slot[:, None] * ld + row[None, :])
        base = tl.load(coordinates + tl.load(names)[:, None] * ld + row[None, :]).to(tl.float32)
        for r in tl.static_range(1, BASE):
            base *= tl.load(coordinates + tl.load(names + r * T)[:, None] * ld + row[None, :]).to(tl.float32)
        by_base = tl.zeros((T, ROWS), tl.float32)
        for number in range(first, end):
            tile = features + (number * T + feature)[:, None] * VALUE_DIM + column[None, :]
            block = tl.load(tile, mask=column[None, :] < VALUE_DIM, other=0.0)
            gradient = tl.load(sums + number * T + feature)[:, None] * weight[None, :]
            gradient += tl.dot(block.to(DOT), value, input_precision=PRECISION)
            if PREFIX > 0:
                prefix = tl.load(coordinates + tl.load(prefixes + number * PREFIX) * ld + row).to(tl.float32)
                for r in tl.static_range(1, PREFIX):
                    prefix *= tl.load(coordinates + tl.load(prefixes + number * PREFIX + r) * ld + row).to(tl.float32)
                by_prefix = tl.sum(gradient * (base * coefficient), 0)
                for r in tl.static_range(PREFIX):
                    others = by_prefix
                    for s in tl.static_range(PREFIX):
                        if s != r:
                            name = tl.load(prefixes + number * PREFIX + s)
                            others *= tl.load(coordinates + name * ld + row).to(tl.float32)
                    chosen = coordinate + 1 == tl.load(prefixes + number * PREFIX + r)
                    by_coordinate += tl.where(chosen[:, None], others[None, :], 0.0)
                by_base += gradient * prefix[None, :]
            else:
                by_base += gradient
        in_slot = (slot[:, None] == own_slot[None, :]).to(tl.float32)
        by_coefficient += tl.dot(in_slot.to(DOT), (by_base * base).to(DOT), input_precision=PRECISION)
        by_base *= coefficient
        for r in tl.static_range(BASE):
            others = by_base
            for s in tl.static_range(BASE):
                if s != r:
                    others *= tl.load(coordinates + tl.load(names + s * T)[:, None] * ld + row[None, :]).to(tl.float32)
            chosen = (coordinate[:, None] + 1 == tl.load(names + r * T)[None, :]).to(tl.float32)
            by_coordinate += tl.dot(chosen.to(DOT), others.to(DOT), input_precision=PRECISION)
    tl.store(
        by_coordinates + (n * HEAD_DIM + coordinate[:, None]) * ld + row[None, :],
        by_coordinate,
        mask=(coordinate < HEAD_DIM)[:, None] & (row >= 0)[None, :],
    )
    tl.store(
        by_coefficients + (n * slots + slot[:, None]) * ld + row[None, :],
        by_coefficient,
        mask=(slot < slots)[:, None] & (row >= 0)[None, :],
    )
