"""What is asked for when a model is healed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from taylorder.errors import UsageError

Kind = Literal["lora", "qkvo", "qk", "config", "probes"]
"""What is trained: low-rank additions to q, k, v and o; these matrices; q and k alone; the numbers of the config's
polynomials; which keys it keeps."""

KINDS: tuple[Kind, ...] = get_args(Kind)

Stage = Literal["outputs", "logits", "text"]
"""What a step is towards: the exact model's outputs of each attention module, on its inputs; its logits; the text."""

STAGES: tuple[tuple[Stage, ...], ...] = (
    ("outputs", "logits"), ("outputs", "text"), ("logits",), ("text",), ("outputs",),
)  # fmt: skip
"""What may follow one another; the first unless asked for otherwise."""

RANK, ALPHA = 8, 16
"""Of LoRA, as LoLCATs (arXiv 2410.10254) takes them."""

RATES: dict[Kind, float] = {"lora": 1e-3, "qkvo": 1.5e-4, "qk": 1.5e-4, "config": 3e-3, "probes": 4e-3}
"""Highest learning rates."""

MINUTES = 30.0
"""Of training, unless asked for otherwise."""


def check_stages(stages: tuple[str, ...]) -> None:
    """Raise :class:`UsageError` unless these may follow one another."""
    if stages not in STAGES:
        raise UsageError(f"--stage is {','.join(stages)}, expected one of {' | '.join(map(','.join, STAGES))}")


@dataclass(frozen=True, slots=True)
class HealSettings:
    """How a model is healed.

    Attributes:
        contexts: tokens of a sequence, rising: each for an equal share of the steps.
        sequences: of the longest that a step reads, and as many tokens in shorter ones; processes share them.
        train: what is trained.
        stages: outputs, then logits or text; or one of them.
        minutes: of training, everything that is trained together; None for no limit.
        tokens: that the model reads for its config; None for no limit.
        drop_window: how likely a layer with polynomials runs without its near field for a step.
        seed: of what is drawn.
        controls: whether the same is done to a window of equal bytes, and to the exact model.

    Raises:
        UsageError: a setting is out of range, or two contradict each other.

    """

    contexts: tuple[int, ...]
    train: Kind = "lora"
    stages: tuple[Stage, ...] = STAGES[0]
    minutes: float | None = MINUTES
    tokens: int | None = None
    drop_window: float = 0.0
    sequences: int = 1
    seed: int = 0
    controls: bool = True

    def __post_init__(self) -> None:
        if self.minutes is None and self.tokens is None:
            raise UsageError("neither minutes nor tokens say when to stop; give one of them")
        check_stages(self.stages)
        if not 0 <= self.drop_window < 1:
            raise UsageError(f"--drop-window is {self.drop_window:g}, expected a probability from 0 to below 1")
        if not self.contexts or min(self.contexts) < 2 or list(self.contexts) != sorted(self.contexts):
            raise UsageError(f"the contexts are {self.contexts}, expected rising numbers of tokens from 2 on")
        if any(self.longest % context for context in self.contexts):
            raise UsageError(
                f"--context has {', '.join(map(str, self.contexts))}, expected each to divide the longest; the same "
                "text is cut into all of them"
            )

    @property
    def changes_weights(self) -> bool:
        """Whether what is trained is of the model; otherwise it is of the config, and there is no adapter."""
        return self.train not in ("config", "probes")

    @property
    def towards_text(self) -> bool:
        """Whether the model learns to predict the text; otherwise it is brought near the exact one."""
        return self.stages[-1] == "text"

    @property
    def longest(self) -> int:
        """Tokens of the longest sequences."""
        return self.contexts[-1]

    def record(self) -> dict[str, Any]:
        """As JSON; everything that a step depends on, and when to stop."""
        return {
            "contexts": list(self.contexts), "train": self.train, "stages": list(self.stages), "minutes": self.minutes,
            "tokens": self.tokens, "drop_window": self.drop_window, "sequences": self.sequences, "seed": self.seed,
            "controls": self.controls,
        }  # fmt: skip
