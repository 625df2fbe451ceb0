"""Fit a probe per KV head: the linear function of key and value that says how much later queries will use the key.

Least squares with a ridge. Its normal equations are sums over keys, so sequences can be seen one at a time, in any
number of processes, and what is kept of one is two small matrices per KV head.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor

from taylorder.adapt.probe import probe_features
from taylorder.analysis.capture import LayerTensors, run_layers
from taylorder.analysis.future_attention import LEAST_TOKENS, Reach, log_use
from taylorder.analysis.text import Text
from taylorder.analysis.tokens import Tokens
from taylorder.models.description import ModelDescription
from taylorder.storage.files import sha256
from taylorder.storage.progress import Progress, silent
from taylorder.storage.records import Records

LENGTH = 2048
"""Tokens of a sequence, whatever the context: who is used is learnt from many keys, not from long sequences."""

FITTED, HELD_OUT = 6, 2
"""Sequences that probes are fitted to, and those that they are judged on."""

STAGE = "probes"

RIDGE = 1e-3
"""Share of the mean diagonal of the features' moment that is added to it."""


@dataclass(frozen=True, slots=True)
class NormalEquations:
    """What one attention module's probes are solved from, as sums over keys; float64.

    ``moment`` ``[G, F, F]`` sums ``x x^T`` of the features, ``right`` ``[G, F]`` ``x`` times the target.
    """

    moment: Tensor
    right: Tensor

    @classmethod
    def of(cls, features: Tensor, target: Tensor) -> NormalEquations:
        """The sums over keys of features ``[G, N, F]`` and targets ``[G, N]``."""
        features = features.double()
        return cls(features.mT @ features, (features.mT @ target.double()[..., None])[..., 0])

    def __add__(self, other: NormalEquations) -> NormalEquations:
        """The equations of both sets of keys."""
        return NormalEquations(self.moment + other.moment, self.right + other.right)

    def solve(self, ridge: float = RIDGE) -> Tensor:
        """The probes: float32 ``[G, F]``."""
        diagonal = self.moment.diagonal(dim1=-2, dim2=-1).mean(-1)
        ridged = self.moment + ridge * diagonal[:, None, None] * torch.eye(self.moment.shape[-1]).to(self.moment)
        probes: Tensor = torch.linalg.solve(ridged, self.right)
        return probes.float()


Equations = Mapping[str, NormalEquations]
"""By module name."""


@dataclass(frozen=True)
class Probes:
    """A probe for every KV head that sees the whole context, and what they were fitted on.

    ``weights`` has by module name float32 ``[G, F]``, what
    :func:`~taylorder.adapt.probe.probe_features` are multiplied by; ``tokens`` of the text ``source`` were read.
    """

    weights: Mapping[str, Tensor]
    source: str
    tokens: int
    sha256: str

    @property
    def about(self) -> dict[str, str | int]:
        """What they were fitted on, as a config says it."""
        return {"text": self.source, "tokens": self.tokens, "sha256": self.sha256}

    def __repr__(self) -> str:
        """One line; ``weights`` has the numbers."""
        return f"<Probes of {len(self.weights)} modules, fitted on {self.tokens:,} tokens of {self.source}>"


