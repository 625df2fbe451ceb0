"""Keys and values as they are: a buffer that tokens enter at the end and leave at the front."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional, Union

import torch
from torch import Tensor

from .held import Holder

Piece = tuple[Tensor, Tensor, Optional[Tensor]]
"""Keys ``[B, G, S, d]``, values ``[B, G, S, d_v]`` and, if some tokens do not count, bool ``[B, S]``."""

Heads = Union[slice, list[int]]


def selection(numbers: Sequence[int]) -> Heads:
    """Index of ascending numbers: a slice, which copies nothing, if they are consecutive."""
    consecutive = numbers[-1] - numbers[0] + 1 == len(numbers)
    return slice(numbers[0], numbers[-1] + 1) if consecutive else list(numbers)


def of_heads(tensor: Tensor, numbers: Sequence[int]) -> Tensor:
    """Those of ascending KV heads of ``[B, G, *]``; the tensor itself if they are all."""
    return tensor if len(numbers) == tensor.shape[1] else tensor[:, selection(numbers)]


class TokenBuffer(Holder):
    """Tokens not folded into a state (all tokens, for exact heads), in the caller's dtype.

    Attributes:
        keys: ``[B, G, capacity, d]``, the first ``length`` in use.
        values: ``[B, G, capacity, d_v]``.
        keep: bool ``[B, capacity]``, False for tokens nobody may attend to here; None while there are none.
        length: tokens in use.

    """

    def __init__(self, keys: Tensor, values: Tensor, kv_heads: int) -> None:
        """Start empty, for that many KV heads, otherwise like keys ``[B, *, *, d]`` and values ``[B, *, *, d_v]``."""
        B, G, d = keys.shape[0], kv_heads, keys.shape[-1]
        self.keys = keys.new_empty(B, G, 0, d)
        self.values = values.new_empty(B, G, 0, values.shape[-1])
        self.keep: Optional[Tensor] = None
        self.length = 0

    def append(self, keys: Tensor, values: Tensor, keep: Optional[Tensor], reserve: int = 0) -> None:
        """Add tokens at the end. A full buffer grows to ``reserve`` tokens if given, else by an eighth."""
        new = self.length + keys.shape[2]
        capacity = self.keys.shape[2]
        if new > capacity:
            spare = max(64, new // 8) if self.length and not reserve else 0
            capacity = max(new + spare, reserve)
            self.keys, self.values = (_grown(x, self.length, capacity) for x in (self.keys, self.values))
            if self.keep is not None:
                self.keep = torch.nn.functional.pad(self.keep, (0, capacity - self.keep.shape[1]), value=True)
        if keep is not None and self.keep is None:
            self.keep = torch.ones(keys.shape[0], capacity, dtype=torch.bool, device=keys.device)
        if self.keep is not None:
            self.keep[:, self.length : new] = True if keep is None else keep
        self.keys[:, :, self.length : new] = keys
        self.values[:, :, self.length : new] = values
        if keep is not None:
            # A weight of zero does not silence an infinity: padding must be zero itself.
            self.keys[:, :, self.length : new].masked_fill_(~keep[:, None, :, None], 0.0)
            self.values[:, :, self.length : new].masked_fill_(~keep[:, None, :, None], 0.0)
        self.length = new

    def drop(self, tokens: int) -> None:
        """Forget the first tokens."""
        if tokens == 0:
            return
        stop = self.length
        self.length -= tokens
        self.keys[:, :, : self.length] = self.keys[:, :, tokens:stop].clone()
        self.values[:, :, : self.length] = self.values[:, :, tokens:stop].clone()
        if self.keep is not None:
            self.keep[:, : self.length] = self.keep[:, tokens:stop].clone()
            if bool(self.keep[:, : self.length].all()):
                self.keep = None

    def shrink(self, capacity: int) -> None:
        """Give back what lies beyond that many tokens, unless it is in use."""
        capacity = max(capacity, self.length)
        if self.keys.shape[2] > capacity:
            self.keys, self.values = self.keys[:, :, :capacity].clone(), self.values[:, :, :capacity].clone()
            self.keep = None if self.keep is None else self.keep[:, :capacity].clone()

    def view(self) -> Piece:
        """Keys, values and keep of the tokens in use."""
        keep = None if self.keep is None else self.keep[:, : self.length]
        return self.keys[:, :, : self.length], self.values[:, :, : self.length], keep

    def held(self) -> dict[str, Tensor]:
        """Return keys, values and keep of the tokens in use, by name."""
        return {name: t for name, t in zip(("keys", "values", "keep"), self.view()) if t is not None}

    def make_room(self, held: dict[str, Tensor]) -> None:
        """Hold as many tokens as ``held``, to be replaced."""
        if "keys" not in held or held["keys"].ndim != 4:
            names = [f"recent.{name}" for name in sorted(held)]
            raise ValueError(f"a part of a state has {names}, expected recent.keys [B, G, T, d]")
        B, G, _, d = self.keys.shape
        self.length = held["keys"].shape[2]
        self.keys = self.keys.new_empty(B, G, self.length, d)
        self.values = self.values.new_empty(B, G, self.length, self.values.shape[-1])
        if "keep" in held:
            self.keep = torch.empty(B, self.length, dtype=torch.bool, device=self.keys.device)

    def nominal_bytes(self, more: int = 0) -> int:
        """Bytes of the tokens in use, and of as many more, in 16 bits."""
        B, G, _, d = self.keys.shape
        return 2 * B * G * (self.length + more) * (d + self.values.shape[-1])


def _grown(tensor: Tensor, length: int, capacity: int) -> Tensor:
    B, G, _, d = tensor.shape
    grown = tensor.new_empty(B, G, capacity, d)
    grown[:, :, :length] = tensor[:, :, :length]
    return grown


class Joined:
    """Earlier tokens followed by new ones, without copying more than what is asked for.

    Keys ``[B, G, S, d]``, values ``[B, G, S, d_v]`` and keep ``[B, S]`` as two pieces each.
    """

    def __init__(self, first: Piece, second: Optional[Piece] = None) -> None:
        self.first, self.second = first, second
        self.seam = first[0].shape[2]
        self.length = self.seam + (second[0].shape[2] if second else 0)

    def cut(self, start: int, stop: int) -> tuple[Tensor, Tensor, Optional[Tensor]]:
        """Keys, values and keep of tokens ``start … stop - 1``; keep is None if all of them count."""
        if stop <= self.seam or self.second is None:
            keys, values, keep = _tokens(self.first, start, stop)
        elif start >= self.seam:
            keys, values, keep = _tokens(self.second, start - self.seam, stop - self.seam)
        else:
            head, tail = _tokens(self.first, start, self.seam), _tokens(self.second, 0, stop - self.seam)
            keys, values = torch.cat([head[0], tail[0]], 2), torch.cat([head[1], tail[1]], 2)
            keep = None if head[2] is None and tail[2] is None else torch.cat([_mask(head), _mask(tail)], 1)
        return keys, values, None if keep is None or bool(keep.all()) else keep


def _tokens(piece: Piece, start: int, stop: int) -> Piece:
    keys, values, keep = piece
    keep = None if keep is None else keep[:, start:stop]
    return keys[:, :, start:stop], values[:, :, start:stop], keep


def _mask(piece: Piece) -> Tensor:
    keys, _, keep = piece
    if keep is not None:
        return keep
    return torch.ones(keys.shape[0], keys.shape[2], dtype=torch.bool, device=keys.device)
