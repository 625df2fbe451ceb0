"""Configs of all sorts for a tiny model, with and without ranks, and what the model has to compute with a config."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from tiny import tokens
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from taylorder.adapt.config import HeadOrder, LayerOrders, ModelIdentity, OrderConfig
from taylorder.adapt.probe import priorities, probe_width
from taylorder.analysis.capture import run_layers
from taylorder.analysis.truncation import key_centres
from taylorder.kernels import HeadSpec, reference_attention
from taylorder.kernels.spec import Exact, Near, Taylor
from taylorder.models.describe import describe
from taylorder.selection.rotations import balanced_rotations


def mixed_config(model, seed=0, description=None):
    """Orders 1 to 4, all expansions, windows and sinks, exact groups; layers that have to be, exact."""
    description = description or describe(model, "tiny")
    generator = torch.Generator().manual_seed(seed)

    def draw(n):
        return int(torch.randint(n, (), generator=generator))

    layers = []
    for module in description.modules:
        heads = []
        for kv_head in range(module.kv_heads):
            if module.stays_exact is not None or (kv_head == 0 and draw(4) == 0):
                heads += [HeadOrder(spec=HeadSpec(Exact()), error=0.0)] * module.group
                continue
            near = Near(draw(8), draw(3)) if module.causal else Near()
            family = [["zero"], ["centre", "mean"]][draw(2)]
            heads += [
                HeadOrder(spec=HeadSpec(Taylor(1 + draw(4), family[draw(len(family))]), near))
                for _ in range(module.group)
            ]
        layers.append(LayerOrders.of(module, description, heads))
    config = OrderConfig(model=ModelIdentity.of(description), layers=tuple(layers))
    centres = {m.name: 0.3 * torch.randn(m.kv_heads, m.head_dim, generator=generator) for m in description.modules}
    return config.with_key_centres(centres)


PROBE_TEXT = {"text": "random numbers", "tokens": 1, "sha256": "0" * 64}


def keeping_config(model, seed=0):
    """:func:`mixed_config`, in which KV heads that are not exact keep 1 to 8 keys by random probes."""
    description = describe(model, "tiny")
    config = mixed_config(model, seed)
    generator = torch.Generator().manual_seed(seed + 100)
    layers = []
    for module, layer in zip(description.modules, config.layers, strict=True):
        heads = []
        for group in module.groups(layer.heads):
            kept = 0 if isinstance(group[0].spec.far, Exact) else 1 + int(torch.randint(8, (), generator=generator))
            near = replace(group[0].spec.near, kept=kept)
            heads += [head.model_copy(update={"spec": replace(head.spec, near=near)}) for head in group]
        layers.append(LayerOrders(module=layer.module, heads=tuple(heads)))
    config = OrderConfig(model=config.model, layers=tuple(layers)).with_key_centres(config.key_centres)
    return config.with_probes(random_probes(description, seed), PROBE_TEXT)


def random_probes(description, seed=0):
    """Probes for every layer of a model."""
    generator = torch.Generator().manual_seed(seed)
    return {
        module.name: torch.randn(module.kv_heads, probe_width(module.head_dim, module.value_dim), generator=generator)
        for module in description.modules
    }


HALF, FULL, NONE = 0.5, 1.0, 0.0


def group(module, kind, share):
    """Decisions for one group: two orders and two expansions on shared ranks, plain Taylor, or exact."""
    if kind == "exact" or module.stays_exact is not None:
        return (HeadOrder(spec=HeadSpec(Exact()), error=0.0),) * module.group
    near = Near(5, 2) if module.causal else Near()
    if kind == "plain":
        return (HeadOrder(spec=HeadSpec(Taylor(3), near)),) * module.group
    d, few = module.head_dim, int(module.head_dim * share)
    ranks = (0, d, few, few if share == FULL else 2)
    pairs = [(4, "mean"), (3, "centre")] * module.group
    return tuple(
        HeadOrder(spec=HeadSpec(Taylor(order, expansion, ranks[:order] if share else None), near))
        for order, expansion in pairs[: module.group]
    )


def ranked_config(model, share=HALF):
    """Ranked KV heads beside plain and exact ones; centres and rotations measured on random tokens.

    ``share`` is that of the coordinates that degree 2 uses; ``NONE`` leaves ranks and rotations out.
    """
    description = describe(model, "tiny")
    kinds = [["ranked", "plain"], ["exact", "ranked"], ["ranked", "ranked"], ["exact", "ranked"]]
    layers = []
    for module, row in zip(description.modules, kinds, strict=False):
        chosen = [group(module, row[kv_head % 2], share) for kv_head in range(module.kv_heads)]
        layers.append(LayerOrders(module=module.name, heads=tuple(head for heads in chosen for head in heads)))
    config = OrderConfig(model=ModelIdentity.of(description), layers=tuple(layers))
    centres, rotations = {}, {}

    def consume(name, layer):
        centres[name] = key_centres(layer)
        rotations[name] = balanced_rotations(layer, centres[name])

    run_layers(model, tokens(4, 48, seed=9), consume)
    config = config.with_key_centres(centres)
    return config.with_rotations(rotations) if share else config


def reference_output(model, config, **inputs):
    """The model in float64 with an attention function of the test's own, built on the float64 reference."""
    names = {module: name for name, module in model.named_modules()}
    layers = {layer.module: layer.heads for layer in config.layers}

    def attend(module, query, key, value, attention_mask, scaling=None, **kwargs):
        causal = getattr(module, "is_causal", True)
        B, H, T, _ = query.shape
        G = key.shape[1]
        if attention_mask is None:
            attention_mask = torch.ones(B, 1, T, T, dtype=torch.bool)
            attention_mask = attention_mask.tril() if causal else attention_mask
        valid = attention_mask[:, 0].diagonal(dim1=-2, dim2=-1)
        output = torch.zeros(B, H, T, value.shape[-1], dtype=torch.float64)
        probe = config.probes.get(names[module])
        priority = None if probe is None else priorities(probe, key, value)
        learned, cap = kwargs.get("s_aux"), kwargs.get("softcap")
        for h, head in enumerate(layers[names[module]]):
            g = h // (H // G)
            far = head.spec.far
            if isinstance(far, Exact):
                scores = scaling * query[:, h] @ key[:, g].transpose(1, 2)
                scores = scores if cap is None else cap * torch.tanh(scores / cap)
                scores = scores.masked_fill(~attention_mask[:, 0], -1e300)
                if learned is not None:
                    scores = torch.cat([scores, learned[h].double().expand(B, T, 1)], -1)
                output[:, h] = scores.softmax(-1)[..., : key.shape[2]] @ value[:, g]
                continue
            q, k = query[:, h], key[:, g]
            shift = torch.zeros(B, 1, T, dtype=torch.float64)
            if far.expansion != "zero":
                centre = config.key_centres[names[module]][g].double()
                k, shift = k - centre, scaling * (q @ centre)[:, None]
            if far.ranks is not None:
                query_rotation, key_rotation = (matrix[g].double() for matrix in config.rotations[names[module]])
                q, k = q @ query_rotation.mT, k @ key_rotation.mT
            spec = HeadSpec(replace(far, expansion="mean" if far.expansion == "mean" else "centre"), head.spec.near)
            alone, _ = reference_attention(
                q[:, None],
                k[:, None],
                value[:, g : g + 1],
                [spec],
                scaling=scaling,
                causal=causal,
                valid=valid,
                priority=None if priority is None else priority[:, g : g + 1],
                sink_logits=None if learned is None else learned[h : h + 1],
                softcap=cap,
                shift=shift,
            )
            output[:, h] = alone[:, 0]
        return output.transpose(1, 2).contiguous(), None

    AttentionInterface.register("test_reference", attend)
    AttentionMaskInterface.register("test_reference", sdpa_mask)
    double = copy.deepcopy(model).double()
    names = {module: name for name, module in double.named_modules()}
    double.set_attn_implementation("test_reference")
    with torch.no_grad():
        return double(**inputs)[0]
