"""The table at the end of a sweep, in Markdown, and the lists behind its rows."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from .verdict import OUTCOMES, REFUSED, TOLERANCE, Verdict, about_kinds_of_tokens, reason, verdict

Record = Mapping[str, Any]
_NAMES = 8


def summary(records: Iterable[Record]) -> str:
    """Outcomes by run and by type (each by its best variant), then everything that has to be looked into, by name."""
    judged = [(record, verdict(record)) for record in records]
    return "\n".join([*_table(judged), *_checks(judged), *_failures(judged), *_refusals(judged), *_notes(judged)])


def by_type(records: Iterable[Record]) -> dict[str, str]:
    """The outcome of every model type, that of its best variant."""
    return _by_type((record, verdict(record)) for record in records)


def _by_type(judged: Iterable[tuple[Record, Verdict]]) -> dict[str, str]:
    best: dict[str, str] = {}
    for record, found in judged:
        best[record["type"]] = min(found.outcome, best.get(record["type"], found.outcome), key=OUTCOMES.index)
    return best


def _table(judged: list[tuple[Record, Verdict]]) -> Iterator[str]:
    best = _by_type(judged)
    yield "| outcome | runs | types, by their best variant |"
    yield "| --- | ---: | ---: |"
    for outcome in OUTCOMES:
        runs = sum(found.outcome == outcome for _, found in judged)
        yield f"| {outcome} | {runs} | {list(best.values()).count(outcome)} |"
    yield f"| all | {len(judged)} | {len(best)} |"


def _checks(judged: list[tuple[Record, Verdict]]) -> Iterator[str]:
    """In how many runs each comparison was made: none at all would pass as well."""
    made: Counter[str] = Counter()
    for record, _ in judged:
        made.update(key for key in ("restored", "load") if key in record)
        made.update(key for key in ("to_full_pass", "padded_to_alone") if key in record.get("generate", {}))
        made["direction"] += record.get("direction", {}).get("alone") is not None
        for config in ("reference", "exact", "all near"):
            made.update(f"{config}, {batch}" for batch in record.get(config, {}))
        made["masks"] += any(
            not batch["masks"].startswith("not compared") for batch in record.get("exact", {}).values()
        )
    yield "\nRuns in which each check was made:"
    yield from (f"  {count:4d}  {check}" for check, count in sorted(made.items(), key=lambda item: (-item[1], item[0])))


def _failures(judged: list[tuple[Record, Verdict]]) -> Iterator[str]:
    for title, which in (("Wrong numbers", "wrong"), ("Exceptions that are not the project's", "foreign")):
        failing = [(record, getattr(found, which)) for record, found in judged if getattr(found, which)]
        yield f"\n{title}: {len(failing)} runs"
        for record, lines in failing:
            yield from (f"  {_name(record)}: {line}" for line in lines)


def _refusals(judged: list[tuple[Record, Verdict]]) -> Iterator[str]:
    at_once: dict[str, list[str]] = defaultdict(list)
    later: dict[str, list[str]] = defaultdict(list)
    kinds: dict[str, list[str]] = defaultdict(list)
    for record, found in judged:
        at_first = [failure for failure in record.get("refused", ()) if failure["stage"].startswith("analyze")]
        if at_first and found.outcome == REFUSED:  # on inputs of its own, if it was given any, else on token ids
            at_once[reason(record, at_first[-1]["message"])].append(_name(record))
        for failure in record.get("refused", ()):
            if failure not in at_first:
                group = kinds if about_kinds_of_tokens(failure["stage"]) else later
                group[f"{failure['stage']}: {reason(record, failure['message'])}"].append(_name(record))
    yield from _grouped("Refused by reason", at_once)
    yield from _grouped("Analysed, then refused, by stage and reason", later)
    yield from _grouped("Batches with kinds of tokens that were refused", kinds)


def _notes(judged: list[tuple[Record, Verdict]]) -> Iterator[str]:
    lines: dict[str, list[str]] = defaultdict(list)
    for record, _ in judged:
        for line in _notes_on(record):
            lines[line].append(_name(record))
    yield from _grouped("Notes", lines)


def _notes_on(record: Record) -> Iterator[str]:
    """What is worth knowing beside the verdict: what was left out, and what could not be compared."""
    parts = ("build", "analysis", "direction", "generate", "load")
    build, analysis, direction, generate, load = (record.get(part) or {} for part in parts)
    if "ended" in record:
        yield record["ended"].splitlines()[0][:80]
    if "failed" in build or build.get("ran") is False:
        yield "not built, or built and did not run on anything known here"
    if not {"tokens", "own inputs"} & set(record.get("exact", {"tokens"})):
        yield "nothing compared on plain tokens or on inputs of its own"
    if analysis.get("without_alpha"):
        yield f"no alpha for {', '.join(analysis['without_alpha'])}"
    if analysis.get("unseen"):
        yield "has attention that the analysis does not see"
    if any(cosine < 0.999 for cosine in (record.get("projection_cosines") or {}).values()):
        yield "the weights found alone do not make q, k, v (norms and rotations inside the module, or a fault)"
    masks = {batch["masks"] for batch in record.get("exact", {}).values()}
    if any(said.startswith("not compared") for said in masks):
        yield "masks not compared: the untouched model does not run SDPA in the same modules"
    if len({direction.get("alone"), direction.get("padded")} - {None}) > 1:
        yield "the untouched model looks ahead with a mask or without one, not in both cases"
    if "to_full_pass" in generate and not generate["keeps_states"]:
        yield "generated without any truncated state"
    for name, words in (("to_full_pass", "its own full pass"), ("padded_to_alone", "its own row without padding")):
        if (generate.get(f"untouched_{name}") or 0.0) > TOLERANCE:
            yield f"generating, the untouched model misses {words}"
    if load and load["saved_generates"] and not load["generates"]:
        yield "loaded from a folder without its head"


def _grouped(title: str, groups: Mapping[str, list[str]]) -> Iterator[str]:
    yield f"\n{title}: {sum(map(len, groups.values()))}"
    for words, names in sorted(groups.items(), key=lambda group: (-len(group[1]), group[0])):
        more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
        yield f"  {len(names):4d}  {words}: {', '.join(names[:_NAMES])}{more}"


def _name(record: Record) -> str:
    return f"{record['type']} ({record['variant']})"
