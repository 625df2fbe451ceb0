"""A healing as a person reads it: the table, what it says in words, and the card of the folder."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from taylorder.adapt.config import ModelIdentity
from taylorder.analysis.losses import EXACT
from taylorder.evaluation.intervals import Interval
from taylorder.healing import states
from taylorder.healing.heal import CODE, PROSE, Healing
from taylorder.healing.table import Row
from taylorder.reports.evaluation_words import figure, with_bracket
from taylorder.reports.markdown import markdown
from taylorder.reports.model_card import short_name
from taylorder.reports.numbers import counted, number, percent
from taylorder.reports.sections import Block, Column, Command, Section, Table, facts, paragraph, table
from taylorder.storage.durations import duration
from taylorder.storage.finite_json import stamped

SCHEMA = "taylorder/heal@1"

_TRAINED = {
    "lora": "low-rank additions to q, k, v and o",
    "qkvo": "the matrices of q, k, v and o",
    "qk": "the matrices of q and k",
    "config": "the numbers of the config's polynomials",
    "probes": "the choice of the keys that are kept",
}
_RUN_CONFIG = """\
What was trained is in `orders.json` and `orders.safetensors`; the weights of the model stay as they are.

```sh
taylorder eval --config {folder}
taylorder generate "The capital of France is" --config {folder}
```
"""
_RUN = """\
The adapter is for the model named above; with it merged, and only then, `orders.json` belongs to the weights.

```sh
taylorder eval --config {folder}
taylorder generate "The capital of France is" --config {folder}
taylorder export {folder} --out merged
```

The last line writes the merged model, which transformers loads by itself. In Python:

```python
import taylorder

loaded = taylorder.load({base!r}, adapter={folder!r})
handle = taylorder.attach(loaded.model, taylorder.OrderConfig.load({orders!r}))
```

