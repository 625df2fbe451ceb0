"""The prediction this tool began with: layers whose alpha is near 2 need fewer Taylor terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import stats

from taylorder.analysis.spectral import PER_HEAD_NOTE
from taylorder.claims.association import LEAST, Association, Floats, Pairs, adjusted, associate, detectable, kendall
from taylorder.claims.claim import Cell, Claim, Effect, Plot, Series, Table, Verdict
from taylorder.claims.evidence import over_layers
from taylorder.claims.layers import Layers, complete
from taylorder.claims.measurements.invariance import Invariance
from taylorder.claims.predictors import PREDICTORS, left_out_errors
from taylorder.evaluation.intervals import Interval
from taylorder.kernels.spec import EXPANSIONS, Expansion

ORDER = 5
"""Order of the primary outcome: odd, so that no denominator can vanish, and the largest that most runs measure."""

NEGLIGIBLE = 0.3
"""A correlation below this explains less than a tenth of the variance of ranks: no rule to choose by."""

TOLERANCES = (0.5, 0.2, 0.07)
_PRIMARY = "|alpha - 2|, mean"
_TESTED = tuple(name for name in PREDICTORS if name.startswith(("|alpha - 2|", "alpha")))
_HELD = ("depth", "spectral norm, q times k", "score std")
_RANK_TESTS = (stats.spearmanr, stats.kendalltau)
_SIMULTANEOUS = 1 - 0.05 / len(EXPANSIONS)

_RULE = (
    f"Of the Spearman correlations of |alpha - 2| (mean of q and k) with the log error at order {ORDER}, one for each "
    f"expansion point, with simultaneous 95 % intervals: contradicted if all three lie below {NEGLIGIBLE}, too small "
    "to choose by whatever their sign; otherwise supported if all three lie above 0; undecided if neither."
)


def alpha_claim(models: Sequence[Layers], invariances: Mapping[str, Invariance] | None = None) -> Claim:
    """Test the prediction on the layers of some models, pooled; ``invariances`` are told by the name of the model."""
    order = min([ORDER, *(layers.analysis.max_order for layers in models)])
    order -= order % 2 == 0
    primary = {each: _associate(models, _PRIMARY, order, each, level=_SIMULTANEOUS) for each in EXPANSIONS}
    found = [each for each in primary.values() if each is not None]
    verdict = _verdict(found)
    return Claim(
        key="alpha",
        statement="Layers whose alpha is near 2 need fewer Taylor terms.",
        source="a comment on the paper, news.ycombinator.com/item?id=46888513; alpha: arXiv 1810.01075",
        verdict=verdict,
        reason=_reason(verdict, primary, models, order),
        rule=_RULE,
        effects=tuple(
            Effect.of(
                f"Spearman of |alpha - 2| and log error at order {order}, expansion {expansion}",
                each.spearman, "above 0",
            )
            for expansion, each in primary.items() if each is not None
        ),
        tables=(
            _tested(models, order),
            _rivals(models, order),
            _needed(models),
            *(_scaled(name, each) for name, each in (invariances or {}).items()),
            *_by_head(models, order),
        ),
        plots=(_scatter(models, order),),
        notes=tuple(_notes(models, order)),
    )  # fmt: skip


def _verdict(found: Sequence[Association]) -> Verdict:
    if not found:
        return "not applicable"
    if all(each.spearman.high < NEGLIGIBLE for each in found):
        return "contradicted"
    return "supported" if all(each.spearman.low > 0 for each in found) else "undecided"


def _associate(
    models: Sequence[Layers], predictor: str, order: int, expansion: Expansion, *, level: float = 0.95,
    held: Sequence[str] = (),
) -> Association | None:  # fmt: skip
    return associate(_pairs(models, predictor, order, expansion, held), level=level)


def _pairs(
    models: Sequence[Layers], predictor: str, order: int, expansion: Expansion, held: Sequence[str] = ()
) -> list[Pairs]:
    groups = []
    for layers in models:
        controls = [PREDICTORS[name](layers, order, expansion) for name in held]
        x, y, *rest = complete(
            PREDICTORS[predictor](layers, order, expansion), layers.log_error(order, expansion), *controls
        )
        groups.append(Pairs(x, y, np.stack(rest, -1) if rest else None))
    return groups


def _reason(
    verdict: Verdict, primary: dict[Expansion, Association | None], models: Sequence[Layers], order: int
) -> str:
    found = [each for each in primary.values() if each is not None]
    if not found:
        return "No model has enough layers with a usable alpha for q and k."
    estimates = [each.spearman.estimate for each in found]
    told = [f"Over {found[0].layers} layers the correlation is {min(estimates):+.2f} to {max(estimates):+.2f}"]
    least = detectable(_pairs(models, _PRIMARY, order, "mean"), level=_SIMULTANEOUS)
    if least is not None:
        told[0] += f" (by expansion point); so many layers would show one of {least:.2f} four times in five"
    held = _associate(models, _PRIMARY, order, "mean", held=_HELD)
    if verdict == "supported" and held is not None:
        within = held.spearman
        told.append(
            f"With depth, spectral norm and score std held fixed it is {within.estimate:+.2f} "
            f"[{within.low:+.2f}, {within.high:+.2f}]"
        )
    errors = left_out_errors(models, order, "mean")
    if _PRIMARY in errors:
        best = next(iter(errors))
        told.append(
            f"On layers left out |alpha - 2| is off by {errors[_PRIMARY]:.2f} decades, knowing nothing by "
            f"{errors['nothing']:.2f}, {best} by {errors[best]:.2f}"
        )
    return ". ".join(told) + "."


def _tested(models: Sequence[Layers], order: int) -> Table:
    """Every predictor by alpha, projection and expansion point, with a correction over all of them."""
    rows: list[list[Cell]] = []
    p_values = []
    for expansion in EXPANSIONS:
        for name in _TESTED:
            groups = _pairs(models, name, order, expansion)
            plain = associate(groups)
            if plain is None:
                continue
            held = _associate(models, name, order, expansion, held=_HELD)
            p_values.append(plain.p_value)
            partial = None if held is None else held.spearman
            rows.append(
                [name, expansion, plain.layers, *_cells(plain.spearman), *_cells(kendall(groups)), *_cells(partial)]
            )
    return Table(
        f"log error at order {order}, mean over the heads of a layer, against alpha",
        (
            "predictor", "expansion", "layers", "Spearman", "low", "high", "Kendall", "low", "high",
            "partial", "low", "high", "adjusted p",
        ),
        tuple((*row, p) for row, p in zip(rows, adjusted(p_values), strict=True)),
        note=(
            "Intervals: 95 % bootstrap over layers, each by itself. Partial: Spearman with depth, spectral norm and "
            f"score std held fixed, in models of {4 + len(_HELD)} layers or more. p: permutation within models, "
            "adjusted over all rows (Benjamini and Yekutieli)."
        ),
    )  # fmt: skip


def _cells(interval: Interval | None) -> tuple[Cell, Cell, Cell]:
    return (None, None, None) if interval is None else (interval.estimate, interval.low, interval.high)


def _rivals(models: Sequence[Layers], order: int) -> Table:
    errors = left_out_errors(models, order, "mean")
    return Table(
        f"how well a line through the other layers tells the log error at order {order}, expansion mean",
        ("predictor", "error on a layer left out"),
        tuple(errors.items()),
        note=(
            "Root mean square in decimal logarithms; lines in the ranks of figures. Nothing predicts the mean of the "
            "other layers: a figure that does not beat it tells nothing."
        ),
    )


def _needed(models: Sequence[Layers]) -> Table:
    """The secondary outcome: smallest order at some tolerances, censored at the largest measured."""
    rows: list[tuple[Cell, ...]] = []
    for expansion in EXPANSIONS:
        for tolerance in TOLERANCES:
            groups, missed, heads = [], [], []
            for layers in models:
                needed, share = layers.needed_order(tolerance, expansion)
                groups.append(Pairs(*complete(PREDICTORS[_PRIMARY](layers, 1, expansion), needed)))
                missed.append(share)
                heads.append(len(layers.rows(1, expansion)))
            found = associate(groups)
            figures = _cells(None if found is None else found.spearman)
            rows.append((expansion, tolerance, float(np.average(missed, weights=heads)), *figures))
    return Table(
        "smallest order within a tolerance, mean over the heads of a layer, against |alpha - 2| (mean of q and k)",
        ("expansion", "tolerance", "heads that never reach it", "Spearman", "low", "high"),
        tuple(rows),
        note="Heads that do not reach a tolerance count as one order more than the largest measured.",
    )


def _scaled(name: str, invariance: Invariance) -> Table:
    return Table(
        f"{name}, {invariance.module}: W_Q multiplied by a factor",
        ("factor", "alpha of q", "score std", f"error at order {invariance.order}", "median order needed"),
        tuple((row.factor, row.alpha, row.score_std, row.error, row.needed_order) for row in invariance.rows),
        note=invariance.note,
    )


def _by_head(models: Sequence[Layers], order: int) -> list[Table]:
    """Heads against the other heads of their layer, where alphas were fitted to slices: the unit stays the layer."""
    found = []
    for layers in models:
        alphas = {
            (row.module, row.head): row.alpha
            for row in layers.analysis.spectral
            if row.projection == "q" and row.head is not None and row.alpha is not None
        }
        for module, rows in layers.heads(order, "mean").items():
            own = [(abs(alphas[module, row.head] - 2), row.relative_l2) for row in rows if (module, row.head) in alphas]
            if len(own) >= LEAST:
                found.append([float(test(*zip(*own, strict=True)).statistic) for test in _RANK_TESTS])
    spearman, tau = (over_layers(each) for each in zip(*found, strict=True)) if found else (None, None)
    if spearman is None:
        return []
    row = (len(found), *_cells(spearman), *_cells(tau))
    columns = ("layers", "Spearman", "low", "high", "Kendall", "low", "high")
    return [
        Table("heads of a layer among themselves: |alpha - 2| of the head's slice of W_Q (noisy)", columns, (row,),
              PER_HEAD_NOTE)
    ]  # fmt: skip


def _scatter(models: Sequence[Layers], order: int) -> Plot:
    def points(layers: Layers) -> Series:
        figure: Callable[[Layers, int, Expansion], Floats] = PREDICTORS[_PRIMARY]
        x, y = complete(figure(layers, order, "mean"), layers.over_heads(order, "mean", lambda row: row.relative_l2))
        return Series(layers.name, tuple(x.tolist()), tuple(y.tolist()))

    return Plot(
        f"error at order {order} (expansion mean) and |alpha - 2| of a layer",
        "|alpha - 2|, mean of q and k", "relative L2 error, mean over heads", tuple(map(points, models)), "points",
        log_y=True,
    )  # fmt: skip


def _notes(models: Sequence[Layers], order: int) -> list[str]:
    notes = [
        f"{layers.name}: {layers.analysis.model.weights_note}"
        for layers in models
        if layers.analysis.model.weights_note
    ]
    if order != ORDER:
        notes.append(f"A run measured orders up to {order} only, so that takes the place of order {ORDER}.")
    return notes
