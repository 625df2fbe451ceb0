"""``taylorder heal``: one folder that every other command takes, and a table that says what it was worth."""

from __future__ import annotations

import json
import re

import keeping_configs
import pytest
import torch
from command_line import WORDS, started
from peft import PeftModel
from tiny import llama
from transformers import AutoModelForCausalLM

from taylorder.adapt.config import OrderConfig
from taylorder.adapt.handle import attach
from taylorder.healing.course import Course
from taylorder.healing.settings import RATES
from taylorder.models.describe import describe
from taylorder.models.loading import load

SMALL = ("--tokens", 256, "--context", "16,32")
FILES = {"README.md", "adapter_config.json", "adapter_model.safetensors", "orders.json", "heal.json", "records"}


@pytest.fixture(autouse=True)
def unseen(monkeypatch):
    """Few words instead of docstrings and code."""
    from taylorder.analysis.text import Text

    module = "taylorder.evaluation.evaluation_text"
    monkeypatch.setattr(f"{module}.evaluation_text", lambda files=(): Text("a few words", WORDS))
    monkeypatch.setattr(f"{module}.evaluation_code", lambda: Text("a few lines", WORDS[::-1]))


@pytest.fixture(scope="module")
def taylor(saved):
    """Order 3 beside a near field of 6 keys, for all heads."""
    folder = saved.parent / "taylor"
    OrderConfig.uniform(describe(load(str(saved)).model), 3, "mean", 4, 2).save(folder / "orders.json")
    return folder


@pytest.fixture(scope="module")
def keeping(saved):
    """Six last keys, four first ones and five more."""
    folder = saved.parent / "keeping"
    keeping_configs.small(load(str(saved)).model)[1].save(folder / "orders.json")
    return folder


def healed(run, saved, config, out, *options):
    code, said, told = run(
        "heal", saved, "--config", config, "--out", out, "--text", saved / "words.txt", *SMALL, *options
    )
    assert code == 0, told
    return said, told


@pytest.mark.parametrize("kind", ["lora", "qkvo"])
def test_the_folder_is_what_peft_and_every_command_take(run, saved, taylor, tmp_path, kind):
    out = tmp_path / "out"
    said, told = healed(run, saved, taylor, out, "--train", kind, "--no-controls")
    assert {path.name for path in out.iterdir()} == FILES
    assert "8 steps on 256 of 712 tokens of" in told
    base = AutoModelForCausalLM.from_pretrained(saved)
    ids = torch.tensor([[10, 20, 30, 40]])
    with torch.no_grad():
        before = base(ids).logits
        merged = PeftModel.from_pretrained(base, out).merge_and_unload()
        after = merged(ids).logits
        assert not torch.equal(before, after)
        with attach(merged, OrderConfig.load(out / "orders.json", merged)):
            merged(ids)
        assert torch.allclose(load(str(saved), adapter=out).model(ids).logits, after, atol=1e-6)
    code, said, told = run("eval", "--config", out, "--no-tasks", "--lengths", 32, "--tokens", 64)
    assert code == 0, told
    assert "order 3: 8" in said
    code, said, told = run("generate", "All work", "--config", out, "--max-new-tokens", 4)
    assert code == 0, told


def test_a_trained_config_needs_no_adapter(run, saved, taylor, tmp_path):
    out = tmp_path / "out"
    said, _ = healed(run, saved, taylor, out, "--train", "config")
    assert {path.name for path in out.iterdir()} == {"README.md", "orders.json", "heal.json", "records"}
    made, before = (OrderConfig.load(folder / "orders.json") for folder in (out, taylor))
    assert made.model == before.model
    assert made.layers[0].heads[0].spec.far.coefficients != before.layers[0].heads[0].spec.far.coefficients
    assert "whose numbers could be trained" in said
    code, _, told = run("eval", saved, "--config", out, "--no-tasks", "--lengths", 32, "--tokens", 64)
    assert code == 0, told


