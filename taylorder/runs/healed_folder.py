"""The folder of a healed model: adapter, config, card and figures, which appear together or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from taylorder.errors import TaylorderError
from taylorder.healing.heal import Healing
from taylorder.runs.run_files import CARD_FILE, FILES, HEALED
from taylorder.storage.files import replacing_together
from taylorder.storage.finite_json import as_json


def write(folder: Path, healing: Healing, card: str, document: dict[str, Any]) -> None:
    """Write everything that belongs to a healed model.

    Raises:
        TaylorderError: the folder cannot be written.

    """
    try:
        with replacing_together(folder, HEALED) as made:
            for file in () if healing.adapter is None else healing.adapter.glob("adapter_*"):
                shutil.copyfile(file, made / file.name)
            healing.config.save(made / FILES["orders"])
            (made / CARD_FILE).write_text(card, encoding="utf-8")
            (made / HEALED[-1]).write_text(as_json(document), encoding="utf-8")
    except OSError as error:
        raise TaylorderError(
            f"--out {folder} cannot be written ({error.strerror or error}); the same command with another --out trains "
            "again, so free it and run this one once more"
        ) from error
