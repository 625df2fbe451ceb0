"""``OrderConfig``: which order each head runs at, and where that decision comes from (``orders.json``).

The form of the file is that of :mod:`taylorder.adapt.config_file`. Tensors (mean key, rotations and probe of every KV
head) live beside it in ``orders.safetensors``; the file names them by their hash, so that they are those of no other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field, PrivateAttr, ValidationError, model_validator
from torch import nn

from taylorder.adapt.config_file import SCHEMA, as_text, context_of, document_of, fields_of
from taylorder.adapt.config_tensors import (
    checked_centre,
    checked_probe,
    checked_rotations,
    companion,
    content_of,
    located,
    read_tensors,
)
from taylorder.adapt.decisions import (
    FlatOrder,
    HeadOrder,
    LayerOrders,
    LayerShape,
    ModelIdentity,
    ProbeText,
    Provenance,
    Strict,
    check_ranks,
    groups_of,
    shape_of,
)
from taylorder.adapt.probe import probe_width
from taylorder.errors import ConfigError, MissingConfigError
from taylorder.kernels.spec import Exact, Expansion, HeadSpec, Taylor, check_group, keeps_keys
from taylorder.models.describe import describe
from taylorder.models.description import AttentionModule, ModelDescription
from taylorder.models.fingerprint import way_out_of_rounding
from taylorder.models.inputs import Inputs
from taylorder.storage.files import replacing, sha256
from taylorder.storage.frames import as_html, frame
from taylorder.storage.strict_json import brief, explain, in_line, read_json

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["HeadOrder", "LayerOrders", "ModelIdentity", "OrderConfig", "described"]

_SHOWN = len("sha256:") + 12
"""Characters of a fingerprint that a message repeats."""


class OrderConfig(Strict):
    """The order of every head of one model, with its provenance: what ``orders.json`` holds.

    >>> import taylorder
    >>> loaded = taylorder.load()
    >>> config = taylorder.OrderConfig.uniform(loaded.model, order=3, expansion="mean", window=64, sinks=4)
    >>> config
    <OrderConfig for smollm2-135m: ... layers x ... heads; ... order 3>
    >>> config.save("orders.json")
    >>> taylorder.OrderConfig.load("orders.json", loaded.model) == config  # refused for any other weights
    True
    """

    model: ModelIdentity
    calibration: Provenance = Field(default_factory=dict)
    criterion: Provenance = Field(default_factory=dict)
    software: Provenance = Field(default_factory=dict)
    probe: ProbeText | None = None
    layers: tuple[LayerOrders, ...]

    _key_centres: dict[str, torch.Tensor] = PrivateAttr(default_factory=dict)
    _rotations: dict[str, tuple[torch.Tensor, torch.Tensor]] = PrivateAttr(default_factory=dict)
    _probes: dict[str, torch.Tensor] = PrivateAttr(default_factory=dict)

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
        for layer in self.layers:
            if layer.shape is None and len(layer.heads) != model.heads:
                raise ValueError(f"layer {layer.module} lists {len(layer.heads)} heads, expected {model.heads}")
            for index, head in enumerate(layer.heads):
                check_ranks(layer.module, index, head.spec, shape_of(layer, model).head_dim)
            for kv_head, group in enumerate(groups_of(layer, model)):
                check_group(f"layer {layer.module}, KV head {kv_head}", [head.spec for head in group])
        return self

    def __eq__(self, other: object) -> bool:
        """Same decisions, provenance and tensors."""
        if not isinstance(other, OrderConfig):
            return NotImplemented
        return vars(self) == vars(other) and _equal(self.tensors(), other.tensors())

    __hash__ = None  # type: ignore[assignment]  # provenance is a dict

    @property
    def context(self) -> int | None:
        """The tokens that the config was chosen for and its bytes are counted at; None if nothing says so."""
        return context_of(self.criterion)

    def tensors(self) -> dict[str, tuple[torch.Tensor, ...]]:
        """Everything beside the decisions that changes what the model computes, by module and kind."""
        tensors: dict[str, tuple[torch.Tensor, ...]] = {}
        tensors |= {f"{module}.key_centre": (centre,) for module, centre in self._key_centres.items()}
        tensors |= {f"{module}.rotations": pair for module, pair in self._rotations.items()}
        return tensors | {f"{module}.probe": (probe,) for module, probe in self._probes.items()}

    @property
    def key_centres(self) -> Mapping[str, torch.Tensor]:
        """Module name to the key centre of each KV head, float32 ``[G, d]``; empty if nothing was calibrated."""
        return self._key_centres

    def with_key_centres(self, centres: Mapping[str, torch.Tensor]) -> OrderConfig:
        """Return a copy that carries these key centres (module name to ``[G, d]``).

        Raises:
            ConfigError: a centre is missing, has the wrong shape or type or is not finite, or is of a layer that the
                config does not list.

        """
        self._refuse_unlisted("key centres", centres)
        copy = self.model_copy()
        copy._key_centres = {}
        for layer in self.layers:
            shape, centre = shape_of(layer, self.model), centres.get(layer.module)
            copy._key_centres[layer.module] = checked_centre(layer.module, centre, shape.kv_heads, shape.head_dim)
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
            ConfigError: a layer is not in the config, a tensor has the wrong shape or type or is not finite, or
                ``A_q^T A_k`` is not the identity.

        """
        self._refuse_unlisted("rotations", rotations)
        copy, shapes = self.model_copy(), self._shapes()
        copy._rotations = {
            module: checked_rotations(module, pair, shapes[module].kv_heads, shapes[module].head_dim)
            for module, pair in rotations.items()
        }
        return copy

    @property
    def probes(self) -> Mapping[str, torch.Tensor]:
        """Module name to the probe of each KV head, float32 ``[G, F]``; layers that keep no keys need none.

        It gives keys their priorities, see :mod:`taylorder.adapt.probe`; ``probe`` says what it was fitted on.
        """
        return self._probes

    def with_probes(
        self, probes: Mapping[str, torch.Tensor], about: ProbeText | Mapping[str, Any] | None
    ) -> OrderConfig:
        """Return a copy that carries these probes and no others.

        Args:
            probes: module name to ``[G, F]``.
            about: what they were fitted on, ``{"text": its source, "tokens": how many, "sha256": of the text}``; None
                where there are none.

        Raises:
            ConfigError: a layer is not in the config, a probe has the wrong shape or type or is not finite, or it is
                not said what they were fitted on.

        """
        self._refuse_unlisted("probes", probes)
        if (about is None) != (not probes):
            raise ConfigError(
                f"there are probes of {len(probes)} layers, and the text that they were fitted on is "
                f"{brief(about)}; expected both, or neither (orders.json has that text as 'probe')"
            )
        try:
            text = None if about is None else ProbeText.model_validate(about)
        except ValidationError as error:
            raise ConfigError(f"probe: {explain(error)}") from error
        copy, shapes = self.model_copy(update={"probe": text}), self._shapes()
        copy._probes = {
            module: checked_probe(module, probe, shapes[module].kv_heads, shapes[module].head_dim)
            for module, probe in probes.items()
        }
        return copy

    def _shapes(self) -> dict[str, LayerShape]:
        return {layer.module: shape_of(layer, self.model) for layer in self.layers}

    def _refuse_unlisted(self, what: str, tensors: Mapping[str, object]) -> None:
        unknown = sorted(tensors.keys() - {layer.module for layer in self.layers})
        if unknown:
            raise ConfigError(f"{what} are given for layer {in_line(unknown[0])}, which the config does not list")

    @classmethod
    def uniform(
        cls,
        model: ModelDescription | nn.Module,
        order: int | Literal["exact"],
        expansion: Expansion = "zero",
        window: int = 0,
        sinks: int = 0,
        key_centres: Mapping[str, torch.Tensor] | None = None,
        kept: int = 0,
        probes: Mapping[str, torch.Tensor] | None = None,
        probe: ProbeText | Mapping[str, Any] | None = None,
    ) -> OrderConfig:
        """Return a config with the same decision for every head, except in layers that have to stay exact.

        Args:
            model: the model, or its description (``taylorder.describe``).
            order: 1 … 8, or ``"exact"``.
            expansion: ``zero`` is the paper's; ``centre`` needs ``key_centres``; ``mean`` does not depend on them.
            window: last keys that keep the true exponential.
            sinks: first keys that keep the true exponential.
            key_centres: calibrated mean keys, as in ``Analysis.key_centres``.
            kept: keys that keep the true exponential by their priority, beside those; needs ``probes``.
            probes: calibrated probes, as in :attr:`OrderConfig.probes`.
            probe: what they were fitted on, as in :meth:`with_probes`.

        Raises:
            ConfigError: the options contradict each other or are out of range.

        """
        model = described(model)
        if expansion == "centre" and order != "exact" and key_centres is None:
            raise ConfigError("expansion 'centre' needs key_centres (Analysis.key_centres); 'mean' works without them")
        if kept and order != "exact" and not probes:
            raise ConfigError(
                f"kept is {kept} and there are no probes to say which keys; expected those of a config that keeps keys "
                "(OrderConfig.probes)"
            )
        chosen = HeadOrder(spec=HeadSpec(Exact()), error=0.0)
        if order != "exact":
            try:
                chosen = FlatOrder(order=order, expansion=expansion, window=window, sinks=sinks, kept=kept).decision()
            except ValidationError as error:
                raise ConfigError(f"uniform config: {explain(error)}") from error
        layers = []
        for module in model.modules:
            takes = order == "exact" or module.stays_exact is None
            layers.append(
                LayerOrders.of(module, model, [chosen if takes else HeadOrder.staying(module)] * module.heads)
            )
        config = cls(
            model=ModelIdentity.of(model),
            calibration={"dtype": model.dtype},
            criterion={"policy": "uniform"},
            layers=tuple(layers),
        )
        config = config if key_centres is None else config.with_key_centres(key_centres)
        return config.with_probes(probes, probe) if probes else config

    @classmethod
    def load(cls, path: str | Path, model: ModelDescription | nn.Module | None = None) -> OrderConfig:
        """Read ``orders.json`` and the tensors beside it, and check them (against ``model`` too, if given).

        Raises:
            ConfigError: the file or one that it names is missing, malformed, of another schema, or does not belong to
                ``model``, or the tensors beside it are those of another config.

        """
        path = Path(path)
        try:
            document = read_json(path)
        except FileNotFoundError:
            raise MissingConfigError(f"{path} does not exist; `taylorder analyze` writes one") from None
        except OSError as error:
            raise ConfigError(f"{path} cannot be read ({error.strerror}); name an orders.json") from error
        except ValueError as error:
            raise ConfigError(
                f"{path} cannot be read as JSON: {error}; mend it there (JSON knows no comments, and no comma before a "
                "closing bracket), or name an orders.json"
            ) from error
        if not isinstance(document, dict):
            raise ConfigError(f"{path} holds a {type(document).__name__}, expected an object with schema '{SCHEMA}'")
        try:
            fields, files = fields_of(document)
            config = cls.model_validate(fields)
        except ValidationError as error:
            raise ConfigError(f"{path}: {explain(error)}") from error
        except ValueError as error:
            raise ConfigError(f"{path} {error}") from error
        beside = located(path, files)
        try:
            centres, rotations, probes = ({}, {}, {}) if beside is None else read_tensors(*beside)
            config = config.with_rotations(rotations).with_probes(probes, config.probe)
            if centres or not (beside is None or rotations or probes):  # these may stand alone, nothing may not
                config = config.with_key_centres(centres)
        except ConfigError as error:
            raise ConfigError(f"{path if beside is None else beside[0]}: {error}") from error
        if model is not None:
            config.check(model)
        return config

    def save(self, path: str | Path) -> None:
        """Write ``orders.json``, and ``orders.safetensors`` if there are tensors: never half, never of two configs.

        Raises:
            ConfigError: the file that the tensors would replace is not one of a config.

        """
        path = Path(path)
        beside = companion(path)
        content = content_of(self._key_centres, self._rotations, self._probes)
        text = as_text(document_of(dict(self), {} if content is None else {beside.name: sha256(content)}))
        if content is None:
            with replacing(path) as document:
                document.write_text(text, encoding="utf-8")
            beside.unlink(missing_ok=True)
            return
        # The document appears first: if the tensors do not follow, its hash tells those of another config from its own.
        with replacing(beside) as tensors, replacing(path) as document:
            tensors.write_bytes(content)
            document.write_text(text, encoding="utf-8")

    def check(self, model: ModelDescription | nn.Module) -> None:
        """Refuse a model this config was not made for, in one sentence that says what differs.

        Raises:
            ConfigError: architecture, shape, module names or weights differ, or a layer lacks the key
                centres, rotations or probe that its heads need.

        """
        model = described(model)
        there = ModelIdentity.of(model)
        for name in ("architecture", "layers", "heads", "kv_heads", "head_dim"):
            expected, found = getattr(self.model, name), getattr(there, name)
            if expected != found:
                raise ConfigError(
                    f"the config was made for {self.model.name}, with {name} = {expected}, and the model is "
                    f"{there.name}, with {name} = {found}; name the model it was made for, or run `taylorder analyze` "
                    "on this model"
                )
        for layer, module in zip(self.layers, model.modules, strict=True):
            if layer.module != module.name:
                raise ConfigError(f"the config lists layer {layer.module} where the model has {module.name}")
            specs = [head.spec for head in layer.heads]
            if any(spec.ranks is not None for spec in specs) and layer.module not in self._rotations:
                raise ConfigError(
                    f"layer {layer.module} has ranks and no rotations; copy the config's orders.safetensors beside it, "
                    "attach balanced_rotations of this layer with with_rotations, or remove the ranks"
                )
            if keeps_keys(specs):
                self._check_probe(module)
            if any(isinstance(s.far, Taylor) and s.far.expansion == "centre" for s in specs) and not self._key_centres:
                raise ConfigError(
                    f"layer {layer.module}: expansion 'centre' needs key centres, and there is no orders.safetensors "
                    "beside the config; copy it there, or use 'mean'"
                )
            if (expected_shape := LayerOrders.of(module, model, ()).shape) != layer.shape:
                raise ConfigError(
                    f"the config says that layer {layer.module} has {layer.shape or 'the shape of the others'}, and in "
                    f"the model it has {expected_shape or 'the shape of the others'}; run `taylorder analyze` on this "
                    "model"
                )
            if module.stays_exact is not None and not all(isinstance(spec.far, Exact) for spec in specs):
                raise ConfigError(
                    f"layer {layer.module} {module.why_exact()} and stays as it is, but the config gives it an order; "
                    "expected every head 'exact'"
                )
            if not module.causal and any(spec.near.tokens for spec in specs):
                raise ConfigError(
                    f"layer {layer.module} is bidirectional and has no near field, but the config asks for one"
                )
        if self.model.fingerprint != there.fingerprint:
            remedy = way_out_of_rounding(self.calibration.get("dtype"), model.dtype)
            raise ConfigError(
                f"the config was made for weights {self.model.fingerprint[:_SHOWN]} ({self.model.name}), the model has "
                f"{there.fingerprint[:_SHOWN]} ({there.name}); "
                f"{remedy or 'name the model it was made for, or run `taylorder analyze` on this model'}"
            )

    def _check_probe(self, module: AttentionModule) -> None:
        """Refuse a layer that keeps keys without a probe for keys and values like its own."""
        probe, width = self._probes.get(module.name), probe_width(module.head_dim, module.value_dim)
        if probe is None:
            raise ConfigError(
                f"layer {module.name} keeps keys and has no probe; copy the config's orders.safetensors beside it, "
                "attach a probe of this layer with with_probes, or set kept to 0"
            )
        if probe.shape[-1] != width:
            raise ConfigError(
                f"layer {module.name} has a probe of {probe.shape[-1]} features, expected {width} for keys of "
                f"{module.head_dim} and values of {module.value_dim} numbers; fit it on this model"
            )

    def counts(self) -> dict[str, int]:
        """Heads by what they run: ``exact``, ``order N``, or what alone is near where far keys are dropped."""
        kinds = Counter(_kind(head.spec) for layer in self.layers for head in layer.heads)
        return dict(sorted(kinds.items()))

    def __repr__(self) -> str:
        """One line; ``layers`` has the rest."""
        heads = ", ".join(f"{count} {kind}" for kind, count in self.counts().items())
        return f"<OrderConfig for {self.model.name}: {self.model.layers} layers x {self.model.heads} heads; {heads}>"

    __str__ = __repr__

    def __rich_repr__(self) -> None:  # type: ignore[override]
        """Have rich print that line as well."""

    def _repr_html_(self) -> str:
        return as_html(self)

    def to_frame(self) -> DataFrame:
        """One row per head: its module and number, and what was decided for it, by the names that ``orders.json`` has.

        >>> config.to_frame().query("runs == 'taylor'").order.unique().tolist()
        [3]
        """
        return frame(
            {"module": layer.module, "head": number, **_cells(head)}
            for layer in self.layers
            for number, head in enumerate(layer.heads)
        )


def _kind(spec: HeadSpec) -> str:
    match spec.far:
        case Exact():
            return "exact"
        case Taylor(order=order):
            return f"order {order}"
    return "window and kept keys" if spec.near.kept else "window only"


def _cells(head: HeadOrder) -> dict[str, Any]:
    """A decision as cells of a table: what runs first."""
    cells = FlatOrder.of(head).model_dump()
    if head.spec.runs != "taylor":  # the record says exact and dropped in the place of an order and of coefficients
        cells |= dict.fromkeys(("order", "expansion", "coefficients"))
    return {"runs": head.spec.runs, **cells}


def described(model: ModelDescription | nn.Module, inputs: Inputs | None = None) -> ModelDescription:
    """Return the description of a model, run on ``inputs`` if there are any, or the description it already is."""
    return model if isinstance(model, ModelDescription) else describe(model, inputs=inputs)


def _equal(ours: dict[str, tuple[torch.Tensor, ...]], theirs: dict[str, tuple[torch.Tensor, ...]]) -> bool:
    return ours.keys() == theirs.keys() and all(
        torch.equal(one, other) for name in ours for one, other in zip(ours[name], theirs[name], strict=True)
    )
