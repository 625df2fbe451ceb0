"""Does it pay to reward mild scores while a model is healed? LoRA for order 3 with a regulariser on their spread.

    python benchmarks/healing_spread.py --weight 0 0.1 0.5      # six minutes of one core each

Adds to the KL, so many times, half the logarithm of the mean variance of a row's scores, averaged over heads and
layers. Prints held-out KL, and that average for the last sequence; what came of it is in
docs/notebook/2026-11-healing.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from healing import CUBIC
from torch import Tensor

import taylorder
from taylorder.adapt import attention
from taylorder.analysis.tokens import tokenise
from taylorder.healing.checkpoint import Checkpoint
from taylorder.healing.course import Course
from taylorder.healing.schedule import Schedule
from taylorder.healing.settings import RATES, HealSettings
from taylorder.healing.student import Student
from taylorder.healing.text import TrainingText, training_text
from taylorder.healing.trained import training_weights
from taylorder.storage.records import Records

FIRST_ROW = 16
"""Rows before it see too few keys to have a spread."""


def log_spread(q: Tensor, k: Tensor, scaling: float) -> Tensor:
    """Half the log of the mean variance of causal rows of scores, the mean over heads; ``[B, H, T, d]``."""
    keys = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    visible = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).tril()
    scores, count = (q @ keys.mT * scaling).masked_fill(~visible, 0), visible.sum(-1)
    variance = scores.square().sum(-1) / count - (scores.sum(-1) / count).square()
    return 0.5 * variance[..., FIRST_ROW:].mean(-1).log().mean()


class _Milder(torch.autograd.Function):
    """Hands q and k on, and on the way back adds the gradient of the regulariser, which layers may recompute."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, scaling: float, weight: float, seen: list[float]) -> Any:
        ctx.save_for_backward(q, k)
        ctx.rest = scaling, weight, seen
        return q.view_as(q), k.view_as(k)

    @staticmethod
    def backward(ctx: Any, of_q: Tensor, of_k: Tensor) -> Any:
        scaling, weight, seen = ctx.rest
        q, k = (tensor.detach().requires_grad_() for tensor in ctx.saved_tensors)
        with torch.enable_grad():
            spread = log_spread(q, k, scaling)
        more_q, more_k = torch.autograd.grad(spread, (q, k))
        seen.append(float(spread.detach()))
        return of_q + weight * more_q, of_k + weight * more_k, None, None, None


@contextmanager
def regularised(weight: float, seen: list[float]) -> Iterator[None]:
    """Add the regulariser wherever truncated attention is differentiated in the block."""
    plain = attention.differentiable_attention

    def attend(q: Tensor, k: Tensor, *rest: Any, scaling: float, **options: Any) -> Any:
        if q.requires_grad:
            q, k = _Milder.apply(q, k, scaling, weight, seen)
        return plain(q, k, *rest, scaling=scaling, **options)

    attention.differentiable_attention = attend
    try:
        yield
    finally:
        attention.differentiable_attention = plain


def main() -> None:
    """Train once with each weight."""
    arguments = _arguments()
    torch.set_num_threads(1)
    RATES["lora"] = arguments.rate
    loaded = taylorder.load()
    model = taylorder.describe(loaded.model, loaded.name)
    config, layers = CUBIC(loaded, model), len(model.open_modules)
    settings = HealSettings(
        (arguments.length,), stages=("logits",), minutes=None, tokens=arguments.steps * arguments.length
    )
    text = TrainingText.of(tokenise(loaded.tokenizer, training_text()), arguments.length)
    for weight in arguments.weight:
        seen: list[float] = []
        with (
            TemporaryDirectory() as folder,
            training_weights(loaded.model, model, "lora", 0) as trained,
            regularised(weight / layers, seen),
        ):
            student = Student(loaded.model, model, trained, config)
            schedule = Schedule.of(settings, arguments.steps)
            checkpoint = Checkpoint(Records(Path(folder), {}), "spread")
            held_out = Course(
                f"weight {weight:g}", student, schedule, text, settings, checkpoint,
                say=lambda sentence: print(sentence, file=sys.stderr),
            ).run().held_out  # fmt: skip
        print(f"weight {weight:g}: held out {held_out}, mean log spread {sum(seen[-layers:]) / layers:.4f}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weight", type=float, nargs="+", default=[0.0, 0.1, 0.5])
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--rate", type=float, default=2e-3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
