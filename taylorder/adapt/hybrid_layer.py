"""A layer of a ``TaylorCache`` for blocks in which attention and a recurrence run side by side (Falcon-H1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor
from transformers.cache_utils import LinearAttentionAndFullAttentionLayer, LinearAttentionLayer

from taylorder.adapt.cache_layer import TaylorCacheLayer


class HybridCacheLayer(TaylorCacheLayer, LinearAttentionAndFullAttentionLayer):  # type: ignore[misc]
    """A state in place of keys and values; convolution and recurrence are held as transformers holds them."""

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Keys and values come by position, what the recurrence holds by keyword."""
        (TaylorCacheLayer if args else LinearAttentionLayer).lazy_initialization(self, *args, **kwargs)

    def clone(self) -> Self:
        """Return an independent copy."""
        twin = super().clone()
        for name, held in vars(self).items():
            if isinstance(held, dict):
                setattr(twin, name, {k: v.clone() if isinstance(v, Tensor) else v for k, v in held.items()})
        return twin

    def nbytes(self) -> int:
        """Bytes of the tensors held, all sequences together."""
        return super().nbytes() + self._recurrent_bytes()

    def nominal_bytes(self) -> int:
        """The same with keys and values counted in 16 bits and sums in 32; the recurrence counts as it is."""
        return super().nominal_bytes() + self._recurrent_bytes()

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        LinearAttentionLayer.reset(self)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the sequences ``indices``, int64 ``[B']`` or a bool mask ``[B]``."""
        super().batch_select_indices(indices)
        self._map_recurrence(lambda held: held[torch.as_tensor(indices, device=held.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence."""
        super().batch_repeat_interleave(repeats)
        self._map_recurrence(lambda held: held.repeat_interleave(repeats, dim=0))

    def offload(self) -> None:
        """Move everything to the CPU."""
        super().offload()
        LinearAttentionLayer.offload(self)

    def prefetch(self) -> None:
        """Move everything back to where the model computes."""
        super().prefetch()
        LinearAttentionLayer.prefetch(self)

    def _map_recurrence(self, change: Callable[[Tensor], Tensor]) -> None:
        for states in (self.conv_states, self.recurrent_states):
            states.update({index: change(held) for index, held in states.items() if held is not None})

    def _recurrent_bytes(self) -> int:
        held = [*self.conv_states.values(), *self.recurrent_states.values()]
        return sum(tensor.nbytes for tensor in held if tensor is not None)
