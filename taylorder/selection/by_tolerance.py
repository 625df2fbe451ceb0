"""An order for every head, each judged by itself: by a policy, a tolerance, and what pays off at a context."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from taylorder.adapt import cost
from taylorder.adapt.config import HeadOrder, LayerOrders, ModelIdentity, OrderConfig
from taylorder.analysis.results import LEAST_FAR_SHARE, Analysis, CandidateRow
from taylorder.analysis.statistics import order_for
from taylorder.errors import UsageError
from taylorder.kernels.spec import Exact, HeadSpec, Near, Taylor, deepest
from taylorder.models.description import AttentionModule
from taylorder.selection.policies import POLICIES, Layer, Pick, Policy, eligible
from taylorder.selection.settings import DEFAULTS, ChosenBy, PolicyName
from taylorder.storage.frames import as_html, frame
from taylorder.storage.provenance import software_versions

if TYPE_CHECKING:
    from pandas import DataFrame

    from taylorder.selection.lever_summary import LeverSummary

_OF_CALIBRATION = ("source", "text_sha256", "sequences", "sequence_length", "bos", "rows_per_sequence", "seed")
"""What a config says of the text."""


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
    """A config and the reasons for it.

    ``why`` is what made the choice: a policy that judges every head by itself, or what the levers came to. Verdicts on
    heads are by ``tolerance`` and ``context`` in either case; ``largest_order`` pays off there, 0 if none does.
    """

    config: OrderConfig
    why: Policy | LeverSummary
    tolerance: float
    context: int
    largest_order: int
    heads: tuple[HeadVerdict, ...]

    @property
    def policy(self) -> ChosenBy:
        """Name of what made the choice."""
        return self.why.name

    @property
    def levers(self) -> LeverSummary | None:
        """What the levers came to, where they made the choice."""
        return None if isinstance(self.why, Policy) else self.why

    def with_levers(self, config: OrderConfig, summary: LeverSummary) -> Selection:
        """The selection with another config, which the levers led to."""
        choices = {(layer.module, head): choice for layer in config.layers for head, choice in enumerate(layer.heads)}
        heads = tuple(replace(head, choice=choices[head.module, head.head]) for head in self.heads)
        return replace(self, config=config, why=summary, heads=heads)

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


def select(
    analysis: Analysis,
    *,
    policy: PolicyName = DEFAULTS.policy,
    tolerance: float = DEFAULTS.tolerance,
    context: int | None = DEFAULTS.context,
) -> Selection:
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
        policy: name of an entry of :data:`~taylorder.selection.policies.POLICIES`.
        tolerance: largest relative L2 error of a head's output, default 7 %, about that of int4.
        context: context length, in tokens, at which a state must not be larger than the KV cache (for encoders: the
            sequence length at which Taylor attention must not need more FLOPs); default the model's maximum.

    Returns:
        The config, and the reason for every head's decision; nominal bytes are per KV head at ``context``.

    Raises:
        UsageError: there is no such policy, or tolerance or context is not above zero and finite.

    """
    context = analysis.model.max_context if context is None else context
    if policy not in POLICIES:
        raise UsageError(f"policy is {policy!r}, expected one of {', '.join(POLICIES)}")
    if not (0 < tolerance < math.inf and context > 0):
        raise UsageError(f"tolerance is {tolerance} and context {context}, expected both above 0 and finite")
    rows: dict[tuple[str, int], list[CandidateRow]] = {}
    for row in analysis.candidates:
        rows.setdefault((row.module, row.head), []).append(row)
    layers, verdicts = [], []
    for module in analysis.model.modules:
        measured = [rows[module.name, head] for head in range(module.heads)]
        largest = _largest_order(analysis, module, context)
        if module.stays_exact is not None:
            picks: list[Pick] = [module.stays_exact] * module.heads
        elif analysis.calibration.far_share < LEAST_FAR_SHARE:
            picks = ["near"] * module.heads
        else:
            picks = POLICIES[policy].picks(Layer(analysis, module, measured, tolerance, largest))
        heads = _head_orders(module, picks, context, causal=analysis.model.causal)
        layers.append(LayerOrders.of(module, analysis.model, heads))
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
    calibration = {name: getattr(analysis.calibration, name) for name in _OF_CALIBRATION}
    config = OrderConfig(
        model=ModelIdentity.of(analysis.model),
        calibration={**calibration, "dtype": analysis.model.dtype},
        criterion={"policy": policy, "tolerance": tolerance, "context": context, "max_order": analysis.max_order},
        software=software_versions(),
        layers=tuple(layers),
    ).with_key_centres(analysis.key_centres)
    largest = _largest_order(analysis, analysis.model.typical, context)
    return Selection(config, POLICIES[policy], tolerance, context, largest, tuple(verdicts))


def _largest_order(analysis: Analysis, module: AttentionModule, context: int) -> int:
    """The largest order that pays off in a module at a context, or at the most tokens that it attends to."""
    return cost.largest_order(
        module.head_dim,
        module.value_dim,
        min(context, module.tokens or context),
        causal=analysis.model.causal,
        group=module.group,
        near=analysis.window + analysis.sinks,
    )


def _head_orders(
    module: AttentionModule, picks: Sequence[Pick], context: int, *, causal: bool
) -> tuple[HeadOrder, ...]:
    """Turn picks into decisions with the cost of their KV head's cache or state."""
    d, d_v = module.head_dim, module.value_dim
    specs = [
        HeadSpec(Exact())
        if isinstance(pick, str)
        else HeadSpec(Taylor(pick.order, pick.expansion), Near(pick.window, pick.sinks))
        for pick in picks
    ]
    heads: list[HeadOrder] = []
    for group, specs_of_group in zip(module.groups(picks), module.groups(specs), strict=True):
        size = cost.kv_head_bytes(specs_of_group, module, context) if causal else 0
        polynomial = deepest(specs_of_group)
        order, near = 0 if polynomial is None else polynomial.order, min(context, specs_of_group[0].near.tokens)
        if causal:
            break_even = cost.break_even_tokens(d, d_v, order, near=near)
        else:
            break_even = cost.break_even_flops(d, d_v, order, module.group)
        for pick, spec in zip(group, specs_of_group, strict=True):
            if isinstance(pick, str):
                heads.append(HeadOrder(spec=spec, error=0.0, reason=pick, nominal_bytes=size))
            else:
                heads.append(HeadOrder(spec=spec, error=pick.relative_l2, nominal_bytes=size, break_even=break_even))
    return tuple(heads)
