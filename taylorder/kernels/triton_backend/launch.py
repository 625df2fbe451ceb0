"""Launching: a kernel, its arguments, and the setting chosen for it. Triton is imported when it is first needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any, Callable, Optional

import torch

from .settings import Precision, Setting, power_of_two


@dataclass(frozen=True)
class Kernel:
    """What a launch has to know of a kernel.

    Attributes:
        file: the module it is in.
        step: the constant that ``Setting.step`` is for.
        key: constants whose values need a choice of setting of their own.
        changed: what it adds to rather than overwrites, to be restored between the trials of autotuning.

    """

    file: str
    step: Optional[str]
    key: tuple[str, ...]
    changed: tuple[str, ...] = ()


_STATE_KEY = ("HEAD_DIM", "VALUE_DIM", "T", "BASE", "PREFIX")
_TOKEN_KEY = ("HEAD_DIM", "VALUE_DIM", "LEVELS", "ROWS")

KERNELS = {
    "take_token": Kernel("preparing_kernels", "COLUMNS", ("HEAD_DIM", "VALUE_DIM")),
    "prepare_rows": Kernel("preparing_kernels", None, ("HEAD_DIM", "LEVELS", "DEGREES", "SLOTS", "ROWS")),
    "fold_tokens": Kernel("state_kernels", "TOKENS", _STATE_KEY, ("features", "sums")),
    "read_state": Kernel("state_kernels", None, (*_STATE_KEY, "ROWS")),
    "fold_rows": Kernel("gradient_kernels", "TOKENS", _STATE_KEY),
    "differentiate_rows": Kernel("gradient_kernels", None, (*_STATE_KEY, "ROWS")),
    "read_pending": Kernel("token_kernels", "COLUMNS", _TOKEN_KEY),
    "add_near_and_divide": Kernel("token_kernels", "COLUMNS", _TOKEN_KEY, ("guarded",)),
}


class TritonUnavailableError(RuntimeError):
    """Triton cannot compile for the device that the tensors are on."""


@lru_cache(maxsize=16)
def kernel(name: str) -> Any:
    """One kernel, compiled or, where Triton was imported under ``TRITON_INTERPRET=1``, interpreted."""
    return getattr(import_module(f".{KERNELS[name].file}", __package__), name)


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, as ``TRITON_INTERPRET=1`` asks for."""
    from triton import knobs

    return bool(knobs.runtime.interpret)


def machine() -> str:
    """What runs kernels: ``interpreter``, ``cuda`` or ``hip``."""
    if interpreted():
        return "interpreter"
    return "hip" if torch.version.hip else "cuda"


def triton_problem(device: torch.device) -> Optional[str]:
    """Why Triton cannot run with tensors on that device; None if it can."""
    try:
        from triton.runtime import driver

        if interpreted():
            return None
        if device.type == "cpu":
            return "on a CPU it only runs in its interpreter, and TRITON_INTERPRET=1 was not set when Python started"
        with torch.cuda.device(device):
            driver.active.get_current_target()
    except Exception as error:  # whatever is wrong with an installation, the user needs its own words
        return f"{type(error).__name__}: {error}"
    return None


def triton_type(name: str) -> Any:
    """The Triton dtype of that name."""
    import triton.language as tl

    return getattr(tl, name)


def product_constants(head_dim: int, value_dim: int, precision: Precision) -> dict[str, Any]:
    """The constants that every kernel has."""
    return {
        "HEAD_DIM": head_dim,
        "VALUE_DIM": value_dim,
        "VALUE_BLOCK": power_of_two(value_dim),
        "DOT": triton_type(precision.triton),
        "PRECISION": precision.inputs,
    }


def launch(
    name: str,
    programs: int,
    settings: Sequence[Setting],
    arguments: dict[str, Any],
    constants: dict[str, Any],
) -> None:
    """Run a kernel once per program; nothing if there is none.

    Args:
        name: of the kernel.
        programs: how many.
        settings: that ship for these sizes; on a GPU the fastest is found at the first launch and remembered on disk.
        arguments: tensors and numbers.
        constants: compile-time constants.

    """
    if not programs:
        return
    # Triton launches on the current device, whatever device the tensors are on.
    tensor = next(argument for argument in arguments.values() if isinstance(argument, torch.Tensor))
    with torch.cuda.device_of(tensor):  # type: ignore[no-untyped-call]  # not typed by torch
        if interpreted() or len(settings) == 1:
            kernel(name)[(programs,)](**arguments, **constants, **_config(name, settings[0]).all_kwargs())
        else:
            tuned(name, tuple(settings))[(programs,)](**arguments, **constants)


@lru_cache(maxsize=256)
def tuned(name: str, settings: tuple[Setting, ...], do_bench: Optional[Callable[..., Any]] = None) -> Any:
    """A kernel that tries the settings at its first launch for each of its keys and keeps the fastest, also on disk."""
    import triton

    decorate = triton.autotune(
        configs=[_config(name, setting) for setting in settings],
        key=list(KERNELS[name].key),
        restore_value=list(KERNELS[name].changed),
        cache_results=do_bench is None,
        do_bench=do_bench,
    )
    return decorate(kernel(name))


def _config(name: str, setting: Setting) -> Any:
    """A setting of a kernel, as Triton has it."""
    import triton

    step = {KERNELS[name].step: setting.step} if KERNELS[name].step else {}
    return triton.Config(step, num_warps=setting.warps, num_stages=setting.stages, maxnreg=setting.registers)
