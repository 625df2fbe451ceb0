"""Tasks under states of fixed size and under windows, by the bytes they hold."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter

from taylorder.adapt.config import HeadOrder, OrderConfig
from taylorder.adapt.handle import attach
from taylorder.adapt.prepared import prepare
from taylorder.claims.measurement import Measurement, Subject
from taylorder.errors import NonFiniteError, UsageError
from taylorder.evaluation.rivals import bytes_per_kv_head, per_layer
from taylorder.evaluation.task_prompts import make_tasks
from taylorder.evaluation.tasks import Outcome, TaskRow, run_tasks, summarise
from taylorder.kernels.spec import SINKS, Dropped, HeadSpec, Near
from taylorder.models.description import ModelDescription
from taylorder.storage.progress import Progress
from taylorder.storage.records import Records


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


@dataclass(frozen=True)
class TaskMeasurement(Measurement[tuple[TaskScore, ...]]):
    """Tasks of at least ``length`` tokens, and ``times_window`` times the widest window or chunk of the model.

    ``states`` are orders without a near field: nothing but a state of fixed size. ``beside`` are orders and windows of
    states beside a near field, ``windows`` are those of near fields alone.
    """

    name = "tasks"
    result = tuple[TaskScore, ...]
    length: int = 1024
    times_window: int = 4
    states: tuple[int, ...] = (2, 3, 5)
    beside: tuple[tuple[int, int], ...] = ((2, 64), (3, 64))
    windows: tuple[int, ...] = (64, 256)
    sinks: int = SINKS

    def applies(self, subject: Subject) -> bool:
        """Only what predicts tokens answers."""
        return subject.predicts_tokens

    def measure(self, subject: Subject, records: Records, progress: Progress) -> tuple[TaskScore, ...]:
        """Run the tasks under every state; none for a tokenizer without offsets, or with too few words."""
        description = subject.description
        widest = max(module.sliding_window or module.chunk or 0 for module in description.modules)
        length = min(max(self.length, self.times_window * widest), description.max_context)
        try:
            tasks = make_tasks(subject.tokenizer, lengths=(length,))
        except UsageError:
            return ()
        contenders = self._contenders(description)
        outcomes: dict[str, list[Outcome]] = {}
        adapter = TypeAdapter(list[Outcome])
        for done, (name, (_, config)) in enumerate(contenders.items()):
            progress("tasks", done, len(contenders))
            scored = records.get(f"tasks-{name}")
            if scored is None:
                scored = [asdict(outcome) for outcome in _run(subject.model, description, tasks, config)]
                records.put(f"tasks-{name}", scored)
            outcomes[name] = adapter.validate_python(scored)
        progress("tasks", len(contenders), len(contenders))
        exact = outcomes.pop("exact")
        whole = bytes_per_kv_head(None, description, length)
        return tuple(
            TaskScore(name, kind, bytes_per_kv_head(config, description, length), whole, row)
            for name, (kind, config) in contenders.items()
            if name in outcomes and len(outcomes[name]) == len(exact)
            for row in summarise(exact, outcomes[name], 0)
            if row.depth is None
        )

    def _contenders(self, description: ModelDescription) -> dict[str, tuple[str, OrderConfig | None]]:
        def uniform(order: int, window: int = 0, sinks: int = 0) -> OrderConfig:
            return OrderConfig.uniform(description, order, "mean", window, sinks)

        contenders: dict[str, tuple[str, OrderConfig | None]] = {"exact": ("exact", None)}
        for order in self.states:
            contenders[f"order {order}"] = ("state", uniform(order))
        for order, window in self.beside:
            contenders[f"order {order}, window {window}"] = ("state and window", uniform(order, window, self.sinks))
        for window in self.windows:
            head = HeadOrder(spec=HeadSpec(Dropped(), Near(window, self.sinks)))
            config = per_layer(description, dict.fromkeys((module.name for module in description.modules), head), {})
            contenders[f"window {window}"] = ("window", config)
        return contenders


def _run(model: Any, description: ModelDescription, tasks: Any, config: OrderConfig | None) -> list[Outcome]:
    """Outcomes of all tasks; none where the state breaks down."""
    if config is None:
        return list(run_tasks(model, tasks))
    try:
        with attach(model, prepare(model, config, description)):
            return list(run_tasks(model, tasks))
    except NonFiniteError:
        return []
