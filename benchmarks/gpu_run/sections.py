"""The sections of a run. Each gives its rows one by one, so that time can run out between any two of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from gpu_run.clock import medians
from gpu_run.sizes import Sizes
from taylorder.adapt.config import OrderConfig
from taylorder.evaluation.timing import bench
from taylorder.kernels import HeadSpec, State, taylor_attention
from taylorder.kernels.spec import Near, Taylor
from taylorder.models.describe import describe

ROOT = Path(__file__).resolve().parents[2]
TESTS = ("-m", "gpu", "-q", "-rs", "tests")
"""What pytest is given: all that needs a GPU."""


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        what: what ran, in words.
        tokens: how many there were, None where that says nothing.
        milliseconds: of one call, the median; None where nothing ran.
        ratio: over the first row of as many tokens.
        note: why nothing ran, or what came of it.

    """

    what: str
    tokens: int | None = None
    milliseconds: float | None = None
    ratio: float | None = None
    note: str = ""


def tests(seconds: float) -> Iterator[Row]:
    """Run the tests that need a GPU, not interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "pytest", *TESTS]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        yield Row("pytest " + " ".join(TESTS[:2]), note=f"not over after {seconds:.0f} s")
        return
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    yield Row(
        "pytest " + " ".join(TESTS[:2]), note=f"exit code {done.returncode}: {lines[-1] if lines else 'no output'}"
    )
    yield from (Row("test", note=line) for line in lines if line.startswith(("FAILED", "ERROR")))


def attention(sizes: Sizes) -> Iterator[Row]:
    """Whole causal attention: SDPA, what others have, and linear time, on the same queries, keys and values."""
    for tokens in sizes.lengths:
        q, k, v, _ = _tensors(sizes, tokens)
        candidates: dict[str, Callable[[], object]] = {
            "SDPA": partial(scaled_dot_product_attention, q, k, v, is_causal=True, enable_gqa=True)
        }
        absent = []
        for name, library, calls in _rivals(sizes, q, k, v):
            try:
                candidates[name] = calls(import_module(library))
            except ImportError as error:
                absent.append(Row(name, tokens, note=f"not importable: {error}"))
        for order in (2, 3):
            specs = [HeadSpec(Taylor(order, "mean"), Near(sizes.window, 4))] * sizes.heads
            candidates[f"order {order}, window {sizes.window}"] = partial(
                taylor_attention, q, k, v, specs, scaling=sizes.head_dim**-0.5
            )
        yield from _timed(candidates, sizes, tokens, sizes.repeats)
        yield from absent


def _rivals(
    sizes: Sizes, q: Tensor, k: Tensor, v: Tensor
) -> Iterator[tuple[str, str, Callable[[Any], Callable[[], object]]]]:
    """Names of other kernels, where they are, and how a module's is called; their layout is ``[B, T, H, d]``."""
    theirs = [tensor.transpose(1, 2).contiguous() for tensor in (q, k, v)]
    alike = [tensor.repeat_interleave(sizes.heads // tensor.shape[2], 2) for tensor in theirs]
    short = [alike[0][..., :16].contiguous(), alike[1][..., :16].contiguous(), alike[2]]
    yield "flash-attn", "flash_attn", lambda module: partial(module.flash_attn_func, *theirs, causal=True)
    # The plain second-order polynomial, by every pair of tokens, and in linear time for few coordinates.
    yield "fla parallel_based", "fla.ops.based", lambda module: partial(module.parallel_based, *alike, head_first=False)
    yield (
        "fla fused_chunk_based, 16 coordinates", "fla.ops.based",
        lambda module: partial(module.fused_chunk_based, *short, head_first=False),
    )  # fmt: skip


def prefill(sizes: Sizes) -> Iterator[Row]:
    """Reading a whole prompt, by length and by what all heads run."""
    for tokens in sizes.lengths:
        inputs = _tensors(sizes, tokens)
        candidates = {name: partial(_attend, sizes, spec, inputs) for name, spec in sizes.specs.items()}
        yield from _timed(candidates, sizes, tokens, sizes.repeats)


def decode(sizes: Sizes) -> Iterator[Row]:
    """One token after a prompt, by its length and by what all heads run."""
    for tokens in sizes.lengths:
        prompt, inputs = _tensors(sizes, tokens), _tensors(sizes, 1)
        candidates = {
            name: partial(_attend, sizes, spec, inputs, _attend(sizes, spec, prompt))
            for name, spec in sizes.specs.items()
        }
        yield from _timed(candidates, sizes, tokens, 8 * sizes.repeats)


def generate(sizes: Sizes, model: str | None) -> Iterator[Row]:
    """A whole model, as it is and with order 3 behind a window in every head: prompts, and tokens one by one."""
    loaded = _random_llama(sizes) if model is None else _loaded(model, sizes)
    description = describe(loaded)
    config = OrderConfig.uniform(description, 3, expansion="mean", window=sizes.window, sinks=4)
    for tokens in sizes.lengths:
        if tokens + sizes.new_tokens > description.max_context:
            yield Row("generate", tokens, note=f"the model sees {description.max_context} tokens")
            continue
        (row,) = bench(loaded, description, config, lengths=[tokens], new_tokens=sizes.new_tokens).rows
        for name, reading in (("exact", row.exact), ("order 3", row.adapted)):
            ratio = 1.0 if reading is row.exact else row.prefill_slowdown
            yield Row(f"prompt, {name}", tokens, 1e3 * reading.prefill_seconds, ratio)
            ratio = 1.0 if reading is row.exact else row.slowdown
            note = f"cache {reading.cache_bytes / (1 << 20):.1f} MiB"
            yield Row(f"token, {name}", tokens, reading.milliseconds_per_token, ratio, note)


def _random_llama(sizes: Sizes) -> Any:
    """SmolLM2's shape with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.hidden,
        intermediate_size=8 * sizes.hidden // 3,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        max_position_embeddings=2 * sizes.lengths[-1],
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).to(sizes.device, sizes.dtype).eval()


def _loaded(model: str, sizes: Sizes) -> Any:
    from taylorder.models.loading import load

    return load(model, device=sizes.device, dtype=sizes.dtype).model


def _timed(candidates: Mapping[str, Callable[[], object]], sizes: Sizes, tokens: int, repeats: int) -> Iterator[Row]:
    """Medians of candidates that take turns; one that fails says why and does not stop the others."""
    working = {}
    notes = {}
    for name, call in candidates.items():
        try:
            call()
            working[name] = call
        except Exception as error:  # whatever another library raises on sizes that it does not take
            notes[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    seconds = medians(working, repeats, sizes.device, sizes.warm_ups)
    base = next(iter(seconds.values()), None)
    for name in candidates:
        if name in seconds:
            yield Row(name, tokens, 1e3 * seconds[name], seconds[name] / base if base else None)
        else:
            yield Row(name, tokens, note=notes[name])


def _attend(sizes: Sizes, spec: HeadSpec, inputs: Sequence[Tensor], state: State | None = None) -> State | None:
    """Attend in all heads alike; return the state after it."""
    q, k, v, priority = inputs
    heads, scaling = [spec] * sizes.heads, sizes.head_dim**-0.5
    return taylor_attention(q, k, v, heads, scaling=scaling, priority=priority, state=state)[1]


def _tensors(sizes: Sizes, tokens: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random queries, keys, values and priorities of one sequence."""
    q, k, v = (
        torch.randn(1, heads, tokens, sizes.head_dim, device=sizes.device, dtype=sizes.dtype)
        for heads in (sizes.heads, sizes.kv_heads, sizes.kv_heads)
    )
    return q, k, v, torch.randn(1, sizes.kv_heads, tokens, device=sizes.device)
