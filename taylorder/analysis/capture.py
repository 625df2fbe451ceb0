"""Run a model once over all calibration sequences and hand over one attention module's q, k, v at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from taylorder.analysis.finite import refuse_broken_tensors
from taylorder.kernels.score_terms import PLAIN, ScoreTerms
from taylorder.models.attention import AttentionCall, recording
from taylorder.models.inputs import Batch
from taylorder.models.offloading import without_gradients
from taylorder.models.running import run_base, run_batch

_WAY_OUT = "nothing can be measured there: load the model in float32, or check its weights"


@dataclass(frozen=True, slots=True)
class LayerTensors:
    """One attention module's tensors over all calibration sequences, as the model computed them.

    ``q`` ``[B, H, T, d]``, ``k`` ``[B, G, T, d]``, ``v`` ``[B, G, T, d_v]``, any float dtype; ``mask`` bool
    ``[B, 1, T, T]`` (True = may attend), or None for plain causal or, with ``causal`` False, unrestricted attention;
    ``terms`` are what the module does to scores beside scaling them, for each head, ``added`` what it adds to
    them, ``[B, 1 or H, T, T]``, and ``picked`` which of the keys under the mask a learned index picks, bool
    ``[B, 1, T, T]``.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    scaling: float
    causal: bool
    terms: ScoreTerms = PLAIN
    added: Tensor | None = None
    picked: Tensor | None = None

    @property
    def valid(self) -> Tensor:
        """Which tokens are not padding: bool ``[B, T]``; a token is padding if it may not attend itself."""
        B, _, T, _ = self.k.shape
        if self.mask is None:
            return torch.ones(B, T, dtype=torch.bool, device=self.k.device)
        return self.mask[:, 0].diagonal(dim1=-2, dim2=-1).expand(B, T)


def pooled(layers: list[LayerTensors]) -> LayerTensors:
    """Several calls of one module as one, over as many times the sequences: call after call."""
    first = layers[0]
    if len(layers) == 1:
        return first
    together: dict[str, Any] = {}
    for name in ("q", "k", "v", "mask", "added", "picked"):
        parts = [tensor for one in layers if (tensor := getattr(one, name)) is not None]
        together[name] = torch.cat(parts) if parts else None
    return replace(first, **together)


def run_layers(
    model: Any,
    input_ids: Tensor,
    consume: Callable[[str, LayerTensors], None],
    attention_mask: Tensor | None = None,
    calls: Mapping[str, int] | None = None,
) -> None:
    """:func:`record_layers` of token ids ``[B, T]``; ``attention_mask`` is 0 for padding, None if there is none."""
    record_layers(model, lambda: run_base(model, input_ids, attention_mask), consume, calls)


def run_layers_on(
    model: Any, batch: Batch, consume: Callable[[str, LayerTensors], None], cross: Collection[str]
) -> None:
    """:func:`record_layers` of a batch of a model's own inputs, without the modules ``cross`` of cross attention.

    How often a module attends may depend on how many examples there are: the model runs once more, to count.
    """

    def run() -> Any:
        return run_batch(model, batch)

    seen: Counter[str] = Counter()
    with without_gradients(model), recording(model, lambda call: seen.update([call.name])):
        run()
    record_layers(model, run, consume, {name: 0 if name in cross else times for name, times in seen.items()})


def record_layers(
    model: Any,
    run: Callable[[], Any],
    consume: Callable[[str, LayerTensors], None],
    calls: Mapping[str, int] | None = None,
) -> None:
    """Call ``consume(module name, tensors)`` for every attention module, in the order the model runs them.

    All sequences go through the model together, so that a statistic over the whole text (a key centre) is known before
    the first error is measured, and only one layer's tensors are alive at a time. The head on top of the model is not
    run: its logits would be the largest tensor by far.

    A module that attends several times is handed over once, when it has attended for the last time: a head has one
    order for all its calls, and is measured on all of them.

    Args:
        model: a transformers model.
        run: runs it on all sequences.
        consume: must not keep the tensors.
        calls: how often each module attends, see ``ModelDescription.calls``, 0 for those that are left out; None for
            once each.

    Raises:
        NonFiniteError: a module's queries, keys or values hold NaN or infinities.
        UnsupportedModelError: as :func:`taylorder.models.attention.recording`.

    """
    seen: dict[str, list[LayerTensors]] = {}

    def sink(call: AttentionCall) -> None:
        times = (calls or {}).get(call.name, 1)
        if not times:
            return
        refuse_broken_tensors(call.name, {"queries": call.q, "keys": call.k, "values": call.v}, _WAY_OUT)
        mask = None if call.mask is None else call.mask.expand(len(call.q), -1, call.q.shape[2], -1).cpu()
        # Measured in float64 on the CPU: most accelerators have little float64, and these are one layer's tensors.
        q, k, v = call.q.cpu(), call.k.cpu(), call.v.cpu()
        terms = call.terms.map(lambda tensor: tensor.detach().cpu())
        so_far = seen.setdefault(call.name, [])
        added = None if call.added is None else call.added.expand(len(q), -1, -1, -1).cpu()
        picked = None if call.picked is None else call.picked.cpu()
        so_far.append(LayerTensors(q, k, v, mask, call.scaling, call.is_causal, terms, added, picked))
        if len(so_far) == times:
            consume(call.name, pooled(seen.pop(call.name)))

    with without_gradients(model), recording(model, sink):
        run()
