"""A thousand seeded mutations of what is kept on disk: each is refused by name, or read as exactly what it says.

Caches and records carry checksums: of them, nothing may come back but what was written. A config may be edited, so that
an edit that is allowed has to come back as a plain reading of the file understands it.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from config_forms import save_first, vouch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import TINY, tokens

import taylorder
from taylorder.adapt.cache import TaylorCache
from taylorder.adapt.config import HeadOrder, LayerOrders, ModelIdentity, OrderConfig
from taylorder.adapt.decisions import FlatOrder
from taylorder.adapt.prepared import prepare
from taylorder.errors import TaylorderError
from taylorder.kernels.spec import Dropped, Exact, HeadSpec, Near, Taylor
from taylorder.models.describe import describe
from taylorder.storage.records import Records

SETTINGS = {"seed": 0, "text": "prose"}
PIECES = {"first": {"rows": [0.1, -0.0, float("inf")], "fitted": {"2": [[1.0, 0.5]]}}, "second": [1, None, "x"]}


def config_for(description, window):
    """Exact, near field alone, plain, and ranked with rotations and centres."""
    exact = [HeadOrder(spec=HeadSpec(Exact()), error=0.0, reason="cost", nominal_bytes=512)] * 2
    near = [HeadOrder(spec=HeadSpec(Dropped(), Near(window, 4)))] * 2
    plain = [HeadOrder(spec=HeadSpec(Taylor(3, "centre", coefficients=(1.0, 0.9, 0.4)), Near(window)), error=0.25)]
    plain.append(HeadOrder(spec=HeadSpec(Taylor(1, "mean"), Near(window)), error=1 / 3, reason="group", break_even=300))
    ranked = [HeadOrder(spec=HeadSpec(Taylor(n, "mean", (8, 8, 5)[:n]), Near(4, 1))) for n in (3, 2)]
    first, second = (module.name for module in description.modules)
    config = OrderConfig(
        model=ModelIdentity.of(description),
        criterion={"policy": "drawn", "context": 64},
        calibration={"rows": [1, 2, {"a": 0.5}]},
        software={"python": "3.11"},
        layers=(
            LayerOrders(module=first, heads=tuple(exact + near)),
            LayerOrders(module=second, heads=tuple(plain + ranked)),
        ),
    )
    generator = torch.Generator().manual_seed(window)
    query = torch.randn(2, 8, 8, generator=generator, dtype=torch.float64) + 3 * torch.eye(8)
    config = config.with_rotations({second: (query, torch.linalg.inv(query).mT)})
    return config.with_key_centres({name: torch.randn(2, 8, generator=generator) for name in (first, second)})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of one model: configs in both forms, saved caches, records."""
    model = TINY["llama"]()
    description = describe(model, "tiny")
    root = tmp_path_factory.mktemp("runs")
    configs = {}
    for name, window in (("ours", 4), ("theirs", 6)):
        config = configs[name] = config_for(description, window)
        config.save(root / name / "orders.json")
        save_first(config, root / name / "first.json")
        cache = TaylorCache(model, config)
        with torch.no_grad(), taylorder.adapted(model, config):
            model(tokens(2, 30), past_key_values=cache)
        cache.save(root / name / "cache.safetensors")
        records = Records(root / name / "records", SETTINGS | {"run": name})
        for piece, value in PIECES.items():
            records.put(piece, value, {"t": torch.arange(6.0).view(2, 3)} if piece == "first" else None)
    return SimpleNamespace(root=root, model=model, description=description, config=configs["ours"])


# Mutations: each takes a generator of random numbers and a path, and changes the file


def flip(rng, path):
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 1, 2, 8])):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def cut(rng, path):
    content = path.read_bytes()
    start, stop = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    path.write_bytes(rng.choice([content[:start], content[stop:], content[:start] + content[stop:], b""]))


def repeat(rng, path):
    content = path.read_bytes()
    start, stop = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    path.write_bytes(content[:stop] + content[start:stop] + content[stop:])


