"""Memory of generation, exact against adapted, on a tiny model of random weights.

    python benchmarks/generation.py [--quick] [--out FILE]

100,000 tokens are fed in chunks to a model whose heads are all truncated: resident memory of the process and bytes of
the cache after every tenth of the way. The exact cache is fed less far for comparison: its time is quadratic. Times per
token and the break-even context are those of `taylorder bench`.

Progress goes to stderr, the JSON document to stdout or to FILE. Run it with OMP_NUM_THREADS=1: products this small gain
nothing from threads and wait for each other.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from pathlib import Path

import torch
import transformers as hf

import taylorder
from taylorder.adapt.cache import cache_bytes, nominal_cache_bytes
from taylorder.models.describe import describe
from taylorder.storage.provenance import software_versions

HEAD_DIM = 16
ORDER, WINDOW, SINKS = 3, 64, 4
CHUNK = 500


def tiny_model() -> hf.PreTrainedModel:
    """Two layers, 4 query heads on 2 KV heads of dimension 16."""
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=HEAD_DIM, vocab_size=128, max_position_embeddings=1 << 17, initializer_range=0.2,
    )  # fmt: skip
    return hf.LlamaForCausalLM(config).eval()


def resident_bytes() -> int:
    """Resident memory of this process (Linux)."""
    gc.collect()
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmRSS line")


@torch.no_grad()
def feed(model: hf.PreTrainedModel, cache: hf.Cache, tokens: int, draw: torch.Generator) -> None:
    """Feed that many random tokens in chunks, going on from a cache."""
    for start in range(0, tokens, CHUNK):
        ids = torch.randint(3, 128, (1, min(CHUNK, tokens - start)), generator=draw)
        model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)


def memory(model: hf.PreTrainedModel, cache: hf.Cache, tokens: int, label: str) -> list[dict[str, int]]:
    """Memory after every tenth of ``tokens``."""
    draw, rows = torch.Generator().manual_seed(1), []
    for _ in range(10):
        feed(model, cache, tokens // 10, draw)
        rows.append({
            "tokens": cache.get_seq_length(),
            "resident_bytes": resident_bytes(),
            "cache_bytes": cache_bytes(cache),
            "nominal_bytes": nominal_cache_bytes(cache),
        })  # fmt: skip
        print(
            f"{label:8}{rows[-1]['tokens']:>9,} tokens   resident {rows[-1]['resident_bytes'] / 2**20:7.1f} MiB   "
            f"cache {rows[-1]['cache_bytes'] / 2**20:7.3f} MiB   nominal {rows[-1]['nominal_bytes'] / 2**20:7.3f} MiB",
            file=sys.stderr,
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="feed the exact model less far")
    parser.add_argument("--out", type=Path, help="write the JSON document there instead of to stdout")
    chosen = parser.parse_args()
    model = tiny_model()
    config = taylorder.OrderConfig.uniform(model, ORDER, "mean", WINDOW, SINKS)
    description = describe(model, "tiny")
    begun = time.perf_counter()
    document: dict[str, object] = {
        "model": {"layers": len(description.modules), "heads": 4, "kv_heads": 2, "head_dim": HEAD_DIM},
        "config": {"order": ORDER, "expansion": "mean", "window": WINDOW, "sinks": SINKS},
        "threads": torch.get_num_threads(),
        "software": software_versions(),
    }
    # What the first calls allocate is not the cache's.
    feed(model, hf.DynamicCache(config=model.config), 2 * CHUNK, torch.Generator())
    with taylorder.attach(model, config) as handle:
        document["memory_adapted"] = memory(model, handle.new_cache(), 100_000, "adapted")
    exact = hf.DynamicCache(config=model.config)
    document["memory_exact"] = memory(model, exact, 10_000 if chosen.quick else 50_000, "exact")
    document["seconds"] = round(time.perf_counter() - begun, 1)
    text = json.dumps(document, indent=1)
    if chosen.out is None:
        print(text)
    else:
        chosen.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
