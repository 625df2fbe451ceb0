"""Reading compiled code: how many cycles the loops of an NVIDIA kernel keep tensor cores and instruction issue busy.

A static count, not a timing: an upper bound on how well tensor cores can be used, with no wait for memory in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

SCHEDULERS = 4
"""Instructions a multiprocessor issues per cycle, one from each scheduler."""

TENSOR_FLOPS = {80: 2048, 86: 1024, 89: 1024, 90: 4096}
"""Dense 16-bit floating point operations per cycle of a multiprocessor, by compute capability; TF32 does half.

The peak of a data centre GPU: GeForce sums float32 at half that, and on 9.0 only HGMMA gets there, HMMA does not. From
10.0 on products are other instructions, which are not counted here.
"""

_LABEL = re.compile(r"\s*(\.L_\w+):")
_INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?);")
_PREDICATE = re.compile(r"^@!?U?P\w+\s+")
_TARGET = re.compile(r"BRA.*`\((\.L_\w+)\)")
_WARP_PRODUCT = re.compile(r"HMMA\.(16816|1688|1684)\.")
_GROUP_PRODUCT = re.compile(r"HGMMA\.(\d+)x(\d+)x(\d+)\.")
_WARP_SHAPES = {"16816": 16 * 8 * 16, "1688": 16 * 8 * 8, "1684": 16 * 8 * 4}


@dataclass(frozen=True)
class Loop:
    """One innermost loop.

    Attributes:
        instructions: per warp and turn.
        tensor_cycles: cycles of the tensor cores per turn of all warps of a program.
        issue_cycles: cycles of instruction issue, the same.

    """

    instructions: int
    tensor_cycles: float
    issue_cycles: float

    @property
    def ratio(self) -> float:
        """Tensor cycles over issue cycles; from 1 on the tensor cores are the limit."""
        return self.tensor_cycles / self.issue_cycles


def loops(sass: str, warps: int, capability: int) -> list[Loop]:
    """All innermost loops that have matrix products, in the order of the code; none if the peak of a GPU is unknown.

    Args:
        sass: what ``nvdisasm -c`` prints.
        warps: of a program.
        capability: compute capability, 80 for 8.0.

    """
    counted: list[Loop] = []
    peak = TENSOR_FLOPS.get(capability)
    if peak is None:
        return counted
    for body in _innermost(sass):
        flops = sum(map(_flops, body))
        if flops:
            counted.append(Loop(len(body), flops * warps / peak, len(body) * warps / SCHEDULERS))
    return counted


def _innermost(sass: str) -> Iterator[Sequence[str]]:
    """Bodies of the loops that contain no other loop."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in sass.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif operation := _INSTRUCTION.match(line):
            instructions.append(_PREDICATE.sub("", operation[1].strip("{ ").strip()))
    spans = []
    for index, instruction in enumerate(instructions):
        target = _TARGET.match(instruction)
        # A branch to itself is the trap behind the end of a kernel, not a loop.
        if target and labels.get(target[1], index) < index:
            spans.append((labels[target[1]], index))
    for start, end in spans:
        if not any(start <= a and b <= end and (a, b) != (start, end) for a, b in spans):
            yield instructions[start : end + 1]


def _flops(instruction: str) -> float:
    """Floating point operations one warp's share of an instruction adds, in units of the 16-bit rate."""
    slower = 2 if "TF32" in instruction else 1
    if warp := _WARP_PRODUCT.match(instruction):
        return 2 * _WARP_SHAPES[warp[1]] * slower
    if group := _GROUP_PRODUCT.match(instruction):
        rows, columns, depth = (int(side) for side in group.groups())
        return 2 * rows * columns * depth * slower / 4  # four warps share it
    return 0
