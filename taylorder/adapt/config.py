"""``OrderConfig``: which order each head runs at, and where that decision comes from (``orders.json``).

The file is JSON, validated by pydantic, with unknown keys, non-finite numbers and impossible orders refused. Tensors
(the mean key and the rotations of every KV head) live beside it in ``orders.safetensors``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator
from torch import nn

from taylorder.adapt.config_tensors import checked_centre, checked_rotations, read_tensors, write_tensors
from taylorder.errors import ConfigError
from taylorder.files import replacing
from taylorder.models import ModelDescription, describe, way_out_of_rounding

SCHEMA: Literal["taylorder/orders@1"] = "taylorder/orders@1"
MAX_ORDER = 8

Expansion = Literal["zero", "centre", "mean"]
Order = Annotated[int, Field(ge=1, le=MAX_ORDER, strict=True)]
Count = Annotated[int, Field(ge=0, strict=True)]


def _finite(value: Any) -> Any:
    """Refuse NaN and infinities anywhere inside free-form provenance."""
    match value:
        case float() if not math.isfinite(value):
            raise ValueError(f"found {value}, expected a finite number")
        case dict():
            for item in value.values():
                _finite(item)
        case list() | tuple():
            for item in value:
                _finite(item)
    return value


Provenance = Annotated[dict[str, Any], AfterValidator(_finite)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)


class HeadOrder(_Strict):
    """The decision for one query head; absent options mean plain Taylor around zero.

    ``error`` is the measured relative L2 error of the head's output (0 for exact, None if nothing was measured);
    ``reason`` says why a head is exact or what fixed its order; ``nominal_bytes`` and ``break_even`` describe the cache
    or state of its KV head, in bytes at the context the choice was made for, and in tokens.
    """

    order: Order | Literal["exact"]
    error: Annotated[float, Field(ge=0)] | None = None
    expansion: Expansion = "zero"
    window: Count = 0
    sinks: Count = 0
    ranks: tuple[Annotated[int, Field(ge=0, strict=True)], ...] | None = None
    coefficients: tuple[float, ...] | None = None
    reason: str | None = None
    nominal_bytes: Count | None = None
    break_even: Count | None = None

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


class LayerOrders(_Strict):
    """The heads of one attention module, in order."""

    module: str
    heads: tuple[HeadOrder, ...]


class ModelIdentity(_Strict):
    """The model a config was made for."""

    name: str
    architecture: str
    layers: Annotated[int, Field(ge=1)]
    heads: Annotated[int, Field(ge=1)]
    kv_heads: Annotated[int, Field(ge=1)]
    head_dim: Annotated[int, Field(ge=1)]
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


def _check_group(module: str, kv_head: int, heads: tuple[HeadOrder, ...]) -> None:
    """Refuse options that the heads sharing one KV head cannot have different (design section 2, "GQA")."""
    where = f"layer {module}, KV head {kv_head}"
    exact = [head.order == "exact" for head in heads]
    if any(exact) and not all(exact):
        raise ValueError(f"{where}: some heads are exact and some are not; the cache is shared, so all must be exact")
    if all(exact):
        return
    for option in ("window", "sinks"):
        found = sorted({getattr(head, option) for head in heads})
        if len(found) > 1:
            raise ValueError(f"{where}: {option} differs within the group ({found}); one value is expected")
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


def _check_ranks(module: str, head: int, ranks: tuple[int, ...] | None, head_dim: int) -> None:
    """Refuse ranks that do not fit the head dim d; degree 1 costs only d features, and keeps them all."""
    if ranks is None:
        return
    where = f"layer {module}, head {head}: ranks is {list(ranks)}"
    if max(ranks) > head_dim:
        raise ValueError(f"{where}, expected no rank above head_dim = {head_dim}")
    if len(ranks) > 1 and ranks[1] != head_dim:
        raise ValueError(f"{where}, expected head_dim = {head_dim} coordinates at degree 1, found {ranks[1]}")


class OrderConfig(_Strict):
    """The order of every head of one model, with its provenance. See the contract of ``orders.json``."""

    schema_: Literal["taylorder/orders@1"] = Field(default=SCHEMA, alias="schema")
    model: ModelIdentity
    calibration: Provenance = Field(default_factory=dict)
    criterion: Provenance = Field(default_factory=dict)
    software: Provenance = Field(default_factory=dict)
    layers: tuple[LayerOrders, ...]

    _key_centres: dict[str, torch.Tensor] = PrivateAttr(default_factory=dict)
    _rotations: dict[str, tuple[torch.Tensor, torch.Tensor]] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _complete(self) -> OrderConfig:
        model = self.model
        if len(self.layers) != model.layers:
            raise ValueError(f"{len(self.layers)} layers are listed, expected {model.layers}")
        if model.heads % model.kv_heads:
            raise ValueError(f"model.heads = {model.heads} is not a multiple of model.kv_heads = {model.kv_heads}")
        names = [layer.module for layer in self.layers]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"layer {repeated[0]} is listed twice")
        group = model.heads // model.kv_heads
        for layer in self.layers:
            if len(layer.heads) != model.heads:
                raise ValueError(f"layer {layer.module} lists {len(layer.heads)} heads, expected {model.heads}")
            for index, head in enumerate(layer.heads):
                _check_ranks(layer.module, index, head.ranks, model.head_dim)
            for kv_head in range(model.kv_heads):
                _check_group(layer.module, kv_head, layer.heads[kv_head * group : (kv_head + 1) * group])
        return self

    def __eq__(self, other: object) -> bool:
        """Same decisions, provenance and tensors."""
        if not isinstance(other, OrderConfig):
            return NotImplemented
        return self.model_dump() == other.model_dump() and _equal(self._tensors(), other._tensors())

    __hash__ = None  # type: ignore[assignment]  # provenance is a dict

    def _tensors(self) -> dict[str, tuple[torch.Tensor, ...]]:
        centres = {f"{module}.key_centre": (centre,) for module, centre in self._key_centres.items()}
        return centres | {f"{module}.rotations": pair for module, pair in self._rotations.items()}

    @property
    def key_centres(self) -> Mapping[str, torch.Tensor]:
        """Module name to the key centre of each KV head, float32 ``[G, d]``; empty if nothing was calibrated."""
        return self._key_centres

    def with_key_centres(self, centres: Mapping[str, torch.Tensor]) -> OrderConfig:
        """Return a copy that carries these key centres (module name to ``[G, d]``).

        Raises:
            ConfigError: a centre is missing, has the wrong shape or is not finite.

        """
        copy = self.model_copy()
        copy._key_centres = {
            layer.module: checked_centre(
                layer.module, centres.get(layer.module), self.model.kv_heads, self.model.head_dim
            )
            for layer in self.layers
        }
        return copy

    @property
    def rotations(self) -> Mapping[str, tuple[torch.Tensor, torch.Tensor]]:
        """Module name to ``A_q`` and ``A_k`` of each KV head, float32 ``[G, d, d]``; layers without ranks need none.

        Queries become ``q @ A_q.T`` and centred keys ``k @ A_k.T``.
        """
        return self._rotations

    def with_rotations(self, rotations: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> OrderConfig:
        """Return a copy that carries these rotations and no others (module name to ``A_q`` and ``A_k``).

        Raises:
            ConfigError: a layer is not in the config, a tensor has the wrong shape or is not finite, or ``A_q^T A_k``
                is not the identity.

        """
        unknown = sorted(rotations.keys() - {layer.module for layer in self.layers})
        if unknown:
            raise ConfigError(f"rotations are given for layer {unknown[0]}, which the config does not list")
        copy = self.model_copy()
        copy._rotations = {
            module: checked_rotations(module, pair, self.model.kv_heads, self.model.head_dim)
            for module, pair in rotations.items()
        }
        return copy

    @classmethod
    def uniform(
        cls,
        model: ModelDescription | nn.Module,
        order: int | Literal["exact"],
        expansion: Expansion = "zero",
        window: int = 0,
        sinks: int = 0,
        key_centres: Mapping[str, torch.Tensor] | None = None,
    ) -> OrderConfig:
        """Return a config with the same decision for every head, except that sliding-window layers stay exact.

        Args:
            model: the model, or its description (``taylorder.describe``).
            order: 1 … 8, or ``"exact"``.
            expansion: ``zero`` is the paper's; ``centre`` needs ``key_centres``; ``mean`` does not depend on them.
            window: last keys that keep the true exponential.
            sinks: first keys that keep the true exponential.
            key_centres: calibrated mean keys, as in ``Analysis.key_centres``.

        Raises:
            ConfigError: the options contradict each other or are out of range.

        """
        model = described(model)
        if expansion == "centre" and order != "exact" and key_centres is None:
            raise ConfigError("expansion 'centre' needs key_centres (Analysis.key_centres); 'mean' works without them")
        exact = HeadOrder(order="exact", error=0.0, reason="sliding")
        if order == "exact":
            exact = chosen = HeadOrder(order="exact", error=0.0)
        else:
            try:
                chosen = HeadOrder(order=order, expansion=expansion, window=window, sinks=sinks)
            except ValidationError as error:
                raise ConfigError(f"uniform config: {_explain(error)}") from error
        config = cls(
            model=ModelIdentity.of(model),
            calibration={"dtype": model.dtype},
            criterion={"policy": "uniform"},
            layers=tuple(
                LayerOrders(
                    module=module.name,
                    heads=(chosen if module.sliding_window is None else exact,) * module.heads,
                )
                for module in model.modules
            ),
        )
        return config if key_centres is None else config.with_key_centres(key_centres)

    @classmethod
    def load(cls, path: str | Path, model: ModelDescription | nn.Module | None = None) -> OrderConfig:
        """Read ``orders.json`` and the tensors beside it, and check them (against ``model`` too, if given).

        Raises:
            ConfigError: the file is missing, malformed, of another schema, or does not belong to ``model``.

        """
        path = Path(path)
        try:
            document = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
        except FileNotFoundError:
            raise ConfigError(f"{path} does not exist; `taylorder analyze` writes one") from None
        except (OSError, UnicodeDecodeError, ValueError) as error:
            raise ConfigError(f"{path} cannot be read as JSON: {error}") from error
        if not isinstance(document, dict):
            raise ConfigError(f"{path} holds a {type(document).__name__}, expected an object with schema '{SCHEMA}'")
        if document.get("schema") != SCHEMA:
            raise ConfigError(f"{path} has schema {document.get('schema')!r}, this version reads '{SCHEMA}'")
        try:
            config = cls.model_validate(document)
        except ValidationError as error:
            raise ConfigError(f"{path}: {_explain(error)}") from error
        tensors = path.with_suffix(".safetensors")
        if tensors.exists():
            try:
                centres, rotations = read_tensors(tensors)
                config = config.with_rotations(rotations)
                if centres or not rotations:  # expansion 'mean' has rotations without centres
                    config = config.with_key_centres(centres)
            except ConfigError as error:
                raise ConfigError(f"{tensors}: {error}") from error
        if model is not None:
            config.check(model)
        return config

    def save(self, path: str | Path) -> None:
        """Write ``orders.json`` (and ``orders.safetensors`` if there are tensors), each by rename, never half."""
        path = Path(path)
        write_tensors(path.with_suffix(".safetensors"), self._key_centres, self._rotations)
        document = {
            "schema": self.schema_,
            **self.model_dump(mode="json", include={"model", "calibration", "criterion", "software"}),
            "layers": [layer.model_dump(mode="json", exclude_defaults=True) for layer in self.layers],
        }
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")

    def check(self, model: ModelDescription | nn.Module) -> None:
        """Refuse a model this config was not made for, in one sentence that says what differs.

        Raises:
            ConfigError: architecture, shape, module names or weights differ, or a layer lacks the key centres or
                rotations that its heads need.

        """
        model = described(model)
        there = ModelIdentity.of(model)
        for name in ("architecture", "layers", "heads", "kv_heads", "head_dim"):
            expected, found = getattr(self.model, name), getattr(there, name)
            if expected != found:
                raise ConfigError(f"the config was made for {name} = {expected}, the model has {name} = {found}")
        for layer, module in zip(self.layers, model.modules, strict=True):
            if layer.module != module.name:
                raise ConfigError(f"the config lists layer {layer.module} where the model has {module.name}")
            if any(head.ranks is not None for head in layer.heads) and layer.module not in self._rotations:
                raise ConfigError(
                    f"layer {layer.module} has ranks and no rotations; copy the config's orders.safetensors beside it, "
                    "attach balanced_rotations of this layer with with_rotations, or remove the ranks"
                )
            if any(head.expansion == "centre" for head in layer.heads) and not self._key_centres:
                raise ConfigError(
                    f"layer {layer.module}: expansion 'centre' needs key centres, and there is no orders.safetensors "
                    "beside the config; copy it there, or use 'mean'"
                )
            if module.sliding_window is not None and any(head.order != "exact" for head in layer.heads):
                raise ConfigError(
                    f"layer {layer.module} attends to a sliding window of {module.sliding_window} tokens and stays as "
                    "it is, but the config gives it an order; expected every head 'exact'"
                )
            if not module.causal and any(head.window or head.sinks for head in layer.heads):
                raise ConfigError(
                    f"layer {layer.module} is bidirectional and has no near field, but the config asks for one"
                )
        if self.model.fingerprint != there.fingerprint:
            remedy = way_out_of_rounding(self.calibration.get("dtype"), model.dtype)
            raise ConfigError(
                f"the config was made for weights {self.model.fingerprint} ({self.model.name}), "
                f"the model has {there.fingerprint} ({there.name}); "
                f"{remedy or 'run `taylorder analyze` on this model'}"
            )


def described(model: ModelDescription | nn.Module) -> ModelDescription:
    """Return the description of a model, or the description it already is."""
    return model if isinstance(model, ModelDescription) else describe(model)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"found {name}, expected a finite number")


def _explain(error: ValidationError) -> str:
    """Say the first thing pydantic found wrong, with its place, in one sentence."""
    first = error.errors()[0]
    place = ".".join(
        str(part) for part in first["loc"] if not str(part).startswith(("literal", "constrained", "function"))
    )
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "unknown key; remove it, or upgrade taylorder if a newer version wrote it"
    elif first["type"] != "value_error":
        message = f"{message}, found {first['input']!r}"
    return f"{place}: {message}" if place else message


def _equal(ours: dict[str, tuple[torch.Tensor, ...]], theirs: dict[str, tuple[torch.Tensor, ...]]) -> bool:
    return ours.keys() == theirs.keys() and all(
        torch.equal(one, other) for name in ours for one, other in zip(ours[name], theirs[name], strict=True)
    )
