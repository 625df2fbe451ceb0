"""What exact attention holds of one sequence, which budgets are shares and parts of."""

from __future__ import annotations

from dataclasses import dataclass

from taylorder.adapt.cost import KV_BYTES, kv_bytes, kv_head_bytes
from taylorder.kernels.spec import Exact, HeadSpec
from taylorder.models.description import ModelDescription


@dataclass(frozen=True, slots=True)
class CacheSize:
    """Nominal bytes of the exact cache of one sequence.

    ``kv_heads`` see the whole context of ``context`` tokens and hold ``token_bytes`` of every token, all together;
    ``closed_bytes`` is what layers that stay exact hold at the context (sliding windows, chunks, shared keys), which
    nothing is chosen for. ``latent_token_bytes`` is what is held of a token where layers keep the latents that their
    keys and values are made of; the same as ``token_bytes`` where there are none.
    """

    context: int
    kv_heads: int
    token_bytes: int
    closed_bytes: int
    latent_token_bytes: int

    @classmethod
    def of(cls, model: ModelDescription, context: int) -> CacheSize:
        """The cache of a model after so many tokens."""
        exact = [HeadSpec(Exact())]
        expanded = [module.kv_heads * kv_bytes(module.head_dim, module.value_dim, 1) for module in model.open_modules]
        latent = [None if module.latent_dim is None else module.latent_dim * KV_BYTES for module in model.open_modules]
        return cls(
            context=context,
            kv_heads=sum(module.kv_heads for module in model.open_modules),
            token_bytes=sum(expanded),
            closed_bytes=sum(
                module.kv_heads * kv_head_bytes(exact, module, context) for module in model.closed_modules
            ),
            latent_token_bytes=sum(
                whole if kept is None else kept for whole, kept in zip(expanded, latent, strict=True)
            ),
        )

    @property
    def exact_bytes(self) -> int:
        """Bytes of all KV heads that see the whole context."""
        return self.token_bytes * self.context

    def share(self, per_kv_head: int) -> float:
        """So many bytes per KV head on average, as a share of what exact attention holds."""
        return per_kv_head * self.kv_heads / self.exact_bytes

    def total(self, per_kv_head: int) -> int:
        """Bytes of the whole cache where KV heads hold so many on average, layers that stay exact included."""
        return per_kv_head * self.kv_heads + self.closed_bytes

    def tokens(self, per_kv_head: int) -> int:
        """Tokens of cache per KV head that so many bytes pay for, rounded down."""
        return per_kv_head * self.kv_heads // self.token_bytes
