"""Small language models trained from scratch: what they read, and what judges them."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from fresh_models import text_run
from fresh_models.text import BLOCK, ITEMS, PASSAGE, Texts
from fresh_models.text_run import TextRun, judged, mean_loss, whole
from fresh_models.text_summary import better, text_lines
from fresh_models.training import Schedule

WRITTEN = "\n".join(f"line {chr(97 + n % 26)}{chr(97 + n // 26 % 26)} of {n} sentences" for n in range(2000))


@pytest.fixture(scope="module")
def material():
    return Texts.cut(WRITTEN, WRITTEN.upper(), vocabulary=300)


def test_held_out_blocks_are_not_trained_on(material):
    assert material.learnt.shape[1] == material.held_out.shape[1] == BLOCK
    learnt = {tuple(block) for block in material.learnt.tolist()}
    assert not learnt & {tuple(block) for block in material.held_out.tolist()}
    parts = {block[:256] for block in learnt} | {block[256:] for block in learnt}
    read = [tuple(row) for batch in islice(material.batches(256, 3, seed=0), len(parts) // 3) for row in batch.tolist()]
    assert set(read) <= parts
    assert len(set(read)) == len(read)  # none twice


def test_long_lines_are_held_out_from_all_the_text():
    paragraph = "a sentence of several words\nand another one that follows it\n\n"
    twice = Texts.cut("end\n".join(paragraph + f"line {n} of many others\n" for n in range(900)), WRITTEN, 300)
    whole = twice.tokenizer.decode(torch.cat([twice.learnt, twice.held_out]).flatten().tolist())
    assert whole.count("a sentence of several words") <= 1
    assert whole.count("line 5 of many others") <= 1
    assert whole.count("end") > 100  # short lines stay


def test_unseen_blocks_are_from_the_whole_text(material):
    chosen = [tuple(block) for block in material.unseen(3).tolist()]
    held = [tuple(block) for block in material.held_out.tolist()]
    assert (chosen[0], chosen[-1]) == (held[0], held[-1])


def test_batches_are_those_of_their_seed(material):
    first = [next(material.batches(256, 3, seed=seed)) for seed in (0, 0, 1)]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])


def test_random_words_come_over_and_over_and_no_passage_comes_twice(material):
    stream = material.repeated(128, 3, seed=0)
    first, second = next(stream), next(stream)
    assert first.shape == (3, 128)
    assert torch.equal(first[:, PASSAGE:], first[:, :-PASSAGE])
    assert not torch.equal(first, second)
    assert int(first.max()) < material.vocabulary


def test_a_copy_is_judged_the_second_time(material):
    ids, places = material.copies(64, 1)[0]
    assert torch.equal(ids[:32], ids[32:])
    assert places == slice(32, 64)


def test_a_list_asks_for_the_value_behind_a_name(material):
    ids, places = material.lists(1)[0]
    written = material.tokenizer.decode(ids.tolist()).split("\n")
    answer = material.tokenizer.decode(ids[places].tolist())
    assert len(written) == ITEMS + 1
    assert written[-1] in written[:-1]
    assert written[-1].endswith(answer)


def test_losses_are_of_the_judged_tokens_alone():
    class Certain:
        """Says that every token is followed by the next larger one."""

        def __call__(self, input_ids, use_cache):
            logits = 50.0 * torch.nn.functional.one_hot(input_ids + 1, 10)
            return type("Output", (), {"logits": logits.float()})

    counting, jumping = torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 3, 7])
    assert mean_loss(Certain(), whole([counting])) == pytest.approx(0.0, abs=1e-6)
    assert mean_loss(Certain(), [(jumping, slice(1, 3))]) == pytest.approx(0.0, abs=1e-6)
    assert mean_loss(Certain(), [(jumping, slice(2, 4))]) == pytest.approx(25.0)


def record(run, loss, copied=200):
    return {"about": run.about, "loss": {"256 tokens": loss}, "state_bytes": {"256": 9}, "copied_at": copied}


def test_every_learning_rate_has_a_line_with_the_mean_of_its_seeds():
    records = [record(TextRun("order 3", rate=1e-3), 7.0, copied=None)]
    records += [record(TextRun("order 3", seed=seed), loss) for seed, loss in ((1, 5.0), (0, 4.0))]
    records += [record(TextRun("softmax"), 3.0)]
    softmax, order, lower = text_lines(records)
    assert (softmax.run.contender, softmax.seeds, softmax.state_bytes) == ("softmax", [0], 9)
    assert (order.seeds, order.loss("256 tokens"), order.copied) == ([0, 1], 4.5, [200, 200])
    assert (lower.run.rate, lower.loss("256 tokens"), lower.copied) == (1e-3, 7.0, [None])


def test_of_two_rates_that_is_better_which_the_first_seed_does_better_with():
    records = [record(TextRun("order 3", rate=rate), loss) for rate, loss in ((1e-2, 4.0), (3e-3, 5.0))]
    records += [record(TextRun("order 3", rate=1e-2, seed=1), 9.0), record(TextRun("softmax"), 3.0)]
    assert [(line.run.contender, line.run.rate) for line in better(text_lines(records))] == [
        ("softmax", 3e-3), ("order 3", 1e-2)
    ]  # fmt: skip


def test_of_twice_the_length_the_second_half_is_judged(material):
    kinds = judged(material)
    ids, places = kinds["512 tokens"][0]
    assert (len(ids), places) == (512, slice(256, 512))
    ids, places = kinds["random words"][0]
    assert torch.equal(ids[places], ids[: 256 - PASSAGE]) and places.start == PASSAGE
    assert len({len(ids) for ids, _ in kinds["256 tokens"]}) == 1


def test_a_run_trains_and_is_judged_by_kind(material, monkeypatch):
    monkeypatch.setattr(text_run, "texts", lambda: material)
    for name, value in (("COPYING", Schedule(6, 1e-2, 2, enough=-99.0)), ("STEPS", 4), ("EVERY", 2)):
        monkeypatch.setattr(text_run, name, value)
    monkeypatch.setattr(text_run, "JUDGED", 2)
    record, weights = TextRun("orders 3 and 2").measure()
    assert list(record["loss"]) == ["256 tokens", "512 tokens", "docstrings", "copies", "lists", "random words"]
    assert ([step for step, _ in record["copying"]], record["copied_at"]) == ([2], 2)
    assert record["curve"][1][1] > record["curve"][0][1]
    assert record["state_bytes"]["256"] == ((1 + 16 + 136) + 17) * 17 * 4 // 2
    assert len(weights) > 100_000
