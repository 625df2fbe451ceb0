"""Configs of tiny models whose KV heads keep keys, by probes of random numbers."""

from __future__ import annotations

from fractions import Fraction

import torch
from policy_rules.fields import alike, changed

from taylorder.adapt import cost
from taylorder.adapt.probe import probe_width
from taylorder.kernels.spec import SINKS, Dropped, HeadSpec, Near
from taylorder.models.describe import describe

ABOUT = {"text": "random numbers", "tokens": 1, "sha256": "0" * 64}


def probes_of(described, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        module.name: torch.randn(module.kv_heads, probe_width(module.head_dim, module.value_dim), generator=generator)
        for module in described.open_modules
    }


def small(model, seed=0):
    """A config of one near field, 6 + 4 + 5 keys, for all KV heads that see the whole context."""
    described = describe(model, "tiny")
    first = described.modules[0]
    config = alike(described, 16 * cost.kv_bytes(first.head_dim, first.value_dim, 1), Fraction(1, 2), {}, None)
    field = HeadSpec(Dropped(), Near(6, SINKS, 5))
    config = changed(config, described, lambda group, _: [field] * len(group))
    return described, config.with_probes(probes_of(described, seed), ABOUT)
