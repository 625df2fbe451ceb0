"""The prediction this tool began with: layers whose alpha is near 2 need fewer Taylor terms."""

from __future__ import annotations

from collections.abc import Sequence

from taylorder.claims.association import Association, Pairs, associate, detectable
from taylorder.claims.claim import Claim, Effect, FigureTable, Plot, Series, Verdict
from taylorder.claims.evidence import Evidence
from taylorder.claims.layers import Layers, complete
from taylorder.claims.left_out import ALPHA, NOTHING, SCORE_STD, left_out_errors
from taylorder.kernels.spec import EXPANSIONS, Expansion

ORDER = 5
"""Odd, so that no denominator can vanish, and the largest that most runs measure."""

NEGLIGIBLE = 0.3
"""A correlation below this explains less than a tenth of the variance of ranks: no rule to choose by."""

_SIMULTANEOUS = 1 - 0.05 / len(EXPANSIONS)

_RULE = (
    f"Of the Spearman correlations of |alpha - 2| (mean of q and k) with the log error at order {ORDER}, one for each "
    f"expansion point, with simultaneous 95 % intervals: contradicted if all three lie below {NEGLIGIBLE}, too small "
    "to choose by whatever their sign; otherwise supported if all three lie above 0; undecided if neither."
)


def alpha_claim(evidence: Evidence) -> Claim:
    """Test the prediction on the layers of all models, pooled."""
    models = [model.layers for model in evidence.models]
    order = min([ORDER, *(layers.analysis.max_order for layers in models)])
    order -= order % 2 == 0
    tested = {expansion: associate(_pairs(models, order, expansion), level=_SIMULTANEOUS) for expansion in EXPANSIONS}
    correlations = {expansion: pooled for expansion, pooled in tested.items() if pooled is not None}
    errors = left_out_errors(models, order, "mean") if correlations else {}
    return Claim(
        key="alpha",
        statement="Layers whose alpha is near 2 need fewer Taylor terms.",
        source="a comment on the paper, news.ycombinator.com/item?id=46888513; alpha: arXiv 1810.01075",
        verdict=_verdict(list(correlations.values())),
        reason=_reason(list(correlations.values()), detectable(_pairs(models, order, "mean"), level=_SIMULTANEOUS))
        + _left_out_sentence(errors),
        rule=_RULE,
        effects=tuple(
            Effect.of(
                f"Spearman of |alpha - 2| and log error at order {order}, expansion {expansion}",
                correlation.spearman, "above 0",
            )
            for expansion, correlation in correlations.items()
        ),
        tables=(_left_out_table(errors, order),) if errors else (),
        plots=(_scatter(models, order),),
        notes=tuple(_notes(models, order)),
    )  # fmt: skip


def _pairs(models: Sequence[Layers], order: int, expansion: Expansion) -> list[Pairs]:
    """Of every model, the distance of alpha from 2 and the log error of the layers that have both."""
    return [
        Pairs(*complete(layers.distance_of_alpha_from_2(), layers.log_error(order, expansion))) for layers in models
    ]


def _verdict(correlations: Sequence[Association]) -> Verdict:
    if not correlations:
        return "not applicable"
    if all(correlation.spearman.high < NEGLIGIBLE for correlation in correlations):
        return "contradicted"
    return "supported" if all(correlation.spearman.low > 0 for correlation in correlations) else "undecided"


def _reason(correlations: Sequence[Association], least: float | None) -> str:
    """The correlations, and the ``least`` that so many layers would show."""
    if not correlations:
        return "No model has enough layers with a usable alpha for q and k."
    estimates = [correlation.spearman.estimate for correlation in correlations]
    sentence = (
        f"Over {correlations[0].layers} layers the correlation is {min(estimates):+.2f} to {max(estimates):+.2f} "
        "(by expansion point)"
    )
    return sentence + (f"; so many layers would show one of {least:.2f} four times in five." if least else ".")


def _left_out_sentence(errors: dict[str, float]) -> str:
    if not errors:
        return ""
    return (
        f" On layers left out |alpha - 2| is off by {errors[ALPHA]:.2f} decades, knowing nothing by "
        f"{errors[NOTHING]:.2f}, {SCORE_STD} by {errors[SCORE_STD]:.2f}."
    )


def _left_out_table(errors: dict[str, float], order: int) -> FigureTable:
    return FigureTable(
        f"how well a line through the other layers tells the log error at order {order}, expansion mean",
        ("predictor", "error on a layer left out"),
        tuple(errors.items()),
        note=(
            "Root mean square in decimal logarithms; lines in the ranks of figures. Nothing predicts the mean of the "
            "other layers: a figure that does not beat it tells nothing."
        ),
    )


def _scatter(models: Sequence[Layers], order: int) -> Plot:
    def points(layers: Layers) -> Series:
        x, y = complete(
            layers.distance_of_alpha_from_2(), layers.over_heads(order, "mean", lambda row: row.relative_l2)
        )
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
