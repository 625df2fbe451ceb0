"""Models trained from scratch with truncated attention: what degrees are worth where a model can rely on them.

    python benchmarks/fresh.py --list                         # the runs that are missing
    python benchmarks/fresh.py --minutes 60                   # goes on where it was, begins no run after an hour
    python benchmarks/fresh.py --only recall --contenders "softmax,order 2,order 3"
    python benchmarks/fresh.py --show                         # the table of recall, and the verdicts

A run is one model, trained with one contender's attention from one seed: one to three minutes of one core, up to nine
with 32 pairs, and four to eight for a language model. Its record is a line of ``--out``, its weights a file in
``--models``. ``recall`` is associative recall with heads of 16 numbers and 8 pairs: every contender, five seeds, the
learning rate chosen of two by the first seed; ``rates`` has order 2 with either on all seeds. ``found`` has the
analyzer look at these models, and runs them with other orders. ``text`` is a language model of nearly a million
parameters that is trained to copy first, and ``sizes`` is recall with other heads and other numbers of pairs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Collection
from pathlib import Path

import torch
from fresh_models.claims import fresh_claims
from fresh_models.contenders import BY_NAME
from fresh_models.log import About, Log, Record, weights_file
from fresh_models.plan import PIECES, Plan
from fresh_models.summary import HEAD, lines

from taylorder.storage.files import replacing


def main() -> None:
    """Run what is missing, and show what is there."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    log, until = Log(arguments.out), time.monotonic() + 60 * arguments.minutes
    runs = Plan.of(log, arguments.models, arguments.contenders).missing(arguments.only)
    if arguments.list:
        for run in runs:
            print(words(run.about))
        return
    for run in () if arguments.show else runs:
        if time.monotonic() > until:
            break
        _say(words(run.about))
        record, weights = run.measure()
        if weights is not None:
            arguments.models.mkdir(parents=True, exist_ok=True)
            with replacing(weights_file(arguments.models, run.about)) as temporary:
                temporary.write_bytes(weights)
        log.add(run.about, record)
        _say(result(record))
    show(log.records())


def show(records: list[Record]) -> None:
    """Print the table of recall, and the verdicts."""
    table = [["", *HEAD], *([line.words, *line.figures] for line in lines(records))]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for claim in fresh_claims(records):
        print(f"\n{claim.statement} {claim.verdict}. {claim.reason}")


def words(about: About) -> str:
    """What a run is about, in a line."""
    return ", ".join(f"{name} {value}" for name, value in about.items())


def result(record: Record) -> str:
    """What came of a run, in a line."""
    if "run_as" in record:
        return ", ".join(f"as {name} {share:.2f}" for name, share in record["run_as"].items())
    if "loss" in record:
        return ", ".join(f"{kind} {loss:.3f}" for kind, loss in record["loss"].items()) + f", {record['seconds']:.0f} s"
    return f"{record['share']:.3f} right, {record['seconds']:.0f} s"


def _say(sentence: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {sentence}", file=sys.stderr, flush=True)


def _some_of(names: str, among: Collection[str], option: str) -> list[str]:
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    if unknown := [name for name in chosen if name not in among]:
        sys.exit(f"{option}: there is no {', '.join(unknown)}; expected some of: {', '.join(among)}")
    return chosen


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", default=",".join(PIECES), metavar="PIECE,…", help="default all, in this order: %(default)s"
    )
    parser.add_argument("--contenders", default="", metavar="NAME,…", help="only these; default all")
    parser.add_argument("--minutes", type=float, default=240.0, help="begin no run after so many")
    parser.add_argument("--list", action="store_true", help="say which runs are missing")
    parser.add_argument("--show", action="store_true", help="run nothing")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--models", type=Path, default=Path("taylorder-out/fresh"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "fresh.jsonl")
    arguments = parser.parse_args()
    arguments.only = _some_of(arguments.only, PIECES, "--only")
    arguments.contenders = _some_of(arguments.contenders, BY_NAME, "--contenders")
    return arguments


if __name__ == "__main__":
    main()
