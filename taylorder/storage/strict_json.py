"""JSON files that people may have edited: read with one meaning, or refused by a sentence that says what is wrong."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError

LARGEST = 2**28
"""Bytes of a file that is read at all: hundreds of times what the largest model needs."""

DEEPEST = 100
"""Levels of lists and objects inside each other: far more than any file has, far fewer than Python can follow."""

_SHOWN = 80
"""Characters of a value or a name that a sentence can bear."""


def read_json(path: Path, *, finite: bool = True, largest: int = LARGEST) -> Any:
    """Read a file of at most ``largest`` bytes as :func:`parse_json` does.

    Raises:
        OSError: it cannot be read; FileNotFoundError if it is not there.
        ValueError: it does not hold one JSON value with one meaning.

    """
    with path.open("rb") as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise ValueError(f"it has more than {largest:,} bytes")
    return parse_json(content.decode("utf-8-sig"), finite=finite)  # editors put a byte order mark in front


def parse_json(text: str, *, finite: bool = True) -> Any:
    """Parse JSON, refusing what Python's reader would take with another meaning or not survive.

    Args:
        text: a JSON document.
        finite: refuse NaN and infinities, which Python writes and no other reader takes.

    Raises:
        ValueError: it is no JSON, a key stands twice in an object, a number is not finite or has more digits than
            can be held, text is not Unicode, or it is nested deeper than :data:`DEEPEST`.

    """
    hooks: dict[str, Any] = {"parse_constant": _refuse_constant} if finite else {}
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_float=_number, **hooks)
    except RecursionError:
        raise _too_deep() from None
    depth, level = 0, [value]
    while level:
        depth += 1
        if depth > DEEPEST:
            raise _too_deep()
        inner: list[Any] = []
        for item in level:
            if isinstance(item, str) and not item.isascii():
                item.encode()  # half of a surrogate pair is a ValueError
            elif isinstance(item, dict):
                inner += item
                inner += item.values()
            elif isinstance(item, list):
                inner += item
        level = inner
    return value


def brief(value: Any) -> str:
    """Show a value in a sentence: on one line, and not longer than a sentence can bear."""
    shown = repr(value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"


def in_line(name: str) -> str:
    """Show a name as it is where that leaves a sentence one line, and briefly where not."""
    return name if name.isprintable() and len(name) <= _SHOWN else brief(name)


def explain(error: ValidationError) -> str:
    """Say the first thing pydantic found wrong, with its place, in one sentence."""
    first = error.errors()[0]
    parts = [str(part) for part in first["loc"]]
    path = ".".join(in_line(p) for p in parts if not p.startswith(("literal", "constrained", "function")))
    message = first["msg"].removeprefix("Value error, ")
    match first["type"]:
        case "extra_forbidden":
            message = "unknown key; remove it, or upgrade taylorder if a newer version wrote it"
        case "missing":
            message = "the key is missing"
        case kind if kind != "value_error":
            message = f"{message}, found {brief(first['input'])}"
    return f"{path}: {message}" if path else message


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {brief(twice)} stands twice in one object; remove one of them")
    return value


def _number(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"found {text[:_SHOWN]}, expected a number that 64 bits hold")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"found {name}, expected a finite number")


def _too_deep() -> ValueError:
    return ValueError(f"lists and objects are nested more than {DEEPEST} deep")
