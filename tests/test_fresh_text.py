"""Small language models trained from scratch: what they read, and what judges them."""

from __future__ import annotations

import pytest
import torch
from fresh_models import text_run
from fresh_models.text import BLOCK, ITEMS, Texts
from fresh_models.text_run import SHORT, TextRun, mean_loss, whole
from fresh_models.text_summary import text_lines

WRITTEN = "\n".join(f"line {chr(97 + n % 26)}{chr(97 + n // 26 % 26)} of {n} sentences" for n in range(2000))


@pytest.fixture(scope="module")
def material():
    return Texts.cut(WRITTEN, WRITTEN.upper(), vocabulary=300)


def test_held_out_blocks_are_not_trained_on(material):
    assert material.learnt.shape[1] == material.held_out.shape[1] == BLOCK
    learnt = {tuple(block) for block in material.learnt.tolist()}
    assert not learnt & {tuple(block) for block in material.held_out.tolist()}
    (drawn,) = {len(batch) for batch, _ in zip(material.batches(256, 3, seed=0), range(2), strict=False)}
    assert drawn == 3


def test_batches_are_those_of_their_seed(material):
    first = [next(material.batches(256, 3, seed=seed)) for seed in (0, 0, 1)]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])


def test_a_copy_is_judged_the_second_time(material):
    ids, places = material.copies(64, 1)[0]
    assert torch.equal(ids[:32], ids[32:])
    assert places == slice(32, 64)


def test_a_list_asks_for_the_value_behind_a_name(material):
    ids, places = material.lists(512, 1)[0]
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


def test_long_trainings_have_lines_of_their_own_with_the_mean_of_their_seeds():
    def record(run, loss):
        return {"about": run.about, "loss": {"256 tokens": loss}, "state_bytes": {"256": 9}}

    records = [record(TextRun("order 3", rate=rate), 7.0) for rate in (1e-3, 3e-3)]
    records += [record(TextRun("order 3", seed=seed).long, loss) for seed, loss in ((1, 5.0), (0, 4.0))]
    records += [record(TextRun("softmax").long, 3.0)]
    softmax, order, *shorts = text_lines(records)
    assert (softmax.run.contender, softmax.seeds) == ("softmax", [0])
    assert (order.seeds, order.losses, order.state_bytes) == ([0, 1], {"256 tokens": 4.5}, 9)
    assert [(line.run.steps, line.run.rate) for line in shorts] == [(SHORT, 3e-3), (SHORT, 1e-3)]


def test_a_run_trains_and_is_judged_by_kind(material, monkeypatch):
    monkeypatch.setattr(text_run, "texts", lambda: material)
    monkeypatch.setattr(text_run, "EVERY", 2)
    monkeypatch.setattr(text_run, "JUDGED", 2)
    record, weights = TextRun("orders 3 and 2", steps=4).measure()
    assert list(record["loss"]) == ["256 tokens", "512 tokens", "docstrings", "copies", "lists"]
    assert record["curve"][1][1] < record["curve"][0][1]
    assert record["state_bytes"]["256"] == ((1 + 16 + 136) + 17) * 17 * 4 // 2
    assert len(weights) > 100_000
