"""How well a model still predicts, token by token: negative log-likelihood, KL and top-1 agreement with itself exact.

Logits are never held for a whole sequence: hidden states are (``[T, hidden]``), and the language-model head is applied
to blocks of rows, for the exact model and for every other state of it side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from taylorder.analysis.finite import refuse_broken_weights
from taylorder.errors import NonFiniteError, UnsupportedModelError
from taylorder.models.offloading import place_of, stored, without_gradients
from taylorder.models.running import input_device, run_base

EXACT = "exact"

UNTRAINED_SHARE = 0.9
"""Share of log(vocabulary), the loss of a uniform guess, above which a model counts as untrained."""

_BLOCK_LOGITS = 1 << 23
"""Logits computed at once: 32 MiB in float32, so that little of a block has left the cache when it is read again."""

_ROUNDING = {torch.float16: 1e-2, torch.bfloat16: 3e-2}
"""How far the model's own logits, scaled and capped in its dtype, may be from ours, scaled and capped in float32."""


@dataclass(frozen=True, slots=True)
class TokenLosses:
    """One sequence under one state of the model, per predicted token, float32 ``[T - 1]``.

    ``nll`` is ``-ln p(token)``; ``kl`` is ``KL(exact || this)`` of the next-token distributions, both in nats;
    ``agrees`` is 1 where both put the same token first. ``kl`` is 0 and ``agrees`` 1 for the exact model.
    """

    nll: np.ndarray
    kl: np.ndarray
    agrees: np.ndarray


def looks_untrained(nll: float | None, vocabulary: int | None) -> bool:
    """Whether a loss in nats per token is hardly better than guessing, as that of random weights; False if unknown."""
    return nll is not None and vocabulary is not None and nll > UNTRAINED_SHARE * math.log(vocabulary)


def hidden_states(model: Any, input_ids: Tensor) -> Tensor:
    """Final hidden states ``[T, hidden]`` of one sequence ``[T]``, without language-model head and cache."""
    with without_gradients(model):
        return run_base(model, input_ids[None])[0]


def has_language_model_head(model: Any) -> bool:
    """Whether the model predicts tokens at all; a decoder loaded without its head, or an encoder, does not."""
    return model.get_output_embeddings() is not None


def language_model_head(model: Any) -> Callable[[Tensor], Tensor]:
    """Return the function from hidden states ``[R, hidden]`` to logits ``[R, vocabulary]``, float32.

    Gradients flow where the hidden states ask for them.

    Raises:
        UnsupportedModelError: the model has no such head, or does to its logits what this function does not.
        NonFiniteError: its logits are NaN or infinite.

    """
    linear = model.get_output_embeddings()
    if linear is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no language-model head, so it has no next-token loss; load the model with its "
            "head, or compare hidden states"
        )
    config = model.config.get_text_config()
    scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    applied = _read_once(linear)
    stated = _head(applied, scale, getattr(config, "final_logit_softcapping", None))
    rounding = _ROUNDING.get(model.dtype, 1e-3)
    ids = (torch.arange(6) + 16) % int(config.vocab_size)
    with without_gradients(model):
        hidden = hidden_states(model, ids)
        logits = model(ids[None].to(input_device(model)), use_cache=False).logits[0].to(hidden.device).float()
        largest = float(logits.abs().max())
        if not math.isfinite(largest):
            refuse_broken_weights(model, type(model).__name__)
            raise NonFiniteError(
                f"{type(model).__name__} breaks down without any config (its logits on 6 tokens hold NaN or infinite "
                "values): check its weights, or run it in float32"
            )
        # Models that see leave out what the config of their text part states.
        weight = getattr(linear, "weight", None)  # MusicGen has several heads, and ELECTRA projects first
        takes_hidden = isinstance(weight, Tensor) and weight.shape[-1] == hidden.shape[-1]
        for head in (stated, _head(applied, 1.0, None)) if takes_hidden else ():
            if torch.allclose(head(hidden), logits, rtol=rounding, atol=rounding * largest):
                return head
    raise UnsupportedModelError(
        f"{type(model).__name__} does to its logits more than a linear head, a scale and a soft cap; its losses cannot "
        "be computed in blocks"
    )


def _read_once(linear: Any) -> Any:
    """A linear layer that is brought in whenever it runs, kept at hand: a head runs for every block of logits."""
    if type(linear) is not nn.Linear or not linear.weight.is_meta or (weight := stored(linear, "weight")) is None:
        return linear
    bias, place = None if linear.bias is None else stored(linear, "bias"), place_of(linear)
    weight, bias = weight.to(place), None if bias is None else bias.to(place)
    return lambda hidden: nn.functional.linear(hidden.to(place), weight, bias)


def _head(linear: Any, scale: float, cap: float | None) -> Callable[[Tensor], Tensor]:
    def head(hidden: Tensor) -> Tensor:
        with torch.set_grad_enabled(hidden.requires_grad):
            logits: Tensor = linear(hidden).to(hidden.device).float()
            if scale != 1.0:
                logits = logits * scale
            return logits if cap is None else cap * torch.tanh(logits / cap)

    return head


