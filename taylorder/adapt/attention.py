"""The attention of an adapted model: truncated heads through the kernels, exact layers as the model has them.

transformers calls one registered function for every attention module; it finds the module's plan in a table filled by
:func:`taylorder.adapt.hooks.installed`. The mask function registered with it hands over plain masks as the validity of
keys, so that nothing of size tokens x tokens is built for truncated heads, and all others as they are. A truncated
layer runs in linear time, from the state in its cache layer if there is one, or with gradients; score space (quadratic)
is left for raw denominators, and for keys that somebody else's cache has kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from taylorder.adapt.cache_layer import TaylorCacheLayer, attend_causally
from taylorder.adapt.prepared import LayerPlan
from taylorder.analysis.finite import refuse_broken_tensors
from taylorder.errors import NonFiniteError, UsageError
from taylorder.kernels import HeadSpec, score_space_attention
from taylorder.kernels.differentiable import differentiable_attention, needs_gradient
from taylorder.kernels.dispatch import asked_backend
from taylorder.kernels.kept_keys import UnrankedKeyError
from taylorder.kernels.score_terms import ScoreTerms
from taylorder.models.attention import AttentionCall, Observer, attends_causally
from taylorder.models.masks import admitted_and_added, admitting, causal_mask, key_validity, short_mask
from taylorder.models.own_attention import attend_unchanged, score_terms
from taylorder.models.quiet import uncompiled
from taylorder.models.refusals import refuse_block_mask, refuse_terms

# transformers parses the name: "sdpa", "flash" and "flex" in it switch on capability checks, "/" a download.
ATTENTION_NAME = "taylorder"

_OVERFLOWED = (
    "the layers before it overflowed or the weights are broken: run in float32, or check the model without a config"
)


@dataclass(slots=True)
class Counts:
    """What happened while a model ran adapted: guarded rows per module and query head, int64 ``[H]``."""

    guarded_rows: dict[str, Tensor] = field(default_factory=dict)

    def add(self, name: str, guarded: Tensor) -> None:
        """Add one call's guarded rows."""
        known = self.guarded_rows.get(name)
        self.guarded_rows[name] = guarded if known is None else known + guarded


@dataclass(slots=True)
class ModuleRun:
    """One attention module of an adapted model; options as in :func:`taylorder.adapt.handle.attach`.

    ``layer`` is the cache layer of the call under way, noted by a forward pre-hook because transformers does not hand
    the cache to attention functions; None without one, or where the layer keeps keys and values.
    """

    plan: LayerPlan
    counts: Counts
    guard: bool = True
    backend: str | None = None
    observe: Observer | None = None
    layer: TaylorCacheLayer | None = None


RUNS: WeakKeyDictionary[nn.Module, ModuleRun] = WeakKeyDictionary()


def register() -> None:
    """Make the name known to transformers; idempotent, and there is no way to unregister."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(ATTENTION_NAME, _attend)
    AttentionMaskInterface.register(ATTENTION_NAME, _checked_mask)


@uncompiled
def _checked_mask(
    *, attention_mask: Tensor | None = None, kv_length: int = 0, kv_offset: int = 0, **options: Any
) -> Tensor | None:
    """:func:`taylorder.models.masks.short_mask`, but for a mask with fewer columns than tokens,
    which it would fill up.
    """
    if attention_mask is not None and attention_mask.shape[-1] < kv_offset + kv_length:
        raise UsageError(
            f"attention_mask has {attention_mask.shape[-1]} columns, expected one per token so far, those in the cache "
            f"included: {kv_offset + kv_length}"
        )
    return short_mask(attention_mask=attention_mask, kv_length=kv_length, kv_offset=kv_offset, **options)


@uncompiled
def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend: query ``[B, H, T, d]``, key and value ``[B, G, S, .]``; output ``[B, T, H, d_v]``."""
    run = RUNS.get(module)
    if run is None:
        raise outside_error(module)
    name, layer = run.plan.name, run.layer
    run.layer = None
    refuse_block_mask(name, attention_mask)
    _refuse(name, module, dropout, kwargs)
    given = {"queries": query, "keys": key, "values": value}
    single = query.shape[2] == 1 and layer is not None
    if not single:
        refuse_broken_tensors(name, given, _OVERFLOWED)
    scaling = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    shown, added = admitted_and_added(attention_mask, kwargs)
    causal = attends_causally(module, kwargs, shown, query.shape[2])
    if run.plan.heads is None:
        mask = attention_mask
        if mask is not None and mask.ndim == 2:  # the validity of keys
            mask = causal_mask(mask, query.shape[2])
        output = attend_unchanged(module, query, key, value, mask, causal=causal, scaling=scaling, **kwargs)
    else:
        _refuse_beyond_scores(name, kwargs)
        refuse_packed(name, attention_mask, kwargs)
        valid = honoured(name, attention_mask, query.shape[2], causal=causal)
        valid = None if valid is None else valid.expand(len(query), -1)  # one row may stand for all
        if valid is not None and layer is None and valid.shape[1] != key.shape[2]:
            raise UsageError(
                f"{name} has {key.shape[2]} keys and is given a mask for {valid.shape[1]}, which cannot tell which are "
                "padding (its cache is of another class than a TaylorCache): run rows without padding, or with "
                "use_cache=False"
            )
        try:
            output = _truncated(
                run, run.plan.heads, layer, query, key, value, valid, scaling, causal, score_terms(kwargs)
            )
        except UnrankedKeyError as error:
            raise NonFiniteError(
                f"{name} cannot rank its keys ({error}): its probe overflows on keys and values of this size; fit it "
                "on this model, or set kept to 0 in the config"
            ) from error
    # One look for three: whatever is broken in them shows in the row.
    if single and not math.isfinite(float(output.sum(dtype=torch.float64))):
        refuse_broken_tensors(name, given | {"outputs": output}, _OVERFLOWED)
    if run.observe is not None:
        call = AttentionCall(name, module, query, key, value, attention_mask, scaling, kwargs, added)
        run.observe(call, output)
    return output, None


