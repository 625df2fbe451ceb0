"""A config in which every KV head runs something else, and ways to have it on disk that ``save`` does not write."""

from __future__ import annotations

import hashlib
import json

import torch
from safetensors.torch import load_file, save_file

from taylorder.adapt.config import HeadOrder, LayerOrders, ModelIdentity, OrderConfig
from taylorder.adapt.decisions import FlatOrder
from taylorder.kernels.spec import Dropped, Exact, HeadSpec, Near, Taylor

HEADS, KV_HEADS, DIM = 6, 2, 8
MODULES = ("layers.0.attn", "layers.1.attn")


def config_of(*groups, **options):
    """A config of two layers from the decisions for its four KV heads."""
    identity = ModelIdentity(
        name="tiny", architecture="TinyForCausalLM", layers=2, heads=HEADS, kv_heads=KV_HEADS, head_dim=DIM,
        fingerprint="sha256:abc",
    )  # fmt: skip
    layers = [
        LayerOrders(module=name, heads=tuple(groups[2 * place]) + tuple(groups[2 * place + 1]))
        for place, name in enumerate(MODULES)
    ]
    return OrderConfig(model=identity, layers=tuple(layers), **options)


def taylor(order, expansion="zero", window=0, ranks=None, **about):
    return HeadOrder(spec=HeadSpec(Taylor(order, expansion, ranks), Near(window)), **about)


EXACT = [HeadOrder(spec=HeadSpec(Exact()), error=0.0, reason="cost", nominal_bytes=512)] * 3
WINDOW = [HeadOrder(spec=HeadSpec(Dropped(), Near(16, 4)))] * 3
PLAIN = [taylor(3, error=0.25), taylor(1, error=0.5), HeadOrder(spec=HeadSpec(Dropped()))]
RANKED = [
    taylor(order, expansion="mean", window=4, ranks=(8, 8, 5)[:order], nominal_bytes=99, reason=reason)
    for order, reason in ((3, "x"), (2, "y"), (1, None))
]


KEEPING = [HeadOrder(spec=HeadSpec(Dropped(), Near(16, 4, 12)))] * 3
PROBE_TEXT = {"text": "prose", "tokens": 6144, "sha256": "0" * 64}


def probes(seed=0, modules=MODULES, value_dim=DIM):
    """Random probes for keys of ``DIM`` numbers."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(KV_HEADS, DIM + value_dim + 5, generator=generator) for name in modules}


def example(**options):
    options = {"criterion": {"context": 8192}} | options
    return config_of(EXACT, WINDOW, PLAIN, RANKED, **options)


def centres(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(KV_HEADS, DIM, generator=generator) for name in MODULES}


def first_form(config):
    """The document of schema ``taylorder/orders@1``."""
    parts = config.model_dump(mode="json", include={"model", "calibration", "criterion", "software"})
    layers = [
        {
            "module": layer.module,
            "heads": [FlatOrder.of(head).model_dump(mode="json", exclude_defaults=True) for head in layer.heads],
        }
        for layer in config.layers
    ]
    return {"schema": "taylorder/orders@1", **parts, "layers": layers}


def save_first(config, path, change=lambda document: None):
    """Save in the first form, after ``change`` to its document."""
    config.save(path)
    document = first_form(config)
    change(document)
    path.write_text(json.dumps(document, indent=1))
    return path


def edit(path, change):
    """Apply ``change`` to the document at ``path``."""
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return path


def vouch(path):
    """Have the config at ``path`` name the tensors that lie beside it."""
    tensors = path.with_suffix(".safetensors")
    digest = hashlib.sha256(tensors.read_bytes()).hexdigest()
    return edit(path, lambda document: document.update(files={tensors.name: digest}))


def save_changed(config, path, change):
    """Save a config at ``path`` with its tensors changed; return where these are. The config names them as they are."""
    config.save(path)
    beside = path.with_suffix(".safetensors")
    tensors = load_file(beside)
    change(tensors)
    save_file(tensors, beside)
    vouch(path)
    return beside
