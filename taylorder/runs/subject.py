"""A config, and the model that it was made for, loaded as its run loaded it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from taylorder.errors import TaylorderError
from taylorder.runs.run_files import config_file

if TYPE_CHECKING:
    from taylorder.adapt.config import OrderConfig
    from taylorder.models.description import ModelDescription

_UNLESS_ASKED = "float32"


@dataclass(frozen=True)
class ToLoad:
    """What ``load`` is given, and the run or config that says so, None where the command line does.

    ``adapter`` is a folder whose adapter is merged into the weights.
    """

    model: str | None
    dtype: str
    revision: str | None = None
    named_by: Path | None = None
    adapter: Path | None = None


@dataclass(frozen=True)
class ConfigAndModel:
    """A config, where it was found, and its model."""

    config: OrderConfig
    path: Path
    to_load: ToLoad


def subject_of(config: Path, model: str | None = None, dtype: str | None = None) -> ConfigAndModel:
    """A config, and the model to run with it.

    Args:
        config: its file, or the run that has it.
        model: to be run instead of the one that the config was made for.
        dtype: the dtype asked for, None for that of the run.

    Raises:
        UsageError: there is nothing there.
        ConfigError: the config is malformed.

    """
    from taylorder.adapt.config import OrderConfig
    from taylorder.runs import run_directory

    path = config_file(config)
    chosen = OrderConfig.load(path)
    there = run_directory.read_model(path.parent)
    if there is not None and there.fingerprint != chosen.model.fingerprint:
        there = None
    if model is None:
        to_load = model_of_run(path.parent, chosen.model.name, there, dtype)
    else:
        to_load = ToLoad(model, dtype or (_UNLESS_ASKED if there is None else there.dtype))
    return ConfigAndModel(chosen, path, to_load)


def model_of_run(folder: Path, name: str, there: ModelDescription | None, dtype: str | None) -> ToLoad:
    """The model that a run in ``folder`` is about: its own folder if it lies in one, else what was loaded for it.

    Where an adapter lies there, it is the model that this is for, with the adapter merged.

    Args:
        folder: where the run is.
        name: what the run calls its model.
        there: the model as the run describes it, if there is a whole run.
        dtype: the dtype asked for, None for that of the run.

    """
    from taylorder.models.adapters import adapter_of

    used = dtype or (_UNLESS_ASKED if there is None else there.dtype)
    if (healed := adapter_of(folder)) is not None:
        base, revision = healed
        return ToLoad(base, used, revision, folder, folder)
    if (folder / "config.json").is_file():
        return ToLoad(str(folder), used, None, folder)
    origin = None if there is None else there.origin
    if origin is None:
        return ToLoad(name, used, None, folder)
    if origin.path is not None and Path(origin.path).exists():
        # By its own name where that means the same from here.
        same = Path(name).expanduser().resolve() == Path(origin.path)
        return ToLoad(name if same else origin.path, used, None, folder)
    return ToLoad(name, used, origin.revision, folder)


@contextmanager
def named_by(run: Path | None, name: str | None, way_out: str) -> Iterator[None]:
    """Where the model that a run names is not to be found, say who named it and what to do; nothing without a run."""
    try:
        yield
    except TaylorderError as error:
        if run is not None and name is not None and not Path(name).expanduser().exists():
            sentence = str(error).removesuffix(".")
            error.args = (f"{sentence}; {run} names it so, perhaps as seen from another folder: {way_out}",)
        raise
