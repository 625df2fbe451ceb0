"""What healing buys: experiments in pieces, each of which `taylorder heal` would do, with its controls.

    python benchmarks/healing.py --list
    python benchmarks/healing.py --only kept-64KiB --threads 1      # an hour and a half of one core each
    python benchmarks/healing.py --tokens 20000                     # all of them, one after the other, in short

A piece that was interrupted goes on at the step where it was (--records), and one that is finished is read back. Rows
are written when a piece is finished, beside those of others, so that pieces may run at the same time. A piece has a row
per state of the model: exact, before, after, without its polynomials, without its near fields, one window of the same
bytes before and after the same training, and the exact model trained on the same text. With --orders the weights are
then analysed, before and after every training: do heads need fewer terms?
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from healing_orders import orders
from policy_rules import document

from taylorder.adapt.config import HeadOrder, OrderConfig
from taylorder.analysis.capture import LayerTensors, run_layers
from taylorder.analysis.text import calibration_text
from taylorder.analysis.tokens import tokenise
from taylorder.analysis.truncation import key_centres
from taylorder.evaluation import rivals
from taylorder.healing.heal import Healing, heal
from taylorder.healing.settings import HealSettings
from taylorder.kernels.spec import SINKS, HeadSpec, Near, Taylor
from taylorder.models.describe import describe
from taylorder.models.description import ModelDescription
from taylorder.models.loading import LoadedModel, load
from taylorder.reports.healing import as_document
from taylorder.selection.rotations import balanced_rotations
from taylorder.storage.provenance import software_versions

CONFIGS = Path(__file__).parent / "configs"
CALIBRATION_LENGTH, CALIBRATION = 1024, 4096
WINDOW, RANK = 64, 8

SHORT: dict[str, Any] = {"contexts": (512, 1024), "tokens": 49_152}
"""Where what is lost is lost within a few hundred tokens."""

LONG: dict[str, Any] = {"contexts": (2048,), "tokens": 102_400, "stages": ("logits",)}
"""Where a config loses nothing to speak of before."""

ConfigOf = Callable[[LoadedModel, ModelDescription], OrderConfig]


@dataclass(frozen=True)
class Piece:
    """One experiment: the config that the model is healed for, and how."""

    name: str
    about: str
    config: ConfigOf
    settings: dict[str, Any]


def preset(size: str) -> ConfigOf:
    """A config of `benchmarks/configs`, chosen for 4,096 tokens with kept keys."""
    return lambda loaded, model: OrderConfig.load(CONFIGS / f"{model.name}-{size}" / "orders.json", model)


def polynomial(order: int, rank: int | None = None) -> ConfigOf:
    """One order for all KV heads around the mean, beside 4 sinks and a window of 64."""

    def config(loaded: LoadedModel, model: ModelDescription) -> OrderConfig:
        ranks = None if rank is None else (model.typical.head_dim,) * 2 + (rank,) * (order - 2)
        head = HeadOrder(spec=HeadSpec(Taylor(order, "mean", ranks), Near(WINDOW, SINKS)))
        made = rivals.per_layer(model, {module.name: head for module in model.open_modules}, {"policy": "healing"})
        if rank is None:
            return made
        centres, rotations = calibrated(loaded, model)
        return made.with_key_centres(centres).with_rotations(rotations)

    return config


def calibrated(
    loaded: LoadedModel, model: ModelDescription
) -> tuple[dict[str, torch.Tensor], dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """Key centres of all modules and rotations of those that see the whole context, on the calibration text."""
    centres, rotations = {}, {}
    seeing = {module.name for module in model.open_modules}
    length = min(CALIBRATION_LENGTH, model.max_context)
    tokens = tokenise(loaded.tokenizer, calibration_text()).first(length, max(length, CALIBRATION))

    def consume(name: str, layer: LayerTensors) -> None:
        mean = key_centres(layer)
        centres[name] = mean.float()
        if name in seeing:
            query, key = balanced_rotations(layer, mean)
            rotations[name] = query.float(), key.float()

    run_layers(loaded.model, tokens, consume)
    return centres, rotations


CUBIC = polynomial(3, RANK)
PIECES = (
    Piece("kept-64KiB", "what is left beside kept keys at 64 KiB, LoRA", preset("64KiB"), LONG),
    Piece(
        "kept-64KiB-probes",
        "the same, the choice of keys in place of weights",
        preset("64KiB"),
        LONG | {"train": "probes", "tokens": 61_440},
    ),
    Piece("kept-64KiB-text", "the same, LoRA towards the text", preset("64KiB"), LONG | {"stages": ("text",)}),
    Piece("kept-128KiB", "what is left beside kept keys at 128 KiB, LoRA", preset("128KiB"), LONG),
    Piece("order-3-rank-8", "101 features beside a window of 64, against 103 more tokens", CUBIC, SHORT),
    Piece("order-2", "65 features beside a window of 64, against 66 more tokens", polynomial(2), SHORT),
    Piece(
        "order-3-rank-8-dropped", "order 3, near fields left out half of the time", CUBIC, SHORT | {"drop_window": 0.5}
    ),
    Piece("order-3-rank-8-config", "order 3, the numbers of the config alone", CUBIC, SHORT | {"train": "config"}),
)


def main() -> None:
    """Heal for one piece after the other, and write what came of it."""
    arguments = _arguments()
    if arguments.list:
        for piece in PIECES:
            print(f"{piece.name:26s} {piece.about}")
        return
    torch.set_num_threads(arguments.threads)
    loaded = load(arguments.model)
    model = describe(loaded.model, loaded.name)
    for piece in PIECES:
        if arguments.only and piece.name not in arguments.only:
            continue
        _say(f"{piece.name}: {piece.about}")
        healing = heal(
            loaded.model, loaded.tokenizer, piece.config(loaded, model), _settings(piece, arguments),
            directory=arguments.records / Path(model.name).name / piece.name, description=model, say=_say,
            progress=lambda stage, done, total: _say(f"{stage}: {done} of {total}"),
        )  # fmt: skip
        about = {"piece": piece.name, "model": Path(model.name).name}
        measured = {"threads": arguments.threads, "date": datetime.now(UTC).date().isoformat(), **software_versions()}
        found = {"orders": orders(about, loaded, healing)} if arguments.orders else {}
        document.add(
            arguments.out,
            {"pieces": [about | summary(healing) | measured], "rows": rows(about, healing), **found},
        )
        print(f"{piece.name}: {summary(healing)['verdict']}")


def summary(healing: Healing) -> dict[str, Any]:
    """How a piece was trained, and what its figures come to in words."""
    made = as_document(healing)
    trainings = {
        name: {key: training[key] for key in ("steps", "best", "tokens", "seconds", "stopped", "held_out")}
        for name, training in made["trainings"].items()
    }
    return {"settings": made["settings"], "trainings": trainings, "verdict": made["verdict"]["text"]}


def rows(about: dict[str, Any], healing: Healing) -> Iterable[dict[str, Any]]:
    """A row per state: mean and interval of NLL and KL by kind of text, and the share right of every task."""
    for row in healing.rows:
        figures: dict[str, Any] = {"absent": row.absent} if row.absent else {}
        for text in row.losses:
            for name, interval in (("nll", row.nll(text)), ("kl", row.kl(text))):
                figures[f"{text} {name}"] = [interval.estimate, interval.low, interval.high]
        for task in row.tasks:
            right = task.other_accuracy
            figures[f"{task.kind} {task.length}"] = [right.estimate, right.low, right.high]
        yield about | {"state": row.name} | figures


def _settings(piece: Piece, arguments: argparse.Namespace) -> HealSettings:
    asked = {"minutes": arguments.minutes, "seed": arguments.seed}
    tokens = {} if arguments.tokens is None else {"tokens": arguments.tokens}
    return HealSettings(**(piece.settings | tokens | asked))


def _say(sentence: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {sentence}", file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="say what pieces there are")
    parser.add_argument("--only", nargs="+", choices=[piece.name for piece in PIECES], metavar="PIECE")
    parser.add_argument("--model", help="default the built-in one")
    parser.add_argument("--minutes", type=float, help="most of training, controls included, for each piece")
    parser.add_argument("--tokens", type=int, help="that the config is trained on, instead of those of each piece")
    parser.add_argument("--orders", action="store_true", help="analyse the weights before and after, too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--records", type=Path, default=Path("taylorder-out/healing"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "healing.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
