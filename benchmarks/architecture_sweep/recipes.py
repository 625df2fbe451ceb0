"""The ways to a tiny config, tried in order, and what no rule on names can know about a model type."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from transformers import PreTrainedConfig

from .shrinking import (
    DEPTH,
    EXPERTS,
    FEED_FORWARD,
    HEADS,
    HIDDEN,
    KV_HEADS,
    TOKEN_IDS,
    VOCABULARY,
    WORDS,
    assign,
    shrink,
    surroundings,
)

Recipe = Callable[[Any], Any]

# Fields that are None by default although the model needs a number.
_GAPS = {
    "vocab_size": WORDS, "hidden_size": HIDDEN, "intermediate_size": FEED_FORWARD, "num_hidden_layers": 2,
    "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "num_experts": 4, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 32,
    "pad_token_id": 0, "prediction_length": 8,
}  # fmt: skip
_MANY_WORDS = 1024


def filled(config: Any) -> Any:
    """Shrunk, with numbers where the default is None and the model needs one."""
    shrink(config)
    for part in (config, *_nested(config)):
        for name, value in _GAPS.items():
            if name in vars(part) and getattr(part, name) is None:
                assign(part, name, value)
        if not hasattr(part, "pad_token_id"):
            assign(part, "pad_token_id", 0)
        rotary = getattr(part, "rope_parameters", None)
        if isinstance(rotary, dict) and "rope_type" in rotary:  # models fall back on sections for a head dim of 128
            rotary["mrope_section"] = [2, 3, 3] if rotary.get("partial_rotary_factor", 1) == 1 else [2, 1, 1]
    return config


def shallow(config: Any) -> Any:
    """Fewer layers, experts and words, all widths as the default has them."""
    fields = dict(vars(config))
    around = surroundings(fields)
    for name, value in fields.items():
        if isinstance(value, PreTrainedConfig):
            shallow(value)
        elif isinstance(value, list | tuple) and len(value) in around.depths and len(value) > around.layers:
            assign(config, name, value[: around.layers])
        elif isinstance(value, int) and not isinstance(value, bool) and value:
            if re.fullmatch(DEPTH, name):
                assign(config, name, around.layers)
            elif re.fullmatch(EXPERTS, name):
                assign(config, name, 4)
            elif re.fullmatch(VOCABULARY, name):
                assign(config, name, min(value, _MANY_WORDS))
            elif re.fullmatch(TOKEN_IDS, name) and value >= _MANY_WORDS:
                assign(config, name, 800 + sum(map(ord, name)) % 200)
    return config


def _nested(config: Any) -> list[Any]:
    return [value for value in vars(config).values() if isinstance(value, PreTrainedConfig)]


RECIPES: dict[str, Recipe] = {
    "shrunk": shrink,
    "shrunk, gaps filled": filled,
    "shrunk, head dims kept": lambda config: shrink(config, keep_head_dims=True),
    "fewer layers and words": shallow,
}


def _rotary_by_kind_of_layer(config: Any) -> None:
    config.rope_parameters = {kind: {"rope_type": "default", "rope_theta": 1e4} for kind in set(config.layer_types)}


def _fields(**values: Any) -> Recipe:
    def set_fields(config: Any) -> None:
        for name, value in values.items():
            assign(config, name, value)

    return set_fields


def _sections(config: Any) -> None:
    """Three axes of positions, which the default has not, and which the model does not run without."""
    config.rope_parameters = {**config.rope_parameters, "mrope_section": [1, 1, 2]}


_SERIES = _fields(prediction_length=8, context_length=32)
_ZAMBA = _fields(
    num_hidden_layers=4,
    layers_block_type=["linear_attention", "hybrid"] * 2,
    attention_hidden_size=2 * HIDDEN,
    attention_head_dim=32,
)

# What is done to the tiny config of a type after a recipe.
SPECIAL_CASES: dict[str, Recipe] = {
    "autoformer": _SERIES,
    "bamba": _fields(attn_layer_indices=[1]),
    "blip-2": _fields(image_token_index=250, num_query_tokens=4),
    "chameleon": _fields(vocabulary_map={"<image>": 200}),
    "cohere_compass": lambda config: _rotary_by_kind_of_layer(config.text_config),
    "cohere_compass_text": _rotary_by_kind_of_layer,
    "dbrx": lambda config: vars(config.attn_config).update(rope_theta=1e4, clip_qkv=8.0),
    "deepseek_ocr2": lambda config: _fields(mlp_layer_types=["dense", "sparse"])(config.text_config),
    "deepseek_v2": _fields(num_experts_per_tok=2),
    "depth_pro": _fields(patch_size=64, intermediate_hook_ids=(1, 0)),
    "granite4_vision": _fields(deepstack_layer_map=[[0, 0]], downsample_rate="1/2"),
    "granitemoehybrid": _fields(layer_types=["linear_attention", "full_attention"]),
    "hunyuan_vl": lambda config: _sections(config.text_config),
    "hunyuan_vl_text": _sections,
    "informer": _SERIES,
    "instructblip": _fields(image_token_index=250, num_query_tokens=4),
    "instructblipvideo": _fields(image_token_index=250, video_token_index=250, num_query_tokens=4),
    "kosmos-2": _fields(latent_query_num=4),
    "lfm2_moe": _fields(layer_types=["conv", "full_attention"]),
    "moonshine_streaming": _fields(num_key_value_heads=HEADS),
    "nemotron": _fields(num_key_value_heads=KV_HEADS),
    "qwen2_5_omni_thinker": _fields(vision_start_token_id=250),
    "qwen3_omni_moe_thinker": _fields(vision_start_token_id=250),
    "step3p7": lambda config: _fields(sliding_window=16)(config.text_config),
    "t5gemma2_encoder": lambda config: _fields(dropout_rate=0.0)(config.text_config),
    "time_series_transformer": _SERIES,
    "xmod": _fields(default_language="en_XX"),
    "zamba": _ZAMBA,
    "zamba2": lambda config: (_ZAMBA(config), _fields(mamba_headdim=16, hybrid_layer_ids=[1, 3])(config)),
}
