"""What is worth knowing about a record beside its verdict: what was left out, and what could not be compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .verdict import TOLERANCE


def notes(record: Mapping[str, Any]) -> Iterator[str]:
    """One line each; equal lines of several records are counted together."""
    parts = ("build", "analysis", "direction", "generate", "load")
    build, analysis, direction, generate, load = (record.get(part) or {} for part in parts)
    if "ended" in record:
        yield record["ended"].splitlines()[0][:80]
    if "failed" in build or build.get("ran") is False:
        yield "not built, or built and did not run on anything known here"
    if "tokens" not in record.get("exact", {"tokens"}):
        yield "nothing compared on plain tokens"
    if analysis.get("without_alpha"):
        yield f"no alpha for {', '.join(analysis['without_alpha'])}"
    if analysis.get("unseen"):
        yield "has attention that the analysis does not see"
    if any(cosine < 0.999 for cosine in (record.get("projection_cosines") or {}).values()):
        yield "the weights found alone do not make q, k, v (norms and rotations inside the module, or a fault)"
    masks = {batch["masks"] for batch in record.get("exact", {}).values()}
    if any(said.startswith("not compared") for said in masks):
        yield "masks not compared: the untouched model does not run SDPA in the same modules"
    if len({direction.get("alone"), direction.get("padded")} - {None}) > 1:
        yield "the untouched model looks ahead with a mask or without one, not in both cases"
    if "to_full_pass" in generate and not generate["keeps_states"]:
        yield "generated without any truncated state"
    for name, words in (("to_full_pass", "its own full pass"), ("padded_to_alone", "its own row without padding")):
        if (generate.get(f"untouched_{name}") or 0.0) > TOLERANCE:
            yield f"generating, the untouched model misses {words}"
    if load and load["saved_generates"] and not load["generates"]:
        yield "loaded from a folder without its head"
