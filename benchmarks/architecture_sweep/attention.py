"""See and replace a model's attention without the product: through transformers' own interface, and below it.

``attending`` has every attention call of a model go to a function of this benchmark. ``admissions`` looks at what the
library's SDPA is told in a model that is otherwise left alone, adapted or not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .verdict import DIFFER, PADDING_ROWS_DIFFER

NAME = "architectures_benchmark"
HIDDEN = -1e4  # or less is what float masks add to the scores of hidden keys
BEYOND_SCORES = ("position_bias", "sinks", "indices", "block_indices")


@dataclass(frozen=True)
class Call:
    """One attention call: q ``[B, H, T, d]``, k and v ``[B, G, S, .]``, and what the module said beside them."""

    name: str
    module: nn.Module
    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    scaling: float
    rest: Mapping[str, Any]

    @property
    def causal(self) -> bool:
        """What the module says; one that says nothing looks ahead where its mask shows later tokens."""
        said = self.rest.get("is_causal")
        said = getattr(self.module, "is_causal", None) if said is None else said
        if said is not None or self.mask is None:
            return said is not False
        rows = self.mask.expand(-1, -1, self.q.shape[2], -1)
        shown = rows if rows.dtype == torch.bool else rows > HIDDEN
        return not shown.triu(1).any()

    @property
    def terms(self) -> dict[str, Any]:
        """Learned sinks ``[H]`` in the denominator and a cap of scores, as the reference takes them."""
        terms = {"sink_logits": self.rest.get("s_aux"), "softcap": self.rest.get("softcap")}
        return {name: term for name, term in terms.items() if term is not None}

    @property
    def extra_terms(self) -> list[str]:
        """What makes the weights more than exp(scaling q.k) over admitted keys."""
        found = [name for name in BEYOND_SCORES if self.rest.get(name) is not None]
        return found + ["float mask"] * (self.mask is not None and self.mask.dtype != torch.bool)


Attend = Callable[[Call], Tensor | None]
"""Returns the output ``[B, H, T, d_v]``, or None for the library's own."""

_IN_FORCE: list[tuple[dict[nn.Module, str], Attend]] = []


@contextmanager
def attending(model: Any, attend: Attend) -> Iterator[None]:
    """Have the attention calls of ``model`` go to ``attend`` inside the block; afterwards its configs are as before."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, _dispatch)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    before = [(config, config._attn_implementation_internal) for config in _configs(model)]
    _IN_FORCE.append(({module: name for name, module in model.named_modules()}, attend))
    try:
        model.set_attn_implementation(NAME)
        yield
    finally:
        _IN_FORCE.pop()
        for config, implementation in before:
            config._attn_implementation_internal = implementation


def _dispatch(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **rest: Any,
) -> tuple[Tensor, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    names, attend = _IN_FORCE[-1]
    if (indices := rest.get("indices")) is not None:  # which models hand over instead of a mask that hides the others
        picked = (indices[..., None] == torch.arange(key.shape[2])).any(-2)[:, None]
        attention_mask = picked if attention_mask is None else attention_mask & picked
    scaling = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    call = Call(names.get(module, type(module).__name__), module, query, key, value, attention_mask, scaling, rest)
    output = attend(call)
    if output is None and call.terms:  # for which SDPA has no argument
        output = _textbook(call)
    if output is not None:
        return output.transpose(1, 2).to(query.dtype).contiguous(), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **rest)


def _textbook(call: Call) -> Tensor:
    """Softmax over the keys admitted and a learned sink, of capped scores, in float64: ``[B, H, T, d_v]``."""
    group = call.q.shape[1] // call.k.shape[1]
    q, k, v = call.q.double(), *(x.double().repeat_interleave(group, 1) for x in (call.k, call.v))
    T, S = q.shape[2], k.shape[2]
    mask = torch.ones(T, S, dtype=torch.bool).tril(S - T) if call.mask is None and call.causal else call.mask
    scores = call.scaling * q @ k.mT
    cap, sinks = call.terms.get("softcap"), call.terms.get("sink_logits")
    scores = scores if cap is None else cap * (scores / cap).tanh()
    scores = scores if mask is None else scores.masked_fill(~mask, -1e300)
    if sinks is not None:
        scores = torch.cat([scores, sinks.double()[None, :, None, None].expand(*scores.shape[:3], 1)], -1)
    return scores.softmax(-1)[..., :S] @ v


def _configs(model: Any) -> list[Any]:
    """Every config that the model, its modules or their configs hold, once each."""
    found: dict[int, Any] = {}
    pending = [vars(module).get("config") for module in model.modules()]
    while pending:
        config = pending.pop()
        if hasattr(config, "sub_configs") and id(config) not in found:
            found[id(config)] = config
            pending += [getattr(config, name, None) for name in config.sub_configs]
    return list(found.values())


@contextmanager
def admissions() -> Iterator[list[Tensor]]:
    """Yield a list that fills with what each SDPA call admits: bool ``[B, H or 1, T, S]``, or ``[1, 1, T, S]``.

    A missing mask, and ``is_causal`` in its place, admit what they mean; a float mask hides where exp gives zero.
    """
    seen: list[Tensor] = []
    original = functional.scaled_dot_product_attention

    def listening(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **options: Any
    ) -> Tensor:
        causal = options.get("is_causal", args[1] if len(args) > 1 else False)
        if attn_mask is None:
            admitted = torch.ones(1, 1, query.shape[-2], key.shape[-2], dtype=torch.bool)
            admitted = admitted.tril() if causal else admitted
        elif attn_mask.dtype == torch.bool:
            admitted = attn_mask.clone()
        else:
            admitted = attn_mask > HIDDEN
        seen.append(admitted.reshape((1,) * (4 - admitted.ndim) + admitted.shape))
        return original(query, key, value, attn_mask, *args, **options)

    functional.scaled_dot_product_attention = listening
    try:
        yield seen
    finally:
        functional.scaled_dot_product_attention = original


def compare_admissions(ours: list[Tensor], theirs: list[Tensor], real: Tensor) -> str:
    """Whether two lists of admissions are equal, mask for mask; ``real`` ``[B, T]`` is False for padding.

    Returns ``equal``, one of the two ways to differ, or ``not compared`` where the two did not run SDPA equally often.
    """
    if not theirs or len(ours) != len(theirs):
        return f"not compared ({len(theirs)} calls of SDPA, {len(ours)} inside adapted)"
    padding_rows = False
    for our, their in zip(ours, theirs, strict=True):
        if our.shape[-2:] != their.shape[-2:]:
            return DIFFER
        rows = (our != their).any(-1).any(1)  # [B, T]
        if rows.shape[1] == real.shape[1] and rows.shape[0] in (1, len(real)):
            if (rows & real).any():
                return DIFFER
            padding_rows |= bool((rows & ~real).any())
        elif rows.any():
            return DIFFER
    return PADDING_ROWS_DIFFER if padding_rows else "equal"
