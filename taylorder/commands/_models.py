"""Loading the model that a command is about."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from taylorder.commands._paths import named_by

if TYPE_CHECKING:
    from taylorder.models.description import ModelDescription
    from taylorder.models.loading import LoadedModel
    from taylorder.reports.progress import StderrProgress


def load_described(
    model: str | None, device: str, dtype: str, progress: StderrProgress, run: Path | None = None
) -> tuple[LoadedModel, ModelDescription]:
    """Load a model, the built-in one for None, and describe it; ``run`` is the run that named it, if one did."""
    progress.say(f"loading {model or 'the built-in model'}")

    from taylorder.models.describe import describe
    from taylorder.models.loading import load

    with named_by(run, model, "name the model itself, and the run with --config"):
        loaded = load(model, device=device, dtype=dtype)
    return loaded, describe(loaded.model, loaded.name, weights_note=loaded.weights_note)
