"""Ways to spend a budget of cache bytes: over KV heads, and on keys that are kept; judged by the loss on unseen text.

    python benchmarks/policies.py --levers-only --threads 2                       # first: what both processes share
    python benchmarks/policies.py --budgets 64KiB --threads 1 --presets           # then these two, at the same time
    python benchmarks/policies.py --budgets 128KiB --threads 1 --presets
    python benchmarks/policies.py --budgets 32KiB --brief --threads 1             # afterwards, in any order
    python benchmarks/policies.py --budgets 64KiB 128KiB --text code --brief --threads 1
    python benchmarks/policies.py --model .models/gemma-3-270m.gguf --budgets 256KiB --few 3 --brief --threads 1
                                                                                  # make .models/gemma-3-270m.gguf

Everything measured is kept in ``--records``, and a run that was interrupted goes on from there. What is finished goes
to ``--out`` at once, beside what is there from other budgets, texts and models. Of a budget the first measured is what
matters most: what ships and its rivals of earlier releases on all sequences, and the tasks; then, on ``--few``
sequences, the rules that need no attention weights, the levers left out one at a time, and last the rules that need
attention weights. ``--brief`` stops after five rows on ``--few`` sequences.

Rows are the mean negative log-likelihood in nats per token; ``to X`` is the paired difference to X on the same
sequences with an interval over them, ``gap_closed`` the share of the gap between one window for all and exact
attention. ``default`` is what `taylorder analyze --budget` ships, ``windows per KV head`` what it shipped before keys
were kept. A rule decides who is kept: in one near field for all (``1/4 window``), or, ``our bytes``, in that which each
KV head of ``default`` has; H2O and LoLA there give its polynomials' bytes to kept keys. Section ``without`` is
``default`` with one of its levers left out, or with a polynomial for every KV head that keeps keys.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from policy_rules import document
from policy_rules.ablation import without_lever
from policy_rules.criteria import SCREENING_TOKENS, criteria
from policy_rules.fields import alike, with_state
from policy_rules.judging import DEFAULT, WINDOW, WINDOWS, Entrant, Judge
from policy_rules.policies import simple_rules
from policy_rules.rules import CHEAP, H2O, LOLA, ORACLE

from taylorder.adapt.config import OrderConfig
from taylorder.analysis.losses import EXACT
from taylorder.analysis.text import Text, calibration_text
from taylorder.analysis.tokens import Tokens, tokenise
from taylorder.evaluation import rivals
from taylorder.evaluation.evaluation_text import evaluation_code, evaluation_text
from taylorder.kernels.spec import SINKS
from taylorder.models.describe import describe
from taylorder.models.description import ModelDescription
from taylorder.models.loading import LoadedModel, load
from taylorder.selection import lever_summary
from taylorder.selection.candidates import LEVERS, candidates
from taylorder.selection.choice_text import ChoiceText
from taylorder.selection.config_of import window_instead
from taylorder.selection.lever_table import LeverTable, measure
from taylorder.selection.probes import fit_probes, probe_sequences
from taylorder.selection.settings import Limit, parse_bytes
from taylorder.selection.under_limit import Chosen, choose, near_fields_alone
from taylorder.storage.provenance import software_versions
from taylorder.storage.records import Records

NEAR_FIELDS = "near fields per KV head"
ALIKE, SHARE = "1/4 window", Fraction(3, 4)
"""The near field that all KV heads have alike in rows of that name: what kept keys have of it."""
TEXTS = {"docstrings": evaluation_text, "code": evaluation_code}


@dataclass(frozen=True)
class Levers:
    """The measured candidates of one model, and what is chosen from them; ``table`` has those of both choices."""

    loaded: LoadedModel
    model: ModelDescription
    table: LeverTable
    shipped: list[int]
    without_kept: list[int]
    sequences: torch.Tensor
    tokens: Tokens
    records: Records

    @classmethod
    def measured(cls, loaded: LoadedModel, model: ModelDescription, length: int, directory: Path) -> Levers:
        """Measure them, unless that was done."""
        tokens = tokenise(loaded.tokenizer, calibration_text())
        words = ChoiceText.of(loaded.tokenizer, tokens)
        sequences = words.sequences(length, 2)
        shape = model.modules[0].head_dim, length, (length // 64, SINKS), model.modules[0].value_dim
        shipped = candidates(LEVERS, *shape)
        without_kept = candidates([lever for lever in LEVERS if lever != "kept"], *shape)
        offered = tuple(dict.fromkeys([*shipped, *without_kept]))
        settings = {"model": model.fingerprint, "length": length, "calibration": words.joined.text.sha256}
        records = Records(directory, settings | {"candidates": str(offered)})
        fitted_to, _ = probe_sequences(words.joined, model, 4 * length)
        shared = {"records": records, "progress": _progress}
        probes = fit_probes(loaded.model, model, fitted_to, text=words.joined.text, **shared)
        table = measure(loaded.model, model, sequences, offered, window_instead, probes=probes, seed=0, **shared)
        indices = [[offered.index(candidate) for candidate in part] for part in (shipped, without_kept)]
        return cls(loaded, model, table, *indices, sequences, words.joined, records)

    def chosen(self, among: list[int], budget: int, name: str = "", criterion: Any = None) -> Chosen:
        """The choice among some candidates within a budget; ``name`` is of the records."""
        calibration = {
            "source": self.tokens.text.source,
            "text_sha256": self.tokens.text.sha256,
            "sequences": len(self.sequences),
            "sequence_length": self.sequences.shape[1],
            "bos": self.tokens.bos,
            "seed": 0,
            "dtype": self.model.dtype,
        }
        return choose(
            self.loaded.model,
            self.table.restricted_to(among),
            Limit(self.sequences.shape[1], budget),
            criterion,
            sequences=self.sequences,
            records=self.records,
            progress=_progress,
            calibration=calibration,
            name=name,
        )

    @property
    def near_fields(self) -> list[int]:
        """Of what is offered, near fields with the rest dropped."""
        alone = near_fields_alone([self.table.candidates[index] for index in self.shipped])
        return [self.shipped[index] for index in alone]

    def alike(self, budget: int, kept: Fraction) -> OrderConfig:
        """One near field for all KV heads, which gives a share of its tokens to kept keys."""
        probes = {layer.module: layer.prepared.probe for layer in self.table.layers}
        return alike(self.model, budget, kept, probes, self.table.probed or {})


def main() -> None:
    """Measure, choose, judge, write."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    loaded = load(arguments.model)
    model = replace(describe(loaded.model, loaded.name), name=Path(loaded.name).name)
    directory = arguments.records / model.name
    levers = Levers.measured(loaded, model, arguments.length, directory / "levers")
    if arguments.levers_only:
        return
    text = TEXTS[arguments.text]()
    unseen = tokenise(loaded.tokenizer, text).draw(arguments.length, arguments.sequences, 0)
    settings = {"model": model.fingerprint, "length": arguments.length, "text": text.sha256}
    judge = Judge(loaded, model, arguments.text, unseen, Records(directory / f"losses-{arguments.text}", settings))
    for budget in arguments.budgets:
        one_budget(levers, judge, text, budget, arguments)


