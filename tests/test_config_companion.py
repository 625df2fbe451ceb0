"""A config and the tensors beside it: both of one config, whatever was copied, edited or interrupted."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
import torch
from config_forms import (
    DIM,
    EXACT,
    KV_HEADS,
    MODULES,
    PLAIN,
    RANKED,
    WINDOW,
    centres,
    config_of,
    example,
    save_first,
    vouch,
)
from safetensors.torch import load_file, save_file

from taylorder.adapt.config import OrderConfig
from taylorder.errors import ConfigError


@pytest.fixture
def path(tmp_path):
    """The example with key centres, saved."""
    example().with_key_centres(centres()).save(tmp_path / "orders.json")
    return tmp_path / "orders.json"


def test_tensors_of_another_config_are_refused(path, tmp_path):
    other = tmp_path / "other" / "orders.json"
    example().with_key_centres(centres(1)).save(other)
    ours = path.with_suffix(".safetensors")
    ours.write_bytes(other.with_suffix(".safetensors").read_bytes())
    with pytest.raises(
        ConfigError, match=r"orders\.safetensors: its SHA-256 is .{64}, and the config .* names .{64}: one"
    ):
        OrderConfig.load(path)


def test_missing_tensors_are_refused(path):
    path.with_suffix(".safetensors").unlink()
    with pytest.raises(ConfigError, match=r"orders\.safetensors: it is not there, and the config names it; copy it"):
        OrderConfig.load(path)


def test_stale_tensors_beside_a_config_that_names_none_are_not_read(path):
    stale = path.with_suffix(".safetensors").read_bytes()
    example().save(path)
    assert not path.with_suffix(".safetensors").exists()
    path.with_suffix(".safetensors").write_bytes(stale)
    with pytest.raises(ConfigError, match=r"orders\.safetensors lies beside orders\.json, which names no tensors: re"):
        OrderConfig.load(path)


def test_a_config_under_another_name_finds_its_tensors_by_theirs(path):
    config = OrderConfig.load(path)
    best = path.rename(path.with_name("best.json"))
    assert OrderConfig.load(best) == config
    path.with_suffix(".safetensors").rename(best.with_suffix(".safetensors"))
    with pytest.raises(ConfigError, match=r"best\.safetensors lies beside best\.json, which names orders\.saf"):
        OrderConfig.load(best)


LATER = config_of(WINDOW, EXACT, PLAIN, RANKED)


def cut_short(config, path, monkeypatch, step):
    """Save, interrupted before the first or second change to a file that is there under its name."""
    replace, unlink, steps = os.replace, Path.unlink, []

    def before(change, *arguments, **options):
        steps.append(change)
        if len(steps) == step:
            raise KeyboardInterrupt
        change(*arguments, **options)

    def removing(target, **options):
        change = unlink if target.name.endswith(".tmp") else partial(before, unlink)
        change(target, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", partial(before, replace))
        patch.setattr(Path, "unlink", removing)
        config.save(path)


@pytest.mark.parametrize("form", [save_first, OrderConfig.save])
@pytest.mark.parametrize("later", [LATER, LATER.with_key_centres(centres(2))])
def test_a_save_cut_short_before_its_first_rename_leaves_the_earlier_config(path, monkeypatch, form, later):
    earlier = OrderConfig.load(path)
    form(earlier, path)
    cut_short(later, path, monkeypatch, 1)
    assert OrderConfig.load(path) == earlier
    assert sorted(file.name for file in path.parent.iterdir()) == ["orders.json", "orders.safetensors"]


@pytest.mark.parametrize("form", [save_first, OrderConfig.save])
@pytest.mark.parametrize(
    "later, words", [(LATER, "which names no tensors"), (LATER.with_key_centres(centres(2)), "its SHA-256 is")]
)
def test_a_save_cut_short_between_its_renames_is_never_a_mixture(path, monkeypatch, form, later, words):
    form(OrderConfig.load(path), path)
    cut_short(later, path, monkeypatch, 2)
    with pytest.raises(ConfigError, match=words):
        OrderConfig.load(path)
    later.save(path)
    assert OrderConfig.load(path) == later


@pytest.mark.parametrize("config", [example(), example().with_key_centres(centres())])
def test_a_models_weights_are_not_replaced_by_a_config(tmp_path, config):
    weights = tmp_path / "model.safetensors"
    save_file({"model.layers.0.self_attn.q_proj.weight": torch.ones(2, 2)}, weights)
    before = weights.read_bytes()
    with pytest.raises(
        ConfigError, match="q_proj.weight, no tensor of a config, and saving model.json would replace it"
    ):
        config.save(tmp_path / "model.json")
    assert weights.read_bytes() == before
    assert not (tmp_path / "model.json").exists()
    with pytest.raises(ConfigError, match="save it under a name that ends in .json"):
        config.save(weights)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t: t.to(torch.float8_e4m3fn), "has dtype torch.float8_e4m3fn, expected torch.float32"),
        (lambda t: t.to(torch.complex64), "has dtype torch.complex64, expected torch.float32"),
        (lambda t: t.to(torch.int64), "has dtype torch.int64, expected torch.float32"),
        (lambda t: t.bool(), "has dtype torch.bool, expected torch.float32"),
        (lambda t: t.double(), "has dtype torch.float64, expected torch.float32"),
        (lambda t: t.bfloat16(), "has dtype torch.bfloat16, expected torch.float32"),
        (lambda t: t.to(torch.float8_e8m0fnu), "tensors of type 'F8_E8M0' cannot be read"),
        (lambda t: t[0], "has shape (8,), expected (2, 8)"),
        (lambda t: t * float("inf"), "holds NaN or infinite values"),
    ],
)
@pytest.mark.parametrize("form", [save_first, OrderConfig.save])
def test_tensors_of_another_kind_are_refused(path, change, words, form):
    form(OrderConfig.load(path), path)
    tensors = path.with_suffix(".safetensors")
    save_file({name: change(tensor).contiguous() for name, tensor in load_file(tensors).items()}, tensors)
    if form is OrderConfig.save:
        vouch(path)
    with pytest.raises(ConfigError) as caught:
        OrderConfig.load(path)
    assert words in str(caught.value)
    assert str(tensors) in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.float8_e5m2, torch.bool])
def test_centres_that_are_no_real_numbers_are_refused(dtype):
    with pytest.raises(
        ConfigError, match=f"key centre of layer layers.0.attn has dtype {dtype}, expected torch.float32"
    ):
        example().with_key_centres({name: torch.zeros(KV_HEADS, DIM).to(dtype) for name in MODULES})


def test_tensors_of_a_layer_that_is_not_listed_are_refused(path):
    tensors = path.with_suffix(".safetensors")
    save_file(load_file(tensors) | {"layers.7.attn.key_centre": torch.zeros(2, 8)}, tensors)
    with pytest.raises(
        ConfigError, match=r"key centres are given for layer layers\.7\.attn, which the config does not"
    ):
        OrderConfig.load(vouch(path))
