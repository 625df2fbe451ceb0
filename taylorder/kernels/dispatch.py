"""The entry point: check every argument, choose a backend, return output and state."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any, Optional

import torch
from torch import Tensor

from . import torch_backend, triton_backend
from .differentiable import differentiable_attention, needs_gradient
from .exact import attend_exact_part
from .kept_keys import check_priority
from .request import Request
from .score_space import attend_in_score_space, score_space_attention
from .score_terms import ScoreTerms
from .spec import Exact, HeadSpec, check_heads, grouped, keeps_keys
from .state import ExactPart, Part, State, StateShape

BACKENDS = ("triton", "torch", "score-space")

_LINEAR: dict[str, Any] = {"triton": triton_backend, "torch": torch_backend}
"""Those of linear time: ``new_parts`` holds the KV heads that truncate, ``run`` attends with one part."""

BACKEND_VARIABLE = "TAYLORDER_BACKEND"
"""Environment variable that names the backend where the caller names none."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def taylor_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: Sequence[HeadSpec],
    *,
    scaling: float,
    causal: bool = True,
    valid: Optional[Tensor] = None,
    priority: Optional[Tensor] = None,
    sink_logits: Optional[Tensor] = None,
    softcap: Optional[float] = None,
    shift: Optional[Tensor] = None,
    state: Optional[State] = None,
    backend: Optional[str] = None,
) -> tuple[Tensor, Optional[State]]:
    """Attend with one truncated (or exact) exponential per head, in time linear in the tokens (arXiv 2602.00294).

    Sums are taken in float32 (float64 for float64 inputs), whatever the dtype of the inputs.

    Gradients flow where autograd records and a tensor asks for them: whole sequences are computed as
    :mod:`.differentiable` says, unless the backend is ``score-space``, and there is no state.

    Args:
        q: queries of the new tokens ``[B, H, T, d]``; float32, bfloat16, float16 or float64. T may be 0.
        k: their keys ``[B, G, T, d]``, prepared by the caller (centred, rotated). H is a multiple of G.
        v: their values ``[B, G, T, d_v]``.
        heads: one spec per query head; specs of one KV head must agree as ``check_heads`` says.
        scaling: factor of q.k.
        causal: False attends in both directions: no near field, no state.
        valid: bool ``[B, T]``, False for padding; rows of padding queries are zero. None: no padding.
        priority: of the keys, float32 ``[B, G, T]``; needed where a head keeps keys by priority, whatever it holds at
            padding. A head's near field has the ``kept`` keys of highest priority of all that are neither sinks nor in
            the window; of equal priorities the later key stays.
        sink_logits: learned sinks ``[H]``, whose exponential is added to the denominator of every row; they are scores,
            to which ``scaling`` is not applied. None if there are none.
        softcap: where the true exponential is taken, of ``softcap tanh(score / softcap)`` instead of the score;
            polynomials are of the score before the cap. None if there is none.
        shift: by how much the scores of each row are less than those of the model because the caller's keys are
            centred, ``[B, H, T]``; weights do not notice, sinks and caps do. None if keys are not centred.
        state: what an earlier call returned, to go on from there. It is updated in place; ``clone`` it to fork.
        backend: ``triton`` (linear time, GPUs; on a CPU only in Triton's interpreter, which is slow and for tests),
            ``torch`` (linear time, any device) or ``score-space`` (quadratic, keeps every key). None takes the
            environment variable ``TAYLORDER_BACKEND`` or chooses: ``triton`` on GPUs, ``torch`` for float64 and
            everywhere else.

    Returns:
        Output ``[B, H, T, d_v]`` in the dtype of q, and the state after these tokens (None if bidirectional, and where
        gradients are recorded).

    Raises:
        ValueError: an argument does not fit the others, or gradients are recorded that would have to pass through a
            state; the message names it, its value and what was expected.
        TypeError: an argument is of the wrong type.
        TritonUnavailableError: Triton cannot run where the tensors are; no other backend steps in.

    """
    _check_tensors(q, k, v, valid)
    if state is None or len(heads) != q.shape[1]:  # those of a state were checked when it was made
        for index, spec in enumerate(heads):
            if not isinstance(spec, HeadSpec):
                raise TypeError(f"heads[{index}] is a {type(spec).__name__}, expected a HeadSpec")
        check_heads(heads, q.shape[1], k.shape[1], causal)
    if not math.isfinite(scaling):
        raise ValueError(f"scaling is {scaling}, expected a finite number")
    if state is not None:
        _check_state(state, k, v, heads, causal)
    if keeps_keys(heads):
        check_priority(priority, k, valid)
    terms = ScoreTerms.of_rows(q, sink_logits, softcap, shift)
    if needs_gradient(q, k, v, sink_logits, shift, priority):
        if state is not None:
            raise ValueError(
                "state was given, and gradients are recorded, which do not pass through a state: expected None and the "
                "whole sequence in one call, or a call under torch.no_grad()"
            )
        options: dict[str, Any] = {
            "scaling": scaling, "causal": causal, "valid": valid, "priority": priority, "sink_logits": sink_logits,
            "softcap": softcap, "shift": shift,
        }  # fmt: skip
        asked, _ = asked_backend(backend)
        if asked == "score-space":
            return score_space_attention(q, k, v, heads, **options)[0], None
        return differentiable_attention(q, k, v, heads, backend=asked, **options)[0], None
    name = choose_backend(backend, state, q.device, q.dtype)
    B, H, T, _ = q.shape
    output = torch.empty(B, H, T, v.shape[-1], dtype=q.dtype, device=q.device)
    # The output is an ordinary tensor; what is computed on the way, and the state, need no bookkeeping for gradients,
    # which would cost a quarter of the time here.
    with torch.inference_mode():
        state = state or _new_state(heads, name, k, v)
        request = Request(q, k, v, scaling, causal, valid, priority, output, state.guarded, terms)
        for part in state.parts if B and T else ():
            if not isinstance(part, ExactPart):
                _LINEAR[name].run(part, request)
            elif name == "score-space":
                _score_space(part, request, heads)
            else:
                attend_exact_part(part, request)
        state.tokens += T
    return output, state if causal else None


