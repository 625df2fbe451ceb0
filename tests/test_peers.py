"""The protocol of the peers: the prompts are those of the tasks, and caches are asked what they hold."""

from __future__ import annotations

import json
from dataclasses import replace

import against_peers
import numpy as np
import pytest
import torch
from keeping_configs import small
from peers import merging, methods
from peers.methods import CUT_WINDOW, EXACT, KVPRESS_EXACT, READ_EXACTLY, STREAMED, STREAMING_LLM, WINDOW
from peers.ours import BY_BUDGET, KINDS, OurSide, cut, drawn
from peers.protocol import Answers, Prompt, ask, read, read_prompts, rows_of, write_prompts
from tiny import llama, tokens
from transformers import DynamicCache

from taylorder.adapt.handle import attach
from taylorder.adapt.prepared import prepare
from taylorder.evaluation.rivals import bytes_per_kv_head, sliding_window
from taylorder.evaluation.task_prompts import make_tasks
from taylorder.evaluation.tasks import answer_logits

LENGTH = 320


@pytest.fixture(scope="module")
def side(word_tokenizer):
    model = llama(vocab_size=len(word_tokenizer), max_position_embeddings=LENGTH)
    described, config = small(model)
    return OurSide(model, described, {"small": prepare(model, config, described)})


@pytest.fixture(scope="module")
def prompts(side, word_tokenizer, docstrings):
    configs = {name: prepared.config for name, prepared in side.configs.items()}
    return list(drawn(word_tokenizer, side.description, configs, lengths=[LENGTH], cases=2, text=docstrings))


