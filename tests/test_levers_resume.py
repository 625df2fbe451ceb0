"""Measuring levers of a whole model: interrupted and resumed, it gives what an uninterrupted run gives."""

from __future__ import annotations

import gc
from dataclasses import asdict

import pytest
import tiny
import torch
import transformers as hf
from measured_levers import made_up_probes

from taylorder.errors import UnsupportedModelError
from taylorder.kernels.spec import Dropped, Exact, HeadSpec, Near, Taylor
from taylorder.models.describe import describe
from taylorder.selection import lever_table as levers
from taylorder.selection.candidates import Candidate
from taylorder.selection.gradients import Observed
from taylorder.storage.records import Records

CANDIDATES = (
    Candidate(HeadSpec(Exact())),
    Candidate(HeadSpec(Dropped(), Near(5, 2))),
    Candidate(HeadSpec(Taylor(2, "centre"), Near(3, 1)), fitted=True),
    Candidate(HeadSpec(Taylor(3, "mean", (8, 8, 3)), Near(3, 1))),
    Candidate(HeadSpec(Taylor(1, "centre"), Near(3, 1, 6)), fitted=True),
)
SETTINGS = {"seed": 0, "text": "random"}
FILES = ("levers-model.layers.1.self_attn.json", "levers-model.layers.1.self_attn.safetensors")


def beside(candidate, module):
    return Candidate(HeadSpec(Dropped(), Near(9, 2))) if candidate.truncates else None


@pytest.fixture(scope="module")
def model():
    """Four query heads on two KV heads, four layers."""
    return tiny.llama(num_hidden_layers=4)


