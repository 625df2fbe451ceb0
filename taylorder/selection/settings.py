"""What ``taylorder analyze`` can be told; nothing heavy is imported, so that the command line can show the defaults."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from taylorder.analysis.settings import MeasureSettings
from taylorder.errors import UsageError

if TYPE_CHECKING:
    from taylorder.models.description import ModelDescription
    from taylorder.selection.candidates import Lever

TIERS = {"fp16": 3e-4, "bf16": 2e-3, "int4": 7e-2}
"""Relative L2 errors, named after a format of about that precision (docs/reading-a-report.md says how near)."""

DEFAULT_TIER = "int4"

_UNITS = {"b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 10**3, "mb": 10**6, "gb": 10**9}
_SIZE = re.compile(r"\s*([0-9]{1,18}(?:\.[0-9]{0,18})?)\s*([kmg]i?b|b)?\s*", re.ASCII | re.IGNORECASE)

PolicyName: TypeAlias = Literal["error", "alpha"]
"""Rules that give every head an order; :data:`taylorder.selection.policies.POLICIES` holds them."""

ChosenBy: TypeAlias = PolicyName | Literal["levers"]
"""By what a config was chosen; ``levers`` is :mod:`taylorder.selection.run_levers`."""

LONGEST_LEVER_SEQUENCE = 4096
"""Tokens of a sequence for levers unless asked for otherwise: a backward pass at the longest context takes long."""


@dataclass(frozen=True, slots=True)
class Limit:
    """What a choice has to keep to: bytes or error, whichever is not None.

    ``budget`` is the average nominal bytes per KV head at ``context`` tokens; ``tolerance`` the largest root mean
    square of the KV heads' relative L2 errors.
    """

    context: int
    budget: int | None = None
    tolerance: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AnalyzeSettings(MeasureSettings):
    """How a model is measured and by what its config is chosen; the defaults stand here and in the parent alone.

    Without ``budget`` and ``levers``, ``policy`` gives every head an order, by ``tolerance`` and by what pays off at
    ``context`` tokens, None for the model's maximum. With either, these ``levers`` differ between KV heads (None for
    all), within ``budget`` nominal bytes per KV head on average or else within the tolerance, measured on sequences of
    ``lever_length``.
    """

    policy: PolicyName = "error"
    tolerance: float = TIERS[DEFAULT_TIER]
    context: int | None = None
    budget: int | None = None
    levers: Collection[Lever] | None = None
    lever_length: int | None = None

    @property
    def with_levers(self) -> bool:
        """Whether KV heads may run different things, instead of heads different orders alone."""
        return self.budget is not None or self.levers is not None

    def limit(self, model: ModelDescription) -> Limit:
        """What levers have to keep to."""
        tolerance = self.tolerance if self.budget is None else None
        return Limit(self.context or model.max_context, self.budget, tolerance)

    @property
    def near(self) -> tuple[int, int] | None:
        """Window and sinks where none are to be chosen, None where none were asked for."""
        return (self.window, self.sinks) if self.window or self.sinks else None

    def measured(self) -> dict[str, Any]:
        """The arguments of :func:`taylorder.analysis.analyze.analyze` among them."""
        return {field.name: getattr(self, field.name) for field in fields(MeasureSettings)}

    def in_report(self, model: ModelDescription) -> dict[str, Any]:
        """What ``report.json`` says of a run with these settings, by the names it gives them."""
        length = min(self.sequence_length, model.max_context)
        return {
            "sequence_length": length,
            "rows_per_sequence": min(self.rows or length, length),
            "seed": self.seed,
            "max_order": self.max_order,
            "window": self.window,
            "sinks": self.sinks,
            "policy": "levers" if self.with_levers else self.policy,
            "tolerance": self.tolerance,
            "context": self.context or model.max_context,
            "budget": self.budget,
        }


DEFAULTS = AnalyzeSettings()


def parse_tolerance(text: str) -> float:
    """Return a relative L2 error from a number or a tier name.

    Raises:
        UsageError: neither, or not between 0 and 1.

    """
    if text in TIERS:
        return TIERS[text]
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value < 1:
        raise UsageError(f"tolerance is {text!r}, expected a number between 0 and 1 or one of {', '.join(TIERS)}")
    return value


def parse_bytes(text: str) -> int:
    """Return a number of bytes, rounded down, from a number with a unit.

    Pydantic's ``ByteSize`` reads ``3.MiB`` as 3 bytes and ``1,000`` as 1 (docs/notebook/2026-11-libraries.md).

    Raises:
        UsageError: not a number, no unit or an unknown one, or less than one byte.

    """
    match = _SIZE.fullmatch(text)
    size = int(Fraction(match[1]) * _UNITS[(match[2] or "B").lower()]) if match else 0
    if size < 1:
        raise UsageError(
            f"--budget is {text!r}, expected a positive number of bytes with a unit: B, KiB, MiB, GiB (powers of "
            "1024), KB, MB or GB (powers of 1000), for example 65536B or 1.5MiB"
        )
    if match and match[2] is None:  # whoever writes 128 hardly means bytes
        raise UsageError(f"--budget is {text!r}, which has no unit: write {match[1]}KiB, {match[1]}MiB, or {match[1]}B")
    return size
