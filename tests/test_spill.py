"""What is put on disk comes back bit for bit, laid out as it was, and leaves nothing behind."""

from __future__ import annotations

import pytest
import torch

from taylorder.errors import TaylorderError
from taylorder.storage.spill import Spill


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_tensors_come_back_as_they_were(tmp_path, dtype):
    fused = torch.randn(5, 3, 4, 7).to(dtype)
    tensors = {
        "plain": torch.randn(3, 4, 5).to(dtype),
        "turned": torch.randn(4, 3, 5).to(dtype).transpose(0, 1),
        "part": fused[:, 1].transpose(0, 1),
        "other part": fused[:, 2].transpose(0, 1),
        "empty": torch.zeros(0, 4, dtype=dtype),
    }
    with Spill(tmp_path / "spilled") as spilled:
        spilled.put("layer", tensors)
        spilled.put("other", {"plain": torch.ones(2)})
        found = spilled.take("layer")
        assert list(spilled.take("other")) == ["plain"]
        assert not list((tmp_path / "spilled").iterdir())  # nothing is kept longer than it has to
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor)
        assert found[name].dtype == dtype
        order = sorted(range(tensor.ndim), key=lambda dim, of=tensor: -of.stride(dim))
        assert sorted(range(tensor.ndim), key=lambda dim, of=found[name]: -of.stride(dim)) == order
        if name == "turned":
            assert found[name].stride() == tensor.stride()


def test_the_folder_is_gone_afterwards_whatever_happens(tmp_path):
    folder = tmp_path / "spilled"
    folder.mkdir()
    (folder / "left by a run that was killed.safetensors").write_bytes(b"x")
    with pytest.raises(KeyError), Spill(folder) as spilled:
        assert not list(folder.iterdir())
        spilled.put("layer", {"q": torch.ones(3)})
        spilled.take("another")
    assert not folder.exists()


def test_a_disk_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(TaylorderError, match=r"spilled cannot be written \(Not a directory\); name another --out"):
        Spill(tmp_path / "file" / "spilled")
    with Spill(tmp_path / "spilled") as spilled:
        (tmp_path / "spilled").rmdir()
        with pytest.raises(TaylorderError, match=r"spilled cannot be written \(.*No such file.*\); name another --out"):
            spilled.put("layer", {"q": torch.ones(3)})
        (tmp_path / "spilled").mkdir()
        spilled.put("layer", {"q": torch.ones(3)})
        (tmp_path / "spilled" / "layer.safetensors").write_bytes(b"nonsense")
        with pytest.raises(TaylorderError, match=r"layer\.safetensors cannot be read \(.*run the same command again"):
            spilled.take("layer")
