"""Finished pieces of a long measurement, kept on disk so that an interrupted run loses none of them.

Pieces belong to the settings they were measured under: opened with other settings, the directory starts empty. Floats
are written with ``repr`` and tensors bit for bit, so a run that goes on gives what an uninterrupted one gives. A
checksum ties every piece to its name, its tensors and its settings: one that was damaged, edited or brought from
another run counts as not finished, and is measured again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from taylorder.errors import TaylorderError
from taylorder.storage.files import replacing, sha256
from taylorder.storage.processes import Result, from_first, is_first, spread
from taylorder.storage.strict_json import read_json
from taylorder.storage.tensor_files import tensors_as_bytes, tensors_of

_SETTINGS = "settings.json"


class Records:
    """A directory of named pieces: a JSON value each, with tensors beside it where there are any.

    Of several processes the first reads and writes, and tells the others what it read.
    """

    def __init__(self, directory: Path, settings: Mapping[str, Any], *, fresh: bool = False) -> None:
        """Open, and empty unless the pieces there were measured under these settings.

        ``replaced`` tells afterwards whether there were pieces of other settings.

        Args:
            directory: created if need be.
            settings: everything that a piece depends on, as JSON.
            fresh: forget what is there.

        Raises:
            TaylorderError: the directory cannot be written.

        """
        self.directory = directory
        self._settings = json.dumps(settings, sort_keys=True)
        self.replaced = from_first(lambda: self._open(fresh=fresh))

    def _open(self, *, fresh: bool) -> bool:
        """Empty the directory where need be; whether that threw pieces of other settings away."""
        try:
            other = self._bytes(_SETTINGS) != self._settings.encode()
            replaced = other and not fresh and bool(self._files())
            if fresh or other:
                shutil.rmtree(self.directory, ignore_errors=True)
                self.directory.mkdir(parents=True, exist_ok=True)
                self._write(_SETTINGS, self._settings)
        except OSError as error:
            raise self._unwritable(error) from error
        return replaced

    def names(self) -> list[str]:
        """The names of all finished pieces, sorted."""
        return from_first(lambda: [path.stem for path in self._files() if self._read(path.stem) is not None])

    def get(self, name: str) -> Any:
        """The value of a piece, or None if it was not finished or is not whole."""
        return from_first(lambda: self._read(name))

    def _read(self, name: str) -> Any:
        try:
            piece = read_json(self.directory / f"{name}.json", finite=False)
            value = piece["value"]
            whole = piece["sha256"] == self._checksum(name, value, self._bytes(f"{name}.safetensors"))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return value if whole else None

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of a piece; empty if it has none."""
        return from_first(lambda: self._read_tensors(name))

    def _read_tensors(self, name: str) -> dict[str, Tensor]:
        path = self.directory / f"{name}.safetensors"
        try:
            content = self._bytes(path.name)
            return {} if content is None else tensors_of(content)
        except (OSError, ValueError) as error:
            raise TaylorderError(f"{path} cannot be read ({error}); start over with --fresh") from error

    def put(self, name: str, value: Any, tensors: Mapping[str, Tensor] | None = None) -> None:
        """Keep a piece; tensors go first, so that a value there vouches for them."""
        if not is_first():
            return
        content = tensors_as_bytes(tensors) if tensors else None
        path = self.directory / f"{name}.safetensors"
        try:
            if content is None:
                path.unlink(missing_ok=True)
            else:
                with replacing(path) as temporary:
                    temporary.write_bytes(content)
            piece = {"sha256": self._checksum(name, value, content), "value": value}
            self._write(f"{name}.json", json.dumps(piece))
        except OSError as error:
            raise self._unwritable(error) from error

    def remove(self, names: Iterable[str]) -> None:
        """Forget pieces, which may not be there."""
        if is_first():
            for name in names:
                for kind in ("json", "safetensors"):
                    (self.directory / f"{name}.{kind}").unlink(missing_ok=True)

    def finish(
        self,
        names: Sequence[str],
        work: Callable[[int], Result],
        keep: Callable[[str, Result], None],
        progress: Callable[[int, int], None],
    ) -> None:
        """Have all pieces of these names: those that are missing are worked on, by as many processes as there are.

        Args:
            names: of the pieces.
            work: from the place of a name to what becomes a piece.
            keep: puts that under a name.
            progress: called with the pieces done, and how many there are.

        """
        missing = [place for place, name in enumerate(names) if self.get(name) is None]
        made = spread(work, missing)
        for place, name in enumerate(names):
            progress(place, len(names))
            if place in missing:
                keep(name, next(made))
        progress(len(names), len(names))

    def _unwritable(self, error: OSError) -> TaylorderError:
        return TaylorderError(f"{self.directory} cannot be written ({error.strerror}); name another --out")

    def _checksum(self, name: str, value: Any, tensors: bytes | None) -> str:
        held = None if tensors is None else sha256(tensors)
        return sha256(json.dumps([self._settings, name, value, held]).encode())

    def _files(self) -> list[Path]:
        return sorted(path for path in self.directory.glob("*.json") if path.name != _SETTINGS)

    def _bytes(self, name: str) -> bytes | None:
        try:
            return (self.directory / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _write(self, name: str, text: str) -> None:
        with replacing(self.directory / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
