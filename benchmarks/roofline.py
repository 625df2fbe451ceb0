"""Where reading a Taylor state can beat attention over a KV cache: bytes and operations counted, nothing timed.

    python benchmarks/roofline.py

Prefill counts multiplications and additions per token against causal attention over n tokens, which needs ``2 n d`` of
each on average; decode counts bytes read per token, the state in float32 against keys and values in 16 bits. Rows are
those of the layout that the kernels use, padding included. ``g`` query heads share a KV head.
"""

from __future__ import annotations

import torch

from taylorder.adapt.cost import features, kv_bytes
from taylorder.kernels.triton_backend.layout_tables import Kind, layout_tables
from taylorder.kernels.triton_backend.tiles import Layout

CASES = [
    (16, 3, None), (16, 4, None), (16, 8, None), (32, 3, None), (32, 4, None), (64, 2, None), (64, 3, None),
    (64, 4, None), (64, 4, (0, 64, 8, 8)), (80, 3, None), (96, 3, None), (128, 2, None), (128, 3, None),
    (128, 4, None), (256, 2, None), (256, 3, None),
]  # fmt: skip
GROUPS = (1, 4)


def rows(d, order, ranks):
    """Rows of the state that the kernels hold, that of degree 0 included."""
    layout, kind = Layout.choose(d, order, ranks), Kind(order, ranks)
    return layout_tables(layout, d, (kind,), torch.device("cpu")).tiles(kind) * layout.tile + 1, layout


def prefill_break_even(d, held, group):
    """Tokens from which folding and reading the state need fewer operations than causal attention.

    Per token and query head, reading is a product with ``held x (d + 1)`` numbers, folding that over the group, and
    causal attention over n tokens meets ``n / 2`` keys with ``2 d`` each.
    """
    return held * (1 + 1 / group) * (d + 1) / d


def main():
    print("| d, P | layout | features | rows | state per KV head | prefill pays from (g = 1 / 4) | decode pays from |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for d, order, ranks in CASES:
        held, layout = rows(d, order, ranks)
        size = held * (d + 1) * 4
        prefill = " / ".join(f"{prefill_break_even(d, held, group):,.0f}" for group in GROUPS)
        rank = "" if ranks is None else f", rank {ranks[-1]}"
        decode = size / kv_bytes(d, d, 1)
        print(
            f"| {d}, {order}{rank} | {layout.name} {layout.tile} | {features(d, order, ranks):,} | {held:,} "
            f"| {size / 2**20:,.3g} MiB | {prefill} | {decode:,.0f} |"
        )


if __name__ == "__main__":
    main()