def _new_state(heads: Sequence[HeadSpec], backend: str, k: Tensor, v: Tensor) -> State:
    """Return an empty state for keys and values like these."""
    groups = dict(enumerate(grouped(heads, k.shape[1])))
    exact = [g for g, group in groups.items() if backend not in _LINEAR or isinstance(group[0].far, Exact)]
    truncated = {g: group for g, group in groups.items() if g not in exact}
    parts: list[Part] = [*_LINEAR[backend].new_parts(truncated, k, v)] if truncated else []
    if exact:
        ranked = any(keeps_keys(groups[g]) for g in exact)
        parts.append(ExactPart(exact, k, v, ranked=ranked))
    return State(heads, backend, parts, StateShape.of(k, v))


def _score_space(part: ExactPart, request: Request, heads: Sequence[HeadSpec]) -> None:
    part.recent.append(request.k, request.v, request.valid)
    part.add_priorities(request.priority)
    keys, values, keep = part.recent.view()
    rows, guarded = attend_in_score_space(
        request.q, keys, values, heads, request.terms, scaling=request.scaling, causal=request.causal, valid=keep,
        priority=part.priority,
    )  # fmt: skip
    request.output.copy_(rows)
    request.guarded.add_(guarded)


def asked_backend(name: Optional[str], *, fixed: bool = False) -> tuple[Optional[str], str]:
    """The backend that is asked for, None if none is, and by what: the argument, or the variable unless ``fixed``.

    Raises:
        ValueError: the name is unknown.

    """
    asked = "backend"
    if name is None and not fixed and os.environ.get(BACKEND_VARIABLE):
        name, asked = os.environ[BACKEND_VARIABLE], BACKEND_VARIABLE
    if name is not None and name not in BACKENDS:
        raise ValueError(f"{asked} is {name!r}, expected one of {BACKENDS} or None")
    return name, asked


