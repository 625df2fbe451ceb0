"""Triton kernels between tokens and states: fold keys in, read queries out. Layouts: ``tiles``, ``layout_tables``.

Names: N pairs of sequence and KV head, T features per tile, d head dim, d_v value dim. A matrix of coordinates holds
ones in row 0 and the coordinates below, tokens along the columns, so that a feature is a product of rows. Offsets are
64-bit: states of a batch may exceed 2^31 numbers.
"""

import triton
import triton.language as tl


@triton.jit
def fold_tokens(
    coordinates,  # [N, 1 + d, ld] of keys; columns that must not count are zero
    values,  # [N, ld, d_v]
    features,  # float32 [*, d_v], added to
    sums,  # float32 [*], added to
    state_rows,  # int64 [N], row of features where tile 0 of the layout's tables would lie
    tokens,  # int64 [N], columns in use
    items,  # int32 [programs, 2]: n, tile
    factors,  # int32 [groups, BASE + 1, T]
    prefixes,  # int32 [tiles, PREFIX or 1]
    tile_groups,  # int32 [tiles]
    multiplicity,  # float32 [tiles * T]
    ld,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,  # VALUE_DIM rounded up to a power of two
    T: tl.constexpr,
    BASE: tl.constexpr,  # coordinates in a base
    PREFIX: tl.constexpr,  # coordinates in a prefix
    TOKENS: tl.constexpr,  # columns per step
    DOT: tl.constexpr,  # what products are computed from: tl.float32 or tl.bfloat16
    PRECISION: tl.constexpr,
):
    """``features[tile] += m * sum_j base(k_j) prefix(k_j) v_j``, one program per tile, which stays in registers."""
    item = items + tl.program_id(0) * 2
    n = tl.load(item).to(tl.int64)
    tile = tl.load(item + 1).to(tl.int64)
    group = tl.load(tile_groups + tile).to(tl.int64)
    feature = tl.arange(0, T)
    column = tl.arange(0, VALUE_BLOCK)
    coordinates += n * (1 + HEAD_DIM) * ld
    values += n * ld * VALUE_DIM
    numerator = tl.zeros((T, VALUE_BLOCK), tl.float32)
    denominator = tl.zeros((T,), tl.float32)
    for start in range(0, tl.load(tokens + n), TOKENS):
        token = start + tl.arange(0, TOKENS)
        base = tl.load(
            coordinates + tl.load(factors + group * (BASE + 1) * T + feature)[:, None] * ld + token[None, :]
        ).to(tl.float32)
        for r in tl.static_range(1, BASE):
            row = tl.load(factors + (group * (BASE + 1) + r) * T + feature)
            base *= tl.load(coordinates + row[:, None] * ld + token[None, :]).to(tl.float32)
        value = tl.load(
            values + token[:, None] * VALUE_DIM + column[None, :], mask=column[None, :] < VALUE_DIM, other=0.0
        ).to(tl.float32)
        if PREFIX > 0:
            prefix = tl.load(coordinates + tl.load(prefixes + tile * PREFIX) * ld + token).to(tl.float32)
            for r in tl.static_range(1, PREFIX):
                prefix *= tl.load(coordinates + tl.load(prefixes + tile * PREFIX + r) * ld + token).to(tl.float32)
            value *= prefix[:, None]
            denominator += tl.sum(base * prefix[None, :], 1)
        else:
            denominator += tl.sum(base, 1)
        numerator = tl.dot(base.to(DOT), value.to(DOT), numerator, input_precision=PRECISION)
    times = tl.load(multiplicity + tile * T + feature)
    place = tl.load(state_rows + n) + tile * T + feature
    inside = (column < VALUE_DIM)[None, :] & (feature >= 0)[:, None]
    old = tl.load(features + place[:, None] * VALUE_DIM + column[None, :], mask=inside, other=0.0)
    tl.store(features + place[:, None] * VALUE_DIM + column[None, :], old + times[:, None] * numerator, mask=inside)
    tl.store(sums + place, tl.load(sums + place) + times * denominator)


