"""What the config of a model says where its weights are not there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taylorder.models.checkpoint import auto_class, built_class
from taylorder.models.folders import other_format
from taylorder.models.quiet import quiet_transformers
from taylorder.models.refusals import refuse_class, refuse_config
from taylorder.models.sources import Source, explained

_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "*.pt", "*.index.json")

_FULL, _SLIDING, _CHUNKED, _SHARED = "full_attention", "sliding_attention", "chunked_attention", "shared"


@dataclass(frozen=True, slots=True)
class Architecture:
    """What a config states; a size that it does not state in the usual way is None.

    ``layers`` is all of them, ``full`` those that attend to the whole context, to keys that no other layer reads,
    ``shared`` those to keys that several read, ``sliding`` and ``chunked`` those that see a part of it; ``kv_heads``
    and ``head_dim`` are those of a full layer.
    """

    name: str
    architecture: str
    layers: int | None
    full: int
    sliding: int
    chunked: int
    shared: int
    kv_heads: int | None
    head_dim: int | None
    max_context: int | None

    @property
    def token_bytes(self) -> int | None:
        """Nominal bytes that a token of the layers that see everything takes in a cache."""
        if self.kv_heads is None or self.head_dim is None:
            return None
        return self.full * self.kv_heads * 2 * self.head_dim * 2  # keys and values, in bfloat16


def without_weights(name: str) -> Path | None:
    """The folder that a name means, if it holds the config of a model and no weights."""
    try:
        folder = Path(name).expanduser()
        weights = any(next(folder.glob(kind), None) for kind in _WEIGHTS)
        if (folder / "config.json").is_file() and not weights and other_format(folder) is None:
            return folder
    except (OSError, RuntimeError, ValueError):  # no path at all, which loading will say
        pass
    return None


def architecture_of(folder: Path, name: str) -> Architecture:
    """Read a config, and refuse what it or the class that it names gives away.

    Raises:
        UnsupportedModelError: the model cannot be measured truthfully.
        TaylorderError: the config cannot be read.

    """
    with quiet_transformers(), explained(Source(name, str(folder))):
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        refuse_config(config, name)
        if (built := built_class(auto_class(config, gguf=False), config)) is not None:
            refuse_class(built)
        text = config.get_text_config()
        kinds = _layer_types(text)
        layers = getattr(text, "num_hidden_layers", None)
        if _FULL in kinds:  # where layers differ, their configs do
            text = getattr(text, "per_layer_config", {kinds.index(_FULL): text})[kinds.index(_FULL)]
        heads = getattr(text, "num_attention_heads", None)
        latent = getattr(text, "kv_lora_rank", None)  # keys and values of another shape than heads and hidden size say
        return Architecture(
            name=name,
            architecture=(config.architectures or [type(config).__name__])[0],
            layers=layers,
            full=kinds.count(_FULL),
            sliding=kinds.count(_SLIDING),
            chunked=kinds.count(_CHUNKED),
            shared=kinds.count(_SHARED),
            kv_heads=None if latent else getattr(text, "num_key_value_heads", None) or heads,
            head_dim=None if latent else _head_dim(text, heads),
            max_context=getattr(text, "max_position_embeddings", None),
        )


def _layer_types(text: Any) -> list[str]:
    layers = getattr(text, "num_hidden_layers", None) or 0
    window = getattr(text, "sliding_window", None)
    kinds = list(getattr(text, "layer_types", None) or [_FULL if window is None else _SLIDING] * layers)
    modes = getattr(text, "kv_sharing_modes", None) or [None] * len(kinds)
    return [_SHARED if mode and kind == _FULL else kind for kind, mode in zip(kinds, modes, strict=True)]


def _head_dim(text: Any, heads: Any) -> int | None:
    stated = getattr(text, "head_dim", None)
    hidden = getattr(text, "hidden_size", None)
    if isinstance(stated, int):
        return stated
    return hidden // heads if isinstance(hidden, int) and isinstance(heads, int) and heads else None
