"""What was decided for one query head, for the heads of one module, and for which model: the values in a config.

Everything is checked when it is made, alone and against the other heads of its group, so that a config that exists can
be run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, InstanceOf, model_validator

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
    grouped,
)
from taylorder.models.description import AttentionModule, ModelDescription

DEEPEST_PROVENANCE = 64

Number = Annotated[float, Field(strict=True)]
RelativeError = Annotated[Number, Field(ge=0)]
Size = Annotated[int, Field(ge=0, le=10**24, strict=True)]
Positive = Annotated[int, Field(ge=1, le=2**31, strict=True)]
Order = Annotated[int, Field(ge=1, le=MAX_ORDER, strict=True)]
Window = Annotated[int, Field(ge=0, le=LONGEST_WINDOW, strict=True)]
Sinks = Annotated[int, Field(ge=0, le=MOST_SINKS, strict=True)]
Kept = Annotated[int, Field(ge=0, le=LONGEST_WINDOW, strict=True)]
Ranks = tuple[Annotated[int, Field(ge=0, strict=True)], ...]
Coefficients = tuple[Number, ...]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
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
    """The decision for one query head: what it runs, and where that comes from.

    ``error`` is the measured relative L2 error of the head's output (0 for exact, None if nothing was measured);
    ``reason`` says why a head is exact or what fixed its order; ``nominal_bytes`` and ``break_even`` describe the cache
    or state of its KV head, in bytes at the context the choice was made for, and in tokens.
    """

    spec: InstanceOf[HeadSpec]
    error: RelativeError | None = None
    reason: str | None = None
    nominal_bytes: Size | None = None
    break_even: Size | None = None

    @classmethod
    def staying(cls, module: AttentionModule, nominal_bytes: int | None = None) -> HeadOrder:
        """Return the decision for a head of a module that stays exact."""
        return cls(spec=HeadSpec(Exact()), error=0.0, reason=module.stays_exact, nominal_bytes=nominal_bytes)


class FlatOrder(Strict):
    """A decision in one record, as files of ``@1`` list heads and ``report.json`` repeats them.

    Absent options mean plain Taylor around zero; coefficients that are all 0 say that the far field is dropped.
    """

    order: Order | Literal["exact"]
    error: RelativeError | None = None
    expansion: Expansion = "zero"
    window: Window = 0
    sinks: Sinks = 0
    kept: Kept = 0
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
        near = Near(self.window, self.sinks, self.kept)
        spec = spec_of(self.order, self.expansion, self.ranks, self.coefficients, near)
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
            raise ValueError(
                "an exact head carries no expansion, window, sinks, ranks or coefficients, and no kept keys; remove "
                "them"
            )
        return HeadSpec(Exact())
    if coefficients is not None and len(coefficients) == order and not any(coefficients):
        return HeadSpec(Dropped(), near)
    return HeadSpec(Taylor(order, expansion, ranks, coefficients), near)


class ProbeText(Strict):
    """What the probes of a config were fitted on: where the text is from, how many tokens of it, and its SHA-256."""

    text: str
    tokens: Positive
    sha256: Sha256


class LayerShape(Strict):
    """KV heads of an attention module, and the dimension of its heads."""

    kv_heads: Positive
    head_dim: Positive


class LayerOrders(Strict):
    """The heads of one attention module, in order.

    ``shape`` stands where the module has another one than the model's typical module.
    """

    module: ModuleName
    heads: tuple[HeadOrder, ...]
    shape: LayerShape | None = None

    @classmethod
    def of(cls, module: AttentionModule, model: ModelDescription, heads: Sequence[HeadOrder]) -> LayerOrders:
        """Return the decisions for one module of a model."""
        typical = model.typical
        alike = all(getattr(module, size) == getattr(typical, size) for size in ("heads", "kv_heads", "head_dim"))
        shape = None if alike else LayerShape(kv_heads=module.kv_heads, head_dim=module.head_dim)
        return cls(module=module.name, heads=tuple(heads), shape=shape)


class ModelIdentity(Strict):
    """The model a config was made for; heads, KV heads and head dim are those of its typical module."""

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
        typical = model.typical
        return cls(
            name=model.name,
            architecture=model.architecture,
            layers=len(model.modules),
            heads=typical.heads,
            kv_heads=typical.kv_heads,
            head_dim=typical.head_dim,
            fingerprint=model.fingerprint,
        )


def groups_of(layer: LayerOrders, model: ModelIdentity) -> list[Sequence[HeadOrder]]:
    """Cut the decisions of a layer into those of each of its KV heads."""
    return grouped(layer.heads, shape_of(layer, model).kv_heads)


def shape_of(layer: LayerOrders, model: ModelIdentity) -> LayerShape:
    """The shape of a layer's module."""
    return layer.shape or LayerShape(kv_heads=model.kv_heads, head_dim=model.head_dim)


def check_ranks(module: str, head: int, spec: HeadSpec, head_dim: int) -> None:
    """Refuse ranks that do not fit the head dim d; degree 1 costs only d features, and keeps them all."""
    ranks = spec.ranks
    if ranks is None:
        return
    where = f"layer {module}, head {head}: ranks is {list(ranks)}"
    if max(ranks) > head_dim:
        raise ValueError(f"{where}, expected no rank above head_dim = {head_dim}")
    if len(ranks) > 1 and ranks[1] != head_dim:
        raise ValueError(f"{where}, expected head_dim = {head_dim} coordinates at degree 1, found {ranks[1]}")
