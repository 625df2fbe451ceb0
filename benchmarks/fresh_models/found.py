"""What the analyzer finds in a trained model, and how the model fares when it runs with other orders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file

import taylorder
from fresh_models.answering import answering_rows
from fresh_models.contenders import BY_NAME, ORDERS
from fresh_models.log import About, Record
from fresh_models.models import attached, recall_model
from fresh_models.recall import Recall
from fresh_models.recall_run import RecallRun, share_right
from taylorder.analysis.alpha_ranks import layer_alpha
from taylorder.analysis.results import Analysis

RUN_AS = ("softmax", *ORDERS)
ANALYSED, RUN = 2_000_000, 3_000_000
"""Seeds of the sequences that are analysed, and of those that other orders are judged on."""

SEQUENCES, MAX_ORDER = 64, 8


@dataclass(frozen=True)
class FoundRun:
    """A model of a finished run, whose weights are kept."""

    run: RecallRun
    weights: Path

    task: ClassVar[str] = "found"

    @property
    def about(self) -> About:
        """That of the run, under another task."""
        return self.run.about | {"task": self.task}

    def measure(self) -> tuple[Record, None]:
        """Analyse the model as softmax would run it, and judge it with other orders.

        The weights of its own attention are looked at, too, unless it has coefficients of its own or no guard.
        """
        task, model = Recall(self.run.pairs), recall_model(self.run.head_dim, self.run.initial)
        missing, unknown = model.load_state_dict(load_file(self.weights), strict=False)
        if missing != ["lm_head.weight"] or any(not name.endswith("coefficients") for name in unknown):
            raise ValueError(f"{self.weights} has other weights than its model: {missing} missing, {unknown} unknown")
        model.tie_weights()
        model.eval()
        batch = task.batch(SEQUENCES, torch.Generator().manual_seed(ANALYSED))
        analysis = taylorder.analyze(
            model, None, inputs=[{"input_ids": batch.words}], name="fresh", rows=None, max_order=MAX_ORDER
        )
        record: Record = {"run_as": {}, "heads": heads(analysis), "alpha": alphas(analysis)}
        contender = BY_NAME[self.run.contender]
        if contender.guard and not contender.trains_coefficients:
            answering = answering_rows(model, contender, batch)
            record["heads"] = [head | answering[head["module"], head["head"]] for head in record["heads"]]
        for name in RUN_AS:
            handle = attached(model, BY_NAME[name])
            record["run_as"][name] = share_right(model, task, RUN)
            if handle is not None:
                handle.close()
        return record, None


def heads(analysis: Analysis) -> list[dict[str, Any]]:
    """Of every head the spread of its scores, and its error by expansion and order."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for row in analysis.candidates:
        head = {"module": row.module, "head": row.head, "score_std": row.score_std, "score_max": row.score_max}
        errors = found.setdefault((row.module, row.head), head | {"errors": {}})["errors"]
        errors.setdefault(row.expansion, []).append(row.relative_l2)
    return list(found.values())


def alphas(analysis: Analysis) -> Mapping[str, float | None]:
    """The mean alpha of queries and keys, by module."""
    return {module.name: layer_alpha(analysis.spectral, module.name) for module in analysis.model.modules}
