"""What was decided for one query head, for the heads of one module, and for which model: the values in a config.

Everything is checked when it is made, alone and against the other heads of its group, so that a config that exists can
be run.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from taylorder.analysis.results import Expansion
from taylorder.models.description import ModelDescription

MAX_ORDER = 8

LONGEST_WINDOW = 2**24
"""Tokens: more than any model's context, and far from where the kernels' 32-bit positions end."""

MOST_SINKS = 2**16
"""Tokens: room for all of them is held from the first token on."""

DEEPEST_PROVENANCE = 64

PROVENANCE = "provenance"
"""Marks a field that says where a decision comes from or what it costs; all others are what the head computes."""

Number = Annotated[float, Field(strict=True)]
RelativeError = Annotated[Number, Field(ge=0)]
Order = Annotated[int, Field(ge=1, le=MAX_ORDER, strict=True)]
Window = Annotated[int, Field(ge=0, le=LONGEST_WINDOW, strict=True)]
Sinks = Annotated[int, Field(ge=0, le=MOST_SINKS, strict=True)]
Ranks = tuple[Annotated[int, Field(ge=0, strict=True)], ...]
Size = Annotated[int, Field(ge=0, le=10**24, strict=True)]
Positive = Annotated[int, Field(ge=1, le=2**31, strict=True)]
ModuleName = Annotated[str, Field(max_length=500, pattern=r"^[^\s\x00-\x1f\x7f]*$")]


def _plain(value: Any, depth: int = 0) -> Any:
    """Return free-form provenance as JSON gives it back: lists for tuples; what JSON cannot hold is refused."""
    if depth > DEEPEST_PROVENANCE:
        raise ValueError(f"provenance is nested more than {DEEPEST_PROVENANCE} deep")
    match value:
        case float() if not math.isfinite(value):
            raise ValueError(f"found {value}, expected a finite number")
        case None | bool() | int() | float() | str():
            return value
        case list() | tuple():
            return [_plain(item, depth + 1) for item in value]
        case dict() if all(isinstance(key, str) for key in value):
            return {key: _plain(item, depth + 1) for key, item in value.items()}
    raise ValueError(f"found a {type(value).__name__}, expected what JSON can hold")


Provenance = Annotated[dict[str, Any], AfterValidator(_plain)]


class Strict(BaseModel):
    """Frozen, without unknown keys and without NaN or infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class HeadOrder(Strict):
    """The decision for one query head; absent options mean plain Taylor around zero.

    ``error`` is the measured relative L2 error of the head's output (0 for exact, None if nothing was measured);
    ``reason`` says why a head is exact or what fixed its order; ``nominal_bytes`` and ``break_even`` describe the cache
    or state of its KV head, in bytes at the context the choice was made for, and in tokens.
    """

    order: Order | Literal["exact"]
    error: Annotated[RelativeError | None, PROVENANCE] = None
    expansion: Expansion = "zero"
    window: Window = 0
    sinks: Sinks = 0
    ranks: Ranks | None = None
    coefficients: tuple[Number, ...] | None = None
    reason: Annotated[str | None, PROVENANCE] = None
    nominal_bytes: Annotated[Size | None, PROVENANCE] = None
    break_even: Annotated[Size | None, PROVENANCE] = None

    def executed(self) -> dict[str, Any]:
        """Every field but those marked as provenance: what decides what the head computes."""
        marked = {name for name, field in type(self).model_fields.items() if PROVENANCE in field.metadata}
        return self.model_dump(exclude=marked)

    @classmethod
    def near_only(cls, window: int, sinks: int) -> HeadOrder:
        """Sinks and a sliding window, all other keys dropped."""
        return cls(order=1, window=window, sinks=sinks, coefficients=(0.0,))

    @property
    def drops_far(self) -> bool:
        """Whether all coefficients are 0: sinks and a sliding window, nothing else, and no state."""
        return self.coefficients is not None and not any(self.coefficients)

    @model_validator(mode="after")
    def _consistent(self) -> HeadOrder:
        if self.order == "exact":
            if (self.expansion, self.window, self.sinks, self.ranks, self.coefficients) != ("zero", 0, 0, None, None):
                raise ValueError(
                    "an exact head carries no expansion, window, sinks, ranks or coefficients; remove them"
                )
            return self
        for name, values in (("ranks", self.ranks), ("coefficients", self.coefficients)):
            if values is not None and len(values) != self.order:
                raise ValueError(f"{name} has {len(values)} entries, expected one per degree: {self.order}")
        if self.ranks is not None and self.expansion == "zero":
            raise ValueError("ranks are not defined for expansion 'zero'; use 'centre' or 'mean'")
        if self.ranks is not None and list(self.ranks[1:]) != sorted(self.ranks[1:], reverse=True):
            raise ValueError(f"ranks is {list(self.ranks)}, expected ranks that do not increase from degree 1 on")
        return self


class LayerOrders(Strict):
    """The heads of one attention module, in order."""

    module: ModuleName
    heads: tuple[HeadOrder, ...]


class ModelIdentity(Strict):
    """The model a config was made for."""

    name: str
    architecture: str
    layers: Positive
    heads: Positive
    kv_heads: Positive
    head_dim: Positive
    fingerprint: str

    @classmethod
    def of(cls, model: ModelDescription) -> ModelIdentity:
        """Return the identity of a described model."""
        first = model.modules[0]
        return cls(
            name=model.name,
            architecture=model.architecture,
            layers=len(model.modules),
            heads=first.heads,
            kv_heads=first.kv_heads,
            head_dim=first.head_dim,
            fingerprint=model.fingerprint,
        )


def check_group(module: str, kv_head: int, heads: tuple[HeadOrder, ...]) -> None:
    """Refuse options that the heads sharing one KV head cannot have different (design section 2, "GQA")."""
    where = f"layer {module}, KV head {kv_head}"
    exact = [head.order == "exact" for head in heads]
    if any(exact) and not all(exact):
        raise ValueError(f"{where}: some heads are exact and some are not; the cache is shared, so all must be exact")
    if all(exact):
        return
    for option in ("window", "sinks"):
        values = sorted({getattr(head, option) for head in heads})
        if len(values) > 1:
            raise ValueError(f"{where}: {option} differs within the group ({values}); one value is expected")
    ranks = [head.ranks for head in heads]
    if any(r is not None for r in ranks):
        if any(r is None for r in ranks):
            raise ValueError(f"{where}: some heads have ranks and some have none; the state is shared")
        longest = max((r for r in ranks if r is not None), key=len)
        if any(r != longest[: len(r)] for r in ranks if r is not None):
            raise ValueError(f"{where}: ranks differ within the group ({ranks}); each must be a prefix of the longest")
    if len({head.expansion == "zero" for head in heads}) > 1:
        raise ValueError(
            f"{where}: expansion 'zero' is mixed with 'centre' or 'mean'; their states hold different keys"
        )


def check_ranks(module: str, head: int, ranks: tuple[int, ...] | None, head_dim: int) -> None:
    """Refuse ranks that do not fit the head dim d; degree 1 costs only d features, and keeps them all."""
    if ranks is None:
        return
    where = f"layer {module}, head {head}: ranks is {list(ranks)}"
    if max(ranks) > head_dim:
        raise ValueError(f"{where}, expected no rank above head_dim = {head_dim}")
    if len(ranks) > 1 and ranks[1] != head_dim:
        raise ValueError(f"{where}, expected head_dim = {head_dim} coordinates at degree 1, found {ranks[1]}")
