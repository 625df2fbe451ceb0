"""What ``taylorder analyze`` can be told; nothing heavy is imported, so that the command line can show the defaults."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from taylorder.analysis.settings import MeasureSettings
from taylorder.errors import UsageError

if TYPE_CHECKING:
    from taylorder.models.description import ModelDescription
    from taylorder.selection.cache_size import CacheSize
    from taylorder.selection.candidates import Lever

TIERS = {"fp16": 3e-4, "bf16": 2e-3, "int4": 7e-2}
"""Relative L2 errors, named after a format of about that precision (docs/reading-a-report.md says how near)."""

DEFAULT_TIER = "int4"

_UNITS = {"b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 10**3, "mb": 10**6, "gb": 10**9}
_SIZE = re.compile(r"\s*([0-9]{1,18}(?:\.[0-9]{0,18})?)\s*([kmg]i?b|b)?\s*", re.ASCII | re.IGNORECASE)
_PERCENT = re.compile(r"\s*([0-9]{1,18}(?:\.[0-9]{0,18})?)\s*%\s*", re.ASCII)
_COUNT = re.compile(r"\s*([0-9]{1,18})\s*", re.ASCII)

BudgetForm: TypeAlias = Literal["bytes", "percent", "total", "tokens"]
"""How a budget may be asked for; :class:`Budget` says what its amount is then."""

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


@dataclass(frozen=True, slots=True)
class Budget:
    """What a choice may spend, as it was asked for; what that is in bytes per KV head depends on model and context.

    ``amount`` is, by ``form``: nominal bytes per KV head that sees the whole context, on average; percent of what exact
    attention holds; bytes of the whole cache of one sequence, layers included that nothing is chosen for; tokens of
    cache per KV head.
    """

    given: str
    form: BudgetForm
    amount: Fraction

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read ``64KiB``, ``25%``, ``total:8GiB`` or ``tokens:512``.

        Raises:
            UsageError: it is none of these, or out of range.

        """
        given = text.strip()
        if match := _PERCENT.fullmatch(text):
            share = Fraction(match[1])
            if not 0 < share < 100:
                raise UsageError(
                    f"--budget is {text!r}, expected a share of what exact attention holds, above 0% and below 100%"
                )
            return cls(given, "percent", share)
        name, colon, amount = given.partition(":")
        if colon and name == "total":
            return cls(given, "total", Fraction(parse_bytes(amount, "total:")))
        if colon and name == "tokens":
            match = _COUNT.fullmatch(amount)
            if match is None or int(match[1]) < 1:
                raise UsageError(f"--budget is {text!r}, expected a number of tokens from 1 on, such as tokens:512")
            return cls(given, "tokens", Fraction(int(match[1])))
        try:
            return cls(given, "bytes", Fraction(parse_bytes(text)))
        except UsageError as error:
            more = "or a share of exact such as 25%, a whole cache such as total:8GiB, or tokens:512"
            raise UsageError(f"{error}; {more}") from None

    @property
    def folder(self) -> str:
        """Name of the folder of its run among several; links to it need no escapes."""
        return "".join(self.given.split()).replace(":", "-").replace("%", "percent")

    def per_kv_head(self, cache: CacheSize) -> int:
        """Nominal bytes per KV head on average, rounded down; none where layers that slide take all of a total."""
        match self.form:
            case "bytes":
                size = self.amount
            case "percent":
                size = self.amount / 100 * cache.exact_bytes / cache.kv_heads
            case "total":
                size = max(Fraction(0), self.amount - cache.closed_bytes) / cache.kv_heads
            case "tokens":
                size = self.amount * cache.token_bytes / cache.kv_heads
        return math.floor(size)

    def spelled(self, per_kv_head: int, cache: CacheSize) -> str:
        """So many bytes per KV head in the form of this budget, rounded up."""
        total = per_kv_head * cache.kv_heads
        match self.form:
            case "bytes":
                return f"{per_kv_head}B"
            case "percent":
                return f"{math.ceil(Fraction(10_000 * total, cache.exact_bytes)) / 100:g}%"
            case "total":
                return f"total:{cache.total(per_kv_head)}B"
            case "tokens":
                return f"tokens:{math.ceil(Fraction(total, cache.token_bytes))}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AnalyzeSettings(MeasureSettings):
    """How a model is measured and by what its config is chosen; the defaults stand here and in the parent alone.

    Without ``budget`` and ``levers``, ``policy`` gives every head an order, by ``tolerance`` and by what pays off at
    ``context`` tokens, None for the model's maximum. With either, these ``levers`` differ between KV heads (None for
    all), within ``budget`` or else within the tolerance, measured on sequences of ``lever_length``.
    """

    policy: PolicyName = "error"
    tolerance: float = TIERS[DEFAULT_TIER]
    context: int | None = None
    budget: Budget | None = None
    levers: Collection[Lever] | None = None
    lever_length: int | None = None

    @property
    def with_levers(self) -> bool:
        """Whether KV heads may run different things, instead of heads different orders alone."""
        return self.budget is not None or self.levers is not None

    def limit(self, model: ModelDescription) -> Limit:
        """What levers have to keep to."""
        context = self.context or model.max_context
        if self.budget is None:
            return Limit(context, tolerance=self.tolerance)
        from taylorder.selection.cache_size import CacheSize  # torch comes with it, and there is a model by now

        return Limit(context, self.budget.per_kv_head(CacheSize.of(model, context)))

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
            "budget": self.limit(model).budget,
            **self._levers_in_report(model),
        }

    def _levers_in_report(self, model: ModelDescription) -> dict[str, Any]:
        if not self.with_levers:
            return {"levers": None, "lever_length": None}
        from taylorder.selection.candidates import LEVERS

        used = tuple(lever for lever in LEVERS if self.levers is None or lever in self.levers)
        return {"levers": used, "lever_length": self.length_for_levers(model)}

    def length_for_levers(self, model: ModelDescription) -> int:
        """Tokens of a sequence that levers are measured on."""
        asked = self.lever_length or min(self.context or model.max_context, LONGEST_LEVER_SEQUENCE)
        return min(asked, model.max_context)


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


def parse_budgets(text: str) -> tuple[Budget, ...]:
    """Budgets with commas between them, as many as there are."""
    return tuple(map(Budget.parse, text.split(",")))


def parse_bytes(text: str, after: str = "") -> int:
    """Return a number of bytes, rounded down, from a number with a unit; ``after`` is what stood before it.

    Pydantic's ``ByteSize`` reads ``3.MiB`` as 3 bytes and ``1,000`` as 1 (docs/notebook/2026-11-libraries.md).

    Raises:
        UsageError: not a number, no unit or an unknown one, or less than one byte.

    """
    match, given = _SIZE.fullmatch(text), after + text
    size = int(Fraction(match[1]) * _UNITS[(match[2] or "B").lower()]) if match else 0
    if size < 1:
        raise UsageError(
            f"--budget is {given!r}, expected a positive number of bytes with a unit: B, KiB, MiB, GiB (powers of "
            "1024), KB, MB or GB (powers of 1000), for example 65536B or 1.5MiB"
        )
    if match and match[2] is None:  # whoever writes 128 hardly means bytes
        number = after + match[1]
        raise UsageError(f"--budget is {given!r}, which has no unit: write {number}KiB, {number}MiB, or {number}B")
    return size
