"""What the sweep over all architectures calls wrong, on made-up records; the sweep itself is a benchmark."""

from __future__ import annotations

import copy

import pytest
import torch
from architecture_sweep import verdict as verdicts
from architecture_sweep.attention import attending, compare_admissions
from architecture_sweep.building import all_runs, build
from architecture_sweep.log import Log
from architecture_sweep.own_inputs import own_inputs
from architecture_sweep.summary import summary
from architecture_sweep.verdict import DIFFER, PADDING_ROWS_DIFFER, verdict

SAME = {"distance": 0.0, "identical": True, "masks": "equal", "untouched_runs_sdpa": True}
NEAR = {"distance": 4e-7, "identical": False, "untouched_runs_sdpa": True}


def record(**changes):
    """A record in which everything is right, with other values at paths such as ``exact__tokens__distance``."""
    right = {
        "type": "llama", "variant": "head", "class": "LlamaForCausalLM", "refused": [], "foreign": [], "untouched": {},
        "build": {"recipe": "shrunk", "parameters": 1000, "ran": True},
        "analysis": {"without_alpha": [], "unseen": []},
        "projection_cosines": {"q": 1.0, "k": 1.0, "v": 1.0},
        "direction": {"described": "causal", "alone": "causal", "padded": "causal"},
        "restored": True, "reference": {"tokens": {"distance": 5e-7, "changed_by": 0.6}},
        "exact": {"tokens": SAME, "left padding": SAME},
        "all near": {"tokens": NEAR, "left padding": NEAR},
        "generate": {
            "to_full_pass": 7e-7, "untouched_to_full_pass": 6e-7, "padded_to_alone": 5e-7,
            "untouched_padded_to_alone": 5e-7, "cache": "TaylorCache", "keeps_states": True,
        },
        "load": {"class": "LlamaForCausalLM", "generates": True, "saved_generates": True},
    }  # fmt: skip
    right = copy.deepcopy(right)
    for path, value in changes.items():
        *parents, last = path.replace("all_near", "all near").split("__")
        part = right
        for name in parents:
            part = part[name]
        part[last] = value
    return right


def failure(stage, error="UnsupportedModelError", message="LlamaForCausalLM has 3 sinks: choose another.", **more):
    return {"stage": stage, "error": error, "message": message, **more}


def test_a_record_without_fault_passes():
    found = verdict(record())
    assert found == verdicts.Verdict(verdicts.GENERATED)
    assert found.passed


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reference__tokens__distance": 0.01}, "reference, tokens: 0.01 from float64"),
        ({"reference__tokens__distance": None}, "reference, tokens: NaN or infinite from float64"),
        ({"restored": False}, "restored: after the block the model gives another output"),
        ({"direction__alone": "both directions"}, "direction: described as causal, the untouched model is both"),
        ({"exact__tokens": SAME | {"identical": False, "distance": 1e-8}}, "exact, tokens: 1e-08"),
        (
            {"exact__tokens": SAME | {"untouched_runs_sdpa": False, "identical": False, "distance": 2e-5}},
            "exact, tokens",
        ),
        (
            {"exact__left padding": SAME | {"masks": DIFFER}},
            "masks, left padding: those of exact heads and of the untouched model differ",
        ),
        ({"exact__left padding": SAME | {"masks": PADDING_ROWS_DIFFER}}, "masks, left padding: those"),
        ({"all_near__tokens": NEAR | {"distance": 0.3}}, "all near, tokens: 0.3 from the untouched model"),
        ({"generate__to_full_pass": 0.2}, "generate, to_full_pass: 0.2"),
        ({"generate__padded_to_alone": None}, "generate, padded_to_alone: NaN or infinite"),
        ({"generate__to_full_pass": 0.4, "generate__untouched_to_full_pass": 0.1}, "generate, to_full_pass: 0.4"),
    ],
)
def test_wrong_numbers_are_named(changes, words):
    found = verdict(record(**changes))
    assert found.outcome == verdicts.WRONG
    assert not found.passed
    assert len(found.wrong) == 1
    assert found.wrong[0].startswith(words)


