"""Time per call on any device: candidates take turns, so that whatever slows the machine slows all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def once(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, waiting for the device before and after it."""
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - start


def medians(
    candidates: Mapping[str, Callable[[], object]], repeats: int, device: torch.device, warm_ups: int = 1
) -> dict[str, float]:
    """Seconds per call of each candidate, after as many rounds that do not count."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(warm_ups + repeats):
        for name, call in candidates.items():
            seconds = once(call, device)
            if turn >= warm_ups:
                times[name].append(seconds)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
