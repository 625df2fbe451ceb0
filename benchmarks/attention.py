"""Time linear attention against exact attention and the direct polynomial, and hold it to the bars it was built for.

    python benchmarks/attention.py [--quick] [--json FILE]

Everything runs on one thread (on CUDA, on the device), candidates take turns within one run, and medians are reported,
so that a busy machine slows all of them alike. Ratios are the result; milliseconds only say what they are ratios of.
The share of the GEMM peak counts 4 D (d_v + 1) operations per token and head against a square float32 product of the
same run. "direct" is the same truncated polynomial evaluated in score space, which is quadratic.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from gpu_run.clock import medians
from rich.console import Console
from rich.table import Column, Table
from torch.nn.functional import scaled_dot_product_attention

from taylorder.adapt import cost
from taylorder.kernels import HeadSpec, State, fold_rule, taylor_attention
from taylorder.kernels.spec import Exact, Near, Taylor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

_GEMMS = 8
"""Products per timing of the GEMM peak: one alone is over before a busy machine's average shows."""


@dataclass(frozen=True)
class Bar:
    """One line of the bar table: what was asked, what was measured, whether that is enough."""

    case: str
    quantity: str
    bar: str
    measured: float
    met: bool


def tensors(heads: int, tokens: int, d: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    q, k, v = (torch.randn(1, heads, tokens, d, device=DEVICE) for _ in range(3))
    return q, k, v


def features(d: int, spec: HeadSpec) -> int:
    """D of the polynomial of a spec."""
    return cost.features(d, spec.far.order, spec.far.ranks)


def direct(*arguments: object, **options: object) -> None:
    """The direct polynomial: keep every key and evaluate the same weights in score space."""
    with mock.patch.object(fold_rule, "RAW_SHARE", 1e12):
        taylor_attention(*arguments, **options)


def prefill(
    d: int, spec: HeadSpec, heads: int, tokens: int, repeats: int, with_direct: bool = True
) -> dict[str, float]:
    """Milliseconds per head, ratios and the share of the GEMM peak at one length."""
    q, k, v = tensors(heads, tokens, d)
    scaling, specs = d**-0.5, [spec] * heads
    side = torch.randn(1024, 1024, device=DEVICE)
    candidates: dict[str, Callable[[], object]] = {
        "gemm": lambda: [side @ side for _ in range(_GEMMS)],
        "sdpa": lambda: scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling),
        "taylor": lambda: taylor_attention(q, k, v, specs, scaling=scaling),
    }
    if with_direct:
        candidates["direct"] = lambda: direct(q, k, v, specs, scaling=scaling)
    seconds = medians(candidates, repeats, DEVICE)
    operations = 4 * features(d, spec) * (d + 1) * tokens * heads
    peak = _GEMMS * 2 * 1024**3 / seconds["gemm"]
    row = {f"{name}_ms": 1e3 * seconds[name] / heads for name in candidates if name != "gemm"}
    return {
        "tokens": tokens,
        "heads": heads,
        **row,
        "speedup": seconds["sdpa"] / seconds["taylor"],
        "peak_share": operations / seconds["taylor"] / peak,
        "peak_gflops": peak / 1e9,
    }


def grown_state(specs: list[HeadSpec], tokens: int, d: int) -> State:
    """State after that many random tokens."""
    state: State | None = None
    for start in range(0, tokens, 8192):
        q, k, v = tensors(len(specs), min(8192, tokens - start), d)
        _, state = taylor_attention(q, k, v, specs, scaling=d**-0.5, state=state)
    if state is None:
        raise ValueError(f"tokens is {tokens}, expected at least 1")
    return state