def measure(model, records, progress=lambda *_: None, seed=0):
    return levers.measure(
        model, describe(model, "tiny"), tiny.tokens(2, 32), CANDIDATES, beside,
        probes=made_up_probes(model), seed=seed, records=records, progress=progress,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    return measure(model, Records(tmp_path_factory.mktemp("whole"), SETTINGS))


@pytest.fixture
def counted(monkeypatch):
    """Names of the modules measured, and after how many to stop."""

    class Counted:
        def __init__(self):
            self.names, self.most, self.real = [], 99, levers.measure_levers

        def __call__(self, module, *args, **options):
            if len(self.names) == self.most:
                raise KeyboardInterrupt
            self.names.append(module)
            return self.real(module, *args, **options)

    counted = Counted()
    monkeypatch.setattr(levers, "measure_levers", counted)
    return counted


def assert_same(found, expected):
    """Bit for bit: rows, coefficients, centres, rotations."""
    assert found.model == expected.model
    assert found.candidates == expected.candidates
    assert found.probed == expected.probed == {"text": "made up", "tokens": 1000, "sha256": "0" * 64}
    for own, other in zip(found.layers, expected.layers, strict=True):
        assert own.module == other.module
        assert own.rows == other.rows
        assert own.fitted == other.fitted
        assert torch.equal(own.prepared.centres, other.prepared.centres)
        assert torch.equal(own.prepared.probe, other.prepared.probe)
        for rotation, expectation in zip(own.prepared.rotations, other.prepared.rotations, strict=True):
            assert torch.equal(rotation, expectation)


def test_the_table_has_every_kv_head_and_candidate(whole):
    names = [f"model.layers.{layer}.self_attn" for layer in range(4)]
    assert [layer.module for layer in whole.layers] == [module.name for module in whole.modules] == names
    assert whole.kv_heads == [(name, kv_head) for name in names for kv_head in (0, 1)]
    assert len(whole.rows()) == 8
    for (name, kv_head), rows in zip(whole.kv_heads, whole.rows(), strict=True):
        assert [(row.module, row.kv_head, row.candidate) for row in rows] == [(name, kv_head, p) for p in range(5)]
        assert [row.window_relative_l2 is None for row in rows] == [True, True, False, False, False]
        assert all(row.relative_l2 > 1e-3 and row.gradient_error > 0 for row in rows[1:])


@pytest.mark.parametrize("done", [0, 1, 3])
def test_a_resumed_run_gives_what_an_uninterrupted_one_gives(model, whole, counted, tmp_path, done):
    counted.most = done
    with pytest.raises(KeyboardInterrupt):
        measure(model, Records(tmp_path, SETTINGS))
    counted.most = 99
    resumed = measure(model, Records(tmp_path, SETTINGS))
    assert counted.names == [layer.module for layer in whole.layers]
    assert_same(resumed, whole)


def test_a_finished_run_measures_nothing_again(model, whole, counted, monkeypatch, tmp_path):
    measure(model, Records(tmp_path, SETTINGS))
    counted.most = 0
    counted.names.clear()
    monkeypatch.setattr(levers, "observe_sequence", lambda *_: pytest.fail("there is nothing to observe"))
    assert_same(measure(model, Records(tmp_path, SETTINGS)), whole)


@pytest.mark.parametrize("settings, fresh", [({**SETTINGS, "text": "other"}, False), (SETTINGS, True)])
def test_other_settings_or_fresh_start_over(model, whole, counted, tmp_path, settings, fresh):
    counted.most = 2
    with pytest.raises(KeyboardInterrupt):
        measure(model, Records(tmp_path, SETTINGS))
    counted.most = 99
    counted.names.clear()
    assert_same(measure(model, Records(tmp_path, settings, fresh=fresh)), whole)
    assert counted.names == [layer.module for layer in whole.layers]


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def remove(path):
    path.unlink()


@pytest.mark.parametrize(
    "file, damage", [(FILES[0], halve), (FILES[0], empty), (FILES[0], remove), (FILES[1], remove), (FILES[1], halve)]
)
def test_a_piece_that_is_not_whole_is_measured_again(model, whole, counted, tmp_path, file, damage):
    measure(model, Records(tmp_path, SETTINGS))
    counted.names.clear()
    damage(tmp_path / file)
    assert_same(measure(model, Records(tmp_path, SETTINGS)), whole)
    assert counted.names == ["model.layers.1.self_attn"]


def test_the_seed_decides_the_rows_of_the_fit_alone(model, whole, tmp_path, monkeypatch):
    monkeypatch.setattr("taylorder.selection.lever_errors.FIT_ROWS", 8)
    first, again, other = (
        measure(model, Records(tmp_path / name, SETTINGS), seed=seed)
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    assert_same(again, first)
    for own, moved in zip(first.layers, other.layers, strict=True):
        assert own.fitted != moved.fitted
        kept = [(asdict(a), asdict(b)) for a, b in zip(own.rows, moved.rows, strict=True) if a.candidate not in (2, 4)]
        assert all(a == b for a, b in kept)


def test_progress_is_told_of_every_step(model, tmp_path):
    steps = []
    measure(model, Records(tmp_path, SETTINGS), lambda *step: steps.append(step))
    assert steps == [*(("backward pass", done, 2) for done in range(2)), *(("levers", done, 4) for done in range(5))]


def test_layers_with_a_window_of_their_own_are_left_out(tmp_path):
    gemma = tiny.gemma3()
    description = describe(gemma, "gemma3")
    open_ones = [module.name for module in description.modules if module.sliding_window is None]
    assert 0 < len(open_ones) < len(description.modules)
    candidates = CANDIDATES[:2]
    table = levers.measure(
        gemma, description, tiny.tokens(1, 32), candidates, beside,
        seed=0, records=Records(tmp_path, SETTINGS), progress=lambda *_: None,
    )  # fmt: skip
    assert [layer.module for layer in table.layers] == open_ones
    assert [name for name, _ in table.kv_heads] == [name for name in open_ones for _ in range(2)]
    assert len(table.rows()) == len(table.kv_heads)


def sliding_everywhere():
    config = hf.Gemma3TextConfig(
        head_dim=16, query_pre_attn_scalar=24, sliding_window=8, layer_types=["sliding_attention"] * 2,
        **tiny.decoder(),
    )  # fmt: skip
    return tiny.build(hf.Gemma3ForCausalLM, config)


@pytest.mark.parametrize("factory", [tiny.bert, tiny.modernbert, sliding_everywhere])
def test_a_model_without_a_cache_to_exchange_is_refused(factory, tmp_path):
    model = factory()
    with pytest.raises(UnsupportedModelError, match="tiny has no attention module whose cache could be exchanged"):
        measure(model, Records(tmp_path, SETTINGS))
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]


def test_a_model_without_a_loss_is_refused(tmp_path):
    with pytest.raises(UnsupportedModelError, match="LlamaModel has no language-model head"):
        measure(tiny.llama().base_model, Records(tmp_path, SETTINGS))


def test_what_was_observed_is_in_memory_one_layer_at_a_time(model, monkeypatch, tmp_path):
    in_memory, on_disk, real = [], [], levers.measure_levers

    def counting(*arguments, **options):
        in_memory.append(sum(type(held) is Observed for held in gc.get_objects()))
        on_disk.append(len(list(tmp_path.rglob("spilled-0/*"))))
        return real(*arguments, **options)

    monkeypatch.setattr(levers, "measure_levers", counting)
    measure(model, Records(tmp_path, SETTINGS))
    assert in_memory == [2, 2, 2, 2]  # of two sequences
    assert on_disk == [6, 4, 2, 0]
    assert not list(tmp_path.rglob("spilled*"))