def one_budget(levers: Levers, judge: Judge, text: Text, budget: int, arguments: argparse.Namespace) -> None:
    """Everything about one budget, what matters most first; the document grows with every part."""
    length, few = arguments.length, min(arguments.few, len(judge.sequences))
    whole = few if arguments.brief else len(judge.sequences)
    about = {"model": levers.model.name, "text": arguments.text, "length": length, "budget_bytes": budget}
    chosen, before = levers.chosen(levers.shipped, budget), levers.chosen(levers.without_kept, budget, "windows")
    measured = {
        "text_source": text.source,
        "text_sha256": text.sha256,
        "calibration": f"{levers.sequences.numel()} tokens of {levers.tokens.text.source}",
        "threads": arguments.threads,
        "date": datetime.now(UTC).date().isoformat(),
        **software_versions(),
    }
    document.add(arguments.out, {"measured": [about | measured], "chosen": [about | _choice(levers, chosen)]})
    if arguments.presets:
        folder = arguments.out.parent.parent / "configs" / f"{levers.model.name}-{budget // 1024}KiB"
        folder.mkdir(parents=True, exist_ok=True)
        chosen.config.save(folder / "orders.json")

    first = [Entrant(EXACT, None), Entrant(WINDOWS, before.config), Entrant(DEFAULT, chosen.config)]
    window = rivals.sliding_window(levers.model, budget, length)
    first += [Entrant(WINDOW, window.config)] if window else []
    ours = without_lever(chosen.config, levers.model, "order", length)
    h2o = Entrant("H2O, our bytes", ours, H2O)

    def judged(entrants: list[Entrant], count: int, section: str = "rows") -> None:
        judge.run(first + entrants, count)
        rows = judge.rows(entrants, first, budget, count)
        document.add(arguments.out, {section: rows})
        where = f"{count} sequences of {length:,} tokens, {arguments.text}"
        print(f"{section}: {budget / 1024:g} KiB per KV head, {where}")
        document.show(rows, DEFAULT)

    judged(first, whole)
    if arguments.brief:
        judged([h2o], few)
        return
    document.add(arguments.out, {"tasks": judge.tasks([*first, h2o], budget)})
    same = levers.alike(budget, SHARE)
    near_fields = levers.chosen(levers.near_fields, budget).config
    by_rule = [Entrant(f"{rule.name}, our bytes", chosen.config, rule) for rule in CHEAP[1:]]
    judged(first, few)
    judged([*by_rule, Entrant(f"probe, {ALIKE}", same), Entrant(NEAR_FIELDS, near_fields)], few)
    without = {f"without {lever}": without_lever(chosen.config, levers.model, lever, length) for lever in LEVERS}
    without |= {f"order {order} beside kept keys": with_state(ours, levers.model, order) for order in (1, 2)}
    judged([Entrant(name, config) for name, config in without.items()], few, "without")
    judged([h2o, Entrant("oracle, our bytes", chosen.config, ORACLE)], few)
    judged([Entrant("LoLA's rule, our bytes", with_state(ours, levers.model, 2), LOLA)], few)
    judged([Entrant(f"{rule.name}, {ALIKE}", same, rule) for rule in (*CHEAP, H2O, ORACLE)], few)
    judged([Entrant(f"LoLA's rule, {ALIKE}", with_state(same, levers.model, 2), LOLA)], few)
    if arguments.old_rules:
        judged(old_rules(levers, budget), whole)


