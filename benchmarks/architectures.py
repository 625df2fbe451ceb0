"""Every architecture of the installed transformers, tiny and random: analysed, adapted, generated with, or refused?

    python benchmarks/architectures.py [--only llama,bert] [--out FILE] [--timeout 60] [--jobs 2]

Each run is one class of one model type in a child of its own; a run that was interrupted goes on where it was, and
types named with ``--only`` are run again. What is checked, and what this does not show, is in
docs/adding-an-architecture.md.
Exits with 1 if any number is wrong, or any exception of the product is not one of the project's.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", HF_HUB_OFFLINE="1")

import torch
import transformers
from architecture_sweep.building import all_runs
from architecture_sweep.children import records
from architecture_sweep.log import Log
from architecture_sweep.stages import examine
from architecture_sweep.summary import summary
from architecture_sweep.verdict import verdict

_MEMORY = 9 << 30  # bytes of addresses per child; the largest model has 1.8 GB of weights


def main() -> int:
    """Run what is missing, then sum up everything in the file."""
    arguments = _arguments()
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    import weightwatcher  # noqa: F401  # seconds, once here instead of in every child

    runs, log = all_runs(), Log(arguments.out)
    only = set(filter(None, arguments.only.split(",")))
    if unknown := only - {run.model_type for run in runs}:
        sys.exit(f"--only: transformers {transformers.__version__} has no {', '.join(sorted(unknown))}")
    done = log.done()
    missing = [run for run in runs if (run.model_type in only if only else (run.model_type, run.variant) not in done)]
    limits = {"jobs": arguments.jobs, "seconds": arguments.timeout, "memory": _MEMORY}
    for number, (run, record) in enumerate(records(missing, examine, **limits), start=1):
        log.add(record)
        words = f"{run.model_type} ({run.variant}): {verdict(record).outcome}, {record['seconds']} s"
        print(f"{number}/{len(missing)} {words}", file=sys.stderr, flush=True)
    everything = [record for (model_type, _), record in log.tidy().items() if not only or model_type in only]
    print(summary(everything))
    return 0 if all(verdict(record).passed for record in everything) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TYPE,…", help="only these model types, again if need be")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "architectures.jsonl")
    parser.add_argument("--timeout", type=float, default=60, metavar="SECONDS", help="for each run")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
