"""``taylorder export``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from taylorder.commands import options
from taylorder.commands._paths import path_of
from taylorder.commands._shared import check_writable, load_described, print_next
from taylorder.models.placement import Placement
from taylorder.runs import run_files

_RUN = {"metavar": "DIR", "help": f"A config: a run ({options.A_RUN}), or an orders.json."}
_EXPORT = Path("taylorder-export")


def export(
    directory: Annotated[Path, typer.Argument(**_RUN, parser=path_of("DIR"))] = run_files.DEFAULT,
    out: Annotated[Path, options.path("Write the folder here.", "--out", "DIR")] = _EXPORT,
    model: Annotated[
        str | None,
        options.value("Hub id, model folder or .gguf file.", "MODEL", "the config's, loaded as its run loaded it"),
    ] = None,
    link: Annotated[
        bool, options.flag("--link", "Point at the weights where they lie instead of writing them again.")
    ] = False,
    layerwise: Annotated[
        bool,
        options.flag("--layer-wise", "Give all KV heads of a layer the longest window that one of them has."),
    ] = False,
    device_map: options.DeviceMap = None,
    dtype: options.DtypeOfRun = None,
) -> None:
    """Write a folder that transformers loads and generates from with the config, without a line of other code.

    It has the weights, the tokenizer, the config, a `custom_generate` and a card with the figures of the run.
    `from_pretrained(DIR, trust_remote_code=True)` and `transformers serve DIR --trust-remote-code` run it.

    Example: taylorder export small --dtype bfloat16

    Example: taylorder export small --layer-wise --out layers
    """
    from taylorder.integrations.export import check_free

    check_free(out)
    check_writable(out)

    from taylorder.runs.subject import subject_of

    place = Placement.of("cpu", device_map)
    about = subject_of(directory, model, dtype)

    from taylorder.reports.progress import StderrProgress

    with StderrProgress() as progress:
        loaded, description = load_described(about.to_load, place, progress, "name it with --model")
        about.config.check(description)

        from taylorder.adapt.continuation import refuse_without_head
        from taylorder.adapt.layer_wise import layer_wise
        from taylorder.integrations.export import export as write
        from taylorder.reports import model_card
        from taylorder.runs.recorded_config import RecordedConfig, read_recorded

        refuse_without_head(loaded.model)
        if layerwise:
            per_head, config = about.config, layer_wise(about.config, description)
            recorded = RecordedConfig(about.path, config)
        else:
            per_head, config = None, about.config
            recorded = read_recorded(about.path)
        progress.say(f"writing {out}")
        card = model_card.card(recorded, description, model_card.exported(out.name), per_head)
        write(loaded, description, config, card, out, link=link)
    folder = shlex.quote(str(out))
    print_next(f"wrote {out}", f"transformers serve {folder} --trust-remote-code", f"taylorder eval --config {folder}")
