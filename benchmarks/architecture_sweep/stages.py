"""What one model goes through, stage by stage: what a user does, and beside it what the untouched model does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import comparing, generating, inputs, measuring
from .building import NotBuiltError, Run, build
from .examination import Examination, OutOfMemoryError


def examine(run: Run, announce: Callable[[str], None]) -> dict[str, Any]:
    """Build the tiny model of a run, put it through all stages and return its record. Stages fill it; none judges."""
    name = {"type": run.model_type, "variant": run.variant, "class": run.class_name, "optional_head": run.optional_head}
    examination = Examination(name, announce)
    try:
        _stages(run, examination)
    except OutOfMemoryError as error:
        examination.record["ended"] = f"memory: {error}"
    return examination.record


def _stages(run: Run, examination: Examination) -> None:
    record = examination.record
    record["build"] = {}
    try:
        model = build(run, record["build"])
    except NotBuiltError as error:
        record["build"]["failed"] = str(error)
        return
    analysis = examination.product("analyze", lambda: measuring.analyze(model))
    if analysis is None:
        _on_inputs(examination, model)
        return
    description = analysis.model
    record["analysis"] = measuring.what_was_seen(model, analysis)
    record["projection_cosines"] = examination.untouched("projections", lambda: measuring.projection_cosines(model))
    comparing.directions(examination, model, description)
    comparing.against_the_reference(examination, model, description, comparing.token_batches())
    comparing.against_the_untouched(examination, model, description, inputs.batches(model))
    if run.variant == "head" and description.causal:
        generating.against_a_full_pass(examination, model, lambda: comparing.low_order(description))
    if record["build"]["parameters"] <= measuring.MOST_PARAMETERS:
        measuring.load(examination, model)


def _on_inputs(examination: Examination, model: Any) -> None:
    """What is refused on token ids alone goes through the same on inputs of its own, where there are any."""
    record = examination.record
    batch = measuring.own_calls(examination, model)
    if batch is None:
        return
    analysis = examination.product("analyze on inputs", lambda: measuring.analyze(model, batch))
    if analysis is None:
        return
    record["analysis"] = measuring.what_was_seen(model, analysis)
    batches = {comparing.OWN: batch}
    comparing.against_the_reference(examination, model, analysis.model, batches)
    comparing.against_the_untouched(examination, model, analysis.model, batches)
