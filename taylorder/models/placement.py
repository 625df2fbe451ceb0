"""Where a model is to be: on one device, or its modules on several, in memory and on disk, as a device map says.

That belongs to the machine and not to the model: a run does not remember it, and any command may be given another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from taylorder.errors import UsageError, first_line
from taylorder.storage import processes
from taylorder.storage.strict_json import brief, read_json

DeviceMap: TypeAlias = str | Mapping[str, str | int]
"""What transformers takes: the name of a strategy, or for names of modules a device, ``"cpu"`` or ``"disk"`` each."""

STRATEGIES = ("auto", "balanced", "sequential")
DISK = "disk"

_EXPECTED = f'expected {", ".join(STRATEGIES)}, or a JSON file such as {{"model.embed_tokens": 0, "": "cpu"}}'


@dataclass(frozen=True)
class Placement:
    """One device, or a device map; ``str`` of it is what reports say."""

    device: str = "cpu"
    device_map: DeviceMap | None = None
    given: str = ""

    @classmethod
    def of(cls, device: str, device_map: str | None) -> Placement:
        """What ``--device`` and ``--device-map`` say.

        Raises:
            UsageError: both say something, the map is none, or there are several processes to be told.

        """
        if device_map is None:
            # Each of several processes has a whole model, on the GPU of its number.
            return cls(f"cuda:{processes.local_rank()}" if device == "cuda" and processes.world() > 1 else device)
        if processes.world() > 1:
            raise UsageError(
                f"--device-map is {device_map}, and there are {processes.world()} processes, each with a whole model: "
                "leave it out, or start one process"
            )
        if device != cls.device:
            raise UsageError(
                f"--device is {device} and --device-map {device_map}, which names all devices: leave out one of them"
            )
        return cls(device, device_map if device_map in STRATEGIES else _read(device_map), device_map)

    def __str__(self) -> str:
        """The device, or what was given as a map."""
        return self.device if self.device_map is None else f"device map {self.given}"


def refuse_device_map(device_map: DeviceMap) -> None:
    """Refuse a device map that transformers would not take, or that names a device that cannot be used here.

    Raises:
        UsageError: says which.

    """
    if isinstance(device_map, str):
        if device_map not in STRATEGIES:
            raise UsageError(f"the device map is {brief(device_map)}, {_EXPECTED}")
        return
    if not device_map:
        raise UsageError(f"the device map is empty, {_EXPECTED}")
    for module, device in device_map.items():
        if isinstance(device, bool) or not isinstance(device, str | int):
            raise UsageError(
                f"the device map has {brief(device)} for {brief(module)}, expected the number of a GPU, a device, "
                '"cpu" or "disk"'
            )
    for device in dict.fromkeys(device_map.values()):
        if device != DISK:
            refuse_device(device)


def refuse_device(device: Any) -> None:
    """Refuse a device that cannot be used here.

    Raises:
        UsageError: nothing can be put there.

    """
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {device} cannot be used here ({first_line(error)}): take cpu.") from error


def _read(file: str) -> Mapping[str, str | int]:
    try:
        content = read_json(Path(file).expanduser())
    except FileNotFoundError as error:
        raise UsageError(f"--device-map {file} is not there, {_EXPECTED}") from error
    except OSError as error:
        raise UsageError(f"--device-map {file} cannot be read ({error.strerror}), {_EXPECTED}") from error
    except ValueError as error:
        raise UsageError(f"--device-map {file} is no JSON ({error}), {_EXPECTED}") from error
    if not isinstance(content, dict):
        raise UsageError(f"--device-map {file} holds {brief(content)}, {_EXPECTED}")
    return content
