"""``taylorder lm-eval``."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated

import typer

from taylorder.errors import UsageError


def lm_eval(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ARGUMENTS",
            help="What `lm-eval` takes; after `run` its own --help too.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Run lm-evaluation-harness with a config, on its tasks or on the bundled ones, which need no network.

    The arguments are lm-eval's own, and the model is `taylorder` unless --model names another. In --model_args,
    `orders=` names a config or a run (taylorder-out unless told otherwise) and `pretrained=` the model, which is the
    config's where it is left out; the others are those of lm-eval's `hf`. Bundled tasks are taylorder_list,
    taylorder_lookup and taylorder_needle, together `taylorder`, and taylorder_text, the perplexity of a file; a folder
    named with --include_path takes their place.

    Example: taylorder lm-eval --tasks taylorder

    Example: taylorder lm-eval --model_args orders=taylorder-out --tasks taylorder_text --metadata text=book.txt

    Example: taylorder lm-eval run --help
    """
    if find_spec("lm_eval") is None:
        raise UsageError("lm-evaluation-harness is not installed; `pip install 'taylorder[lm-eval]'` installs it")
    if not arguments:
        raise UsageError("lm-eval is given no arguments; `taylorder lm-eval --help` shows some to begin with")

    from taylorder.integrations.lm_eval_command import run

    run(arguments)
