"""Shell commands over several lines. By itself, since the help of commands needs it and must import nothing heavy."""

from __future__ import annotations

import re


def folded(command: str, width: int) -> str:
    """A shell command over as many lines as it takes, so that it can still be copied."""
    lines = [""]
    begin, *asked = re.split(r" (?=--)", command)
    operands = re.findall(r"(?:'[^']*'|[^ '])+", begin)  # a quoted one may hold blanks
    for word in (*operands, *asked):
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("  " + word)
        else:
            lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
    return " \\\n".join(f"    {line}" for line in lines)
