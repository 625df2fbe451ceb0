"""A model in a folder: does the product's loader give a class that generates where the saved one does?"""

from __future__ import annotations

import tempfile
from typing import Any

from transformers import AutoTokenizer

import taylorder

from . import inputs
from .examination import Examination

MOST_PARAMETERS = 20_000_000


def load(examination: Examination, model: Any) -> None:
    """Save the model with a tokenizer, load it, and note the class."""
    with tempfile.TemporaryDirectory() as folder:

        def save() -> bool:
            """Save, and have transformers itself read everything back: the product can do no more."""
            model.save_pretrained(folder)
            inputs.tokenizer().save_pretrained(folder)
            AutoTokenizer.from_pretrained(folder)
            type(model).from_pretrained(folder)
            return True

        if examination.untouched("load", save) is None:
            return
        loaded = examination.product("load", lambda: taylorder.load(folder).model)
        for refusal in examination.record["refused"]:  # the folder has another name in each run
            refusal["message"] = refusal["message"].replace(folder, "FOLDER")
        if loaded is not None:
            examination.record["load"] = {
                "class": type(loaded).__name__,
                "generates": bool(loaded.can_generate()),
                "saved_generates": bool(model.can_generate()),
            }
