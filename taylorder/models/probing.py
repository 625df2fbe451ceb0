"""Short runs of a model that show what it computes, and leave no trace; and how far two of them may differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from taylorder.errors import UnsupportedModelError, first_line
from taylorder.models.attention import recording, selections
from taylorder.models.inputs import Batch
from taylorder.models.refusals import OTHER_MODEL
from taylorder.models.running import (
    PROBE_TOKENS,
    leaving_no_trace,
    outputs,
    probe_ids,
    probe_mask,
    run_base,
    run_batch,
)

if TYPE_CHECKING:
    from taylorder.models.description import AttentionModule
_SDPA_FIRST = "set_attn_implementation('sdpa') first, to have it run as it is measured"
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 5e-3}
_PASSED: WeakKeyDictionary[nn.Module, set[Hashable]] = WeakKeyDictionary()


def once(model: nn.Module, about: Hashable, check: Callable[[], None]) -> None:
    """Run a check of a model unless it passed before: once in each dtype, on each device, with each attention.

    ``about`` says what is checked, and what the result depends on besides.
    """
    held = frozenset((parameter.dtype, parameter.device) for parameter in model.parameters())
    state = (about, held, tuple(name for _, name in selections(model)))
    passed = _PASSED.setdefault(model, set())
    if state not in passed:
        check()
        passed.add(state)


def refuse_other_numbers(
    model: Any, name: str, modules: Sequence[AttentionModule], recorded: Any, batch: Batch | None = None
) -> None:
    """Refuse a model that does not attend as its calls say, in their direction or at all.

    What is recorded goes through SDPA; ``recorded`` is what it gave: on the probe its hidden states, or all that it put
    out on a ``batch``.
    """
    if any(str(attention).startswith("taylorder") for _, attention in selections(model)):
        return  # inside a block, before which it was looked at as it is
    if batch is None:
        check = partial(_compare_numbers, model, name, modules, recorded)
    else:
        check = partial(_compare_outputs, model, name, modules, recorded, batch)
    once(model, (tuple(modules), None if batch is None else tuple(batch)), check)


def _compare_outputs(model: Any, name: str, modules: Sequence[AttentionModule], recorded: Any, batch: Batch) -> None:
    # Recorded modules attend in the direction that is read off them, so that a wrong one shows in the numbers.
    with running_untouched(model, name, "its inputs"):
        plain = outputs(run_batch(model, batch))
    off = farthest(outputs(recorded), plain)
    _refuse_difference(model, name, modules, off, plain[0].dtype)


def _compare_numbers(model: Any, name: str, modules: Sequence[AttentionModule], recorded: Tensor) -> None:
    ids, mask = probe_ids(model), probe_mask()
    with running_untouched(model, name):
        plain = run_base(model, ids)
    with running_untouched(model, name):  # draws the same random numbers as the run before
        padded = run_base(model, ids, mask)
    with leaving_no_trace(model), recording(model, None):
        recorded_padded = run_base(model, ids, mask)
    allowed = _allowed(plain.dtype, modules)
    ahead = distance(plain[1, :-1], plain[0, :-1])
    causal = all(module.causal for module in modules)
    if ahead > allowed if causal else ahead == 0.0:
        truth = f"changes earlier hidden states by {ahead:.2g}" if causal else "changes no earlier hidden state"
        raise UnsupportedModelError(
            f"{name} says that it attends {'to earlier tokens only' if causal else 'in both directions'} "
            f"({modules[0].name}: is_causal = {causal}), but another last token {truth}: it cannot be measured as what "
            f"it says. {OTHER_MODEL}."
        )
    real = mask.bool().to(padded.device)
    off = max(distance(recorded, plain), distance(recorded_padded[real], padded[real]))
    _refuse_difference(model, name, modules, off, plain.dtype)


def _refuse_difference(
    model: Any, name: str, modules: Sequence[AttentionModule], off: float, dtype: torch.dtype
) -> None:
    allowed = _allowed(dtype, modules)
    if off > (0.0 if same_bits(model) else allowed):
        raise UnsupportedModelError(
            f"{name} computes something else through SDPA, which is what is measured, than by its own attention "
            f"({_attention(model)}): hidden states differ by {off:.2g} of their norm, where rounding explains "
            f"{allowed:.0e}. {_way_out_of_other_numbers(model, dtype)}."
        )


def _allowed(dtype: torch.dtype, modules: Sequence[AttentionModule]) -> float:
    return rounding(dtype, sum(module.calls for module in modules))


@contextmanager
def running_untouched(model: Any, name: str, on: str = f"{PROBE_TOKENS} token ids") -> Iterator[None]:
    """:func:`leaving_no_trace`, for runs of a model as it is; where it fails by itself, that is said by name.

    ``on`` is what it runs on, in words.

    Raises:
        UnsupportedModelError: anything was raised inside the block.

    """
    try:
        with leaving_no_trace(model):
            yield
    except Exception as error:
        raise UnsupportedModelError(
            f"{name} does not run by its own attention ({_attention(model)}) on {on} "
            f"({type(error).__name__}: {first_line(error)}), so nothing can be compared with it: "
            f"{'mend the model or its config first' if _attention(model) == 'sdpa' else _SDPA_FIRST}."
        ) from error


def _attention(model: nn.Module) -> str:
    return ", ".join(sorted({str(name) for _, name in selections(model)}))


def _way_out_of_other_numbers(model: Any, dtype: torch.dtype) -> str:
    """What to do about numbers that differ; a router turns rounding into other experts, which no tolerance covers."""
    if _attention(model) == "sdpa" and getattr(model.config.get_text_config(), "attn_logit_softcapping", None):
        # Gemma 2 until transformers 5.20.
        return "Call set_attn_implementation('eager') first: SDPA leaves out the cap of this model's scores"
    if _attention(model) == "sdpa" or not getattr(model, "_supports_sdpa", False):
        return OTHER_MODEL
    half = dtype not in (torch.float32, torch.float64)
    return f"Call {_SDPA_FIRST}{', or load it in float32, if experts are chosen by rounding' if half else ''}"


def same_bits(model: nn.Module) -> bool:
    """Whether the model attends by SDPA on a CPU, where a call of the same function has to give the same bits."""
    names = {name for _, name in selections(model) if name is not None}
    return names == {"sdpa"} and all(parameter.device.type == "cpu" for parameter in model.parameters())


def distance(states: Tensor, expected: Tensor) -> float:
    """``|states - expected| / |expected|``; infinite where one has NaN or infinities and the other has not."""
    if torch.allclose(states, expected, rtol=0, atol=0, equal_nan=True):
        return 0.0
    relative = float((states.double() - expected.double()).norm() / expected.double().norm())
    return float("inf") if math.isnan(relative) else relative


def farthest(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest :func:`distance` between outputs and those expected; infinite where they are not as many."""
    if len(found) != len(expected) or not expected:
        return float("inf")
    return max(distance(one, other) for one, other in zip(found, expected, strict=True))


def rounding(dtype: torch.dtype, layers: int) -> float:
    """How far two ways to compute the same in that many layers may be apart, relative L2.

    A layer rounds scores, weights, their sums and its output, each within the tolerance, and errors add up at random.
    Tiny models of 10 architectures with sharp scores came to half of this; other masks make a tenth to a half.
    """
    return 4 * _TOLERANCE[dtype] * math.sqrt(layers)
