"""A near field in words and marks: its sinks, its window, and the keys it keeps by priority."""

from __future__ import annotations

from taylorder.adapt.config import OrderConfig
from taylorder.kernels.spec import HeadSpec, Near, Taylor, keeps_keys
from taylorder.reports.numbers import counted, number

WINDOW_MARK, KEPT_MARK = "w", "k"
MEANINGS = {
    WINDOW_MARK: "a window and sinks, all other keys dropped: no polynomial",
    KEPT_MARK: "a window, sinks and keys kept by priority, all others dropped: no polynomial",
}
"""What a head runs that runs nothing but a near field, by its mark."""


def keeps(config: OrderConfig) -> bool:
    """Whether any head of a config keeps keys by priority."""
    return any(keeps_keys([head.spec for head in layer.heads]) for layer in config.layers)


def mark(near: Near) -> str:
    """The mark of a head that runs nothing but this near field."""
    return KEPT_MARK if near.kept else WINDOW_MARK


def tokens(near: Near, *, parts: bool) -> str:
    """Most keys that are near at once; with ``parts``, sinks, window and kept keys one by one."""
    return f"{near.sinks}/{near.window}/{near.kept}" if parts else number(near.tokens)


def words(near: Near) -> str:
    """Which keys are near."""
    last, first = f"the last {counted(near.window, 'key')}", f"the first {number(near.sinks)}"
    return f"{last}, {first} and the {number(near.kept)} of highest priority" if near.kept else f"{last} and {first}"


def spec_words(spec: HeadSpec) -> str:
    """What a head runs that is not exact: its polynomial, if it has one, and which keys are near."""
    near, far = f"{words(spec.near)} exact", spec.far
    if not isinstance(far, Taylor):
        return f"{near}, all others dropped"
    parts = [f"order {far.order}, expansion {far.expansion}"]
    parts += [near] if spec.near.tokens else []
    parts += [] if far.ranks is None else [f"ranks {', '.join(map(str, far.ranks))}"]
    if far.coefficients is not None:
        parts.append(f"coefficients {', '.join(f'{value:.3g}' for value in far.coefficients)}")
    return ", ".join(parts)


def probe_sentence(config: OrderConfig) -> str | None:
    """What the probes of a config were fitted on; None where it has none."""
    about = config.probe
    if about is None:
        return None
    fitted = f"fitted on {counted(about.tokens, 'token')} of {about.text}"
    return f"A linear probe of key and value gives each key its priority, {fitted}."
