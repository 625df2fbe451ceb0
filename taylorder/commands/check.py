"""``taylorder check``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

from taylorder.commands import options
from taylorder.commands._shared import load_described, print_report
from taylorder.errors import UnsupportedModelError, UsageError
from taylorder.models.placement import Placement
from taylorder.runs.subject import ToLoad

if TYPE_CHECKING:
    from taylorder.models.description import ModelDescription
    from taylorder.models.loading import LoadedModel
    from taylorder.reports.check import CheckReport, CommandPlan

BUDGET = "25%"
"""What ``analyze --budget`` is estimated for."""

CONTEXT, PROMPT, NEW_TOKENS = 1024, 1000, 128
"""Tokens that the estimates are for, as many as the model allows: a context, a prompt, and what follows it."""


def check(
    model: options.Model = None,
    context: Annotated[
        int | None, options.number("Count cache bytes at N tokens.", 1, "the model's maximum", max=2**31)
    ] = None,
    output: options.Format = "human",
    device: options.Device = "cpu",
    device_map: options.DeviceMap = None,
    dtype: options.Dtype = "float32",
) -> None:
    """Say whether a model is supported, what its KV cache takes, and what each command would take here.

    Loads the model and times it for a few seconds; writes nothing. A model that is refused is told why, with exit code
    3. Of a folder with a config and no weights it says what the config gives away.

    Example: taylorder check

    Example: taylorder check my-model --context 4096
    """
    from taylorder.models.architecture import architecture_of, without_weights
    from taylorder.reports import check as report

    try:
        if model is not None and (folder := without_weights(model)) is not None:
            stated = architecture_of(folder, model)
            print_report(output, lambda: report.stated_document(stated, context), report.stated(stated, context))
            return
        found = _checked(model, context, Placement.of(device, device_map), dtype)
    except UnsupportedModelError as error:
        if output == "json":
            refused = report.refused_document(model, str(error))
            print_report(output, lambda: refused, ())
            sys.stdout.flush()
        raise
    print_report(output, lambda: report.as_document(found), report.sections(found))


def _checked(model: str | None, context: int | None, place: Placement, dtype: str) -> CheckReport:
    """Load the model, describe and time it."""
    from taylorder.reports.progress import StderrProgress

    with StderrProgress() as progress:
        loaded, description = load_described(ToLoad(model, dtype), place, progress)
        progress.say("timing the model")

        from taylorder.models.offloading import weights_bytes
        from taylorder.reports.check import CheckReport
        from taylorder.selection.cache_size import CacheSize
        from taylorder.selection.speed import speed
        from taylorder.storage.machine import Machine

        return CheckReport(
            description=description,
            cache=CacheSize.of(description, context or description.max_context) if description.causal else None,
            speed=speed(loaded.model, description),
            weights=weights_bytes(loaded.model),
            resident=weights_bytes(loaded.model, resident=True),
            machine=Machine.here(),
            commands=tuple(_commands(loaded, description)),
        )


def _commands(loaded: LoadedModel, description: ModelDescription) -> list[CommandPlan]:
    """Every command with its plan, or why it is not for this model."""
    from taylorder.analysis.text import calibration_text
    from taylorder.analysis.tokens import tokenise
    from taylorder.evaluation.plan import eval_plan, generate_plan
    from taylorder.models.sources import BUILTIN
    from taylorder.reports.check import CommandPlan
    from taylorder.selection.choice_text import kinds
    from taylorder.selection.plan import ModelAndText, analysis_plan
    from taylorder.selection.settings import AnalyzeSettings, Budget

    tokens = tokenise(loaded.tokenizer, calibration_text())
    subject = ModelAndText(loaded.model, description, len(tokens.ids), kinds(tokens.text))
    context = min(CONTEXT, description.max_context)
    prompt = min(PROMPT, description.max_context // 2)
    new_tokens = min(NEW_TOKENS, description.max_context // 2)
    name = "" if loaded.name == BUILTIN else f" {loaded.name}"
    within = AnalyzeSettings(budget=Budget.parse(BUDGET), context=context)

    def budgeted() -> Any:
        _refuse_levers(loaded.model, description)
        return analysis_plan(subject, [within], evaluated=True)

    def generated() -> Any:
        if not loaded.model.can_generate():
            raise UnsupportedModelError(f"{description.name} generates no text")
        return generate_plan(description, prompt=prompt, new_tokens=new_tokens)

    plans = {
        f"analyze{name}": lambda: analysis_plan(subject, [AnalyzeSettings()], evaluated=True),
        f"analyze{name} --budget {BUDGET} --context {context}": budgeted,
        f"eval, at {context} tokens": lambda: eval_plan(description, [context]),
        f"generate, {new_tokens} tokens after {prompt}": generated,
    }
    commands = []
    for command, plan in plans.items():
        try:
            commands.append(CommandPlan(command, plan()))
        except (UnsupportedModelError, UsageError) as error:
            commands.append(CommandPlan(command, None, str(error)))
    return commands


def _refuse_levers(model: Any, description: ModelDescription) -> None:
    """Refuse a model whose losses cannot be computed, as ``analyze --budget`` would."""
    from taylorder.analysis.losses import language_model_head
    from taylorder.selection.lever_table import refuse_unsupported

    refuse_unsupported(description)
    language_model_head(model)
