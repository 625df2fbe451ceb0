"""``orders.json``: the file form of a config, schema ``taylorder/orders@2``, and the way there and back.

In the file what the heads of a group share stands once, at their KV head, and what a KV head runs has a name. Every key
but ``context`` and ``probe`` is written; absent options of a head mean plain Taylor. Files of ``@1`` list heads one by
one, in the form they have in memory.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from taylorder.adapt.decisions import (
    Coefficients,
    FlatOrder,
    HeadOrder,
    Kept,
    LayerOrders,
    LayerShape,
    ModelIdentity,
    ModuleName,
    Order,
    Positive,
    ProbeText,
    Provenance,
    Ranks,
    RelativeError,
    Sha256,
    Sinks,
    Size,
    Strict,
    Window,
    groups_of,
    spec_of,
)
from taylorder.kernels.spec import Dropped, Exact, Expansion, HeadSpec, Near, Taylor, deepest
from taylorder.storage.strict_json import brief

SCHEMA: Literal["taylorder/orders@2"] = "taylorder/orders@2"
FIRST_SCHEMA = "taylorder/orders@1"

Runs = Literal["exact", "window", "taylor"]
FileName = Annotated[str, Field(pattern=r"^[^/\x00]+\.safetensors$")]

_SHARED = {"bytes": "nominal_bytes", "break_even": "break_even", "reason": "reason"}
"""Key in the file and name in memory of what stands at the KV head if its heads agree, and at each head otherwise."""


class HeadEntry(Strict):
    """One query head; ``order`` is null where nothing but the near field runs."""

    order: Order | Literal["exact"] | None
    error: RelativeError | None = None
    expansion: Expansion = "zero"
    coefficients: Coefficients | None = None
    bytes: Size | None = None
    break_even: Size | None = None
    reason: str | None = None


class KvHeadEntry(Strict):
    """One KV head; ``ranks`` are those of its highest order, ``window`` and ``sinks`` stand unless it is exact.

    ``kept`` stands where keys are kept by priority.
    """

    runs: Runs
    window: Window | None = None
    sinks: Sinks | None = None
    kept: Kept | None = None
    ranks: Ranks | None = None
    bytes: Size | None = None
    break_even: Size | None = None
    reason: str | None = None
    heads: Annotated[tuple[HeadEntry, ...], Field(min_length=1)]

    @classmethod
    def of(cls, heads: Sequence[HeadOrder]) -> KvHeadEntry:
        """Return the entry of a KV head from the decisions for its query heads."""
        first, specs = heads[0], [head.spec for head in heads]
        longest = deepest(specs)
        near = (
            {}
            if isinstance(first.spec.far, Exact)
            else asdict(first.spec.near) | {"kept": first.spec.near.kept or None}
        )
        shared = {key: name for key, name in _SHARED.items() if len({getattr(head, name) for head in heads}) == 1}
        entries = []
        for head in heads:
            options = {key: getattr(head, name) for key, name in _SHARED.items() if key not in shared}
            match head.spec.far:
                case Taylor(order=order, expansion=expansion, coefficients=coefficients):
                    options |= {"order": order, "expansion": expansion, "coefficients": coefficients}
                case Exact() | Dropped() as far:
                    options["order"] = "exact" if isinstance(far, Exact) else None
            entries.append(HeadEntry(error=head.error, **options))
        return cls(
            runs=_runs(entries),
            **near,
            ranks=None if longest is None else longest.ranks,
            heads=tuple(entries),
            **{key: getattr(first, name) for key, name in shared.items()},
        )

    def orders(self) -> tuple[HeadOrder, ...]:
        """Return the decisions for its query heads.

        Raises:
            ValueError: the entry contradicts itself.

        """
        runs = _runs(self.heads)
        if self.runs != runs:
            raise ValueError(f"runs is {self.runs!r}, and the orders of its heads ask for {runs!r}")
        for name in ("window", "sinks"):
            if getattr(self, name) is None and runs != "exact":
                raise ValueError(f"{name} is None; expected a number of tokens")
        for name in ("window", "sinks", "kept"):
            value = getattr(self, name)
            if value is not None and runs == "exact":
                raise ValueError(f"{name} is {value}; an exact KV head has none; remove it")
        for key in _SHARED:
            if getattr(self, key) is not None and any(getattr(head, key) is not None for head in self.heads):
                raise ValueError(f"{key} stands at the KV head and at one of its heads; one of the two is expected")
        near = Near(self.window or 0, self.sinks or 0, self.kept or 0)
        return tuple(self._order(head, near) for head in self.heads)

    def _order(self, head: HeadEntry, near: Near) -> HeadOrder:
        order, coefficients, ranks = head.order, head.coefficients, self.ranks
        if coefficients is not None and (order is None) == any(coefficients):
            raise ValueError(
                f"order is {json.dumps(order)} and coefficients are {brief(list(coefficients))}; order is null "
                "where all of them are 0, so that nothing but the near field runs, and nowhere else"
            )
        if order is None:
            spec = HeadSpec(Dropped(), near)
        else:
            ranks = ranks if ranks is None or order == "exact" else ranks[:order]
            spec = spec_of(order, head.expansion, ranks, coefficients, near)
        owners = {key: head if getattr(self, key) is None else self for key in _SHARED}
        about = {name: getattr(owners[key], key) for key, name in _SHARED.items()}
        return HeadOrder(spec=spec, error=head.error, **about)

    @model_validator(mode="after")
    def _agrees(self) -> KvHeadEntry:
        longest = deepest([head.spec for head in self.orders()])
        highest = 0 if longest is None else longest.order
        if self.ranks is not None and len(self.ranks) != highest:
            raise ValueError(
                f"ranks has {len(self.ranks)} entries, expected one per degree of the highest order: {highest}"
            )
        return self


class LayerEntry(Strict):
    """The KV heads of one attention module, in order; ``shape`` where it is not that of the model."""

    module: ModuleName
    shape: LayerShape | None = None
    kv_heads: tuple[KvHeadEntry, ...]


class OrdersFile(Strict):
    """The whole document."""

    schema_: Literal["taylorder/orders@2"] = Field(alias="schema")
    summary: str
    context: Positive | None = None
    probe: ProbeText | None = None
    model: ModelIdentity
    files: Annotated[dict[FileName, Sha256], Field(max_length=1)]
    calibration: Provenance
    criterion: Provenance
    software: Provenance
    layers: tuple[LayerEntry, ...]

    @model_validator(mode="after")
    def _complete(self) -> OrdersFile:
        model = self.model
        for layer in self.layers:
            expected = model.kv_heads if layer.shape is None else layer.shape.kv_heads
            if len(layer.kv_heads) != expected:
                raise ValueError(f"layer {layer.module} lists {len(layer.kv_heads)} KV heads, expected {expected}")
            group = model.heads / model.kv_heads if layer.shape is None else len(layer.kv_heads[0].heads)
            for index, kv_head in enumerate(layer.kv_heads):
                if len(kv_head.heads) != group:
                    raise ValueError(
                        f"layer {layer.module}, KV head {index} lists {len(kv_head.heads)} heads, expected {group:g}"
                    )
        if self.context is not None and self.context != context_of(self.criterion):
            raise ValueError(
                f"context is {self.context} and criterion.context is {brief(self.criterion.get('context'))}; "
                "expected the same twice, or no context"
            )
        return self


class FirstLayer(Strict):
    """The heads of one attention module in a file of ``@1``."""

    module: ModuleName
    heads: tuple[FlatOrder, ...]


class FirstFile(Strict):
    """A whole document of ``@1``."""

    schema_: Literal["taylorder/orders@1"] = Field(alias="schema")
    model: ModelIdentity
    calibration: Provenance = Field(default_factory=dict)
    criterion: Provenance = Field(default_factory=dict)
    software: Provenance = Field(default_factory=dict)
    layers: tuple[FirstLayer, ...]


def fields_of(document: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str] | None]:
    """Return the fields of an ``OrderConfig`` from a document, and the SHA-256 of the files that belong to it by name.

    Files of ``@1`` name none: whatever lies beside them is theirs, and None is returned.

    Raises:
        ValueError: the schema is another, or the document is not one of its schema.

    """
    if document.get("schema") == FIRST_SCHEMA:
        first = FirstFile.model_validate(document)
        layers = tuple(
            LayerOrders(module=layer.module, heads=tuple(head.decision() for head in layer.heads))
            for layer in first.layers
        )
        return {**_about(first), "layers": layers}, None
    if document.get("schema") != SCHEMA:
        raise ValueError(
            f"has schema {brief(document.get('schema'))}, this version reads '{SCHEMA}' and '{FIRST_SCHEMA}'"
        )
    file = OrdersFile.model_validate(document)
    layers = tuple(
        LayerOrders(
            module=layer.module,
            heads=tuple(chain.from_iterable(entry.orders() for entry in layer.kv_heads)),
            shape=layer.shape,
        )
        for layer in file.layers
    )
    return {**_about(file), "probe": file.probe, "layers": layers}, file.files


def _about(file: OrdersFile | FirstFile) -> dict[str, Any]:
    return {name: getattr(file, name) for name in ("model", "calibration", "criterion", "software")}


def document_of(fields: Mapping[str, Any], files: Mapping[str, str]) -> dict[str, Any]:
    """Return the document of a config, given its fields and its companion ``files``, by name with their SHA-256."""
    model, criterion = fields["model"], fields["criterion"]
    layers = tuple(
        LayerEntry(
            module=layer.module,
            shape=layer.shape,
            kv_heads=tuple(KvHeadEntry.of(heads) for heads in groups_of(layer, model)),
        )
        for layer in fields["layers"]
    )
    file = OrdersFile(
        schema=SCHEMA,
        context=context_of(criterion),
        probe=fields["probe"],
        summary=_summary(model, context_of(criterion), layers),
        model=model,
        files=dict(files),
        calibration=fields["calibration"],
        criterion=criterion,
        software=fields["software"],
        layers=layers,
    )
    return file.model_dump(mode="json", by_alias=True, exclude_defaults=True)


def as_text(document: Mapping[str, Any]) -> str:
    """Serialise a document with one KV head per line."""
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in document.items() if key != "layers"]
    layers = []
    for layer in document["layers"]:
        entries = ",\n".join(f"   {json.dumps(entry)}" for entry in layer["kv_heads"])
        about = ", ".join(f"{json.dumps(key)}: {json.dumps(layer[key])}" for key in ("module", "shape") if key in layer)
        layers.append(f'  {{{about}, "kv_heads": [\n{entries}\n  ]}}')
    return "{\n" + ",\n".join(lines) + ',\n "layers": [\n' + ",\n".join(layers) + "\n ]\n}\n"


def _runs(heads: Sequence[HeadEntry]) -> Runs:
    """What a KV head runs that has these query heads."""
    exact = [head.order == "exact" for head in heads]
    if any(exact):
        if not all(exact):
            raise ValueError("some heads are exact and some are not; the cache is shared, so all must be exact")
        return "exact"
    return "window" if all(head.order is None for head in heads) else "taylor"


def context_of(criterion: Mapping[str, Any]) -> int | None:
    """The tokens that bytes were counted at, where whatever chose the config says so."""
    context = criterion.get("context")
    return context if type(context) is int and 1 <= context <= 2**31 else None


def _summary(model: ModelIdentity, context: int | None, layers: Sequence[LayerEntry]) -> str:
    kv_heads = [entry for layer in layers for entry in layer.kv_heads]
    runs = Counter(entry.runs for entry in kv_heads)
    orders = Counter(head.order for entry in kv_heads for head in entry.heads if isinstance(head.order, int))
    at = ", ".join(f"{count} at order {order}" for order, count in sorted(orders.items()))
    words: dict[Runs, str] = {
        "exact": "run exact attention",
        "window": "keep a near field and drop all other keys",
        "taylor": f"read all other keys than their near field from a Taylor polynomial (query heads: {at})",
    }
    parts = ", ".join(f"{runs[kind]} {words[kind]}" for kind in words if runs[kind])
    keeping = [entry.kept for entry in kv_heads if entry.kept]
    kept = f", with {sum(keeping):,} kept keys in {len(keeping)} of them" if keeping else ""
    length = "" if context is None else f", chosen for a context of {context:,} tokens"
    return f"{len(kv_heads)} KV heads of {model.name}: {parts}{kept}{length}."
