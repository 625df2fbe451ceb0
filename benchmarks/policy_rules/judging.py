"""Losses and tasks of every entrant on the same sequences, kept as records so that an interrupted run goes on."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor

from policy_rules.rules import PROBE, Rule
from taylorder.adapt.config import OrderConfig
from taylorder.adapt.prepared import execution_digest
from taylorder.analysis.losses import EXACT, hidden_states, language_model_head, token_losses
from taylorder.errors import NonFiniteError
from taylorder.evaluation import rivals
from taylorder.evaluation.intervals import paired_difference
from taylorder.evaluation.task_prompts import make_tasks
from taylorder.evaluation.tasks import Outcome, run_tasks, summarise
from taylorder.models.description import ModelDescription
from taylorder.models.loading import LoadedModel
from taylorder.storage.records import Records

WINDOW, WINDOWS, DEFAULT = "one window", "windows per KV head", "default"
TASK_LENGTH = 1024


@dataclass(frozen=True)
class Entrant:
    """A config and the rule by which it keeps keys, if it keeps any; ``config`` None is the exact model."""

    name: str
    config: OrderConfig | None
    rule: Rule = PROBE

    @property
    def key(self) -> str:
        """What its records go by: equal for entrants that compute the same."""
        if self.config is None:
            return EXACT
        by = "" if self.rule is PROBE else f"-{self.rule.name.lower().replace(' ', '-')}"
        return execution_digest(self.config)[7:23] + by.replace("'", "")


@dataclass(frozen=True)
class Judge:
    """A model on sequences ``[N, T]`` of a text; ``records`` keeps what was measured."""

    loaded: LoadedModel
    model: ModelDescription
    text: str
    sequences: Tensor
    records: Records

    def running(self, entrant: Entrant, sequence: Tensor) -> AbstractContextManager[Any]:
        """A block in which the model runs as the entrant says, on that sequence."""
        if entrant.config is None:
            return nullcontext()
        return entrant.rule.running(self.loaded.model, self.model, entrant.config, sequence)

    def run(self, entrants: Sequence[Entrant], count: int) -> None:
        """Run every entrant on the first ``count`` sequences, unless it was; what computes the same is run once."""
        head = language_model_head(self.loaded.model)
        for number, sequence in enumerate(self.sequences[:count]):
            missing = {entrant.key: entrant for entrant in entrants if self._record(entrant, number) is None}
            if not missing:
                continue
            began = time.monotonic()
            exact = hidden_states(self.loaded.model, sequence)
            states = {key: self._hidden(sequence, exact, entrant) for key, entrant in missing.items()}
            finite = {key: hidden for key, hidden in states.items() if torch.isfinite(hidden).all()}
            losses = token_losses(head, sequence, {EXACT: exact} | finite)
            for key, entrant in missing.items():
                means = {"nll": math.inf, "kl": math.inf}  # it overflowed
                if key in finite:
                    means = {what: float(getattr(losses[key], what).mean(dtype=np.float64)) for what in means}
                self.records.put(f"{number:03d}-{key}", means)
                print(f"{number + 1} of {count}: {entrant.name}, {means}", file=sys.stderr, flush=True)
            print(f"{number + 1} of {count}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)

    def _hidden(self, sequence: Tensor, exact: Tensor, entrant: Entrant) -> Tensor:
        """Final hidden states ``[T, hidden]``; not finite where it overflows."""
        if entrant.config is None:
            return exact
        try:
            with self.running(entrant, sequence):
                return hidden_states(self.loaded.model, sequence).clone()
        except NonFiniteError:
            return exact * math.inf

    def _record(self, entrant: Entrant, number: int) -> Any:
        return self.records.get(f"{number:03d}-{entrant.key}")

    def figures(self, entrant: Entrant, what: str, count: int) -> np.ndarray:
        """Its mean ``nll`` or ``kl`` on each of the first sequences."""
        return np.array([self._record(entrant, number)[what] for number in range(count)])

    def rows(
        self, entrants: Sequence[Entrant], beside: Sequence[Entrant], budget: int, count: int
    ) -> list[dict[str, Any]]:
        """One row per entrant: its losses, and its differences to those ``beside``, by the name of the latter.

        ``gap_closed`` is the share of the gap between :data:`WINDOW` and exact attention, where both are beside.
        """
        others = {other.name: self.figures(other, "nll", count) for other in beside}
        judged = []
        for entrant in entrants:
            nll = self.figures(entrant, "nll", count)
            if not np.isfinite(nll).all():
                print(f"{entrant.name} overflows at {budget:,} bytes and is left out", file=sys.stderr)
                continue
            size = rivals.bytes_per_kv_head(entrant.config, self.model, self.sequences.shape[1])
            row = self._identity(entrant, budget) | {
                "sequences": count,
                "nominal_bytes": size,
                "nll": float(nll.mean()),
                "kl": float(self.figures(entrant, "kl", count).mean()),
            }
            for name, values in others.items():
                if name not in (EXACT, entrant.name):
                    delta = paired_difference(nll, values)
                    row[f"to {name}"] = [delta.estimate, delta.low, delta.high]
            if EXACT in others and WINDOW in others:
                window, exact = others[WINDOW].mean(), others[EXACT].mean()
                row["gap_closed"] = float((window - nll.mean()) / (window - exact))
            judged.append(row)
        return judged

    def _identity(self, entrant: Entrant, budget: int) -> dict[str, Any]:
        rule = entrant.rule
        keeps = entrant.config is not None and any(
            head.spec.near.kept for layer in entrant.config.layers for head in layer.heads
        )
        about = {"rule": rule.name, "source": rule.source, "needs": rule.needs, "runnable": rule.runnable}
        return {
            "model": self.model.name,
            "text": self.text,
            "length": self.sequences.shape[1],
            "budget_bytes": budget,
            "policy": entrant.name,
        } | (about if keeps else {})

    def tasks(self, entrants: Sequence[Entrant], budget: int) -> list[dict[str, Any]]:
        """The tasks of ``eval`` at 1,024 tokens, one row per entrant and task, unless they were run before."""
        drawn = make_tasks(self.loaded.tokenizer, lengths=(TASK_LENGTH,))

        def outcomes(entrant: Entrant) -> list[Outcome]:
            name = f"tasks-{entrant.key}"
            if self.records.get(name) is None:
                print(f"tasks: {entrant.name}", file=sys.stderr, flush=True)
                with self.running(entrant, self.sequences[0]):
                    results = run_tasks(self.loaded.model, drawn)
                self.records.put(name, [asdict(result) for result in results])
            return TypeAdapter(list[Outcome]).validate_python(self.records.get(name))

        exact = Entrant(EXACT, None)
        return [
            {
                "model": self.model.name,
                "budget_bytes": budget,
                "policy": entrant.name,
                "task": row.kind,
                "length": row.length,
                "exact": row.exact_accuracy.estimate,
                "accuracy": row.other_accuracy.estimate,
            }
            for entrant in entrants
            for row in summarise(outcomes(exact), outcomes(entrant), 0)
            if row.depth is None
        ]
