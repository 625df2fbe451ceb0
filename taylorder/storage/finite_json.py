"""Documents as JSON that every reader takes.

JSON has no NaN and no infinities: such a figure is written as the string ``"nan"``, ``"inf"`` or ``"-inf"``, which
``float()`` reads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from taylorder.storage.provenance import software_versions


def finite(value: Any) -> Any:
    """Replace what JSON cannot hold: non-finite floats by strings, tuples by lists."""
    match value:
        case float() if not math.isfinite(value):
            return str(value)
        case dict():
            return {key: finite(item) for key, item in value.items()}
        case list() | tuple():
            return [finite(item) for item in value]
    return value


def stamped(schema: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """A document ready for JSON: its schema first and, unless it has them elsewhere, the versions of software last."""
    document = {"schema": schema, **content}
    document.setdefault("software", software_versions())
    made: dict[str, Any] = finite(document)
    return made


def as_json(document: dict[str, Any]) -> str:
    """Serialise a document: nested objects and lists of records spread over lines, everything else on one."""
    return _json(document, "") + "\n"


def _json(value: Any, indent: str) -> str:
    inner = indent + " "
    if isinstance(value, dict) and any(isinstance(item, dict | list) for item in value.values()):
        lines = [f"{inner}{json.dumps(key)}: {_json(item, inner)}" for key, item in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(inner + json.dumps(record, allow_nan=False) for record in value) + f"\n{indent}]"
    return json.dumps(value, allow_nan=False)
