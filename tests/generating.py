"""What the tests of the cache and of generation share: models with room for long texts, and the truth."""

from __future__ import annotations

import torch
import transformers as hf
from tiny import TINY, build, common, tokens

import taylorder
from taylorder.adapt.cache import TaylorCache
from taylorder.adapt.config import OrderConfig
from taylorder.models.describe import describe

__all__ = [
    "LENGTH", "MODELS", "MODES", "PADDED", "SIZES", "generate", "generated", "in_pieces", "padded_batch",
    "positions", "run", "score_space", "structure", "uniform",
]  # fmt: skip

SIZES = (70, 1, 1, 1, 20, 1, 16)
"""Tokens fed at a time, :data:`LENGTH` in all."""

LENGTH = sum(SIZES)

PADDED = 23
"""Padding tokens at the start of the second row of :func:`padded_batch`."""


def gpt2():
    """As in ``tiny``, with room for 256 tokens."""
    config = hf.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=256, **common())
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


MODES = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "num_return_sequences": 3},
    "beams": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
    "sampled beams": {"do_sample": True, "num_beams": 2},
    "chunked prefill": {"do_sample": False, "prefill_chunk_size": 17},
}


def generate(model, ids, mask, new=8, **options):
    torch.manual_seed(0)
    quiet = {"pad_token_id": 0, "eos_token_id": None, "return_dict_in_generate": True, "output_logits": True}
    return model.generate(ids, attention_mask=mask, max_new_tokens=new, **{**quiet, **options})


def uniform(model, *arguments, **options):
    return OrderConfig.uniform(describe(model, "tiny"), *arguments, **options)


def run(model, config, ids, mask, sizes=SIZES, cache=None):
    """A cache (a new one unless given) after these tokens, and the logits on the way."""
    cache = TaylorCache(model, config) if cache is None else cache
    with torch.no_grad(), taylorder.adapted(model, config):
        return cache, in_pieces(model, cache, ids, mask, sizes)


def generated(pieces):
    """Run a stream to its end and return what it returns."""
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            return end.value