def pad(rng, path):
    more = rng.choice([b"\x00", b"\x00" * 8, b"\xef\xbb\xbf", b" ", b"\n", b"{}", b"\xff"])
    content = path.read_bytes()
    path.write_bytes(rng.choice([more + content, content + more]))


def values(rng, path):
    """The same with values changed, which only a checksum can tell."""
    tensor(rng, path, kinds=6)


def swap(_rng, _path):
    """Marks what :func:`mutated` does itself: only it knows the other run."""


def key(rng, path):
    """Delete a key or an element, or put something in its place."""
    document = json.loads(path.read_text())
    places, pending = [], [document]
    while pending:
        inner = pending.pop()
        items = list(inner.items()) if isinstance(inner, dict) else list(enumerate(inner))
        places += [(inner, place) for place, _ in items]
        pending += [item for _, item in items if isinstance(item, dict | list)]
    inner, place = rng.choice(places)
    strange = [None, True, -3, 7, 0, 1.5, -0.0, 10**30, "", "7", "a" * 10**4, [], {}, [[]], {"a": 1}, "exact", "mean"]
    match rng.randrange(4):
        case 0:
            del inner[place]
        case 1 if isinstance(inner, dict):
            inner[rng.choice(["extra", "kept", "probe", "heads", "window", "order"])] = rng.choice(strange)
        case _:
            inner[place] = rng.choice(strange)
    path.write_text(json.dumps(document))


def twice(rng, path):
    """Write a key of an object a second time."""
    text = path.read_text()
    found = rng.choice(list(re.finditer(r'"(\w+)": ', text)))
    path.write_text(f'{text[: found.start()]}"{found[1]}": {rng.choice(["null", "1", "{}"])}, {text[found.start() :]}')


def number(rng, path):
    """Write something else where a number stands."""
    text = path.read_text()
    found = rng.choice(list(re.finditer(r"(?<=[\[ ])-?\d+(\.\d+)?(e-?\d+)?(?=[,\]}])", text)))
    extremes = ["1e999", "-1", "1e30", "9" * 50, "9" * 5000, "-0", "-0.0", "NaN", "-Infinity", "true", "null", '"7"']
    extremes += ["[]", "0x10", "01", "1e-999", "5e-324", "1.0", "[" * 200 + "]" * 200, "2", "3"]
    path.write_text(text[: found.start()] + rng.choice(extremes) + text[found.end() :])


def tensor(rng, path, kinds=5):
    """Change type, shape, name or number of tensors."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    held = load_file(path)
    name = rng.choice(sorted(held))
    chosen = held.pop(name)
    dtypes = [torch.float64, torch.bfloat16, torch.float8_e4m3fn, torch.complex64, torch.int32, torch.bool]
    match rng.randrange(kinds):
        case 0:
            held[name] = chosen.to(rng.choice([dtype for dtype in dtypes if dtype != chosen.dtype]))
        case 1:
            held[name] = rng.choice(
                [chosen[None], chosen[:1] if len(chosen) > 1 else chosen[:0], chosen.flatten()[None]]
            )
        case 2:
            held[rng.choice([f"{name}.x", "x", name.replace("1", "7") + "y", name[:-1]])] = chosen
        case 3:
            held |= {name: chosen, f"model.layers.9.{name.rpartition('.')[2]}": chosen.clone()}
        case 5:
            held[name] = chosen + torch.ones_like(chosen)
    save_file(held, path, metadata)


BYTES = (flip, cut, repeat, pad, swap)
TEXT, BINARY = (*BYTES, key, key, twice, number, number), (*BYTES, values, values)


def mutated(runs, tmp_path, seed, names, mutations):
    """A copy of our run in which one of these files was mutated; ``swap`` brings the other run's instead."""
    rng = random.Random(seed)
    here = tmp_path / str(seed)
    shutil.copytree(runs.root / "ours", here)
    name = rng.choice(names)
    mutation = rng.choice(mutations)
    if mutation is swap:
        shutil.copy(runs.root / "theirs" / name, here / name)
    else:
        mutation(rng, here / name)
    return here, here / name


# What is read


