"""Tasks under states of fixed size and under windows, by the bytes they hold."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter

from taylorder.adapt.config import HeadOrder, OrderConfig
from taylorder.adapt.context import adapted
from taylorder.errors import NonFiniteError
from taylorder.evaluation.rivals import bytes_per_kv_head, per_layer
from taylorder.evaluation.task_prompts import make_tasks
from taylorder.evaluation.tasks import Outcome, TaskRow, run_tasks, summarise
from taylorder.kernels.spec import Dropped, HeadSpec, Near
from taylorder.models.description import ModelDescription
from taylorder.storage.progress import Progress
from taylorder.storage.records import Records

LENGTH = 1024
"""Tokens of a task, at least; as many as :data:`WINDOWS_LONG` times the widest sliding window of the model."""

WINDOWS_LONG = 4
SINKS = 4
STATES = (2, 3, 5)
"""Orders of states without a near field: nothing but a state of fixed size."""

BESIDE = ((2, 64), (3, 64))
"""Order and window of states beside a near field."""

WINDOWS = (64, 256)


@dataclass(frozen=True, slots=True)
class TaskScore:
    """One way to hold the context, and how it did on one kind of task; ``row`` is paired with exact attention.

    ``kind`` is ``state``, ``state and window`` or ``window``; ``nominal_bytes`` is per KV head at the task's length.
    """

    name: str
    kind: str
    nominal_bytes: int
    exact_bytes: int
    row: TaskRow


def measure_task_scores(
    model: Any,
    tokenizer: Any,
    description: ModelDescription,
    *,
    records: Records,
    progress: Progress,
) -> tuple[TaskScore, ...]:
    """Run the tasks of one length under every state; finished states are found in ``records``.

    Raises:
        UsageError: tokenizer or model do not allow such prompts.

    """
    widest = max(module.sliding_window or 0 for module in description.modules)
    length = min(max(LENGTH, WINDOWS_LONG * widest), description.max_context)
    tasks = make_tasks(tokenizer, lengths=(length,))
    contenders = _contenders(description)
    outcomes: dict[str, list[Outcome]] = {}
    adapter = TypeAdapter(list[Outcome])
    for done, (name, (_, config)) in enumerate(contenders.items()):
        progress("tasks", done, len(contenders))
        kept = records.get(f"tasks-{name}")
        if kept is None:
            kept = [asdict(each) for each in _run(model, tasks, config)]
            records.put(f"tasks-{name}", kept)
        outcomes[name] = adapter.validate_python(kept)
    progress("tasks", len(contenders), len(contenders))
    exact = outcomes.pop("exact")
    whole = bytes_per_kv_head(None, description, length)
    return tuple(
        TaskScore(name, contenders[name][0], bytes_per_kv_head(contenders[name][1], description, length), whole, row)
        for name, own in outcomes.items()
        if len(own) == len(exact)
        for row in summarise(exact, own, 0)
        if row.depth is None
    )


def _contenders(description: ModelDescription) -> dict[str, tuple[str, OrderConfig | None]]:
    def uniform(order: int, window: int = 0, sinks: int = 0) -> OrderConfig:
        return OrderConfig.uniform(description, order, "mean", window, sinks)

    found: dict[str, tuple[str, OrderConfig | None]] = {"exact": ("exact", None)}
    found |= {f"order {order}": ("state", uniform(order)) for order in STATES}
    found |= {
        f"order {order}, window {window}": ("state and window", uniform(order, window, SINKS))
        for order, window in BESIDE
    }
    for window in WINDOWS:
        head = HeadOrder(spec=HeadSpec(Dropped(), Near(window, SINKS)))
        config = per_layer(description, dict.fromkeys((module.name for module in description.modules), head), {})
        found[f"window {window}"] = ("window", config)
    return found


def _run(model: Any, tasks: Any, config: OrderConfig | None) -> list[Outcome]:
    """Outcomes of all tasks; none where the state breaks down."""
    if config is None:
        return list(run_tasks(model, tasks))
    try:
        with adapted(model, config):
            return list(run_tasks(model, tasks))
    except NonFiniteError:
        return []
