"""See every attention call of a Hugging Face model: q, k, v as they enter the softmax, outputs unchanged bit for bit.

transformers lets a process register an attention function under a name and select it per model. One name is registered
here, once; it finds the sink of the calling module in a table, hands it the tensors, and delegates to
:func:`taylorder.models.own_attention.attend_unchanged`. Outside :func:`recording` the table is empty and no model
refers to the name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import nn

from taylorder.kernels.score_terms import ScoreTerms
from taylorder.models.masks import admitted_and_added, looks_ahead, picked_keys
from taylorder.models.own_attention import attend_unchanged, score_terms
from taylorder.models.quiet import quiet_transformers, uncompiled
from taylorder.models.refusals import refuse_block_mask, refuse_class, refuse_mask, refuse_terms

# transformers parses the name: "sdpa", "flash" and "flex" in it switch on capability checks, "/" a download.
ATTENTION_NAME = "taylorder_record"


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """One call of one attention module.

    ``q`` is ``[B, H, T, d]``, ``k`` ``[B, G, S, d]`` and ``v`` ``[B, G, S, d_v]`` in the model's dtype, after rotary
    embedding and query/key norms, KV heads not repeated; S = T unless a cache is in use. ``mask`` is bool
    ``[B, 1, T, S]`` or broadcastable to it, True where a query may look, or None where ``is_causal`` says all there is
    to say. ``scaling`` is the factor of q.k; ``kwargs`` is whatever else the module passed; ``added`` is what is added
    to scores ``[B, H, T, S]``, or broadcastable to it.
    """

    name: str
    module: nn.Module
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    mask: torch.Tensor | None
    scaling: float
    kwargs: Mapping[str, Any]
    added: torch.Tensor | None = None

    @property
    def is_causal(self) -> bool:
        """Whether a missing mask means "no look ahead"; an ``is_causal`` keyword overrides the module's attribute."""
        return attends_causally(self.module, self.kwargs, self.mask, self.q.shape[2])

    @property
    def sliding_window(self) -> int | None:
        """How many keys back, itself included, a query sees (encoders: to either side); None for the whole context."""
        window = self.kwargs.get("sliding_window")
        return None if window is None else int(window)

    @property
    def terms(self) -> ScoreTerms:
        """What the module does to scores beside scaling them, for each head."""
        return score_terms(self.kwargs)

    @property
    def chunk(self) -> int | None:
        """Tokens of the chunks within which a query sees the earlier ones; None for the whole context.

        No argument says so, and no short mask: the layer types of the config do, by which transformers caches, too.
        """
        config, index = getattr(self.module, "config", None), getattr(self.module, "layer_idx", None)
        kinds = getattr(config, "layer_types", None) or ()
        chunked = isinstance(index, int) and index < len(kinds) and kinds[index] == "chunked_attention"
        return int(config.attention_chunk_size) if chunked and config is not None else None

    @property
    def picked(self) -> torch.Tensor | None:
        """Which keys a learned index picks for each query, bool ``[B, 1, T, S]``, beside the mask; None for all."""
        return picked_keys(self.kwargs, self.k.shape[2])

    @property
    def beyond_scores(self) -> Literal["indexed", "biased"] | None:
        """What the weights depend on beside queries and keys: a choice of keys, or a bias; None for nothing else."""
        if self.picked is not None:
            return "indexed"
        return None if self.added is None else "biased"

    @property
    def is_local(self) -> bool:
        """Whether the mask may hide more than later tokens and padding, of contexts that are long enough."""
        return self.sliding_window is not None or self.chunk is not None or self.added is not None


def attends_causally(
    module: nn.Module, kwargs: Mapping[str, Any], mask: torch.Tensor | None = None, queries: int = 1
) -> bool:
    """The direction of a module, as transformers' SDPA reads it off the module and what it is called with.

    A module that says nothing is causal where there is no mask, and goes by the mask where there is one (LayoutLM).
    """
    said = kwargs.get("is_causal")
    said = getattr(module, "is_causal", None) if said is None else said
    return not looks_ahead(mask, queries) if said is None else bool(said)


Sink: TypeAlias = Callable[[AttentionCall], None]

Observer: TypeAlias = Callable[[AttentionCall, torch.Tensor], None]
"""Called after a module attended, with the call (keys not centred) and the output ``[B, T, H, d_v]``, the very tensor
that the model goes on with."""


@dataclass(frozen=True, slots=True)
class _Target:
    name: str
    sink: Sink | None
    observe: Observer | None