@triton.jit
def read_state(
    coordinates,  # [N, 1 + d, ld] of queries; row r of a KV head's queries is column r
    coefficients,  # float32 [N, slots, ld]
    features,  # [*, d_v]
    sums,  # float32 [*]
    state_rows,  # int64 [N], row of features where tile 0 of the layout's tables would lie
    items,  # int32 [programs, 5]: n, first row, first run, end of runs, piece
    runs,  # int32 [runs, 3]: group, first tile, number of tiles
    factors,  # int32 [groups, BASE + 1, T]
    prefixes,  # int32 [tiles, PREFIX or 1]
    numerators,  # float32 [pieces, ROWS, d_v], written
    denominators,  # float32 [pieces, ROWS], written
    ld,
    slots,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    T: tl.constexpr,
    BASE: tl.constexpr,
    PREFIX: tl.constexpr,
    ROWS: tl.constexpr,  # query rows of a program
    TOGETHER: tl.constexpr,  # tiles whose denominators are computed in one product
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sum a stretch of the state's features times the queries': numerators and denominators of one piece.

    The base, with the rows' coefficients in it, is an operand that stays for all tiles of a run; the prefix scales what
    comes out. A program owns its rows and its piece: nothing is added atomically, and the order of sums is fixed.
    """
    item = items + tl.program_id(0) * 5
    n = tl.load(item).to(tl.int64)
    row = tl.load(item + 1) + tl.arange(0, ROWS)
    piece = tl.load(item + 4).to(tl.int64)
    feature = tl.arange(0, T)
    column = tl.arange(0, VALUE_BLOCK)
    coordinates += n * (1 + HEAD_DIM) * ld
    coefficients += n * slots * ld
    state_row = tl.load(state_rows + n)
    features += state_row * VALUE_DIM
    sums += state_row
    numerator = tl.zeros((ROWS, VALUE_BLOCK), tl.float32)
    denominator = tl.zeros((ROWS,), tl.float32)
    for run in range(tl.load(item + 2), tl.load(item + 3)):
        group = tl.load(runs + run * 3).to(tl.int64)
        first = tl.load(runs + run * 3 + 1).to(tl.int64)
        end = first + tl.load(runs + run * 3 + 2)
        names = factors + group * (BASE + 1) * T + feature
        base = tl.load(coefficients + tl.load(names + BASE * T)[:, None] * ld + row[None, :])
        for r in tl.static_range(BASE):
            base *= tl.load(coordinates + tl.load(names + r * T)[:, None] * ld + row[None, :]).to(tl.float32)
        operand = tl.trans(base).to(DOT)
        if PREFIX == 0:
            denominator += tl.sum(base * tl.load(sums + first * T + feature)[:, None], 0)
            tile = features + (first * T + feature)[:, None] * VALUE_DIM + column[None, :]
            if VALUE_BLOCK == VALUE_DIM:
                block = tl.load(tile)
            else:
                block = tl.load(tile, mask=column[None, :] < VALUE_DIM, other=0.0)
            numerator = tl.dot(operand, block.to(DOT), numerator, input_precision=PRECISION)
        else:
            for start in tl.range(first, end, TOGETHER, num_stages=1):
                several = start + tl.arange(0, TOGETHER)
                used = several < end
                prefix = tl.load(
                    coordinates + tl.load(prefixes + several * PREFIX, mask=used, other=0)[None, :] * ld + row[:, None]
                ).to(tl.float32)
                for r in tl.static_range(1, PREFIX):
                    name = tl.load(prefixes + several * PREFIX + r, mask=used, other=0)
                    prefix *= tl.load(coordinates + name[None, :] * ld + row[:, None]).to(tl.float32)
                counts = tl.load(sums + several[None, :] * T + feature[:, None], mask=used[None, :], other=0.0)
                partial = tl.dot(operand, counts.to(DOT), input_precision=PRECISION)
                denominator += tl.sum(prefix * partial, 1)
            for number in range(first, end):
                prefix = tl.load(coordinates + tl.load(prefixes + number * PREFIX) * ld + row).to(tl.float32)
                for r in tl.static_range(1, PREFIX):
                    name = tl.load(prefixes + number * PREFIX + r)
                    prefix *= tl.load(coordinates + name * ld + row).to(tl.float32)
                tile = features + (number * T + feature)[:, None] * VALUE_DIM + column[None, :]
                if VALUE_BLOCK == VALUE_DIM:
                    block = tl.load(tile)
                else:
                    block = tl.load(tile, mask=column[None, :] < VALUE_DIM, other=0.0)
                numerator += prefix[:, None] * tl.dot(operand, block.to(DOT), input_precision=PRECISION)
    slot = piece * ROWS + tl.arange(0, ROWS)
    tl.store(denominators + slot, denominator)
    tl.store(
        numerators + slot[:, None] * VALUE_DIM + column[None, :],
        numerator,
        mask=(column < VALUE_DIM)[None, :] & (row >= 0)[:, None],
    )