def test_context_and_question_are_together_a_prompt_of_the_tasks(side, prompts, word_tokenizer, docstrings):
    tasks = make_tasks(word_tokenizer, kinds=KINDS, lengths=[LENGTH], cases=2, depths=8, text=docstrings)
    config = side.configs["small"].config
    assert len(tasks) == len(prompts) == 6
    for task, prompt in zip(tasks, prompts, strict=True):
        assert (prompt.kind, prompt.length, prompt.case) == (task.kind, task.length, task.case)
        assert prompt.ids[: prompt.context] + prompt.ids[prompt.context :] == list(task.input_ids)
        assert min(prompt.positions) >= prompt.context
        for position, answer, question in zip(prompt.positions, prompt.answers, task.questions, strict=True):
            assert (position, answer, tuple(prompt.candidates)) == (
                question.position,
                question.answer,
                question.candidates,
            )
            assert prompt.ids[position + 1] == answer
        bytes_held = bytes_per_kv_head(config, side.description, prompt.context)
        assert prompt.budgets == {"small": bytes_held // 32}  # of a token: 8 numbers each of key and value


def test_a_list_is_one_question_and_every_choice_is_one(prompts):
    for prompt in prompts:
        assert [position for turn in prompt.turns for position in turn] == prompt.positions
        assert len(prompt.turns) == (1 if prompt.kind == "list" else 8)


def test_prompts_come_back_short_ones_first(prompts, tmp_path):
    longer = [replace(prompt, length=2 * LENGTH) for prompt in prompts]
    write_prompts(tmp_path / "prompts.jsonl", [*longer, *prompts])
    first, digest = read_prompts(tmp_path / "prompts.jsonl", 1)
    every, same = read_prompts(tmp_path / "prompts.jsonl", 2)
    of_case = [[prompt for prompt in prompts if prompt.case == case] for case in (0, 1)]
    long_of_case = [[replace(prompt, length=2 * LENGTH) for prompt in part] for part in of_case]
    assert first == of_case[0] + long_of_case[0]
    assert every == of_case[0] + long_of_case[0] + of_case[1] + long_of_case[1]
    assert digest == same


@pytest.fixture
def answers(tmp_path):
    return Answers(tmp_path / "answers.jsonl", "these", {"torch": "2"})


def chosen_by(side, prompt, answers):
    side.answer(prompt, answers, ["small"])
    return {row["method"]: row for row in rows_of(answers.path, "these") if row["kind"] == prompt.kind}


def likeliest(logits, prompt):
    candidates = torch.tensor(prompt.candidates or range(logits.shape[-1]))
    return candidates[logits[:, candidates].argmax(-1)].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_of_one_pass_where_nothing_looks_ahead(side, prompts, answers, kind):
    """What streams does the same whether or not the prompt is cut."""
    prompt = next(prompt for prompt in prompts if prompt.kind == kind)
    told = chosen_by(side, prompt, answers)
    assert set(told) == {EXACT, *BY_BUDGET}
    window = sliding_window(side.description, 32 * prompt.budgets["small"], prompt.context).config
    assert told[EXACT]["chosen"] == likeliest(answer_logits(side.model, prompt.ids, prompt.positions), prompt)
    for method, config in ((STREAMED, side.configs["small"]), (WINDOW, window)):
        with attach(side.model, config):
            logits = answer_logits(side.model, prompt.ids, prompt.positions)
        assert told[method]["chosen"] == likeliest(logits, prompt)
        assert told[method]["chosen"] != told[EXACT]["chosen"]


def test_only_what_streams_holds_no_more_after_the_question(side, prompts, answers):
    prompt = prompts[0]
    told = chosen_by(side, prompt, answers)
    asked = 32 * (prompt.positions[-1] + 1 - prompt.context)
    assert told[EXACT]["bytes_before"] == 32 * prompt.context
    for method in (STREAMED, READ_EXACTLY):
        assert told[method]["bytes_before"] == bytes_per_kv_head(side.configs["small"].config, side.description, LENGTH)
    for method in (WINDOW, CUT_WINDOW):
        assert told[method]["bytes_before"] == 32 * prompt.budgets["small"]
    for method, row in told.items():
        grown = asked if method in (EXACT, CUT_WINDOW) else 0
        assert row["bytes_after"] == row["bytes_before"] + grown
    grows = {method.name: method.grows for method in methods.METHODS}
    assert [method for method in told if grows[method]] == [EXACT, CUT_WINDOW]


def test_what_reads_exactly_differs_from_what_streams_in_later_layers_only(word_tokenizer, prompts, answers):
    """Keys of the first layer do not depend on attention, so that a model of one layer holds the same either way."""
    model = llama(vocab_size=len(word_tokenizer), max_position_embeddings=LENGTH, num_hidden_layers=1)
    described, config = small(model)
    told = chosen_by(OurSide(model, described, {"small": prepare(model, config, described)}), prompts[1], answers)
    assert told[READ_EXACTLY]["chosen"] == told[STREAMED]["chosen"]
    assert told[READ_EXACTLY]["chosen"] != told[EXACT]["chosen"]


def test_a_cache_that_is_cut_has_the_sinks_and_the_last_keys():
    model, cache = llama(), DynamicCache()
    read(model, cache, tokens(1, 30)[0].tolist())
    keys = cache.layers[1].keys
    assert cut(cache, 10).layers[1].keys.equal(torch.cat([keys[:, :, :4], keys[:, :, 24:]], 2))
    assert cut(cache, 10).layers[1].values.shape == (1, 2, 10, 8)


def test_a_question_has_its_positions_whatever_the_cache_lost():
    """A window that holds everything is exact attention, and keys far behind a window do not move it."""
    model, ids = llama(), tokens(1, 40)[0].tolist()
    prompt = Prompt("list", 40, 0, ids, 30, [32, 38], [ids[33], ids[39]], [], {})
    expected = likeliest(answer_logits(model, ids, [32, 38]), prompt)
    cache = DynamicCache()
    read(model, cache, ids[:30])
    assert ask(model, cut(cache, 30), prompt, 30, prompt.positions) == expected


def test_what_was_answered_is_not_asked_again(side, prompts, answers, monkeypatch):
    side.answer(prompts[0], answers, ["small"])
    monkeypatch.setattr("peers.ours.ask", lambda *_: pytest.fail("asked"))
    again = Answers(answers.path, "these", {})
    side.answer(prompts[0], again, ["small"])
    assert again.missing(prompts[1], EXACT, "")
    assert again.missing(replace(prompts[0], case=1), EXACT, "")


def test_lines_of_other_prompts_and_half_lines_do_not_count(prompts, answers):
    answers.add(prompts[0], EXACT, "", prompts[0].answers, (1.0, 2.0))
    assert Answers(answers.path, "others", {}).missing(prompts[0], EXACT, "")
    whole = answers.path.read_text(encoding="utf-8")
    answers.path.write_text(whole[:-5], encoding="utf-8")
    again = Answers(answers.path, "these", {})
    assert again.missing(prompts[0], EXACT, "")
    again.add(prompts[0], EXACT, "", prompts[0].answers, (1.0, 2.0))
    assert [row["chosen"] for row in rows_of(answers.path, "these")] == [prompts[0].answers]


def test_the_driver_goes_from_a_model_to_rows(word_tokenizer, docstrings, loads, monkeypatch, tmp_path, capsys):
    model = llama(vocab_size=len(word_tokenizer), max_position_embeddings=LENGTH)
    loads(model, word_tokenizer)
    (tmp_path / "smollm2-135m-64KiB").mkdir()
    small(model)[1].save(tmp_path / "smollm2-135m-64KiB" / "orders.json")
    monkeypatch.setattr("taylorder.evaluation.task_prompts.evaluation_text", lambda: docstrings)
    for name, value in {"CONFIGS": tmp_path, "BUDGETS": ("64KiB",), "LENGTHS": (LENGTH,)}.items():
        monkeypatch.setattr(against_peers, name, value)

    def step(name, *options):
        places = ["--records", str(tmp_path / "records"), "--out", str(tmp_path / "peers.json")]
        monkeypatch.setattr("sys.argv", ["against_peers.py", name, *options, *places])
        against_peers.main()
        return capsys.readouterr().err

    step("prompts", "--cases", "2")
    assert (tmp_path / "records" / "model" / "model.safetensors").exists()
    assert "3 of 3: needle, 320 tokens, case 0" in step("taylorder", "--cases", "1")
    step("taylorder", "--cases", "2")
    step("table")
    document = json.loads((tmp_path / "peers.json").read_text(encoding="utf-8"))
    assert {(row["task"], row["method"], row["cases"]) for row in document["rows"]} == {
        (kind, method, 2) for kind in KINDS for method in (EXACT, *BY_BUDGET)
    }
    assert [side["side"] for side in document["measured"]] == ["taylorder"]
    assert document["checks"] == []  # the other side has answered nothing


def answered(prompts, method, right, budget="small"):
    """Answers of which the first ``right`` of a prompt are right."""
    return [
        {"method": method, "budget": budget, "kind": prompt.kind, "length": prompt.length, "case": prompt.case,
         "bytes_before": 100.0, "bytes_after": 150.0,
         "chosen": [*prompt.answers[:count], *[-1] * (len(prompt.answers) - count)]}
        for prompt, count in zip(prompts, right, strict=True)
    ]  # fmt: skip


def test_rows_are_over_the_cases_that_all_have_answered(prompts):
    lookups = [replace(prompts[0], case=case) for case in range(3)]
    told = answered(lookups, EXACT, [8, 8, 4], "") + answered(lookups, STREAMED, [8, 4, 4])
    told += answered(lookups[:2], "SnapKV", [2, 4])
    rows = {row["method"]: row for row in merging.rows(lookups, told)}
    assert list(rows) == [EXACT, STREAMED, "SnapKV"]
    assert {(row["task"], row["length"], row["budget"], row["cases"], row["questions"]) for row in rows.values()} == {
        ("lookup", LENGTH, "small", 2, 16)
    }
    assert [row["right"][0] for row in rows.values()] == [1.0, 0.75, 0.375]
    assert rows[EXACT]["right"][1] < 1.0
    assert rows["SnapKV"]["to taylorder"][0] == pytest.approx(-0.375)
    assert rows[STREAMED]["to exact"][0] == pytest.approx(-0.25)
    assert np.isclose(rows["SnapKV"]["bytes_after"], 150)


def test_both_sides_are_compared_token_by_token(prompts):
    told = answered(prompts[:1], EXACT, [8], "") + answered(prompts[:1], KVPRESS_EXACT, [6], "")
    told += answered(prompts[:2], CUT_WINDOW, [3, 2]) + answered(prompts[:1], STREAMING_LLM, [3])
    exact, window = merging.checks(told)
    assert (exact["kvpress"], exact["tokens"], exact["alike"]) == (KVPRESS_EXACT, 8, 6)
    assert (window["budget"], window["prompts"], window["tokens"], window["alike"]) == ("small", 1, 8, 8)