def decode(d: int, spec: HeadSpec, heads: int, lengths: tuple[int, ...], repeats: int) -> list[dict[str, float]]:
    """Milliseconds per token of all heads: the state of each length against exact attention over as long a KV cache."""
    specs, scaling = [spec] * heads, d**-0.5
    states = {tokens: grown_state(specs, tokens, d) for tokens in lengths}
    caches = {tokens: tensors(heads, tokens, d)[1:] for tokens in lengths}
    q, k, v = tensors(heads, 1, d)
    candidates: dict[str, Callable[[], object]] = {}
    for tokens in lengths:
        keys, values = caches[tokens]
        state = states[tokens]
        candidates[f"taylor {tokens}"] = lambda state=state: taylor_attention(
            q, k, v, specs, scaling=scaling, state=state
        )
        candidates[f"sdpa {tokens}"] = lambda keys=keys, values=values: scaled_dot_product_attention(
            q, keys, values, scale=scaling
        )
    seconds = medians(candidates, repeats, DEVICE)
    return [
        {
            "tokens": tokens,
            "heads": heads,
            "taylor_ms": 1e3 * seconds[f"taylor {tokens}"],
            "sdpa_ms": 1e3 * seconds[f"sdpa {tokens}"],
            "speedup": seconds[f"sdpa {tokens}"] / seconds[f"taylor {tokens}"],
            "state_bytes": states[tokens].nbytes / heads,
            "kv_bytes": sum(t.nbytes for t in caches[tokens]) / heads,
        }
        for tokens in lengths
    ]


def mixed(tokens: int, repeats: int, d: int = 32) -> dict[str, float]:
    """Orders 2, 3, 4 and exact in turn over 32 heads in one call, against four calls of one kind each."""
    kinds = [HeadSpec(Taylor(2)), HeadSpec(Taylor(3)), HeadSpec(Taylor(4)), HeadSpec(Exact())]
    q, k, v = tensors(32, tokens, d)
    each = tensors(8, tokens, d)
    candidates: dict[str, Callable[[], object]] = {
        "whole": lambda: taylor_attention(q, k, v, kinds * 8, scaling=d**-0.5)
    }
    for kind in kinds:
        candidates[str(kind.far)] = lambda kind=kind: taylor_attention(*each, [kind] * 8, scaling=d**-0.5)
    seconds = medians(candidates, repeats, DEVICE)
    parts = sum(time for name, time in seconds.items() if name != "whole")
    return {"whole_ms": 1e3 * seconds["whole"], "parts_ms": 1e3 * parts, "ratio": seconds["whole"] / parts}


def crossover(rows: list[dict[str, float]]) -> float:
    """Length from which the linear path is faster, interpolated on logarithmic axes; nan if it is not in range."""
    for before, after in pairwise(rows):
        if before["speedup"] < 1 <= after["speedup"]:
            share = -math.log(before["speedup"]) / (math.log(after["speedup"]) - math.log(before["speedup"]))
            return before["tokens"] * (after["tokens"] / before["tokens"]) ** share
    return math.nan if rows[0]["speedup"] < 1 else rows[0]["tokens"]


def state_bytes_ratio(d: int = 64, order: int = 3, tokens: int = 4096) -> float:
    spec = HeadSpec(Taylor(order))
    return grown_state([spec], tokens, d).nbytes / (features(d, spec) * (d + 1) * 4)


LOW_RANK = HeadSpec(Taylor(4, "mean", (0, 64, 8, 8)), Near(64))

PREFILL = {
    "d=64 P=2": (64, HeadSpec(Taylor(2)), 4),
    "d=64 P=3": (64, HeadSpec(Taylor(3)), 4),
    "d=32 P=3": (32, HeadSpec(Taylor(3)), 8),
    "d=16 P=4": (16, HeadSpec(Taylor(4)), 8),
    "d=64 P=4 rank 8 window 64": (64, LOW_RANK, 8),
}


