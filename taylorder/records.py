"""Finished pieces of a long measurement, kept on disk so that an interrupted run loses none of them.

Pieces belong to the settings they were measured under: opened with other settings, the directory starts empty. Floats
are written with ``repr`` and tensors bit for bit, so a run that goes on gives what an uninterrupted one gives.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from taylorder.errors import TaylorderError
from taylorder.files import replacing

_SETTINGS = "settings.json"


class Records:
    """A directory of named pieces: a JSON value each, with tensors beside it where there are any."""

    def __init__(self, directory: Path, settings: Mapping[str, Any], *, fresh: bool = False) -> None:
        """Open, and empty unless the pieces there were measured under these settings.

        Args:
            directory: created if need be.
            settings: everything that a piece depends on, as JSON.
            fresh: forget what is there.

        Raises:
            TaylorderError: the directory cannot be written.

        """
        self.directory = directory
        wanted = json.dumps(settings, sort_keys=True)
        try:
            if fresh or self._text(_SETTINGS) != wanted:
                shutil.rmtree(directory, ignore_errors=True)
                directory.mkdir(parents=True, exist_ok=True)
                self._write(_SETTINGS, wanted)
        except OSError as error:
            raise TaylorderError(f"{directory} cannot be written ({error.strerror}); name another --out") from error

    def get(self, name: str) -> Any:
        """The value of a piece, or None if it was not finished."""
        text = self._text(f"{name}.json")
        try:
            return None if text is None else json.loads(text)
        except ValueError:
            return None

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of a piece; empty if it has none."""
        path = self.directory / f"{name}.safetensors"
        try:
            return load_file(path) if path.exists() else {}
        except (OSError, SafetensorError) as error:
            raise TaylorderError(f"{path} cannot be read ({error}); start over with --fresh") from error

    def put(self, name: str, value: Any, tensors: Mapping[str, Tensor] | None = None) -> None:
        """Keep a piece; tensors go first, so that a value there vouches for them."""
        try:
            if tensors:
                with replacing(self.directory / f"{name}.safetensors") as temporary:
                    temporary.write_bytes(save({key: each.contiguous() for key, each in tensors.items()}))
            self._write(f"{name}.json", json.dumps(value))
        except OSError as error:
            raise TaylorderError(
                f"{self.directory} cannot be written ({error.strerror}); name another --out"
            ) from error

    def _text(self, name: str) -> str | None:
        try:
            return (self.directory / name).read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError):
            return None

    def _write(self, name: str, text: str) -> None:
        with replacing(self.directory / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
