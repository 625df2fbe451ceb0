"""A folder that transformers loads and that generates with a config: weights, config, card."""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers.utils.hub import cached_file

from taylorder.adapt.config import OrderConfig
from taylorder.errors import TaylorderError, UsageError
from taylorder.integrations.custom_generate import FILE
from taylorder.models.description import ModelDescription
from taylorder.models.loading import LoadedModel
from taylorder.models.quiet import quiet_transformers
from taylorder.runs.run_files import CARD_FILE, FILES
from taylorder.storage.files import replacing_folder

GENERATE = "custom_generate/generate.py"
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
_SETTINGS = ("config.json", "generation_config.json")
"""What ``save_pretrained`` writes beside weights."""


def check_free(folder: Path) -> None:
    """Refuse a folder that holds anything but an export, which a new one replaces.

    Raises:
        UsageError: it holds something else, or is a file.

    """
    if not folder.exists() or (folder / GENERATE).is_file():
        return
    if not folder.is_dir():
        raise UsageError(f"--out {folder} is a file; name a folder")
    if any(folder.iterdir()):
        raise UsageError(f"--out {folder} holds something else than an export; name another folder")


def export(
    loaded: LoadedModel, description: ModelDescription, config: OrderConfig, card: str, folder: Path, *, link: bool
) -> None:
    """Write a folder that ``from_pretrained`` loads, and that generates with the config where its code is trusted.

    Args:
        loaded: the model and its tokenizer.
        description: of the model.
        config: of this model.
        card: the text of the model card.
        folder: where to; an earlier export is replaced, when everything is there.
        link: point at the weights where they lie instead of writing them again.

    Raises:
        UsageError: weights that are to be linked are not files that transformers finds by themselves.
        TaylorderError: something cannot be written.

    """
    weights = _weights_of(description, folder) if link else {}
    try:
        with quiet_transformers(), replacing_folder(folder) as made:
            if link:
                for file, target in weights.items():
                    (made / file.name).symlink_to(target)
                for file in (next(iter(weights)).with_name(name) for name in _SETTINGS):
                    if file.is_file():
                        shutil.copyfile(file, made / file.name)
            else:
                loaded.model.save_pretrained(made)
            loaded.tokenizer.save_pretrained(made)
            config.save(made / FILES["orders"])
            (made / GENERATE).parent.mkdir()
            (made / GENERATE).write_text(FILE, encoding="utf-8")
            (made / CARD_FILE).write_text(card, encoding="utf-8")
    except OSError as error:
        raise TaylorderError(f"--out {folder} cannot be written ({error.strerror or error}); name another") from error


def _weights_of(description: ModelDescription, out: Path) -> dict[Path, Path]:
    """The files of the weights, in a folder or in the cache of the Hub, and what each is itself a link to."""
    origin = description.origin
    name = description.name if origin is None or origin.path is None else origin.path
    found: dict[Path, Path] = {}
    if Path(name).is_dir() or (origin is not None and origin.revision is not None):
        revision = None if origin is None else origin.revision
        folder = Path(cached_file(name, "config.json", revision=revision)).parent
        found = {file: file.resolve() for pattern in _WEIGHTS for file in sorted(folder.glob(pattern))}
    if not found:
        raise UsageError(f"{description.name} has no .safetensors files to link to; leave out --link to write them")
    if any(target.parent == out.resolve() for target in found.values()):
        raise UsageError(f"--out {out} has the weights that are to be linked to; name another folder")
    return found
