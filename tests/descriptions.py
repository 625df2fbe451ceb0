"""Descriptions of models that are made up."""

from __future__ import annotations

from dataclasses import replace

import torch

from taylorder.models.description import AttentionModule, ModelDescription


def made_up_model(layers=4, heads=4, kv_heads=2, d=16, d_v=16, sliding=(), causal=True):
    modules = tuple(
        AttentionModule(f"layers.{i}", heads, kv_heads, d, d_v, d**-0.5, causal, 32 if i in sliding else None)
        for i in range(layers)
    )
    return ModelDescription("made up", "LlamaForCausalLM", modules, 8192, "sha256:0")


def module(name="layers.0.attn", **changes):
    return replace(AttentionModule(name, 4, 2, 8, 8, 0.35, True, None), **changes)


def description(*modules, **changes):
    modules = modules or (module(), module("layers.1.attn"))
    return replace(ModelDescription("tiny", "TinyForCausalLM", modules, 64, "sha256:abc"), **changes)


def centres(model):
    return {m.name: torch.randn(m.kv_heads, m.head_dim) for m in model.modules}
