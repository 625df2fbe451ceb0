"""Choose an order per head from what was measured.

Policy ``error`` takes the smallest affordable order whose measured error meets the tolerance. Policy ``alpha`` takes
orders from the layer's ``|alpha - 2|`` alone, as the public hypothesis would have it, to be compared with the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from taylorder.adapt import cost
from taylorder.adapt.config import HeadOrder, LayerOrders, ModelIdentity, OrderConfig
from taylorder.analysis.alpha_ranks import layer_alpha, rank_by_alpha, spread
from taylorder.analysis.results import LEAST_FAR_SHARE, Analysis, CandidateRow
from taylorder.analysis.statistics import order_for
from taylorder.models.description import AttentionModule
from taylorder.selection.reasons import Reason
from taylorder.storage.frames import as_html, frame
from taylorder.storage.provenance import software_versions

if TYPE_CHECKING:
    from pandas import DataFrame

    from taylorder.selection.lever_summary import LeverSummary

Policy = Literal["error", "alpha", "levers"]
"""By what a config was chosen; ``levers`` is :mod:`taylorder.selection.run_levers`."""
_FAMILIES = (("zero",), ("centre", "mean"))


@dataclass(frozen=True, slots=True)
class HeadVerdict:
    """What was decided for one head, how far it was from something else, and what it would need.

    ``best`` is the candidate of least error among those that may be chosen (affordable, and no guarded row at an even
    order), None if there is none; ``needed_order`` the smallest measured order that meets the tolerance whatever it
    costs; ``predicted_order`` the smallest one by the Gaussian prediction, also beyond what was measured.
    """

    module: str
    head: int
    kv_head: int
    choice: HeadOrder
    best: CandidateRow | None
    needed_order: int | None
    predicted_order: int | None


@dataclass(frozen=True, slots=True)
class Selection:
    """A config and the reasons for it."""

    config: OrderConfig
    policy: Policy
    tolerance: float
    context: int
    largest_order: int
    """Largest order that pays off at ``context``; 0 if none does."""
    heads: tuple[HeadVerdict, ...]
    levers: LeverSummary | None = None

    def with_levers(self, config: OrderConfig, summary: LeverSummary) -> Selection:
        """The selection with another config, which the levers led to."""
        choices = {(layer.module, head): choice for layer in config.layers for head, choice in enumerate(layer.heads)}
        heads = tuple(replace(head, choice=choices[head.module, head.head]) for head in self.heads)
        return replace(self, config=config, policy="levers", heads=heads, levers=summary)

    def __repr__(self) -> str:
        """One line; ``config`` is what was chosen, ``heads`` says why."""
        heads = ", ".join(f"{count} {kind}" for kind, count in self.config.counts().items())
        return f"<Selection for {self.config.model.name} by {self.policy}: {heads}>"

    def _repr_html_(self) -> str:
        return as_html(self)

    def to_frame(self) -> DataFrame:
        """One row per head: what was decided (:meth:`OrderConfig.to_frame`), and what it would need.

        >>> selection.to_frame().columns.tolist()[:5]
        ['module', 'head', 'kv_head', 'runs', 'order']
        """
        needs = [{name: getattr(head, name) for name in ("needed_order", "predicted_order")} for head in self.heads]
        table = self.config.to_frame()
        table.insert(2, "kv_head", [head.kv_head for head in self.heads])
        return table.join(frame(needs))


def select(analysis: Analysis, *, policy: Policy = "error", tolerance: float, context: int) -> Selection:
    """Choose an order for every head from its measured errors alone.

    A head gets the smallest order whose error meets the tolerance and whose state is no larger than the KV cache at
    ``context`` (docs/math.md#11-cost); otherwise it stays exact, and so does the whole group that shares its KV
    head. ``taylorder.budget`` shares out bytes instead, by measured losses.

    >>> import taylorder
    >>> loaded = taylorder.load()
    >>> analysis = taylorder.analyze(loaded.model, loaded.tokenizer)
    >>> selection = taylorder.select(analysis, tolerance=0.07, context=8192)
    >>> selection
    <Selection for smollm2-135m by error: ...>
    >>> selection.config.save("orders.json")
    >>> len(selection.heads) == len(loaded.model.model.layers) * loaded.model.config.num_attention_heads
    True

    Args:
        analysis: the measurements.
        policy: ``error`` or ``alpha``.
        tolerance: largest relative L2 error of a head's output.
        context: context length, in tokens, at which a state must not be larger than the KV cache (for encoders: the
            sequence length at which Taylor attention must not need more FLOPs).

    Returns:
        The config, and the reason for every head's decision; nominal bytes are per KV head at ``context``.

    """
    first = analysis.model.modules[0]
    largest = cost.largest_order(
        first.head_dim,
        first.value_dim,
        context,
        causal=analysis.model.causal,
        group=first.group,
        near=analysis.window + analysis.sinks,
    )
    rows: dict[tuple[str, int], list[CandidateRow]] = {}
    for row in analysis.candidates:
        rows.setdefault((row.module, row.head), []).append(row)
    alpha_orders = _alpha_orders(analysis) if policy == "alpha" else {}
    layers, verdicts = [], []
    for module in analysis.model.modules:
        measured = [rows[module.name, head] for head in range(module.heads)]
        if module.sliding_window is not None:
            picks: list[CandidateRow | Reason] = ["sliding"] * module.heads
        elif analysis.calibration.far_share < LEAST_FAR_SHARE:
            picks = ["near"] * module.heads
        elif policy == "alpha":
            picks = _alpha_picks(measured, alpha_orders[module.name])
        else:
            picks = _error_picks(module, measured, tolerance, largest)
        heads = _head_orders(module, picks, context, causal=analysis.model.causal)
        layers.append(LayerOrders(module=module.name, heads=heads))
        for head, choice in enumerate(heads):
            meeting = [row.order for row in measured[head] if eligible(row) and row.relative_l2 <= tolerance]
            verdicts.append(
                HeadVerdict(
                    module=module.name,
                    head=head,
                    kv_head=head // module.group,
                    choice=choice,
                    best=min(
                        (row for row in measured[head] if eligible(row) and row.order <= largest),
                        key=lambda row: row.relative_l2,
                        default=None,
                    ),
                    needed_order=min(meeting, default=None),
                    predicted_order=order_for(measured[head][0].score_std, tolerance),
                )
            )
    calibration = analysis.calibration
    config = OrderConfig(
        model=ModelIdentity.of(analysis.model),
        calibration={
            "source": calibration.source,
            "text_sha256": calibration.text_sha256,
            "sequences": calibration.sequences,
            "sequence_length": calibration.sequence_length,
            "bos": calibration.bos,
            "rows_per_sequence": calibration.rows_per_sequence,
            "seed": calibration.seed,
            "dtype": analysis.model.dtype,
        },
        criterion={"policy": policy, "tolerance": tolerance, "context": context, "max_order": analysis.max_order},
        software=software_versions(),
        layers=tuple(layers),
    ).with_key_centres(analysis.key_centres)
    return Selection(config, policy, tolerance, context, largest, tuple(verdicts))


def eligible(row: CandidateRow) -> bool:
    """Whether policy ``error`` may choose this: an even order only if no calibration row needed the guard."""
    return row.order % 2 == 1 or row.nonpositive_share == 0


def _error_picks(
    module: AttentionModule, measured: Sequence[list[CandidateRow]], tolerance: float, largest: int
) -> list[CandidateRow | Reason]:
    """Per head, the chosen candidate, or the reason for which it stays exact."""
    picks: list[CandidateRow | Reason] = []
    for kv_head in range(module.kv_heads):
        group = measured[kv_head * module.group : (kv_head + 1) * module.group]
        options: list[list[CandidateRow]] = []
        for family in _FAMILIES:
            chosen = [_smallest(rows, family, tolerance, largest) for rows in group]
            if all(row is not None for row in chosen):
                options.append([row for row in chosen if row is not None])
        if options:
            best: list[CandidateRow] = min(options, key=_state_then_error)
            picks += best
            continue
        for rows in group:
            alone = any(_smallest(rows, family, tolerance, largest) for family in _FAMILIES)
            meets = any(eligible(row) and row.relative_l2 <= tolerance for row in rows)
            picks.append("group" if alone else "cost" if meets else "tolerance")
    return picks


def _smallest(
    rows: Iterable[CandidateRow], family: tuple[str, ...], tolerance: float, largest: int
) -> CandidateRow | None:
    """Return the affordable candidate of smallest order that meets the tolerance; of equals, that of lower error."""
    meeting = [
        row
        for row in rows
        if row.expansion in family and row.order <= largest and eligible(row) and row.relative_l2 <= tolerance
    ]
    return min(meeting, key=lambda row: (row.order, row.relative_l2), default=None)


def _state_then_error(rows: Sequence[CandidateRow]) -> tuple[int, int, float]:
    return max(row.order for row in rows), sum(row.order for row in rows), sum(row.relative_l2 for row in rows)


def _alpha_orders(analysis: Analysis) -> dict[str, int | None]:
    """Spread orders 1 … max over the layers ranked by ``|alpha - 2|``: the nearer to 2, the fewer terms."""
    alphas = {module.name: layer_alpha(analysis.spectral, module.name) for module in analysis.model.modules}
    ranks = rank_by_alpha(alphas)
    return {name: spread(ranks[name], len(ranks), analysis.max_order) if name in ranks else None for name in alphas}


def _alpha_picks(measured: Sequence[list[CandidateRow]], order: int | None) -> list[CandidateRow | Reason]:
    """The plain candidate (expansion ``zero``) of the layer's order, for every head.

    Neither the guard nor cost has a say: the policy is there to show what alpha alone would do.
    """
    if order is None:
        return ["alpha"] * len(measured)
    return [next(row for row in rows if row.order == order and row.expansion == "zero") for rows in measured]


def _head_orders(
    module: AttentionModule, picks: Sequence[CandidateRow | Reason], context: int, *, causal: bool
) -> tuple[HeadOrder, ...]:
    """Turn picks into decisions with the cost of their KV head's cache or state."""
    d, d_v = module.head_dim, module.value_dim
    cached = min(context, module.sliding_window or context)
    heads = []
    for head, pick in enumerate(picks):
        if isinstance(pick, str):
            heads.append(
                HeadOrder(
                    order="exact", error=0.0, reason=pick, nominal_bytes=cost.kv_bytes(d, d_v, cached) if causal else 0
                )
            )
            continue
        start = head // module.group * module.group
        order = max(row.order for row in picks[start : start + module.group] if not isinstance(row, str))
        near = min(context, pick.window + pick.sinks)
        heads.append(
            HeadOrder(
                order=pick.order,
                error=pick.relative_l2,
                expansion=pick.expansion,
                window=pick.window,
                sinks=pick.sinks,
                nominal_bytes=cost.state_bytes(d, d_v, order) + cost.kv_bytes(d, d_v, near) if causal else 0,
                break_even=(
                    cost.break_even_tokens(d, d_v, order, near=near)
                    if causal
                    else cost.break_even_flops(d, d_v, order, module.group)
                ),
            )
        )
    return tuple(heads)
