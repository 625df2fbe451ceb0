"""Made-up analyses for tests of the reports: plausible figures without a model."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import random
from collections.abc import Callable

import torch

from taylorder.adapt.attention_shares import HeadShares
from taylorder.adapt.config import HeadOrder, LayerOrders
from taylorder.adapt.near_example import NearExample, NearTokens
from taylorder.adapt.probe import probe_width
from taylorder.analysis.results import Analysis, Calibration, CandidateRow, NearFieldPreview, SpectralRow
from taylorder.evaluation.evaluate import Evaluation
from taylorder.kernels.spec import EXPANSIONS, Dropped, Exact, HeadSpec, Near, Taylor
from taylorder.models.description import AttentionModule, ModelDescription
from taylorder.reports.analysis import sections
from taylorder.reports.render import plain_text
from taylorder.selection.by_tolerance import Selection, select
from taylorder.selection.candidates import Candidate
from taylorder.selection.lever_costs import LeverCost
from taylorder.selection.lever_summary import BesideWindow, LeverSummary, MeasuredRound

NOTE = "weights dequantised from Q4_1 (GGUF): alphas differ from the original checkpoint's"

Error = Callable[[int, int, int, str], float]
"""Layer, head, order, expansion to the relative L2 error."""


def hard_error(layer: int, head: int, order: int, expansion: str) -> float:
    """Roughly the built-in model: nothing near a tolerance of 7 %, even orders around zero blown up."""
    draw = random.Random(layer * 1000 + head).betavariate(2, 2)
    base = 0.45 + 0.5 * draw
    if expansion == "mean":
        return base ** (1 + 0.35 * (order - 1))
    blown = 1.05 if expansion == "zero" else 1.0
    return blown + (0.04 * order if order % 2 == 0 else 0.01 * order)


def analysis(
    layers: int = 30,
    heads: int = 9,
    kv_heads: int = 3,
    *,
    error: Error = hard_error,
    head_dim: int = 64,
    causal: bool = True,
    sliding: Callable[[int], bool] = lambda layer: False,
    max_order: int = 8,
    window: int = 0,
    sinks: int = 0,
    preview: bool = True,
    per_head_alpha: bool = False,
    name: str = "smollm2-135m",
    source: str = "pydoc_data.topics",
    weights_note: str | None = NOTE,
    max_context: int = 8192,
    guarded: Callable[[int, int, int, str], float] = lambda layer, head, order, expansion: 0.4 * (order % 2 == 0),
) -> Analysis:
    """Everything is a function of the arguments; figures are not round, so that round trips mean something."""
    modules = tuple(
        AttentionModule(
            name=f"model.layers.{layer}.self_attn",
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            value_dim=head_dim,
            scaling=head_dim**-0.5,
            causal=causal,
            sliding_window=512 if sliding(layer) else None,
        )
        for layer in range(layers)
    )
    description = ModelDescription(
        name=name,
        architecture="LlamaForCausalLM" if causal else "BertModel",
        modules=modules,
        max_context=max_context,
        fingerprint="sha256:0123456789abcdef",
        weights_note=weights_note,
    )
    candidates = tuple(
        candidate(modules[layer], layer, head, order, expansion, error, guarded, window, sinks)
        for layer in range(layers)
        for head in range(heads)
        for expansion in EXPANSIONS
        for order in range(1, max_order + 1)
    )
    orders = tuple(range(1, min(4, max_order) + 1))
    near = NearFieldPreview(
        window=64,
        sinks=4,
        orders=orders,
        relative_l2={
            module.name: tuple(
                tuple(error(layer, head, order, "mean") / 3.1 for order in orders) for head in range(heads)
            )
            for layer, module in enumerate(modules)
        },
    )
    length = min(1024, max_context)
    draw = random.Random(7)
    return Analysis(
        model=description,
        calibration=Calibration(
            source=source,
            text_sha256=hashlib.sha256(source.encode()).hexdigest(),
            sequences=8,
            sequence_length=length,
            tokens=8 * length,
            rows_per_sequence=64,
            seed=0,
            query_rows=tuple(tuple(sorted(draw.sample(range(length), 64))) for _ in range(8)),
        ),
        max_order=max_order,
        window=window,
        sinks=sinks,
        candidates=candidates,
        spectral=tuple(spectral(modules, per_head_alpha)),
        preview=near if preview and causal and not window else None,
        key_centres={
            module.name: torch.arange(kv_heads * head_dim, dtype=torch.float32).view(kv_heads, head_dim) / 7
            for module in modules
        },
    )


def candidate(module, layer, head, order, expansion, error, guarded, window, sinks) -> CandidateRow:
    value = error(layer, head, order, expansion)
    share = guarded(layer, head, order, expansion)
    std = 0.74 + 5.5 * random.Random(layer * 1000 + head + 1).betavariate(1.5, 3.5)
    return CandidateRow(
        module=module.name,
        head=head,
        kv_head=head // module.group,
        order=order,
        expansion=expansion,
        window=window,
        sinks=sinks,
        relative_l2=value,
        rmse=value / 3,
        cosine=max(-1.0, 1 - value),
        max_error=value * 7,
        nonpositive_share=share,
        score_mean=-0.1,
        score_std=std,
        score_max=std * 6.7,
        median_row_error=value * 0.9,
        raw_relative_l2=value * (1 if not share else 5 + 100 * share),
        raw_rmse=value / 3,
        raw_cosine=0.1,
        raw_max_error=value * 900,
        gaussian_prediction=0.9,
        fitted_floor=0.8,
        certified_bound=None if layer % 2 else value * 100 / 3,
        log_keys=math.log(1024),
        logit_rank=11,
    )


def spectral(modules, per_head: bool) -> list[SpectralRow]:
    draw = random.Random(3)
    rows = []
    for layer, module in enumerate(modules):
        heads: list[int | None] = [None, *range(module.heads)] if per_head else [None]
        for head in heads:
            for projection in ("q", "k", "v", "o"):
                alpha = 1.8 + 3 * draw.random()
                failed = (layer, projection, head) == (2, "k", None)
                absent = (layer, projection, head) == (1, "o", None)
                good = not failed and not absent
                rows.append(
                    SpectralRow(
                        module=module.name,
                        projection=projection,
                        alpha=alpha if good else None,
                        D=0.02 + 0.1 * draw.random() if good else None,
                        sigma=0.1 if good else None,
                        tail=120 if good else None,
                        status="success" if good else "failed" if failed else "unavailable",
                        alpha_low=alpha - 0.1 if good else None,
                        alpha_high=alpha + (0.9 if layer % 5 == 0 else 0.1) if good else None,
                        rows=576,
                        columns=576,
                        spectral_norm=11.5 if good else None,
                        stable_rank=22.25 if good else None,
                        hill_alpha=2.125 if good else None,
                        head=head,
                    )
                )
    return rows


def selection(
    measured: Analysis, policy: str = "error", tolerance: float = 0.07, context: int | None = None
) -> Selection:
    return select(measured, policy=policy, tolerance=tolerance, context=context or measured.model.max_context)


def replaced(value, **changes):
    return dataclasses.replace(value, **changes)


def report(analysis: Analysis, selection: Selection, *, width: int = 80, evaluation: Evaluation | None = None) -> str:
    """What a pipe gets."""
    return plain_text(sections(analysis, selection, None, evaluation), width)


def lever_selection(measured):
    """Every KV head a window; those of the first layer with a polynomial for the rest."""
    chosen = selection(measured)
    window = HeadOrder(spec=HeadSpec(Dropped(), Near(60, 4)), nominal_bytes=17408)
    beside = HeadOrder(spec=HeadSpec(Taylor(2, "mean", (64, 64)), Near(28, 4)), nominal_bytes=99999)
    layers = tuple(
        LayerOrders(module=layer.module, heads=(beside if place == 0 else window,) * len(layer.heads))
        for place, layer in enumerate(chosen.config.layers)
    )
    first = measured.model.modules[0].name
    summary = LeverSummary(
        levers=("order", "window"), sequences=2, sequence_length=4096, kv_heads=9, criterion="iterative",
        budget=20000, tolerance=None, context=8192, nominal_bytes=18000, exact_bytes=2 << 20, objective=1.5, bound=1.4,
        gap=0.07, rounds=(MeasuredRound(0.25, None, None), MeasuredRound(0.125, 0.1, 1.0)),
        chosen=(("window 60", 6), ("order 2, window 28", 3)), chosen_better=((first, 0),), chosen_worse=(),
        beside_window=(BesideWindow("order 2, window 28", 2, 99999, 0.21, 0.34, ((first, 0),)),),
    )  # fmt: skip
    return chosen.with_levers(chosen.config.model_copy(update={"layers": layers}), summary)


def shares(measured, chosen):
    """Half of the attention of every head that is not exact goes to its window, a tenth is left out."""
    return tuple(
        HeadShares(layer.module, head, 0.25, 0.5 + 0.01 * head, 0.15, 0.1 - 0.01 * head)
        for layer in chosen.config.layers
        for head, choice in enumerate(layer.heads)
        if choice.spec.runs != "exact"
    )


CANDIDATES = (
    Candidate(HeadSpec(Exact())),
    Candidate(HeadSpec(Dropped(), Near(60, 4))),
    Candidate(HeadSpec(Dropped(), Near(64, 4, 188))),
    Candidate(HeadSpec(Taylor(2, "mean", (64, 64)), Near(28, 4))),
)


def costs(measured, chosen):
    """Every candidate of every KV head; more bytes, less error."""
    made = []
    for module, layer in zip(measured.model.modules, chosen.config.layers, strict=True):
        for kv_head, heads in enumerate(module.groups(layer.heads)):
            for place, candidate in enumerate(CANDIDATES):
                size, error = (2 << 20, 16 << 10, 64 << 10, 99 << 10)[place], (0.0, 0.5, 0.2, 0.3)[place]
                taken = candidate.spec == heads[0].spec
                made.append(LeverCost(module.name, kv_head, candidate, size, error, 0.0, taken))
    return tuple(made)


def keeping_selection(measured, kept=188):
    """Every KV head of the last layers keeps keys, the first one has a polynomial, one of the second layer is exact."""
    chosen = lever_selection(measured)
    spec = HeadSpec(Dropped(), Near(64, 4, kept))
    keeps, exact = HeadOrder(spec=spec), HeadOrder(spec=HeadSpec(Exact()), error=0.0, reason="budget")
    first, *rest = chosen.config.layers
    changed = [layer.model_copy(update={"heads": (exact,) * 3 + (keeps,) * 6}) for layer in rest]
    config = chosen.config.model_copy(update={"layers": (first, *changed)})
    probes = {
        module.name: torch.zeros(module.kv_heads, probe_width(module.head_dim, module.value_dim))
        for module in measured.model.modules
    }
    config = config.with_probes(probes, {"text": "prose", "tokens": 6144, "sha256": "0" * 64})
    held = tuple(
        NearTokens(layer.module, kv_head, 4, 64, tuple(range(7, 7 + 2 * kept, 2)))
        for layer in changed
        for kv_head in (1, 2)
    )
    example = NearExample("the end of a fable", tuple(f" word{place}" for place in range(1024)), held)
    example = replaced(example, shares=shares(measured, chosen.with_levers(config, chosen.levers)))
    return chosen.with_levers(config, replaced(chosen.levers, example=example))
