"""Write the fixed mixed config of the built-in model: every kind of decision a config can hold, drawn once from a seed.

    python benchmarks/make_mixed_config.py benchmarks/configs/mixed.json

It is not a good config. It is what the tests and benchmarks of every backend are judged on, so that none of them passes
on defaults alone: orders 1-4, all expansions, windows 32-256, sinks, and groups that stay exact. Key centres are those
of the default calibration text. The file in the repository is of schema ``taylorder/orders@1`` and stays so: it shows
the tests that such files load.
"""

from __future__ import annotations

import sys

import numpy as np

import taylorder
from taylorder.adapt.config import HeadOrder, LayerOrders, ModelIdentity, OrderConfig
from taylorder.kernels.spec import Exact, HeadSpec, Near, Taylor
from taylorder.storage.provenance import software_versions

SEED = 20260204
EXACT_SHARE = 0.15
ZERO_SHARE = 0.3
WINDOWS = (32, 64, 128, 256)
SINKS = (0, 1, 4)


def draw_group(generator: np.random.Generator, group: int) -> list[HeadOrder]:
    """Decisions for the query heads of one KV head: shared near field and family, orders and expansions their own."""
    if generator.random() < EXACT_SHARE:
        return [HeadOrder(spec=HeadSpec(Exact()), error=0.0, reason="drawn")] * group
    near = Near(int(generator.choice(WINDOWS)), int(generator.choice(SINKS)))
    family = ("zero",) if generator.random() < ZERO_SHARE else ("centre", "mean")
    return [
        HeadOrder(
            spec=HeadSpec(Taylor(int(generator.integers(1, 5)), str(generator.choice(family))), near), reason="drawn"
        )
        for _ in range(group)
    ]


def main(path: str) -> None:
    loaded = taylorder.load()
    analysis = taylorder.analyze(loaded.model, loaded.tokenizer, name=loaded.name, rows=1, max_order=1)
    generator = np.random.default_rng(SEED)
    layers = []
    for module in analysis.model.modules:
        heads = [head for _ in range(module.kv_heads) for head in draw_group(generator, module.group)]
        layers.append(LayerOrders(module=module.name, heads=tuple(heads)))
    config = OrderConfig(
        model=ModelIdentity.of(analysis.model),
        calibration={"source": analysis.calibration.source, "text_sha256": analysis.calibration.text_sha256},
        criterion={"policy": "drawn", "seed": SEED},
        software=software_versions(),
        layers=tuple(layers),
    )
    config.with_key_centres(analysis.key_centres).save(path)


if __name__ == "__main__":
    main(sys.argv[1])