def token_losses(
    head: Callable[[Tensor], Tensor], input_ids: Tensor, hidden: Mapping[str, Tensor]
) -> dict[str, TokenLosses]:
    """Losses of one sequence for every state of the model.

    Args:
        head: from :func:`language_model_head`.
        input_ids: ``[T]``.
        hidden: final hidden states ``[T, hidden]`` by name; must have ``"exact"``.

    """
    exact = hidden[EXACT]
    targets = input_ids[1:].to(exact.device)
    collected: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {name: [] for name in hidden}
    with torch.inference_mode():
        vocabulary = head(exact[:1]).shape[-1]
        rows = max(1, _BLOCK_LOGITS // vocabulary)
        for start in range(0, len(targets), rows):
            block = slice(start, min(start + rows, len(targets)))
            reference = head(exact[block]).log_softmax(-1)
            likely = reference.exp()
            first = reference.argmax(-1)
            for name, states in hidden.items():
                log_p = reference.clone() if name == EXACT else head(states[block]).log_softmax(-1)
                nll = -log_p.gather(-1, targets[block, None])[:, 0]
                agrees = (log_p.argmax(-1) == first).float()
                kl = -torch.linalg.vecdot(likely, log_p.sub_(reference)).clamp(max=0)  # rounding takes it above
                collected[name].append((nll, kl, agrees))
    return {
        name: TokenLosses(*(torch.cat(parts).cpu().numpy() for parts in zip(*blocks, strict=True)))
        for name, blocks in collected.items()
    }


@dataclass(frozen=True, slots=True)
class HiddenDistance:
    """How far an encoder's final hidden states of one sequence are from the exact ones."""

    relative_l2: float
    cosine: float


def hidden_distance(exact: Tensor, other: Tensor) -> HiddenDistance:
    """Compare final hidden states ``[T, hidden]``: relative L2 over all, mean cosine over tokens."""
    exact, other = exact.double(), other.double()
    return HiddenDistance(
        relative_l2=float((other - exact).norm() / exact.norm()),
        cosine=float(torch.cosine_similarity(other, exact, dim=-1).mean()),
    )


def kl_gradient(head: Callable[[Tensor], Tensor], exact: Tensor, hidden: Tensor) -> tuple[float, Tensor]:
    """Mean KL (exact || this) of the next-token distributions, in nats, and its gradient by ``hidden``.

    Args:
        head: from :func:`language_model_head`.
        exact: final hidden states of the exact model ``[T, hidden]``.
        hidden: those of another state of it.

    """

    def block_sum(rows: slice, states: Tensor) -> Tensor:
        return _kl_sum(head, exact[rows], states)

    return _mean_and_gradient(head, hidden, len(hidden), block_sum)


def mean_kl(head: Callable[[Tensor], Tensor], exact: Tensor, hidden: Tensor) -> float:
    """The same KL alone."""
    return _mean(head, hidden, len(hidden), lambda rows: _kl_sum(head, exact[rows], hidden[rows]))


def mean_nll(head: Callable[[Tensor], Tensor], input_ids: Tensor, hidden: Tensor) -> float:
    """Mean negative log-likelihood of the tokens ``[T]`` after the first, in nats."""
    targets = input_ids[1:].to(hidden.device)

    def block_sum(rows: slice) -> Tensor:
        return torch.nn.functional.cross_entropy(head(hidden[rows]), targets[rows], reduction="sum")

    return _mean(head, hidden, len(targets), block_sum)


def _mean(head: Callable[[Tensor], Tensor], hidden: Tensor, rows: int, block_sum: Callable[[slice], Tensor]) -> float:
    """Mean of a loss over the first ``rows`` rows, whose sums come by blocks."""
    with torch.inference_mode():
        step = max(1, _BLOCK_LOGITS // head(hidden[:1]).shape[-1])
        blocks = (slice(start, min(start + step, rows)) for start in range(0, rows, step))
        return sum(float(block_sum(block)) for block in blocks) / rows


def _kl_sum(head: Callable[[Tensor], Tensor], exact: Tensor, hidden: Tensor) -> Tensor:
    """Sum over rows of the KL (exact || this)."""
    with torch.no_grad():
        reference = head(exact).log_softmax(-1)
    return torch.nn.functional.kl_div(head(hidden).log_softmax(-1), reference, reduction="sum", log_target=True)


def nll_gradient(head: Callable[[Tensor], Tensor], input_ids: Tensor, hidden: Tensor) -> tuple[float, Tensor]:
    """Mean negative log-likelihood of the tokens ``[T]`` after the first, in nats, and its gradient by ``hidden``."""
    targets = input_ids[1:].to(hidden.device)

    def block_sum(rows: slice, states: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(head(states), targets[rows], reduction="sum")

    return _mean_and_gradient(head, hidden, len(targets), block_sum)


def _mean_and_gradient(
    head: Callable[[Tensor], Tensor], hidden: Tensor, rows: int, block_sum: Callable[[slice, Tensor], Tensor]
) -> tuple[float, Tensor]:
    """Mean of a loss over the first ``rows`` rows, whose sums come by blocks, and its gradient ``[T, hidden]``."""
    total, gradient = 0.0, torch.zeros_like(hidden)
    with torch.no_grad():
        step = max(1, _BLOCK_LOGITS // head(hidden[:1]).shape[-1])
    for start in range(0, rows, step):
        block = slice(start, min(start + step, rows))
        with torch.enable_grad():
            states = hidden[block].detach().clone().requires_grad_(True)
            loss = block_sum(block, states)
            loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
        gradient[block] = states.grad if states.grad is not None else 0.0
    return total / rows, gradient / rows
