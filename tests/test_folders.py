"""A folder that holds no model: the one inside that does is named, likeliest first."""

from __future__ import annotations

import json
import os

import pytest

from taylorder.errors import UnsupportedModelError, UsageError
from taylorder.models.architecture import without_weights
from taylorder.models.folders import models_inside, other_format
from taylorder.models.loading import load

CONFIG = json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"})


def make(root, *names, text=CONFIG):
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "config.json").write_text(text, encoding="utf-8")


def inside(root):
    return [str(path.relative_to(root)) for path in models_inside(root)]


def test_the_checkpoint_of_most_steps_comes_first(tmp_path):
    make(tmp_path, "checkpoint-500", "checkpoint-1500", "checkpoint-1000", "runs/other")
    assert inside(tmp_path) == ["checkpoint-1500", "checkpoint-1000", "checkpoint-500", "runs/other"]


@pytest.mark.parametrize("above", ["", "hub"])
def test_the_main_snapshot_of_a_hub_cache_comes_first(tmp_path, above):
    cache = tmp_path / above / "models--a--b"
    make(cache, "snapshots/0a1", "snapshots/9f2")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("9f2\n")
    (cache / "blobs").mkdir()
    assert [path.name for path in models_inside(tmp_path)] == ["9f2", "0a1"]
    assert [path.name for path in models_inside(cache / "snapshots")] == ["9f2", "0a1"]


def test_the_transformer_of_sentence_transformers_and_no_pooling(tmp_path):
    make(tmp_path, "0_Transformer")
    make(tmp_path, "1_Pooling", text='{"word_embedding_dimension": 32, "pooling_mode_cls_token": false}')
    assert inside(tmp_path) == ["0_Transformer"]


def test_hidden_unreadable_and_linked_folders_do_no_harm(tmp_path):
    make(tmp_path, ".git/a", "with [brackets] and spaces", "deep/er/est/of/all")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_bytes(b"\xff\xfe")
    (tmp_path / "folder" / "config.json").mkdir(parents=True)
    found = inside(tmp_path)
    assert found[0] == "with [brackets] and spaces"
    assert not any("git" in name or "broken" in name or name.startswith(("deep", "folder")) for name in found)


def test_the_search_ends_in_large_folders(tmp_path):
    make(tmp_path, *(f"model-{place}" for place in range(9)))
    assert len(models_inside(tmp_path, most=5)) == 5


def refused(name):
    with pytest.raises(UsageError) as caught:
        load(str(name))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_to_name_instead_is_said(tmp_path):
    assert refused(tmp_path).endswith("has no config.json: expected a folder written by save_pretrained.")
    make(tmp_path, "checkpoint-7")
    assert refused(tmp_path) == (
        f"{tmp_path} has no config.json: name the folder of the model inside: {tmp_path}/checkpoint-7."
    )
    make(tmp_path, "checkpoint-8", "checkpoint-9")
    assert refused(tmp_path).endswith(
        f"inside: {tmp_path}/checkpoint-9, or another of the 3 inside, such as {tmp_path}/checkpoint-8."
    )
    (tmp_path / "orders.json").write_text("{}")
    assert "it is what `taylorder analyze` wrote, not a model; `taylorder show` and `eval` read it" in refused(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "MODEL is empty"), ("  ", "MODEL is empty"), ("x" * 300, "... of 300 bytes cannot be looked at"),
        ("a\0b", "cannot be looked at"), ("~nobody-of-that-name/model", "cannot be looked at"),
    ],
)  # fmt: skip
def test_names_that_cannot_be_a_model_are_refused(name, message):
    assert message in refused(name)
    assert len(os.fsencode(refused(name))) < 250


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (("model.bin", "config.json", "shared_vocabulary.json"), r"format of CTranslate2 \(model\.bin\)"),
        (("onnx/model.onnx", "config.json", "tokenizer.json"), r"format of ONNX \(onnx/model\.onnx\)"),
        (("model.onnx",), r"format of ONNX \(model\.onnx\)"),
    ],
)
def test_a_model_that_other_programs_run_is_called_by_its_format(tmp_path, files, words):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(CONFIG)
    with pytest.raises(UnsupportedModelError, match=f"{words}.*name the folder of the weights that it was made of"):
        load(str(tmp_path))
    assert without_weights(str(tmp_path)) is None
    (tmp_path / "model.safetensors").touch()
    assert (other_format(tmp_path) is None) == (
        "model.bin" not in files
    )  # an export beside the weights is no hindrance
