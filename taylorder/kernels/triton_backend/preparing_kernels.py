"""Triton kernels before attention: a decode step's token enters the queue, and what is read per query row is written.

Names: N pairs of sequence and KV head, G KV heads, g query heads per KV head, d head dim, d_v value dim, L levels,
P the largest order. Rows of queries are numbered as in ``token_kernels``.
"""

import triton
import triton.language as tl


@triton.jit
def take_token(
    new_keys,  # [N, d]
    new_values,  # [N, d_v]
    new_priorities,  # float32 [N]; not read unless RANKED
    valid,  # uint8 [B], 0 for padding
    keys,  # [*, d], tokens of all sequences and KV heads, added to
    values,  # [*, d_v], added to
    far_from,  # int32 [*], added to
    priorities,  # float32 [*], added to; not read unless RANKED
    extents,  # int64 [N, 5], see ``extents``; brought up to date
    kept,  # int32 [G], tokens each KV head keeps by priority
    delays,  # int32 [G], tokens after its own at which a token becomes far
    far_keys,  # float32 [N, d], sum over the far tokens, added to; not read unless MEANS
    far_values,  # float32 [N, d_v], the same of values
    far_counts,  # float32 [N], their number
    kv_heads,
    HEAD_DIM: tl.constexpr,
    HEAD_BLOCK: tl.constexpr,  # rounded up to powers of two
    VALUE_DIM: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    RANKED: tl.constexpr,  # whether any KV head keeps tokens by priority
    MEANS: tl.constexpr,  # whether the sum of keys is wanted
    COLUMNS: tl.constexpr,  # tokens per step
):
    """Append one token to the queue of a KV head, and add the token that becomes far by it to the far sums."""
    n = tl.program_id(0).to(tl.int64)
    extent = extents + n * 5
    first = tl.load(extent)
    before = tl.load(extent + 1)
    window = tl.load(extent + 2)
    reach = tl.load(extent + 3)
    position = tl.load(extent + 4) + 1
    counts = tl.load(valid + n // kv_heads) != 0
    axis = tl.arange(0, HEAD_BLOCK)
    column = tl.arange(0, VALUE_BLOCK)
    in_keys = axis < HEAD_DIM
    in_values = column < VALUE_DIM
    row = first + before
    # A weight of zero does not silence an infinity: what does not count must be zero itself.
    key = tl.load(new_keys + n * HEAD_DIM + axis, mask=in_keys, other=0.0)
    tl.store(keys + row * HEAD_DIM + axis, tl.where(counts, key, 0.0), mask=in_keys)
    value = tl.load(new_values + n * VALUE_DIM + column, mask=in_values, other=0.0)
    tl.store(values + row * VALUE_DIM + column, tl.where(counts, value, 0.0), mask=in_values)
    tl.store(far_from + row, tl.where(counts, position + tl.load(delays + n % kv_heads), -1).to(tl.int32))
    if RANKED:
        tl.store(priorities + row, tl.where(counts, tl.load(new_priorities + n), -float("inf")))
    # Where there is no window the token itself may be what becomes far: it is read again below, by other threads.
    tl.debug_barrier()
    leaver = before - window
    if RANKED:
        places = tl.load(kept + n % kv_heads)
        front = before - reach
        if places > 0:
            behind = leaver - front
            lowest = float("inf")
            lost = front - front - 1
            for start in range(front, tl.where(behind >= places, leaver + 1, front), COLUMNS):
                token = start + tl.arange(0, COLUMNS)
                priority = tl.load(priorities + first + token, mask=token <= leaver, other=float("inf"))
                # Of equal priorities the first one loses, and what is far already is above all.
                low = tl.min(priority, 0)
                at = start + tl.argmin(priority, 0, tie_break_left=True)
                lost = tl.where(low < lowest, at, lost)
                lowest = tl.minimum(low, lowest)
            leaver = lost
            if leaver >= 0:
                until = tl.load(far_from + first + leaver)
                tl.debug_barrier()
                tl.store(far_from + first + leaver, tl.minimum(until, position.to(tl.int32)))
                tl.store(priorities + first + leaver, float("inf"))
            reach += 1
    gone = first + tl.maximum(leaver, 0)
    weight = tl.where((leaver >= 0) & (tl.load(far_from + gone) >= 0), 1.0, 0.0)
    if MEANS:
        sums = far_keys + n * HEAD_DIM + axis
        key = tl.load(keys + gone * HEAD_DIM + axis, mask=in_keys, other=0.0).to(tl.float32)
        tl.store(sums, tl.load(sums, mask=in_keys, other=0.0) + key * weight, mask=in_keys)
    sums = far_values + n * VALUE_DIM + column
    value = tl.load(values + gone * VALUE_DIM + column, mask=in_values, other=0.0).to(tl.float32)
    tl.store(sums, tl.load(sums, mask=in_values, other=0.0) + value * weight, mask=in_values)
    number = tl.load(far_counts + n)
    tl.debug_barrier()
    tl.store(far_counts + n, number + weight)
    tl.store(extent + 1, before + 1)
    tl.store(extent + 3, reach)
    tl.store(extent + 4, position)


@triton.jit
def prepare_rows(
    queries,  # [N, g, new, d]
    far_keys,  # float32 [N, new, d], sum over the far tokens of a row; not read unless MEANS
    far_counts,  # float32 [N, new], their number
    origin,  # float32 [N, d], what the keys of a state are relative to; not read unless ORIGIN
    around_mean,  # float32 [G * g], 1 for heads that expand around their mean; not read unless MEANS
    level_ranks,  # int32 [G, L]
    degree_ranks,  # int32 [G, P]
    expansions,  # float32 [G * g, P, P], see ``head_tables``
    slot_degrees,  # int32 [coefficients, 2], degree and highest degree that reaches it
    coordinates,  # [N, 1 + d, ld], written
    means,  # float32 [N, L, ld], written
    coefficients,  # float32 [N, coefficients, ld], written
    ld,
    pitch,
    new,
    kv_heads,
    group,
    number,  # of coefficients
    scaling,
    HEAD_DIM: tl.constexpr,
    HEAD_BLOCK: tl.constexpr,
    LEVELS: tl.constexpr,
    DEGREES: tl.constexpr,
    SLOTS: tl.constexpr,  # coefficients, rounded up to a power of two
    MEANS: tl.constexpr,  # whether any head expands around its mean
    ORIGIN: tl.constexpr,  # whether keys of states are relative to something
    ROWS: tl.constexpr,
):
    """Write coordinates, means and coefficients of some rows of a KV head's queries.

    Powers around the mean are read from powers around zero: slot (m, p) has ``scaling^m`` times
    ``sum_(m <= r <= p) c_r C(r, m) (-mean_r)^(r - m)``, with means relative to what a state's keys are relative to.
    """
    blocks = ld // ROWS
    n = (tl.program_id(0) // blocks).to(tl.int64)
    row = tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)
    kv_head = n % kv_heads
    token = row % pitch
    real = (row // pitch < group) & (token < new)
    head = tl.minimum(row // pitch, group - 1)
    axis = tl.arange(0, HEAD_BLOCK)
    inside = real[:, None] & (axis < HEAD_DIM)[None, :]
    query = tl.load(
        queries + ((n * group + head) * new + token)[:, None] * HEAD_DIM + axis[None, :], mask=inside, other=0.0
    )
    storage = coordinates.dtype.element_ty
    coordinates += n * (1 + HEAD_DIM) * ld
    tl.store(coordinates + row, real.to(storage))
    tl.store(
        coordinates + (1 + axis)[None, :] * ld + row[:, None],
        query.to(storage),
        mask=(axis < HEAD_DIM)[None, :] & (row >= 0)[:, None],
    )
    terms = tl.zeros((ROWS, HEAD_BLOCK), tl.float32)
    moved = terms
    around = tl.zeros((ROWS,), tl.float32)
    if MEANS:
        scaled = query.to(tl.float32) * scaling
        count = tl.load(far_counts + n * new + token, mask=real, other=1.0)
        centre = tl.load(
            far_keys + (n * new + token)[:, None] * HEAD_DIM + axis[None, :], mask=inside, other=0.0
        ) / tl.maximum(count, 1.0)[:, None]  # fmt: skip
        terms = scaled * centre
        moved = terms
        if ORIGIN:
            start = tl.load(origin + n * HEAD_DIM + axis, mask=axis < HEAD_DIM, other=0.0)
            moved = scaled * (centre - start[None, :])
        around = tl.load(around_mean + kv_head * group + head)
    for level in tl.static_range(LEVELS):
        mean = tl.zeros((ROWS,), tl.float32)
        if MEANS:
            rank = tl.load(level_ranks + kv_head * LEVELS + level)
            mean = tl.sum(tl.where((axis < rank)[None, :], terms, 0.0), 1) * around
        tl.store(means + (n * LEVELS + level) * ld + row, mean)
    slot = tl.arange(0, SLOTS)
    degree = tl.load(slot_degrees + slot * 2, mask=slot < number, other=0)
    last = tl.load(slot_degrees + slot * 2 + 1, mask=slot < number, other=0)
    total = tl.zeros((SLOTS, ROWS), tl.float32)
    expansion = expansions + (kv_head * group + head) * DEGREES * DEGREES
    for r in tl.static_range(DEGREES):
        x = tl.zeros((ROWS,), tl.float32)
        if MEANS:
            rank = tl.load(degree_ranks + kv_head * DEGREES + r)
            x = -tl.sum(tl.where((axis < rank)[None, :], moved, 0.0), 1) * around
        power = tl.full((ROWS,), 1.0, tl.float32)
        for j in tl.static_range(r + 1):
            if MEANS or j == 0:
                weight = tl.load(expansion + r * DEGREES + r - j, mask=real, other=0.0) * power
                total += tl.where((degree == r - j) & (last >= r), 1.0, 0.0)[:, None] * weight[None, :]
                power *= x
    scale = tl.full((SLOTS,), 1.0, tl.float32)
    for r in tl.static_range(1, DEGREES):
        scale *= tl.where(degree >= r, scaling, 1.0)
    tl.store(
        coefficients + (n * number + slot)[:, None] * ld + row[None, :],
        total * scale[:, None],
        mask=(slot < number)[:, None] & (row >= 0)[None, :],
    )