def test_who_learns_a_text_is_judged_by_it(run, saved, taylor, tmp_path):
    out = tmp_path / "out"
    healed(run, saved, taylor, out, "--stage", "outputs,text")
    document = json.loads((out / "heal.json").read_text())
    verdict = document["verdict"]["text"]
    assert verdict.count(" the NLL went from ") == 2 and "KL" not in verdict
    assert "config's NLL on prose" in verdict


def test_trained_probes_need_no_adapter_and_say_what_they_learnt_from(run, saved, keeping, tmp_path, monkeypatch):
    monkeypatch.setitem(RATES, "probes", 0.5)
    out = tmp_path / "out"
    said, _ = healed(run, saved, keeping, out, "--train", "probes", "--stage", "logits")
    assert {path.name for path in out.iterdir()} == {
        "README.md",
        "orders.json",
        "orders.safetensors",
        "heal.json",
        "records",
    }
    made, before = (OrderConfig.load(folder / "orders.json") for folder in (out, keeping))
    assert made.model == before.model and made.layers == before.layers
    assert made.probe.text == str(saved / "words.txt") != before.probe.text
    assert any(not torch.equal(made.probes[name], before.probes[name]) for name in before.probes)
    assert "whose choice could be trained" in said and "the choice of the keys that are kept" in said
    code, _, told = run("eval", saved, "--config", out, "--no-tasks", "--lengths", 32, "--tokens", 64)
    assert code == 0, told


def test_the_table_has_every_control(run, saved, keeping, tmp_path):
    said, _ = healed(run, saved, keeping, tmp_path / "out", "--train", "qkvo")
    document = json.loads((tmp_path / "out" / "heal.json").read_text())
    rows = {row["name"]: row for row in document["rows"]}
    assert list(rows) == [
        "exact", "before", "after", "state off", "near field off", "window", "window, healed", "exact, trained"
    ]  # fmt: skip
    ran = {name for name, row in rows.items() if not row["absent"]}
    assert ran == {"exact", "before", "after", "window", "window, healed", "exact, trained"}
    assert rows["state off"]["absent"] == "no head has a polynomial"
    assert rows["exact"]["losses"]["prose"]["kl"]["estimate"] == 0
    assert rows["exact, trained"]["losses"]["prose"]["kl"]["estimate"] > 0
    assert rows["before"]["losses"]["code"]["nll"]["estimate"] != rows["after"]["losses"]["code"]["nll"]["estimate"]
    assert {name for name, training in document["trainings"].items() if training["tokens"] == 256} == {
        "config", "window", "exact"
    }  # fmt: skip
    for words in ("Unseen prose", "Unseen code", "The same healing of one window", "exact, trained"):
        assert words in said
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: peft\n")
    assert "taylorder eval --config out" in card and "| window, healed |" in card
    assert f"taylorder.load('{saved.name}', adapter='out')" in card


def test_what_is_skipped_says_so(run, saved, taylor, tmp_path):
    said, _ = healed(run, saved, taylor, tmp_path / "out", "--no-controls")
    rows = {row["name"]: row for row in json.loads((tmp_path / "out" / "heal.json").read_text())["rows"]}
    assert rows["exact, trained"]["absent"] == "not run: --no-controls"
    assert not rows["state off"]["absent"] and not rows["near field off"]["absent"]
    assert "not run" in said


def test_a_finished_healing_is_not_done_again(run, saved, taylor, tmp_path):
    first, _ = healed(run, saved, taylor, tmp_path / "out", "--no-controls")
    again, told = healed(run, saved, taylor, tmp_path / "out", "--no-controls")
    assert again == first
    assert "timing a step" not in told and "step 8" not in told
    assert not list((tmp_path / "out" / "records").glob("training-*"))
    _, told = healed(run, saved, taylor, tmp_path / "out", "--no-controls", "--seed", 1)
    assert "had records of other settings, which are gone" in told and "step 8" in told


