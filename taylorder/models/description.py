"""A model as far as this tool is concerned: its attention modules, and what identifies it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from taylorder.kernels.spec import grouped

_T = TypeVar("_T")


WhyExact = Literal["sliding", "chunked", "shared", "repeated", "indexed", "biased"]
"""Why no state can replace the cache of a module: a window of its own, chunks, keys that several modules or several of
its own calls read, keys picked by a learned index, or a bias that is added to scores."""


@dataclass(frozen=True, slots=True)
class AttentionModule:
    """One attention module, as seen in a probe forward pass.

    ``name`` is the qualified module name; ``heads`` H query heads share ``kv_heads`` G KV heads; ``head_dim`` d and
    ``value_dim`` d_v; ``scaling`` is what the model multiplies q.k with; ``sliding_window`` is None where the module
    sees the whole context, and so is ``chunk``, the tokens of a chunk within which it attends. ``keys_of`` names the
    module that makes the keys, this one or another, where several modules attend to them; None where no other does.
    ``latent_dim`` is of latent attention: the numbers of a token that all its KV heads are made of, which a server
    keeps in their place; None elsewhere. ``calls`` is how often it attends in a forward pass: more than once where
    layers share their weights (ALBERT). ``tokens`` is the most that it attends to where the model was given inputs of
    its own, such as the patches of an image; None where it was run on text alone, which ``max_context`` limits.
    ``beyond_scores`` tells what its weights depend on beside queries and keys: a learned index that picks the keys of
    each query, or a bias that is added to scores, such as one of positions; None for nothing else.
    """

    name: str
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    scaling: float
    causal: bool
    sliding_window: int | None
    chunk: int | None = None
    keys_of: str | None = None
    latent_dim: int | None = None
    calls: int = 1
    tokens: int | None = None
    beyond_scores: Literal["indexed", "biased"] | None = None

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.heads // self.kv_heads

    @property
    def stays_exact(self) -> WhyExact | None:
        """Why its heads stay as they are; None where they may be truncated."""
        if self.sliding_window is not None:
            return "sliding"
        if self.chunk is not None:
            return "chunked"
        if self.keys_of is not None:
            return "shared"
        return "repeated" if self.causal and self.calls > 1 else self.beyond_scores

    def why_exact(self) -> str:
        """The same in words, to follow the name of the module; it must stay exact."""
        match self.stays_exact:
            case "sliding":
                return f"attends to a sliding window of {self.sliding_window} tokens"
            case "chunked":
                return f"attends within chunks of {self.chunk} tokens"
            case "repeated":
                return f"attends {self.calls} times to the same keys (differential attention)"
            case "indexed":
                return "picks the keys of each query by a learned index, which no running sum follows,"
            case "biased":
                return "adds to its scores what does not factorise over query and key, such as a bias of positions,"
        return "attends to keys that another layer attends to as well"

    def seen_tokens(self, tokens: int) -> int:
        """How many keys a query sees at most, after so many tokens."""
        return min(tokens, self.sliding_window or self.chunk or tokens)

    def cached_tokens(self, tokens: int) -> int:
        """Tokens in its own cache after so many; none where it reads another module's."""
        return self.seen_tokens(tokens) if self.keys_of in (None, self.name) else 0

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

    ``unmeasured`` names the inputs that the model takes beside text, such as images, which nothing here is run on.
    ``fingerprint`` identifies the weights whatever dtype they are held in; ``max_context`` is the longest context in
    tokens; ``weights_note`` tells the reader when the weights are not the original ones (dequantised); ``dtype`` is
    what the model ran in, as torch calls it; ``origin`` is None where ``load`` did not load it. ``cross`` names the
    modules that attend to what another part of the model makes (cross attention): they are not measured, and stay as
    they are.
    """

    name: str
    architecture: str
    modules: tuple[AttentionModule, ...]
    max_context: int
    fingerprint: str
    weights_note: str | None = None
    dtype: str = "float32"
    origin: ModelOrigin | None = None
    unmeasured: tuple[str, ...] = ()
    cross: tuple[str, ...] = ()

    @property
    def open_modules(self) -> tuple[AttentionModule, ...]:
        """The modules whose heads may be truncated; the others stay as they are, see ``stays_exact``."""
        return tuple(module for module in self.modules if module.stays_exact is None)

    @property
    def closed_modules(self) -> tuple[AttentionModule, ...]:
        """The modules that stay as they are."""
        return tuple(module for module in self.modules if module.stays_exact is not None)

    @property
    def keeps_latents(self) -> bool:
        """Whether some module has latent attention, whose cache may be smaller than its keys and values."""
        return any(module.latent_dim is not None for module in self.modules)

    @property
    def why_none_open(self) -> str:
        """Why nothing can be chosen, in words, where no module is open."""
        match {module.stays_exact for module in self.modules}:
            case whys if whys == {"sliding"}:
                return "every layer has a sliding window of its own"
            case whys if whys == {"chunked"}:
                return "every layer attends within chunks"
            case whys if whys == {"repeated"}:
                return "every layer attends several times to the same keys"
            case whys if whys == {"indexed"}:
                return "every layer picks the keys of each query by a learned index"
            case whys if whys == {"biased"}:
                return "every layer adds to its scores, such as a bias of positions"
            case whys if whys <= {"sliding", "chunked", "shared"}:
                return "every layer has a sliding window, chunks, or keys that other layers read as well"
        return "every layer has a window or chunks, picks its keys, adds to its scores, or shares keys with others"

    @property
    def typical(self) -> AttentionModule:
        """A module with the shape of all open ones; of several shapes, or where none is open, that of the first."""
        return (self.open_modules or self.modules)[0]

    @property
    def alike(self) -> bool:
        """Whether all open modules have heads of one shape."""
        shapes = {(one.heads, one.kv_heads, one.head_dim, one.value_dim) for one in self.open_modules}
        return len(shapes) < 2

    @property
    def calls(self) -> dict[str, int]:
        """How often each module attends in a forward pass, by name."""
        return {module.name: module.calls for module in self.modules}

    @property
    def causal(self) -> bool:
        """False for encoders, whose attention sees both sides."""
        return all(module.causal for module in self.modules)

    @property
    def direction(self) -> str:
        """Which way it attends, in words, and what of it is cross attention."""
        directions = {module.causal for module in self.modules}
        words = "causal" if self.causal else "bidirectional (no cache)"
        if len(directions) > 1:
            words = "some layers causal, others bidirectional"
        return f"{words}; {len(self.cross)} modules of cross attention stay exact" if self.cross else words

    @property
    def shape(self) -> str:
        """Layers and heads, in words; where layers differ those of the layers that may be truncated."""
        calls = sorted({module.calls for module in self.modules})
        called = "" if calls == [1] else f", called {' or '.join(map(str, calls))} times"
        heads = sorted({module.heads for module in self.open_modules} or {self.typical.heads})
        return f"{len(self.modules)} layers x {' or '.join(map(str, heads))} heads{called}"

    def __repr__(self) -> str:
        """One line; ``modules`` has the rest."""
        typical = self.typical
        return (
            f"<ModelDescription of {self.name}: {self.architecture}, {self.shape} over {typical.kv_heads} KV heads of "
            f"dimension {typical.head_dim}, {self.max_context:,} tokens>"
        )
