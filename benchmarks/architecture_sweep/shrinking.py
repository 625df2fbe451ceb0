"""How a default config becomes tiny: by rules on the names of its fields, never by model."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

WORDS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, ROTARY_DIM, FEED_FORWARD = 256, 64, 4, 2, 16, 8, 64
STANDARD_DEVIATION = 0.15  # of the random weights: large enough that the scores of one row differ

VOCABULARY = r"(?!type_)(.*_)?vocab_size(_per_layer_input)?"
DEPTH = (
    r"num_hidden_layers|n_layers?|num_layers|.*encoder_layers|.*decoder_layers|depth|num_encoder_layers"
    r"|num_decoder_layers|decoder_num_hidden_layers|encoder_num_hidden_layers|layers|num_blocks|num_global_layers"
    r"|n_encoder_layers|n_decoder_layers|l_layers|x_layers|r_layers|resampler_depth|transformer_layers"
)
EXPERTS = r"num_experts|num_local_experts|n_routed_experts|moe_num_experts|moe_n_routed_experts|num_routed_experts"
TOKEN_IDS = r".*token(_id|_index)|.*_token_ids?"
_WIDTH = (
    r"hidden_size|d_model|n_embd|dim|embed_dim|text_hidden_size|emb_dim|decoder_hidden_size|word_embed_proj_dim"
    r"|encoder_hidden_size|attention_hidden_size|lru_width|hidden_dim|n_embed|out_hidden_size|projection_dim"
    r"|projector_hidden_size|backbone_hidden_size|audio_hidden_size|vision_hidden_size|qformer_hidden_size"
    r"|output_dim|hidden_size_global|model_dim|embedding_dim|conv_dim|q_hidden_size|cross_hidden_size"
    r"|depth_hidden_size|entity_emb_size|d_embed|output_proj_dims|moe_hidden_size"
)
_FEED_FORWARD = (
    r".*intermediate_size\w*|.*ffn_dim|d_ff|n_inner|hidden_dim_ff|mlp_dim|.*ffn_hidden_size|dim_ff|dim_feedforward"
    r"|linear_units"
)
_CONVOLUTIONS = r"codec|backbone_config|vq_|tokenizer"  # their widths hang together


@dataclass(frozen=True)
class Surroundings:
    """What the rule for one field has to know of the others: how many layers and heads, and what lists are as long."""

    layers: int
    heads: int
    depths: frozenset[int]


def _at_most(limit: int) -> Callable[[Any, Surroundings], Any]:
    return lambda value, around: min(value, limit)


# The last rule that matches a name holds; a value that is not a function is the new value itself.
_RULES: tuple[tuple[str, Any], ...] = (
    (VOCABULARY, WORDS),
    (_WIDTH, HIDDEN),
    (r"embedding_size|hidden_size_per_layer_input", 32),
    (_FEED_FORWARD, FEED_FORWARD),
    (DEPTH, lambda value, around: around.layers),
    (r"n_heads?|num_heads|.*attention_heads|heads", HEADS),
    (
        r".*num_key_value_heads|num_kv_heads|n_kv_heads|kv_n_heads|multi_query_group_num",
        lambda value, around: HEADS if value == around.heads else min(value, KV_HEADS),
    ),
    (r"head_dim|d_kv|d_head|.*_head_dim|kv_channels", HEAD_DIM),
    (r"qk_rope_head_dim|index_head_dim|rotary_dim", ROTARY_DIM),
    (r"qk_head_dim", HEAD_DIM + ROTARY_DIM),
    (r"q_lora_rank|kv_lora_rank|o_lora_rank", 32),
    (EXPERTS, 4),
    (r"num_experts_per_tok(en)?|moe_top_?k|top_k_experts|num_selected_experts|moe_k", _at_most(2)),
    (r"n_group|topk_group|num_expert_group|n_groups", 1),
    (r"first_k_dense_replace|num_dense_layers|moe_layer_start_index", _at_most(1)),
    (r"max_position_embeddings|n_positions|n_ctx|max_sequence_length|max_seq_len", _at_most(4096)),
    (r"sliding_window|attention_window_size|attention_chunk_size|local_attention|sliding_window_size", 16),
    (r"mamba_n_heads|mamba_num_heads", 8),
    (r"mamba_d_head|mamba_d_state|state_size|ssm_state_size|mamba_d_ssm_state", 16),
    (r"mamba_d_ssm|mamba_intermediate_size", 128),
    (r"linear_num_key_heads", 2),
    (r"linear_num_value_heads|linear_num_heads", 4),
    (r"initializer_range|init_std", STANDARD_DEVIATION),
    (r"attn_layer_period", 2),
    (r"attn_layer_offset", 1),
    (r"encoder_hash_byte_group_vocab", 512),
    (r"full_attention_interval|global_attn_every_n_layers|sliding_window_pattern|no_rope_layer_interval", 2),
    (r"attn_every_n_layers", 2),
    (r"cross_attention_frequency", 1),
    (r"crop_size", 64),
    (r"num_queries|index_topk", _at_most(8)),
    (r"frames_per_clip", _at_most(4)),
)


def shrink(config: Any, *, keep_head_dims: bool = False) -> Any:
    """Shrink a config in place, and those it holds."""
    return _shrink(config, keep_head_dims, set())


def _shrink(config: Any, keep_head_dims: bool, done: set[int]) -> Any:
    if id(config) in done:
        return config
    done.add(id(config))
    fields = dict(vars(config))
    around = surroundings(fields)
    if fields.get("num_kv_shared_layers"):
        # Every kind of layer three times: by itself, with keys that another one reads, and reading those.
        kinds = list(dict.fromkeys(fields.pop("layer_types", None) or ["full_attention"]))
        config.num_kv_shared_layers = len(kinds)
        object.__setattr__(config, "layer_types", kinds * 3)
        around = Surroundings(3 * len(kinds), around.heads, around.depths)
    for name, value in fields.items():
        if isinstance(value, PreTrainedConfig):
            if not re.search(_CONVOLUTIONS, name):
                _shrink(value, keep_head_dims, done)
            continue
        tiny = tiny_value(name, value, around)
        if name == "head_dim" and value == fields.get("qk_rope_head_dim"):
            tiny = ROTARY_DIM  # latent attention means its rotary part by it
        if keep_head_dims:
            if "head_dim" in name or name.startswith("rope_") or name == "d_kv":
                continue
            if tiny == HIDDEN and around.heads:
                tiny = HEADS * (fields.get("head_dim") or width(fields) // around.heads) or tiny
        if tiny is not None and tiny != value:
            assign(config, name, tiny)
    return config


def surroundings(fields: dict[str, Any]) -> Surroundings:
    """What the fields of a default config say: two layers, or as many as show every kind of layer once."""
    kinds = fields.get("layer_types") or fields.get("layers_block_type") or fields.get("block_types") or []
    enough = next((count for count in range(1, len(kinds) + 1) if set(kinds[:count]) == set(kinds)), 2)
    heads = _first_number(fields, ("num_attention_heads", "n_head", "num_heads"))
    depths = {value for name, value in fields.items() if isinstance(value, int) and re.fullmatch(DEPTH, name)}
    return Surroundings(min(8, max(2, enough)), heads, frozenset(depths))


def width(fields: dict[str, Any]) -> int:
    return _first_number(fields, ("hidden_size", "d_model", "n_embd"))


def _first_number(fields: dict[str, Any], names: tuple[str, ...]) -> int:
    return next((fields[name] for name in names if isinstance(fields.get(name), int)), 0)


def tiny_value(name: str, value: Any, around: Surroundings) -> Any:
    """The tiny value of one field, or None to keep it."""
    if isinstance(value, list | tuple) and len(value) in around.depths and len(value) > around.layers:
        return value[: around.layers]
    if re.fullmatch(TOKEN_IDS, name):
        return _tiny_token_ids(name, value)
    if name in ("rope_parameters", "rope_scaling") and isinstance(value, dict):
        return _tiny_rotary(value)
    if name == "image_size" and value:
        return type(value)([64] * len(value)) if isinstance(value, list | tuple) else 64
    if name in ("attn_layer_indices", "hybrid_layer_ids") and value:
        return [1]
    if isinstance(value, bool) or not isinstance(value, int | float) or value == 0:
        return None
    rule = next((rule for pattern, rule in reversed(_RULES) if re.fullmatch(pattern, name)), None)
    return rule(value, around) if callable(rule) else rule


def _tiny_token_ids(name: str, value: Any) -> Any:
    """Special tokens get ids above those of the text, another for each name."""
    if isinstance(value, int) and value >= WORDS:
        return 150 + sum(map(ord, name)) % 100
    if isinstance(value, list) and all(isinstance(number, int) for number in value):
        return [number if number < WORDS else 250 for number in value]
    return None


def _tiny_rotary(rotary: dict[str, Any]) -> dict[str, Any]:
    """The sections of a multimodal rotary embedding add up to half the head dim."""
    rotary = {name: _tiny_rotary(value) if isinstance(value, dict) else value for name, value in rotary.items()}
    if sections := rotary.get("mrope_section"):
        half = int(HEAD_DIM * rotary.get("partial_rotary_factor", 1.0)) // 2
        others = [half // len(sections)] * (len(sections) - 1)
        rotary["mrope_section"] = [half - sum(others), *others]
    for name in ("short_factor", "long_factor"):
        if isinstance(rotary.get(name), list):
            rotary[name] = rotary[name][: HEAD_DIM // 2]
    return rotary


def assign(config: Any, name: str, value: Any) -> None:
    """Set a field although a strict config may refuse it, because another field has to move first."""
    try:
        setattr(config, name, value)
    except Exception:
        object.__setattr__(config, name, value)
