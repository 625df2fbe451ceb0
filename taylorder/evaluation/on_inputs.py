"""What a config does to a model that is run on inputs of its own: how far its outputs move."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taylorder.adapt.config import OrderConfig
from taylorder.adapt.handle import attach
from taylorder.adapt.prepared import prepare
from taylorder.analysis.losses import EXACT, HiddenDistance, hidden_distance
from taylorder.errors import NonFiniteError
from taylorder.evaluation import rivals
from taylorder.evaluation.comparison import Comparison, Standing, stage_of
from taylorder.evaluation.evaluate import Evaluation, simple_rivals
from taylorder.evaluation.rivals import Contender
from taylorder.models.description import ModelDescription
from taylorder.models.inputs import Batch, Inputs
from taylorder.models.offloading import without_gradients
from taylorder.models.running import outputs, run_batch
from taylorder.storage.progress import Progress, silent


def evaluate_on_inputs(
    model: Any,
    description: ModelDescription,
    config: OrderConfig,
    inputs: Inputs,
    *,
    seconds: float = math.inf,
    progress: Progress = silent,
) -> Evaluation:
    """Compare a config with exact attention, order 3 and the paper's order 4, batch by batch.

    What is compared are the final hidden states, or, where a class names none, all that it puts out. No further batch
    is begun after ``seconds``.

    Raises:
        NonFiniteError: the exact model breaks down.

    """
    exact = rivals.exact_everywhere(config)
    if not description.open_modules:
        return Evaluation(exact, (), f"{description.why_none_open} and stays exact")
    contenders = [*([] if exact else [Contender(rivals.CONFIG, config)]), *simple_rivals(description)]
    prepared = {one.name: prepare(model, one.config, description, inputs) for one in contenders if one.config}
    distances: dict[str, list[HiddenDistance]] = {contender.name: [] for contender in contenders}
    failures: dict[str, str] = {}
    length = description.typical.tokens or description.max_context
    began, done, examples = time.monotonic(), 0, 0
    for batch in inputs.batches:
        if done and time.monotonic() - began > seconds:
            break
        expected = _final(model, batch)
        if not torch.isfinite(expected).all():
            raise NonFiniteError(
                f"{description.name} breaks down without any config (its outputs hold NaN or infinite values): check "
                "its weights, or run it in float32"
            )
        for contender in contenders:
            if contender.name in failures:
                continue
            try:
                with attach(model, prepared[contender.name], guard=contender.guard):
                    found = _final(model, batch)
            except NonFiniteError as error:
                failures[contender.name] = str(error)
                continue
            if torch.isfinite(found).all():
                distances[contender.name].append(hidden_distance(expected, found))
            else:
                failures[contender.name] = "its outputs hold NaN or infinite values"
        examples += len(next(iter(batch.values())))
        done += 1
        progress(stage_of(length), done, len(inputs))
    standings = [
        Standing(EXACT, "the model as it is", None, hidden_relative_l2=0.0, hidden_cosine=1.0),
        *(_standing(contender, distances[contender.name], failures.get(contender.name)) for contender in contenders),
    ]
    return Evaluation(exact, (Comparison(length, examples, inputs.source, inputs.sha256, 0, tuple(standings)),))


def _standing(contender: Contender, distances: Sequence[HiddenDistance], failure: str | None) -> Standing:
    if failure is not None:
        return Standing(contender.name, contender.note, None, failure=failure)
    return Standing(
        contender.name,
        contender.note,
        None,
        hidden_relative_l2=float(np.mean([distance.relative_l2 for distance in distances])),
        hidden_cosine=float(np.mean([distance.cosine for distance in distances])),
    )


def _final(model: Any, batch: Batch) -> Tensor:
    """Final hidden states ``[tokens, hidden]``; or all outputs as one row ``[1, numbers]``."""
    with without_gradients(model):
        returned = run_batch(model, batch)
    last = getattr(returned, "last_hidden_state", None)
    if isinstance(last, Tensor):
        return last.flatten(0, -2)
    return torch.cat([tensor.flatten() for tensor in outputs(returned)])[None]
