"""``generate`` of an exported folder: that of transformers, with the folder's config attached while it runs.

transformers binds it where such a folder is loaded with ``trust_remote_code=True``, because the folder has a
``custom_generate/generate.py``, which imports it from here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

from taylorder.adapt.config import OrderConfig
from taylorder.adapt.config_tensors import companion
from taylorder.adapt.handle import attach
from taylorder.adapt.prepared import PreparedConfig, prepare
from taylorder.errors import MissingConfigError
from taylorder.runs.run_files import FILES

FILE = """\
\"\"\"Generate with the per-head config in orders.json. Needs `pip install taylorder`.\"\"\"

from taylorder.integrations.custom_generate import generate
"""
"""``custom_generate/generate.py`` of an exported folder; the package does the work, so that folders do not age."""


def generate(*inputs: Any, model: Any, **options: Any) -> Any:
    """Generate as ``model.generate(*inputs, **options)`` does, with the config of the folder that it was loaded from.

    The config is attached for this call alone, and the cache that the call returns, if it is asked to, goes on with the
    same config in the next one. Outside the model is as it was.

    Raises:
        MissingConfigError: the model was loaded from a folder or repository without a config.
        ConfigError: the config is malformed, or was made for other weights.

    """
    with attach(model, _prepared(model)):
        return type(model).generate(model, *inputs, **options)


def _prepared(model: Any) -> PreparedConfig:
    """What was made of the config for this model, which keeps it: weights are compared once."""
    there = getattr(model, "prepared_by_taylorder", None)
    if there is None or there.model is not model:
        there = model.prepared_by_taylorder = prepare(model, OrderConfig.load(_config_of(model)))
    return there


def _config_of(model: Any) -> Path:
    """The config beside the weights, which transformers fetches where they came from the Hub."""
    folder, revision = model.name_or_path, getattr(model.config, "_commit_hash", None)
    orders, _ = (
        cached_file(folder, name, revision=revision, _raise_exceptions_for_missing_entries=False)
        for name in (FILES["orders"], companion(Path(FILES["orders"])).name)
    )
    if orders is None:
        raise MissingConfigError(f"{folder} has no {FILES['orders']}; `taylorder export` writes folders that have one")
    return Path(orders)
