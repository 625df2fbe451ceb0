"""A variant: what a probe is fitted to, on which text, from which features, how; and the priorities it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from probe_variants.captured import TARGETS
from taylorder.adapt.probe import probe_features
from taylorder.analysis.future_attention import Reach
from taylorder.selection.probes import NormalEquations

Captured = Mapping[str, Tensor]
"""One module on one sequence (:func:`probe_variants.captured.capture`)."""


@dataclass(frozen=True)
class Variant:
    """One way to fit probes; the defaults are the best of earlier measurements of the whole model's loss.

    ``text`` is how many sequences of which kind; ``weighting`` the power of the target (before the log) that a key
    counts with; ``poisson`` fits a log-linear mean by maximum likelihood instead of the log by least squares;
    ``scaled`` has the ridge act on features of equal size.
    """

    target: str = "share 8"
    ridge: float = 1e-3
    features: str = "k, v, norms"
    text: tuple[tuple[str, int], ...] = (("first", 3),)
    weighting: float = 0.0
    scaled: bool = False
    poisson: bool = False

    @property
    def name(self) -> str:
        """What differs from the default."""
        texts = " + ".join(f"{count} {kind}" for kind, count in self.text)
        parts = {
            "target": self.target, "ridge": f"ridge {self.ridge:g}", "features": self.features, "text": texts,
            "weighting": f"weighted by use^{self.weighting:g}", "scaled": "ridge on scaled features",
            "poisson": "Poisson",
        }  # fmt: skip
        different = [text for field, text in parts.items() if getattr(self, field) != getattr(BASE, field)]
        return ", ".join(different) or "base"


BASE = Variant()


def fit(variant: Variant, of_text: Mapping[str, Sequence[Captured]]) -> Callable[[Captured], Tensor]:
    """Fit one module's probes; return what makes priorities ``[G, T]`` of a sequence."""
    chosen = [captured for kind, count in variant.text for captured in of_text[kind][:count]]
    features = _FEATURES[variant.features]
    directions = _directions(chosen)
    inputs, uses = [], []
    for captured in chosen:
        reach = Reach.of(captured["k"].shape[1])
        inputs.append(features(captured, directions)[:, reach.keys])
        uses.append(captured["targets"][TARGETS.index(variant.target)])
    x, use = torch.cat(inputs, 1).double(), torch.cat(uses, 1).double().clamp(min=1e-8)
    size = x.square().mean(1, keepdim=True).sqrt().clamp(min=1e-9) if variant.scaled else torch.ones(1, 1, 1)
    root = (use / use.mean(1, keepdim=True)) ** (variant.weighting / 2)
    weights = NormalEquations.of(x / size * root[..., None], use.log() * root).solve(variant.ridge).double()
    if variant.poisson:
        weights = _poisson(x / size, use, weights, variant.ridge)
    weights = weights / size[:, 0]
    return lambda captured: (features(captured, directions).double() @ weights[..., None])[..., 0].float()


def _poisson(x: Tensor, use: Tensor, weights: Tensor, ridge: float) -> Tensor:
    """Newton's method for ``max sum use * log mean - mean``, ``log mean = x w``, from the least squares of the log."""
    for _ in range(8):
        log_mean = (x @ weights[..., None])[..., 0].clamp(min=-20, max=2)
        mean = log_mean.exp()
        root = (mean / mean.mean(1, keepdim=True)).sqrt()
        response = log_mean + (use / mean - 1).clamp(max=20)
        weights = NormalEquations.of(x * root[..., None], response * root).solve(ridge).double()
    return weights


def _directions(chosen: Sequence[Captured]) -> Tensor:
    """The eight directions of largest variance of ``[k, v]``, in units of their deviations: ``[G, d + d_v, 8]``."""
    both = torch.cat([torch.cat([captured["k"], captured["v"]], -1) for captured in chosen], 1).double()
    values, vectors = torch.linalg.eigh(torch.stack([of_head.T.cov() for of_head in both]))
    return (vectors[..., -8:] / values[:, None, -8:].clamp(min=1e-12).sqrt()).float()


