"""Which class a checkpoint is loaded into, and whether its weights are those that the class asks for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from taylorder.errors import TaylorderError
from taylorder.models.adapters import refuse_adapter_weights

_GENERATES = ("ForCausalLM", "LMHeadModel")


def auto_class(config: Any, *, gguf: bool) -> Any:
    """Return the auto class of transformers that builds what the config's first architecture names, head included.

    That is one with a language-model head where the architecture generates text, whatever it sees beside text, and
    ``AutoModel`` otherwise.
    """
    import transformers

    architecture = (config.architectures or [""])[0]
    headed = (
        transformers.AutoModelForCausalLM,
        transformers.AutoModelForImageTextToText,
        transformers.AutoModelForMultimodalLM,
        transformers.AutoModelForSeq2SeqLM,
    )
    for auto in headed:
        if architecture in _architectures(auto, config):
            return auto
    return headed[0] if gguf or architecture.endswith(_GENERATES) else transformers.AutoModel


def built_class(auto: Any, config: Any) -> Any:
    """Return the class that ``auto`` builds; None for remote code, which is known only afterwards."""
    classes = _classes(auto, config)
    named = [kind for kind in classes if kind.__name__ in (config.architectures or ())]
    return next(iter([*named, *classes]), None)


def _classes(auto: Any, config: Any) -> tuple[Any, ...]:
    classes = auto._model_mapping.get(type(config), ())
    return tuple(classes) if isinstance(classes, list | tuple) else (classes,)


def _architectures(auto: Any, config: Any) -> set[str]:
    """Names of the classes that ``auto`` can build from a config, remote ones included."""
    remote = (getattr(config, "auto_map", None) or {}).get(auto.__name__) or ""
    return {kind.__name__ for kind in _classes(auto, config)} | {str(remote).rpartition(".")[2]}


def refuse_report(model: nn.Module, report: Mapping[str, Any], name: str) -> None:
    """Refuse a checkpoint that does not fit its config, given transformers' report on loading it.

    A model of which parts are random, cut off or left out measures as well as any other. Heads and buffers that the
    class has no use for may be left out.
    """
    kind = type(model).__name__
    refuse_adapter_weights(sorted(report["unexpected_keys"]), name)
    if reshaped := sorted(report["mismatched_keys"]):
        key, found, expected = reshaped[0]
        raise TaylorderError(
            f"{name} has {len(reshaped)} weights of another shape than a {kind} of its config (the first is {key}, "
            f"{list(found)} where {list(expected)} is expected): its config.json is another model's or was edited; "
            "take weights and config that belong together."
        )
    # A masked-language-model checkpoint has no pooler, and attention does not need one.
    if lacking := sorted(key for key in report["missing_keys"] if "pooler" not in key):
        raise TaylorderError(
            f"{name} has no values for {len(lacking)} weights of a {kind} (the first is {lacking[0]}), which would be "
            "random: take a complete checkpoint of this architecture."
        )
    if left_out := sorted(_left_out(model, report["unexpected_keys"])):
        raise TaylorderError(
            f"{name} has {len(left_out)} weights that a {kind} of its config has no place for (the first is "
            f"{left_out[0]}): its config.json is another model's or was edited, to fewer layers for instance; take "
            "weights and config that belong together."
        )


def _left_out(model: Any, keys: set[str]) -> Iterator[str]:
    """Keys of weights within the body of a model: of further layers, or of further tensors of its modules."""
    parameters = {key for key, _ in model.named_parameters()}
    numberless = {re.sub(r"\d+", "*", key) for key in parameters}
    modules = {key.rpartition(".")[0] for key in parameters} - {""}
    predicts_ahead = bool(getattr(model.config.get_text_config(), "num_nextn_predict_layers", 0))
    for key in keys:
        # A checkpoint with a head and a model without one, or the other way round, differ in a prefix.
        prefix = f"{model.base_model_prefix}."
        for here in (key, key.removeprefix(prefix), prefix + key):
            another_layer = re.sub(r"\d+", "*", here) in numberless and not predicts_ahead
            if another_layer or here.rpartition(".")[0] in modules:
                yield key
                break