def test_an_interrupted_healing_says_what_is_kept_and_goes_on(run, saved, taylor, tmp_path, monkeypatch):
    step = Course._step

    def interrupted(self):
        if self._state.done == 2:
            raise KeyboardInterrupt
        step(self)

    monkeypatch.setattr(Course, "_step", interrupted)
    asked = ("heal", saved, "--config", taylor, "--out", tmp_path / "out", "--text", saved / "words.txt", *SMALL)
    code, said, told = run(*asked, "--no-controls")
    assert (code, said) == (130, "")
    assert f"interrupted; what was finished is kept in {tmp_path / 'out' / 'records'}: the same command" in told
    assert not (tmp_path / "out" / "orders.json").exists()
    monkeypatch.setattr(Course, "_step", step)
    code, _, told = run(*asked, "--no-controls")
    assert code == 0 and "timing a step" not in told
    assert (tmp_path / "out" / "orders.json").exists()


def test_two_processes_come_to_the_losses_of_one(saved, taylor, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "from taylorder.analysis.text import Text\n"
        "from taylorder.evaluation import evaluation_text as unseen\n"
        f"unseen.evaluation_text = lambda files=(): Text('a few words', {WORDS!r})\n"
        "unseen.evaluation_code = lambda: unseen.evaluation_text()\n"
        "from taylorder import cli\ncli.main()\n"
    )
    documents = []
    for count in (1, 2):
        out = tmp_path / f"out{count}"
        code, _, told = started(
            count, "heal", saved, "--config", taylor, "--out", out, "--text", saved / "words.txt", *SMALL,
            "--sequences", 2, "--no-controls", program=(program,),
        )  # fmt: skip
        assert code == 0, told
        documents.append(json.loads((out / "heal.json").read_text()))
    one, two = documents
    assert len(one["trainings"]["config"]["losses"]) == 4
    assert two["trainings"]["config"]["losses"] == pytest.approx(one["trainings"]["config"]["losses"], rel=1e-5)
    after = [document["rows"][2]["losses"]["prose"]["kl"]["estimate"] for document in documents]
    assert after[1] == pytest.approx(after[0], rel=1e-4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--train", "all"), "--train is 'all', expected one of lora, qkvo, qk, config, probes"),
        (("--stage", "logits,outputs"), "--stage is logits,outputs, expected one of outputs,logits"),
        (("--stage", "text,logits"), "--stage is text,logits, expected one of outputs,logits"),
        (("--stage", "words"), "--stage is words, expected one of outputs,logits"),
        (("--context", "10,32"), "--context has 10, 32, expected each to divide the longest"),
        (("--context", "128"), "--context has 128, but .* sees 64 tokens at most"),
        (("--drop-window", "2"), "--drop-window is 2, expected a probability"),
    ],
)
def test_what_cannot_be_done_is_refused(run, saved, taylor, tmp_path, options, said):
    code, _, told = run("heal", saved, "--config", taylor, "--out", tmp_path / "out", *options)
    assert code == 2
    assert re.search(said, told)


def test_a_folder_with_something_else_in_it_stays_as_it_is(run, saved, taylor, tmp_path):
    code, _, told = run("heal", saved, "--config", taylor, "--out", taylor)
    assert code == 2 and "holds something else than a healed model" in told


def test_more_processes_than_sequences_are_refused(run, saved, taylor, tmp_path, monkeypatch):
    monkeypatch.setattr("taylorder.storage.processes.world", lambda: 2)
    code, _, told = run("heal", saved, "--config", taylor, "--out", tmp_path / "out", *SMALL)
    assert code == 2
    assert "there are 2 processes, and a step has 1 of the longest sequences" in told
    assert "--sequences 2" in told


def test_a_config_that_leaves_nothing_to_heal_is_refused(run, saved, orders, tmp_path, loads, tiny_tokenizer):
    loads(llama(), tiny_tokenizer)
    code, _, told = run("heal", "--config", orders("exact"), "--out", tmp_path / "out")
    assert code == 2 and "keeps every head exact, so there is nothing to heal" in told
