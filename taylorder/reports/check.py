"""What ``taylorder check`` prints: what a model is to this tool, what its cache takes, and what commands would take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from taylorder.models.architecture import Architecture
from taylorder.models.description import AttentionModule, ModelDescription
from taylorder.reports.numbers import counted, layer_names, listed, number, size
from taylorder.reports.plan import CAUTION, Estimate, duration_cell
from taylorder.reports.sections import Cell, Column, Section, facts, paragraph, table
from taylorder.selection.cache_size import CacheSize
from taylorder.storage.finite_json import stamped
from taylorder.storage.machine import Machine
from taylorder.storage.stages import Speed, StagePlan

SCHEMA = "taylorder/check@1"

_UNKNOWN = "not stated"


@dataclass(frozen=True, slots=True)
class CommandPlan:
    """A command without its program, and its plan; where there is none, ``reason`` says why."""

    text: str
    plan: StagePlan | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class CheckReport:
    """A supported model, its exact cache (None for encoders), the machine, and every command.

    ``weights`` are the bytes of the model's, ``resident`` those of them that are in memory all the time.
    """

    description: ModelDescription
    cache: CacheSize | None
    speed: Speed
    weights: int
    resident: int
    machine: Machine
    commands: tuple[CommandPlan, ...]

    def estimate(self, plan: StagePlan) -> Estimate:
        """What a plan will take."""
        return Estimate(plan, self.speed, self.resident, self.machine)


def as_document(report: CheckReport) -> dict[str, Any]:
    """The result as one JSON document, schema ``taylorder/check@1``."""
    model = report.description
    commands = [
        {"command": command.text, "reason": command.reason or None}
        | ({} if command.plan is None else report.estimate(command.plan).record())
        for command in report.commands
    ]
    content = {
        "supported": True,
        "model": {
            "name": model.name,
            "architecture": model.architecture,
            "layers": len(model.modules),
            "heads": model.typical.heads,
            "kv_heads": model.typical.kv_heads,
            "head_dim": model.typical.head_dim,
            "causal": model.causal,
            "max_context": model.max_context,
            "dtype": model.dtype,
            "weights_bytes": report.weights,
            "weights_note": model.weights_note,
            "unmeasured": list(model.unmeasured),
        },
        "stay_exact": [
            {
                "module": module.name,
                "reason": module.stays_exact,
                "sliding_window": module.sliding_window,
                "chunk": module.chunk,
                "keys_of": module.keys_of,
            }
            for module in model.closed_modules
        ],
        "cache": None
        if report.cache is None
        else {
            "bytes_per_token": report.cache.token_bytes,
            "context": report.cache.context,
            "bytes": report.cache.exact_bytes,
            "stay_exact_bytes": report.cache.closed_bytes,
            "latent_bytes_per_token": report.cache.latent_token_bytes,
            "kv_heads": report.cache.kv_heads,
        },
        "commands": commands,
    }
    return stamped(SCHEMA, content)


def refused_document(name: str | None, reason: str) -> dict[str, Any]:
    """The same for a model that is refused."""
    return stamped(SCHEMA, {"supported": False, "model": {"name": name}, "reason": reason})


def sections(report: CheckReport) -> Iterator[Section]:
    """What the model is, its cache, and a row per command."""
    model = report.description
    note = f"; {model.weights_note}" if model.weights_note else ""
    on_disk = f", {size(report.weights - report.resident)} of them on disk" if report.weights > report.resident else ""
    about: dict[str, Cell | str] = {
        "supported": Cell("yes", style="good"),
        "architecture": f"{model.architecture}, {model.shape} over {_kv_heads(model.typical)}{_other_shapes(model)}",
        "weights": f"{size(report.weights)} in {model.dtype}{on_disk}{note}",
        "stays exact": _stays_exact(model),
        "longest context": f"{number(model.max_context)} tokens",
    }
    if model.unmeasured:
        about["measured"] = f"on text alone, without the {listed(model.unmeasured)} inputs that the model takes as well"
    yield Section(f"taylorder check: {model.name}", (facts(about), *_cache(report.cache)))
    columns = (Column("taylorder …", wraps=True), *(Column(name, figures=True) for name in ("time", "memory", "disk")))
    rows = []
    for command in report.commands:
        if command.plan is None:
            rows.append((Cell(command.text, style="faint"), *[Cell("-")] * 3))
            continue
        estimate = report.estimate(command.plan)
        disk = size(command.plan.disk) if command.plan.disk else "-"
        rows.append((Cell(command.text), duration_cell(estimate.seconds), Cell(size(estimate.memory)), Cell(disk)))
    yield Section("What commands would take here", (table(columns, rows, indented=True),))
    reasons = dict.fromkeys(command.reason for command in report.commands if command.reason)
    estimates = [report.estimate(command.plan) for command in report.commands if command.plan is not None]
    warnings = dict.fromkeys(warning for estimate in estimates for warning in estimate.warnings)
    if reasons or warnings:
        yield Section("", (paragraph(*reasons, *warnings, style="doubtful"),))
    yield Section("", (paragraph(CAUTION, "analyze --dry-run prints the stages of a run.", style="faint"),))


def _kv_heads(module: AttentionModule) -> str:
    return f"{counted(module.kv_heads, 'KV head')} of dimension {module.head_dim}"


def _other_shapes(model: ModelDescription) -> str:
    """Layers that stay exact may have KV heads of other shapes."""
    shapes = Counter(_kv_heads(module) for module in model.closed_modules)
    del shapes[_kv_heads(model.typical)]
    return "".join(f"; {counted(count, 'layer')} over {shape}" for shape, count in shapes.items())


def _stays_exact(model: ModelDescription) -> str:
    if not model.closed_modules:
        return "no layer has to" if model.causal else "no layer has to; an encoder has no cache to save"
    labels = layer_names([module.name for module in model.modules]).labels
    by_reason: dict[str | None, list[AttentionModule]] = {}
    for module in model.closed_modules:
        by_reason.setdefault(module.stays_exact, []).append(module)
    parts = []
    for reason, modules in by_reason.items():
        named = ", ".join(labels[module.name] for module in modules)
        sizes = ", ".join(number(size) for size in sorted({m.sliding_window or m.chunk or 0 for m in modules}))
        why = {
            "sliding": f"sliding windows of {sizes} tokens, whose cache is constant already",
            "chunked": f"chunks of {sizes} tokens, whose cache is constant already",
            "repeated": "keys that several of their calls read, which have to be kept",
            "indexed": "keys that a learned index picks for each query, which have to be kept",
            "biased": "a bias added to their scores, which no running sum follows",
        }.get(reason or "", "keys that several of them read, which have to be kept")
        parts.append(f"{len(modules)} of {counted(len(model.modules), 'layer')} ({named}): {why}")
    return "; ".join(parts)


def _cache(cache: CacheSize | None) -> tuple[Any, ...]:
    if cache is None:
        return ()
    closed = f", beside {size(cache.closed_bytes)} of layers that stay exact" if cache.closed_bytes else ""
    at = f"at {number(cache.context)} tokens"
    held = {"KV cache": f"{size(cache.token_bytes)} per token, {size(cache.exact_bytes)} {at}{closed}"}
    if cache.latent_token_bytes != cache.token_bytes:
        latents = size(cache.latent_token_bytes * cache.context)
        held["as latents"] = f"{size(cache.latent_token_bytes)} per token, {latents} {at}, which a server keeps instead"
    if cache.kv_heads:
        per_kv_head = size(cache.exact_bytes // cache.kv_heads)
        held["per KV head"] = f"{per_kv_head} {at}, of which --budget gives each a share"
    return (facts(held), paragraph("Nominal bytes: keys and values in bfloat16, one sequence.", style="faint"))


def stated(model: Architecture, context: int | None) -> Iterator[Section]:
    """What the config of a model says, without its weights."""
    about: dict[str, Cell | str] = {
        "architecture": f"{model.architecture}, {_known(model.layers)} layers",
        "stays exact": _stated_exact(model),
        "longest context": f"{_known(model.max_context)} tokens",
    }
    if model.token_bytes is not None and model.full:
        tokens = context or model.max_context
        at = f", {size(model.token_bytes * tokens)} at {number(tokens)} tokens" if tokens else ""
        about["KV cache"] = f"{size(model.token_bytes)} per token{at}, nominal, layers that stay exact aside"
    yield Section(f"taylorder check: {model.name}", (facts(about),))
    more = (
        "Nothing in its config or class stands against this model. There are no weights here: whether its attention "
        "calls can be measured, and how long that takes, only the model itself tells."
    )
    yield Section("", (paragraph(more, style="doubtful"),))


def stated_document(model: Architecture, context: int | None) -> dict[str, Any]:
    """The same as one JSON document; whether the model is supported is not known yet."""
    tokens = context or model.max_context
    size_there = None if model.token_bytes is None or tokens is None else model.token_bytes * tokens
    cache = {"bytes_per_token": model.token_bytes, "context": tokens, "bytes": size_there}
    return stamped(SCHEMA, {"supported": None, "model": asdict(model), "cache": cache})


def _known(count: int | None) -> str:
    return _UNKNOWN if count is None else number(count)


def _stated_exact(model: Architecture) -> str:
    counts = {"sliding windows": model.sliding, "chunks": model.chunked, "keys that several read": model.shared}
    parts = [f"{counted(count, 'layer')} with {what}" for what, count in counts.items() if count]
    return ", ".join(parts) or "no layer has to"