peft loads the adapter as any other: `PeftModel.from_pretrained(model, {folder!r})`.
"""


def as_document(healing: Healing) -> dict[str, Any]:
    """Everything that the report says, and the figures that it rounds."""
    plan = healing.plan
    content = {
        "model": ModelIdentity.of(healing.model).model_dump(),
        "healed_fingerprint": healing.config.model.fingerprint,
        "settings": healing.settings.record(),
        "plan": {"steps": plan.schedule.steps, "tokens": plan.schedule.tokens, "seconds": plan.seconds},
        "text": {"source": healing.text.source, "sha256": healing.text.sha256, "tokens": healing.text_tokens},
        "unseen": {
            sample.name: {"source": sample.source, "sha256": sample.sha256, "shape": list(sample.sequences.shape)}
            for sample in healing.samples
        },
        "trainings": {
            name: {
                "steps": len(outcome.losses), "best": outcome.best, "tokens": outcome.tokens,
                "seconds": outcome.seconds, "stopped": outcome.stopped, "losses": outcome.losses,
                "held_out": outcome.held_out,
            }
            for name, outcome in healing.outcomes.items()
        },
        "verdict": {"text": " ".join(verdicts(healing))},
        "rows": [_record(row) for row in healing.rows],
    }  # fmt: skip
    return stamped(SCHEMA, content)


def _record(row: Row) -> dict[str, Any]:
    losses = {
        text: {"nll": asdict(row.nll(text)), "kl": asdict(row.kl(text)), "per_sequence": asdict(of_text)}
        for text, of_text in row.losses.items()
    }
    tasks = [asdict(task) for task in row.tasks]
    return {"name": row.name, "note": row.note, "absent": row.absent, "losses": losses, "tasks": tasks}


def sections(healing: Healing, folder: str) -> Iterator[Section]:
    """The report of ``heal``; ``folder`` is where the result lies."""
    yield Section(f"taylorder heal: {healing.model.name}", (facts(_facts(healing)),), level=1)
    yield from results(healing)
    yield Section("Verdict", (paragraph(*verdicts(healing), style="strong"), *_next(folder)))


def results(healing: Healing) -> Iterator[Section]:
    """The tables, and what stands in them."""
    for text in (PROSE, CODE):
        sample = next(sample for sample in healing.samples if sample.name == text)
        count, length = sample.sequences.shape
        about = f"{counted(count, 'sequence')} of {counted(length, 'token')} of {sample.source}"
        yield Section(f"Unseen {text}", (_losses(healing, text), paragraph(f"{about[0].upper()}{about[1:]}.")))
    if healing.row(EXACT).tasks:
        yield Section("Tasks: share of right answers", (_tasks(healing),))
    notes = {row.name: row.absent or row.note for row in healing.rows if row.name != EXACT}
    intervals = "Intervals are 95% over sequences or prompts; differences are paired."
    yield Section("What was measured", (facts(notes), paragraph(intervals)))


def verdicts(healing: Healing) -> list[str]:
    """What the figures come to, a sentence each."""
    before, after = healing.row(states.BEFORE), healing.row(states.AFTER)
    if after.absent or before.absent:
        return [f"The config has no figures ({after.absent or before.absent}), so nothing can be said of its healing."]
    said = []
    name, of, above = _aim(healing)
    for text in (PROSE, CODE):
        lost, left = of(before, text).estimate, of(after, text).estimate
        closed = 0.0 if lost <= 0 else 1 - left / lost
        change = f"{percent(closed)} less" if closed >= 0 else f"{percent(-closed)} more"
        said.append(
            f"On unseen {text} the {name} went from {figure(lost)} to {figure(left)}, {change} "
            f"(difference {with_bracket(above(after, before, text), True)})."
        )
    said += _beside(healing, after)
    return said


def _aim(healing: Healing) -> tuple[str, Callable[[Row, str], Interval], Callable[[Row, Row, str], Interval]]:
    """What was to become small: its name, of a row, and of one row above another."""
    if healing.settings.towards_text:
        return "NLL", Row.nll, Row.nll_above
    return "mean KL to the exact model", Row.kl, Row.kl_above


def _beside(healing: Healing, after: Row) -> Iterator[str]:
    """What the controls say."""
    name, _, above = _aim(healing)
    window, trained = healing.row(states.WINDOW_AFTER), healing.row(states.TRAINED_EXACT)
    if not window.absent:
        difference = above(after, window, PROSE)
        yield (
            f"The same healing of one window of the same bytes: {_than(difference, 'the config', 'that window')} in "
            f"{name} on prose ({with_bracket(difference, True)})."
        )
    if not trained.absent:
        exact, before = healing.row(EXACT), healing.row(states.BEFORE)
        lost, left = before.nll_above(exact, PROSE), after.nll_above(trained, PROSE)
        closed = f", {percent(1 - left.estimate / lost.estimate)} less" if 0 < left.estimate < lost.estimate else ""
        yield (
            f"Trained on the same text, the exact model changes its NLL on prose by "
            f"{with_bracket(trained.nll_above(exact, PROSE), True)}. Beside it the healed config loses "
            f"{with_bracket(left, True)}; before, beside the exact model, {with_bracket(lost, True)}{closed}."
        )
    off = healing.row(states.STATE_OFF)
    if not off.absent:
        yield (
            f"Without its polynomials the healed config's {name} on prose changes by "
            f"{with_bracket(above(off, after, PROSE), True)}: that much is what they do."
        )


def _than(difference: Interval, one: str, other: str) -> str:
    if difference.low <= 0 <= difference.high:
        return f"no difference between {one} and {other} can be told"
    better, worse = (one, other) if difference.estimate < 0 else (other, one)
    return f"{better} is better than {worse}"


def _facts(healing: Healing) -> dict[str, str]:
    settings, schedule = healing.settings, healing.plan.schedule
    outcome = healing.outcomes[states.CONFIG]
    taken = ", ".join(f"{name} {duration(outcome.seconds)}" for name, outcome in healing.outcomes.items())
    lines = {
        "trained": f"{_TRAINED[settings.train]} by {', then '.join(settings.stages)}, seed {settings.seed}",
        "text": f"{number(outcome.tokens)} of {number(healing.text_tokens)} tokens of {healing.text.source}",
        "sequences": f"of {', then '.join(number(context) for context in settings.contexts)} tokens",
        "steps": f"{len(outcome.losses)} of {schedule.steps} ({outcome.stopped}); best after {outcome.best}",
        "time": taken,
    }
    if settings.drop_window:
        lines["near fields"] = f"left out in training with probability {settings.drop_window:g}, layer by layer"
    return lines


def _losses(healing: Healing, text: str) -> Table:
    exact = healing.row(EXACT)
    rows = []
    for row in healing.rows:
        if row.absent:
            rows.append((row.name, "not run" if row.absent == states.NO_CONTROLS else "-", "", ""))
            continue
        above, kl = ("-", "-") if row.name == EXACT else (
            with_bracket(row.nll_above(exact, text), True), with_bracket(row.kl(text))
        )  # fmt: skip
        rows.append((row.name, figure(row.nll(text).estimate), above, kl))
    titles = ("NLL", "above exact [95%]", "mean KL to exact [95%]")
    return table([Column(""), *(Column(title, figures=True) for title in titles)], rows)


def _tasks(healing: Healing) -> Table:
    known = healing.row(EXACT).tasks
    rows = [
        (row.name, *(percent(task.other_accuracy.estimate) for task in row.tasks)) for row in healing.rows if row.tasks
    ]
    titles = [f"{task.kind}\n{number(task.length)} tokens" for task in known]
    chance = ("(chance)", *(percent(task.chance) for task in known))
    return table([Column(""), *(Column(title, figures=True) for title in titles)], [*rows, chance])


def _next(folder: str) -> list[Block]:
    name = shlex.quote(folder)
    return [
        paragraph("Next, the healed model beside simpler uses of the same bytes:"),
        Command(f"taylorder eval --config {name}"),
    ]


def card(healing: Healing, folder: str, base: str) -> str:
    """The card of the folder, as the Hub shows it.

    Args:
        healing: what came of it.
        folder: what the folder is called.
        base: the model that the adapter is for; of a path its last part is named.

    """
    base = short_name(base)
    what = "The numbers of a config for" if healing.adapter is None else "An adapter for"
    about = (
        f"{what} {base}, trained so that the model, running with the config in orders.json, which keeps less of the "
        "past than exact attention does, comes near what it does exactly. Figures are on text that was not learnt "
        "from, beside controls."
    )
    title = f"{base}, healed for its config"
    parts = (
        Section(title, (paragraph(about), facts(_facts(healing))), level=1),
        Section("What it buys", (paragraph(*verdicts(healing)),)),
        *results(healing),
    )
    orders = f"{folder}/orders.json"
    run = (_RUN_CONFIG if healing.adapter is None else _RUN).format(folder=folder, base=base, orders=orders)
    return (
        f"---\nlibrary_name: peft\ntags:\n- taylorder\n- kv-cache\n---\n\n{markdown(parts)}\n## How to run it\n\n{run}"
    )
