"""The launch settings that ship: block sizes, warps, stages. Autotuning chooses among these and no others.

``taylorder compile-report`` compiles every one of them. For bfloat16 none spills registers on sm_80, sm_90 or gfx942;
for float16 one takes 8 bytes of stack (order 8 at head dim 16, sm_90), and for float32 a few do, at head dim 256 above
all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import torch

HEAD_DIMS = (16, 32, 64, 80, 96, 128, 256)
"""Head dims the settings were compiled for; others run with those of the next larger one."""


@dataclass(frozen=True)
class Setting:
    """How one kernel is launched.

    Attributes:
        step: tokens per step of its inner loop (0 if it has none over tokens).
        warps: warps of a program.
        stages: loads kept in flight.
        registers: most registers of a thread; None leaves it to the compiler.

    """

    step: int
    warps: int
    stages: int
    registers: Optional[int] = None


@dataclass(frozen=True)
class Precision:
    """What products are computed from. Sums are in float32 always.

    Attributes:
        storage: dtype of matrices of coordinates, and of the copy of a state that a long prefill reads.
        triton: ``DOT`` of the kernels.
        inputs: ``PRECISION`` of the kernels.
        full: whether products are to be as precise as float32.

    """

    storage: torch.dtype
    triton: str
    inputs: str
    full: bool

    @staticmethod
    def of(dtype: torch.dtype, machine: str) -> Precision:
        """The precision for inputs of that dtype on ``cuda``, ``hip`` or the ``interpreter``.

        Cubes of coordinates and sums of them leave the range of float16, so float16 inputs are multiplied as TF32,
        which has as many digits, or float32 on AMD. For float32, three products of TF32 take the place of one on
        NVIDIA, whose tensor cores have no float32. Triton's interpreter computes nonsense from bfloat16, so there it is
        float32.
        """
        if dtype == torch.bfloat16 and machine != "interpreter":
            return Precision(torch.bfloat16, "bfloat16", "ieee", False)
        full = dtype == torch.float32
        nvidia = "tf32x3" if full else "tf32"
        return Precision(torch.float32, "float32", nvidia if machine == "cuda" else "ieee", full)


TAKE_TOKEN = (Setting(1024, 4, 1),)
"""Of ``take_token``."""

PREPARED_ROWS = 16
"""Rows of a program of ``prepare_rows``: blocks of query rows are multiples of it."""

PREPARE_ROWS = (Setting(0, 8, 1),)
"""Of ``prepare_rows``."""


def power_of_two(number: int) -> int:
    """The smallest power of two that is at least 16 and ``number``: what a product's sides are rounded up to."""
    return max(16, 1 << (number - 1).bit_length())


def query_rows(head_dim: int, value_dim: int, precision: Precision, stacked: Optional[int]) -> int:
    """Query rows of a block; ``stacked`` is how many rows several heads have together, None if heads are apart."""
    wide = _wide(head_dim, value_dim)
    if stacked is not None and stacked <= 16:
        return 16
    if precision.full:
        return 32 if wide <= 64 else 16
    if wide > 128:
        return 32
    if precision.storage == torch.float32:
        return 64
    return 128 if stacked is None else 64


def fold_settings(head_dim: int, value_dim: int, precision: Precision) -> tuple[Setting, ...]:
    """Settings of ``fold_tokens``, the default first."""
    if precision.full:
        return (Setting(32, 8 if _wide(head_dim, value_dim) > 64 else 4, 2),)
    if precision.storage == torch.float32:
        return (Setting(16, 4, 2),)
    return (Setting(32, 4, 2), Setting(16, 4, 2))


def state_settings(rows: int) -> tuple[Setting, ...]:
    """Settings of ``read_state``, the default first."""
    if rows == 128:
        return (Setting(0, 8, 3), Setting(0, 8, 2))
    return (Setting(0, 4, 2),)


GRADIENT_ROWS = 16
"""Rows of a program of ``differentiate_rows``, which holds gradients of all their coordinates."""

MOST_GRADIENT_DIM = 64
"""Widest heads whose states pass gradients here: beyond, ``differentiate_rows`` spills on NVIDIA."""

GRADIENT_TILE = 32
"""Most features per tile of states that pass gradients: with 64, ``differentiate_rows`` spills on sm_90."""


GRADIENT_SETTINGS = (Setting(0, 4, 1),)
"""Of ``differentiate_rows``."""


def pending_settings(head_dim: int, value_dim: int, precision: Precision, rows: int) -> tuple[Setting, ...]:
    """Settings of ``read_pending``, the default first."""
    if rows > 16 and _wide(head_dim, value_dim) > 128:
        # As many registers as there are: left alone, the compiler for sm_90 takes 168 and spills 16 bytes over ranks.
        return (Setting(16, 4, 2, 255),)
    return near_settings(head_dim, value_dim, precision, rows)


def near_settings(head_dim: int, value_dim: int, precision: Precision, rows: int) -> tuple[Setting, ...]:
    """Settings of ``add_near_and_divide``, the default first."""
    wide = _wide(head_dim, value_dim)
    if rows == 16:
        return (Setting(16, 8 if precision.full and wide > 128 else 4, 2),) if wide > 64 else (Setting(32, 4, 2),)
    return (Setting(16 if wide > 64 else 32, 8, 2),)


def _wide(head_dim: int, value_dim: int) -> int:
    """The wider side of a block of keys or values."""
    return max(power_of_two(head_dim), power_of_two(value_dim))