def choose_backend(name: Optional[str], state: Optional[State], device: torch.device, dtype: torch.dtype) -> str:
    """Name the backend for tensors of that device and dtype; ``name`` and ``state`` as in ``taylor_attention``.

    Raises:
        ValueError: the name is unknown, contradicts the state, or is ``triton`` for float64.
        TritonUnavailableError: the choice is ``triton``, and it cannot compile for the GPU.

    """
    name, asked = asked_backend(name, fixed=state is not None)
    if state is not None:
        if name is not None and name != state.backend:
            raise ValueError(
                f"backend is {name!r}, but the state was made by {state.backend!r}, which alone can go on from it"
            )
        name = state.backend
    if name is None:
        name = "triton" if device.type == "cuda" and dtype != torch.float64 else "torch"
    if name == "triton":
        if dtype == torch.float64:
            raise ValueError(f"{asked} is 'triton', which has no float64; expected another dtype, or backend='torch'")
        problem = triton_backend.triton_problem(device)
        if problem is not None:
            raise triton_backend.TritonUnavailableError(
                f"the backend for tensors on {device} is Triton, and it cannot run there ({problem}): install a Triton "
                f"that can, or choose backend='torch' or {BACKEND_VARIABLE}=torch"
            )
    return name


def _check_tensors(q: Tensor, k: Tensor, v: Tensor, valid: Optional[Tensor]) -> None:
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is a {type(tensor).__name__}, expected a tensor")
        if tensor.ndim != 4:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, expected 4 dimensions: [batch, heads, tokens, dim]"
            )
        if tensor.dtype not in DTYPES:
            raise ValueError(f"{name} has dtype {tensor.dtype}, expected one of {DTYPES}")
        if tensor.dtype != q.dtype:
            raise ValueError(f"{name} has dtype {tensor.dtype}, expected that of q: {q.dtype}")
        if tensor.device != q.device:
            raise ValueError(f"{name} is on {tensor.device}, expected the device of q: {q.device}")
    B, _, T, d = q.shape
    G = k.shape[1]
    if d == 0 or v.shape[-1] == 0:
        raise ValueError(f"q has head dim {d} and v has value dim {v.shape[-1]}, expected at least 1")
    if tuple(k.shape) != (B, G, T, d):
        raise ValueError(f"k has shape {tuple(k.shape)}, expected {(B, G, T, d)} to match q {tuple(q.shape)}")
    if tuple(v.shape[:3]) != (B, G, T):
        raise ValueError(f"v has shape {tuple(v.shape)}, expected {(B, G, T)} and a value dim, to match k")
    if valid is None:
        return
    if not isinstance(valid, Tensor) or valid.dtype != torch.bool:
        raise TypeError(
            f"valid is {getattr(valid, 'dtype', type(valid).__name__)}, expected a bool tensor [batch, tokens]"
        )
    if tuple(valid.shape) != (B, T):
        raise ValueError(f"valid has shape {tuple(valid.shape)}, expected {(B, T)}: [batch, tokens] of the new tokens")
    if valid.device != q.device:
        raise ValueError(f"valid is on {valid.device}, expected the device of q: {q.device}")


def _check_state(state: State, k: Tensor, v: Tensor, heads: Sequence[HeadSpec], causal: bool) -> None:
    if not isinstance(state, State):
        raise TypeError(f"state is a {type(state).__name__}, expected a State from an earlier call")
    if not causal:
        raise ValueError("state was given, but attention is bidirectional (causal=False); expected None")
    if tuple(heads) != state.heads:
        raise ValueError("heads differ from those the state was made for; expected the same specs in every call")
    found, expected = StateShape.of(k, v), state.shape
    if found != expected:
        raise ValueError(f"k and v are {found}, but the state was made for {expected}")