def probe_sequences(
    tokens: Tokens, description: ModelDescription, most: int | None = None
) -> tuple[Tensor, Tensor | None]:
    """The sequences that probes are fitted to and those that they are judged on: int64 ``[N, T]`` each.

    Six and two of 2,048 tokens, whatever context the choice is made for, evenly spread over the text. A model with a
    shorter context has shorter ones; of a short text there are fewer, of less than four a single one is held out, and
    from a text of less than two sequences both are cut half as long as it.

    Args:
        tokens: the text.
        description: the model.
        most: tokens that may be used; default as many as there are.

    Returns:
        The second is None where the text has but one sequence of a usable length.

    Raises:
        UsageError: the text is shorter than a usable sequence, or has too few different tokens.

    """
    available = len(tokens.ids) if most is None else min(most, len(tokens.ids))
    length, count, judged = probe_sizes(available, description)
    whole = tokens.first(length, len(tokens.ids))
    spread = whole[[len(whole) * place // count for place in range(count)]]
    held_out = [count * (2 * place + 1) // (2 * judged) for place in range(judged)]
    fitted = [place for place in range(count) if place not in held_out]
    return spread[fitted], spread[held_out] if held_out else None


def probe_sizes(available: int, description: ModelDescription) -> tuple[int, int, int]:
    """The length of a sequence, how many there are, and how many of them probes are judged on."""
    length = max(LEAST_TOKENS, min(LENGTH, description.max_context, available // 2))
    count = max(1, min(FITTED + HELD_OUT, available // length))
    return length, count, min(HELD_OUT, max(1, count // 4)) if count > 1 else 0


def sequence_equations(model: Any, description: ModelDescription, sequence: Tensor) -> dict[str, NormalEquations]:
    """Run one sequence ``[T]`` and return its normal equations, by the name of each module that sees everything.

    Memory is that of one module's tensors and a block of its attention.

    Raises:
        UsageError: the sequence is too short.
        NonFiniteError: a module's queries, keys or values hold NaN or infinities.

    """
    reach = Reach.of(len(sequence))
    modules = {module.name for module in description.open_modules}
    equations = {}

    def consume(name: str, layer: LayerTensors) -> None:
        if name in modules:
            features = probe_features(layer.k[0, :, reach.keys], layer.v[0, :, reach.keys])
            use = log_use(layer.q[0], layer.k[0], layer.scaling, reach, layer.terms)
            equations[name] = NormalEquations.of(features, use)

    run_layers(model, sequence[None], consume)
    return equations


def fit_probes(
    model: Any,
    description: ModelDescription,
    sequences: Tensor,
    *,
    text: Text,
    records: Records,
    progress: Progress = silent,
) -> Probes:
    """Fit the probe of every KV head that sees the whole context; sequences that ``records`` has are not run again.

    Args:
        model: a causal transformers model.
        description: what ``describe`` says of it.
        sequences: ``[N, T]`` (:func:`probe_sequences`).
        text: where they are from.
        records: keeps what is summed over each sequence.
        progress: called with the stage, the sequences done, and how many there are.

    Raises:
        UsageError: the sequences are too short.
        NonFiniteError: the model breaks down.

    """
    names = [f"probes-{digest(sequence)}" for sequence in sequences]
    records.finish(
        names,
        lambda place: sequence_equations(model, description, sequences[place]),
        partial(_write, records),
        partial(progress, STAGE),
    )
    weights = solved(_read(records, name) for name in names)
    return Probes(weights, text.source, sequences.numel(), text.sha256)


def solved(equations: Iterable[Equations]) -> dict[str, Tensor]:
    """The probes of every module, float32 ``[G, F]``, from the equations of all sequences."""
    summed = reduce(_together, equations)
    return {module: of_module.solve() for module, of_module in summed.items()}


def _together(one: Equations, other: Equations) -> Equations:
    """The equations of both sets of keys, by module."""
    return {module: equations + other[module] for module, equations in one.items()}


def digest(*tensors: Tensor) -> str:
    """Twelve digits that tell tensors from others, for the names of records: a run may use more or less of a text."""
    return sha256(b"".join(tensor.cpu().contiguous().numpy().tobytes() for tensor in tensors))[:12]


def _write(records: Records, name: str, equations: Equations) -> None:
    tensors = {f"{module}.moment": of.moment for module, of in equations.items()}
    tensors |= {f"{module}.right": of.right for module, of in equations.items()}
    records.put(name, {"modules": list(equations)}, tensors)


def _read(records: Records, name: str) -> Equations:
    tensors = records.tensors(name)
    return {
        module: NormalEquations(tensors[f"{module}.moment"], tensors[f"{module}.right"])
        for module in records.get(name)["modules"]
    }
