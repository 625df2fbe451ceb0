"""Triton kernels over tokens at hand: far ones by the polynomial, near ones by the exponential, and the quotient.

Names: N pairs of sequence and KV head, G KV heads, g query heads per KV head, d head dim, d_v value dim, L levels: a
level is a rank and the part of the polynomial that is of scores over the first so many coordinates. Row r of a KV
head's queries is token ``r % pitch`` of query head ``r // pitch``. Whether a token is near or far is read from
``far_from``, see ``pending``; the other bounds only leave out tokens that are near, or far, for no row of a block.
"""

import triton
import triton.language as tl


@triton.jit
def read_pending(
    coordinates,  # [N, 1 + d, ld] of queries
    means,  # float32 [N, L, ld], expansion point of every level
    polynomials,  # float32 [G * g, L, DEGREES], zero where a head has no term
    level_ranks,  # int32 [G, L]
    keys,  # [*, d], tokens of all sequences and KV heads
    values,  # [*, d_v]
    far_from,  # int32 [*], position from which on a token is far, negative if it must not count
    extents,  # int64 [N, 5], see ``attention``
    items,  # int32 [programs, 4]: n, first row, first token, piece
    numerators,  # float32 [pieces, ROWS, d_v], written
    denominators,  # float32 [pieces, ROWS], written
    ld,
    pitch,
    new,  # query tokens: the last ones of those at hand
    kv_heads,
    group,
    share,  # tokens of a program, at most
    scaling,
    HEAD_DIM: tl.constexpr,
    HEAD_BLOCK: tl.constexpr,  # rounded up to powers of two
    VALUE_DIM: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    LEVELS: tl.constexpr,
    DEGREES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,  # tokens per step
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sum the polynomial over far tokens that are in no state: numerators and denominators of one piece."""
    item = items + tl.program_id(0) * 4
    n = tl.load(item).to(tl.int64)
    row = tl.load(item + 1) + tl.arange(0, ROWS)
    begin = tl.load(item + 2)
    piece = tl.load(item + 3).to(tl.int64)
    first_key = tl.load(extents + n * 5)
    length = tl.load(extents + n * 5 + 1).to(tl.int32)
    window = tl.load(extents + n * 5 + 2).to(tl.int32)
    position = tl.load(extents + n * 5 + 4).to(tl.int32) + row % pitch
    axis = tl.arange(0, HEAD_BLOCK)
    column = tl.arange(0, VALUE_BLOCK)
    head = tl.minimum(row // pitch, group - 1)
    # Tokens that have not left the window of the last row are far for none.
    outside = length - new + tl.max(row % pitch, 0) + 1 - window
    end = tl.minimum(begin + share, tl.minimum(outside, length))
    coordinates += n * (1 + HEAD_DIM) * ld
    means += n * LEVELS * ld
    level_ranks += (n % kv_heads) * LEVELS
    polynomial = polynomials + ((n % kv_heads) * group + head) * LEVELS * DEGREES
    query = tl.load(coordinates + (1 + axis)[:, None] * ld + row[None, :], mask=axis[:, None] < HEAD_DIM, other=0.0).to(
        DOT
    )
    query = tl.trans(query)
    numerator = tl.zeros((ROWS, VALUE_BLOCK), tl.float32)
    denominator = tl.zeros((ROWS,), tl.float32)
    for start in range(begin, end, COLUMNS):
        token = start + tl.arange(0, COLUMNS)
        known = token < end
        key = tl.load(
            keys + (first_key + token)[None, :] * HEAD_DIM + axis[:, None],
            mask=known[None, :] & (axis < HEAD_DIM)[:, None],
            other=0.0,
        ).to(DOT)
        weight = tl.zeros((ROWS, COLUMNS), tl.float32)
        for level in tl.static_range(LEVELS):
            part = query
            if LEVELS > 1:
                part = tl.where(axis[None, :] < tl.load(level_ranks + level), query, 0.0)
            x = tl.dot(part, key, input_precision=PRECISION) * scaling - tl.load(means + level * ld + row)[:, None]
            term = tl.zeros((ROWS, COLUMNS), tl.float32)
            for below in tl.static_range(DEGREES):
                term = term * x + tl.load(polynomial + level * DEGREES + DEGREES - 1 - below)[:, None]
            weight += term
        far = tl.load(far_from + first_key + token, mask=known, other=-1)
        weight = tl.where((far >= 0)[None, :] & (far[None, :] <= position[:, None]), weight, 0.0)
        value = tl.load(
            values + (first_key + token)[:, None] * VALUE_DIM + column[None, :],
            mask=known[:, None] & (column < VALUE_DIM)[None, :],
            other=0.0,
        ).to(DOT)
        denominator += tl.sum(weight, 1)
        numerator = tl.dot(weight.to(DOT), value, numerator, input_precision=PRECISION)
    slot = piece * ROWS + tl.arange(0, ROWS)
    tl.store(denominators + slot, denominator)
    tl.store(
        numerators + slot[:, None] * VALUE_DIM + column[None, :],
        numerator,
        mask=(column < VALUE_DIM)[None, :] & (row >= 0)[:, None],
    )


@triton.jit
def _add_exponentials(numerator, denominator, top, score, inside, value, DOT: tl.constexpr, PRECISION: tl.constexpr):
    """Add keys of scores ``[ROWS, COLUMNS]`` where ``inside`` to sums that are relative to ``e^top``."""
    score = tl.where(inside, score, -float("inf"))
    above = tl.maximum(top, tl.max(score, 1))
    # A row that has met no key yet keeps empty sums; any finite top will do for it.
    safe = tl.where(above == -float("inf"), 0.0, above)
    weight = tl.exp(score - safe[:, None])
    scale = tl.exp(top - safe)
    denominator = denominator * scale + tl.sum(weight, 1)
    numerator = tl.dot(weight.to(DOT), value.to(DOT), numerator * scale[:, None], input_precision=PRECISION)
    return numerator, denominator, above


@triton.jit
def _capped(score, softcap, shift, CAPPED: tl.constexpr, SHIFTED: tl.constexpr):
    """Scores ``[ROWS, COLUMNS]`` as the true exponential takes them, relative to ``shift`` as they come."""
    if CAPPED:
        if SHIFTED:
            score += shift[:, None]
        # tanh by the exponential, which saturates on both sides.
        score = softcap * (1.0 - 2.0 / (tl.exp(score * (2.0 / softcap)) + 1.0))
        if SHIFTED:
            score -= shift[:, None]
    return score


@triton.jit
def add_near_and_divide(
    coordinates,  # [N, 1 + d, ld] of queries
    coefficients,  # float32 [N, slots, ld]; row 0 is degree 0
    means,  # float32 [N, L, ld]; row 0 is the expansion point
    folded_values,  # float32 [N, d_v], sum over tokens in the state
    folded_counts,  # float32 [N]
    far_values,  # float32 [N, new, d_v], sum over the far tokens of a row
    far_counts,  # float32 [N, new]
    drops,  # uint8 [G * g], heads without a far field
    numerators,  # float32 [pieces, ROWS, d_v]
    denominators,  # float32 [pieces, ROWS]
    keys,  # [*, d]
    values,  # [*, d_v]
    far_from,  # int32 [*]
    extents,  # int64 [N, 5]
    sink_keys,  # [N, sink_slots, d]
    sink_values,  # [N, sink_slots, d_v]
    sink_counts,  # int32 [G], sinks of each KV head
    sink_logits,  # float32 [heads], learned sinks; not read unless LEARNED
    shifts,  # float32 [B, heads, all_tokens], by how much scores are less than the model's; not read unless SHIFTED
    ranks,  # int32 [B, new], valid tokens of a sequence up to a row
    items,  # int32 [programs, 4]: n, first row, first piece, number of pieces
    numbers,  # int32 [G], which of all KV heads these are
    valid,  # uint8 [B, all_tokens], 0 for padding; only the first is read unless padded
    output,  # [B, heads, all_tokens, d_v], written; zero for padding
    guarded,  # int64 [heads], added to: guarded rows
    heads,  # of all KV heads
    all_tokens,
    first_token,  # of the new ones among those
    padded,  # 1 or 0
    ld,
    slots,
    pitch,
    new,
    kv_heads,
    group,
    sink_slots,
    scaling,
    threshold,  # a far denominator not above this share of the far tokens is guarded
    softcap,  # of scores under the true exponential; not used unless CAPPED
    HEAD_DIM: tl.constexpr,
    HEAD_BLOCK: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    LEVELS: tl.constexpr,
    LEARNED: tl.constexpr,  # whether there are learned sinks
    CAPPED: tl.constexpr,  # whether there is a soft cap
    SHIFTED: tl.constexpr,  # whether keys are centred, as far as sinks and caps notice
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add up a block's pieces in their order, guard them, add the true exponentials of what is near, divide."""
    item = items + tl.program_id(0) * 4
    n = tl.load(item).to(tl.int64)
    row = tl.load(item + 1) + tl.arange(0, ROWS)
    first_piece = tl.load(item + 2).to(tl.int64)
    first_key = tl.load(extents + n * 5)
    length = tl.load(extents + n * 5 + 1).to(tl.int32)
    reach = tl.load(extents + n * 5 + 3).to(tl.int32)
    kv_head = n % kv_heads
    axis = tl.arange(0, HEAD_BLOCK)
    column = tl.arange(0, VALUE_BLOCK)
    in_values = column < VALUE_DIM
    head = row // pitch
    token = row % pitch
    real = (head < group) & (token < new)
    own = length - new + token
    position = tl.load(extents + n * 5 + 4).to(tl.int32) + token

    constant = tl.load(coefficients + n * slots * ld + row)
    plain = tl.load(folded_values + n * VALUE_DIM + column, mask=in_values, other=0.0)
    numerator = constant[:, None] * plain[None, :]
    denominator = constant * tl.load(folded_counts + n)
    for piece in range(first_piece, first_piece + tl.load(item + 3)):
        slot = piece * ROWS + tl.arange(0, ROWS)
        denominator += tl.load(denominators + slot)
        numerator += tl.load(
            numerators + slot[:, None] * VALUE_DIM + column[None, :],
            mask=in_values[None, :] & (row >= 0)[:, None],
            other=0.0,
        )

    drop = tl.load(drops + kv_head * group + head, mask=real, other=1) != 0
    count = tl.load(far_counts + n * new + token, mask=real, other=0.0)
    fallback = real & (count > 0) & (denominator <= threshold * count) & (drop == 0)
    mean_value = tl.load(
        far_values + (n * new + token)[:, None] * VALUE_DIM + column[None, :],
        mask=fallback[:, None] & in_values[None, :],
        other=0.0,
    )
    numerator = tl.where(fallback[:, None], mean_value, numerator)
    denominator = tl.where(fallback, count, denominator)
    point = tl.load(means + n * LEVELS * ld + row)
    top = tl.where((count > 0) & (drop == 0), point, -float("inf"))
    has_far = top > -float("inf")
    numerator = tl.where(has_far[:, None], numerator, 0.0)
    denominator = tl.where(has_far, denominator, 0.0)
    shift = tl.zeros((ROWS,), tl.float32)
    if SHIFTED:
        among_all = n // kv_heads * heads + tl.load(numbers + kv_head) * group + head
        shift = tl.load(shifts + among_all * all_tokens + first_token + token, mask=real, other=0.0)
    if LEARNED:
        learned = tl.load(sink_logits + tl.load(numbers + kv_head) * group + head, mask=real, other=0.0) - shift
        above = tl.maximum(top, learned)
        scale = tl.exp(top - above)
        numerator *= scale[:, None]
        denominator = denominator * scale + tl.exp(learned - above)
        top = above

    query = tl.load(
        coordinates + n * (1 + HEAD_DIM) * ld + (1 + axis)[:, None] * ld + row[None, :],
        mask=axis[:, None] < HEAD_DIM,
        other=0.0,
    ).to(DOT)
    query = tl.trans(query)
    rank = tl.load(ranks + n // kv_heads * new + token, mask=real, other=0)
    sinks = tl.load(sink_counts + kv_head)
    for start in range(0, sinks, COLUMNS):
        sink = start + tl.arange(0, COLUMNS)
        known = sink < sinks
        place = n * sink_slots + sink
        key = tl.load(
            sink_keys + place[None, :] * HEAD_DIM + axis[:, None],
            mask=known[None, :] & (axis < HEAD_DIM)[:, None],
            other=0.0,
        ).to(DOT)
        value = tl.load(
            sink_values + place[:, None] * VALUE_DIM + column[None, :],
            mask=known[:, None] & in_values[None, :],
            other=0.0,
        )
        score = tl.dot(query, key, input_precision=PRECISION) * scaling
        score = _capped(score, softcap, shift, CAPPED, SHIFTED)
        inside = known[None, :] & (sink[None, :] < rank[:, None])
        numerator, denominator, top = _add_exponentials(
            numerator, denominator, top, score, inside, value, DOT, PRECISION
        )
    begin = tl.maximum(tl.min(tl.where(real, own, length), 0) - reach + 1, 0)
    end = tl.where(reach > 0, tl.max(tl.where(real, own, -1), 0) + 1, 0)
    for start in range(begin, end, COLUMNS):
        near = start + tl.arange(0, COLUMNS)
        known = near < end
        key = tl.load(
            keys + (first_key + near)[None, :] * HEAD_DIM + axis[:, None],
            mask=known[None, :] & (axis < HEAD_DIM)[:, None],
            other=0.0,
        ).to(DOT)
        value = tl.load(
            values + (first_key + near)[:, None] * VALUE_DIM + column[None, :],
            mask=known[:, None] & in_values[None, :],
            other=0.0,
        )
        score = tl.dot(query, key, input_precision=PRECISION) * scaling
        score = _capped(score, softcap, shift, CAPPED, SHIFTED)
        far = tl.load(far_from + first_key + near, mask=known, other=-1)
        inside = (near[None, :] <= own[:, None]) & (far[None, :] > position[:, None])
        numerator, denominator, top = _add_exponentials(
            numerator, denominator, top, score, inside, value, DOT, PRECISION
        )
    result = numerator / tl.where(denominator == 0, 1.0, denominator)[:, None]
    of_row = (n // kv_heads * all_tokens + first_token + token) * padded
    counts = tl.load(valid + of_row, mask=real, other=0) != 0
    result = tl.where(counts[:, None], result, 0.0)
    of_all = tl.load(numbers + kv_head) * group + head
    place = (n // kv_heads * heads + of_all) * all_tokens + first_token + token
    tl.store(
        output + place[:, None] * VALUE_DIM + column[None, :],
        result.to(output.dtype.element_ty),
        mask=real[:, None] & in_values[None, :],
    )
    # Whole numbers: the order in which programs add them changes nothing.
    tl.atomic_add(guarded + of_all, fallback.to(tl.int64), mask=fallback & counts)
