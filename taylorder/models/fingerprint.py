"""What identifies the weights of a model, whatever dtype they are held in, and what to do where they differ."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn

from taylorder.models.offloading import stored, weights

_SAMPLED_VALUES = 4096


def fingerprint(model: nn.Module) -> str:
    """``"sha256:..."`` over the name, the shape and a sample of the values of every parameter.

    The sample is every n-th value, at most 4,096 of a parameter, rounded to bfloat16, so that loads of one checkpoint
    in float32 and bfloat16 agree, on any device (one loaded in float16 is rounded to that first, and may not).
    A tied weight counts once, under its first name. Another checkpoint, another architecture, fine-tuning, an adapter
    or a change of precision below bfloat16's are noticed; a change of a few values between the sampled ones, a change
    smaller than bfloat16 resolves, and whatever is not a parameter (config, rotary base, buffers) are not.
    """
    digest = hashlib.sha256()
    for name, (module, key) in sorted(weights(model).items()):
        values = stored(module, key)
        if values is None:
            raise ValueError(f"{name} has no data, and nothing says where it is")
        stride = -(-values.numel() // _SAMPLED_VALUES) or 1
        sample = values.reshape(-1)[::stride].to(torch.bfloat16).cpu().contiguous()
        digest.update(f"{name}{tuple(values.shape)}".encode())
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