_SINKS: WeakKeyDictionary[nn.Module, _Target] = WeakKeyDictionary()


@contextmanager
def recording(model: nn.Module, sink: Sink | None, *, observe: Observer | None = None) -> Iterator[None]:
    """Call ``sink`` with every :class:`AttentionCall` that ``model`` makes inside the block, before it is computed.

    ``observe`` is called after it is computed, with the output that the model goes on with.
    ``model`` is a transformers model; names are qualified with respect to it, also when only a sub-model of it is run.
    Two models may be recorded at the same time. Within a nested block on the same model the inner sink receives the
    calls and the outer one resumes afterwards. However the block is left, every config of the model selects the
    attention it selected before.

    Raises UnsupportedModelError when the class does not dispatch its attention and, from within the forward pass, when
    a call carries a term that cannot be measured (a bias on the scores). An exception raised by ``sink`` propagates
    through the forward pass.
    """
    refuse_class(model)
    _register()
    targets = {module: _Target(name, sink, observe) for name, module in model.named_modules()}
    suspended = {module: _SINKS[module] for module in targets if module in _SINKS}
    try:
        with selected(model, ATTENTION_NAME):
            _SINKS.update(targets)
            yield
    finally:
        for module in targets:
            _SINKS.pop(module, None)
        _SINKS.update(suspended)


@contextmanager
def selected(model: nn.Module, name: str, modules: Collection[nn.Module] | None = None) -> Iterator[None]:
    """Have ``model`` attend through the implementation registered as ``name`` inside the block.

    Given ``modules``, what has a config that is neither theirs nor that of a module around them, such as the tower that
    sees the images, goes on with its own implementation. However the block is left, every config of the model selects
    the implementation it selected before.

    Raises:
        UnsupportedModelError: the class does not dispatch its attention.

    """
    implementations = selections(model)
    try:
        with quiet_transformers():
            model.set_attn_implementation(name)  # type: ignore[operator]
        # The setter only warns where it fails, and keeps the old implementation.
        refuse_class(model, selected=name)
        if modules is not None:
            taking_part = _configs_around(model, set(modules))
            for config, implementation in implementations:
                if id(config) not in taking_part:
                    config._attn_implementation_internal = implementation
        yield
    finally:
        for config, implementation in implementations:
            config._attn_implementation_internal = implementation


def _configs_around(model: Any, modules: Collection[nn.Module]) -> set[int]:
    """Return the ids of the configs of a model's text part, of some of its modules and of all modules around those."""
    around = [module for module in model.modules() if any(inner in modules for inner in module.modules())]
    configs = [model.config.get_text_config(), *(vars(module).get("config") for module in around)]
    return {id(config) for config in configs}


@uncompiled
def _record(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Tell the sink, then compute what transformers would: the registered attention, output ``[B, T, H, d_v]``."""
    target = _SINKS.get(module)
    if target is not None:
        refuse_terms(target.name, module, kwargs)
        refuse_block_mask(target.name, attention_mask)
    mask, added = admitted_and_added(attention_mask, kwargs)
    causal = attends_causally(module, kwargs, mask, query.shape[2])
    if target is not None:
        factor = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
        call = AttentionCall(target.name, module, query, key, value, mask, factor, kwargs, added)
        refuse_mask(target.name, module, call.mask, query.shape[2], causal=call.is_causal, local=call.is_local)
        if target.sink is not None:
            target.sink(call)
    output = attend_unchanged(
        module, query, key, value, attention_mask, causal=causal, scaling=scaling, dropout=dropout, **kwargs
    )
    if target is not None and target.observe is not None:
        target.observe(call, output)
    return output, None


def _register() -> None:
    """Make the name known to transformers; idempotent, and there is no way to unregister."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION_NAME, _record)
    # A name without a mask function is given no mask at all, not even for padding.
    AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)


def selections(model: nn.Module) -> list[tuple[Any, str | None]]:
    """Every config object reachable from the model or its modules, once each, and the attention that it selects."""
    from transformers import PreTrainedConfig

    configs: dict[int, Any] = {}
    pending = [vars(module).get("config") for module in model.modules()]
    while pending:
        config = pending.pop()
        if isinstance(config, PreTrainedConfig) and id(config) not in configs:
            configs[id(config)] = config
            pending += [getattr(config, key, None) for key in config.sub_configs]
    return [(config, config._attn_implementation_internal) for config in configs.values()]
