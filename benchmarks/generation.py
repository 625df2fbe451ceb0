"""Memory and time of generation, exact against adapted, on a tiny model of random weights.

    python benchmarks/generation.py [--quick] [--out FILE]

1. 100,000 tokens are fed in chunks to a model whose heads are all truncated: resident memory of the process and bytes
   of the cache after every tenth of the way. The exact cache is fed less far for comparison: its time is quadratic.
2. Milliseconds per decoded token after contexts of growing length, exact and adapted, with the bytes of both caches.
3. The context at which the state becomes smaller than the keys and values, predicted and found.

Progress goes to stderr, the JSON document to stdout or to FILE. Run it with OMP_NUM_THREADS=1: products this small gain
nothing from threads and wait for each other.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from pathlib import Path

import torch
import transformers as hf

import taylorder
from taylorder.adapt.cache import TaylorCache, cache_bytes, nominal_cache_bytes
from taylorder.adapt.cost import break_even_tokens
from taylorder.adapt.prepared import prepare
from taylorder.models.describe import describe
from taylorder.storage.provenance import software_versions

HEAD_DIM = 16
ORDER, WINDOW, SINKS = 3, 64, 4
CHUNK = 500
DECODED = 24


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


class Feeding:
    """A model that is fed random tokens, going on from a cache."""

    def __init__(self, model: hf.PreTrainedModel, cache: hf.Cache) -> None:
        self.model, self.cache = model, cache
        self.draw = torch.Generator().manual_seed(1)

    @torch.no_grad()
    def feed(self, tokens: int, size: int = CHUNK) -> float:
        """Feed that many tokens, ``size`` at a time; return the median seconds per call."""
        times = []
        for start in range(0, tokens, size):
            ids = torch.randint(3, 128, (1, min(size, tokens - start)), generator=self.draw)
            begun = time.perf_counter()
            self.model(ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
            times.append(time.perf_counter() - begun)
        return statistics.median(times)


def memory(model: hf.PreTrainedModel, cache: hf.Cache, tokens: int, label: str) -> list[dict[str, int]]:
    """Memory after every tenth of ``tokens``."""
    feeding, rows = Feeding(model, cache), []
    for _ in range(10):
        feeding.feed(tokens // 10)
        rows.append({
            "tokens": cache.get_seq_length(),
            "resident_bytes": resident_bytes(),
            "cache_bytes": cache_bytes(cache),
            "nominal_bytes": nominal_cache_bytes(cache),
        })  # fmt: skip
        say(
            f"{label:8}{rows[-1]['tokens']:>9,} tokens   resident {rows[-1]['resident_bytes'] / 2**20:7.1f} MiB   "
            f"cache {rows[-1]['cache_bytes'] / 2**20:7.3f} MiB   nominal {rows[-1]['nominal_bytes'] / 2**20:7.3f} MiB"
        )
    return rows


def times(model: hf.PreTrainedModel, cache: hf.Cache, lengths: list[int], label: str) -> list[dict[str, float]]:
    """Milliseconds per token decoded after contexts of ``lengths``, ascending."""
    feeding, rows = Feeding(model, cache), []
    for length in lengths:
        feeding.feed(length - cache.get_seq_length())
        seconds = feeding.feed(DECODED, 1)
        rows.append({
            "context": length,
            "milliseconds_per_token": round(1e3 * seconds, 4),
            "cache_bytes": cache_bytes(cache),
            "nominal_bytes": nominal_cache_bytes(cache),
        })  # fmt: skip
        say(f"{label:8}{length:>9,} tokens before   {1e3 * seconds:8.3f} ms per token")
    return rows


def break_even(model: hf.PreTrainedModel, config: taylorder.OrderConfig) -> dict[str, int]:
    """Context at which the adapted cache stays below the exact one: predicted by arithmetic, found by feeding."""
    predicted = break_even_tokens(HEAD_DIM, HEAD_DIM, ORDER, near=WINDOW + SINKS)
    prepared = prepare(model, config)
    exact, adapted = hf.DynamicCache(config=model.config), TaylorCache(model, prepared)
    found = step = 16
    plain, truncated = Feeding(model, exact), Feeding(model, adapted)
    for context in range(step, 4 * predicted, step):
        plain.feed(step)
        with taylorder.attach(model, prepared):
            truncated.feed(step)
        if nominal_cache_bytes(adapted) > nominal_cache_bytes(exact):
            found = context + step
    say(f"break-even: {predicted:,} tokens predicted, {found:,} found (in steps of {step})")
    return {"predicted": predicted, "found": found, "step": step}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter contexts in parts 1 (exact) and 2")
    parser.add_argument("--out", type=Path, help="write the JSON document there instead of to stdout")
    chosen = parser.parse_args()
    lengths = [256, 1024, 4096] if chosen.quick else [256, 1024, 4096, 16384, 32768]
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
    Feeding(model, hf.DynamicCache(config=model.config)).feed(
        2 * CHUNK
    )  # what the first calls allocate is not the cache's
    with taylorder.attach(model, config) as handle:
        document["memory_adapted"] = memory(model, handle.new_cache(), 100_000, "adapted")
        document["time_adapted"] = times(model, handle.new_cache(), lengths, "adapted")
    exact = hf.DynamicCache(config=model.config)
    document["memory_exact"] = memory(model, exact, 10_000 if chosen.quick else 50_000, "exact")
    document["time_exact"] = times(model, hf.DynamicCache(config=model.config), lengths, "exact")
    document["break_even"] = break_even(model, config)
    document["seconds"] = round(time.perf_counter() - begun, 1)
    text = json.dumps(document, indent=1)
    if chosen.out is None:
        print(text)
    else:
        chosen.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