def outside_error(module: nn.Module) -> UsageError:
    """Say that a module has the attention of an adapted model, and is none."""
    return UsageError(
        f"{type(module).__name__} runs with the attention of `adapted` outside of a block (was the model or its config "
        "copied inside adapted?): copy it outside, or call set_attn_implementation('sdpa') on the copy; if nothing was "
        "copied, it attends to something beside the tokens, such as the states of an encoder: run text alone"
    )


def _truncated(
    run: ModuleRun,
    heads: tuple[HeadSpec, ...],
    layer: TaylorCacheLayer | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    valid: Tensor | None,
    scaling: float,
    causal: bool,
    terms: ScoreTerms,
) -> Tensor:
    """Attend as the plan says, from the state of ``layer`` if there is one.

    ``valid`` is bool ``[B, S]``, or None; ``terms`` are those of the heads ``[H]``.
    """
    plan, priority, shift = run.plan, None, None
    if plan.numbers is not None:
        priority = plan.numbers.priority(key, value)  # of keys as they are, before they are centred
        shift = None if terms.plain else plan.numbers.shift(query, scaling)
        query, key = plan.numbers(query, key)
    options: dict[str, Any] = {
        "scaling": scaling, "priority": priority, "sink_logits": terms.sink_logits, "softcap": terms.softcap,
        "shift": shift,
    }  # fmt: skip
    whole = run.guard and query.shape[2] == key.shape[2]
    own = None if plan.numbers is None else plan.numbers.coefficients
    if own is not None and (layer is not None or not whole):
        raise UsageError(
            f"{plan.name} has coefficients that are being trained, which are applied to whole sequences alone: run it "
            "without a cache and with the guard, or put them into the config first"
        )
    if layer is not None:
        # The mask has a column for every token so far; those of earlier calls are in the state already.
        valid = None if valid is None else valid[:, -key.shape[2] :]
        output, guarded = layer.attend(query, key, value, valid=valid, backend=run.backend, **options)
    elif whole and (own is not None or needs_gradient(query, key, value, terms.sink_logits, shift, priority)):
        output, guarded = differentiable_attention(
            query, key, value, heads, causal=causal, valid=valid, coefficients=own,
            backend=asked_backend(run.backend)[0], **options,
        )  # fmt: skip
    elif whole and causal:
        output, state = attend_causally(query, key, value, heads, valid=valid, backend=run.backend, **options)
        guarded = state.guarded
    else:
        # In both directions there is no state, and so nothing in the kernels that says how many rows were guarded.
        output, guarded = score_space_attention(
            query, key, value, heads, causal=causal, valid=valid, guard=run.guard, **options
        )
    if layer is None or layer.guards or plan.name not in run.counts.guarded_rows:
        run.counts.add(plan.name, guarded)
    return output.transpose(1, 2).contiguous()


def _refuse(name: str, module: nn.Module, dropout: float, kwargs: dict[str, Any]) -> None:
    """Refuse what would come out silently wrong."""
    if dropout:
        raise UsageError(
            f"{name} runs with attention dropout {dropout}; an adapted model is for inference, call eval()"
        )
    refuse_terms(name, module, kwargs)


def _refuse_beyond_scores(name: str, kwargs: Mapping[str, Any]) -> None:
    """Refuse, for truncated heads, what the module was not given when it was described."""
    for argument in ("position_bias", "indices"):
        if kwargs.get(argument) is not None:
            raise UsageError(
                f"{name} was given {argument}, which its truncated heads would leave out: leave it out of the call, or "
                "make all heads of this layer exact"
            )


def refuse_packed(name: str, mask: Tensor | None, kwargs: Mapping[str, Any]) -> None:
    """Refuse several sequences in one row; ``name`` is the module's or the model's, ``kwargs`` what it was given."""
    packed = [
        argument for argument in ("cu_seq_lens_q", "cu_seq_lens_k", "seq_idx") if kwargs.get(argument) is not None
    ]
    if packed:
        raise UsageError(f"{name} was given packed sequences ({packed[0]}); run them as separate rows of a batch")
    positions = kwargs.get("position_ids")
    if (
        positions is not None and positions.ndim == 3
    ):  # of images too: time, height and width, perhaps behind the text's
        positions = positions[0] if len(positions) == 4 else None
    # Positions of padded rows jump as well. Where transformers takes note of packing, it makes a mask of it.
    if mask is not None or positions is None or positions.shape[-1] == 1:
        return
    if bool((positions.diff(dim=-1) != 1).any()):
        raise UsageError(
            f"{name} was given position_ids that do not count up by one (packed sequences?); run them as separate rows "
            "of a batch"
        )


def honoured(name: str, mask: Tensor | None, queries: int, *, causal: bool) -> Tensor | None:
    """Which keys are real, ``[B, S]``; refuse a mask that says more than truncated heads can follow.

    Raises:
        UsageError: the mask is not plain, see :func:`taylorder.models.masks.key_validity`.

    """
    try:
        return key_validity(admitting(mask), queries, causal=causal)
    except ValueError as error:
        rule = "each token sees all earlier ones" if causal else "each token sees all others"
        raise UsageError(
            f"{name} was given a mask that {error}, and its truncated heads honour padding only ({rule}): make all "
            "heads of this layer exact, or run text alone, one sequence a row, without images or a prefix"
        ) from error
