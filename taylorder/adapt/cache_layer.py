"""One layer of a ``TaylorCache``: a state that the attention function reads and adds to.

Where no handle is attached nobody would do that, so the layer refuses to be updated there.
"""

from __future__ import annotations

import copy
from typing import Any, Self

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from taylorder.errors import TaylorderError, UsageError
from taylorder.kernels import HeadSpec, State, Taylor, TritonUnavailableError, taylor_attention
from taylorder.kernels.differentiable import needs_gradient
from taylorder.models.quiet import uncompiled


class TaylorCacheLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers is not typed
    """The cache of one attention module with truncated heads.

    Attributes:
        name: qualified name of the module, for messages.
        heads: what its query heads compute.
        guards: whether any of them may need the guard.
        state: everything held; None before the first tokens.
        cumulative_length: tokens seen, padding included.
        expected: whether the attention function will take the next chunk in; set by a hook of the attached handle.

    """

    is_sliding = False
    is_compileable = False
    is_croppable = False

    def __init__(self, name: str, heads: tuple[HeadSpec, ...], **options: Any) -> None:
        """Start empty, for a module of that name and those heads; ``options`` are for a layer that holds more."""
        super().__init__(**options)
        self.name, self.heads = name, heads
        self.guards = any(isinstance(spec.far, Taylor) for spec in heads)
        self.state: State | None = None
        self.cumulative_length = 0
        self.expected = False

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        backend: str | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor]:
        """Attend with the tokens last given to ``update`` and take them in.

        Args:
            query: ``[B, H, T, d]``.
            key: ``[B, G, T, d]``, centred as the config says.
            value: ``[B, G, T, d_v]``.
            backend: as in ``taylor_attention``.
            options: further arguments of that, but for the state.

        Returns:
            Output ``[B, H, T, d_v]`` in the dtype of ``query``, and the rows guarded, int64 ``[H]``.

        Raises:
            UsageError: gradients are being recorded, which end at the state, or another backend made the state.

        """
        if needs_gradient(query, key, value):
            raise UsageError(
                f"{self.name} was run with a TaylorCache while gradients are recorded, and none pass through its "
                "state: run it under torch.no_grad(), or without a cache"
            )
        if self.state is not None and backend not in (None, self.state.backend):
            raise UsageError(
                f"the TaylorCache was filled by the backend {self.state.backend!r}, and `adapted` runs with "
                f"{backend!r}: use the backend it was filled by, or a new cache"
            )
        before = self.state.guarded.clone() if self.guards and self.state is not None else None
        output, self.state = attend_causally(
            query, key, value, self.heads, state=self.state, backend=backend, **options
        )
        guarded = self.state.guarded
        if not self.guards:
            return output, guarded  # zeros for ever
        return output, guarded.clone() if before is None else guarded - before

    @property
    def torn(self) -> bool:
        """Whether tokens were announced and then not taken in, because a forward pass failed half-way."""
        return self.cumulative_length != (0 if self.state is None else self.state.tokens)

    def nbytes(self) -> int:
        """Bytes of the tensors held, all sequences together."""
        return 0 if self.state is None else self.state.nbytes

    def nominal_bytes(self) -> int:
        """The same with keys and values counted in 16 bits and sums in 32."""
        return 0 if self.state is None else self.state.nominal_bytes

    def clone(self) -> Self:
        """Return an independent copy."""
        twin = copy.copy(self)
        twin.state = None if self.state is None else self.state.clone()
        return twin

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Note dtype and device; tensors are made when the first tokens are attended to."""
        self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
        # There are none, which a model may want to know (Mllama looks at all layers); no size can be read off them.
        self.keys = self.values = key_states.new_empty(0)

    @uncompiled
    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Count the new tokens, keys ``[B, G, T, d]`` and values ``[B, G, T, d_v]``, and return them alone.

        Raises:
            UsageError: no handle is attached to take them in, or the state holds another batch or dtype.

        """
        if not self.expected:
            raise UsageError(
                f"{self.name} was run with a TaylorCache outside `with adapted(model, config):`, where nothing reads "
                "its state: run it inside, or leave past_key_values out"
            )
        self.expected = False
        if self.state is not None:
            held, given = self.state.shape, key_states
            if held.batch != given.shape[0]:
                raise UsageError(
                    f"the TaylorCache holds {held.batch} sequences and the model is given {given.shape[0]}: use "
                    "batch_repeat_interleave or batch_select_indices on the cache, or a new one"
                )
            if held.dtype != given.dtype:
                raise UsageError(
                    f"the TaylorCache was filled in {held.dtype} and the model runs in {given.dtype}: use the model in "
                    "the dtype it was in, or a new cache"
                )
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.cumulative_length += key_states.shape[-2]
        return key_states, value_states

    def get_seq_length(self) -> int:
        """Tokens seen; ``generate`` counts positions from it."""
        return self.cumulative_length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns and offset of the mask, as a layer that keeps every key has: one mask serves all layers."""
        return self.cumulative_length + query_length, 0

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    def reset(self) -> None:
        """Forget everything."""
        self.state, self.cumulative_length, self.is_initialized, self.expected = None, 0, False, False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Make sequence ``beam_idx[b]`` sequence b; int64 ``[B]``."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the sequences ``indices``, int64 ``[B']`` or a bool mask ``[B]``."""
        if self.state is not None:
            indices = torch.as_tensor(indices)
            chosen = indices.nonzero()[:, 0] if indices.dtype == torch.bool else indices
            self.state = self.state.index_select(chosen)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence."""
        if self.state is not None:
            self.state = self.state.repeat_interleave(repeats)

    def offload(self) -> None:
        """Move the state to the CPU."""
        if self.state is not None:
            self.state = self.state.to("cpu")

    def prefetch(self) -> None:
        """Move the state back to where the model computes."""
        if self.state is not None and self.state.shape.device != self.device:
            self.state = self.state.to(self.device)

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse to take tokens back: a sum does not say what its last terms were."""
        if tokens_to_remove:
            raise cropping_error()

    def activate_past_recording(self) -> None:
        """Refuse what transformers calls before it starts taking tokens back."""
        raise cropping_error()


def cropping_error() -> UsageError:
    """Say why nothing can be taken back, and the ways out."""
    return UsageError(
        "assisted decoding and prompt lookup take tokens back, and a Taylor state cannot forget: leave assistant_model "
        "and prompt_lookup_num_tokens out, or pass past_key_values=DynamicCache(config=model.config), which keeps "
        "every key; to go back to an earlier point, keep a clone() of it"
    )


def attend_causally(
    query: Tensor, key: Tensor, value: Tensor, heads: tuple[HeadSpec, ...], **options: Any
) -> tuple[Tensor, State]:
    """``taylor_attention`` in one direction, where there always is a state afterwards.

    Raises:
        TaylorderError: the backend cannot run where the tensors are.

    """
    try:
        output, after = taylor_attention(query, key, value, heads, **options)
    except TritonUnavailableError as error:
        raise TaylorderError(str(error)) from error
    if after is None:
        raise RuntimeError("taylor_attention returned no state for causal attention")
    return output, after
