"""Generating inside ``adapted``: does a cache give what a pass over the whole sequence gives, padded or not?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import taylorder

from . import inputs
from .examination import Examination
from .running import distance, run

NEW_TOKENS = 4

Check = Callable[[Any], dict[str, Any]]


def against_a_full_pass(examination: Examination, model: Any, config: Callable[[], Any]) -> None:
    """Compare the logits of a few generated tokens, adapted and untouched; the second says what the first can mean.

    ``to_full_pass`` is against one pass over the whole sequence; ``padded_to_alone`` is a row that has padding on its
    left in a batch against the same row alone.
    """
    checks: dict[str, Check] = {"to_full_pass": _to_full_pass, "padded_to_alone": _padded_to_alone}
    record = examination.record["generate"] = {}
    for name, check in checks.items():
        plain = examination.untouched(f"generate, {name}", lambda check=check: check(model))
        if plain is None:
            continue
        found = examination.product(f"generate, {name}", lambda check=check: _adapted(model, config, check))
        if found is None:
            continue
        cache = found.pop("cache")
        record |= {name: found["distance"], f"untouched_{name}": plain["distance"], "cache": type(cache).__name__}
        record["keeps_states"] = isinstance(cache, taylorder.TaylorCache) and not cache.is_croppable


def _adapted(model: Any, config: Callable[[], Any], check: Check) -> dict[str, Any]:
    with taylorder.adapted(model, config()):
        return check(model)


def _to_full_pass(model: Any) -> dict[str, Any]:
    tokens = inputs.token_ids()
    made = _generated(model, input_ids=tokens, attention_mask=torch.ones_like(tokens))
    whole = run(model, input_ids=made.sequences)[:, -NEW_TOKENS - 1 : -1]
    return {"distance": distance(torch.stack(made.logits, 1), whole), "cache": getattr(made, "past_key_values", None)}


def _padded_to_alone(model: Any) -> dict[str, Any]:
    batch = inputs.left_padded(inputs.token_ids(batch=2))
    both = _generated(model, **batch)
    tokens = batch["input_ids"][-1:, inputs.PADDING :]
    alone = _generated(model, input_ids=tokens, attention_mask=torch.ones_like(tokens))
    steps = _steps_alike(both.sequences[-1, -NEW_TOKENS:], alone.sequences[0, -NEW_TOKENS:])
    padded = torch.stack(both.logits, 1)[-1, :steps]
    return {
        "distance": distance(padded, torch.stack(alone.logits, 1)[0, :steps]),
        "cache": getattr(both, "past_key_values", None),
    }


def _steps_alike(one: Tensor, other: Tensor) -> int:
    """How many steps saw the same tokens: up to the first where different ones are chosen, which it includes."""
    different = (one != other).nonzero()
    return len(one) if not len(different) else int(different[0]) + 1


def _generated(model: Any, **batch: Tensor) -> Any:
    options = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None, "max_new_tokens": NEW_TOKENS}
    with torch.no_grad():
        return model.generate(**batch, **options, return_dict_in_generate=True, output_logits=True)
