"""lm-evaluation-harness's own command line, which finds the model ``taylorder`` and the bundled tasks."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

TASKS = Path(__file__).parent / "lm_eval_tasks"
"""The bundled tasks, for ``--include_path`` and for lm-eval's ``TaskManager``."""

_COMMANDS = ("run", "ls", "validate")


def run(arguments: Sequence[str]) -> None:
    """Hand arguments to lm-eval, with the model and the tasks where they name no others."""
    from lm_eval.__main__ import cli_evaluate

    import taylorder.integrations.lm_eval_model  # noqa: F401  # registers the model

    with patch.object(sys, "argv", ["lm-eval", *completed(arguments)]):
        cli_evaluate()


def completed(arguments: Sequence[str]) -> list[str]:
    """The arguments, with the bundled tasks and the model where lm-eval's command takes them and none are named."""
    given = list(arguments)
    command = given.pop(0) if given[:1] and given[0] in _COMMANDS else "run"
    names = {argument.partition("=")[0] for argument in given}
    if command == "run" and not names & {"--model", "-M", "--config", "-C"}:
        given += ["--model", "taylorder"]
    if not names & {"--include_path"}:
        given += ["--include_path", str(TASKS)]
    return [command, *given]
