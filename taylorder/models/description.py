"""A model as far as this tool is concerned: its attention modules, and what identifies it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from taylorder.kernels.spec import grouped

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class AttentionModule:
    """One attention module, as seen in a probe forward pass.

    ``name`` is the qualified module name; ``heads`` H query heads share ``kv_heads`` G KV heads; ``head_dim`` d and
    ``value_dim`` d_v; ``scaling`` is what the model multiplies q.k with; ``sliding_window`` is None where the module
    sees the whole context.
    """

    name: str
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    scaling: float
    causal: bool
    sliding_window: int | None

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.heads // self.kv_heads

    def groups(self, heads: Sequence[_T]) -> list[Sequence[_T]]:
        """Cut what belongs to the query heads into what belongs to each KV head's."""
        return grouped(heads, self.kv_heads)


@dataclass(frozen=True, slots=True)
class ModelOrigin:
    """Where a model was loaded from, for whoever loads it again from another folder or later.

    ``path`` is that of a folder or file, ``revision`` the commit of a Hub id; None for what it has not.
    """

    path: str | None = None
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """A model as far as this tool is concerned.

    ``fingerprint`` identifies the weights whatever dtype they are held in; ``max_context`` is the longest context in
    tokens; ``weights_note`` tells the reader when the weights are not the original ones (dequantised); ``dtype`` is
    what the model ran in, as torch calls it; ``origin`` is None where ``load`` did not load it.
    """

    name: str
    architecture: str
    modules: tuple[AttentionModule, ...]
    max_context: int
    fingerprint: str
    weights_note: str | None = None
    dtype: str = "float32"
    origin: ModelOrigin | None = None

    @property
    def open_modules(self) -> tuple[AttentionModule, ...]:
        """The modules that see the whole context; those with a sliding window of their own stay as they are."""
        return tuple(module for module in self.modules if module.sliding_window is None)

    @property
    def causal(self) -> bool:
        """False for encoders, whose attention sees both sides."""
        return all(module.causal for module in self.modules)

    @property
    def shape(self) -> str:
        """Layers and heads, in words; those of the first layer where layers differ."""
        return f"{len(self.modules)} layers x {self.modules[0].heads} heads"

    def __repr__(self) -> str:
        """One line; ``modules`` has the rest."""
        first = self.modules[0]
        return (
            f"<ModelDescription of {self.name}: {self.architecture}, {self.shape} over {first.kv_heads} KV heads of "
            f"dimension {first.head_dim}, {self.max_context:,} tokens>"
        )
