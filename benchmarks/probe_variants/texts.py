"""Sequences by kind: three kinds to fit to, and three to judge on, none of which share a file."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import numpy as np
from torch import Tensor, tensor

from taylorder.analysis.text import Text, calibration_text
from taylorder.analysis.tokens import tokenise
from taylorder.evaluation.evaluation_text import evaluation_text
from taylorder.evaluation.task_prompts import make_tasks

LENGTH = 2048

HELD_OUT = ("docstrings", "code", "tasks")
"""Kinds to judge on: the evaluation text, Python source, task prompts of 1,024 tokens (list, lookup, needle)."""

_FITTED_MODULES = ("argparse", "dataclasses", "inspect", "textwrap", "configparser", "json.decoder", "heapq")
_HELD_OUT_MODULES = ("tarfile", "http.client", "statistics", "fractions", "zipfile", "difflib")


def sequences(tokenizer: Any) -> dict[str, list[Tensor]]:
    """Sequences by name of the kind; those to judge on begin with ``held-out``.

    ``first`` are the first three of the calibration text, ``topics`` are spread over all of it.
    """
    topics = tokenise(tokenizer, calibration_text())
    prompts = make_tasks(tokenizer, lengths=(1024,), kinds=("list", "lookup", "needle"), cases=1)
    return {
        "first": list(topics.first(LENGTH, 3 * LENGTH)),
        "topics": list(topics.draw(LENGTH, 8, 0)),
        "code": list(tokenise(tokenizer, _source(_FITTED_MODULES)).draw(LENGTH, 4, 0)),
        "lists": list(tokenise(tokenizer, _lists()).first(LENGTH, 2 * LENGTH)),
        "held-out docstrings": list(tokenise(tokenizer, evaluation_text()).draw(LENGTH, 3, 7)),
        "held-out code": list(tokenise(tokenizer, _source(_HELD_OUT_MODULES)).draw(LENGTH, 3, 0)),
        "held-out tasks": [tensor(prompt.input_ids) for prompt in prompts],
    }


def _source(modules: tuple[str, ...]) -> Text:
    sources = [inspect.getsource(importlib.import_module(name)) for name in modules]
    return Text(f"source of {', '.join(modules)}", "\n".join(sources))


def _lists(pairs: int = 120, lists: int = 6) -> Text:
    """Lists of ``name: value``, each a second time in another order, so that every line is looked up once."""
    draw = np.random.default_rng(0)
    words = sorted({word for word in calibration_text().content.split() if word.isalpha() and word.islower()})
    parts = []
    for _ in range(lists):
        names, values = (draw.choice(words, pairs, replace=False) for _ in range(2))
        for order in (range(pairs), draw.permutation(pairs)):
            parts.append("\n".join(f"{names[line]}: {values[line]}" for line in order))
    return Text("lists of pairs", "\n\n".join(parts))
