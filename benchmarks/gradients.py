"""Time and memory of gradients: forward and backward of ``taylor_attention``, beside its forward without gradients.

    python benchmarks/gradients.py [--json FILE]

One thread, seconds of the processor; candidates take turns, and medians are reported. Backward is the time of both less
that of forward, and computes every block of rows again. Memory is how far a process of its own comes above what it held
before: the peak over forward and backward, so that it grows by as much per token at any length if it is linear (Linux).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from rich.console import Console
from rich.table import Column, Table

from taylorder.kernels import HeadSpec, taylor_attention
from taylorder.kernels.spec import Dropped, Exact, Near, Taylor

MOST = 4.0
"""Times forward that backward may take, recomputation included."""

LENGTHS = (4096, 8192, 16384)
"""Tokens at which memory is measured."""


@dataclass(frozen=True)
class Case:
    """What runs: B sequences of T tokens, H query heads of one spec on G KV heads."""

    name: str
    spec: HeadSpec
    B: int
    H: int
    G: int
    T: int
    d: int

    def leaves(self) -> list[torch.Tensor]:
        """Return q, k and v that ask for gradients."""
        return [torch.randn(self.B, heads, self.T, self.d, requires_grad=True) for heads in (self.H, self.G, self.G)]

    def attend(self, leaves: list[torch.Tensor]) -> torch.Tensor:
        kept = self.spec.near.kept
        priority = torch.rand(self.B, self.G, self.T, generator=torch.Generator().manual_seed(0)) if kept else None
        return taylor_attention(
            *leaves, [self.spec] * self.H, scaling=self.d**-0.5, priority=priority, backend="torch"
        )[0]  # fmt: skip


NEAR = Near(64, 4)
RANK = (0, 64, 8)

LONG = {
    "exact": HeadSpec(Exact()),
    "window 64": HeadSpec(Dropped(), NEAR),
    "window 64, 64 kept": HeadSpec(Dropped(), Near(64, 4, 64)),
    "order 1, window 64": HeadSpec(Taylor(1), NEAR),
    "order 2 around the mean, window 64": HeadSpec(Taylor(2, "mean"), NEAR),
    "order 3 rank 8, window 64": HeadSpec(Taylor(3, "mean", RANK), NEAR),
    "order 3 rank 8, window 64, 64 kept": HeadSpec(Taylor(3, "mean", RANK), Near(64, 4, 64)),
    "order 3": HeadSpec(Taylor(3)),
    "order 4 around the mean, window 64": HeadSpec(Taylor(4, "mean"), NEAR),
}
"""Head dim 64, three query heads on one KV head."""


def cases() -> list[Case]:
    long = [Case(name, spec, 1, 3, 1, T, 64) for T in (2048, 4096) for name, spec in LONG.items()]
    scratch = [
        Case(f"order {order} from scratch", HeadSpec(Taylor(order)), 64, 2, 2, T, d)
        for d, T in ((16, 64), (16, 512), (32, 256))
        for order in (1, 2, 3, 5)
    ]
    return long + scratch


def medians(candidates: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Seconds of the processor per call of each candidate, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(1 + repeats):
        for name, call in candidates.items():
            start = time.process_time()
            call()
            if turn:
                times[name].append(time.process_time() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def timed(case: Case, repeats: int) -> dict[str, object]:
    """Milliseconds of one call, and what they are times one another."""
    leaves, ones = case.leaves(), torch.ones(case.B, case.H, case.T, case.d)

    def plainly() -> None:
        with torch.no_grad():
            case.attend(leaves)

    seconds = medians(
        {
            "without": plainly,
            "forward": lambda: case.attend(leaves),
            "both": lambda: torch.autograd.grad(case.attend(leaves), leaves, ones),
        },
        repeats,
    )
    backward = seconds["both"] - seconds["forward"]
    return {
        "name": case.name,
        **{name: getattr(case, name) for name in "BHGTd"},
        "without_gradients_ms": 1e3 * seconds["without"],
        "forward_ms": 1e3 * seconds["forward"],
        "backward_ms": 1e3 * backward,
        "backward_per_forward": backward / seconds["forward"],
        "backward_per_forward_without_gradients": backward / seconds["without"],
    }


def peak(name: str, tokens: int) -> float:
    """MiB that forward and backward take beyond inputs, measured in this process, which should do nothing else."""
    small, case = (Case(name, LONG[name], 1, 3, 1, T, 64) for T in (256, tokens))
    torch.autograd.grad(small.attend(leaves := small.leaves()).sum(), leaves)  # whatever is loaded once
    leaves = case.leaves()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = resident("VmRSS")
    torch.autograd.grad(case.attend(leaves).sum(), leaves)
    return (resident("VmHWM") - before) / 1024


def resident(name: str) -> int:
    """KiB of this process by the kernel's name for them."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise RuntimeError(f"/proc/self/status has no {name}")
    return int(found[1])


def measured_apart(name: str, tokens: int) -> float:
    command = [sys.executable, __file__, "--peak", name, "--tokens", str(tokens)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def render(rows: list[dict[str, object]], memory: list[dict[str, object]], console: Console) -> None:
    columns = ["B", "tokens", "d", "no gradients", "forward", "backward", "times forward"]
    table = Table("ms", *(Column(name, justify="right") for name in columns), title="Time", title_justify="left")
    for row in rows:
        times = [f"{row[name]:.1f}" for name in ("without_gradients_ms", "forward_ms", "backward_ms")]
        ratio = f"{row['backward_per_forward']:.2f}"
        table.add_row(str(row["name"]), str(row["B"]), f"{row['T']:,}", str(row["d"]), *times, ratio)
    console.print(table)
    columns = [f"{tokens:,} tokens" for tokens in LENGTHS]
    table = Table("MiB", *(Column(name, justify="right") for name in columns), title="Memory", title_justify="left")
    for row in memory:
        table.add_row(str(row["name"]), *(f"{row[str(tokens)]:.0f}" for tokens in LENGTHS))
    console.print(table)
    worst = max(rows, key=lambda row: row["backward_per_forward"])
    met = "met" if worst["backward_per_forward"] <= MOST else "MISSED"
    most = f"{worst['backward_per_forward']:.2f} at worst ({worst['name']})"
    console.print(f"backward at most {MOST:g} times forward: {met}, {most}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peak", choices=LONG, help="print the MiB of one kind and stop")
    parser.add_argument("--tokens", type=int, default=LENGTHS[0], help="at which --peak is measured")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if options.peak:
        print(peak(options.peak, options.tokens))
        return
    rows = [timed(case, options.repeats) for case in cases()]
    memory = [{"name": name, **{str(T): measured_apart(name, T) for T in LENGTHS}} for name in LONG]
    run = {"torch": torch.__version__, "device": platform.processor() or platform.machine(), "threads": 1}
    if options.json:
        document = {"run": run, "time": rows, "memory_mib": memory}
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    render(rows, memory, Console(width=100))


if __name__ == "__main__":
    main()
