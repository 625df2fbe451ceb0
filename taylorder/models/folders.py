"""Which folders inside another one hold a model, and which hold one that only other programs run."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

_DEPTH, _MOST = 4, 2000
"""How deep models are looked for (cache/models--a--b/snapshots/hash), and in how many folders at most."""

_SAYS_SO = re.compile(r'"(model_type|architectures|hidden_size|n_embd)"')
"""What the config of a model has and that of a pooling layer, or of something else, has not."""


_TORCH = ("*.safetensors", "*.bin", "*.pt", "*.gguf")


def other_format(folder: Path) -> tuple[str, str] | None:
    """Name the format of a model that transformers does not run, and a file that shows it; None for any other folder.

    An export beside the original weights is no hindrance.
    """
    if (folder / "model.bin").is_file() and any(folder.glob("*vocabulary.*")):
        return "CTranslate2", "model.bin"
    if any(any(folder.glob(pattern)) for pattern in _TORCH):
        return None
    exports = sorted(file for pattern in ("*.onnx", "onnx/*.onnx") for file in folder.glob(pattern))
    return ("ONNX", str(exports[0].relative_to(folder))) if exports else None


def models_inside(folder: Path, most: int = _MOST) -> list[Path]:
    """Folders below that hold a model, likeliest first; at most ``most`` folders are looked at.

    That is the snapshot that a Hub cache calls main, the checkpoint of most steps, and what lies less deep.
    """
    return sorted(_models(folder, most), key=lambda path: _rank(path, folder))


def _rank(path: Path, folder: Path) -> tuple[bool, int, int, str]:
    main = path.parent.parent / "refs" / "main"
    try:
        is_main = main.read_text(encoding="utf-8").strip() == path.name
    except (OSError, UnicodeDecodeError):
        is_main = False
    step = re.fullmatch(r".*?(\d{1,18})", path.name)
    checkpoint = path.name.startswith("checkpoint") and step is not None
    return not is_main, len(path.relative_to(folder).parts), -int(step[1]) if checkpoint and step else 0, path.name


def _models(folder: Path, most: int) -> Iterator[Path]:
    level = [folder]
    seen = 0
    for _ in range(_DEPTH):
        deeper: list[Path] = []
        for parent in level:
            for inner in _subfolders(parent):
                seen += 1
                if seen > most:
                    return
                if _is_model(inner):
                    yield inner
                else:
                    deeper.append(inner)
        level = deeper


def _subfolders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []


def _is_model(folder: Path) -> bool:
    try:
        return _SAYS_SO.search((folder / "config.json").read_text(encoding="utf-8")) is not None
    except (OSError, UnicodeDecodeError):
        return False
