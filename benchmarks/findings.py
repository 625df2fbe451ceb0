"""Run the commands of the README on the built-in model, and keep what they find and how long they take.

    python benchmarks/findings.py [STEP …]

Writes ``benchmarks/results/findings.json``, from which ``scripts/tables.py`` makes tables. Every command runs as a user
would run it; minutes are those of the machine, best one that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas
from policy_rules import document

from taylorder.adapt.cost import break_even_tokens, state_bytes
from taylorder.evaluation.evaluation_text import evaluation_text
from taylorder.storage.provenance import software_versions

RESULTS = Path(__file__).parent / "results" / "findings.json"

MODEL, HEAD_DIM, PROMPT_CHARACTERS = "smollm2-135m", 64, 4000
TOLERANCE = 0.07
"""Of a default run: the relative L2 error of int4."""

STEPS = {
    "analyze": ["analyze", "--out", "default"],
    "near field": ["analyze", "--window", "64", "--sinks", "4", "--tolerance", "0.3", "--out", "near", "--no-eval"],
    "near field, judged": [
        "eval", "--config", "near", "--lengths", "1024", "--tokens", "4096", "--no-tasks", "--format", "json"
    ],
    "budget": ["analyze", "--budget", "64KiB", "--context", "1024", "--out", "small"],
    "budget, judged": ["eval", "--config", "small", "--format", "json"],
    "generate": ["generate", "--prompt-file", "prompt.txt", "--config", "small", "--compare"],
    "layer-wise": ["export", "small", "--layer-wise", "--out", "layers"],
    "layer-wise, judged": ["compare", "small", "layers", "--eval", "--sequences", "16", "--format", "json"],
}  # fmt: skip
"""Commands in the order in which one needs what another has written."""


def run(words: list[str], folder: Path) -> tuple[str, dict[str, float]]:
    """Standard output of a command, and its minutes."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "taylorder", *words], cwd=folder, check=True, stdout=subprocess.PIPE, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.stdout, {"minutes": (time.monotonic() - start) / 60, "cpu_minutes": cpu / 60}


def by_order(folder: Path) -> Iterator[dict[str, Any]]:
    """Median errors, heads within the tolerance and cost, by order: what ``heads.csv`` holds in all."""
    heads = pandas.read_csv(folder / "heads.csv")
    usable = heads[(heads.order % 2 == 1) | (heads.nonpositive_share == 0)]
    within = usable[usable.relative_l2 <= TOLERANCE].groupby("order")[["module", "head"]]
    for order, rows in heads.groupby("order"):
        medians = rows.groupby("expansion").relative_l2.median()
        yield {
            "policy": f"order {order}", "order": int(order), **medians.to_dict(),
            "heads_within": len(within.get_group(order).drop_duplicates()) if order in within.groups else 0,
            "heads": len(heads[["module", "head"]].drop_duplicates()),
            "state_bytes": state_bytes(HEAD_DIM, HEAD_DIM, int(order)),
            "break_even_tokens": break_even_tokens(HEAD_DIM, HEAD_DIM, int(order)),
        }  # fmt: skip


def losses(evaluation: dict[str, Any], run_name: str) -> Iterator[dict[str, Any]]:
    """What was compared with what, a row for each."""
    for comparison in evaluation["comparisons"]:
        for standing in comparison["standings"]:
            kept = ("note", "nominal_bytes", "nll", "delta_exact", "delta_window", "kl")
            about = {"text": run_name, "length": comparison["length"], "sequences": comparison["sequences"]}
            yield about | {"policy": standing["name"], **{name: standing[name] for name in kept}}


def of_two(measured: dict[str, Any], run_name: str) -> Iterator[dict[str, Any]]:
    """What two configs lose on the same sequences, a row for each and one for exact."""
    for standing in measured["standings"]:
        bounded = {
            name: None if standing[name] is None
            else {"estimate": standing[name], "low": standing[f"{name}_low"], "high": standing[f"{name}_high"]}
            for name in ("nll", "delta_exact", "kl")
        }  # fmt: skip
        about = {"text": run_name, "length": measured["length"], "sequences": measured["sequences"]}
        yield about | {"policy": standing["name"], "nominal_bytes": standing["nominal_bytes"]} | bounded


def main() -> None:
    """Run the steps asked for, and those before them whose run they read, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"of {', '.join(STEPS)}; default all")
    parser.add_argument("--folder", type=Path, help="keep the runs there; default nowhere")
    arguments = parser.parse_args()
    steps = arguments.steps or list(STEPS)
    with TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "prompt.txt").write_text(evaluation_text().content[:PROMPT_CHARACTERS], encoding="utf-8")
        for step in steps:
            output, took = run(STEPS[step], folder)
            about = {"date": datetime.now(UTC).date().isoformat(), **software_versions()}
            command = " ".join(["taylorder", *STEPS[step]])
            sections: dict[str, list[dict[str, Any]]] = {
                "commands": [{"task": step, "command": command, **took, **about}]
            }
            if step == "analyze":
                report = json.loads((folder / "default" / "report.json").read_text(encoding="utf-8"))
                sections["by_order"] = list(by_order(folder / "default"))
                sections["losses"] = list(losses(report["evaluation"], step))
            elif step == "near field":
                report = json.loads((folder / "near" / "report.json").read_text(encoding="utf-8"))
                sections["chosen"] = [{"text": step, "orders": report["verdict"]["orders"], **report["settings"]}]
            elif step.endswith("judged"):
                judged = json.loads(output)
                sections["losses"] = list(
                    of_two(judged["measured"], step) if "measured" in judged else losses(judged, step)
                )
            document.add(RESULTS, {
                name: [{"model": MODEL} | row for row in rows] for name, rows in sections.items()
            })  # fmt: skip
            print(f"{step}: {took['minutes']:.1f} minutes", flush=True)


if __name__ == "__main__":
    main()
