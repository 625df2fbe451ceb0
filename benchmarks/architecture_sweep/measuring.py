"""What ``analyze`` says of a model, whether it found the weights of its attention, and what ``load`` makes of it."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

import taylorder
from taylorder.analysis.projections import projection_weights

from . import inputs
from .attention import Call, attending
from .examination import Examination
from .own_inputs import own_inputs
from .running import run

MOST_PARAMETERS = 20_000_000
"""Of a model that is saved and loaded again."""


def analyze(model: Any, batch: dict[str, Tensor] | None = None) -> Any:
    """Analyse as a user does who has the model in memory, on text or on a batch of its own inputs."""
    if batch is not None:
        return taylorder.analyze(model, inputs=[batch], rows=8, max_order=3)
    length, letters = inputs.LENGTH, inputs.text()
    options = {"max_tokens": 4 * length, "sequence_length": length, "rows": 8, "max_order": 3}
    return taylorder.analyze(model, inputs.tokenizer(), text=letters, **options)


def what_was_seen(model: Any, analysis: Any) -> dict[str, Any]:
    """The part of a record that says what the analysis saw and what it did not."""
    description, typical = analysis.model, analysis.model.typical
    seen = {module.name for module in description.modules}
    return {
        "modules": len(seen),
        "open": len(description.open_modules),
        "causal": description.causal,
        "heads": [typical.heads, typical.kv_heads, typical.head_dim, typical.value_dim],
        "stays_exact": sorted({module.stays_exact for module in description.closed_modules}),
        "calls": max(module.calls for module in description.modules),
        "max_context": description.max_context,
        "attention_class": type(model.get_submodule(typical.name)).__name__,
        "without_alpha": sorted({row.projection for row in analysis.spectral if row.status == "unavailable"}),
        "unseen": sorted(_unseen(model, seen)),
    }


def _unseen(model: Any, seen: set[str]) -> set[str]:
    """Classes of attention modules that the analysis left out, such as those of a vision tower."""

    def related(name: str, other: str) -> bool:
        return name == other or name.startswith(f"{other}.") or other.startswith(f"{name}.")

    return {
        type(module).__name__
        for name, module in model.named_modules()
        if type(module).__name__.endswith("Attention") and not any(related(name, other) for other in seen)
    }


def projection_cosines(model: Any) -> dict[str, float]:
    """The least cosine between what the weights found make of a module's input and the q, k, v of its attention call.

    Of v at all positions; of q and k at position 0, where a rotary embedding turns nothing, up to the scale of a norm.
    A weight that does not fit the input, or gives NaN, counts as -1. Norms inside an attention module lower it as well.
    """
    entering: dict[str, Tensor] = {}
    least: dict[str, float] = {}

    def noting(name: str) -> Any:
        def note(module: Any, args: Any, kwargs: Any) -> None:
            value = args[0] if args else kwargs.get("hidden_states", kwargs.get("x"))
            if isinstance(value, Tensor) and value.ndim == 3:
                entering[name] = value.float()

        return note

    def compare(call: Call) -> None:
        if call.name not in entering:
            return
        for name, weight in projection_weights(model, call.name).items():
            if name in ("q", "k", "v"):
                cosine = _cosine(entering[call.name], weight.float(), getattr(call, name), everywhere=name == "v")
                least[name] = min(least.get(name, 1.0), cosine)

    hooks = [module.register_forward_pre_hook(noting(name), with_kwargs=True) for name, module in model.named_modules()]
    try:
        with attending(model, compare):
            run(model, input_ids=inputs.token_ids(12, batch=3))
    finally:
        for hook in hooks:
            hook.remove()
    return least


def _cosine(entering: Tensor, weight: Tensor, actual: Tensor, *, everywhere: bool) -> float:
    heads, head_dim = actual.shape[1], actual.shape[3]
    if (heads * head_dim, entering.shape[-1]) != tuple(weight.shape):
        return -1.0
    made = (entering @ weight.T).unflatten(-1, (heads, head_dim)).transpose(1, 2)
    positions = slice(None) if everywhere else slice(0, 1)
    cosine = torch.cosine_similarity(made[:, :, positions], actual[:, :, positions].float(), dim=-1)
    return round(cosine.min().item(), 4) if cosine.isfinite().all() else -1.0


def own_calls(examination: Examination, model: Any) -> dict[str, Tensor] | None:
    """What a refusal costs: with inputs of the model's own, do its attention calls come through, and are they plain?

    Returns these inputs, None where the model runs on none that are known here.
    """
    batch = examination.untouched("making inputs", lambda: own_inputs(model))
    terms: set[str] = set()
    shapes: list[tuple[int, int]] = []

    def note(call: Call) -> None:
        shapes.append((call.q.shape[2], call.k.shape[2]))
        terms.update(call.extra_terms)

    def attend() -> bool:
        with torch.no_grad(), attending(model, note):
            model(**batch)
        return True

    ran = batch and examination.untouched("own inputs", attend)
    examination.record["own_inputs"] = {
        "calls": len(shapes),
        "cross": sum(queries != keys for queries, keys in shapes),
        "extra_terms": sorted(terms),
    }
    return batch if ran else None


def load(examination: Examination, model: Any) -> None:
    """Save the model with a tokenizer, load it, and note the class."""
    with tempfile.TemporaryDirectory() as folder:

        def save() -> bool:
            """Save, and have transformers itself read everything back: the product can do no more."""
            model.save_pretrained(folder)
            inputs.tokenizer().save_pretrained(folder)
            AutoTokenizer.from_pretrained(folder)
            type(model).from_pretrained(folder)
            return True

        if examination.untouched("load", save) is None:
            return
        loaded = examination.product("load", lambda: taylorder.load(folder).model)
        for refusal in examination.record["refused"]:  # the folder has another name in each run
            refusal["message"] = refusal["message"].replace(folder, "FOLDER")
        if loaded is not None:
            examination.record["load"] = {
                "class": type(loaded).__name__,
                "generates": bool(loaded.can_generate()),
                "saved_generates": bool(model.can_generate()),
            }
