"""Configs of tiny models whose KV heads keep keys, by probes of random numbers."""

from __future__ import annotations

from fractions import Fraction

from mixed_orders import PROBE_TEXT, random_probes
from policy_rules.fields import alike, changed

from taylorder.adapt import cost
from taylorder.kernels.spec import SINKS, Dropped, HeadSpec, Near
from taylorder.models.describe import describe


def small(model, seed=0):
    """A config of one near field, 6 + 4 + 5 keys, for all KV heads that see the whole context."""
    described = describe(model, "tiny")
    first = described.modules[0]
    config = alike(described, 16 * cost.kv_bytes(first.head_dim, first.value_dim, 1), Fraction(1, 2), {}, None)
    field = HeadSpec(Dropped(), Near(6, SINKS, 5))
    config = changed(config, described, lambda group, _: [field] * len(group))
    return described, config.with_probes(random_probes(described, seed), PROBE_TEXT)
