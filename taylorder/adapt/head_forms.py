"""The forms in which files say what a head runs: options side by side, which have to agree with each other."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Literal

from pydantic import Field, model_validator

from taylorder.adapt.decisions import HeadOrder, Number, RelativeError, Size, Strict
from taylorder.kernels.spec import (
    LONGEST_WINDOW,
    MAX_ORDER,
    MOST_SINKS,
    Dropped,
    Exact,
    Expansion,
    HeadSpec,
    Near,
    Taylor,
)

Order = Annotated[int, Field(ge=1, le=MAX_ORDER, strict=True)]
Window = Annotated[int, Field(ge=0, le=LONGEST_WINDOW, strict=True)]
Sinks = Annotated[int, Field(ge=0, le=MOST_SINKS, strict=True)]
Ranks = tuple[Annotated[int, Field(ge=0, strict=True)], ...]
Coefficients = tuple[Number, ...]


class FlatOrder(Strict):
    """A decision in one record, as files of ``@1`` list heads and ``report.json`` repeats them.

    Absent options mean plain Taylor around zero; coefficients that are all 0 say that the far field is dropped.
    """

    order: Order | Literal["exact"]
    error: RelativeError | None = None
    expansion: Expansion = "zero"
    window: Window = 0
    sinks: Sinks = 0
    ranks: Ranks | None = None
    coefficients: Coefficients | None = None
    reason: str | None = None
    nominal_bytes: Size | None = None
    break_even: Size | None = None

    @classmethod
    def of(cls, head: HeadOrder) -> FlatOrder:
        """Return the record of a decision."""
        far = head.spec.far
        if isinstance(far, Taylor):
            options = asdict(far)
        else:
            options = {"order": "exact"} if isinstance(far, Exact) else {"order": 1, "coefficients": (0.0,)}
        return cls(**options, **asdict(head.spec.near), **head.model_dump(exclude={"spec"}))

    def decision(self) -> HeadOrder:
        """Return the decision it records.

        Raises:
            ValueError: its options contradict each other.

        """
        spec = spec_of(self.order, self.expansion, self.ranks, self.coefficients, Near(self.window, self.sinks))
        return HeadOrder(spec=spec, **self.model_dump(include=HeadOrder.model_fields.keys() - {"spec"}))

    @model_validator(mode="after")
    def _consistent(self) -> FlatOrder:
        self.decision()
        return self


def spec_of(
    order: int | Literal["exact"],
    expansion: Expansion,
    ranks: tuple[int, ...] | None,
    coefficients: tuple[float, ...] | None,
    near: Near,
) -> HeadSpec:
    """Return what the options of a head mean together.

    Raises:
        ValueError: they contradict each other.

    """
    if order == "exact":
        if (expansion, ranks, coefficients, near) != ("zero", None, None, Near()):
            raise ValueError("an exact head carries no expansion, window, sinks, ranks or coefficients; remove them")
        return HeadSpec(Exact())
    if coefficients is not None and len(coefficients) == order and not any(coefficients):
        return HeadSpec(Dropped(), near)
    return HeadSpec(Taylor(order, expansion, ranks, coefficients), near)
