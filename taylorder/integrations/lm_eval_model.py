"""The model ``taylorder`` of lm-evaluation-harness: its own Hugging Face model, with a config attached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from taylorder.adapt.handle import attach
from taylorder.models.sources import BUILTIN, Source, explained, gguf_parsed_once, locate
from taylorder.runs import run_files
from taylorder.runs.subject import named_by, subject_of


@register_model("taylorder")  # type: ignore[misc, untyped-decorator, unused-ignore]  # lm-eval is not typed
class TaylorderLM(HFLM):  # type: ignore[misc]
    """lm-eval's ``hf`` model, loaded by it with all its options, that runs with a config.

    Batches are what lm-eval makes of them: padded on the right and without a mask for likelihoods, on the left and
    with a cache for generation. ``generate`` keeps a :class:`~taylorder.adapt.cache.TaylorCache` by itself.

    Attributes:
        handle: what is attached.

    """

    def __init__(
        self,
        pretrained: Any = None,
        *,
        orders: str = str(run_files.DEFAULT),
        device: str | None = None,
        dtype: Any = None,
        gguf_file: str | None = None,
        **options: Any,
    ) -> None:
        """Load a model as ``hf`` does, and attach the config.

        Args:
            pretrained: a Hub id, a folder, a ``.gguf`` file or the built-in model's name; or a transformers model, with
                its ``tokenizer`` beside it. None is the model that the config was made for.
            orders: the config: an ``orders.json``, or a run.
            device: None is a GPU where there is one, else the CPU.
            dtype: of the weights; None is that of the run, float32 where nothing says so.
            gguf_file: a file in the folder ``pretrained``.
            options: the others that ``hf`` has.

        Raises:
            UsageError: there is no such run or model.
            ConfigError: the config is malformed, or does not belong to the model.
            UnsupportedModelError: the model cannot be adapted.

        """
        named = pretrained if isinstance(pretrained, str) else None
        about = subject_of(Path(orders), named, dtype)
        if pretrained is None or named is not None:
            to_load = about.to_load
            with named_by(to_load.named_by, to_load.model, "name the model with pretrained="):
                source = source_of(to_load.model, gguf_file)
                options.setdefault("revision", (source.on_the_hub and to_load.revision) or "main")
                with explained(source), gguf_parsed_once(source):
                    super().__init__(
                        source.folder,
                        device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
                        dtype=to_load.dtype,
                        gguf_file=source.gguf,
                        **options,
                    )
        else:
            super().__init__(pretrained, **options)
        self.handle = attach(self.model, about.config)

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes beside results: the model, and which config it ran with."""
        config = self.handle.config
        about_model: dict[str, Any] = super().get_model_info()
        return about_model | {
            "taylorder_digest": self.handle.digest,
            "taylorder_model": config.model.name,
            "taylorder_fingerprint": config.model.fingerprint,
        }


def source_of(model: str | None, gguf_file: str | None) -> Source:
    """Where a model is that is given by name, None for the built-in one, or by a folder and a GGUF file in it."""
    if model is not None and gguf_file is not None:
        return Source(model, model, gguf_file)
    return locate(model or BUILTIN)
