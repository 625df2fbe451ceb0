"""What models of 8 and 70 billion parameters take, from the formulas that ``taylorder check`` uses; they are not run.

    python benchmarks/larger_models.py

Prints the table of docs/larger-models.md. The shapes are those of Llama 3.1; no weights are needed. What is done on the
CPU whatever the model runs on is timed here, a few seconds of it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from accelerate.hooks import attach_align_device_hook

from taylorder.models.describe import describe
from taylorder.models.description import AttentionModule, ModelDescription
from taylorder.models.loading import load
from taylorder.reports.numbers import size
from taylorder.selection.cache_size import CacheSize
from taylorder.selection.plan import ModelAndText, analysis_plan
from taylorder.selection.recomputing import remembered_bytes
from taylorder.selection.settings import AnalyzeSettings, Budget
from taylorder.selection.speed import speed
from taylorder.storage.stages import Speed

SHAPES = {
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "70B": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
}
CONTEXT, TEXT, KINDS = 4096, 120_000, 2
TIMED_VALUE_DIM = 64
RATE = 50e12
"""FLOP a second that a GPU is taken to sustain: an assumption, a tenth to a sixth of what data sheets say."""


@dataclass(frozen=True)
class Taken:
    """What one model takes, by row of the table."""

    rows: dict[str, str]

    @classmethod
    def of(cls, shape: dict[str, int], speed: Speed) -> Taken:
        config = hf.LlamaConfig(
            **shape, num_key_value_heads=8, vocab_size=128256, max_position_embeddings=131072, dtype="bfloat16"
        )
        with torch.device("meta"):
            model = hf.LlamaForCausalLM(config)
        in_layers = sum(parameter.numel() for parameter in model.model.layers.parameters())
        # As where its weights lie on disk: of every weight there is a shape to be had.
        attach_align_device_hook(model, execution_device="meta", offload=True, weights_map=dict(model.state_dict()))
        return cls(dict(_rows(model, _described(config), in_layers, speed)))


def _described(config: Any) -> ModelDescription:
    heads, dim = config.num_attention_heads, config.head_dim
    modules = tuple(
        AttentionModule(f"model.layers.{layer}.self_attn", heads, 8, dim, dim, dim**-0.5, True, None)
        for layer in range(config.num_hidden_layers)
    )
    return ModelDescription("", "LlamaForCausalLM", modules, config.max_position_embeddings, "", dtype="bfloat16")


def _rows(model: Any, description: ModelDescription, in_layers: int, speed: Speed) -> Iterator[tuple[str, str]]:
    subject = ModelAndText(model, description, TEXT, KINDS)
    plain = analysis_plan(subject, [AnalyzeSettings()], evaluated=False)
    settings = AnalyzeSettings(budget=Budget.parse("25%"), context=CONTEXT)
    within = analysis_plan(subject, [settings], evaluated=False)
    layers = len(description.modules)
    yield "weights in bfloat16", size(2 * sum(parameter.numel() for parameter in model.parameters()))
    yield "one layer's weights", size(2 * in_layers // layers)
    yield f"KV cache at {CONTEXT:,} tokens, exact", size(CacheSize.of(description, CONTEXT).exact_bytes)
    yield "`analyze`: memory beside the model", size(plain.memory)
    spectra, heads = plain.stages
    yield "… CPU hours for spectra", f"{spectra.work['spectrum'] * speed['spectrum'] / 3600:.1f}"
    # A term is a product with the values: twice as many numbers as those of the model that was timed have.
    term = speed["term"] * description.modules[0].value_dim / TIMED_VALUE_DIM
    yield "… CPU hours for errors of heads", f"{heads.work['term'] * term / 3600:.1f}"
    yield "`--budget`: a sequence on its way back, whole", size(remembered_bytes(model, CONTEXT))
    yield "… layer by layer", size(remembered_bytes(model, CONTEXT, by_layer=True))
    yield "`--budget`: memory beside the model, layer by layer", size(within.memory)
    yield "`--budget`: disk", size(within.disk)
    tokens = sum(stage.work.get("token", 0) for stage in within.stages)
    yield "`--budget`: tokens through the model, at most", f"{tokens:,.0f}"
    scores = sum(stage.work.get("near", 0) + stage.work.get("use", 0) for stage in within.stages)
    flop = 2 * in_layers * tokens + 4 * description.modules[0].head_dim * scores
    yield "… and FLOP, near fields included", f"{flop:.1e}"
    yield f"… in hours at {RATE / 1e12:.0f} TFLOP/s", f"{flop / RATE / 3600:.1f}"
    yield "… and bytes read where all layers lie on disk", size(2 * in_layers * tokens / CONTEXT)


def main() -> None:
    """Print the table."""
    loaded = load()
    timed = speed(loaded.model, describe(loaded.model), time.process_time)
    taken = {name: Taken.of(shape, timed) for name, shape in SHAPES.items()}
    print(f"| | {' | '.join(taken)} |\n| --- |{' ---: |' * len(taken)}")
    for row in next(iter(taken.values())).rows:
        print(f"| {row} | {' | '.join(one.rows[row] for one in taken.values())} |")


if __name__ == "__main__":
    main()