def measure(quick: bool) -> tuple[list[Bar], dict[str, object]]:
    """Run everything; ``quick`` shortens sequences and repeats, and its bars are those of the shorter sequences."""
    repeats = 3 if quick else 5
    scale = 4 if quick else 1
    sweep = {}
    for name, (d, spec, heads) in PREFILL.items():
        lengths = [512, 1024, 2048, 4096] + ([] if quick else [8192])
        sweep[name] = [prefill(d, spec, heads, tokens, repeats) for tokens in lengths]
    bars = []
    for name, tokens, least in (
        ("d=64 P=3", 32768, 4.0),
        ("d=32 P=3", 16384, 5.0),
        ("d=16 P=4", 16384, 2.5),
        ("d=64 P=4 rank 8 window 64", 8192, 1.0),
    ):
        d, spec, heads = PREFILL[name]
        row = prefill(d, spec, heads, tokens // scale, repeats, with_direct=False)
        sweep[name].append(row)
        case = f"prefill {name}, {tokens // scale:,} tokens"
        met = row["speedup"] >= least if least != 1 else row["speedup"] > 1
        bars.append(Bar(case, "speed-up over SDPA", f">= {least:g}" if least != 1 else "> 1", row["speedup"], met))
        if name == "d=64 P=3":
            bars.append(Bar(case, "share of GEMM peak", ">= 0.5", row["peak_share"], row["peak_share"] >= 0.5))
    lengths = (4096, 8192, 16384) if quick else (4096, 8192, 32768, 131072)
    decoding = decode(64, HeadSpec(Taylor(3)), 8, lengths, 64 if quick else 256)
    slower = decoding[-1]["taylor_ms"] / decoding[0]["taylor_ms"]
    case = "decode d=64 P=3, 8 heads"
    bars.append(Bar(case, f"time at {lengths[-1]:,} / time at {lengths[0]:,}", "<= 1.1", slower, slower <= 1.1))
    worst = min(row["speedup"] for row in decoding[1:])
    bars.append(Bar(case, f"least speed-up over SDPA from {lengths[1]:,} on", "> 1", worst, worst > 1))
    together = mixed(4096 // scale, repeats)
    case = f"orders 2, 3, 4, exact over 32 heads, d=32, {4096 // scale:,} tokens"
    bars.append(Bar(case, "time / sum of the parts", "<= 1.15", together["ratio"], together["ratio"] <= 1.15))
    ratio = state_bytes_ratio()
    bars.append(Bar("state bytes, d=64 P=3", "bytes / D (d_v + 1) 4", "<= 1.1", ratio, ratio <= 1.1))
    crossovers = {name: crossover(rows) for name, rows in sweep.items()}
    return bars, {"prefill": sweep, "crossover": crossovers, "decode": decoding, "mixed": together}


def table(title: str, columns: list[str], rows: list[list[str]]) -> Table:
    numbers = (Column(name, justify="right") for name in columns[1:])
    made = Table(columns[0], *numbers, title=title, title_justify="left")
    for row in rows:
        made.add_row(*row)
    return made


def render(bars: list[Bar], details: dict[str, object], console: Console) -> None:
    rows = []
    for name, lengths in details["prefill"].items():
        for row in lengths:
            shown = f"{row['direct_ms']:.1f}" if "direct_ms" in row else ""
            times = [f"{row['sdpa_ms']:.1f}", shown, f"{row['taylor_ms']:.1f}"]
            rows.append([name, f"{row['tokens']:,}", *times, f"{row['speedup']:.2f}", f"{row['peak_share']:.0%}"])
    columns = ["prefill, ms per head", "tokens", "SDPA", "direct", "linear", "speed-up", "of GEMM peak"]
    console.print(table("Prefill", columns, rows))
    crossed = [
        [name, "beyond the range" if math.isnan(at) else f"{at:,.0f}"] for name, at in details["crossover"].items()
    ]
    console.print(table("Length from which linear is faster than SDPA", ["prefill", "tokens"], crossed))
    rows = []
    for row in details["decode"]:
        times = [f"{row['sdpa_ms']:.2f}", f"{row['taylor_ms']:.2f}", f"{row['speedup']:.2f}"]
        rows.append([f"{row['tokens']:,}", *times, f"{row['state_bytes']:,.0f}", f"{row['kv_bytes']:,.0f}"])
    columns = ["tokens", "SDPA ms", "linear ms", "speed-up", "state bytes / head", "KV bytes / head"]
    console.print(table("Decode, d=64 P=3, 8 heads, one token", columns, rows))
    rows = [[b.case, b.quantity, b.bar, f"{b.measured:.3g}", "met" if b.met else "MISSED"] for b in bars]
    console.print(table("Bars", ["case", "quantity", "bar", "measured", ""], rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="short sequences, few repeats")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    with torch.inference_mode():
        bars, details = measure(options.quick)
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else platform.processor() or platform.machine()
    run = {
        "torch": torch.__version__,
        "device": name,
        "threads": torch.get_num_threads(),
        "seed": options.seed,
        "quick": options.quick,
    }
    if options.json:
        options.json.write_text(json.dumps({"run": run, "bars": [asdict(bar) for bar in bars], **details}, indent=2))
    render(bars, details, Console())


if __name__ == "__main__":
    main()
