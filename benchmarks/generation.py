"""Memory held and time by context: exact attention, one window, what budgets chose, kept keys alike, polynomials.

    python benchmarks/generation.py [--contexts 512 2048 8160] [--out FILE]

At every context each config reads the same random tokens in pieces, as ``generate`` does, and then tokens are decoded
a few at a time in turn, so that what the machine does besides falls on all of them alike. One thread. Rows have the
seconds to read the context, the median milliseconds per token, the bytes of the cache (held, and nominal), and the
ratios of both times to exact attention in the same run. Rows of a context are written when it is done, beside those of
others. Configs are those of ``benchmarks/configs``; `one window` and `kept keys alike` have the bytes of the 64 KiB
one, `order 2` has a polynomial of order 2 around the mean beside 64 tokens.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from policy_rules import document
from policy_rules.fields import alike
from rich.console import Console
from rich.table import Table
from transformers import DynamicCache

from taylorder.adapt.cache import cache_bytes, nominal_cache_bytes
from taylorder.adapt.config import OrderConfig
from taylorder.adapt.handle import attach
from taylorder.adapt.prepared import PreparedConfig, prepare
from taylorder.evaluation.rivals import sliding_window
from taylorder.evaluation.timing import WARM_UP, one_thread, random_tokens, seconds, seconds_to_read
from taylorder.models.describe import describe
from taylorder.models.loading import load
from taylorder.storage.provenance import software_versions

EXACT = "exact"
BUDGET = 64 << 10
CONFIGS = Path(__file__).parent / "configs"


@dataclass
class Runner:
    """One config (None: the model as it is) and its cache in one context."""

    model: Any
    name: str
    prepared: PreparedConfig | None
    cache: Any = None
    reading: float = 0.0
    steps: list[float] = field(default_factory=list)

    def running(self) -> AbstractContextManager[Any]:
        """A block in which the model runs so."""
        return nullcontext() if self.prepared is None else attach(self.model, self.prepared)

    def read(self, ids: torch.Tensor) -> None:
        """Read a context ``[1, T]`` into a new cache."""
        with self.running() as handle:
            for tokens in (ids[:, :WARM_UP], ids):
                self.cache = DynamicCache(config=self.model.config) if handle is None else handle.new_cache()
                self.reading = seconds_to_read(self.model, tokens, self.cache)

    def decode(self, ids: torch.Tensor) -> None:
        """Go on token by token; the first is not counted, for others have had the processor's caches."""
        with self.running():
            times = [seconds(self.model, token, self.cache) for token in torch.split(ids, 1, 1)]
        self.steps += times[1:]

    def row(self) -> dict[str, Any]:
        """What was measured."""
        return {
            "policy": self.name,
            "prefill_seconds": self.reading,
            "milliseconds_per_token": 1e3 * statistics.median(self.steps),
            "cache_bytes": cache_bytes(self.cache),
            "nominal_bytes": nominal_cache_bytes(self.cache),
        }


def measured(runners: Sequence[Runner], context: int, rounds: int, together: int) -> list[dict[str, Any]]:
    """Rows of all configs at one context."""
    ids = random_tokens(runners[0].model, context + rounds * together, 0)
    for runner in runners:
        runner.read(ids[:, :context])
    for start in range(context, ids.shape[1], together):
        for runner in runners:
            runner.decode(ids[:, start : start + together])
    rows = [runner.row() for runner in runners]
    exact = next(row for row in rows if row["policy"] == EXACT)
    for row in rows:
        for what in ("prefill_seconds", "milliseconds_per_token"):
            row[f"{what}_over_exact"] = row[what] / exact[what]
    return rows


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print them as a table."""
    table = Table("context", "", "prefill s", "over exact", "ms per token", "over exact", "MiB held", "MiB nominal")
    for row in rows:
        table.add_row(
            f"{row['length']:,}", row["policy"],
            f"{row['prefill_seconds']:.1f}", f"{row['prefill_seconds_over_exact']:.2f}",
            f"{row['milliseconds_per_token']:.1f}", f"{row['milliseconds_per_token_over_exact']:.2f}",
            f"{row['cache_bytes'] / 2**20:.1f}", f"{row['nominal_bytes'] / 2**20:.1f}",
        )  # fmt: skip
    Console().print(table)


def main() -> None:
    """Measure, write, show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 2048, 8160])
    parser.add_argument("--rounds", type=int, default=6, help="turns of every config")
    parser.add_argument("--together", type=int, default=5, help="tokens decoded in a turn, the first not counted")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "generation.json")
    arguments = parser.parse_args()
    loaded = load()
    model = describe(loaded.model, loaded.name)
    chosen = {size: OrderConfig.load(CONFIGS / f"smollm2-135m-{size}KiB" / "orders.json") for size in (64, 128)}
    probe = next(iter(chosen[64].probes.values()))  # which keys are kept changes neither time nor bytes
    probes = {module.name: probe for module in model.modules}
    window = sliding_window(model, BUDGET, 4096)
    configs = {
        EXACT: None,
        "one window, 64 KiB": None if window is None else window.config,
        "kept keys alike, 64 KiB": alike(model, BUDGET, Fraction(3, 4), probes, chosen[64].probe or {}),
        "budget 64 KiB": chosen[64],
        "budget 128 KiB": chosen[128],
        "order 2": OrderConfig.uniform(model, 2, "mean", 64, 4),
        "mixed": OrderConfig.load(CONFIGS / "mixed.json"),
    }
    about = {"model": model.name, "date": datetime.now(UTC).date().isoformat(), "threads": 1, **software_versions()}
    for context in arguments.contexts:
        runners = [
            Runner(loaded.model, name, None if config is None else prepare(loaded.model, config, model))
            for name, config in configs.items()
        ]
        with one_thread():
            rows = measured(runners, context, arguments.rounds, arguments.together)
        rows = [{"model": model.name, "length": context} | row for row in rows]
        document.add(arguments.out, {"rows": rows, "measured": [about | {"length": context}]})
        show(rows)


if __name__ == "__main__":
    main()
