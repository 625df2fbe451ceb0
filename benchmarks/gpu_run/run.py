"""All sections one after another, each within its time, as one document; and the table that is made from it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from rich.table import Column, Table

from gpu_run import sections
from gpu_run.sections import Row
from gpu_run.sizes import Sizes
from taylorder.storage.finite_json import stamped

SCHEMA = "taylorder/gpu@1"

LIMITS = {"tests": 120.0, "attention": 60.0, "prefill": 50.0, "decode": 50.0, "generate": 60.0}
"""Seconds of each section, 340 in all: what is left out is said."""


def measured(sizes: Sizes, model: str | None, limits: dict[str, float] | None = None) -> dict[str, Any]:
    """Run every section; return the document."""
    limits = LIMITS if limits is None else limits
    rows: dict[str, Callable[[], Iterator[Row]]] = {
        "tests": partial(sections.tests, limits["tests"]),
        "attention": partial(sections.attention, sizes),
        "prefill": partial(sections.prefill, sizes),
        "decode": partial(sections.decode, sizes),
        "generate": partial(sections.generate, sizes, model),
    }
    content = {name: _within(limits[name], start) for name, start in rows.items()}
    return stamped(SCHEMA, {"machine": machine(sizes.device), "sizes": _plain(sizes), "sections": content})


def _within(seconds: float, start: Callable[[], Iterator[Row]]) -> dict[str, Any]:
    """Rows of a section until its time is used up, looked at between rows; one that fails says why."""
    begun = time.monotonic()
    found: list[dict[str, Any]] = []
    ended = ""
    rows = start()
    with torch.inference_mode():
        while not ended:
            if time.monotonic() - begun >= seconds:
                ended = f"skipped from here on: its {seconds:.0f} s are used up"
                break
            try:
                found.append(asdict(next(rows)))
            except StopIteration:
                break
            except Exception as error:  # a figure less, and the others all the same
                ended = f"stopped by {type(error).__name__}: {error}"
    return {"seconds": round(time.monotonic() - begun, 1), "rows": found, "ended": ended}


def machine(device: torch.device) -> dict[str, Any]:
    """What runs it: the card, its driver and CUDA, or a CPU."""
    if device.type != "cuda":
        return {"device": device.type, "threads": torch.get_num_threads()}
    card = torch.cuda.get_device_properties(device)
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        driver = "unknown"
    return {
        "device": card.name,
        "capability": f"{card.major}.{card.minor}",
        "memory_bytes": card.total_memory,
        "driver": driver,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
    }


def _plain(sizes: Sizes) -> dict[str, Any]:
    return {**asdict(sizes), "device": str(sizes.device), "dtype": str(sizes.dtype)}


def table(document: dict[str, Any]) -> Table:
    """Every figure of a document, and what it says of the sections that ended early."""
    title = ", ".join(f"{name} {value}" for name, value in document["machine"].items() if value is not None)
    figures = [Column(name, justify="right") for name in ("tokens", "ms", "ratio")]
    made = Table("section", "what ran", *figures, "", title=title, title_justify="left")
    for name, section in document["sections"].items():
        for row in section["rows"]:
            tokens = "" if row["tokens"] is None else f"{row['tokens']:,}"
            numbers = ["" if row[key] is None else f"{row[key]:.3f}" for key in ("milliseconds", "ratio")]
            made.add_row(name, row["what"], tokens, *numbers, row["note"])
        if section["ended"]:
            made.add_row(name, "", "", "", "", section["ended"])
        made.add_section()
    return made
