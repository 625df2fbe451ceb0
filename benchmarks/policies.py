"""Ways to share a budget of cache bytes out over the KV heads, judged by the loss on unseen text.

    python benchmarks/policies.py                    # budgets 64 and 128 KiB, 16 sequences of 4,096 tokens
    python benchmarks/policies.py --tasks            # also the tasks of `eval`, for the best three

Everything measured is kept in ``--records``, and a run that was interrupted goes on from there. Two processes of one
thread each, one per budget (``--budgets 64KiB --threads 1 --out FILE``), do more in the same time than one of two
threads; a run without options then has nothing left to measure.

Rows are the mean negative log-likelihood in nats per token; ``delta_*`` is the paired difference to sinks and one
window for all at the same bytes, with an interval over sequences. ``default`` is what `taylorder analyze
--budget` ships; ``without`` leaves one of its levers out at a time, on fewer sequences, and ``delta_*`` is the
difference to it.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from policy_rules import policies
from policy_rules.ablation import without_lever
from policy_rules.criteria import SCREENING_TOKENS, criteria
from pydantic import TypeAdapter

from taylorder.adapt.config import OrderConfig
from taylorder.adapt.handle import adapted
from taylorder.adapt.prepared import execution_digest
from taylorder.analysis.losses import EXACT, language_model_head
from taylorder.analysis.text import calibration_text
from taylorder.analysis.tokens import tokenise
from taylorder.evaluation import rivals
from taylorder.evaluation.comparison import losses_of_states
from taylorder.evaluation.evaluation_text import evaluation_text
from taylorder.evaluation.intervals import paired_difference
from taylorder.evaluation.rivals import Contender
from taylorder.evaluation.task_prompts import make_tasks
from taylorder.evaluation.tasks import Outcome, run_tasks, summarise
from taylorder.kernels.spec import SINKS
from taylorder.models.describe import describe
from taylorder.models.loading import load
from taylorder.selection import lever_summary
from taylorder.selection.candidates import LEVERS, candidates
from taylorder.selection.config_of import window_instead
from taylorder.selection.lever_table import LeverTable, measure
from taylorder.selection.settings import Limit, parse_bytes
from taylorder.selection.under_limit import ITERATIVE, Chosen, choose, windows_alone
from taylorder.storage.files import replacing
from taylorder.storage.finite_json import as_json
from taylorder.storage.provenance import software_versions
from taylorder.storage.records import Records

WINDOW, ORDER_WINDOW, WINDOWS_ONLY, DEFAULT = "uniform window", "uniform order + window", "windows only", "default"
SCREENING_SEQUENCES = 1


def main() -> None:
    """Measure, choose, judge, write."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    loaded = load()
    model = describe(loaded.model, loaded.name)
    unseen = tokenise(loaded.tokenizer, evaluation_text([])).draw(arguments.length, arguments.sequences, 0)
    words = calibration_text()
    calibrated = tokenise(loaded.tokenizer, words)
    calibration = calibrated.first(arguments.length, 2 * arguments.length)
    screening = calibrated.first(SCREENING_TOKENS, SCREENING_SEQUENCES * SCREENING_TOKENS)
    settings = {"model": model.fingerprint, "length": arguments.length, "calibration": words.sha256}
    alphas = rivals.fitted_alphas(loaded.model, model, _progress)

    offered = candidates(LEVERS, model.modules[0].head_dim, arguments.length, (arguments.length // 64, SINKS))
    records = Records(arguments.records / "levers", settings | {"candidates": str(offered)})
    full = measure(
        loaded.model, model, calibration, offered, window_instead, seed=0, records=records, progress=_progress
    )
    windows = full.restricted_to(windows_alone(full.candidates))
    shared = {"sequences": calibration, "records": records, "progress": _progress}
    minimised = criteria(loaded.model, screening, records, _progress)
    losses = Records(arguments.records / "losses", settings)
    document: dict[str, Any] = {
        "model": loaded.name,
        "length": arguments.length,
        "sequences": len(unseen),
        "calibration": {"source": words.source, "tokens": calibration.numel()},
        "software": software_versions(),
        "threads": arguments.threads,
        "rows": [],
        "without": [],
        "taylor": [],
    }
    for_tasks: dict[int, list[Contender]] = {}
    for budget in arguments.budgets:
        limit = Limit(arguments.length, budget)
        chosen = {name: choose(loaded.model, full, limit, loss, **shared) for name, loss in minimised.items()}
        chosen[WINDOWS_ONLY] = choose(loaded.model, windows, limit, **shared)
        default = chosen[ITERATIVE].config
        contenders = [Contender(EXACT, None), Contender(DEFAULT, default)]
        contenders += _simple(model, alphas, budget, arguments.length)
        contenders += [Contender(name, choice.config) for name, choice in chosen.items()]
        without = [Contender(lever, without_lever(default, model, lever, arguments.length)) for lever in LEVERS]
        few = unseen[: arguments.few]
        judge(loaded.model, contenders + without, few, losses)
        judge(loaded.model, contenders, unseen, losses)
        document["rows"] += rows(contenders, WINDOW, budget, model, unseen, losses)
        document["without"] += [
            row | {"sequences": len(few)}
            for row in rows([Contender(DEFAULT, default), *without], DEFAULT, budget, model, few, losses)
            if row["policy"] != DEFAULT
        ]
        shape = (len(calibration), arguments.length)
        document["taylor"].append({"budget_bytes": budget} | served_by_taylor(full, chosen[ITERATIVE], shape))
        document.setdefault("rounds", {})[str(budget)] = [
            {"kl": measured.kl, "promised": measured.promised, "price": measured.price, "among": measured.among}
            for measured in chosen[ITERATIVE].rounds
        ]
        write(arguments.out, document)
        show(document, budget)
        for_tasks[budget] = [Contender(WINDOW, next(rival for rival in contenders if rival.name == WINDOW).config)]
        for_tasks[budget] += best(contenders, document, budget)
    if arguments.tasks:
        document["tasks"] = tasks(loaded, for_tasks, losses)
        write(arguments.out, document)


def _simple(model: Any, alphas: Any, budget: int, length: int) -> list[Contender]:
    """The rules that measure nothing."""
    window = rivals.sliding_window(model, budget, length)
    order = rivals.uniform_order(model, budget, length)
    contenders = [Contender(WINDOW, window.config)] if window else []
    contenders += [Contender(ORDER_WINDOW, order.config)] if order else []
    contenders.append(policies.depth_progression(model, budget, length))
    contenders += policies.alpha_windows(model, alphas, budget, length)
    return contenders + [policies.random_windows(model, budget, length, seed) for seed in (0, 1)]


def _key(config: OrderConfig | None, of: int | str) -> str:
    """Name of a record: the sequence or what else it is of, and the config."""
    what = f"{of:03d}" if isinstance(of, int) else of
    return f"{what}-{'exact' if config is None else execution_digest(config)[7:23]}"


def judge(model: Any, contenders: list[Contender], unseen: torch.Tensor, records: Records) -> None:
    """Run every contender on every sequence, unless it was; equal configs are run once."""
    head = language_model_head(model)
    for number, sequence in enumerate(unseen):
        missing = {
            _key(contender.config, number): contender.config
            for contender in contenders
            if not contender.absent and records.get(_key(contender.config, number)) is None
        }
        if not missing:
            continue
        began = time.monotonic()
        configs = {key: config for key, config in missing.items() if config is not None}
        losses = losses_of_states(model, head, sequence, configs)
        for key, config in missing.items():
            judged = losses.get(EXACT if config is None else key)
            means = judged and {
                "nll": float(judged.nll.mean(dtype=np.float64)),
                "kl": float(judged.kl.mean(dtype=np.float64)),
            }
            records.put(key, means or {"nll": math.inf, "kl": math.inf})  # it overflowed
        seconds = time.monotonic() - began
        print(f"sequence {number + 1} of {len(unseen)}: {len(missing)} runs in {seconds:.0f} s", file=sys.stderr)


def rows(
    contenders: list[Contender], rival: str, budget: int, model: Any, unseen: torch.Tensor, records: Records
) -> list[dict[str, Any]]:
    """One row per contender that ran, with its difference to the rival."""

    def means(config: OrderConfig | None, what: str) -> np.ndarray:
        return np.array([records.get(_key(config, number))[what] for number in range(len(unseen))])

    other = next(contender.config for contender in contenders if contender.name == rival)
    judged = []
    for contender in contenders:
        if contender.absent:
            continue
        nll = means(contender.config, "nll")
        if not np.isfinite(nll).all():
            print(f"{contender.name} overflows at {budget:,} bytes and is left out", file=sys.stderr)
            continue
        delta = paired_difference(nll, means(other, "nll"))
        judged.append(
            {
                "policy": contender.name,
                "budget_bytes": budget,
                "nominal_bytes": rivals.bytes_per_kv_head(contender.config, model, unseen.shape[1]),
                "nll": float(nll.mean()),
                "delta_nll": delta.estimate,
                "delta_low": delta.low,
                "delta_high": delta.high,
                "kl": float(means(contender.config, "kl").mean()),
            }
        )
    return judged


def served_by_taylor(table: LeverTable, chosen: Chosen, shape: tuple[int, int]) -> dict[str, Any]:
    """Which KV heads a polynomial serves better than the same bytes of window: of those chosen, and by candidate."""
    summary = lever_summary.summarise(table, chosen, levers=LEVERS, sequences=shape)
    return {
        "chosen_better": [f"{module}.{kv_head}" for module, kv_head in summary.chosen_better],
        "chosen_worse": [f"{module}.{kv_head}" for module, kv_head in summary.chosen_worse],
        "chosen": dict(summary.chosen),
        "candidates": {
            polynomial.label: {
                "order": polynomial.order,
                "relative_l2": polynomial.relative_l2,
                "window_relative_l2": polynomial.window_relative_l2,
                "better": [f"{module}.{kv_head}" for module, kv_head in polynomial.better],
            }
            for polynomial in summary.beside_window
        },
    }


def best(contenders: list[Contender], document: dict[str, Any], budget: int) -> list[Contender]:
    """The three configs of least loss at a budget; of equal configs the first."""
    losses = {row["policy"]: row["nll"] for row in document["rows"] if row["budget_bytes"] == budget}
    named = [contender for contender in contenders if contender.config is not None and contender.name in losses]
    distinct = {
        execution_digest(contender.config): contender for contender in reversed(named) if contender.config is not None
    }
    return sorted(distinct.values(), key=lambda contender: losses[contender.name])[:3]


def tasks(loaded: Any, contenders: dict[int, list[Contender]], records: Records) -> dict[str, Any]:
    """The tasks of `eval` for some contenders of every budget, exact beside them, unless they were run before."""
    drawn = make_tasks(loaded.tokenizer)

    def outcomes(config: OrderConfig | None) -> list[Outcome]:
        key = _key(config, "tasks")
        if records.get(key) is None:
            with nullcontext() if config is None else adapted(loaded.model, config):
                results = run_tasks(loaded.model, drawn, lambda done, total: _progress(key, done, total))
            records.put(key, [asdict(result) for result in results])
        return TypeAdapter(list[Outcome]).validate_python(records.get(key))

    return {
        str(budget): {
            contender.name: [
                {
                    "task": row.kind,
                    "length": row.length,
                    "exact": row.exact_accuracy.estimate,
                    "accuracy": row.other_accuracy.estimate,
                }
                for row in summarise(outcomes(None), outcomes(contender.config), 0)
                if row.depth is None
            ]
            for contender in chosen
        }
        for budget, chosen in contenders.items()
    }


def write(path: Path, document: dict[str, Any]) -> None:
    """Write the document, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(as_json(document), encoding="utf-8")


def show(document: dict[str, Any], budget: int) -> None:
    """Print one budget's rows, best first, and what each lever left out makes of the default."""
    print(f"{budget / 1024:g} KiB per KV head, {document['sequences']} sequences of {document['length']:,} tokens")
    for what, prefix in (("rows", ""), ("without", "default without ")):
        for row in sorted((row for row in document[what] if row["budget_bytes"] == budget), key=lambda row: row["nll"]):
            interval = f"{row['delta_nll']:+.4f} [{row['delta_low']:+.4f}, {row['delta_high']:+.4f}]"
            print(f"  {prefix + row['policy']:32s} nll {row['nll']:.4f}  {interval}  kl {row['kl']:.4f}")


def _progress(stage: str, done: int, total: int) -> None:
    print(f"{time.strftime('%H:%M:%S')} {stage}: {done} of {total}", file=sys.stderr)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budgets", type=parse_bytes, nargs="+", default=[128 << 10, 64 << 10], metavar="SIZE")
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--few", type=int, default=8, help="of them, those on which levers are left out")
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tasks", action="store_true")
    parser.add_argument("--records", type=Path, default=Path("taylorder-out/policies"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "policies.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