@pytest.mark.parametrize(
    "changes",
    [
        {"exact__tokens": SAME | {"untouched_runs_sdpa": False, "identical": False, "distance": 9e-6}},
        {"exact__left padding": SAME | {"masks": "not compared (0 calls of SDPA, 2 inside adapted)"}},
        {"generate__to_full_pass": 0.4, "generate__untouched_to_full_pass": 0.39},
        {"direction__padded": "both directions"},
    ],
)
def test_what_the_untouched_model_does_as_well_is_not_wrong(changes):
    assert verdict(record(**changes)).passed


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"foreign": [failure("generate, to_full_pass", "ValueError", "a cache of its own", where="m.py:6")]},
            "generate, to_full_pass: ValueError: a cache of its own @ m.py:6",
        ),
        ({"ended": "died in adapt"}, "adapt: the process died"),
    ],
)
def test_exceptions_that_are_not_the_projects_are_named(changes, words):
    found = verdict(record(**changes))
    assert (found.outcome, found.foreign, found.passed) == (verdicts.FOREIGN, (words,), False)


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({"generate": {}}, verdicts.ADAPTED),
        ({"refused": [failure("adapt")]}, verdicts.REFUSED_LATER),
        ({"refused": [failure("all near, token_type_ids, a block of ones")]}, verdicts.GENERATED),
        ({"refused": [failure("load")]}, verdicts.GENERATED),
        ({"refused": [failure("analyze")], "analysis": None}, verdicts.REFUSED),
        (
            {"refused": [failure("analyze", message="it did not run")], "build__ran": False, "analysis": None},
            verdicts.NOT_BUILT,
        ),
        ({"refused": [failure("analyze")], "exact": {"own inputs": SAME}, "generate": {}}, verdicts.ADAPTED),
        ({"build__failed": "no recipe gives a model"}, verdicts.NOT_BUILT),
        ({"ended": "timeout in adapt"}, verdicts.TIMEOUT),
        ({"ended": "died in build"}, verdicts.NOT_JUDGED),
        ({"ended": "died in adapt, untouched"}, verdicts.NOT_JUDGED),
        ({"ended": "memory: 9 GB"}, verdicts.NOT_JUDGED),
        ({"exact": {}}, verdicts.NOT_JUDGED),
    ],
)
def test_what_passes_has_an_outcome(changes, outcome):
    found = verdict(record(**changes))
    assert (found.outcome, found.passed) == (outcome, True)


def test_the_summary_counts_types_by_their_best_variant_and_names_what_failed():
    refused = record(variant="base", refused=[failure("analyze", "UnsupportedModelError")], analysis=None)
    wrong = record(type="gemma3", reference__tokens__distance=0.5)
    crash = record(type="minimax", foreign=[failure("adapt", "ValueError", "no", where="m.py:6")])
    lines = summary([record(), refused, wrong, crash]).splitlines()
    assert f"| {verdicts.GENERATED} | 1 | 1 |" in lines
    assert f"| {verdicts.REFUSED} | 1 | 0 |" in lines
    assert f"| {verdicts.WRONG} | 1 | 1 |" in lines
    assert f"| {verdicts.FOREIGN} | 1 | 1 |" in lines
    assert "| all | 4 | 3 |" in lines
    assert "  gemma3 (head): reference, tokens: 0.5 from float64" in lines
    assert "  minimax (head): adapt: ValueError: no @ m.py:6" in lines
    assert "     1  … has … sinks: llama (base)" in lines


def test_a_log_goes_on_after_a_line_that_was_cut_off(tmp_path):
    log = Log(tmp_path / "log.jsonl")
    log.add({"type": "llama", "variant": "head", "seconds": 1})
    with log.path.open("a") as file:
        file.write('{"type": "bert", "var')
    log.add({"type": "opt", "variant": "head", "seconds": 2})
    log.add({"type": "llama", "variant": "head", "seconds": 3})
    assert log.done() == {("llama", "head"), ("opt", "head")}
    log.versions = log.versions | {"transformers": "another"}
    assert log.done() == set()
    log.tidy()
    assert [(one["type"], one["seconds"]) for one in log.records().values()] == [("llama", 3), ("opt", 2)]
    assert len(log.path.read_text().splitlines()) == 2


def test_masks_are_compared_row_by_row():
    causal = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
    real = torch.tensor([[True] * 4, [False, True, True, True]])
    padded = causal & real[:, None, None, :]
    itself = padded | torch.eye(4, dtype=torch.bool)
    block = causal.clone()
    block[..., 1, 2] = True
    assert compare_admissions([causal, padded], [causal, padded], real) == "equal"
    assert compare_admissions([causal], [causal.expand(2, 1, 4, 4)], real) == "equal"
    assert compare_admissions([itself], [padded], real) == PADDING_ROWS_DIFFER
    assert compare_admissions([causal, causal], [causal, block], real) == DIFFER
    assert compare_admissions([causal], [padded], real) == DIFFER
    assert compare_admissions([causal], [], real).startswith("not compared")


@pytest.mark.parametrize(
    "model_type",
    ["vit", "siglip2_vision_model", "qwen2_5_vl_vision", "videomae", "wav2vec2", "timesfm", "clip", "musicgen"],
)
def test_models_are_built_and_fed_what_they_take_for_as_many_examples_as_asked_for(model_type):
    """Pixels, padded patches, packed patches, films, sound, series, two kinds at once, codes of several books."""
    facts = {}
    run = next(run for run in all_runs() if run.model_type == model_type)
    model = build(run, facts)
    assert facts["ran"], facts
    attended = []
    with torch.no_grad(), attending(model, attended.append):
        model(**own_inputs(model, batch=3))
    assert attended
    assert all(len(tensor) % 3 == 0 for tensor in own_inputs(model, batch=3).values())
    for name, tensor in own_inputs(model, batch=3).items():  # the same each time, or there is nothing to compare
        assert torch.equal(tensor, own_inputs(model, batch=3)[name])
