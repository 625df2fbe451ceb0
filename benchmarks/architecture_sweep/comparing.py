"""An adapted model against the untouched one, and against the float64 reference."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

import taylorder
from taylorder.kernels import HeadSpec
from taylorder.kernels.spec import Near, Taylor

from . import inputs
from .attention import admissions, compare_admissions
from .examination import Examination
from .running import distance, reference_output, right_output, run

Batch = dict[str, Tensor]

OWN = "own inputs"
"""Name of the batch that a model is run on where token ids alone will not do."""

ORDER, WINDOW, SINKS = 2, 4, 1
_ROUNDING = 1e-5


def low_order(description: Any, window: int = WINDOW, sinks: int = SINKS) -> Any:
    """One low order for all heads; encoders have no near field."""
    near = {"window": window, "sinks": sinks} if description.causal else {}
    return taylorder.OrderConfig.uniform(description, ORDER, "mean", **near)


def directions(examination: Examination, model: Any, description: Any) -> None:
    """The direction described, and that of the untouched model: does another last token change earlier outputs?"""
    tokens = inputs.token_ids()
    other = tokens.clone()
    other[0, -1] += 1

    def observed(**mask: Tensor) -> str:
        before, after = (right_output(model, input_ids=ids, **mask)[:, :-1] for ids in (tokens, other))
        moved = distance(after, before)
        return _direction(moved is not None and moved < _ROUNDING)

    mask = inputs.left_padded(tokens)["attention_mask"]
    examination.record["direction"] = {
        "described": _direction(description.causal),
        "alone": examination.untouched("direction", observed),
        "padded": examination.untouched("direction, left padding", lambda: observed(attention_mask=mask)),
    }


def _direction(causal: bool) -> str:
    return "causal" if causal else "both directions"


def token_batches() -> dict[str, Batch]:
    """A plain batch and a padded one."""
    return {
        "tokens": {"input_ids": inputs.token_ids()},
        "left padding": inputs.left_padded(inputs.token_ids(batch=2)),
    }


def against_the_reference(examination: Examination, model: Any, description: Any, batches: dict[str, Batch]) -> None:
    """One low order for all heads against the reference, and whether the model is as it was afterwards."""
    record = examination.record
    record["reference"] = {}
    spec = (
        HeadSpec(Taylor(ORDER, "mean"), Near(WINDOW, SINKS)) if description.causal else HeadSpec(Taylor(ORDER, "mean"))
    )
    open_modules = {module.name for module in description.open_modules}
    own = [batches[OWN]] if OWN in batches else None
    for name, batch in batches.items():
        stage = f"adapt, {name}"
        plain = examination.untouched(stage, lambda batch=batch: right_output(model, **batch))
        if plain is None:
            continue
        found = examination.product(stage, lambda batch=batch: _adapted(model, description, batch, own))
        again = examination.product(f"after {stage}", lambda batch=batch: run(model, **batch))
        record["restored"] = record.get("restored", True) and again is not None and bool(torch.equal(again, plain))
        formula = examination.untouched(
            f"formula, {name}", lambda batch=batch: reference_output(model, open_modules, spec, batch)
        )
        if found is not None and formula is not None:
            record["reference"][name] = {
                "distance": _compared(found, formula, batch)["distance"],
                "changed_by": _compared(found, plain, batch)["distance"],
            }


def _adapted(model: Any, description: Any, batch: Batch, own: list[Batch] | None) -> Tensor:
    with taylorder.adapted(model, low_order(description), inputs=own):
        return run(model, **batch)


def against_the_untouched(examination: Examination, model: Any, description: Any, batches: dict[str, Batch]) -> None:
    """Two configs that change nothing, on every batch: all heads exact, and all keys of a causal model near."""
    untouched: dict[str, tuple[Tensor, list[Tensor]]] = {}
    own = [batches[OWN]] if OWN in batches else None
    for name, batch in batches.items():
        with admissions() as masks:
            plain = examination.untouched(name, lambda batch=batch: right_output(model, **batch))
        if plain is not None:
            untouched[name] = plain, masks[: len(masks) // 2]  # of the first of its two runs
    configs: dict[str, Callable[[], Any]] = {"exact": lambda: taylorder.OrderConfig.uniform(description, "exact")}
    if description.causal:
        longest = max([inputs.LENGTH, *(module.tokens or 0 for module in description.modules)])
        configs["all near"] = lambda: low_order(description, longest, 0)
    for label, config in configs.items():
        examination.record[label] = {}
        with ExitStack() as stack:
            block = examination.product(
                label, lambda config=config: stack.enter_context(taylorder.adapted(model, config(), inputs=own))
            )
            for name, (plain, masks) in untouched.items() if block is not None else ():
                with admissions() as inside:
                    found = examination.product(f"{label}, {name}", lambda name=name: run(model, **batches[name]))
                if found is not None:
                    compared = _compared(found, plain, batches[name])
                    if label == "exact":
                        compared["masks"] = compare_admissions(inside, masks, _real(batches[name]))
                    examination.record[label][name] = compared | {"untouched_runs_sdpa": bool(masks)}


def _compared(found: Tensor, plain: Tensor, batch: Batch) -> dict[str, Any]:
    """How outputs at real tokens differ."""
    real = _real(batch)
    rows = real if found.shape[:2] == real.shape else slice(None)
    return {"distance": distance(found[rows], plain[rows]), "identical": bool(torch.equal(found[rows], plain[rows]))}


def _real(batch: Batch) -> Tensor:
    """Bool ``[B, T]``, False for padding; ``[1, 1]`` where the batch says nothing of tokens."""
    ones = torch.ones(batch["input_ids"].shape[:2]) if "input_ids" in batch else torch.ones(1, 1)
    return batch.get("attention_mask", ones).bool()