ABSENT = {"error": None, "expansion": "zero", "window": 0, "sinks": 0, "kept": 0, "ranks": None, "coefficients": None}
ABSENT |= {"reason": None, "nominal_bytes": None, "break_even": None}


def said(document):
    """What a document says of every head, read without the code under test."""
    heads = []
    for layer in document["layers"]:
        heads += [ABSENT | head for head in layer.get("heads", [])]
        for kv_head in layer.get("kv_heads", []):
            shared = {name: value for name, value in kv_head.items() if name not in ("runs", "heads")}
            for entry in kv_head["heads"]:
                head = dict(ABSENT)
                for source in (shared, entry):
                    head |= {name: value for name, value in source.items() if value is not None}
                head["nominal_bytes"] = head.pop("bytes", None)
                if entry["order"] is None:
                    head["coefficients"] = head["coefficients"] or [0.0]
                    head["order"] = len(head["coefficients"])
                head["ranks"] = head["ranks"] and head["ranks"][: head["order"]]
                heads.append(head)
    for head in heads:
        if head["coefficients"] and not any(head["coefficients"]):
            head |= {"order": 1, "expansion": "zero", "ranks": None, "coefficients": [0.0]}
        head["error"] = head["error"] and float(head["error"])
        head["coefficients"] = head["coefficients"] and [float(number) for number in head["coefficients"]]
    return heads


def outcome(runs, path):
    """How a config is read: ``refused``, ``same`` or ``edited``; fails where it is not what the file says."""
    try:
        config = OrderConfig.load(path, runs.description)
    except TaylorderError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 700
        return "refused"
    if config == runs.config:
        return "same"
    document = json.loads(path.read_bytes().decode("utf-8-sig"))
    heads = [head for layer in config.layers for head in layer.heads]
    assert [FlatOrder.of(head).model_dump(mode="json") for head in heads] == said(document)
    assert [layer.module for layer in config.layers] == [layer["module"] for layer in document["layers"]]
    assert config.model.model_dump() == document["model"]
    for name in ("calibration", "criterion", "software"):
        assert getattr(config, name) == document.get(name, {})
    assert repr(config.tensors()) == repr(runs.config.tensors())
    return "edited"


@pytest.mark.parametrize("name, count", [("orders.json", 250), ("first.json", 150)])
def test_a_mutated_config_is_refused_or_read_as_it_stands(runs, tmp_path, name, count):
    seen = Counter(outcome(runs, mutated(runs, tmp_path, seed, [name], TEXT)[1]) for seed in range(count))
    assert seen["refused"] > count / 2
    assert min(seen["same"], seen["edited"]) > count / 50


@pytest.mark.parametrize("vouched", [False, True])
def test_mutated_tensors_of_a_config_are_refused(runs, tmp_path, vouched):
    seen = Counter()
    for seed in range(100):
        here, _ = mutated(runs, tmp_path, seed, ["orders.safetensors"], (tensor,) if vouched else BINARY)
        if vouched:
            vouch(here / "orders.json")
        seen[outcome(runs, here / "orders.json")] += 1
    assert seen["refused"] > 95
    assert seen["edited"] == 0


def test_a_mutated_cache_is_refused(runs, tmp_path):
    original = (runs.root / "ours" / "cache.safetensors").read_bytes()
    prepared = prepare(runs.model, runs.config)
    refused = 0
    for seed in range(200):
        _, path = mutated(runs, tmp_path, seed, ["cache.safetensors"], BINARY)
        try:
            cache = TaylorCache.load(path, runs.model, prepared)
        except TaylorderError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            cache.save(path)
            assert path.read_bytes() == original
    assert refused > 190


def test_mutated_records_are_not_finished(runs, tmp_path):
    names = ["records/first.json", "records/first.safetensors", "records/second.json", "records/settings.json"]
    lost = 0
    for seed in range(250):
        here, _ = mutated(runs, tmp_path, seed, names, BYTES)
        records = Records(here / "records", SETTINGS | {"run": "ours"})
        for piece, value in PIECES.items():
            back = records.get(piece)
            lost += back is None
            assert back is None or repr(back) == repr(value)
    assert lost > 250
