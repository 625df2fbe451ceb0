"""Context first, question after it, the cache compressed in between: a config beside the methods of kvpress.

    python benchmarks/against_peers.py prompts            # prompts and the model's weights, for both sides
    python benchmarks/against_peers.py taylorder --cases 8
    PEERS/bin/python benchmarks/against_peers.py kvpress --cases 8
    python benchmarks/against_peers.py table              # writes benchmarks/results/peers.json

``PEERS`` is an environment of its own, because kvpress wants an older transformers:

    python -m venv PEERS && PEERS/bin/python -m pip install -r benchmarks/peers/requirements.txt

Prompts are those of ``taylorder eval`` (list recall, associative lookup, needles), cut where they begin to ask. A
method reads the context, keeps as many bytes as the config of ``benchmarks/configs`` holds then, and goes on to the
questions; the likeliest candidate, or token, after each is its answer. Answers are kept in ``--records``, and whatever
was interrupted goes on from there; both sides may run at the same time, on one thread each. A larger ``--cases`` adds
cases; the table has those that all methods have answered.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from peers.protocol import Answers, read_prompts, rows_of, write_prompts

MODEL = "smollm2-135m"
CONFIGS = Path(__file__).parent / "configs"
BUDGETS = ("64KiB", "128KiB")
LENGTHS = (1024, 2048, 4096)


def prompts(arguments: argparse.Namespace) -> None:
    """Write what both sides start from."""
    from peers.ours import drawn

    from taylorder.adapt.config import OrderConfig
    from taylorder.models.describe import describe
    from taylorder.models.loading import load

    loaded = load(MODEL)
    model = describe(loaded.model, loaded.name)
    configs = {budget: OrderConfig.load(_orders(budget)) for budget in BUDGETS}
    arguments.records.mkdir(parents=True, exist_ok=True)
    made = drawn(loaded.tokenizer, model, configs, lengths=LENGTHS, cases=arguments.cases)
    write_prompts(arguments.records / "prompts.jsonl", made)
    loaded.model.save_pretrained(arguments.records / "model")


def taylorder(arguments: argparse.Namespace) -> None:
    """Answers of exact attention, one window and the configs."""
    from peers.ours import OurSide

    from taylorder.adapt.config import OrderConfig
    from taylorder.adapt.prepared import prepare
    from taylorder.models.describe import describe
    from taylorder.models.loading import load
    from taylorder.storage.provenance import software_versions

    loaded = load(MODEL)
    model = describe(loaded.model, loaded.name)
    configs = {budget: prepare(loaded.model, OrderConfig.load(_orders(budget)), model) for budget in arguments.budgets}
    _answer(OurSide(loaded.model, model, configs), software_versions(), arguments)


def kvpress(arguments: argparse.Namespace) -> None:
    """Answers of kvpress's presses."""
    from peers.presses import SOFTWARE, KvpressSide

    _answer(KvpressSide(arguments.records / "model"), SOFTWARE, arguments)


def table(arguments: argparse.Namespace) -> None:
    """Rows of all answers."""
    from peers import merging

    from taylorder.storage.files import replacing
    from taylorder.storage.finite_json import as_json, finite

    asked, digest = read_prompts(arguments.records / "prompts.jsonl", sys.maxsize)
    answers = {side: list(rows_of(_answers_path(arguments.records, side), digest)) for side in ("taylorder", "kvpress")}
    both = [row for rows in answers.values() for row in rows]
    document = {
        "measured": [{"side": side} | row["software"] for side, rows in answers.items() for row in rows[-1:]],
        "checks": merging.checks(both),
        "methods": merging.needs(),
        "rows": merging.rows(asked, both),
    }
    with replacing(arguments.out) as temporary:
        temporary.write_text(as_json(finite(document)), encoding="utf-8")


def _answer(side, software, arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    asked, digest = read_prompts(arguments.records / "prompts.jsonl", arguments.cases)
    answers = Answers(_answers_path(arguments.records, arguments.step), digest, software)
    for number, prompt in enumerate(asked, start=1):
        began = time.monotonic()
        side.answer(prompt, answers, arguments.budgets)
        about = f"{number} of {len(asked)}: {prompt.kind}, {prompt.length} tokens, case {prompt.case}"
        print(f"{about}, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


def _orders(budget: str) -> Path:
    return CONFIGS / f"{MODEL}-{budget}" / "orders.json"


def _answers_path(records: Path, side: str) -> Path:
    return records / f"answers-{side}.jsonl"


def main() -> None:
    """Run one step."""
    steps = {step.__name__: step for step in (prompts, taylorder, kvpress, table)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=steps)
    parser.add_argument("--cases", type=int, default=32, help="prompts per task and length: drawn, or asked first")
    parser.add_argument("--budgets", choices=BUDGETS, nargs="+", default=BUDGETS[:1], help="whose configs to ask")
    parser.add_argument("--records", type=Path, default=Path("taylorder-out/peers"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "peers.json")
    arguments = parser.parse_args()
    steps[arguments.step](arguments)


if __name__ == "__main__":
    main()
