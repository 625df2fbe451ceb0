"""Two configs of a tiny Llama, each KV head said one by one, and the bytes that a choice would have recorded."""

from __future__ import annotations

import tiny
from mixed_orders import PROBE_TEXT, random_probes

from taylorder.adapt.config import HeadOrder, LayerOrders, OrderConfig
from taylorder.adapt.cost import kv_head_bytes
from taylorder.kernels.spec import Dropped, Exact, HeadSpec, Near, Taylor
from taylorder.models.describe import describe
from taylorder.runs.recorded_config import RecordedConfig
from taylorder.runs.run_pair import RunPair
from taylorder.selection.config_pair import pair_configs

CONTEXT = 60
EXACT = HeadSpec(Exact())
SMALL = HeadSpec(Dropped(), Near(6, 4))
LARGE = HeadSpec(Dropped(), Near(20, 4))
LARGER = HeadSpec(Dropped(), Near(12, 4))
KEEPS = HeadSpec(Dropped(), Near(6, 4, 5))
ORDER = HeadSpec(Taylor(2, "mean"), Near(6, 4))


def config(*kv_heads, model=None, seed=0, context=CONTEXT):
    """A config of a tiny model whose KV heads, those of both layers one after the other, run these."""
    described = describe(model or tiny.llama(), "tiny")
    plain = OrderConfig.uniform(described, "exact")
    left, layers = iter(kv_heads), []
    for module in described.modules:
        heads = []
        for _ in range(module.kv_heads):
            spec = next(left)
            heads += [HeadOrder(spec=spec, nominal_bytes=kv_head_bytes([spec], module, context))] * module.group
        layers.append(LayerOrders(module=module.name, heads=tuple(heads)))
    made = plain.model_copy(update={"layers": tuple(layers), "criterion": {"policy": "levers", "context": context}})
    keeping = any(spec.near.kept for spec in kv_heads)
    return made.with_probes(random_probes(described, seed), PROBE_TEXT) if keeping else made


def pair(a, b, **more):
    """Two configs side by side, as a report gets them."""
    modules = describe(tiny.llama(), "tiny").modules
    sides = (RecordedConfig(name, made) for name, made in (("a/orders.json", a), ("b/orders.json", b)))
    return RunPair(*sides, pair_configs(a, b, modules, CONTEXT), **more)
