"""Launching: a kernel, its arguments, and the setting chosen for it. Triton is imported when it is first needed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any, Callable, Optional

import torch

from .settings import Setting

_FILES = {
    "fold_tokens": "state_kernels",
    "read_state": "state_kernels",
    "read_pending": "token_kernels",
    "add_near_and_divide": "token_kernels",
}
KERNELS = tuple(_FILES)

_CHANGED = {
    "fold_tokens": ["features", "sums"],
    "read_state": [],
    "read_pending": [],
    "add_near_and_divide": [],
}
"""What a kernel adds to rather than overwrites: to be restored between the trials of autotuning."""


class TritonUnavailableError(RuntimeError):
    """Triton cannot compile for the device that the tensors are on."""


@lru_cache(maxsize=16)
def kernel(name: str) -> Any:
    """One kernel, compiled or, where Triton was imported under ``TRITON_INTERPRET=1``, interpreted."""
    return getattr(import_module(f".{_FILES[name]}", __package__), name)


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


def launch(
    name: str,
    programs: int,
    settings: Sequence[Setting],
    step: Optional[str],
    arguments: dict[str, Any],
    constants: dict[str, Any],
    key: tuple[str, ...] = (),
) -> None:
    """Run a kernel once per program; nothing if there is none.

    Args:
        name: of the kernel.
        programs: how many.
        settings: that ship for these sizes; on a GPU the fastest is found at the first launch and remembered on disk.
        step: the constant that ``Setting.step`` is for.
        arguments: tensors and numbers.
        constants: compile-time constants.
        key: constants whose values need a choice of their own.

    """
    if not programs:
        return
    # Triton launches on the current device, whatever device the tensors are on.
    with torch.cuda.device_of(arguments["items"]):  # type: ignore[no-untyped-call]  # not typed by torch
        if interpreted() or len(settings) == 1:
            kernel(name)[(programs,)](**arguments, **constants, **_options(settings[0], step))
        else:
            tuned(name, tuple(settings), step, key)[(programs,)](**arguments, **constants)


@lru_cache(maxsize=256)
def tuned(
    name: str,
    settings: tuple[Setting, ...],
    step: Optional[str],
    key: tuple[str, ...],
    do_bench: Optional[Callable[..., Any]] = None,
) -> Any:
    """A kernel that tries the settings at its first launch for each ``key`` and keeps the fastest, also on disk."""
    import triton

    configs = [
        triton.Config(
            {step: setting.step} if step else {},
            num_warps=setting.warps,
            num_stages=setting.stages,
            maxnreg=setting.registers,
        )
        for setting in settings
    ]
    decorate = triton.autotune(
        configs=configs,
        key=list(key),
        restore_value=_CHANGED[name],
        cache_results=do_bench is None,
        do_bench=do_bench,
    )
    return decorate(kernel(name))


def _options(setting: Setting, step: Optional[str]) -> dict[str, Any]:
    options: dict[str, Any] = {"num_warps": setting.warps, "num_stages": setting.stages}
    if setting.registers is not None:
        options["maxnreg"] = setting.registers
    if step:
        options[step] = setting.step
    return options
