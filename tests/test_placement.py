"""What --device-map takes, and what it refuses before anything is loaded."""

from __future__ import annotations

import json

import pytest

from taylorder.errors import UsageError
from taylorder.models.loading import load
from taylorder.models.placement import STRATEGIES, Placement, refuse_device_map


@pytest.fixture
def map_file(tmp_path):
    def write(content):
        path = tmp_path / "map.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return str(path)

    return write


def test_a_device_a_strategy_or_a_file(map_file):
    assert Placement.of("cuda:1", None) == Placement("cuda:1", None)
    assert str(Placement.of("cuda:1", None)) == "cuda:1"
    for name in STRATEGIES:
        assert Placement.of("cpu", name).device_map == name
        assert str(Placement.of("cpu", name)) == f"device map {name}"
    modules = {"model.embed_tokens": 0, "model.layers.0": "disk", "": "cpu"}
    assert Placement.of("cpu", map_file(modules)).device_map == modules


@pytest.mark.parametrize(
    "content, words",
    [
        ("{", r"map\.json is no JSON \(.*expected auto, balanced, sequential, or a JSON file"),
        ("[1]", r"map\.json holds \[1\], expected auto"),
    ],
)
def test_a_file_that_is_no_map_is_refused(map_file, content, words):
    with pytest.raises(UsageError, match=words):
        Placement.of("cpu", map_file(content))


def test_what_is_neither_a_strategy_nor_a_file_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"--device-map automatic is not there, expected auto, balanced, sequential"):
        Placement.of("cpu", "automatic")
    with pytest.raises(UsageError, match=r"cannot be read \(Is a directory\), expected auto"):
        Placement.of("cpu", str(tmp_path))
    with pytest.raises(UsageError, match=r"--device is cuda and --device-map auto, which names all devices: leave out"):
        Placement.of("cuda", "auto")


@pytest.mark.parametrize(
    "device_map, words",
    [
        ("automatic", r"the device map is 'automatic', expected auto, balanced, sequential"),
        ({}, r"the device map is empty, expected auto"),
        ({"model": 1.5}, r"the device map has 1\.5 for 'model', expected the number of a GPU"),
        ({"model": True}, r"the device map has True for 'model'"),
        ({"model": "disk", "lm_head": "gpu"}, r"device gpu cannot be used here \(.*\): take cpu"),
    ],
)
def test_a_map_that_cannot_be_kept_is_refused(device_map, words, folder):
    with pytest.raises(UsageError, match=words):
        refuse_device_map(device_map)
    with pytest.raises(UsageError, match=words):
        load(str(folder), device_map=device_map)


def test_a_map_that_leaves_modules_out_is_refused(folder):
    words = r"the device map does not fit .*model \(The device_map provided .*\): give every module a place"
    with pytest.raises(UsageError, match=words):
        load(str(folder), device_map={"model.layers.0": "cpu", "model.norm": "disk"})
