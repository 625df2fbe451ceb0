"""Pieces on disk: bit for bit what was put there, and only under the settings they were measured under."""

from __future__ import annotations

import pytest
import torch

from taylorder.errors import TaylorderError
from taylorder.storage.records import Records

SETTINGS = {"seed": 0, "text": "prose", "lengths": [64, 128]}
AWKWARD = [0.1 + 0.2, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, float("inf"), float("nan"), 2.0**-1074 * 3]


def test_floats_come_back_bit_for_bit(tmp_path):
    Records(tmp_path / "kept", SETTINGS).put("piece", {"errors": AWKWARD, "none": None})
    value = Records(tmp_path / "kept", SETTINGS).get("piece")
    assert value["none"] is None
    assert [each.hex() for each in value["errors"]] == [each.hex() for each in AWKWARD]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_tensors_come_back_bit_for_bit(tmp_path, dtype):
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(3, 5, 4, generator=generator).to(dtype)
    tensors = {"whole": whole, "turned": whole.mT, "cut": whole[:, 1:3]}
    Records(tmp_path, SETTINGS).put("piece", [], tensors)
    found = Records(tmp_path, SETTINGS).tensors("piece")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], tensor)


def test_a_piece_that_was_never_put_is_none_and_has_no_tensors(tmp_path):
    records = Records(tmp_path, SETTINGS)
    records.put("without", 1)
    assert records.get("piece") is None
    assert records.tensors("piece") == {}
    assert records.tensors("without") == {}


def test_the_same_settings_in_another_order_keep_the_pieces(tmp_path):
    Records(tmp_path, SETTINGS).put("piece", 1)
    assert Records(tmp_path, dict(reversed(SETTINGS.items()))).get("piece") == 1


@pytest.mark.parametrize("changed", [{"seed": 1}, {"seed": 0.5}, {"lengths": [64]}, {"more": None}])
def test_other_settings_empty_the_directory(tmp_path, changed):
    Records(tmp_path, SETTINGS).put("piece", 1, {"t": torch.ones(2)})
    emptied = Records(tmp_path, SETTINGS | changed)
    assert emptied.get("piece") is None
    assert emptied.tensors("piece") == {}
    assert Records(tmp_path, SETTINGS).get("piece") is None


def test_fresh_empties_the_directory(tmp_path):
    Records(tmp_path, SETTINGS).put("piece", 1)
    assert Records(tmp_path, SETTINGS, fresh=True).get("piece") is None
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]


@pytest.mark.parametrize(
    "text", ["", '{"errors": [0.', "\x00", '{"a": 1}', "[]", "null", "3", '{"errors": [0.5]}', "[" * 10**5]
)
def test_a_damaged_value_counts_as_not_finished(tmp_path, text):
    records = Records(tmp_path, SETTINGS)
    records.put("piece", {"errors": [0.5]})
    (tmp_path / "piece.json").write_text(text)
    assert records.get("piece") is None


def test_a_piece_counts_under_its_own_name_and_settings_alone(tmp_path):
    ours, theirs = Records(tmp_path / "ours", SETTINGS), Records(tmp_path / "theirs", {**SETTINGS, "seed": 1})
    for records in (ours, theirs):
        records.put("piece", [1], {"t": torch.ones(2)})
    for source, name in (("ours/piece", "ours/other"), ("theirs/piece", "ours/piece")):
        for kind in ("json", "safetensors"):
            (tmp_path / f"{name}.{kind}").write_bytes((tmp_path / f"{source}.{kind}").read_bytes())
    assert ours.get("other") is None
    assert ours.get("piece") is None
    assert theirs.get("piece") == [1]


@pytest.mark.parametrize("tensors", [{"t": torch.ones(2)}, {}])
def test_a_piece_counts_with_its_own_tensors_alone(tmp_path, tensors):
    records = Records(tmp_path, SETTINGS)
    records.put("piece", 1, tensors)
    records.put("other", 1, {"t": torch.zeros(2)})
    assert records.get("piece") == 1
    (tmp_path / "piece.safetensors").write_bytes((tmp_path / "other.safetensors").read_bytes())
    assert records.get("piece") is None


def test_a_piece_put_again_without_tensors_has_none(tmp_path):
    records = Records(tmp_path, SETTINGS)
    records.put("piece", 1, {"t": torch.ones(2)})
    records.put("piece", 2)
    assert records.get("piece") == 2
    assert records.tensors("piece") == {}


def test_settings_made_to_fit_do_not_make_the_pieces_fit(tmp_path):
    Records(tmp_path / "theirs", {**SETTINGS, "seed": 1}).put("piece", 1)
    Records(tmp_path / "ours", SETTINGS)
    (tmp_path / "theirs/settings.json").write_bytes((tmp_path / "ours/settings.json").read_bytes())
    assert Records(tmp_path / "theirs", SETTINGS).get("piece") is None


def test_damaged_tensors_are_refused_with_the_way_out(tmp_path):
    records = Records(tmp_path, SETTINGS)
    records.put("piece", 1, {"t": torch.ones(2)})
    (tmp_path / "piece.safetensors").write_bytes(b"\x08")
    assert records.get("piece") is None
    with pytest.raises(TaylorderError, match=r"piece\.safetensors cannot be read .*; start over with --fresh"):
        records.tensors("piece")


def test_a_value_stands_only_beside_its_tensors(tmp_path, monkeypatch):
    """Interrupted between the two, a piece is not there."""
    records = Records(tmp_path, SETTINGS)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(records, "_write", stop)
    with pytest.raises(KeyboardInterrupt):
        records.put("piece", 1, {"t": torch.ones(2)})
    assert torch.equal(records.tensors("piece")["t"], torch.ones(2))
    assert records.get("piece") is None


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_directory_that_cannot_be_made_is_refused(tmp_path, place):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(TaylorderError, match="file.* cannot be written .*; name another --out"):
        Records(tmp_path / place, SETTINGS)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_directory_that_goes_away_is_refused(tmp_path):
    records = Records(tmp_path / "kept", SETTINGS)
    (tmp_path / "kept" / "settings.json").unlink()
    (tmp_path / "kept").rmdir()
    (tmp_path / "kept").write_text("mine")
    with pytest.raises(TaylorderError, match="kept cannot be written .*; name another --out"):
        records.put("piece", 1, {"t": torch.ones(2)})


def test_records_name_what_is_finished_and_tell_whether_others_were_there(tmp_path):
    records = Records(tmp_path, SETTINGS)
    for name in ("layer-model.layers.1.self_attn", "layer-model.layers.0.self_attn", "broken"):
        records.put(name, 1)
    (tmp_path / "broken.json").write_text("{")
    again = Records(tmp_path, SETTINGS)
    assert (records.replaced, again.replaced) == (False, False)
    assert again.names() == ["layer-model.layers.0.self_attn", "layer-model.layers.1.self_attn"]
    other = Records(tmp_path, SETTINGS | {"seed": 1})
    assert (other.replaced, other.names()) == (True, [])
    assert not Records(tmp_path, SETTINGS).replaced, "nothing was there"
    records.put("piece", 1)
    assert not Records(tmp_path, SETTINGS | {"seed": 2}, fresh=True).replaced