def _linear(captured: Captured, _: Tensor) -> Tensor:
    return probe_features(captured["k"], captured["v"])


def _without(what: str) -> Callable[[Captured, Tensor], Tensor]:
    """All features but those of the key or of the value."""

    def features(captured: Captured, _: Tensor) -> Tensor:
        d, all_of_them = captured["k"].shape[-1], probe_features(captured["k"], captured["v"])
        norm = 0 if what == "k" else 1
        dropped = set(range(d)) if what == "k" else set(range(d, all_of_them.shape[-1] - 5))
        dropped |= {all_of_them.shape[-1] - 5 + norm, all_of_them.shape[-1] - 3 + norm}
        return all_of_them[..., [place for place in range(all_of_them.shape[-1]) if place not in dropped]]

    return features


def _squares(captured: Captured, directions: Tensor) -> Tensor:
    k, v = captured["k"], captured["v"]
    return torch.cat([_linear(captured, directions), k.square(), v.square()], -1)


def _pairs(captured: Captured, directions: Tensor) -> Tensor:
    """Beside all, the log of the norm of every pair of coordinates that RoPE rotates: it does not know positions."""
    pairs = torch.stack(captured["k"].chunk(2, -1), -1).norm(dim=-1).clamp(min=1e-3).log()
    return torch.cat([_linear(captured, directions), pairs], -1)


def _quadratic(captured: Captured, directions: Tensor) -> Tensor:
    principal = torch.cat([captured["k"], captured["v"]], -1) @ directions
    row, column = torch.triu_indices(8, 8)
    return torch.cat([_linear(captured, directions), principal[..., row] * principal[..., column]], -1)


def _hidden(captured: Captured, _: Tensor) -> Tensor:
    norms = probe_features(captured["k"], captured["v"])[..., -5:]
    return torch.cat([captured["hidden"].float().expand(len(norms), -1, -1), norms], -1)


_FEATURES: Mapping[str, Callable[[Captured, Tensor], Tensor]] = {
    "k, v, norms": _linear,
    "k": _without("v"),
    "v": _without("k"),
    "+ squares": _squares,
    "+ pair norms": _pairs,
    "+ quadratic": _quadratic,
    "hidden": _hidden,
}

_BOTH = (("topics", 3), ("code", 3))
_MIXES = (
    (("topics", 3),), (("topics", 6),), (("topics", 8),), (("code", 3),), (("first", 3), ("topics", 8)),
    (("topics", 1), ("code", 1), ("lists", 1)), (("topics", 2), ("code", 1)), _BOTH,
    (("topics", 3), ("code", 2), ("lists", 1)), (("topics", 4), ("code", 3), ("lists", 1)),
    (("topics", 4), ("code", 2), ("lists", 2)), (("topics", 8), ("code", 4)),
    (("topics", 8), ("code", 4), ("lists", 2)),
)  # fmt: skip

VARIANTS: tuple[Variant, ...] = (
    BASE,
    *(Variant(target=target) for target in TARGETS if target != BASE.target),
    *(Variant(ridge=ridge) for ridge in (1e-5, 1e-4, 1e-2, 1e-1)),
    *(Variant(scaled=True, ridge=ridge) for ridge in (1e-4, 1e-3, 1e-2)),
    *(Variant(features=features) for features in ("k", "v", "+ squares", "+ pair norms", "+ quadratic")),
    Variant(features="hidden", ridge=1e-2),
    *(Variant(weighting=power) for power in (0.5, 1.0)),
    *(Variant(weighting=power, target="attention") for power in (0.5, 1.0)),
    *(Variant(poisson=True, target=target) for target in ("share 8", "attention")),
    *(Variant(text=mix) for mix in _MIXES),
    Variant(text=_BOTH, target="share 16"),
    Variant(text=_BOTH, ridge=1e-4),
    Variant(text=_BOTH, target="share 16", ridge=1e-4),
    *(Variant(text=_BOTH, features=features) for features in ("k", "+ squares", "+ pair norms")),
    Variant(text=_BOTH, target="share 16", ridge=1e-4, features="+ pair norms"),
)
"""One thing at a time differs from the base, then from six sequences of prose and code, the best of that size."""
