"""The result of ``eval`` as one JSON document, schema ``taylorder/eval@1``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from taylorder.adapt.config import ModelIdentity
from taylorder.evaluation.evaluate import Evaluation
from taylorder.reports import evaluation_words as words
from taylorder.reports.evaluation import EvalReport, lookups
from taylorder.storage.finite_json import stamped

SCHEMA = "taylorder/eval@1"


def as_document(report: EvalReport) -> dict[str, Any]:
    """Everything the report says, and the figures it rounds; infinite ones are strings, as in ``report.json``."""
    missed = None if report.max_kl is None else words.missed(report.evaluation, report.max_kl)
    continued = report.evaluation.continuations
    content = {
        "model": ModelIdentity.of(report.model).model_dump() | {"weights_note": report.model.weights_note},
        "config": {
            "path": report.config_path,
            "exact_everywhere": report.evaluation.exact_everywhere,
            "criterion": report.config.criterion,
            "calibration": report.config.calibration,
        },
        "verdict": {"text": " ".join(words.verdicts(report.evaluation))},
        "bound": None if report.max_kl is None else {"max_kl": report.max_kl, "met": missed is None, "missed": missed},
        "comparisons": comparisons(report.evaluation),
        "generation": None if continued is None else asdict(continued) | {"text": words.continued(continued)},
        "tasks": {"reason": report.tasks_reason, "results": [asdict(result) for result in report.tasks]},
        "lookup_bytes": [asdict(lookup) for lookup in lookups(report)],
        "device": report.device,
        "dtype": report.dtype,
    }
    return stamped(SCHEMA, content)


def comparisons(evaluation: Evaluation) -> list[dict[str, Any]]:
    """One record per length, with what is worth a warning in words."""
    return [asdict(comparison) | {"remarks": words.sizes(comparison)} for comparison in evaluation.comparisons]
