"""What the tests of the cache and of generation share: models with room for long texts, and the truth."""

from __future__ import annotations

import torch
import transformers as hf
from test_adapted import mixed_config
from tiny import TINY, _common, build, tokens

import taylorder

__all__ = ["MODELS", "PADDED", "in_pieces", "mixed_config", "padded_batch", "positions", "score_space", "structure"]

PADDED = 23
"""Padding tokens at the start of the second row of :func:`padded_batch`."""


def gpt2():
    """As in ``tiny``, with room for 256 tokens."""
    config = hf.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=256, **_common())
    return build(hf.GPT2LMHeadModel, config)


MODELS = {name: TINY[name] for name in ("llama", "qwen3", "gemma3")} | {"gpt2": gpt2}


def padded_batch(length, seed=0):
    """Two rows of token ids ``[2, length]``, the second left-padded, and their mask."""
    ids = tokens(2, length, seed)
    mask = torch.ones_like(ids)
    mask[1, :PADDED] = 0
    ids[1, :PADDED] = 0
    return ids, mask


def positions(mask):
    """Position ids as ``generate`` derives them from a mask."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def score_space(model, config, ids, mask):
    """Logits of the whole sequences without any cache: gradients are recorded, which only score space does."""
    with torch.enable_grad(), taylorder.adapted(model, config):
        logits = model(ids, attention_mask=mask, position_ids=positions(mask)).logits
    assert logits.requires_grad
    return logits.detach()


def in_pieces(model, cache, ids, mask, sizes):
    """Logits of feeding ``sizes`` tokens at a time, going on from what the cache holds; inside ``adapted``."""
    parts, start = [], cache.get_seq_length()
    for size in sizes:
        stop = start + size
        piece = {"attention_mask": mask[:, :stop], "position_ids": positions(mask)[:, start:stop]}
        parts.append(model(ids[:, start:stop], past_key_values=cache, **piece).logits)
        start = stop
    return torch.cat(parts, 1)


def structure(model):
    """Everything an adapted block touches: attributes, hooks, and the attention selected."""
    hooks = {n: (sorted(vars(m)), len(m._forward_pre_hooks), len(m._forward_hooks)) for n, m in model.named_modules()}
    return hooks, model.config._attn_implementation
