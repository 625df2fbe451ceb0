"""Ranks and rotations in a config: what is written is read back, and what would change scores is refused."""

from __future__ import annotations

import re

import pytest
import torch
from config_forms import edit, save_changed
from descriptions import centres, description
from safetensors.torch import load_file

from taylorder.adapt.config import HeadOrder, LayerOrders, ModelIdentity, OrderConfig
from taylorder.adapt.prepared import execution_digest
from taylorder.errors import ConfigError
from taylorder.kernels.spec import HeadSpec, Taylor

FIRST, SECOND = "layers.0.attn", "layers.1.attn"


def pair(seed=0, kv_heads=2, d=8):
    """A random ``A_q`` and the ``A_k`` that belongs to it."""
    query = torch.randn(kv_heads, d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    query = query + 3 * torch.eye(d)
    return query, torch.linalg.inv(query).mT.contiguous()


def ranked(ranks=(8, 8, 4), layers=(SECOND,), **options):
    """The tiny description's config, with those ranks on every head of ``layers``."""
    model = description()
    with_ranks = HeadOrder(spec=HeadSpec(Taylor(len(ranks), "mean", ranks)), **options)
    plain = HeadOrder(spec=HeadSpec(Taylor(3, "mean")))
    chosen = [(m.name, with_ranks if m.name in layers else plain) for m in model.modules]
    orders = tuple(LayerOrders(module=name, heads=(head,) * 4) for name, head in chosen)
    return OrderConfig(model=ModelIdentity.of(model), layers=orders)


@pytest.mark.parametrize("with_centres", [False, True])
def test_rotations_of_some_layers_are_read_back_equal(tmp_path, with_centres):
    config = ranked()
    config = config.with_key_centres(centres(description())) if with_centres else config
    config = config.with_rotations({SECOND: pair()})
    config.save(tmp_path / "orders.json")
    back = OrderConfig.load(tmp_path / "orders.json", description())
    assert back == config
    assert back.layers[1].heads[0].spec.ranks == (8, 8, 4)
    assert set(back.rotations) == {SECOND}
    assert len(back.key_centres) == (2 if with_centres else 0)
    for found, given in zip(back.rotations[SECOND], pair(), strict=True):
        assert found.dtype == torch.float32
        assert torch.equal(found, given.float())
    names = set(load_file(tmp_path / "orders.safetensors"))
    assert {name for name in names if "rotation" in name} == {f"{SECOND}.query_rotation", f"{SECOND}.key_rotation"}


def test_configs_with_other_rotations_are_not_equal_and_have_another_digest():
    plain = ranked()
    one, same, other = (plain.with_rotations({SECOND: pair(seed)}) for seed in (0, 0, 1))
    assert one == same
    assert one != other
    assert one != plain
    assert plain.rotations == {}
    assert execution_digest(one) == execution_digest(same)
    assert len({execution_digest(config) for config in (plain, one, other)}) == 3
    fewer = ranked((8, 8, 3)).with_rotations({SECOND: pair()})
    assert execution_digest(fewer) != execution_digest(one)


def test_tensors_survive_each_other():
    config = ranked().with_rotations({SECOND: pair()}).with_key_centres(centres(description()))
    assert set(config.rotations) == {SECOND}
    again = config.with_rotations({FIRST: pair()})
    assert set(again.rotations) == {FIRST}
    assert len(again.key_centres) == 2


def test_every_layer_with_ranks_needs_rotations():
    config = ranked(layers=(FIRST, SECOND)).with_rotations({FIRST: pair()})
    with pytest.raises(ConfigError) as caught:
        config.check(description())
    message = str(caught.value)
    assert message.startswith(f"layer {SECOND} has ranks and no rotations; ")
    assert "orders.safetensors" in message
    assert "with_rotations" in message
    config.with_rotations({FIRST: pair(), SECOND: pair()}).check(description())
    ranked(layers=()).check(description())


query, key = pair()


@pytest.mark.parametrize(
    "given, words",
    [
        (
            {"layers.7.attn": (query, key)},
            "rotations are given for layer layers.7.attn, which the config does not list",
        ),
        ({SECOND: (query[:1], key)}, f"query rotation of layer {SECOND} has shape (1, 8, 8), expected (2, 8, 8)"),
        ({SECOND: (query, key[..., :4])}, f"key rotation of layer {SECOND} has shape (2, 8, 4), expected (2, 8, 8)"),
        ({SECOND: (query * torch.nan, key)}, f"query rotation of layer {SECOND} holds NaN or infinite values"),
        ({SECOND: (query, key.mT)}, f"rotations of layer {SECOND}: A_q^T A_k is"),
        ({SECOND: (query, 1.002 * key)}, "away from the identity, expected at most 0.001"),
    ],
)
def test_rotations_that_do_not_fit_are_refused(given, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        ranked().with_rotations(given)
    ranked().with_rotations({SECOND: (query, 1.0005 * key)})


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t: t.pop(f"{SECOND}.key_rotation"), f"layer {SECOND} has a query_rotation, expected a key_rotation"),
        (lambda t: t.pop(f"{SECOND}.query_rotation"), f"layer {SECOND} has a key_rotation, expected a query_rotation"),
        (lambda t: t.update({f"{SECOND}.rotation": key}), f"unknown tensor {SECOND}.rotation"),
        (
            lambda t: t.update({"x.query_rotation": query.float(), "x.key_rotation": key.float()}),
            "given for layer x, which the config does",
        ),
        (lambda t: t.update({f"{SECOND}.key_rotation": query.float()}), "away from the identity"),
        (lambda t: t.update({f"{FIRST}.key_centre": torch.zeros(2, 8)}), f"key centre of layer {SECOND} is missing"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, change, words):
    path = save_changed(ranked().with_rotations({SECOND: pair()}), tmp_path / "orders.json", change)
    with pytest.raises(ConfigError) as caught:
        OrderConfig.load(tmp_path / "orders.json")
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "ranks, words",
    [
        ([8, 8, 4, 5], "ranks is [8, 8, 4, 5], expected ranks that do not increase from degree 1 on"),
        ([8, 7, 4, 4], f"layer {SECOND}, head 0: ranks is [8, 7, 4, 4], expected head_dim = 8 coordinates at degree 1"),
        ([8, 9, 4, 4], f"layer {SECOND}, head 0: ranks is [8, 9, 4, 4], expected no rank above head_dim = 8"),
        ([9, 8, 4, 4], "expected no rank above head_dim = 8"),
        ([8, 8, 4, -1], "greater than or equal to 0, found -1"),
    ],
)
def test_ranks_out_of_place_are_refused(tmp_path, ranks, words):
    path = tmp_path / "orders.json"
    ranked((8, 8, 4, 4)).save(path)
    edit(path, lambda d: [kv_head.update(ranks=ranks) for kv_head in d["layers"][1]["kv_heads"]])
    with pytest.raises(ConfigError, match=re.escape(words)):
        OrderConfig.load(path)


@pytest.mark.parametrize("ranks", [(0,), (8, 8), (0, 8, 0), (8, 8, 8, 8), (0, 8, 5, 5, 1)])
def test_ranks_in_place_are_accepted(ranks):
    ranked(ranks).with_rotations({SECOND: pair()}).check(description())
