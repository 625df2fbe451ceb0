"""The tables of README and docs by the names that pages call them, each made from ``benchmarks/results``."""

from __future__ import annotations

from collections.abc import Callable

from page_tables.architectures import outcomes, sentence
from page_tables.attention import bars
from page_tables.claims import claims
from page_tables.findings import commands, layer_wise, losses, minutes, orders
from page_tables.fresh import answering, heads, rates, recall, run_as, sizes, text, verdicts
from page_tables.generation import generation
from page_tables.gradients import memory, times
from page_tables.healing import orders as orders_of_healed
from page_tables.healing import states, trainings
from page_tables.peers import agreement, held, needs, right
from page_tables.policies import choices, elsewhere, rules, short, tasks, without

TABLES: dict[str, Callable[[], str]] = {
    "models": sentence,
    "architectures": outcomes,
    "claims": claims,
    "orders": orders,
    "near-field": lambda: losses("near field, judged"),
    "closing": lambda: losses("analyze"),
    "layer-wise": layer_wise,
    "minutes": minutes,
    "commands": commands,
    "attention": bars,
    "gradients-times": times,
    "gradients-memory": memory,
    "policies-short": short,
    "policies-choices": choices,
    "policies-elsewhere": elsewhere,
    "policies-rules": rules,
    "policies-without": without,
    "policies-tasks": tasks,
    "fresh-recall": recall,
    "fresh-verdicts": verdicts,
    "fresh-heads": heads,
    "fresh-run-as": run_as,
    "fresh-sizes": sizes,
    "fresh-rates": rates,
    "fresh-text": text,
    "fresh-answering": answering,
    "healing-trainings": trainings,
    "healing-states": states,
    "healing-orders": orders_of_healed,
    "generation": generation,
    "peers-needs": needs,
    "peers-lookup": lambda: right("lookup"),
    "peers-list": lambda: right("list"),
    "peers-needle": lambda: right("needle"),
    "peers-bytes": held,
    "peers-agreement": agreement,
}
