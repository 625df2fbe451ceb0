"""``taylorder push``."""

from __future__ import annotations

from typing import Annotated

import typer

from taylorder.commands import options
from taylorder.commands._shared import print_next
from taylorder.runs import run_files


def push(
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="A repository on the Hub; made if need be.")],
    config: options.Config = None,
    private: Annotated[bool, options.flag("--private", "Make a new repository a private one.")] = False,
) -> None:
    """Put a config, its tensors and a card with the figures of its run on the Hugging Face Hub; no weights.

    Example: taylorder push me/smollm2-64KiB --config small
    """
    path = run_files.config_file(config or run_files.DEFAULT)

    from taylorder.integrations.hub import push as write
    from taylorder.reports import model_card
    from taylorder.runs.recorded_config import read_recorded

    recorded = read_recorded(path)
    card = model_card.card(recorded, recorded.model, model_card.pushed(repository))
    address = write(recorded.config, card, repository, private=private)
    print_next(f"wrote {address}", f"taylorder pull {repository} --out config")