def old_rules(levers: Levers, budget: int) -> list[Entrant]:
    """Rules that measure nothing and criteria that look at one KV head at a time, from before keys were kept."""
    context, tokens = levers.sequences.shape[1], levers.tokens
    alphas = rivals.fitted_alphas(levers.loaded.model, levers.model, _progress)
    contenders = simple_rules(levers.model, alphas, budget, context)
    screening = tokens.first(SCREENING_TOKENS, SCREENING_TOKENS)
    minimised = criteria(levers.loaded.model, screening, levers.records, _progress)
    return [Entrant(contender.name, contender.config) for contender in contenders if not contender.absent] + [
        Entrant(f"criterion {name}", levers.chosen(levers.without_kept, budget, "windows", loss).config)
        for name, loss in minimised.items()
        if loss is not None
    ]


def _choice(levers: Levers, chosen: Chosen) -> dict[str, Any]:
    """What was chosen and how, and which KV heads a polynomial serves better than as many bytes of near field."""
    table = levers.table.restricted_to(levers.shipped)
    summary = lever_summary.summarise(table, chosen, levers=LEVERS, sequences=tuple(levers.sequences.shape))
    rounds = [[measured.among, measured.kl, measured.promised, measured.price] for measured in chosen.rounds]
    return {
        "chosen": dict(summary.chosen),
        "polynomial_better": [f"{module}.{kv_head}" for module, kv_head in summary.chosen_better],
        "polynomial_worse": [f"{module}.{kv_head}" for module, kv_head in summary.chosen_worse],
        "rounds": rounds,
    }


def _progress(stage: str, done: int, total: int) -> None:
    print(f"{time.strftime('%H:%M:%S')} {stage}: {done} of {total}", file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="default the built-in one")
    parser.add_argument("--text", choices=TEXTS, default="docstrings", help="on which configs are judged")
    parser.add_argument("--budgets", type=parse_bytes, nargs="+", default=[64 << 10, 128 << 10], metavar="SIZE")
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--few", type=int, default=8, help="of them, those for all that is not among the first rows")
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--levers-only", action="store_true", help="stop when the candidates are measured")
    parser.add_argument("--brief", action="store_true", help="five rows on the few sequences, and nothing else")
    parser.add_argument("--old-rules", action="store_true", help="also the rules of before keys were kept")
    parser.add_argument("--presets", action="store_true", help="write what is chosen to benchmarks/configs")
    parser.add_argument("--records", type=Path, default=Path("taylorder-out/policies"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "policies.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
