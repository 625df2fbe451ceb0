"""What a record says: which numbers are wrong, what failed without a name of the project's, and one outcome."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

DIFFER, PADDING_ROWS_DIFFER = "differ", "differ in rows of padding queries only"

# Right outputs of tiny float32 models are within 1e-4 (products in another order, twice over for a cache), wrong ones
# beyond 1e-2 (a mask or a key that is missing): nothing lies between.
TOLERANCE = 1e-3
# Eager attention multiplies and normalises in another order than SDPA.
EAGER_TOLERANCE = 1e-5
# Some untouched models miss their own full pass, or their own row alone: then no more can be asked of an adapted one.
UNTOUCHED_TIMES = 3.0

WRONG, FOREIGN = "wrong numbers", "another exception than the project's"
GENERATED, ADAPTED = "analysed, adapted, generated, consistent", "analysed, adapted, consistent"
REFUSED_LATER, REFUSED = "analysed, then refused by name", "refused by name"
TIMEOUT, NOT_BUILT, NOT_JUDGED = "timeout", "not built by the benchmark", "the benchmark's limit"
OUTCOMES = (GENERATED, ADAPTED, REFUSED_LATER, REFUSED, NOT_BUILT, TIMEOUT, NOT_JUDGED, WRONG, FOREIGN)


@dataclass(frozen=True)
class Verdict:
    """One outcome of :data:`OUTCOMES`, and the checks behind the two last ones, each in words."""

    outcome: str
    wrong: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return not self.wrong and not self.foreign


def verdict(record: Mapping[str, Any]) -> Verdict:
    """Judge one record. A refusal by name is never wrong; what the untouched model cannot do is not judged."""
    wrong, foreign = tuple(_wrong(record)), tuple(_foreign(record))
    return Verdict(FOREIGN if foreign else WRONG if wrong else _outcome(record), wrong, foreign)


def _wrong(record: Mapping[str, Any]) -> Iterator[str]:
    direction = record.get("direction", {})
    if direction.get("alone") not in (None, direction.get("described")):
        yield f"direction: described as {direction['described']}, the untouched model is {direction['alone']}"
    if not record.get("restored", True):
        yield "restored: after the block the model gives another output"
    for name, found in record.get("reference", {}).items():
        if _beyond(found["distance"], TOLERANCE):
            yield f"reference, {name}: {_number(found['distance'])} from float64"
    for name, found in record.get("exact", {}).items():
        exactly = found["untouched_runs_sdpa"]
        if (exactly and not found["identical"]) or _beyond(found["distance"], EAGER_TOLERANCE):
            yield f"exact, {name}: {_number(found['distance'])} from the untouched model"
        if found["masks"] in (DIFFER, PADDING_ROWS_DIFFER):
            yield f"masks, {name}: those of exact heads and of the untouched model {found['masks']}"
    for name, found in record.get("all near", {}).items():
        if _beyond(found["distance"], TOLERANCE):
            yield f"all near, {name}: {_number(found['distance'])} from the untouched model"
    generate = record.get("generate", {})
    for name in ("to_full_pass", "padded_to_alone"):
        if name in generate:
            bound = max(TOLERANCE, UNTOUCHED_TIMES * (generate[f"untouched_{name}"] or 0.0))
            if _beyond(generate[name], bound):
                yield f"generate, {name}: {_number(generate[name])}"


def _beyond(distance: float | None, bound: float) -> bool:
    """A distance that is no number is beyond every bound."""
    return distance is None or distance > bound


def _number(distance: float | None) -> str:
    return "NaN or infinite" if distance is None else f"{distance:.2g}"


def _foreign(record: Mapping[str, Any]) -> Iterator[str]:
    for failure in record.get("foreign", ()):
        yield f"{failure['stage']}: {failure['error']}: {failure['message']} @ {failure['where']}"
    stage = str(record.get("ended", "")).removeprefix("died in ")
    if stage != record.get("ended", "") and stage != "build" and not stage.endswith("untouched"):
        yield f"{stage}: the process died"


def _outcome(record: Mapping[str, Any]) -> str:
    if "ended" in record:
        return TIMEOUT if record["ended"].startswith("timeout") else NOT_JUDGED
    if "failed" in record["build"]:
        return NOT_BUILT
    stages = [failure["stage"] for failure in record["refused"]]
    if record.get("analysis") is None:
        # A tiny config that contradicts itself runs on nothing; the refusal then says so, and means the benchmark.
        fed = record["build"]["ran"] or not any("did not run" in failure["message"] for failure in record["refused"])
        return REFUSED if fed else NOT_BUILT
    if any(not about_kinds_of_tokens(stage) and stage not in ("load", "analyze") for stage in stages):
        return REFUSED_LATER
    if record["exact"].keys().isdisjoint({"tokens", "own inputs"}):
        return NOT_JUDGED  # the untouched model does not run on these tokens
    return GENERATED if "to_full_pass" in record.get("generate", {}) else ADAPTED


def about_kinds_of_tokens(stage: str) -> bool:
    """Whether a stage is one of the batches with image blocks or segments, which a model may refuse and still run."""
    return "token_type_ids" in stage


def reason(record: Mapping[str, Any], message: str) -> str:
    """The message of a refusal without what names this model, so that equal reasons read alike."""
    message = re.sub(r"\([^()]*\)", "", message)
    message = re.sub(rf"\b({re.escape(record['class'])}|{re.escape(record['type'])})\b", "…", message)
    message = re.sub(r"[\w.]*\w\.[\w.]*\w|\d[\d,]*", "…", message)
    message = re.split(r"[:;]|, so |, which ", message)[0]
    return textwrap.shorten(re.sub("…+", "…", message), 120, placeholder=" …")
